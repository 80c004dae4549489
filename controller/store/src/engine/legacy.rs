//! The format of versions before this one: every version of a key in sled, and a log beside it. In: such a folder. Out:
//! the same as a snapshot, once.
//!
//! sled's keys were `v<key>\0<revision>` with the version, `l<revision>` with the key, and two marks. The log's segments
//! were files `wal/wal-<first revision>` of frames `length u32 | crc32 u32 | postcard batch`. What the log holds counts,
//! whatever sled says of how far it has got.

use crate::disk::{ReadError, Version, failed, frames, make_dir, snapshot, sync_dir};
use crate::{Result, Revision, StoreError};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

const SLED: &str = "sled";
const LOG: &str = "wal";
/// The old files are kept here, for the operator to remove.
const KEPT: &str = "old-format";
const MAX_FRAME: usize = 256 << 20;

#[derive(Serialize, Deserialize)]
struct Record {
    revision: Revision,
    key: String,
    value: Option<Bytes>,
    create_revision: Revision,
}

#[derive(Serialize, Deserialize)]
struct OldVersion {
    create_revision: Revision,
    value: Option<Bytes>,
}

fn version_key(key: &str, revision: Revision) -> Vec<u8> {
    [b"v", key.as_bytes(), &[0], &revision.to_be_bytes()].concat()
}

fn split(raw: &[u8]) -> Option<(&str, Revision)> {
    let (key, revision) = raw.strip_prefix(b"v")?.split_last_chunk::<8>()?;
    Some((std::str::from_utf8(key.strip_suffix(&[0])?).ok()?, Revision::from_be_bytes(*revision)))
}

/// Brings a folder of the old format into the present one. Does nothing to any other.
pub(crate) fn migrate(dir: &Path) -> Result<()> {
    let (sled, log) = (dir.join(SLED), dir.join(LOG));
    if !sled.exists() && !log.exists() {
        return Ok(());
    }
    // Else a crash came between the snapshot and the removal.
    if snapshot::files(dir)?.is_empty() {
        tracing::info!(dir = %dir.display(), "the store has the format of an older version; bringing it into this one's");
        let read = catch_unwind(AssertUnwindSafe(|| convert(dir, &sled, &log)));
        read.unwrap_or_else(|_| Err(damaged(&sled, "sled panicked".to_owned())))?;
    }
    let kept = dir.join(KEPT);
    make_dir(&kept)?;
    for old in [SLED, LOG] {
        match fs::rename(dir.join(old), kept.join(old)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("moving aside", &dir.join(old))(e)),
            _ => {}
        }
    }
    sync_dir(&kept).and_then(|()| sync_dir(dir)).map_err(failed("syncing", dir))
}

fn damaged(path: &Path, detail: String) -> StoreError {
    let doing = format!("reading {}, which has the format of an older version", path.display());
    StoreError::Engine { doing, detail }
}

fn convert(dir: &Path, sled: &Path, log: &Path) -> Result<()> {
    let fail = |e: sled::Error| damaged(sled, e.to_string());
    let db = sled::Config::new().path(sled).flush_every_ms(None).open().map_err(fail)?;
    let mark = |name: &str| -> Result<Option<Revision>> {
        let raw = db.get(name).map_err(fail)?;
        Ok(raw.and_then(|raw| raw.as_ref().try_into().ok()).map(Revision::from_be_bytes))
    };
    let mut revision = mark("m/revision")?.unwrap_or(1);
    let compacted = mark("m/compacted")?.unwrap_or(0);
    let mut expected = None;
    let segments = segments(log)?;
    for (i, path) in segments.iter().enumerate() {
        for record in records(path, i + 1 == segments.len())? {
            let before = expected.unwrap_or_else(|| record.revision.min(revision + 1));
            if record.revision != before {
                let what = format!("revision {} follows revision {}", record.revision, before - 1);
                return Err(ReadError::damaged(path, 0, Some(before), what).into());
            }
            expected = Some(record.revision + 1);
            revision = revision.max(record.revision);
            let version = OldVersion { create_revision: record.create_revision, value: record.value };
            let raw = postcard::to_stdvec(&version).map_err(|e| damaged(path, e.to_string()))?;
            db.insert(version_key(&record.key, record.revision), raw).map_err(fail)?;
        }
    }
    snapshot::write_file(dir, revision, compacted, |writer| {
        for entry in db.scan_prefix(b"v") {
            let (key, raw) = entry.map_err(fail)?;
            let (key, at) = split(&key).ok_or_else(|| damaged(sled, "a key has no revision".to_owned()))?;
            let version: OldVersion = postcard::from_bytes(&raw).map_err(|e| damaged(sled, format!("{key}: {e}")))?;
            let written = writer.push(
                {
                    let (create_revision, deleted) = (version.create_revision, version.value.is_none());
                    Version { revision: at, create_revision, expires: 0, deleted }
                },
                key,
                version.value,
            );
            written.map_err(failed("writing a snapshot in", dir))?;
        }
        Ok(())
    })
    .map(drop)
}

