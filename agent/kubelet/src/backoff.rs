//! Exponential back-off as the kubelet counts it: the first repetition is at once, then 10 s · 2ⁿ up to 5 minutes;
//! forgotten when things went well for 10 minutes. Pure: time is passed in.

use jiff::{SignedDuration, Timestamp};

const INITIAL: SignedDuration = SignedDuration::from_secs(10);
const MAX: SignedDuration = SignedDuration::from_secs(300);
const RESET_AFTER: SignedDuration = SignedDuration::from_secs(600);

/// The back-off of one container or image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backoff {
    state: Option<(SignedDuration, Timestamp)>,
}

impl Backoff {
    /// As it would stand after `repetitions` in a row, the last at `at`: for what was taken over from an earlier run.
    pub fn after(repetitions: u32, at: Timestamp) -> Self {
        let mut backoff = Self::default();
        for _ in 0..repetitions.min(6) {
            backoff.step(at);
        }
        backoff
    }

    /// When the next attempt may be made, after a failure at `failed`.
    pub fn ready_at(&self, failed: Timestamp) -> Timestamp {
        match self.state {
            Some((delay, updated)) if !expired(updated, failed) => failed.saturating_add(delay).unwrap_or(failed),
            _ => failed,
        }
    }

    /// The delay in force, for messages.
    pub fn delay(&self) -> SignedDuration {
        self.state.map_or(INITIAL, |(delay, _)| delay)
    }

    /// Counts an attempt after the failure at `failed`: the next one waits longer.
    pub fn step(&mut self, failed: Timestamp) {
        let delay = match self.state {
            Some((delay, updated)) if !expired(updated, failed) => (delay + delay).min(MAX),
            _ => INITIAL,
        };
        self.state = Some((delay, failed));
    }
}

fn expired(updated: Timestamp, failed: Timestamp) -> bool {
    failed.duration_since(updated) > RESET_AFTER
}

/// `10s`, `1m20s`, `5m0s`: as Go prints durations.
pub fn go_duration(d: SignedDuration) -> String {
    let seconds = d.as_secs();
    match (seconds / 60, seconds % 60) {
        (0, s) => format!("{s}s"),
        (m, s) => format!("{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_five_minutes_and_is_forgotten() {
        let t0 = Timestamp::from_second(1_000_000).unwrap();
        let mut b = Backoff::default();
        assert_eq!(b.ready_at(t0), t0);
        let mut seen = Vec::new();
        for _ in 0..7 {
            b.step(t0);
            seen.push(b.ready_at(t0).duration_since(t0).as_secs());
        }
        assert_eq!(seen, [10, 20, 40, 80, 160, 300, 300]);
        let later = t0 + SignedDuration::from_secs(601);
        assert_eq!(b.ready_at(later), later);
        b.step(later);
        assert_eq!(b.delay().as_secs(), 10);
        assert_eq!(go_duration(SignedDuration::from_secs(80)), "1m20s");
    }
}
