//! The embedded engine: sled for the data, a write-ahead log for durability.
//!
//! Why a log beside sled: sled 0.34's `flush` does not reach the device by itself (500 flushes were seen to make 1,116
//! `sync_file_range` and only 5 `fsync` calls), so a power cut could lose acknowledged writes. The log is synced
//! (`fdatasync`) before a write is acknowledged and replayed into sled at open; sled is made durable in the background
//! and the log cut. One sync serves all writes that wait for it. `examples/writes.rs` measures it.

use crate::wal::{Sealed, Wal};
use crate::writer::{Operation, Published, Request, Writer};
use crate::{KeyValue, ListRequest, Listing, Result, Revision, Store, StoreError, WatchEvent, WatchStream, history};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream;
use nix::fcntl::{Flock, FlockArg};
use parking_lot::Mutex;
use sled::Tree;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, oneshot};

/// How the embedded engine is set up.
#[derive(Debug, Clone)]
pub struct SledOptions {
    /// History is kept at least this long. Default 5 minutes.
    pub history: Duration,
    /// … but never more than this many revisions. Default 20,000.
    pub max_history: u64,
    /// Writes are refused when the disk has less room than this. Default 64 MiB.
    pub reserve: u64,
    /// sled's page cache in bytes. Default 32 MiB.
    pub cache: u64,
}

impl Default for SledOptions {
    fn default() -> Self {
        Self { history: Duration::from_secs(300), max_history: 20_000, reserve: 64 << 20, cache: 32 << 20 }
    }
}

/// How many groups of events a watcher may lag behind before it is told to list again.
const WATCH_BUFFER: usize = 4096;
/// Idle watchers hear of progress this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// A dying process may still hold the lock for a moment.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// Backlog is read from the log in chunks of this many revisions.
const BACKLOG_CHUNK: usize = 500;

/// The embedded store. Dropping the last handle stops its threads.
pub struct SledStore {
    tree: Tree,
    db: sled::Db,
    /// `None` only while the store is being dropped: the writer ends when it is gone.
    requests: Option<mpsc::Sender<Request>>,
    published: Arc<Mutex<Published>>,
    compacted: Arc<AtomicU64>,
    /// Dropped to stop the compaction thread.
    stop: Option<std::sync::mpsc::Sender<()>>,
    threads: Vec<std::thread::JoinHandle<()>>,
    _lock: Flock<File>,
}

