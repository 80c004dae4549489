//! What is counted: answers by status, failures by kind, and latencies in histograms of three significant digits.

use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::time::Duration;

/// Latencies are kept in microseconds, from one to this many.
const LONGEST: u64 = 3600 * 1_000_000;
/// Parts into which a run's time is cut, at most.
const PARTS: u32 = 120;

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Failure {
    /// No connection.
    Connect,
    /// No complete answer in time.
    Timeout,
    /// The connection broke, or what came is not HTTP.
    Broken,
    /// Its turn never came: all connections were waiting until the end.
    NotSent,
}

impl Failure {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Connect => "no connection",
            Self::Timeout => "timed out",
            Self::Broken => "broke off",
            Self::NotSent => "never sent",
        }
    }
}

/// What came of one request.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// When it was due, from the beginning of the run.
    pub due: Duration,
    /// From when it was due to the end of its answer, or its failure.
    pub latency: Duration,
    /// Status and bytes of the body, or why not.
    pub outcome: Result<(u16, u64), Failure>,
}

/// One part of the time.
#[derive(Debug, Clone)]
pub struct Part {
    /// Answers.
    pub answered: u64,
    /// Failures.
    pub failed: u64,
    latency: Histogram<u64>,
}

/// All that is counted.
#[derive(Debug, Clone)]
pub struct Stats {
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Failures by kind.
    pub failures: BTreeMap<Failure, u64>,
    /// Bytes of all bodies.
    pub bytes: u64,
    latency: Histogram<u64>,
    /// The time's parts, each `width` long.
    pub parts: Vec<Part>,
    /// How long a part is.
    pub width: Duration,
}

/// Three digits for all, two for each part of the time.
fn histogram(digits: u8) -> Histogram<u64> {
    #[expect(clippy::expect_used, reason = "the bounds are constants that fit")]
    Histogram::new_with_bounds(1, LONGEST, digits).expect("1 < LONGEST / 2, and at most five digits")
}

impl Stats {
    /// For a run of this length.
    pub fn new(duration: Duration) -> Self {
        let width = (duration / PARTS).max(Duration::from_millis(100));
        Self {
            statuses: BTreeMap::new(),
            failures: BTreeMap::new(),
            bytes: 0,
            latency: histogram(3),
            parts: Vec::new(),
            width,
        }
    }

    /// Counts a request.
    pub fn add(&mut self, sample: Sample) {
        let micros = u64::try_from(sample.latency.as_micros()).unwrap_or(LONGEST).clamp(1, LONGEST);
        let at = (sample.due.as_secs_f64() / self.width.as_secs_f64()) as usize;
        let at = at.min(PARTS as usize);
        while self.parts.len() <= at {
            self.parts.push(Part { answered: 0, failed: 0, latency: histogram(2) });
        }
        let part = &mut self.parts[at];
        match sample.outcome {
            Ok((status, bytes)) => {
                *self.statuses.entry(status).or_default() += 1;
                self.bytes += bytes;
                part.answered += 1;
                self.latency.saturating_record(micros);
                part.latency.saturating_record(micros);
            }
            Err(failure) => {
                *self.failures.entry(failure).or_default() += 1;
                part.failed += 1;
            }
        }
    }

    /// Adds what another has counted.
    pub fn merge(&mut self, other: &Self) {
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        for (failure, count) in &other.failures {
            *self.failures.entry(*failure).or_default() += count;
        }
        self.bytes += other.bytes;
        // Both have the same bounds, so this cannot fail.
        let _ = self.latency.add(&other.latency);
        while self.parts.len() < other.parts.len() {
            self.parts.push(Part { answered: 0, failed: 0, latency: histogram(2) });
        }
        for (part, more) in self.parts.iter_mut().zip(&other.parts) {
            part.answered += more.answered;
            part.failed += more.failed;
            let _ = part.latency.add(&more.latency);
        }
    }

    /// Requests that were answered.
    pub fn answered(&self) -> u64 {
        self.statuses.values().sum()
    }

    /// Requests that were not.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// The latency that so many of a hundred answers did not exceed, in microseconds.
    pub fn percentile(&self, percent: f64) -> u64 {
        if self.latency.is_empty() { 0 } else { self.latency.value_at_percentile(percent) }
    }

    /// The mean latency in microseconds.
    pub fn mean(&self) -> f64 {
        self.latency.mean()
    }

    /// The longest latency in microseconds.
    pub fn max(&self) -> u64 {
        if self.latency.is_empty() { 0 } else { self.latency.max() }
    }
}

impl Part {
    /// As [`Stats::percentile`], to two digits.
    pub fn percentile(&self, percent: f64) -> u64 {
        if self.latency.is_empty() { 0 } else { self.latency.value_at_percentile(percent) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(due_ms: u64, latency_us: u64, outcome: Result<(u16, u64), Failure>) -> Sample {
        Sample { due: Duration::from_millis(due_ms), latency: Duration::from_micros(latency_us), outcome }
    }

    #[test]
    fn counted_apart_is_counted_together() {
        let new = || Stats::new(Duration::from_secs(12));
        let (mut a, mut b, mut all) = (new(), new(), new());
        for i in 0..1000_u64 {
            let s = match i % 100 {
                7 => sample(i * 12, i, Err(Failure::Timeout)),
                8 => sample(i * 12, i, Ok((503, 5))),
                _ => sample(i * 12, i + 1, Ok((200, 10))),
            };
            if i % 2 == 0 {
                a.add(s)
            } else {
                b.add(s)
            }
            all.add(s);
        }
        a.merge(&b);
        assert_eq!((a.answered(), a.failed(), a.bytes), (990, 10, 9800 + 50));
        assert_eq!(a.statuses, all.statuses);
        assert_eq!(a.failures, all.failures);
        for p in [0.0, 50.0, 99.0, 100.0] {
            assert_eq!(a.percentile(p), all.percentile(p));
        }
        assert_eq!(a.parts.len(), all.parts.len());
        assert_eq!(a.parts.iter().map(|p| p.answered + p.failed).sum::<u64>(), 1000);
        assert!((495..=505).contains(&a.percentile(50.0)), "{}", a.percentile(50.0));
        assert_eq!(new().percentile(99.0), 0);
    }

    #[test]
    fn what_takes_for_ever_is_still_counted() {
        let mut stats = Stats::new(Duration::from_secs(1));
        stats.add(sample(0, u64::MAX, Ok((200, 0))));
        stats.add(sample(u64::MAX / 2_000_000, 0, Ok((200, 0))));
        assert_eq!(stats.answered(), 2);
        assert!(stats.max() >= LONGEST - LONGEST / 500);
    }
}
