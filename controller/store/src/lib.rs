//! A revisioned key-value store with etcd's semantics behind one trait.
//!
//! In: compare-and-swap writes and range reads on string keys. Out: values stamped with the revision that wrote
//! them, and an ordered, gap-free log of changes that can be watched from any revision not yet compacted.
//! The API server is the only user; [`offline`] is for the operator of a server that is stopped. There is one engine,
//! [`SledStore`] (embedded). The trait asks for nothing that etcd does not have, so that another can follow; one
//! conformance suite (`tests/it/conformance.rs`) says what is promised.
//!
//! [`disk`] is what is on the device and [`engine`] what runs: a writer, a housekeeper and readers over an index of
//! keys in memory and the values in sled.

mod disk;
mod engine;
mod error;
mod health;
pub mod offline;

pub use engine::{SledOptions, SledStore};
pub use error::{Damage, Result, StoreError};
pub use health::Health;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use std::time::Duration;

/// A point in the history of the whole store. Starts at 1 for an empty store; every successful write takes the
/// next one, so there are no gaps.
pub type Revision = u64;

/// A value as it was written at `mod_revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The full key, for example `/registry/pods/default/web-0`.
    pub key: String,
    /// The opaque value.
    pub value: Bytes,
    /// Revision of the write that created the key (a re-created key starts over).
    pub create_revision: Revision,
    /// Revision of the last write to the key: what compare-and-swap compares.
    pub mod_revision: Revision,
}

/// What [`Store::list`] is asked for.
#[derive(Debug, Clone, Default)]
pub struct ListRequest {
    /// Only keys that start with this (callers end it with `/`).
    pub prefix: String,
    /// Continue strictly after this key.
    pub start_after: Option<String>,
    /// At most this many items; 0 means all.
    pub limit: usize,
    /// Read as of this revision instead of the newest.
    pub at: Option<Revision>,
}

/// A consistent page of keys in ascending key order.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The items of this page.
    pub items: Vec<KeyValue>,
    /// The revision the page was read at. Pass it as [`ListRequest::at`] for the next page.
    pub revision: Revision,
    /// How many more keys of the prefix follow this page at that revision.
    pub remaining: usize,
}

/// A change, or a sign of progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// The key was created (`prev` is `None`) or updated.
    Put {
        /// The new value; its `mod_revision` is the event's revision.
        kv: KeyValue,
        /// The value before, for selector transitions.
        prev: Option<KeyValue>,
    },
    /// The key was deleted at `revision`.
    Delete {
        /// The last value.
        prev: KeyValue,
        /// The event's revision.
        revision: Revision,
    },
    /// Everything up to and including this revision has been delivered.
    Progress(Revision),
}

/// An ordered stream of changes. Ends with an error when the watcher was too slow ([`StoreError::Compacted`]):
/// the caller lists again. A stream holds no events for its reader, so a slow one costs no memory.
pub type WatchStream = BoxStream<'static, Result<WatchEvent>>;

/// All keys of a prefix at one revision, page by page.
pub struct Streamed {
    /// The revision everything is read at.
    pub revision: Revision,
    /// Pages in ascending key order, none empty. They can be read although the revision is compacted meanwhile.
    pub pages: BoxStream<'static, Result<Vec<KeyValue>>>,
}

/// The whole store at one revision, as bytes that [`offline::restore`] makes a store of.
pub struct Snapshot {
    /// The revision.
    pub revision: Revision,
    /// Its bytes. Only a stream that ends without an error is whole; [`offline::verify`] checks it.
    pub bytes: BoxStream<'static, Result<Bytes>>,
}

/// What a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Its revision.
    pub revision: Revision,
    /// The oldest revision that can be read from it.
    pub compacted: Revision,
    /// Number of keys, with those whose deletion is not compacted yet.
    pub keys: u64,
    /// Bytes of all values.
    pub bytes: u64,
}

/// A write, and what it expects to find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Writes a key that must not exist.
    Create {
        /// The key.
        key: String,
        /// Its value.
        value: Bytes,
        /// After how long without another write it goes by itself (a lease of its own, in etcd's words).
        ttl: Option<Duration>,
    },
    /// Replaces a key that must be at a revision.
    Update {
        /// The key.
        key: String,
        /// Its new value.
        value: Bytes,
        /// As in [`Write::Create`], from this write on.
        ttl: Option<Duration>,
        /// Its modification revision.
        expected: Revision,
    },
    /// Deletes a key, when `expected` is given only at that modification revision.
    Delete {
        /// The key.
        key: String,
        /// Its modification revision.
        expected: Option<Revision>,
    },
}

impl Write {
    /// The key.
    pub fn key(&self) -> &str {
        match self {
            Self::Create { key, .. } | Self::Update { key, .. } | Self::Delete { key, .. } => key,
        }
    }

