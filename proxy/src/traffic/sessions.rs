//! HTTP/2 connections to one endpoint, each with room for many requests. Like those that wait in [`super::kept`], they live
//! in the endpoint itself.
//!
//! In: an endpoint, and the terms on which it is spoken to. Out: places on its connections, the oldest first, so that
//! there are few of them. A new connection is made by one request, and the others that find no place wait for it. One that
//! had no request for too long is closed.

use super::alarm::Alarm;
use super::cork::Corked;
use super::kept;
use super::wire::{self, Wire};
use crate::route::Endpoint;
use crate::route::upstream::BackendTls;
use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use parking_lot::Mutex;
use pingora::{ErrorType, OkOrErr as _, OrErr as _, Result};
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Requests on one connection at most.
const MOST: usize = 100;
/// What a backend may send on one request before it is taken, in bytes; on all of a connection so much times as many, so
/// that a client that is slow holds up nobody but itself.
const WINDOW: u32 = 512 * 1024;
/// The head of an answer, in bytes at most.
const MAX_HEAD: u32 = 256 * 1024;
/// Frames we take, in bytes at most.
const MAX_FRAME: u32 = 64 * 1024;

/// The connections to an endpoint.
#[derive(Default)]
pub struct Sessions {
    open: Mutex<Open>,
    opening: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Open {
    all: Vec<Arc<Session>>,
    /// A task looks at them.
    swept: bool,
}

struct Session {
    requests: SendRequest<Bytes>,
    streams: AtomicUsize,
    /// It gets no further request.
    closed: Arc<AtomicBool>,
    idle: Mutex<Idle>,
}

/// What a connection has while a place on it is free.
struct Idle {
    since: Instant,
    alarms: Vec<Alarm>,
}

/// A place for one request on a connection.
pub(super) struct Place {
    session: Arc<Session>,
    /// Ends a wait for the endpoint; passed on from request to request.
    pub(super) alarm: Option<Alarm>,
    /// Other requests were sent over the connection before.
    pub(super) reused: bool,
}

impl Sessions {
    /// A place on a connection to the endpoint, which is made if there is none.
    pub(super) async fn place(
        endpoint: &Arc<Endpoint>,
        terms: Option<&BackendTls>,
        time: Duration,
        idle: Duration,
    ) -> Result<Place> {
        let sessions = &endpoint.sessions;
        if let Some(place) = sessions.take() {
            return Ok(place);
        }
        let making = async {
            let _others_wait = sessions.opening.lock().await;
            match sessions.take() {
                Some(place) => Ok(place),
                None => sessions.make(endpoint, terms, idle).await,
            }
        };
        wire::within(time, endpoint.address, making).await
    }

    fn take(&self) -> Option<Place> {
        let mut open = self.open.lock();
        open.all.retain(|session| !session.is_closed());
        open.all.iter().find_map(|session| Place::on(session, true))
    }

    async fn make(&self, endpoint: &Arc<Endpoint>, terms: Option<&BackendTls>, idle: Duration) -> Result<Place> {
        let wire = Wire::open(endpoint.address, terms, true).await?;
        let session = Arc::new(Session::begin(wire).await?);
        let place = Place::on(&session, false);
        let place = place.or_err(ErrorType::H2Error, "the endpoint takes no request on a new connection")?;
        let mut open = self.open.lock();
        open.all.push(session);
        if !std::mem::replace(&mut open.swept, true) {
            kept::sweep(endpoint, move |endpoint| endpoint.sessions.tidy(idle));
        }
        Ok(place)
    }

    /// Closes what had no request for `idle`. False: nothing is left.
    fn tidy(&self, idle: Duration) -> bool {
        let mut open = self.open.lock();
        open.all.retain(|session| session.is_wanted(idle));
        open.swept = !open.all.is_empty();
        open.swept
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} connections", self.open.lock().all.len())
    }
}

impl Session {
    async fn begin(wire: Wire) -> Result<Self> {
        let mut wire = Corked::new(wire);
        wire.put_off();
        let (requests, connection) = Builder::new()
            .enable_push(false)
            .initial_max_send_streams(MOST)
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW * MOST as u32)
            .max_header_list_size(MAX_HEAD)
            .max_frame_size(MAX_FRAME)
            .handshake(wire)
            .await
            .or_err(ErrorType::H2Error, "beginning HTTP/2")?;
        let closed = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&closed);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::trace!(%error, "connection to an endpoint ended");
            }
            ended.store(true, Ordering::Relaxed);
        });
        let idle = Mutex::new(Idle { since: Instant::now(), alarms: Vec::new() });
        Ok(Self { requests, streams: AtomicUsize::new(0), closed, idle })
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Whether it is of use to anybody.
    fn is_wanted(&self, idle: Duration) -> bool {
        !self.is_closed() && (self.streams.load(Ordering::Relaxed) > 0 || self.idle.lock().since.elapsed() < idle)
    }
}

impl Place {
    /// One that is free.
    fn on(session: &Arc<Session>, reused: bool) -> Option<Self> {
        let most = MOST.min(session.requests.current_max_send_streams());
        let more = |taken: usize| (taken < most).then_some(taken + 1);
        session.streams.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        let alarm = session.idle.lock().alarms.pop();
        Some(Self { session: Arc::clone(session), alarm, reused })
    }

    /// Sends a request's head. Where that fails, the endpoint has not seen it.
    pub(super) async fn send(
        &self,
        request: http::Request<()>,
        ended: bool,
    ) -> std::result::Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut requests = self.session.requests.clone();
        let sent = match poll_fn(|cx| requests.poll_ready(cx)).await {
            Ok(()) => requests.send_request(request, ended),
            Err(error) => Err(error),
        };
        sent.inspect_err(|error| self.note(error))
    }

    /// What has gone wrong may be about the whole connection.
    pub(super) fn note(&self, error: &h2::Error) {
        if error.is_io() || error.is_go_away() {
            self.retire();
        }
    }

    /// The connection gets no further request.
    pub(super) fn retire(&self) {
        self.session.closed.store(true, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut idle = self.session.idle.lock();
        idle.since = Instant::now();
        idle.alarms.extend(self.alarm.take());
        drop(idle);
        self.session.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether an endpoint has not looked at a request, so that it may be sent again whatever it is (RFC 9113 section 8.7).
pub(super) fn is_untouched(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    let leaving = error.is_go_away() && error.reason() == Some(Reason::NO_ERROR);
    error.is_remote() && (refused || leaving)
}