impl SledStore {
    /// Opens or creates the store in `dir`: replays what a crash left in the log. Blocks for the disk.
    pub fn open(dir: &Path, options: SledOptions) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| StoreError::Engine {
            doing: format!("making the store's folder {}", dir.display()),
            detail: e.to_string(),
        })?;
        let lock = lock(dir)?;
        let db = open_sled(dir, options.cache)?;
        let tree: Tree = (*db).clone();
        let stored = history::stored_revision(&tree)?;
        let newest = |records: &[crate::wal::Record]| records.last().map_or(stored, |r| r.revision.max(stored));
        let (wal, records, old) = Wal::open(&dir.join("wal"), |records| newest(records) + 1)?;
        let revision = newest(&records);
        for batch in records.split(|r| r.revision <= stored).flat_map(|run| run.chunks(512)) {
            history::apply(&tree, batch)?;
        }
        let compacted = Arc::new(AtomicU64::new(history::stored_compacted(&tree)?));
        let published = Arc::new(Mutex::new(Published { revision, events: broadcast::channel(WATCH_BUFFER).0 }));
        let (checkpoints, sealed) = mpsc::unbounded_channel();
        for segment in old {
            // The receiver is in this function still.
            drop(checkpoints.send(segment));
        }
        let checkpointer = spawn("store-checkpoint", {
            let (db, dir) = (db.clone(), dir.join("sled"));
            move || checkpoint(&db, &dir, sealed)
        })?;
        let (requests, queue) = mpsc::channel(1024);
        let writer = Writer {
            tree: tree.clone(),
            wal,
            revision,
            published: published.clone(),
            checkpoints,
            dir: dir.to_owned(),
            reserve: options.reserve,
            broken: None,
        };
        let writer = spawn("store-writer", move || writer.run(queue))?;
        let (stop, stopped) = std::sync::mpsc::channel();
        let compactor = spawn("store-compact", {
            let (tree, compacted, published) = (tree.clone(), compacted.clone(), published.clone());
            move || compact_regularly(&tree, &compacted, &published, &options, &stopped)
        })?;
        Ok(Self {
            tree,
            db,
            requests: Some(requests),
            published,
            compacted,
            stop: Some(stop),
            threads: vec![writer, checkpointer, compactor],
            _lock: lock,
        })
    }

    async fn write(&self, key: &str, operation: Operation) -> Result<(KeyValue, Revision)> {
        let stopped = || StoreError::Engine {
            doing: format!("writing {key}"),
            detail: "the store has stopped; restart the server".to_owned(),
        };
        let (reply, answer) = oneshot::channel();
        let request = Request { key: key.to_owned(), operation, reply };
        let queue = self.requests.as_ref().ok_or_else(stopped)?;
        queue.send(request).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// The revision to read at: checked against the past and the future.
    fn read_at(&self, at: Option<Revision>) -> Result<Revision> {
        let current = self.published.lock().revision;
        match at {
            None => Ok(current),
            Some(requested) if requested > current => Err(StoreError::FutureRevision { requested, current }),
            Some(requested) => self.not_compacted(requested).map(|()| requested),
        }
    }

    fn not_compacted(&self, requested: Revision) -> Result<()> {
        let compacted = self.compacted.load(Ordering::Acquire);
        if requested < compacted { Err(StoreError::Compacted { requested, compacted }) } else { Ok(()) }
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        self.requests = None;
        self.stop = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked; the log will be replayed at the next start");
            }
        }
        if let Err(error) = self.db.flush() {
            tracing::warn!(%error, "sled was not flushed at the end; the log will be replayed");
        }
    }
}

#[async_trait]
impl Store for SledStore {
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<(Option<KeyValue>, Revision)> {
        let revision = self.read_at(at)?;
        let value = history::get(&self.tree, key, revision)?;
        // A compaction that overtook the read may have dropped what it needed.
        match self.not_compacted(revision) {
            Ok(()) => Ok((value, revision)),
            Err(_) if at.is_none() => self.get(key, None).await,
            Err(error) => Err(error),
        }
    }

