//! Which keys there are, at which revisions. In: every write, in order. Out: pages, counts and changes at any revision
//! since the last compaction, without a look at a value.
//!
//! Pure. About 110 bytes and the key for each key, and 40 bytes for each change that is not compacted yet.

use crate::Revision;
use crate::disk::Version;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

/// A key that one revision wrote: how it was before, and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub key: Arc<str>,
    pub new: Version,
    pub prev: Option<Version>,
}

#[derive(Default)]
pub(crate) struct Index {
    /// Versions in ascending order; the oldest may be from before the last compaction.
    keys: BTreeMap<Arc<str>, SmallVec<[Version; 1]>>,
    /// What each revision after the last compaction wrote.
    changes: VecDeque<(Revision, Arc<str>)>,
    /// Keys that go by themselves, by when; those that were written again since are left out when their time comes.
    expiring: BTreeSet<(u64, Revision, Arc<str>)>,
}

/// The version that a reader at `at` sees.
fn visible(versions: &[Version], at: Revision) -> Option<Version> {
    let after = versions.partition_point(|v| v.revision <= at);
    after.checked_sub(1).and_then(|i| versions.get(i)).copied()
}

/// Takes the versions that no reader at `upto` or later sees.
fn forget(versions: &mut SmallVec<[Version; 1]>, upto: Revision) -> SmallVec<[Revision; 4]> {
    let after = versions.partition_point(|v| v.revision <= upto);
    // The newest of the old ones is what such a reader sees, unless it is a deletion.
    let keep = usize::from(after > 0 && versions.get(after - 1).is_some_and(|v| !v.deleted));
    versions.drain(..after - keep).map(|v| v.revision).collect()
}

impl Index {
    /// Adds a write. Revisions ascend; those of a snapshot for each key only, until [`Self::loaded`].
    pub fn apply(&mut self, key: &str, version: Version) {
        let key = self.insert(key, version);
        self.changes.push_back((version.revision, key));
    }

    /// All of the snapshot is there. Forgets what no reader at `compacted` sees.
    pub fn loaded(&mut self, compacted: Revision) {
        self.changes.make_contiguous().sort_unstable_by_key(|(revision, _)| *revision);
        while !self.compact(compacted, usize::MAX).1 {}
        self.changes.shrink_to_fit();
    }

    fn insert(&mut self, key: &str, version: Version) -> Arc<str> {
        let key = self.insert_version(key, version);
        if version.expires > 0 {
            self.expiring.insert((version.expires, version.revision, key.clone()));
        }
        key
    }

    /// At most `limit` keys whose time has come, each with its revision. They are told once.
    pub fn expired(&mut self, now: u64, limit: usize) -> Vec<(Arc<str>, Revision)> {
        let mut due = Vec::new();
        while due.len() < limit
            && let Some(first) = self.expiring.pop_first()
        {
            let (when, revision, key) = first;
            if when > now {
                self.expiring.insert((when, revision, key));
                break;
            }
            if self.newest(&key).is_some_and(|v| v.revision == revision) {
                due.push((key, revision));
            }
        }
        due
    }

    /// These are due later.
    pub fn expire_later(&mut self, keys: &[(Arc<str>, Revision)], when: u64) {
        self.expiring.extend(keys.iter().map(|(key, revision)| (when, *revision, key.clone())));
    }

    fn insert_version(&mut self, key: &str, version: Version) -> Arc<str> {
        if let Some((known, _)) = self.keys.get_key_value(key) {
            let known = known.clone();
            if let Some(versions) = self.keys.get_mut(key) {
                versions.push(version);
            }
            return known;
        }
        let key: Arc<str> = key.into();
        self.keys.insert(key.clone(), SmallVec::from_elem(version, 1));
        key
    }

    /// The newest version of a key that is there.
    pub fn newest(&self, key: &str) -> Option<Version> {
        self.keys.get(key)?.last().copied().filter(|v| !v.deleted)
    }

