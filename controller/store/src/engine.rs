//! The embedded engine: a log and snapshots for durability, an index of keys in memory, the values in sled.
//!
//! In: the calls of the trait [`Store`]. Out: their answers. A write goes through the [`writer`]'s queue into the log;
//! reads look into the [`index`] and fetch values from memory or sled, on threads that may block.
//!
//! Why not sled alone: its `flush` calls `sync_file_range`, which does not reach the device, and it uses freed space
//! again before what replaced it is there. After a power cut it may have lost what it had for days (`tests/disk` shows
//! it). So the log and the snapshots are the truth, and sled is where values have room that memory has not.

#[cfg(test)]
mod engine_tests;
mod housekeeper;
mod index;
mod legacy;
pub(crate) mod open;
mod shared;
pub(crate) mod values;
mod watch;
mod writer;

use crate::disk::lock::Lock;
use crate::disk::log::Log;
use crate::disk::{keep_private, make_dir, snapshot};
use crate::health::Status;
use crate::{
    Health, KeyValue, ListRequest, Listing, Result, Revision, Snapshot, Store, StoreError, Streamed, Summary,
    WatchStream, Write,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream;
use housekeeper::{Housekeeper, Wake};
use parking_lot::Mutex;
use shared::Shared;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use writer::{Request, Writer};

/// How the embedded engine is set up.
#[derive(Debug, Clone)]
pub struct SledOptions {
    /// History is kept at least this long. Default 5 minutes.
    pub history: Duration,
    /// … but not when more than this many bytes were written in that time. Default 1 GiB.
    pub max_history_bytes: u64,
    /// A snapshot is written when the log is longer than this, and than the last snapshot. Default 64 MiB.
    pub log: u64,
    /// Writes are refused when the disk has less room than this. Default 64 MiB.
    pub reserve: u64,
    /// sled's page cache in bytes. Default 32 MiB.
    pub cache: u64,
    /// How long a write waits for its turn, and then for the device, before it is answered with an error. Default 15 s.
    pub patience: Duration,
}

impl Default for SledOptions {
    fn default() -> Self {
        Self {
            history: Duration::from_secs(300),
            max_history_bytes: 1 << 30,
            log: 64 << 20,
            reserve: 64 << 20,
            cache: 32 << 20,
            patience: Duration::from_secs(15),
        }
    }
}

/// Writes that may wait for the writer.
const QUEUE: usize = 1024;
/// Pages of a stream that wait for their reader.
const PAGES: usize = 2;
/// How long a stream waits for its reader: it keeps history that is old.
const READER_PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 60 });
/// How long the end of the store waits for sled.
const LAST_FLUSH: Duration = Duration::from_secs(30);
/// How long the end of the store waits for reads.
const LAST_READS: Duration = Duration::from_secs(2);

/// The embedded store. Dropping the last handle stops its threads.
pub struct SledStore {
    shared: Arc<Shared>,
    log: Arc<Mutex<Log>>,
    options: SledOptions,
    /// `None` only while the store is being dropped: the writer ends when it is gone.
    requests: Option<mpsc::Sender<Request>>,
    threads: Vec<std::thread::JoinHandle<()>>,
    _lock: Lock,
}