    async fn list(&self, request: ListRequest) -> Result<Listing> {
        loop {
            let revision = self.read_at(request.at)?;
            let (tree, r) = (self.tree.clone(), request.clone());
            let listing = tokio::task::spawn_blocking(move || {
                history::list(&tree, &r.prefix, r.start_after.as_deref(), r.limit, revision)
            })
            .await
            .map_err(|e| StoreError::Engine { doing: "listing keys".to_owned(), detail: e.to_string() })??;
            match self.not_compacted(revision) {
                Ok(()) => return Ok(listing),
                Err(_) if request.at.is_none() => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn create(&self, key: &str, value: Bytes) -> Result<KeyValue> {
        self.write(key, Operation::Create { value }).await.map(|(kv, _)| kv)
    }

    async fn update(&self, key: &str, value: Bytes, expected: Revision) -> Result<KeyValue> {
        self.write(key, Operation::Update { value, expected }).await.map(|(kv, _)| kv)
    }

    async fn delete(&self, key: &str, expected: Option<Revision>) -> Result<(KeyValue, Revision)> {
        self.write(key, Operation::Delete { expected }).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream> {
        let (live, backlog_end) = {
            let published = self.published.lock();
            (published.events.subscribe(), published.revision)
        };
        if after > backlog_end {
            return Err(StoreError::FutureRevision { requested: after, current: backlog_end });
        }
        self.not_compacted(after)?;
        let watcher = Watcher {
            tree: self.tree.clone(),
            compacted: self.compacted.clone(),
            published: Arc::downgrade(&self.published),
            prefix: prefix.to_owned(),
            live,
            seen: after,
            backlog_end,
            ready: VecDeque::new(),
        };
        Ok(Box::pin(stream::unfold(Some(watcher), |watcher| async {
            let mut watcher = watcher?;
            match watcher.next().await {
                Some(Ok(event)) => Some((Ok(event), Some(watcher))),
                Some(Err(error)) => Some((Err(error), None)),
                None => None,
            }
        })))
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        let current = self.published.lock().revision;
        if revision > current {
            return Err(StoreError::FutureRevision { requested: revision, current });
        }
        let (tree, compacted) = (self.tree.clone(), self.compacted.clone());
        tokio::task::spawn_blocking(move || compact_to(&tree, &compacted, revision))
            .await
            .map_err(|e| StoreError::Engine { doing: "compacting".to_owned(), detail: e.to_string() })?
    }

    async fn revision(&self) -> Result<Revision> {
        Ok(self.published.lock().revision)
    }

    async fn compacted(&self) -> Result<Revision> {
        Ok(self.compacted.load(Ordering::Acquire))
    }
}

/// One watch: first the backlog from the log, then live groups, each event once.
struct Watcher {
    tree: Tree,
    compacted: Arc<AtomicU64>,
    published: std::sync::Weak<Mutex<Published>>,
    prefix: String,
    live: broadcast::Receiver<Arc<Vec<WatchEvent>>>,
    seen: Revision,
    backlog_end: Revision,
    ready: VecDeque<WatchEvent>,
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<WatchEvent>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.seen < self.backlog_end {
                if let Err(error) = self.read_backlog() {
                    return Some(Err(error));
                }
                continue;
            }
            match tokio::time::timeout(PROGRESS_EVERY, self.live.recv()).await {
                Err(_) => {
                    // Read before the queue is looked at: everything up to here is either delivered or queued.
                    let revision = self.published.upgrade()?.lock().revision;
                    if self.live.is_empty() && revision >= self.seen {
                        self.seen = revision;
                        return Some(Ok(WatchEvent::Progress(revision)));
                    }
                }
                Ok(Ok(group)) => self.take_group(&group),
                Ok(Err(RecvError::Lagged(_))) => {
                    let compacted = self.published.upgrade()?.lock().revision;
                    return Some(Err(StoreError::Compacted { requested: self.seen, compacted }));
                }
                Ok(Err(RecvError::Closed)) => return None,
            }
        }
    }

    fn take_group(&mut self, group: &[WatchEvent]) {
        for event in group {
            let (key, revision) = match event {
                WatchEvent::Put { kv, .. } => (&kv.key, kv.mod_revision),
                WatchEvent::Delete { prev, revision } => (&prev.key, *revision),
                WatchEvent::Progress(_) => continue,
            };
            if revision > self.seen {
                self.seen = revision;
                if key.starts_with(&self.prefix) {
                    self.ready.push_back(event.clone());
                }
            }
        }
    }

    fn read_backlog(&mut self) -> Result<()> {
        let from = self.seen;
        let (changes, last) = history::changes(&self.tree, &self.prefix, from, self.backlog_end, BACKLOG_CHUNK)?;
        let compacted = self.compacted.load(Ordering::Acquire);
        if from < compacted {
            return Err(StoreError::Compacted { requested: from, compacted });
        }
        self.seen = if last == from { self.backlog_end } else { last };
        self.ready.extend(changes.into_iter().filter_map(|(revision, _, new, prev)| match (new, prev) {
            (Some(kv), prev) => Some(WatchEvent::Put { kv, prev }),
            (None, Some(prev)) => Some(WatchEvent::Delete { prev, revision }),
            (None, None) => None,
        }));
        Ok(())
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|e| StoreError::Engine { doing: format!("starting the thread {name}"), detail: e.to_string() })
}

/// Takes the folder's lock and leaves our process id in it for whoever meets it.
fn lock(dir: &Path) -> Result<Flock<File>> {
    let path = dir.join("lock");
    let locked = |detail: String| StoreError::Locked { path: dir.display().to_string(), detail };
    let begin = Instant::now();
    loop {
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.map_err(|e| locked(e.to_string()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                let wrote = lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id()));
                wrote.map_err(|e| locked(e.to_string()))?;
                return Ok(lock);
            }
            Err(_) if begin.elapsed() < LOCK_PATIENCE => std::thread::sleep(Duration::from_millis(50)),
            Err((_, error)) => {
                let holder = fs::read_to_string(&path).unwrap_or_default();
                return Err(locked(format!("process {} holds it ({error}); stop it first", holder.trim())));
            }
        }
    }
}

