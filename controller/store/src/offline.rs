//! What an operator does with the store of a server that is stopped, and with snapshots: check, save, bring back, make
//! small, and go on after damage. All of it blocks, and answers [`StoreError::Locked`] while the store is in use.

use crate::disk::lock::Lock;
use crate::disk::{Entry, ReadError, Record, Version, failed, log, make_dir, now, size_of, snapshot, sync_dir};
use crate::engine::open::{self, LOG};
use crate::engine::values;
use crate::{Damage, Result, Revision, SledOptions, SledStore, StoreError, Summary};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// What [`check`] found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The newest revision that can be read.
    pub revision: Revision,
    /// The oldest revision that can be read.
    pub compacted: Revision,
    /// Keys that are there.
    pub keys: u64,
    /// Bytes of their values.
    pub live_bytes: u64,
    /// The files that hold the truth. What is in sled is made from them and not looked at.
    pub files: Vec<FileReport>,
    /// Everything that is not what was written. What follows a damage in the log cannot be read.
    pub damage: Vec<Damage>,
}

/// A file of the store.
#[derive(Debug, Clone)]
pub struct FileReport {
    /// Its path.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
}

/// What [`defrag`] did, in bytes on disk.
#[derive(Debug, Clone, Copy)]
pub struct Defragmented {
    /// Before.
    pub before: u64,
    /// After.
    pub after: u64,
}

/// What [`salvage`] did.
#[derive(Debug, Clone)]
pub struct Salvaged {
    /// The last whole revision: what was acknowledged after it is lost.
    pub whole: Revision,
    /// The revision that the store goes on from.
    pub revision: Revision,
    /// Where the damaged files are now.
    pub set_aside: PathBuf,
    /// What was damaged.
    pub damage: Damage,
}

fn there(dir: &Path) -> Result<Lock> {
    if !dir.is_dir() {
        let doing = format!("opening the store in {}", dir.display());
        return Err(StoreError::Engine { doing, detail: "there is none".to_owned() });
    }
    Lock::take(dir)
}

/// Reads everything and says what is damaged. Changes nothing.
pub fn check(dir: &Path) -> Result<Report> {
    check_with(dir, &mut |_, _| {})
}

/// As [`check`]; `each` gets every version of every key that the files hold, in the order in which they were written, as far
/// as they are whole. Of a deletion it gets no value.
pub fn check_with(dir: &Path, each: &mut dyn FnMut(&str, Option<&[u8]>)) -> Result<Report> {
    let _lock = there(dir)?;
    let mut report = Report::default();
    let mut live: BTreeMap<String, u64> = BTreeMap::new();
    let mut note = |key: &str, value: Option<&[u8]>| {
        each(key, value);
        match value {
            Some(value) => drop(live.insert(key.to_owned(), value.len() as u64)),
            None => drop(live.remove(key)),
        }
        Ok(())
    };
    let io = |outcome: Result<(), ReadError>, report: &mut Report| match outcome {
        Err(ReadError::Damaged(damage)) => {
            report.damage.push(damage);
            Ok(())
        }
        other => other,
    };
    let snapshots = snapshot::files(dir)?;
    let segments = log::files(&dir.join(LOG))?;
    for (_, path) in snapshots.iter().chain(&segments) {
        report.files.push(FileReport { path: path.clone(), bytes: size(path) });
    }
    let (mut revision, mut compacted) = (1, 0);
    if let Some((at, path)) = snapshots.last() {
        let read = snapshot::read_file(path, &mut |record| note(record.key, record.value));
        (revision, compacted) = (*at, read.as_ref().map_or(0, |summary| summary.compacted));
        io(read.map(drop), &mut report)?;
    }
    let read = log::read(&dir.join(LOG), revision, &mut |entry| match entry {
        Entry::Write(record) => {
            revision = record.revision;
            note(record.key, record.value)
        }
        Entry::Compacted(upto) => {
            compacted = compacted.max(upto);
            Ok(())
        }
    });
    io(read.map(drop), &mut report)?;
    if report.damage.is_empty() {
        io(open::lost_end(dir, values::clean(dir)?, revision).map_or(Ok(()), Err), &mut report)?;
    }
    (report.revision, report.compacted) = (revision, compacted);
    report.keys = live.len() as u64;
    report.live_bytes = live.values().sum();
    Ok(report)
}

fn size(path: &Path) -> u64 {
    path.metadata().map_or(0, |meta| meta.len())
}

/// Writes a snapshot of a stopped store.
pub fn snapshot(dir: &Path, into: &mut dyn Write) -> Result<Summary> {
    drop(there(dir)?);
    SledStore::open(dir, SledOptions::default())?.write_snapshot(into)
}

/// Reads a whole snapshot and checks everything in it.
pub fn verify(from: &mut dyn Read) -> Result<Summary> {
    Ok(snapshot::read(Path::new("the snapshot"), from, &mut |_| Ok(()))?)
}

