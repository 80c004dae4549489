//! What came of a run: for people as text with a small picture, for programs as JSON.

use crate::plan::Plan;
use crate::stats::Stats;
use serde_json::{Value, json};
use std::fmt;

/// The percentiles that are told.
pub const PERCENTILES: [f64; 9] = [50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99, 99.999, 100.0];
/// Characters of the longest bar.
const WIDTH: f64 = 44.0;

/// The result of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// What was asked for.
    pub plan: Plan,
    /// What was counted.
    pub stats: Stats,
}

impl Report {
    /// Of a run.
    pub fn new(plan: Plan, stats: Stats) -> Self {
        Self { plan, stats }
    }

    /// Answers a second.
    pub fn rate(&self) -> f64 {
        self.stats.answered() as f64 / self.plan.duration.as_secs_f64()
    }

    /// Every request was answered, by a status below 500.
    pub fn is_clean(&self) -> bool {
        self.stats.failed() == 0 && self.stats.statuses.keys().all(|s| *s < 500) && self.stats.answered() > 0
    }

    /// For programs. Latencies are in microseconds from when requests were due.
    pub fn json(&self) -> Value {
        let stats = &self.stats;
        let percentiles: serde_json::Map<String, Value> =
            PERCENTILES.iter().map(|p| (format!("p{p}"), json!(stats.percentile(*p)))).collect();
        let failures: serde_json::Map<String, Value> =
            stats.failures.iter().map(|(f, n)| (f.text().to_owned(), json!(n))).collect();
        let statuses: serde_json::Map<String, Value> =
            stats.statuses.iter().map(|(s, n)| (s.to_string(), json!(n))).collect();
        let parts: Vec<Value> = stats
            .parts
            .iter()
            .enumerate()
            .map(|(i, p)| {
                json!({
                    "second": (stats.width * i as u32).as_secs_f64(), "answered": p.answered, "failed": p.failed,
                    "p50": p.percentile(50.0), "p99": p.percentile(99.0), "max": p.percentile(100.0),
                })
            })
            .collect();
        json!({
            "url": self.plan.url.to_string(),
            "loop": if self.plan.rate.is_some() { "open" } else { "closed" },
            "rateAsked": self.plan.rate,
            "ratePerSecond": self.rate(),
            "durationSeconds": self.plan.duration.as_secs_f64(),
            "connections": self.plan.connections,
            "protocol": if self.plan.http2 { "HTTP/2" } else { "HTTP/1.1" },
            "answered": stats.answered(),
            "failed": stats.failed(),
            "statuses": statuses,
            "failures": failures,
            "bytes": stats.bytes,
            "latencyMicros": { "mean": stats.mean(), "percentiles": percentiles },
            "time": parts,
        })
    }
}

/// A time in microseconds, with a unit that fits.
pub fn time(micros: u64) -> String {
    match micros {
        0..=999 => format!("{micros} µs"),
        1000..=999_999 => format!("{:.2} ms", micros as f64 / 1e3),
        _ => format!("{:.2} s", micros as f64 / 1e6),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (plan, stats) = (&self.plan, &self.stats);
        let how = match plan.rate {
            Some(rate) => format!("{rate} requests/s asked for"),
            None => "closed loop".to_owned(),
        };
        let seconds = plan.duration.as_secs_f64();
        writeln!(f, "{} {} for {seconds} s, {} connections, {how}", plan.method, plan.url, plan.connections)?;
        writeln!(f)?;
        writeln!(
            f,
            "  answered   {} ({:.1}/s, {:.2} MB/s)",
            stats.answered(),
            self.rate(),
            stats.bytes as f64 / seconds / 1e6
        )?;
        for (status, count) in &stats.statuses {
            writeln!(f, "    {status}      {count}")?;
        }
        if stats.failed() > 0 {
            writeln!(f, "  failed     {}", stats.failed())?;
            for (failure, count) in &stats.failures {
                writeln!(f, "    {:<9}{count}", format!("{} ", failure.text()))?;
            }
        }
        if stats.answered() == 0 {
            return Ok(());
        }
        let from = if plan.rate.is_some() { "from when requests were due" } else { "from when requests were sent" };
        writeln!(f, "\n  latency {from}; mean {}", time(stats.mean() as u64))?;
        // Bars on a logarithmic scale: tails would hide the rest on any other.
        let (low, high) = ((stats.percentile(0.0).max(1) as f64).ln(), (stats.max().max(2) as f64).ln());
        for percent in PERCENTILES {
            let value = stats.percentile(percent);
            let part = ((value.max(1) as f64).ln() - low) / (high - low).max(1e-9);
            let bar = "█".repeat((part.clamp(0.0, 1.0) * WIDTH).round() as usize + 1);
            let name = if percent == 100.0 { "max".to_owned() } else { format!("p{percent}") };
            writeln!(f, "  {name:<8} {:>10}  {bar}", time(value))?;
        }
        if plan.rate.is_none() {
            writeln!(
                f,
                "\n  A closed loop waits for slow answers before it asks again: it hides what users would wait."
            )?;
            writeln!(f, "  For latencies, give a --rate below {:.0}.", self.rate() * 0.8)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Failure, Sample};
    use std::time::Duration;

    fn report(outcomes: &[Result<(u16, u64), Failure>]) -> Report {
        let plan = Plan { rate: Some(10.0), ..Plan::new("http://x.localhost/").unwrap() };
        let mut stats = Stats::new(plan.duration);
        for (i, outcome) in outcomes.iter().enumerate() {
            let latency = Duration::from_micros(100 << i);
            stats.add(Sample { due: Duration::from_secs(i as u64), latency, outcome: *outcome });
        }
        Report::new(plan, stats)
    }

    #[test]
    fn people_and_programs_are_told_the_same() {
        let report = report(&[Ok((200, 7)), Ok((200, 7)), Ok((404, 1)), Err(Failure::Timeout)]);
        let (text, json) = (report.to_string(), report.json());
        assert!(
            text.contains("answered   3 (0.3/s") && text.contains("200      2") && text.contains("timed out"),
            "{text}"
        );
        assert!(text.contains("p99.9") && text.contains('█'), "{text}");
        assert_eq!((&json["answered"], &json["failed"], &json["bytes"]), (&json!(3), &json!(1), &json!(15)));
        assert_eq!(json["statuses"], json!({"200": 2, "404": 1}));
        assert_eq!(json["time"].as_array().unwrap().iter().map(|p| p["answered"].as_u64().unwrap()).sum::<u64>(), 3);
        assert!(!report.is_clean());
    }

    #[test]
    fn clean_means_every_request() {
        assert!(report(&[Ok((200, 0)), Ok((404, 0))]).is_clean());
        assert!(!report(&[Ok((200, 0)), Ok((500, 0))]).is_clean());
        assert!(!report(&[]).is_clean());
    }
}
