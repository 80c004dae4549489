//! How long a watch waits between its attempts. In: kube's events. Out: the same, with a pause after each error: pauses double
//! up to a few seconds, with jitter, and begin anew when a watch has been well for a while.

use futures::stream::{BoxStream, Stream};
use kube::runtime::watcher::{Event, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(4);
/// A watch that was well for this long begins at the first pause again.
const FORGET: Duration = Duration::from_secs(20);

/// A watch that waits by itself between attempts.
pub(super) struct Paced<K> {
    pub(super) events: BoxStream<'static, Result<Event<K>>>,
    pauses: Pauses,
    /// Until this is over, nothing is asked.
    pause: Option<Pin<Box<Sleep>>>,
}

impl<K> Paced<K> {
    pub(super) fn new(events: BoxStream<'static, Result<Event<K>>>) -> Self {
        Self { events, pauses: Pauses::new(Instant::now()), pause: None }
    }

    /// After a failure.
    pub(super) fn wait(&mut self) {
        self.pause = Some(Box::pin(tokio::time::sleep(self.pauses.failed(Instant::now()))));
    }
}

impl<K> Stream for Paced<K> {
    type Item = Result<Event<K>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(context));
            self.pause = None;
        }
        let event = ready!(self.events.as_mut().poll_next(context));
        if matches!(event, Some(Err(_))) {
            self.wait();
        }
        Poll::Ready(event)
    }
}

/// How long to wait after each failure.
#[derive(Debug)]
struct Pauses {
    next: Duration,
    /// When the last pause was over.
    over: Instant,
}

impl Pauses {
    fn new(now: Instant) -> Self {
        Self { next: FIRST, over: now }
    }

    fn failed(&mut self, now: Instant) -> Duration {
        // A watch of objects that never change says nothing while it is well.
        if now.saturating_duration_since(self.over) >= FORGET {
            self.next = FIRST;
        }
        let pause = self.next.mul_f64(rand::random_range(0.75..1.25));
        self.next = (self.next * 2).min(LONGEST);
        self.over = now + pause;
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_begin_anew_after_a_good_while() {
        let mut now = Instant::now();
        let mut pauses = Pauses::new(now);
        let mut failed = |well: Duration| {
            now += well;
            let pause = pauses.failed(now);
            now += pause;
            pause
        };
        let many: Vec<Duration> = (0..20).map(|_| failed(Duration::from_millis(1))).collect();
        assert!(many[0] <= FIRST.mul_f64(1.25) && many[4] > many[0]);
        assert!(many.iter().all(|p| *p <= LONGEST.mul_f64(1.25)));
        assert!(failed(Duration::from_secs(1)) >= LONGEST.mul_f64(0.75), "well for too short");
        assert!(failed(FORGET) <= FIRST.mul_f64(1.25));
    }
}