fn segments(log: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(log) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed("listing", log)(e)),
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

/// The records of a segment, as far as its frames are whole. What is missing shows by the revision that follows; in the
/// last one, by a whole frame anywhere behind.
fn records(path: &Path, last: bool) -> Result<Vec<Record>> {
    let io = || failed("reading", path);
    let mut file = BufReader::new(File::open(path).map_err(io())?);
    let (mut all, mut next) = (Vec::new(), 0);
    loop {
        let at = next;
        let mut head = [0u8; 8];
        if frames::read_full(&mut file, &mut head).map_err(io())? < head.len() {
            return Ok(all);
        }
        let [a, b, c, d, e, f, g, h] = head;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        next = at + head.len() + length;
        let mut payload = Vec::new();
        if length <= MAX_FRAME {
            io::Read::read_to_end(&mut io::Read::take(&mut file, length as u64), &mut payload).map_err(io())?;
        }
        let whole = payload.len() == length && crc32fast::hash(&payload) == u32::from_le_bytes([e, f, g, h]);
        match postcard::from_bytes::<Vec<Record>>(&payload) {
            Ok(batch) if whole => all.extend(batch),
            _ => {
                let rest = fs::read(path).map_err(io())?.split_off(at + 1);
                if last && (0..rest.len()).any(|i| is_frame(&rest[i..])) {
                    let next = all.last().map(|r: &Record| r.revision + 1);
                    return Err(ReadError::damaged(path, at as u64, next, "a batch's check sum is wrong").into());
                }
                return Ok(all);
            }
        }
    }
}