    /// Bytes of key and value.
    pub fn bytes(&self) -> usize {
        let value = match self {
            Self::Create { value, .. } | Self::Update { value, .. } => value.len(),
            Self::Delete { .. } => 0,
        };
        self.key().len() + value
    }
}

/// At most so many writes are one transaction, as in etcd.
pub const MAX_WRITES: usize = 128;
/// Keys and values of a transaction are at most this many bytes, as in etcd (1.5 MiB).
pub const MAX_REQUEST: usize = 3 << 19;
/// A key is at most this many bytes.
pub const MAX_KEY: usize = 4096;
/// What lies between a caller and the engine may make a value longer by so many bytes: who wants to be sure that a value
/// fits keeps this below [`MAX_REQUEST`].
pub const MAX_ADDED: usize = 256;

/// The store's contract. Reads see every acknowledged write. A write is acknowledged only after it has been synced
/// to the device.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The value of `key` (at the newest revision or at `at`), and the revision it was read at.
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<(Option<KeyValue>, Revision)>;

    /// One page of the keys under a prefix, all read at one revision.
    async fn list(&self, request: ListRequest) -> Result<Listing>;

    /// How many keys are under a prefix, and the revision they were counted at.
    async fn count(&self, prefix: &str) -> Result<(usize, Revision)>;

    /// All keys under a prefix, page by page, at one revision.
    async fn stream(&self, prefix: &str) -> Result<Streamed>;

    /// Writes several keys, each one once: all of them or none, visible together. The answer has the new value of each
    /// (of a deletion the last one) and the revision of its write, in the same order. Revisions of one transaction
    /// ascend and need not differ.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`], [`StoreError::NotFound`], [`StoreError::Conflict`] when a key is not as expected;
    /// [`StoreError::TooLarge`] beyond [`MAX_REQUEST`] and [`MAX_KEY`]; [`StoreError::InvalidTransaction`]. After
    /// [`StoreError::OutcomeUnknown`] the write may have happened; after any other error it has not.
    async fn write(&self, writes: Vec<Write>) -> Result<Vec<(KeyValue, Revision)>>;

    /// Writes a key that must not exist ([`StoreError::AlreadyExists`] otherwise).
    async fn create(&self, key: &str, value: Bytes) -> Result<KeyValue> {
        self.write_one(Write::Create { key: key.to_owned(), value, ttl: None }).await.map(|(kv, _)| kv)
    }

    /// Replaces a key whose modification revision must be `expected` ([`StoreError::Conflict`] otherwise,
    /// [`StoreError::NotFound`] when it is gone).
    async fn update(&self, key: &str, value: Bytes, expected: Revision) -> Result<KeyValue> {
        self.write_one(Write::Update { key: key.to_owned(), value, ttl: None, expected }).await.map(|(kv, _)| kv)
    }

    /// Deletes a key, when `expected` is given only at that modification revision. Returns the last value and the
    /// revision of the deletion.
    async fn delete(&self, key: &str, expected: Option<Revision>) -> Result<(KeyValue, Revision)> {
        self.write_one(Write::Delete { key: key.to_owned(), expected }).await
    }

    /// A transaction of one write.
    async fn write_one(&self, write: Write) -> Result<(KeyValue, Revision)> {
        let doing = format!("writing {}", write.key());
        let answer = self.write(vec![write]).await?.pop();
        answer.ok_or_else(|| StoreError::OutcomeUnknown { doing, detail: "the engine gave no answer".to_owned() })
    }

    /// All changes under `prefix` with a revision greater than `after`, in order, without gaps, for ever.
    /// [`StoreError::Compacted`] when `after` lies before the compacted revision. [`WatchEvent::Progress`] comes at
    /// least every few seconds while idle.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream>;

    /// Asks every watch for a [`WatchEvent::Progress`] now.
    async fn request_progress(&self) -> Result<()>;

    /// Forgets history before `revision`: older reads and watches answer [`StoreError::Compacted`], also after a
    /// restart. The engine compacts by itself; of several servers on one store, one does.
    async fn compact(&self, revision: Revision) -> Result<()>;

    /// Leaves nothing in the store's files of values that were replaced or deleted before `upto`: compacts to it, and makes
    /// anew what holds values. What a read holds at that time goes with the next call, or when the engine gets to it.
    async fn scrub(&self, upto: Revision) -> Result<()> {
        self.compact(upto).await
    }

    /// The whole store at its newest revision, for a backup.
    async fn snapshot(&self) -> Result<Snapshot>;

    /// Whether the store can do its work, without waiting for anything.
    fn health(&self) -> Health;

    /// Its metrics, under etcd's names where etcd has one.
    fn collectors(&self) -> Vec<Box<dyn prometheus::core::Collector>>;

    /// The newest revision.
    async fn revision(&self) -> Result<Revision>;

    /// The revision history was last compacted at (0: never).
    async fn compacted(&self) -> Result<Revision>;
}
