//! Medians and percentiles of samples.

use serde_json::{Value, json};

/// The value at or below which a share (0 to 1) of the samples lies; 0 without samples.
pub fn percentile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1).min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

/// The middle one.
pub fn median(samples: &[f64]) -> f64 {
    percentile(samples, 0.5)
}

/// Median with the range around it.
pub fn spread(samples: &[f64]) -> Value {
    json!({"median": round(median(samples)), "min": round(percentile(samples, 0.0)), "max": round(percentile(samples, 1.0))})
}

/// Percentiles of a latency.
pub fn latency(samples: &[f64]) -> Value {
    json!({
        "n": samples.len(), "p50": round(median(samples)), "p90": round(percentile(samples, 0.9)),
        "p99": round(percentile(samples, 0.99)), "max": round(percentile(samples, 1.0)),
    })
}

/// Three digits behind the point are more than any of this is good for.
pub fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(&samples, 0.0), 1.0);
        assert_eq!(median(&samples), 100.0);
        assert_eq!(percentile(&samples, 0.99), 198.0);
        assert_eq!(percentile(&samples, 1.0), 200.0);
        assert_eq!(median(&[]), 0.0);
    }
}
