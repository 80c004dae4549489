//! The values, by the revision that wrote them, in sled. In: batches of values. Out: a value.
//!
//! sled is asked for nothing but room: it reaches the device when it likes to (its `flush` calls `sync_file_range`,
//! which no device takes for a sync), so after anything but an orderly end it is thrown away and made anew from the
//! snapshot and the log. Each such making has a folder of its own, so that a new one does not wait for the old.

use crate::disk::{failed, make_dir, private, sync_dir, sync_tree};
use crate::{Result, Revision, StoreError};
use bytes::Bytes;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A dying process may still hold sled's own lock for a moment.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// The note that sled was closed in order.
const CLEAN: &str = "clean";

pub(crate) struct Values {
    db: sled::Db,
    generation: u64,
    /// It has refused something, and can do nothing more: not even be dropped, for that waits for ever.
    failed: AtomicBool,
}

impl Drop for Values {
    fn drop(&mut self) {
        if self.has_failed() {
            std::mem::forget(self.db.clone());
        }
    }
}

fn folder(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("values-{generation}"))
}

/// Runs a call of sled, which panics where it has no error for what it met.
fn guarded<T>(doing: &str, call: impl FnOnce() -> sled::Result<T>) -> Result<T> {
    let fail = |detail: String| StoreError::Engine { doing: doing.to_owned(), detail };
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| fail(e.to_string())),
        Err(_) => Err(fail("sled panicked".to_owned())),
    }
}

impl Values {
    /// Makes an empty one.
    pub fn create(dir: &Path, generation: u64, cache: u64) -> Result<Self> {
        let path = folder(dir, generation);
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("removing", &path)(e)),
            _ => {}
        }
        Self::open(dir, generation, cache)
    }

    /// Opens one that was closed in order.
    pub fn open(dir: &Path, generation: u64, cache: u64) -> Result<Self> {
        let path = folder(dir, generation);
        // sled makes its files as the umask is: its folder keeps others out.
        make_dir(&path)?;
        let doing = format!("opening sled in {}", path.display());
        let config = sled::Config::new().path(&path).cache_capacity(cache).flush_every_ms(None);
        // It tells of its lock in words only.
        let is_held = |error: &StoreError| error.to_string().contains("could not acquire lock");
        let begin = Instant::now();
        loop {
            match guarded(&doing, || config.open()) {
                Ok(db) => return Ok(Self { db, generation, failed: AtomicBool::new(false) }),
                Err(error) if is_held(&error) && begin.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Nothing more is asked of it.
    pub fn give_up(&self) {
        self.failed.store(true, Ordering::Release);
    }

    fn call<T>(&self, doing: &str, call: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Result<T> {
        guarded(doing, || call(&self.db)).inspect_err(|_| self.give_up())
    }

    /// Adds values. Those that are there already are the same.
    pub fn put<'a>(&self, values: impl IntoIterator<Item = (Revision, &'a [u8])>) -> Result<()> {
        let mut batch = sled::Batch::default();
        for (revision, value) in values {
            batch.insert(&revision.to_be_bytes(), value);
        }
        self.call("writing values", |db| db.apply_batch(batch))
    }

    pub fn get(&self, revision: Revision) -> Result<Option<Bytes>> {
        let value = self.call("reading a value", |db| db.get(revision.to_be_bytes()))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    pub fn remove(&self, revisions: &[Revision]) -> Result<()> {
        let mut batch = sled::Batch::default();
        for revision in revisions {
            batch.remove(&revision.to_be_bytes());
        }
        self.call("dropping values", |db| db.apply_batch(batch))
    }

    /// Writes everything to the device, and notes that the next open can go on with it.
    pub fn close(self, dir: &Path, revision: Revision) -> Result<()> {
        self.call("flushing values", |db| db.flush())?;
        let generation = self.generation;
        drop(self);
        sync_tree(&folder(dir, generation)).map_err(failed("syncing", dir))?;
        let note = format!("{generation} {revision}");
        let note = format!("{note} {:08x}\n", crc32fast::hash(note.as_bytes()));
        let (unfinished, path) = (dir.join("clean.tmp"), dir.join(CLEAN));
        let write = || {
            let mut file = private().truncate(true).open(&unfinished)?;
            io::Write::write_all(&mut file, note.as_bytes())?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)?;
            sync_dir(dir)
        };
        write().map_err(failed("writing", &path))
    }
}

/// Removes the note of the last orderly end.
pub(crate) fn remove_clean(dir: &Path) -> Result<()> {
    let path = dir.join(CLEAN);
    match fs::remove_file(&path).and_then(|()| sync_dir(dir)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("removing", &path)(e)),
        _ => Ok(()),
    }
}

/// The note of the last orderly end: the generation of the values and the revision they are as of.
pub(crate) fn clean(dir: &Path) -> Result<Option<(u64, Revision)>> {
    let path = dir.join(CLEAN);
    let note = match fs::read_to_string(&path) {
        Ok(note) => note,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => String::new(),
        Err(e) => return Err(failed("reading", &path)(e)),
    };
    Ok(note.trim_end().rsplit_once(' ').and_then(|(text, sum)| {
        let right = u32::from_str_radix(sum, 16).ok()? == crc32fast::hash(text.as_bytes());
        let (generation, at) = text.split_once(' ').filter(|_| right)?;
        Some((generation.parse::<u64>().ok()?, at.parse::<Revision>().ok()?))
    }))
}

/// The generations that lie in a folder.
pub(crate) fn generations(dir: &Path) -> Result<Vec<u64>> {
    let entries = fs::read_dir(dir).map_err(failed("listing", dir))?;
    let numbers = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("values-").and_then(|n| n.parse().ok()));
    Ok(numbers.collect())
}

/// Removes all generations but one.
pub(crate) fn remove_others(dir: &Path, keep: Option<u64>) -> Result<()> {
    for generation in generations(dir)?.into_iter().filter(|g| Some(*g) != keep) {
        let path = folder(dir, generation);
        fs::remove_dir_all(&path).map_err(failed("removing", &path))?;
    }
    Ok(())
}
