//! What the writer, the housekeeper and all readers share: which keys there are, where their values are, and how far
//! history reaches.
//!
//! In: batches that are on the device. Out: reads at a revision. Everything here blocks at most for sled.

use super::housekeeper::Wake;
use super::index::Index;
use super::values::Values;
use crate::disk::Version;
use crate::health::Status;
use crate::{KeyValue, Result, Revision, StoreError, WatchEvent};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::ThreadId;
use std::time::Duration;
use tokio::sync::watch;

/// The newest values are kept in memory up to this many bytes: watchers and compare-and-swap want them.
const RECENT_BYTES: usize = 16 << 20;
/// What an empty value among them counts for.
const RECENT_ENTRY: usize = 200;
/// Keys are looked at in portions of this many under the lock.
const PORTION: usize = 1000;
/// A page of a stream or a snapshot holds about this many bytes.
const PAGE_BYTES: usize = 1 << 20;
/// How long a reader waits for values to be made anew.
const HEAL_PATIENCE: Duration = Duration::from_secs(60);

/// What watchers wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Signal {
    pub revision: Revision,
    /// How often progress was asked for.
    pub asked: u64,
}

#[derive(Default)]
pub(crate) struct State {
    pub revision: Revision,
    pub index: Index,
    recent: VecDeque<(Revision, Bytes)>,
    recent_bytes: usize,
    /// Values that are in the log and that sled has not taken: they stay here until it does.
    overflow: BTreeMap<Revision, Bytes>,
}

impl State {
    /// Adds a write that is on the device.
    pub fn apply(&mut self, key: &str, version: Version, value: Option<&Bytes>) {
        self.index.apply(key, version);
        self.revision = version.revision;
        let Some(value) = value else { return };
        self.recent_bytes += RECENT_ENTRY + value.len();
        self.recent.push_back((version.revision, value.clone()));
        while self.recent_bytes > RECENT_BYTES {
            let Some((_, old)) = self.recent.pop_front() else { break };
            self.recent_bytes -= RECENT_ENTRY + old.len();
        }
    }

    /// Keeps values here that sled does not take.
    pub fn keep<'a>(&mut self, values: impl Iterator<Item = (Revision, &'a Bytes)>) {
        self.overflow.extend(values.map(|(revision, value)| (revision, value.clone())));
    }

    /// What is kept here for sled.
    pub fn overflow(&self) -> &BTreeMap<Revision, Bytes> {
        &self.overflow
    }

    /// sled has it now.
    pub fn clear_overflow(&mut self) {
        self.overflow.clear();
    }

    #[cfg(test)]
    pub fn recent_len(&self) -> usize {
        self.recent.len()
    }

    fn in_memory(&self, revision: Revision) -> Option<Bytes> {
        let recent = self.recent.binary_search_by_key(&revision, |(r, _)| *r).ok();
        let recent = recent.and_then(|at| self.recent.get(at)).map(|(_, value)| value);
        recent.or_else(|| self.overflow.get(&revision)).cloned()
    }
}

/// Where values are. While they are made anew there are two, and both get what is written.
pub(crate) struct Places {
    /// `None` when the store is closed.
    pub current: Option<Arc<Values>>,
    pub next: Option<Arc<Values>>,
}

pub(crate) struct Shared {
    pub dir: PathBuf,
    pub cache: u64,
    pub state: RwLock<State>,
    pub places: RwLock<Places>,
    compacted: AtomicU64,
    /// Revisions that are being read at, and by how many: what these see is not dropped.
    pins: Mutex<BTreeMap<Revision, usize>>,
    pub signal: watch::Sender<Signal>,
    pub status: Status,
    /// Rings when values have to be made anew, with the generation that is no good.
    pub heal: std::sync::mpsc::Sender<Wake>,
    /// The thread that makes values anew, and so cannot wait for it.
    keeper: OnceLock<ThreadId>,
    /// The store is being closed: streams end.
    pub closing: AtomicBool,
}

/// Keeps what a revision sees until it is dropped.
pub(crate) struct Pin {
    shared: Arc<Shared>,
    pub revision: Revision,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.shared.pins.lock();
        if let Some(count) = pins.get_mut(&self.revision) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.revision);
            }
        }
    }
}

impl Shared {
    pub fn new(
        dir: PathBuf,
        cache: u64,
        (index, revision): (Index, Revision),
        values: Values,
        compacted: Revision,
        status: Status,
        heal: std::sync::mpsc::Sender<Wake>,
    ) -> Self {
        Self {
            dir,
            cache,
            state: RwLock::new(State { revision, index, ..State::default() }),
            places: RwLock::new(Places { current: Some(Arc::new(values)), next: None }),
            compacted: AtomicU64::new(compacted),
            pins: Mutex::default(),
            signal: watch::Sender::new(Signal { revision, asked: 0 }),
            status,
            heal,
            keeper: OnceLock::new(),
            closing: AtomicBool::new(false),
        }
    }

