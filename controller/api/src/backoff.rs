//! How long a watch waits before its next attempt. In: how often it failed in a row. Out: pauses that double up to a few
//! seconds, spread a little so that a thousand nodes do not come back in one moment.
//!
//! The bound is what makes a node come back soon after its link does: half a minute, as clients usually have it, would
//! be half a minute of old endpoints.

use kube::runtime::utils::{Backoff, ResetTimerBackoff};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(4);
/// What went well for this long starts at the beginning again.
const FORGET: Duration = Duration::from_secs(20);

/// Pauses that double up to a bound.
#[derive(Debug)]
pub struct Doubling(Duration);

impl Iterator for Doubling {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST);
        Some(pause.mul_f64(rand::random_range(0.75..1.25)))
    }
}

impl Backoff for Doubling {
    fn reset(&mut self) {
        self.0 = FIRST;
    }
}

/// The pauses of a watch.
pub fn watch() -> ResetTimerBackoff<Doubling> {
    ResetTimerBackoff::new(Doubling(FIRST), FORGET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_below_the_bound() {
        let mut pauses = Doubling(FIRST);
        let many: Vec<Duration> = pauses.by_ref().take(20).collect();
        assert!(many[0] < FIRST * 2 && many[4] > many[0]);
        assert!(many.iter().all(|p| *p <= LONGEST.mul_f64(1.25)));
        pauses.reset();
        assert!(pauses.next().is_some_and(|p| p < FIRST * 2));
    }
}
