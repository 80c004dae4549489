//! When backups are made by themselves, where to, and how long they stay. In: the `backup` part of a settings file. Out:
//! checked settings, and the time of the next backup. Pure.

use crate::destination::Destination;
use crate::error::Result;
use crate::retention::Keep;
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use serde::{Deserialize, Deserializer};
use std::path::PathBuf;

/// Backups are no closer together, so that a slip of the pen does not fill a disk.
const SHORTEST: SignedDuration = SignedDuration::from_secs(60);
/// After a failure the next try comes this much later, doubled from failure to failure.
const RETRY_FIRST: SignedDuration = SignedDuration::from_secs(30);
/// The longest pause after a failure.
const RETRY_MOST: SignedDuration = SignedDuration::from_hours(1);

/// The settings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// From one backup to the next, for example 6h.
    #[serde(deserialize_with = "duration")]
    pub schedule: SignedDuration,
    /// How many of the newest are kept.
    #[serde(default)]
    pub keep: Option<usize>,
    /// For how long all are kept, for example 30d.
    #[serde(default, deserialize_with = "maybe_duration")]
    pub keep_for: Option<SignedDuration>,
    /// A folder, or `s3://BUCKET/PREFIX`.
    pub to: String,
    /// The key.
    pub key_file: PathBuf,
}

/// Reads `90s`, `30m`, `6h`, `7d`, `1w`; a day is 24 hours.
pub fn parse_duration(text: &str) -> Result<SignedDuration, String> {
    let wrong = |e: jiff::Error| format!("{text:?} is no duration ({e}); write 30m, 6h or 7d");
    let span: Span = text.parse().map_err(wrong)?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(wrong)?;
    if duration <= SignedDuration::ZERO {
        return Err(format!("{text:?} is no time at all; write 30m, 6h or 7d"));
    }
    Ok(duration)
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<SignedDuration, D::Error> {
    parse_duration(&String::deserialize(from)?).map_err(serde::de::Error::custom)
}

fn maybe_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SignedDuration>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    text.map(|t| parse_duration(&t)).transpose().map_err(serde::de::Error::custom)
}

impl Settings {
    /// Says what is wrong with them, without touching the key or the destination.
    pub fn check(&self) -> Result<(), String> {
        if self.schedule < SHORTEST {
            return Err(format!("backup.schedule: {:#} is less than a minute", self.schedule));
        }
        if self.keep == Some(0) {
            return Err("backup.keep: 0 would delete every backup; leave it out to keep all".into());
        }
        if !self.key_file.is_absolute() {
            return Err(format!("backup.keyFile: {} has to be an absolute path", self.key_file.display()));
        }
        Destination::parse(&self.to).map(drop).map_err(|e| format!("backup.to: {e}"))
    }

    /// How long backups stay.
    pub fn keep(&self) -> Keep {
        Keep { newest: self.keep, within: self.keep_for }
    }

    /// When the next backup is due, after the last one that is at the destination. So neither a restart nor an upgrade
    /// makes one too many, or skips one.
    pub fn next(&self, last: Option<Timestamp>, now: Timestamp) -> Timestamp {
        // One of the future was named by a clock that was wrong; waiting for it might take years.
        let last = last.map(|at| at.min(now));
        last.map_or(now, |at| at.checked_add(self.schedule).unwrap_or(Timestamp::MAX)).max(now)
    }

    /// How long to wait after so many failures in a row.
    pub fn retry(&self, failures: u32) -> SignedDuration {
        let doubled = RETRY_FIRST.checked_mul(1 << failures.saturating_sub(1).min(16)).unwrap_or(RETRY_MOST);
        doubled.min(RETRY_MOST).min(self.schedule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        let json = r#"{"schedule": "6h", "keep": 7, "keepFor": "30d", "to": "/backups", "keyFile": "/etc/key"}"#;
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn durations_are_read_and_mistakes_named() {
        let read = settings();
        read.check().unwrap();
        assert_eq!(read.schedule, SignedDuration::from_hours(6));
        assert_eq!(read.keep(), Keep { newest: Some(7), within: Some(SignedDuration::from_hours(720)) });
        for bad in ["", "6", "0h", "-1h", "soon", "1y"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        for (wrong, word) in [
            (Settings { schedule: SignedDuration::from_secs(5), ..settings() }, "schedule"),
            (Settings { keep: Some(0), ..settings() }, "keep"),
            (Settings { to: "backups".into(), ..settings() }, "backup.to"),
            (Settings { to: "s3://".into(), ..settings() }, "backup.to"),
            (Settings { key_file: "key".into(), ..settings() }, "keyFile"),
        ] {
            assert!(wrong.check().unwrap_err().contains(word), "{word}");
        }
    }

    #[test]
    fn the_next_one_follows_the_last_whoever_made_it() {
        let now: Timestamp = "2026-11-30T20:45:00Z".parse().unwrap();
        let hours = SignedDuration::from_hours;
        let settings = settings();
        assert_eq!(settings.next(None, now), now);
        assert_eq!(settings.next(Some(now - hours(2)), now), now + hours(4));
        assert_eq!(settings.next(Some(now - hours(200)), now), now);
        assert_eq!(settings.next(Some(now + hours(9000)), now), now + hours(6));
    }

    #[test]
    fn tries_get_rarer_and_never_rarer_than_the_schedule() {
        let settings = settings();
        let pauses: Vec<i64> = [1, 2, 3, 20, 4_000_000].iter().map(|n| settings.retry(*n).as_secs()).collect();
        assert_eq!(pauses, [30, 60, 120, 3600, 3600]);
        let often = Settings { schedule: SignedDuration::from_mins(10), ..settings };
        assert_eq!(often.retry(20), SignedDuration::from_mins(10));
    }
}