    /// This thread is the one that makes values anew.
    pub fn set_keeper(&self) {
        let _ = self.keeper.set(std::thread::current().id());
    }

    /// The values in use.
    pub fn values(&self) -> Result<Arc<Values>> {
        self.places.read().current.clone().ok_or_else(|| StoreError::Engine {
            doing: "reading a value".to_owned(),
            detail: "the store is closed".to_owned(),
        })
    }

    /// Takes the values out of use, for good.
    pub fn close_values(&self) -> Option<Arc<Values>> {
        self.places.write().current.take()
    }

    /// Which making of the values is in use.
    pub fn generation(&self) -> u64 {
        self.places.read().current.as_ref().map_or(u64::MAX, |values| values.generation())
    }

    pub fn revision(&self) -> Revision {
        self.state.read().revision
    }

    pub fn compacted(&self) -> Revision {
        self.compacted.load(Ordering::Acquire)
    }

    /// From now on nobody begins to read before this revision.
    pub fn set_compacted(&self, revision: Revision) {
        let _pins = self.pins.lock();
        self.compacted.fetch_max(revision, Ordering::AcqRel);
    }

    /// Up to where nobody reads any more.
    pub fn unread(&self) -> Revision {
        let pins = self.pins.lock();
        let compacted = self.compacted();
        pins.keys().next().map_or(compacted, |oldest| compacted.min(*oldest))
    }

    /// Checked against the past and the future, and kept readable.
    pub fn pin(self: &Arc<Self>, at: Option<Revision>) -> Result<Pin> {
        let mut pins = self.pins.lock();
        let current = self.revision();
        let revision = at.unwrap_or(current);
        self.readable(revision, current)?;
        *pins.entry(revision).or_default() += 1;
        Ok(Pin { shared: self.clone(), revision })
    }

    pub fn readable(&self, requested: Revision, current: Revision) -> Result<()> {
        let compacted = self.compacted();
        if requested > current {
            return Err(StoreError::FutureRevision { requested, current });
        }
        if requested < compacted { Err(StoreError::Compacted { requested, compacted }) } else { Ok(()) }
    }

    /// The value of a version that the index has, or had a moment ago: then `None`.
    pub fn value(&self, revision: Revision) -> Result<Option<Bytes>> {
        if let Some(value) = self.state.read().in_memory(revision) {
            return Ok(Some(value));
        }
        let values = self.values()?;
        match values.get(revision) {
            Ok(value) => Ok(value),
            Err(error) => {
                tracing::error!(%error, revision, "sled cannot be read; its values are made anew");
                self.heal(values.generation())?;
                self.values()?.get(revision)
            }
        }
    }

    /// Has values made anew if they still are of this generation, and waits for it.
    pub fn heal(&self, generation: u64) -> Result<()> {
        let failed =
            |detail: &str| StoreError::Engine { doing: "making the values anew".to_owned(), detail: detail.to_owned() };
        let (reply, outcome) = std::sync::mpsc::sync_channel(1);
        self.heal.send(Wake::Heal(generation, reply)).map_err(|_| failed("the store is closed"))?;
        if self.keeper.get() == Some(&std::thread::current().id()) {
            return Err(failed("it is on its way"));
        }
        outcome.recv_timeout(HEAL_PATIENCE).map_err(|_| failed("it takes too long"))?
    }

    fn key_value(&self, key: &str, version: Version) -> Result<Option<KeyValue>> {
        let value = self.value(version.revision)?;
        Ok(value.map(|value| version.key_value(key, value)))
    }

    /// As [`Self::key_value`], of a version that is pinned or the newest: values without it are not what they were.
    pub fn kept(&self, key: &str, version: Version) -> Result<KeyValue> {
        if let Some(kv) = self.key_value(key, version)? {
            return Ok(kv);
        }
        let generation = self.generation();
        tracing::error!(key, revision = version.revision, "sled has lost a value; its values are made anew");
        self.heal(generation)?;
        self.key_value(key, version)?.ok_or_else(|| StoreError::Engine {
            doing: format!("reading {key}"),
            detail: format!("the value of revision {} is missing; run `causeway store check`", version.revision),
        })
    }

    /// A key at a revision, and the revision that it was read at.
    pub fn get(self: &Arc<Self>, key: &str, at: Option<Revision>) -> Result<(Option<KeyValue>, Revision)> {
        let pin = self.pin(at)?;
        let version = self.state.read().index.at(key, pin.revision);
        let kv = version.map(|version| self.kept(key, version)).transpose()?;
        Ok((kv, pin.revision))
    }