impl SledStore {
    /// Opens or creates the store in `dir`: reads what is there and checks all of it. Blocks for the disk.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it, [`StoreError::Damaged`] when what is there is not what was
    /// written; then nothing was changed.
    pub fn open(dir: &Path, options: SledOptions) -> Result<Self> {
        make_dir(dir)?;
        let lock = Lock::take(dir)?;
        keep_private(dir);
        snapshot::remove_unfinished(dir);
        crate::disk::log::remove_unfinished(dir);
        legacy::migrate(dir)?;
        let truth = open::read(dir)?;
        let values = open::open_values(dir, &truth, &options)?;
        let log = open::open_log(dir, truth.log, truth.snapshot.as_ref().map(|(revision, _)| *revision))?;
        let status = Status::new()
            .map_err(|e| StoreError::Engine { doing: "making metrics".to_owned(), detail: e.to_string() })?;
        let snapshot_bytes = truth.snapshot.and_then(|(_, path)| path.metadata().ok()).map_or(0, |meta| meta.len());
        let (heal, woken) = std::sync::mpsc::channel();
        let state = (truth.index, truth.revision);
        let shared = Shared::new(dir.to_owned(), options.cache, state, values, truth.compacted, status, heal);
        let (shared, log) = (Arc::new(shared), Arc::new(Mutex::new(log)));
        let (requests, queue) = mpsc::channel(QUEUE);
        let writer = Writer {
            shared: shared.clone(),
            log: log.clone(),
            reserve: options.reserve,
            segment: options.log / 4,
            stuck: None,
        };
        let housekeeper = Housekeeper {
            shared: shared.clone(),
            log: log.clone(),
            options: options.clone(),
            requests: requests.downgrade(),
            snapshot_bytes,
        };
        let threads = vec![
            spawn("store-writer", move || writer.run(queue))?,
            spawn("store-keeper", move || housekeeper.run(&woken))?,
        ];
        Ok(Self { shared, log, options, requests: Some(requests), threads, _lock: lock })
    }

    async fn ask<T>(&self, what: &str, request: impl FnOnce(oneshot::Sender<Result<T>>) -> Request) -> Result<T> {
        let patience = self.options.patience;
        let stopped = || StoreError::Engine {
            doing: format!("writing {what}"),
            detail: "the store has stopped; restart the server".to_owned(),
        };
        let queue = self.requests.as_ref().ok_or_else(stopped)?;
        let begin = Instant::now();
        let permit = tokio::time::timeout(patience, queue.reserve()).await;
        let permit = permit
            .map_err(|_| StoreError::Overloaded { key: what.to_owned(), seconds: patience.as_secs() })?
            .map_err(|_| stopped())?;
        let (reply, answer) = oneshot::channel();
        permit.send(request(reply));
        let unknown = |detail: String| StoreError::OutcomeUnknown { doing: format!("writing {what}"), detail };
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(unknown("the store stopped meanwhile".to_owned())),
            Err(_) => Err(unknown(format!("the disk has not answered for {} s", begin.elapsed().as_secs()))),
        }
    }

    /// Runs a read where it may block.
    async fn read<T: Send + 'static>(
        &self,
        doing: &str,
        read: impl FnOnce(&Arc<Shared>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = self.shared.clone();
        let failed = |e: tokio::task::JoinError| StoreError::Engine { doing: doing.to_owned(), detail: e.to_string() };
        tokio::task::spawn_blocking(move || read(&shared)).await.map_err(failed)?
    }

    /// Writes a snapshot of what is there to `into`. Blocks.
    pub(crate) fn write_snapshot(&self, into: &mut dyn io::Write) -> Result<Summary> {
        write_snapshot(&self.shared, &self.shared.pin(None)?, into)
    }

    /// Compacts all there is. Blocks, also where a runtime is.
    pub(crate) fn forget_history(&self) -> Result<()> {
        let stopped = || StoreError::Engine {
            doing: "forgetting history".to_owned(),
            detail: "the store has stopped".to_owned(),
        };
        let (reply, answer) = oneshot::channel();
        let request = Request::Compact { revision: self.shared.revision(), reply };
        let queue = self.requests.as_ref().ok_or_else(stopped)?;
        let ask = || {
            queue.blocking_send(request).map_err(|_| stopped())?;
            answer.blocking_recv().map_err(|_| stopped())?
        };
        std::thread::scope(|scope| scope.spawn(ask).join().map_err(|_| stopped())?)
    }

    /// Writes a snapshot into the store's folder, so that the log before it can go. Blocks.
    pub(crate) fn save(&self) -> Result<()> {
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        let stopped = || StoreError::Engine {
            doing: "writing a snapshot".to_owned(),
            detail: "the store has stopped".to_owned(),
        };
        self.shared.heal.send(Wake::Save(reply)).map_err(|_| stopped())?;
        answer.recv().map_err(|_| stopped())?
    }

    #[cfg(test)]
    pub(crate) fn parts(&self) -> (Arc<Shared>, Arc<Mutex<Log>>) {
        (self.shared.clone(), self.log.clone())
    }

    /// Bytes of the log that no snapshot covers yet, without the segment that is being written.
    pub fn log_bytes(&self) -> u64 {
        self.log.lock().sealed_bytes()
    }

    /// Ends without what makes the next start quick, as a crash does.
    pub(crate) fn forget_values(&self) {
        drop(self.shared.close_values());
    }
}

