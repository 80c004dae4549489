//! Which backups there are, by their names, and which of them have had their time. In: names, the settings, the time. Out:
//! the names to delete. Pure.
//!
//! A name is `CLUSTER-20261130T204500Z-r4711.causeway-backup`. Nothing that is not called so, to the letter and for this
//! cluster, is ever deleted.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use std::fmt;

/// What names end in.
pub const ENDING: &str = ".causeway-backup";
const TIME: &str = "%Y%m%dT%H%M%SZ";

/// The name of a backup.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// When it was begun, to the second.
    pub at: Timestamp,
    /// The store's revision.
    pub revision: u64,
    /// The cluster.
    pub cluster: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-r{}{ENDING}", self.cluster, self.at.strftime(TIME), self.revision)
    }
}

impl Name {
    /// Reads a name; `None` for everything that is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let (rest, revision) = text.strip_suffix(ENDING)?.rsplit_once("-r")?;
        let (cluster, at) = rest.rsplit_once('-')?;
        let at = DateTime::strptime(TIME, at).ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp();
        let is_cluster = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let name = Self { at, revision: revision.parse().ok()?, cluster: cluster.to_owned() };
        let is_good = !cluster.is_empty() && cluster.bytes().all(is_cluster);
        // As it would be written, so that none of two spellings is somebody else's.
        (is_good && name.to_string() == text).then_some(name)
    }
}

/// How long backups are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// So many of the newest.
    pub newest: Option<usize>,
    /// All that are not older.
    pub within: Option<SignedDuration>,
}

/// The backups of a cluster that have had their time: those that neither rule keeps. Without a rule all are kept, and the
/// newest always is.
pub fn superseded(mut names: Vec<Name>, cluster: &str, keep: Keep, now: Timestamp) -> Vec<Name> {
    if keep == Keep::default() {
        return Vec::new();
    }
    names.retain(|name| name.cluster == cluster);
    names.sort_by(|a, b| b.cmp(a));
    let newest = keep.newest.unwrap_or(0).max(1);
    let is_young = |name: &Name| keep.within.is_some_and(|within| now.duration_since(name.at) <= within);
    names.into_iter().skip(newest).filter(|name| !is_young(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: SignedDuration = SignedDuration::from_hours(1);

    fn name(hours_ago: i64) -> Name {
        Name { at: now() - HOUR * i32::try_from(hours_ago).unwrap(), revision: 7, cluster: "prod".into() }
    }

    fn now() -> Timestamp {
        "2026-11-30T20:45:00Z".parse().unwrap()
    }

    #[test]
    fn names_are_read_to_the_letter() {
        let text = "prod-20261130T204500Z-r7.causeway-backup";
        assert_eq!(name(0).to_string(), text);
        assert_eq!(Name::parse(text).unwrap(), name(0));
        for other in [
            "prod-20261130T204500Z-r07.causeway-backup",
            "prod-20261130T204500Z-r+7.causeway-backup",
            "prod-20261130T204500Z-r7.causeway-backup.old",
            "prod-20261130T204500-r7.causeway-backup",
            "prod-20261330T204500Z-r7.causeway-backup",
            "prod-2-20261130T204500Z-r7.causeway-backup",
            "-20261130T204500Z-r7.causeway-backup",
            "../prod-20261130T204500Z-r7.causeway-backup",
            "Prod-20261130T204500Z-r7.causeway-backup",
            ".causeway-backup",
            "",
        ] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }

    #[test]
    fn what_either_rule_keeps_is_kept() {
        let all = || (0..10).map(name).collect::<Vec<_>>();
        let gone = |newest, within| superseded(all(), "prod", Keep { newest, within }, now());
        assert_eq!(gone(None, None), []);
        assert_eq!(gone(Some(8), None), [name(8), name(9)]);
        assert_eq!(gone(None, Some(HOUR * 7)), [name(8), name(9)]);
        assert_eq!(gone(Some(9), Some(HOUR)), [name(9)]);
        assert_eq!(gone(Some(2), Some(HOUR * 8)), [name(9)]);
        // The newest stays, whatever is asked for.
        assert_eq!(gone(Some(0), None).len(), 9);
        let old = superseded(vec![name(500)], "prod", Keep { newest: None, within: Some(HOUR) }, now());
        assert_eq!(old, []);
        assert_eq!(superseded(all(), "other", Keep { newest: Some(1), within: None }, now()), []);
    }

    proptest! {
        #[test]
        fn the_newest_ones_and_strangers_are_never_deleted(
            hours in proptest::collection::vec(0_i64..1000, 0..40), newest in 0_usize..20, within in 0_i32..1000,
        ) {
            let mut all: Vec<Name> = hours.iter().map(|h| name(*h)).collect();
            all.push(Name { cluster: "other".into(), ..name(999) });
            let keep = Keep { newest: Some(newest), within: Some(HOUR * within) };
            let gone = superseded(all.clone(), "prod", keep, now());
            prop_assert!(gone.iter().all(|g| g.cluster == "prod" && now().duration_since(g.at) > HOUR * within));
            prop_assert!(hours.len() - gone.len() >= newest.max(1).min(hours.len()));
            let oldest_kept = all.iter().filter(|n| n.cluster == "prod" && !gone.contains(n)).map(|n| n.at).min();
            prop_assert!(gone.iter().all(|g| oldest_kept.is_some_and(|kept| g.at <= kept)));
        }

        #[test]
        fn any_name_comes_back(cluster in "[a-z0-9]{1,20}", second in 0_i64..4_000_000_000, revision: u64) {
            let name = Name { at: Timestamp::from_second(second).unwrap(), revision, cluster };
            prop_assert_eq!(Name::parse(&name.to_string()), Some(name));
        }
    }
}
