//! A time-out that is set far more often than it passes: setting it writes down a time, and the runtime's timer, which
//! costs more, is moved only when it has to be.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// A time-out of one connection.
#[derive(Debug)]
pub struct Alarm {
    deadline: Instant,
    /// Runs until the deadline or an earlier one.
    timer: Pin<Box<Sleep>>,
}

impl Alarm {
    /// One that passes in `time`.
    pub fn new(time: Duration) -> Self {
        let deadline = Instant::now() + time;
        Self { deadline, timer: Box::pin(tokio::time::sleep_until(deadline)) }
    }

    /// It passes `time` from now instead.
    pub fn set(&mut self, time: Duration) {
        self.deadline = Instant::now() + time;
    }

    /// Ready once it has passed.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.timer.deadline() > self.deadline {
            self.timer.as_mut().reset(self.deadline);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= self.deadline {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(self.deadline);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn what_was_set_last_holds() {
        let start = Instant::now();
        let seconds = Duration::from_secs;
        let mut alarm = Alarm::new(seconds(10));
        alarm.set(seconds(30));
        poll_fn(|cx| alarm.poll(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 30, "later than it was");
        alarm.set(seconds(60));
        assert!(futures::poll!(poll_fn(|cx| alarm.poll(cx))).is_pending());
        alarm.set(seconds(5));
        poll_fn(|cx| alarm.poll(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 35, "earlier than it was");
        poll_fn(|cx| alarm.poll(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 35, "it has passed");
    }
}
