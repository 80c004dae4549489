//! Connections that ask for nothing are closed: who only opens them takes no place from others for long.
//!
//! In: the beginnings and ends of a connection's requests. Out: when it has asked for nothing for too long. A request is
//! over when its response has been sent, so that a watch keeps its connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// From the handshake to the first request.
const FIRST: Duration = Duration::from_secs(10);
/// From one request to the next. Clients give up their own idle connections after a minute or two.
const NEXT: Duration = Duration::from_secs(300);
/// How often a busy connection is looked at.
const LOOK: Duration = Duration::from_secs(10);

struct State {
    begin: Instant,
    in_flight: AtomicUsize,
    asked: AtomicBool,
    /// When the last request ended, in milliseconds after `begin`.
    ended: AtomicU64,
}

/// How busy one connection is.
#[derive(Clone)]
pub struct Activity(Arc<State>);

/// One request, until it is dropped.
pub struct Busy(Arc<State>);

impl Activity {
    /// Of a connection that has just been made.
    pub fn new() -> Self {
        Self(Arc::new(State {
            begin: Instant::now(),
            in_flight: AtomicUsize::new(0),
            asked: AtomicBool::new(false),
            ended: AtomicU64::new(0),
        }))
    }

    /// A request begins.
    pub fn busy(&self) -> Busy {
        self.0.asked.store(true, Ordering::Relaxed);
        self.0.in_flight.fetch_add(1, Ordering::Relaxed);
        Busy(self.0.clone())
    }

    /// Ends when the connection has asked for nothing for too long.
    pub async fn idle(&self) {
        loop {
            let wait = match self.left() {
                None => LOOK,
                Some(left) if left.is_zero() => return,
                Some(left) => left,
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// How long it may stay without another request; `None` while there is one.
    fn left(&self) -> Option<Duration> {
        if self.0.in_flight.load(Ordering::Relaxed) > 0 {
            return None;
        }
        let limit = if self.0.asked.load(Ordering::Relaxed) { NEXT } else { FIRST };
        let ended = Duration::from_millis(self.0.ended.load(Ordering::Relaxed));
        Some((ended + limit).saturating_sub(self.0.begin.elapsed()))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let now = u64::try_from(self.0.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.ended.store(now, Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_asks_stays_and_what_does_not_goes() {
        let activity = Activity::new();
        assert!(activity.left().is_some_and(|left| left <= FIRST && left > FIRST / 2));
        let (one, two) = (activity.busy(), activity.busy());
        assert!(activity.left().is_none());
        drop(one);
        assert!(activity.left().is_none(), "one goes on");
        drop(two);
        assert!(activity.left().is_some_and(|left| left > FIRST), "it has asked before");
    }
}
