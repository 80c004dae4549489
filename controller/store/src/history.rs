//! Versions of keys in sled, and reads at a revision. Pure functions over one sled tree.
//!
//! Two ranges of keys: `v<key>\0<revision>` holds every version (a tombstone for a deletion), `l<revision>` names the
//! key that revision wrote. A read at revision R takes the newest version at or before R, so a list is consistent
//! while writes go on. Compaction at C drops the log up to C and every version that no read at or after C can see.

use crate::wal::Record;
use crate::{KeyValue, Listing, Result, Revision, StoreError};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sled::{Batch, IVec, Tree};

const META_REVISION: &[u8] = b"m/revision";
const META_COMPACTED: &[u8] = b"m/compacted";

/// A version as stored.
#[derive(Serialize, Deserialize)]
struct Version {
    create_revision: Revision,
    value: Option<Bytes>,
}

fn engine(doing: &str) -> impl FnOnce(sled::Error) -> StoreError {
    let doing = doing.to_owned();
    move |e| StoreError::Engine { doing, detail: e.to_string() }
}

fn damaged(doing: &str) -> StoreError {
    StoreError::Engine { doing: doing.to_owned(), detail: "a record is damaged; restore from a backup".to_owned() }
}

fn version_key(key: &str, revision: Revision) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 10);
    out.push(b'v');
    out.extend_from_slice(key.as_bytes());
    out.push(0);
    out.extend_from_slice(&revision.to_be_bytes());
    out
}

fn log_key(revision: Revision) -> [u8; 9] {
    let mut out = [b'l'; 9];
    out[1..].copy_from_slice(&revision.to_be_bytes());
    out
}

/// The key and revision of a `v` entry.
fn split_version_key(raw: &[u8]) -> Option<(&str, Revision)> {
    let at = raw.len().checked_sub(9)?;
    let revision = Revision::from_be_bytes(raw.get(at + 1..)?.try_into().ok()?);
    Some((std::str::from_utf8(raw.get(1..at)?).ok()?, revision))
}

fn revision_of(raw: Option<IVec>) -> Option<Revision> {
    Some(Revision::from_be_bytes(raw?.as_ref().try_into().ok()?))
}

/// The newest revision in the tree; 1 for an empty store.
pub(crate) fn stored_revision(tree: &Tree) -> Result<Revision> {
    Ok(revision_of(tree.get(META_REVISION).map_err(engine("reading the revision"))?).unwrap_or(1))
}

/// The compacted revision in the tree; 0 when there is none.
pub(crate) fn stored_compacted(tree: &Tree) -> Result<Revision> {
    Ok(revision_of(tree.get(META_COMPACTED).map_err(engine("reading the compacted revision"))?).unwrap_or(0))
}

/// Adds a batch of records, atomically.
pub(crate) fn apply(tree: &Tree, records: &[Record]) -> Result<()> {
    let mut batch = Batch::default();
    for r in records {
        let version = Version { create_revision: r.create_revision, value: r.value.clone() };
        let encoded = postcard::to_stdvec(&version).map_err(|_| damaged("encoding a value"))?;
        batch.insert(version_key(&r.key, r.revision), encoded);
        batch.insert(&log_key(r.revision), r.key.as_bytes());
    }
    if let Some(last) = records.last() {
        batch.insert(META_REVISION, &last.revision.to_be_bytes());
    }
    tree.apply_batch(batch).map_err(engine("writing a batch"))
}

fn decode(key: &str, revision: Revision, raw: &[u8]) -> Result<Option<KeyValue>> {
    let version: Version = postcard::from_bytes(raw).map_err(|_| damaged("reading a value"))?;
    Ok(version.value.map(|value| KeyValue {
        key: key.to_owned(),
        value,
        create_revision: version.create_revision,
        mod_revision: revision,
    }))
}

/// The value of a key as of a revision.
pub(crate) fn get(tree: &Tree, key: &str, at: Revision) -> Result<Option<KeyValue>> {
    let range = version_key(key, 0)..=version_key(key, at);
    match tree.range(range).next_back() {
        None => Ok(None),
        Some(entry) => {
            let (raw_key, raw) = entry.map_err(engine("reading a key"))?;
            let (_, revision) = split_version_key(&raw_key).ok_or_else(|| damaged("reading a key"))?;
            decode(key, revision, &raw)
        }
    }
}

