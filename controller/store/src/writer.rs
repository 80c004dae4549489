//! The one writer: a thread that takes all queued writes at once, checks each against what is there, logs them in one
//! synced batch, applies them to sled, and only then acknowledges them and shows them to readers and watchers.
//!
//! In: [`Request`]s. Out: acknowledgements, and [`WatchEvent`]s in revision order on a broadcast channel.

use crate::wal::{Record, Sealed, Wal};
use crate::{KeyValue, Result, Revision, StoreError, WatchEvent, history};
use bytes::Bytes;
use parking_lot::Mutex;
use sled::Tree;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{broadcast, mpsc, oneshot};

/// A segment is closed, and sled made durable, after this many bytes.
const SEGMENT_BYTES: u64 = 16 << 20;
/// At most this many writes share a sync.
const MAX_GROUP: usize = 512;

/// What is asked of the writer.
pub(crate) enum Operation {
    Create { value: Bytes },
    Update { value: Bytes, expected: Revision },
    Delete { expected: Option<Revision> },
}

/// A write, and where its acknowledgement goes: the new (for a deletion: the last) value and the revision.
pub(crate) struct Request {
    pub key: String,
    pub operation: Operation,
    pub reply: oneshot::Sender<Result<(KeyValue, Revision)>>,
}

/// What readers may see. The lock is held while a group is published, so that a watcher that subscribes under it
/// misses nothing and sees nothing twice.
pub(crate) struct Published {
    pub revision: Revision,
    pub events: broadcast::Sender<Arc<Vec<WatchEvent>>>,
}

/// The writer's state; [`Writer::run`] is its thread.
pub(crate) struct Writer {
    pub tree: Tree,
    pub wal: Wal,
    pub revision: Revision,
    pub published: Arc<Mutex<Published>>,
    pub checkpoints: mpsc::UnboundedSender<Sealed>,
    pub dir: PathBuf,
    pub reserve: u64,
    /// Set when the log holds a batch that sled refused: what is in memory is no longer what a restart would find, so
    /// nothing more is written until then.
    pub broken: Option<StoreError>,
}

/// A write that passed its check, waiting for the sync.
struct Accepted {
    reply: oneshot::Sender<Result<(KeyValue, Revision)>>,
    answer: KeyValue,
    revision: Revision,
}

impl Writer {
    /// Serves requests until every sender is gone.
    pub fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(first) = requests.blocking_recv() {
            let mut group = vec![first];
            while group.len() < MAX_GROUP
                && let Ok(next) = requests.try_recv()
            {
                group.push(next);
            }
            self.commit(group);
            if self.wal.len() > SEGMENT_BYTES {
                self.rotate();
            }
        }
    }

    fn commit(&mut self, group: Vec<Request>) {
        let mut records = Vec::with_capacity(group.len());
        let mut events = Vec::with_capacity(group.len());
        let mut accepted = Vec::with_capacity(group.len());
        // What this group has written so far, by key.
        let mut overlay: HashMap<String, Option<KeyValue>> = HashMap::new();
        let mut revision = self.revision;
        for request in group {
            let current = match overlay.get(&request.key) {
                Some(kv) => Ok(kv.clone()),
                None => history::get(&self.tree, &request.key, Revision::MAX),
            };
            match current.and_then(|c| check(&request.key, &request.operation, c, revision + 1)) {
                Err(error) => drop(request.reply.send(Err(error))),
                Ok((record, event)) => {
                    revision += 1;
                    let new = match &event {
                        WatchEvent::Put { kv, .. } => Some(kv.clone()),
                        _ => None,
                    };
                    let answer = match &event {
                        WatchEvent::Delete { prev, .. } => prev.clone(),
                        WatchEvent::Put { kv, .. } => kv.clone(),
                        WatchEvent::Progress(_) => continue,
                    };
                    overlay.insert(request.key, new);
                    accepted.push(Accepted { reply: request.reply, answer, revision });
                    records.push(record);
                    events.push(event);
                }
            }
        }
        if records.is_empty() {
            return;
        }
        match self.persist(&records) {
            Err(error) => {
                tracing::error!(%error, writes = records.len(), "writes refused");
                for a in accepted {
                    drop(a.reply.send(Err(error.clone())));
                }
            }
            Ok(()) => {
                self.revision = revision;
                {
                    let mut published = self.published.lock();
                    published.revision = revision;
                    // No receiver is no error: nobody watches.
                    let _ = published.events.send(Arc::new(events));
                }
                for a in accepted {
                    drop(a.reply.send(Ok((a.answer, a.revision))));
                }
            }
        }
    }

    fn persist(&mut self, records: &[Record]) -> Result<()> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let full = || StoreError::DiskFull { path: self.dir.display().to_string() };
        // sled cannot go on after it met a full disk, so it must never meet one: the reserve is its room.
        if free_bytes(&self.dir).is_some_and(|free| free < self.reserve) {
            return Err(full());
        }
        self.wal.append(records).map_err(|e| match e.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => full(),
            _ => StoreError::Engine { doing: "appending to the write-ahead log".to_owned(), detail: e.to_string() },
        })?;
        history::apply(&self.tree, records).inspect_err(|error| self.broken = Some(error.clone()))
    }

    fn rotate(&mut self) {
        match self.wal.rotate(self.revision + 1) {
            // The checkpointer lives as long as the store.
            Ok(sealed) => drop(self.checkpoints.send(sealed)),
            Err(error) => tracing::warn!(%error, "the write-ahead log goes on in its old segment"),
        }
    }
}

/// Compare-and-swap: the record to log and the event to publish, or why not.
fn check(
    key: &str,
    operation: &Operation,
    current: Option<KeyValue>,
    revision: Revision,
) -> Result<(Record, WatchEvent)> {
    let record =
        |value: Option<Bytes>, create_revision| Record { revision, key: key.to_owned(), value, create_revision };
    let put = |value: &Bytes, create_revision, prev| {
        let kv = KeyValue { key: key.to_owned(), value: value.clone(), create_revision, mod_revision: revision };
        (record(Some(value.clone()), create_revision), WatchEvent::Put { kv, prev })
    };
    let expect = |current: KeyValue, expected: Revision| {
        if current.mod_revision == expected {
            return Ok(current);
        }
        Err(StoreError::Conflict { key: key.to_owned(), expected, current: Box::new(current) })
    };
    let missing = || StoreError::NotFound { key: key.to_owned() };
    match operation {
        Operation::Create { value } => match current {
            Some(_) => Err(StoreError::AlreadyExists { key: key.to_owned() }),
            None => Ok(put(value, revision, None)),
        },
        Operation::Update { value, expected } => {
            let prev = expect(current.ok_or_else(missing)?, *expected)?;
            Ok(put(value, prev.create_revision, Some(prev)))
        }
        Operation::Delete { expected } => {
            let current = current.ok_or_else(missing)?;
            let prev = match expected {
                Some(expected) => expect(current, *expected)?,
                None => current,
            };
            Ok((record(None, prev.create_revision), WatchEvent::Delete { prev, revision }))
        }
    }
}

/// Bytes an unprivileged writer could still use on the file system of `dir`.
fn free_bytes(dir: &std::path::Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(dir).ok()?;
    Some(stat.blocks_available().saturating_mul(stat.fragment_size()))
}
