//! Events into a file, one a line. In: lines. Out: a file and its backups ([`crate::rotate`]), without fsync.

use crate::auditor::{AuditError, Counted, Counts, Rarely};
use crate::queue::{Inbox, Queue, QueueLimits};
use crate::rotate::{Options, RotatingFile};
use bytes::Bytes;
use parking_lot::Mutex;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// So many bytes, and one event more, are written at once.
const WRITE: usize = 64 << 10;

/// Whether requests wait for their events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Never: a thread of its own writes them. What does not fit into the queue is lost, and counted.
    Batch,
    /// Until the event is handed to the kernel; errors are counted and told, and the request goes on.
    Blocking,
    /// As `Blocking`, but a request whose first event (`RequestReceived`) is not written is refused.
    BlockingStrict,
}

/// The log backend.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// The file; its folder is made with mode 0700 where it is missing.
    pub path: PathBuf,
    /// Whether requests wait.
    pub mode: Mode,
    /// When it is rotated and what is kept.
    pub rotation: Options,
    /// In mode `Batch`: what may wait.
    pub queue: QueueLimits,
}

impl LogConfig {
    /// Mode `Batch`, 100 MiB and ten backups.
    pub fn new(path: PathBuf) -> Self {
        Self { path, mode: Mode::Batch, rotation: Options::default(), queue: QueueLimits::default() }
    }
}

/// The running backend.
pub(crate) struct Log {
    kind: Kind,
    out: Arc<Out>,
}

enum Kind {
    Batch { queue: Queue, ended: Mutex<Option<oneshot::Receiver<()>>> },
    Blocking { strict: bool },
}

/// The file and what is counted of it.
struct Out {
    file: Mutex<RotatingFile>,
    counts: Counts,
    told: Rarely,
}

impl Log {
    pub fn start(config: LogConfig) -> Result<Self, AuditError> {
        let failed = |source| AuditError::Log { path: config.path.clone(), source };
        let file = RotatingFile::open(&config.path, config.rotation).map_err(failed)?;
        let out = Arc::new(Out { file: Mutex::new(file), counts: Counts::default(), told: Rarely::default() });
        if config.mode != Mode::Batch {
            return Ok(Self { kind: Kind::Blocking { strict: config.mode == Mode::BlockingStrict }, out });
        }
        let (queue, inbox) = Queue::new(config.queue);
        let (end, ended) = oneshot::channel();
        let worker = Arc::clone(&out);
        let run = move || {
            worker.work(inbox);
            // Nobody may wait for it.
            let _ = end.send(());
        };
        std::thread::Builder::new().name("audit-log".to_owned()).spawn(run).map_err(failed)?;
        Ok(Self { kind: Kind::Batch { queue, ended: Mutex::new(Some(ended)) }, out })
    }

    /// Takes an event; false when it is not stored and the request must not go on.
    pub fn take(&self, line: Bytes) -> bool {
        match &self.kind {
            Kind::Batch { queue, .. } => {
                if !queue.push(line) {
                    self.out.counts.overflowed.fetch_add(1, Relaxed);
                    if self.out.told.now() {
                        tracing::warn!("audit log: the queue is full or closed, events are lost");
                    }
                }
                true
            }
            Kind::Blocking { strict } => self.out.write(&line, 1) || !strict,
        }
    }

    pub fn figures(&self) -> Counted {
        self.out.counts.now()
    }

    /// Writes what waits, until the deadline; returns how many events are left.
    pub async fn stop(&self, deadline: Instant) -> u64 {
        let Kind::Batch { queue, ended } = &self.kind else { return 0 };
        queue.close();
        let Some(ended) = ended.lock().take() else { return 0 };
        if timeout_at(deadline, ended).await.is_ok() {
            return 0;
        }
        let left = queue.inside();
        self.out.counts.failed.fetch_add(left, Relaxed);
        tracing::warn!(events = left, "audit log: not all was written before the end");
        left
    }
}

impl Out {
    fn work(&self, mut inbox: Inbox) {
        let mut batch = Vec::with_capacity(2 * WRITE);
        while let Some(first) = inbox.wait() {
            batch.extend_from_slice(&first);
            let mut events = 1;
            while batch.len() < WRITE
                && let Some(line) = inbox.try_next()
            {
                batch.extend_from_slice(&line);
                events += 1;
            }
            self.write(&batch, events);
            inbox.done(events, batch.len());
            batch.clear();
            // One large event must not keep its memory.
            batch.shrink_to(2 * WRITE);
        }
    }

    fn write(&self, lines: &[u8], events: usize) -> bool {
        let mut file = self.file.lock();
        let written = file.write_all(lines);
        let rotation = file.take_error();
        drop(file);
        let count = if written.is_ok() { &self.counts.delivered } else { &self.counts.failed };
        count.fetch_add(events as u64, Relaxed);
        if (written.is_err() || rotation.is_some()) && self.told.now() {
            match (&written, rotation) {
                (Err(error), _) => tracing::error!(%error, events, "audit log: events are not written"),
                (_, Some(error)) => tracing::error!(%error, "audit log: not rotated"),
                _ => {}
            }
        }
        written.is_ok()
    }
}

#[cfg(test)]
impl Log {
    /// From now on the disk is full.
    pub fn fill_up(&self) {
        self.out.file.lock().fill_up();
    }

    /// While the guard lives, writing hangs.
    pub fn hold(&self) -> parking_lot::MutexGuard<'_, RotatingFile> {
        self.out.file.lock()
    }
}