/// A page of keys as of a revision.
pub(crate) fn list(
    tree: &Tree,
    prefix: &str,
    start_after: Option<&str>,
    limit: usize,
    at: Revision,
) -> Result<Listing> {
    let mut raw_prefix = vec![b'v'];
    raw_prefix.extend_from_slice(prefix.as_bytes());
    let start = match start_after {
        Some(key) => version_key(key, Revision::MAX),
        None => raw_prefix.clone(),
    };
    let mut page = Page { items: Vec::new(), remaining: 0, limit };
    let mut newest: Option<(IVec, IVec)> = None;
    for entry in tree.range(start..) {
        let (raw_key, raw) = entry.map_err(engine("listing keys"))?;
        if !raw_key.starts_with(&raw_prefix) {
            break;
        }
        let (key, revision) = split_version_key(&raw_key).ok_or_else(|| damaged("listing keys"))?;
        if revision > at {
            continue;
        }
        if let Some((old_key, old)) = newest.take()
            && split_version_key(&old_key).is_none_or(|(k, _)| k != key)
        {
            page.take(&old_key, &old)?;
        }
        newest = Some((raw_key, raw));
    }
    if let Some((key, raw)) = newest {
        page.take(&key, &raw)?;
    }
    Ok(Listing { items: page.items, revision: at, remaining: page.remaining })
}

struct Page {
    items: Vec<KeyValue>,
    remaining: usize,
    limit: usize,
}

impl Page {
    fn take(&mut self, raw_key: &[u8], raw: &[u8]) -> Result<()> {
        let (key, revision) = split_version_key(raw_key).ok_or_else(|| damaged("listing keys"))?;
        if let Some(kv) = decode(key, revision, raw)? {
            if self.limit == 0 || self.items.len() < self.limit {
                self.items.push(kv);
            } else {
                self.remaining += 1;
            }
        }
        Ok(())
    }
}

/// What a revision wrote: the new value (or `None` for a deletion) and the value before. `None` when the log does not
/// hold the revision.
pub(crate) type Change = (Revision, String, Option<KeyValue>, Option<KeyValue>);

/// The changes in `(after, upto]`, at most `limit`, and the last revision looked at.
pub(crate) fn changes(
    tree: &Tree,
    prefix: &str,
    after: Revision,
    upto: Revision,
    limit: usize,
) -> Result<(Vec<Change>, Revision)> {
    let mut out = Vec::new();
    let mut last = after;
    for entry in tree.range(log_key(after.saturating_add(1))..=log_key(upto)).take(limit) {
        let (raw_revision, raw_key) = entry.map_err(engine("reading the change log"))?;
        let revision = raw_revision.get(1..).and_then(|b| b.try_into().ok()).map(Revision::from_be_bytes);
        let revision = revision.ok_or_else(|| damaged("reading the change log"))?;
        let key = std::str::from_utf8(&raw_key).map_err(|_| damaged("reading the change log"))?;
        last = revision;
        if key.starts_with(prefix) {
            let new = get(tree, key, revision)?;
            let prev = get(tree, key, revision - 1)?;
            out.push((revision, key.to_owned(), new, prev));
        }
    }
    Ok((out, last))
}

/// Sets the compacted revision, so that a later open knows it.
pub(crate) fn mark_compacted(tree: &Tree, revision: Revision) -> Result<()> {
    tree.insert(META_COMPACTED, &revision.to_be_bytes()).map(drop).map_err(engine("marking a compaction"))
}

/// Drops what nobody can read any more after a compaction at `upto`. Repeatable; a crash in between loses nothing.
pub(crate) fn compact(tree: &Tree, upto: Revision) -> Result<()> {
    const CHUNK: usize = 1000;
    loop {
        let mut batch = Batch::default();
        let mut count = 0;
        for entry in tree.range(log_key(0)..=log_key(upto)).take(CHUNK) {
            let (raw_revision, raw_key) = entry.map_err(engine("compacting"))?;
            let key = std::str::from_utf8(&raw_key).map_err(|_| damaged("compacting"))?;
            drop_superseded(tree, key, upto, &mut batch)?;
            batch.remove(raw_revision);
            count += 1;
        }
        tree.apply_batch(batch).map_err(engine("compacting"))?;
        if count < CHUNK {
            return Ok(());
        }
    }
}

/// All versions up to `upto` but the newest; that one too when it is a tombstone.
fn drop_superseded(tree: &Tree, key: &str, upto: Revision, batch: &mut Batch) -> Result<()> {
    let mut newest = true;
    for entry in tree.range(version_key(key, 0)..=version_key(key, upto)).rev() {
        let (raw_key, raw) = entry.map_err(engine("compacting"))?;
        let (_, revision) = split_version_key(&raw_key).ok_or_else(|| damaged("compacting"))?;
        if !newest || decode(key, revision, &raw)?.is_none() {
            batch.remove(raw_key);
        }
        newest = false;
    }
    Ok(())
}
