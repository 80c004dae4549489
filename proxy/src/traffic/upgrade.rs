//! Connections after a change of protocol (WebSocket). Both sides have agreed while Pingora held the connection for HTTP;
//! what it knows and holds for a request is of no more use, and a WebSocket may live long. So the client's connection is
//! taken out of its hands and left to the task that the connection has anyway.
//!
//! In: a request whose answer has been `101`. Out: the connections are joined, and at their end the request is over.

use super::access::{Entry, Log};
use super::conn::Conn;
use super::cork::Corked;
use super::http::{HttpApp, RequestState};
use super::io::Io;
use super::tunnel::{self, Passed};
use crate::config::Shared;
use parking_lot::Mutex;
use pingora::protocols::Stream;
use pingora::proxy::{ProxyHttp as _, Session};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Where a connection's task finds what has become of it.
pub type Heir = Arc<Mutex<Option<Box<Upgraded>>>>;

/// Two connections that are no more for HTTP.
pub struct Upgraded {
    client: Corked<Io>,
    backend: Stream,
    /// The longest silence of both.
    silence: Duration,
    /// Counts among the requests of its endpoint.
    request: RequestState,
    log: Option<(Log, Entry<'static>)>,
    shared: Arc<Shared>,
}

impl HttpApp {
    /// Takes a connection out of Pingora's hands, once the answer has been sent. The request goes with it.
    pub(super) fn hand_over(&self, session: &Session, backend: Stream, ctx: &mut RequestState) {
        let Some(conn) = session.stream().and_then(Conn::of) else { return };
        let silence = self.silence(ctx).0;
        let log = self.log().map(|log| (log.clone(), self.entry(session, ctx).into_owned()));
        let request = std::mem::replace(ctx, self.new_ctx());
        ctx.handed_over = true;
        let shared = Arc::clone(self.shared());
        conn.leave(|client| Upgraded { client, backend, silence, request, log, shared });
    }
}

impl fmt::Debug for Upgraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgraded").finish_non_exhaustive()
    }
}

impl Upgraded {
    /// Joins them to their end.
    pub async fn run(mut self: Box<Self>) {
        let mut passed = Passed::default();
        let ended = tunnel::join(&mut self.client, &mut self.backend, Some(self.silence), &mut passed).await;
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection with another protocol broke off");
        }
        let took = self.request.took();
        self.shared.metrics.answered(101, took.as_secs_f64());
        if let Some((log, mut entry)) = self.log.take() {
            entry.bytes = passed.down;
            log.write(entry, took);
        }
    }
}