/// Opens sled, whose own lock may be held for a moment by what has the folder's no more: a former owner that ends, or a
/// child of this process that is not another program yet and has all of its files.
fn open_sled(dir: &Path, cache: u64) -> Result<sled::Db> {
    let config = sled::Config::new().path(dir.join("sled")).cache_capacity(cache).flush_every_ms(Some(1000));
    // It tells of that in words only.
    let is_held = |error: &sled::Error| error.to_string().contains("could not acquire lock");
    let begin = Instant::now();
    loop {
        match config.open() {
            Ok(db) => return Ok(db),
            Err(error) if is_held(&error) && begin.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => {
                let doing = format!("opening sled in {}", dir.display());
                return Err(StoreError::Engine { doing, detail: error.to_string() });
            }
        }
    }
}

/// Makes sled durable, then removes the log segments it has taken over.
fn checkpoint(db: &sled::Db, dir: &Path, mut sealed: mpsc::UnboundedReceiver<Sealed>) {
    while let Some(Sealed(first)) = sealed.blocking_recv() {
        let mut segments: Vec<PathBuf> = vec![first];
        while let Ok(Sealed(next)) = sealed.try_recv() {
            segments.push(next);
        }
        let flushed = db.flush().map_err(|e| e.to_string()).and_then(|_| sync_tree(dir).map_err(|e| e.to_string()));
        match flushed {
            Err(error) => tracing::warn!(error, "checkpoint failed; the log is kept and replayed at the next start"),
            Ok(()) => {
                for path in segments {
                    if let Err(error) = fs::remove_file(&path) {
                        tracing::warn!(%error, path = %path.display(), "an old log segment was not removed");
                    }
                }
            }
        }
    }
}

/// `fsync` of every file below a folder, and the folder.
fn sync_tree(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match path.is_dir() {
            true => sync_tree(&path)?,
            // sled replaces its snapshot files: one that is gone needs no sync.
            false => match File::open(&path) {
                Ok(file) => file.sync_all()?,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            },
        }
    }
    File::open(dir)?.sync_all()
}

fn compact_to(tree: &Tree, compacted: &AtomicU64, revision: Revision) -> Result<()> {
    // Readers must know before anything disappears.
    if compacted.fetch_max(revision, Ordering::AcqRel) >= revision {
        return Ok(());
    }
    history::mark_compacted(tree, revision)?;
    history::compact(tree, revision)
}

/// Keeps history bounded by time and by count, until the store is dropped.
fn compact_regularly(
    tree: &Tree,
    compacted: &AtomicU64,
    published: &Mutex<Published>,
    options: &SledOptions,
    stopped: &std::sync::mpsc::Receiver<()>,
) {
    let mut marks: VecDeque<(Instant, Revision)> = VecDeque::new();
    let step = (options.history / 10).clamp(Duration::from_millis(100), Duration::from_secs(30));
    let mut waited = Duration::ZERO;
    let nap = Duration::from_millis(500);
    while stopped.recv_timeout(nap.min(step)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
        let revision = published.lock().revision;
        waited += nap.min(step);
        let floor = revision.saturating_sub(options.max_history);
        let too_many = floor > compacted.load(Ordering::Acquire) + options.max_history / 10;
        if waited < step && !too_many {
            continue;
        }
        waited = Duration::ZERO;
        marks.push_back((Instant::now(), revision));
        let mut target = floor;
        while let Some((when, old)) = marks.front()
            && when.elapsed() >= options.history
        {
            target = target.max(*old);
            marks.pop_front();
        }
        if target > compacted.load(Ordering::Acquire)
            && let Err(error) = compact_to(tree, compacted, target)
        {
            tracing::warn!(%error, "compaction failed; it is tried again");
        }
    }
}