/// Whether a whole frame that is not empty begins here.
fn is_frame(raw: &[u8]) -> bool {
    let Some((length, rest)) = raw.split_first_chunk::<4>() else { return false };
    let Some((sum, rest)) = rest.split_first_chunk::<4>() else { return false };
    let length = u32::from_le_bytes(*length) as usize;
    let payload = rest.get(..length).filter(|_| (1..=MAX_FRAME).contains(&length));
    payload.is_some_and(|payload| crc32fast::hash(payload) == u32::from_le_bytes(*sum))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ListRequest, SledOptions, SledStore, Store};

    fn version(create_revision: Revision, value: Option<&'static str>) -> Vec<u8> {
        postcard::to_stdvec(&OldVersion { create_revision, value: value.map(Bytes::from) }).unwrap()
    }

    fn frame(records: &[Record]) -> Vec<u8> {
        let payload = postcard::to_stdvec(records).unwrap();
        let head = [(payload.len() as u32).to_le_bytes(), crc32fast::hash(&payload).to_le_bytes()].concat();
        [head, payload].concat()
    }

    fn record(revision: Revision, key: &str, value: Option<&'static str>, create_revision: Revision) -> Record {
        Record { revision, key: key.to_owned(), value: value.map(Bytes::from), create_revision }
    }

    /// As the old version left it: sled is behind the log, and the log's first segment has a torn tail.
    fn old(dir: &Path) {
        let db = sled::open(dir.join(SLED)).unwrap();
        db.insert(version_key("/r/a", 2), version(2, Some("a1"))).unwrap();
        db.insert(version_key("/r/a", 3), version(2, Some("a2"))).unwrap();
        db.insert(version_key("/r/a/b", 4), version(4, Some("b"))).unwrap();
        for revision in 2..5u64 {
            db.insert([b"l", &revision.to_be_bytes()[..]].concat(), "x").unwrap();
        }
        // It says more than it has.
        db.insert("m/revision", &5u64.to_be_bytes()).unwrap();
        db.insert("m/compacted", &2u64.to_be_bytes()).unwrap();
        db.flush().unwrap();
        fs::create_dir(dir.join(LOG)).unwrap();
        let first = [frame(&[record(4, "/r/a/b", Some("b"), 4), record(5, "/r/c", Some("c"), 5)]), vec![9; 5]].concat();
        fs::write(dir.join("wal/wal-00000000000000000004"), first).unwrap();
        fs::write(dir.join("wal/wal-00000000000000000006"), frame(&[record(6, "/r/a", None, 2)])).unwrap();
    }

    #[tokio::test]
    async fn a_store_of_an_older_version_is_brought_over_whole() {
        let dir = tempfile::tempdir().unwrap();
        old(dir.path());
        for _ in 0..2 {
            let s = SledStore::open(dir.path(), SledOptions::default()).unwrap();
            assert_eq!((s.revision().await.unwrap(), s.compacted().await.unwrap()), (6, 2));
            let all = s.list(ListRequest { prefix: "/".into(), ..Default::default() }).await.unwrap();
            let all: Vec<_> = all.items.iter().map(|kv| (kv.key.as_str(), kv.mod_revision, &kv.value[..])).collect();
            assert_eq!(all, [("/r/a/b", 4, &b"b"[..]), ("/r/c", 5, &b"c"[..])]);
            assert_eq!(s.get("/r/a", Some(5)).await.unwrap().0.unwrap().value, "a2");
            assert!(!dir.path().join(SLED).exists() && !dir.path().join(LOG).exists());
        }
    }

    #[test]
    fn what_is_missing_in_an_old_log_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        old(dir.path());
        fs::write(dir.path().join("wal/wal-00000000000000000006"), frame(&[record(7, "/r/a", None, 2)])).unwrap();
        let error = SledStore::open(dir.path(), SledOptions::default()).err().unwrap();
        assert!(matches!(&error, StoreError::Damaged(d) if d.revision == Some(6)), "{error}");
        assert!(dir.path().join(SLED).exists() && dir.path().join(LOG).exists());
    }

    #[tokio::test]
    async fn damage_in_the_last_old_segment_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        old(dir.path());
        // Three acknowledged batches in the last segment; a bit of the first is flipped.
        let mut last = [
            frame(&[record(6, "/r/a", None, 2)]),
            frame(&[record(7, "/r/x", Some("x"), 7)]),
            frame(&[record(8, "/r/y", Some("y"), 8)]),
        ]
        .concat();
        last[10] ^= 1;
        fs::write(dir.path().join("wal/wal-00000000000000000006"), last).unwrap();
        let opened = SledStore::open(dir.path(), SledOptions::default());
        let revision = match &opened {
            Ok(s) => s.revision().await.unwrap(),
            Err(_) => 0,
        };
        assert!(
            opened.is_err(),
            "opened at revision {revision}, 6..8 were acknowledged; old files there: {}",
            dir.path().join(LOG).exists()
        );
    }

    #[tokio::test]
    async fn a_gap_between_old_sled_and_old_log_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        old(dir.path());
        fs::remove_file(dir.path().join("wal/wal-00000000000000000004")).unwrap();
        fs::write(dir.path().join("wal/wal-00000000000000000006"), frame(&[record(9, "/r/a", None, 2)])).unwrap();
        let opened = SledStore::open(dir.path(), SledOptions::default());
        let revision = match &opened {
            Ok(s) => s.revision().await.unwrap(),
            Err(_) => 0,
        };
        assert!(opened.is_err(), "opened at {revision}, sled says it has up to 5, the log begins at 9");
    }
}