    /// The version of a key that a reader at a revision sees.
    pub fn at(&self, key: &str, at: Revision) -> Option<Version> {
        visible(self.keys.get(key)?, at).filter(|v| !v.deleted)
    }

    /// Whether this very version is kept.
    pub fn has(&self, key: &str, revision: Revision) -> bool {
        self.keys.get(key).is_some_and(|versions| versions.binary_search_by_key(&revision, |v| v.revision).is_ok())
    }

    fn below<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&str>,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a SmallVec<[Version; 1]>)> {
        let start = match after {
            Some(key) if key >= prefix => Bound::Excluded(key),
            _ => Bound::Included(prefix),
        };
        self.keys.range::<str, _>((start, Bound::Unbounded)).take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// At most `limit` keys of a prefix as of a revision, behind a key.
    pub fn page(&self, prefix: &str, after: Option<&str>, limit: usize, at: Revision) -> Vec<(Arc<str>, Version)> {
        self.below(prefix, after)
            .filter_map(|(key, versions)| Some((key.clone(), visible(versions, at).filter(|v| !v.deleted)?)))
            .take(limit)
            .collect()
    }

    /// Of the next `limit` keys of a prefix behind a key, how many are there as of a revision; and the last one, if more
    /// may follow.
    pub fn count(&self, prefix: &str, after: Option<&str>, limit: usize, at: Revision) -> (usize, Option<Arc<str>>) {
        let (mut count, mut last) = (0, None);
        for (i, (key, versions)) in self.below(prefix, after).take(limit).enumerate() {
            count += usize::from(visible(versions, at).is_some_and(|v| !v.deleted));
            if i + 1 == limit {
                last = Some(key.clone());
            }
        }
        (count, last)
    }

    /// What readers from revision `from` to `upto` see of at most `limit` keys behind a key: what a snapshot holds.
    pub fn versions(
        &self,
        after: Option<&str>,
        limit: usize,
        (from, upto): (Revision, Revision),
    ) -> Vec<(Arc<str>, SmallVec<[Version; 1]>)> {
        let portion = self.below("", after).take(limit).map(|(key, versions)| {
            let mut versions: SmallVec<[Version; 1]> =
                versions.iter().filter(|v| v.revision <= upto).copied().collect();
            forget(&mut versions, from);
            (key.clone(), versions)
        });
        portion.collect()
    }

    /// At most `limit` changes in `(after, upto]`.
    pub fn changes(&self, after: Revision, upto: Revision, limit: usize) -> Vec<Change> {
        let from = self.changes.partition_point(|(revision, _)| *revision <= after);
        let changes = self.changes.range(from..).take_while(|(revision, _)| *revision <= upto).take(limit);
        changes
            .filter_map(|(revision, key)| {
                let versions = self.keys.get(key)?;
                let new = visible(versions, *revision)?;
                let prev = visible(versions, revision - 1).filter(|v| !v.deleted);
                Some(Change { key: key.clone(), new, prev })
            })
            .collect()
    }

    /// Forgets what no reader at `upto` or later sees, of at most `limit` changes. Returns the revisions whose values
    /// can go, and whether that was all.
    pub fn compact(&mut self, upto: Revision, limit: usize) -> (Vec<Revision>, bool) {
        let mut gone = Vec::new();
        for _ in 0..limit {
            let Some((_, key)) = self.changes.front().filter(|(revision, _)| *revision <= upto) else {
                return (gone, true);
            };
            let key = key.clone();
            self.changes.pop_front();
            let Some(versions) = self.keys.get_mut(&key) else { continue };
            gone.extend(forget(versions, upto));
            if versions.is_empty() {
                self.keys.remove(&key);
            }
        }
        (gone, false)
    }

    /// Keys that are there or were, until their deletion is compacted.
    pub fn len(&self) -> usize {
        self.keys.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Model = Vec<(String, bool)>;

    fn state(model: &Model, at: Revision) -> BTreeMap<&str, Revision> {
        let mut state = BTreeMap::new();
        for (revision, (key, deleted)) in (1u64..).zip(model).take_while(|(r, _)| *r <= at) {
            match deleted {
                true => state.remove(key.as_str()),
                false => state.insert(key.as_str(), revision),
            };
        }
        state
    }

    proptest! {
        #[test]
        fn every_revision_since_the_compaction_is_as_it_was(
            model in prop::collection::vec(("[abc][12]?", any::<bool>()), 1..60),
            at in any::<prop::sample::Index>(),
            chunk in 1usize..9,
            through_snapshot in any::<bool>(),
        ) {
            let compacted = at.index(model.len()) as Revision;
            let mut index = Index::default();
            for (revision, (key, deleted)) in (1u64..).zip(&model) {
                index.apply(key, Version { revision, create_revision: 0, expires: 0, deleted: *deleted });
            }
            while !index.compact(compacted, chunk).1 {}
            if through_snapshot {
                let mut copy = Index::default();
                for (key, versions) in index.versions(None, usize::MAX, (compacted, Revision::MAX)) {
                    for version in versions {
                        copy.apply(&key, version);
                    }
                }
                copy.loaded(compacted);
                index = copy;
            }
            let end = model.len() as Revision;
            for at in compacted..=end {
                let want = state(&model, at);
                for prefix in ["", "a", "b1"] {
                    let want: Vec<(&str, Revision)> =
                        want.iter().filter(|(k, _)| k.starts_with(prefix)).map(|(k, r)| (*k, *r)).collect();
                    let page = index.page(prefix, None, 1000, at);
                    let got: Vec<(&str, Revision)> = page.iter().map(|(k, v)| (k.as_ref(), v.revision)).collect();
                    prop_assert_eq!(&got, &want);
                    let (mut count, mut after) = index.count(prefix, Some("a2"), 2, at);
                    while let Some(last) = after {
                        let (more, next) = index.count(prefix, Some(&last), 2, at);
                        (count, after) = (count + more, next);
                    }
                    prop_assert_eq!(count, want.iter().filter(|(k, _)| *k > "a2").count());
                }
                for (key, revision) in &want {
                    prop_assert_eq!(index.at(key, at).map(|v| v.revision), Some(*revision));
                }
            }
            let changes = index.changes(compacted, end, usize::MAX);
            prop_assert_eq!(changes.len() as u64, end - compacted);
            for (change, revision) in changes.iter().zip(compacted + 1..) {
                let (key, deleted) = &model[revision as usize - 1];
                prop_assert_eq!((change.key.as_ref(), change.new.revision, change.new.deleted), (key.as_str(), revision, *deleted));
                let before = state(&model, revision - 1).get(key.as_str()).copied();
                prop_assert_eq!(change.prev.map(|v| v.revision), before);
            }
            // Nothing is kept for nobody.
            let kept: usize = index.versions(None, usize::MAX, (0, Revision::MAX)).iter().map(|(_, v)| v.len()).sum();
            prop_assert_eq!(kept, state(&model, compacted).len() + changes.len());
        }
    }

    /// A snapshot is written while a reader (or the gap between two rounds) keeps versions that are compacted already.
    #[test]
    fn compacted_versions_of_a_snapshot_are_forgotten() {
        let mut index = Index::default();
        for revision in 2..100 {
            index.apply("k", Version { revision, create_revision: 2, expires: 0, deleted: false });
        }
        index.apply("gone", Version { revision: 100, create_revision: 100, expires: 0, deleted: false });
        index.apply("gone", Version { revision: 101, create_revision: 100, expires: 0, deleted: true });
        // As `read` in open.rs does with a snapshot whose header says compacted = 101.
        let mut copy = Index::default();
        for (key, versions) in index.versions(None, usize::MAX, (0, Revision::MAX)) {
            for version in versions {
                copy.apply(&key, version);
            }
        }
        copy.loaded(101);
        while !copy.compact(101, usize::MAX).1 {}
        let kept: usize = copy.versions(None, usize::MAX, (0, Revision::MAX)).iter().map(|(_, v)| v.len()).sum();
        assert_eq!((copy.len(), kept), (1, 1), "(keys, versions)");
    }
}
