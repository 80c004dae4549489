//! Ages as `kubectl get` shows them. In: seconds, or timestamps of an object. Out: `5s`, `3m20s`, `4d5h`, …

use jiff::Timestamp;
use serde_json::{Value, json};

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

/// A duration in at most two units, coarser the longer it is (upstream: `duration.HumanDuration`). One second in
/// the future counts as now, more is `<invalid>`.
pub fn human_duration(seconds: i64) -> String {
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => two(s, MINUTE, "m", 1, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => two(s, HOUR, "h", MINUTE, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => two(s, DAY, "d", HOUR, "h"),
        s if s < 2 * YEAR => format!("{}d", s / DAY),
        s if s < 8 * YEAR => two(s, YEAR, "y", DAY, "d"),
        s => format!("{}y", s / YEAR),
    }
}

fn two(seconds: i64, large: i64, large_name: &str, small: i64, small_name: &str) -> String {
    match seconds % large / small {
        0 => format!("{}{large_name}", seconds / large),
        rest => format!("{}{large_name}{rest}{small_name}", seconds / large),
    }
}

/// Seconds since the epoch of an RFC 3339 timestamp.
pub(crate) fn seconds(timestamp: &Value) -> Option<i64> {
    timestamp.as_str()?.parse::<Timestamp>().ok().map(|t| t.as_second())
}

/// How long ago a timestamp was; `<unknown>` without one.
pub(crate) fn since(timestamp: &Value, now: i64) -> String {
    seconds(timestamp).map_or_else(|| "<unknown>".to_owned(), |t| human_duration(now - t))
}

/// The cell of an `Age` column.
pub(crate) fn age(object: &Value, now: i64) -> Value {
    json!(since(&object["metadata"]["creationTimestamp"], now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_kubectl_shows_them() {
        for (seconds, want) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (600, "10m"),
            (3 * HOUR - 1, "179m"),
            (3 * HOUR, "3h"),
            (5 * HOUR + 61, "5h1m"),
            (8 * HOUR + 61, "8h"),
            (47 * HOUR, "47h"),
            (48 * HOUR, "2d"),
            (4 * DAY + 5 * HOUR, "4d5h"),
            (8 * DAY + 5 * HOUR, "8d"),
            (2 * YEAR - 1, "729d"),
            (2 * YEAR, "2y"),
            (3 * YEAR + 2 * DAY, "3y2d"),
            (9 * YEAR + 2 * DAY, "9y"),
        ] {
            assert_eq!(human_duration(seconds), want, "{seconds}");
        }
    }
}