/// Makes a store of a snapshot. `dir` must not be there, or be empty. What is there when this returns is on the device;
/// after an error there is no store.
///
/// Revisions go on at the snapshot's and `bump`, and history begins there: what a client has seen after the snapshot was
/// taken is not mistaken for what happens from now on, as long as it was less than `bump` changes.
pub fn restore(dir: &Path, from: &mut dyn Read, bump: Revision) -> Result<Summary> {
    make_dir(dir)?;
    // One that failed leaves its lock.
    let foreign = |entry: &std::io::Result<fs::DirEntry>| entry.as_ref().is_ok_and(|entry| entry.file_name() != "lock");
    if fs::read_dir(dir).map_err(failed("listing", dir))?.any(|entry| foreign(&entry)) {
        let doing = format!("restoring into {}", dir.display());
        return Err(StoreError::Engine {
            doing,
            detail: "the folder is not empty; move what is there away".to_owned(),
        });
    }
    let _lock = Lock::take(dir)?;
    let name = PathBuf::from("the snapshot");
    let mut from = from;
    let head = snapshot::begin(&name, &mut from)?;
    let revision = head.summary.revision.saturating_add(bump);
    if revision > snapshot::MAX_REVISION {
        let doing = format!("restoring into {}", dir.display());
        return Err(StoreError::Engine { doing, detail: format!("revision {revision} is too high") });
    }
    let written = snapshot::write_file(dir, revision, revision, |writer| {
        let mut last: Option<(Version, String, Option<Bytes>)> = None;
        let mut push = |next: Option<(Version, String, Option<Bytes>)>| {
            // Of each key the newest state, and nothing of what is deleted.
            let done = last.as_ref().is_some_and(|(_, key, _)| next.as_ref().is_none_or(|(_, new, _)| new != key));
            let before = std::mem::replace(&mut last, next);
            match before.filter(|(_, _, value)| done && value.is_some()) {
                Some((version, key, value)) => writer.push(version, &key, value),
                None => Ok(()),
            }
        };
        head.read(&name, &mut from, &mut |record| {
            let value = record.value.map(Bytes::copy_from_slice);
            push(Some((Version::from(&record), record.key.to_owned(), value)))
                .map_err(|e| format!("it cannot be written: {e}"))
        })?;
        push(None).map_err(failed("writing a snapshot in", dir))
    });
    written.map(|(_, summary)| summary)
}

/// Makes the files of a stopped store as small as they can be: one snapshot, without history, and values without gaps. What
/// was replaced or deleted is in none of them.
pub fn defrag(dir: &Path) -> Result<Defragmented> {
    drop(there(dir)?);
    let before = size_of(dir);
    let store = SledStore::open(dir, SledOptions::default())?;
    store.forget_history()?;
    store.save()?;
    store.forget_values();
    drop(store);
    drop(SledStore::open(dir, SledOptions::default())?);
    Ok(Defragmented { before, after: size_of(dir) })
}

/// Goes on with what is whole before the first damage of the log. `None` when nothing is damaged. What is damaged is
/// moved aside, not removed. Holds all values in memory.
///
/// Revisions go on at the last whole one and `bump`, as in [`restore`].
///
/// # Errors
/// [`StoreError::Damaged`] when the snapshot itself is damaged: then only a backup helps.
pub fn salvage(dir: &Path, bump: Revision) -> Result<Option<Salvaged>> {
    let _lock = there(dir)?;
    snapshot::remove_unfinished(dir);
    type State = BTreeMap<String, (Version, Bytes)>;
    let mut state = State::new();
    let note = |state: &mut State, record: Record<'_>| {
        match record.value {
            Some(value) => {
                let value = (Version::from(&record), Bytes::copy_from_slice(value));
                drop(state.insert(record.key.to_owned(), value));
            }
            None => drop(state.remove(record.key)),
        }
        Ok(())
    };
    let snapshots = snapshot::files(dir)?;
    let mut whole = 1;
    if let Some((_, path)) = snapshots.last() {
        whole = snapshot::read_file(path, &mut |record| note(&mut state, record))?.revision;
    }
    let log = dir.join(LOG);
    let read = log::read(&log, whole, &mut |entry| match entry {
        Entry::Write(record) => {
            whole = record.revision;
            note(&mut state, record)
        }
        Entry::Compacted(_) => Ok(()),
    });
    let damage = match read {
        Ok(_) => match open::lost_end(dir, values::clean(dir)?, whole) {
            Some(ReadError::Damaged(damage)) => damage,
            _ => return Ok(None),
        },
        Err(ReadError::Damaged(damage)) => damage,
        Err(error) => return Err(error.into()),
    };
    let revision = whole.saturating_add(bump);
    snapshot::write_file(dir, revision, revision, |writer| {
        for (key, (version, value)) in state {
            writer.push(version, &key, Some(value)).map_err(failed("writing a snapshot in", dir))?;
        }
        Ok(())
    })?;
    values::remove_clean(dir)?;
    let set_aside = dir.join(format!("damaged-{}", now()));
    let moved = fs::create_dir_all(&set_aside)
        .and_then(|()| fs::rename(&log, set_aside.join(LOG)))
        .and_then(|()| sync_dir(&set_aside))
        .and_then(|()| sync_dir(dir));
    moved.map_err(failed("moving aside", &log))?;
    Ok(Some(Salvaged { whole, revision, set_aside, damage }))
}
