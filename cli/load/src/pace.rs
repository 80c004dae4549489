//! When requests are due: evenly, at a rate, whatever becomes of those before. Pure arithmetic, and one thread that
//! follows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// A timetable.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Requests a second.
    pub rate: f64,
}

impl Pace {
    /// When request number `n` is due, counted from the first.
    pub fn due(&self, n: u64) -> Duration {
        Duration::from_secs_f64(n as f64 / self.rate)
    }

    /// How many are due after some time: the first at once.
    pub fn count(&self, after: Duration) -> u64 {
        let exact = after.as_secs_f64() * self.rate;
        // A request is due at the moment its number says, not the nanosecond later that rounding makes of it.
        (exact + (self.rate + 1.0) * 2e-9).floor() as u64 + 1
    }

    /// How many become due within a time, its end not included.
    pub fn within(&self, time: Duration) -> u64 {
        (time.as_secs_f64() * self.rate - 1e-6).ceil().max(1.0) as u64
    }

    /// Gives one permit for every request as it becomes due, `total` in all; to be run on a thread of its own, since
    /// timers of async runtimes are exact to a millisecond only.
    pub fn follow(&self, begin: Instant, total: u64, permits: &Arc<Semaphore>, stop: &Stop) {
        let mut given = 0;
        while given < total && !stop.is_set() {
            let now = Instant::now();
            let due = self.count(now.saturating_duration_since(begin)).min(total);
            if now >= begin && due > given {
                permits.add_permits((due - given) as usize);
                given = due;
                continue;
            }
            let next = begin + self.due(given);
            std::thread::sleep(next.saturating_duration_since(now).min(Duration::from_millis(100)));
        }
    }
}

/// A flag that ends things: set once, seen by all.
#[derive(Debug, Default)]
pub struct Stop(AtomicBool);

impl Stop {
    /// Ends what looks at it.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether to end.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timetable_is_even_and_complete() {
        for rate in [0.5, 1.0, 3.0, 1000.0, 12345.0] {
            let pace = Pace { rate };
            assert_eq!(pace.due(0), Duration::ZERO);
            assert_eq!(pace.count(Duration::ZERO), 1);
            for n in [1_u64, 2, 10, 999, 100_000] {
                assert_eq!(pace.count(pace.due(n)), n + 1, "rate {rate}, request {n}");
                assert_eq!(pace.count(pace.due(n) - Duration::from_micros(10)), n, "rate {rate}, before request {n}");
            }
        }
        assert_eq!(Pace { rate: 100.0 }.within(Duration::from_secs(2)), 200);
        assert_eq!(Pace { rate: 0.1 }.within(Duration::from_secs(2)), 1);
    }

    #[test]
    fn nobody_waits_for_a_timetable_that_was_stopped() {
        let (permits, stop) = (Arc::new(Semaphore::new(0)), Stop::default());
        Pace { rate: 1e6 }.follow(Instant::now(), 5, &permits, &stop);
        assert_eq!(permits.available_permits(), 5);
        stop.set();
        Pace { rate: 0.001 }.follow(Instant::now() + Duration::from_secs(1000), 5, &permits, &stop);
    }
}