fn write_snapshot(shared: &Arc<Shared>, pin: &shared::Pin, into: &mut dyn io::Write) -> Result<Summary> {
    let failed = |e: io::Error| StoreError::Engine { doing: "writing a snapshot".to_owned(), detail: e.to_string() };
    // Without history: what the pin does not see may be dropped meanwhile.
    let mut writer = snapshot::Writer::new(into, pin.revision, pin.revision).map_err(failed)?;
    shared.fill(pin, pin.revision, |revisions, key, value| writer.push(revisions, key, value).map_err(failed))?;
    writer.finish().map(|(_, summary)| summary).map_err(failed)
}

impl Drop for SledStore {
    fn drop(&mut self) {
        self.requests = None;
        self.shared.closing.store(true, Ordering::Release);
        // A housekeeper that has ended needs no word.
        let _ = self.shared.heal.send(Wake::Stop);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked; the log will be replayed at the next start");
            }
        }
        let Some(mut values) = self.shared.close_values() else { return };
        if !self.shared.state.read().overflow().is_empty() {
            return;
        }
        let begin = Instant::now();
        loop {
            match Arc::try_unwrap(values) {
                Ok(values) if values.has_failed() => return,
                Ok(values) => return close(values, self.shared.dir.clone(), self.shared.revision()),
                // Somebody reads still.
                Err(held) if begin.elapsed() < LAST_READS => values = held,
                Err(_) => return,
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Closes sled in a thread of its own: on a device that fails it may never come back.
fn close(values: values::Values, dir: std::path::PathBuf, revision: Revision) {
    let (done, closed) = std::sync::mpsc::sync_channel(1);
    let work = move || {
        let outcome = values.close(&dir, revision);
        // Nobody waits any more where this fails.
        let _ = done.send(outcome);
    };
    let outcome = spawn("store-close", work).and_then(|_| {
        closed
            .recv_timeout(LAST_FLUSH)
            .map_err(|e| StoreError::Engine { doing: "closing sled".to_owned(), detail: e.to_string() })?
    });
    if let Err(error) = outcome {
        tracing::warn!(%error, "sled was not closed in order; its values are made anew at the next start");
    }
}

/// A stream's next part; `None` at its end. A stream that stops without one was cut off.
type Part<T> = Option<Result<T>>;

/// Gives a part to a reader, as long as there is one that reads.
fn give<T>(shared: &Shared, into: &mpsc::Sender<Part<T>>, part: Part<T>) -> bool {
    let mut part = part;
    let begin = Instant::now();
    loop {
        match into.try_send(part) {
            Ok(()) => return true,
            Err(TrySendError::Closed(_)) => return false,
            Err(TrySendError::Full(back)) => part = back,
        }
        if begin.elapsed() > READER_PATIENCE || shared.closing.load(Ordering::Acquire) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Gives what is written to a stream, in pieces of about a megabyte.
struct Pieces {
    shared: Arc<Shared>,
    into: mpsc::Sender<Part<Bytes>>,
    buffer: Vec<u8>,
}

impl io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= 1 << 20 {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = Bytes::from(std::mem::take(&mut self.buffer));
        let given = give(&self.shared, &self.into, Some(Ok(piece)));
        given.then_some(()).ok_or_else(|| io::Error::new(io::ErrorKind::BrokenPipe, "nobody reads the snapshot"))
    }
}

fn stream_of<T: Send + 'static>(receiver: mpsc::Receiver<Part<T>>) -> stream::BoxStream<'static, Result<T>> {
    Box::pin(stream::unfold(Some(receiver), |receiver| async {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(Some(Ok(part))) => Some((Ok(part), Some(receiver))),
            Some(Some(Err(error))) => Some((Err(error), None)),
            Some(None) => None,
            None => {
                let detail = "it was not read for too long, or the store was closed".to_owned();
                Some((Err(StoreError::Engine { doing: "reading a stream".to_owned(), detail }), None))
            }
        }
    }))
}

#[async_trait]
impl Store for SledStore {
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<(Option<KeyValue>, Revision)> {
        let key = key.to_owned();
        self.read("reading a key", move |shared| shared.get(&key, at)).await
    }

    async fn list(&self, request: ListRequest) -> Result<Listing> {
        self.read("listing keys", move |shared| {
            let pin = shared.pin(request.at)?;
            let limit = if request.limit == 0 { usize::MAX } else { request.limit };
            let after = request.start_after.as_deref();
            let items = shared.page(&pin, &request.prefix, after, limit)?;
            let remaining = match items.last().filter(|_| items.len() == limit) {
                Some(last) => shared.count(&pin, &request.prefix, Some(&last.key)),
                None => 0,
            };
            Ok(Listing { items, revision: pin.revision, remaining })
        })
        .await
    }

    async fn count(&self, prefix: &str) -> Result<(usize, Revision)> {
        let prefix = prefix.to_owned();
        self.read("counting keys", move |shared| {
            let pin = shared.pin(None)?;
            Ok((shared.count(&pin, &prefix, None), pin.revision))
        })
        .await
    }

    async fn stream(&self, prefix: &str) -> Result<Streamed> {
        let pin = self.shared.pin(None)?;
        let (revision, prefix, shared) = (pin.revision, prefix.to_owned(), self.shared.clone());
        let (into, pages) = mpsc::channel(PAGES);
        tokio::task::spawn_blocking(move || {
            let mut cut_off = false;
            let read = shared.pages(&pin, &prefix, |page| {
                cut_off = !give(&shared, &into, Some(Ok(page)));
                !cut_off
            });
            if !cut_off {
                give(&shared, &into, read.err().map(Err));
            }
        });
        Ok(Streamed { revision, pages: stream_of(pages) })
    }

    async fn write(&self, writes: Vec<Write>) -> Result<Vec<(KeyValue, Revision)>> {
        writer::check(&writes)?;
        let key = writes.first().map(|w| w.key().to_owned()).unwrap_or_default();
        self.ask(&key, |reply| Request::Write { writes, reply }).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream> {
        watch::stream(&self.shared, prefix, after)
    }

    async fn request_progress(&self) -> Result<()> {
        self.shared.signal.send_modify(|signal| signal.asked += 1);
        Ok(())
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        let current = self.shared.revision();
        if revision > current {
            return Err(StoreError::FutureRevision { requested: revision, current });
        }
        self.ask("a compaction", |reply| Request::Compact { revision, reply }).await
    }

    async fn scrub(&self, upto: Revision) -> Result<()> {
        self.compact(upto).await?;
        let wake = self.shared.heal.clone();
        let failed = |detail: &str| StoreError::Engine {
            doing: "removing old values from the store's files".to_owned(),
            detail: detail.to_owned(),
        };
        let work = move || {
            let (reply, answer) = std::sync::mpsc::sync_channel(1);
            wake.send(Wake::Scrub(reply)).map_err(|_| failed("the store has stopped"))?;
            answer.recv().map_err(|_| failed("the store has stopped"))?
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| failed(&e.to_string()))?
    }

    async fn revision(&self) -> Result<Revision> {
        Ok(self.shared.revision())
    }

    async fn compacted(&self) -> Result<Revision> {
        Ok(self.shared.compacted())
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        let pin = self.shared.pin(None)?;
        let (revision, shared) = (pin.revision, self.shared.clone());
        let (into, bytes) = mpsc::channel(PAGES);
        tokio::task::spawn_blocking(move || {
            let mut pieces = Pieces { shared: shared.clone(), into: into.clone(), buffer: Vec::new() };
            let written = write_snapshot(&shared, &pin, &mut pieces);
            give(&shared, &into, written.err().map(Err));
        });
        Ok(Snapshot { revision, bytes: stream_of(bytes) })
    }

    fn health(&self) -> Health {
        self.shared.status.health()
    }

    fn collectors(&self) -> Vec<Box<dyn prometheus::core::Collector>> {
        self.shared.status.collectors()
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|e| StoreError::Engine { doing: format!("starting the thread {name}"), detail: e.to_string() })
}