    /// At most `limit` keys of a prefix behind a key.
    pub fn page(&self, pin: &Pin, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<KeyValue>> {
        let mut items: Vec<KeyValue> = Vec::new();
        while items.len() < limit {
            let after = items.last().map(|kv| kv.key.as_str()).or(after);
            let portion = PORTION.min(limit - items.len());
            let versions = self.state.read().index.page(prefix, after, portion, pin.revision);
            let last = versions.len() < portion;
            for (key, version) in versions {
                items.push(self.kept(&key, version)?);
            }
            if last {
                break;
            }
        }
        Ok(items)
    }

    /// How many keys of a prefix there are behind a key. A writer waits for a portion of them at most.
    pub fn count(&self, pin: &Pin, prefix: &str, after: Option<&str>) -> usize {
        const PORTION: usize = 10_000;
        let (mut count, mut last) = self.state.read().index.count(prefix, after, PORTION, pin.revision);
        while let Some(after) = last {
            let (more, next) = self.state.read().index.count(prefix, Some(&after), PORTION, pin.revision);
            (count, last) = (count + more, next);
        }
        count
    }

    /// All keys of a prefix, in pages of about a megabyte, as long as `each` takes them.
    pub fn pages(&self, pin: &Pin, prefix: &str, mut each: impl FnMut(Vec<KeyValue>) -> bool) -> Result<()> {
        let mut after: Option<Arc<str>> = None;
        loop {
            let versions = self.state.read().index.page(prefix, after.as_deref(), PORTION, pin.revision);
            let last = versions.len() < PORTION;
            let (mut items, mut bytes) = (Vec::new(), 0);
            for (key, version) in versions {
                let kv = self.kept(&key, version)?;
                bytes += kv.value.len();
                items.push(kv);
                after = Some(key);
                if bytes >= PAGE_BYTES {
                    bytes = 0;
                    if !each(std::mem::take(&mut items)) {
                        return Ok(());
                    }
                }
            }
            if (!items.is_empty() && !each(items)) || last {
                return Ok(());
            }
        }
    }

    /// Tells what readers from revision `from` to the pinned one see.
    pub fn fill(
        &self,
        pin: &Pin,
        from: Revision,
        mut push: impl FnMut(Version, &str, Option<Bytes>) -> Result<()>,
    ) -> Result<()> {
        let mut after: Option<Arc<str>> = None;
        loop {
            let portion = self.state.read().index.versions(after.as_deref(), PORTION, (from, pin.revision));
            let last = portion.len() < PORTION;
            for (key, versions) in portion {
                for version in versions {
                    let value = if version.deleted { None } else { Some(self.kept(&key, version)?.value) };
                    push(version, &key, value)?;
                }
                after = Some(key);
            }
            if last {
                return Ok(());
            }
        }
    }

    /// At most `limit` changes of a prefix in `(after, newest]`, and the last revision looked at.
    pub fn changes(&self, prefix: &str, after: Revision, limit: usize) -> Result<(Vec<WatchEvent>, Revision)> {
        let (changes, newest) = {
            let state = self.state.read();
            (state.index.changes(after, state.revision, limit), state.revision)
        };
        let last = changes.last().filter(|_| changes.len() == limit).map_or(newest, |change| change.new.revision);
        let mut events = Vec::new();
        let (mut bytes, mut seen) = (0, last);
        for change in changes.iter().filter(|change| change.key.starts_with(prefix)) {
            let read = |version: Version| match self.key_value(&change.key, version)? {
                Some(kv) => Ok(kv),
                // Either a compaction took it away, or sled has lost it.
                None => self.readable(after, newest).and_then(|()| self.kept(&change.key, version)),
            };
            let prev = change.prev.map(read).transpose()?;
            let revision = change.new.revision;
            let event = match (change.new.deleted, prev) {
                (false, prev) => WatchEvent::Put { kv: read(change.new)?, prev },
                (true, Some(prev)) => WatchEvent::Delete { prev, revision },
                (true, None) => continue,
            };
            bytes += match &event {
                WatchEvent::Put { kv, prev } => kv.value.len() + prev.as_ref().map_or(0, |kv| kv.value.len()),
                WatchEvent::Delete { prev, .. } => prev.value.len(),
                WatchEvent::Progress(_) => 0,
            };
            events.push(event);
            if bytes >= PAGE_BYTES {
                seen = revision;
                break;
            }
        }
        // A compaction that overtook this may have dropped what it read.
        self.readable(after, newest)?;
        Ok((events, seen))
    }
}
