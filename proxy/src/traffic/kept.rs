//! Connections to one endpoint that wait for the next request. They live in the endpoint itself, so none is looked up, and
//! those of an endpoint that is gone end with it.
//!
//! In: connections whose answer is complete. Out: the one used last, which is the likeliest to be open still; what the
//! endpoint closed, or what was not needed for too long, is dropped within about a second.

use super::alarm::Alarm;
use super::link::Link;
use crate::route::Endpoint;
use futures::FutureExt as _;
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt as _;

/// How often the connections that wait are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// A connection, and what ends a wait for its endpoint.
pub(super) struct Connection {
    pub(super) link: Box<Link>,
    pub(super) alarm: Alarm,
}

/// Connections that wait.
#[derive(Default)]
pub struct Kept(Mutex<Idle>);

#[derive(Default)]
struct Idle {
    /// The one used last is at the end.
    connections: Vec<(Connection, Instant)>,
    /// A task looks at them.
    swept: bool,
}

impl Kept {
    /// One that is open, as far as is known.
    pub(super) fn take(&self) -> Option<Connection> {
        loop {
            let (mut connection, _) = self.0.lock().connections.pop()?;
            if is_quiet(&mut connection) {
                return Some(connection);
            }
        }
    }

    /// Keeps at most `most` connections, each for `time`.
    pub(super) fn put(endpoint: &Arc<Endpoint>, mut connection: Connection, most: usize, time: Duration) {
        if !is_quiet(&mut connection) {
            return;
        }
        let mut idle = endpoint.kept.0.lock();
        if idle.connections.len() >= most {
            return;
        }
        idle.connections.push((connection, Instant::now()));
        if !std::mem::replace(&mut idle.swept, true) {
            sweep(endpoint, move |endpoint| endpoint.kept.tidy(time));
        }
    }

    /// Drops what is closed or was not needed for `time`. False: nothing is left.
    fn tidy(&self, time: Duration) -> bool {
        let mut idle = self.0.lock();
        idle.connections.retain_mut(|(connection, since)| since.elapsed() < time && is_quiet(connection));
        idle.swept = !idle.connections.is_empty();
        idle.swept
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.lock().connections.len()
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} connections", self.0.lock().connections.len())
    }
}

/// Lets `tidy` look at what an endpoint has, again and again until it says that nothing is left, or the endpoint is gone.
pub(super) fn sweep(endpoint: &Arc<Endpoint>, tidy: impl Fn(&Endpoint) -> bool + Send + 'static) {
    let endpoint = Arc::downgrade(endpoint);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(SWEEP).await;
            if !endpoint.upgrade().is_some_and(|endpoint| tidy(&endpoint)) {
                return;
            }
        }
    });
}

/// Whether a connection is open and says nothing. What speaks unasked is not to be trusted with a request.
fn is_quiet(connection: &mut Connection) -> bool {
    // Without the budget of the task, which would make it seem quiet.
    tokio::task::unconstrained(connection.link.read(&mut [0])).now_or_never().is_none()
}

#[cfg(test)]
mod tests {
    use super::super::wire::Wire;
    use super::*;
    use std::net::SocketAddr;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

    const LONG: Duration = Duration::from_secs(60);

    async fn pair(listener: &TcpListener) -> (Connection, TcpStream) {
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let theirs = listener.accept().await.unwrap().0;
        (Connection { link: Box::new(Link::new(Wire::Clear(ours))), alarm: Alarm::new(LONG) }, theirs)
    }

    /// Until the runtime has been told by the kernel.
    async fn until(what: impl Fn() -> bool) {
        for _ in 0..500 {
            if what() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it never came to be");
    }

    #[tokio::test]
    async fn the_last_one_that_is_open_and_quiet_comes_first() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Arc::new(Endpoint::new(SocketAddr::from(([10, 0, 0, 1], 80))));
        let mut theirs = Vec::new();
        for _ in 0..4 {
            let (ours, other) = pair(&listener).await;
            Kept::put(&endpoint, ours, 3, LONG);
            theirs.push(other);
        }
        assert_eq!(endpoint.kept.len(), 3, "no more than that");
        theirs[2].write_all(b"HTTP/1.1 408 Request Timeout\r\n").await.unwrap();
        theirs.remove(1);
        tokio::time::sleep(Duration::from_millis(50)).await;
        let first = endpoint.kept.take().unwrap();
        assert_eq!(endpoint.kept.len(), 0, "one had spoken, one was closed");
        assert!(endpoint.kept.take().is_none());
        Kept::put(&endpoint, first, 3, LONG);
        assert!(endpoint.kept.take().is_some());
    }

    #[tokio::test]
    async fn what_is_closed_or_not_needed_is_dropped() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Arc::new(Endpoint::new(SocketAddr::from(([10, 0, 0, 1], 80))));
        let (ours, theirs) = pair(&listener).await;
        Kept::put(&endpoint, ours, 3, LONG);
        drop(theirs);
        until(|| endpoint.kept.len() == 0).await;
        // The task that looked has ended; another one begins.
        until(|| !endpoint.kept.0.lock().swept).await;
        let (ours, mut theirs) = pair(&listener).await;
        Kept::put(&endpoint, ours, 3, Duration::from_millis(1));
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0, "it is closed");
        // And those of an endpoint that is gone.
        let (ours, mut theirs) = pair(&listener).await;
        Kept::put(&endpoint, ours, 3, LONG);
        drop(endpoint);
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0, "it is closed");
    }
}
