//! Opening: from the newest snapshot and the log after it to a running store.
//!
//! In: a folder. Out: an index of all keys, values that agree with it, and a log to go on with. The snapshot and the log
//! are read and checked as a whole at every start; sled's files are used only after an orderly end, and made anew
//! otherwise.

use super::SledOptions;
use super::index::Index;
use super::values::{self, Values};
use crate::disk::log::{self, Found, Log, Segment};
use crate::disk::{Entry, ReadError, Record, Version, failed, snapshot, sync_dir};
use crate::{Result, Revision};
use std::fs;
use std::path::{Path, PathBuf};

/// The log's folder.
pub(crate) const LOG: &str = "log";
/// Values are given to sled in portions of about this many bytes.
const PORTION_BYTES: usize = 1 << 20;

/// What the files say.
pub(crate) struct Truth {
    pub index: Index,
    pub revision: Revision,
    pub compacted: Revision,
    /// The newest snapshot, and of which revision it is.
    pub snapshot: Option<(Revision, PathBuf)>,
    pub log: Found,
}

/// Reads and checks all that is in a folder.
pub(crate) fn read(dir: &Path) -> Result<Truth> {
    let mut index = Index::default();
    let (mut revision, mut compacted) = (1, 0);
    let newest = snapshot::files(dir)?.pop();
    if let Some((_, path)) = &newest {
        let summary = snapshot::read_file(path, &mut |record| {
            index.apply(record.key, Version::from(&record));
            Ok(())
        })?;
        (revision, compacted) = (summary.revision, summary.compacted);
        index.loaded(compacted);
    }
    let found = log::read(&dir.join(LOG), revision, &mut |entry| {
        match entry {
            Entry::Write(record) => index.apply(record.key, Version::from(&record)),
            Entry::Compacted(upto) => compacted = compacted.max(upto),
        }
        Ok(())
    })?;
    revision = found.revision;
    while !index.compact(compacted, usize::MAX).1 {}
    Ok(Truth { index, revision, compacted, snapshot: newest, log: found })
}

/// Puts the values of all wanted versions of the files into sled.
pub(crate) fn fill(dir: &Path, values: &Values, wanted: &dyn Fn(&str, Revision) -> bool) -> Result<()> {
    let mut portion: Vec<(Revision, Vec<u8>)> = Vec::new();
    let mut bytes = 0;
    let mut refused = None;
    let mut take = |record: &Record<'_>| {
        let Some(value) = record.value.filter(|_| wanted(record.key, record.revision)) else { return Ok(()) };
        bytes += value.len();
        portion.push((record.revision, value.to_owned()));
        if bytes >= PORTION_BYTES {
            bytes = 0;
            let put = values.put(portion.iter().map(|(revision, value)| (*revision, value.as_slice())));
            portion.clear();
            if let Err(error) = put {
                refused = Some(error);
                return Err("sled refused it".to_owned());
            }
        }
        Ok(())
    };
    let mut revision = 1;
    let mut read = || -> Result<(), ReadError> {
        if let Some((_, path)) = snapshot::files(dir)?.pop() {
            revision = snapshot::read_file(&path, &mut |record| take(&record))?.revision;
        }
        log::read(&dir.join(LOG), revision, &mut |entry| match entry {
            Entry::Write(record) => take(&record),
            Entry::Compacted(_) => Ok(()),
        })
        .map(drop)
    };
    let outcome = read();
    match (outcome, refused) {
        (_, Some(error)) => Err(error),
        (Err(error), None) => Err(error.into()),
        (Ok(()), None) => values.put(portion.iter().map(|(revision, value)| (*revision, value.as_slice()))),
    }
}

/// Whether the note of the last orderly end knows of more than was read.
pub(crate) fn lost_end(dir: &Path, clean: Option<(u64, Revision)>, revision: Revision) -> Option<ReadError> {
    let (_, at) = clean.filter(|(_, at)| *at > revision)?;
    let what = format!("it ends at revision {revision}, and the store was closed at revision {at}");
    Some(ReadError::damaged(&dir.join(LOG), 0, Some(revision + 1), what))
}

/// The values that belong to what was read: those of an orderly end, or fresh ones.
pub(crate) fn open_values(dir: &Path, truth: &Truth, options: &SledOptions) -> Result<Values> {
    let clean = values::clean(dir)?;
    if let Some(damage) = lost_end(dir, clean, truth.revision) {
        return Err(damage.into());
    }
    values::remove_clean(dir)?;
    if let Some((generation, _)) = clean.filter(|(_, at)| *at == truth.revision) {
        match Values::open(dir, generation, options.cache) {
            Ok(values) => {
                values::remove_others(dir, Some(generation))?;
                return Ok(values);
            }
            Err(error) => tracing::warn!(%error, "sled's files are no good; its values are made anew"),
        }
    }
    let generation = values::generations(dir)?.into_iter().max().unwrap_or(0) + 1;
    values::remove_others(dir, None)?;
    let values = Values::create(dir, generation, options.cache)?;
    fill(dir, &values, &|key, revision| truth.index.has(key, revision))?;
    Ok(values)
}

/// The log to go on with, without what the snapshot covers.
pub(crate) fn open_log(dir: &Path, found: Found, snapshot: Option<Revision>) -> Result<Log> {
    // The snapshot may have its name from a process that was killed before that was durable.
    sync_dir(dir).map_err(failed("syncing", dir))?;
    found.covered.iter().try_for_each(|path| remove(path))?;
    let mut log = Log::open(&dir.join(LOG), found)?;
    if let Some(revision) = snapshot {
        remove_covered(dir, revision, log.take_sealed(revision))?;
    }
    Ok(log)
}

/// Removes what the snapshot of a revision makes superfluous: snapshots before it, and these segments of the log.
pub(crate) fn remove_covered(dir: &Path, revision: Revision, segments: Vec<Segment>) -> Result<()> {
    let older = snapshot::files(dir)?.into_iter().filter(|(at, _)| *at < revision).map(|(_, path)| path);
    older.chain(segments.into_iter().map(|segment| segment.path)).try_for_each(|path| remove(&path))
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(failed("removing", path))
}
