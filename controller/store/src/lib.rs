//! A revisioned key-value store with etcd's semantics behind one trait.
//!
//! In: compare-and-swap writes and range reads on string keys. Out: values stamped with the revision that wrote
//! them, and an ordered, gap-free log of changes that can be watched from any revision not yet compacted.
//! The API server is the only user. Two engines are foreseen: `sled` (embedded) and etcd (several servers);
//! one conformance suite holds both to the same promises.

mod engine;
mod error;
mod history;
mod wal;
mod writer;

pub use engine::{SledOptions, SledStore};
pub use error::{Result, StoreError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

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
/// the caller lists again.
pub type WatchStream = BoxStream<'static, Result<WatchEvent>>;

/// The store's contract. Reads see every acknowledged write. A write is acknowledged only after it has been synced
/// to the device.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The value of `key` (at the newest revision or at `at`), and the revision it was read at.
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<(Option<KeyValue>, Revision)>;

    /// One page of the keys under a prefix, all read at one revision.
    async fn list(&self, request: ListRequest) -> Result<Listing>;

    /// Writes a key that must not exist ([`StoreError::AlreadyExists`] otherwise).
    async fn create(&self, key: &str, value: Bytes) -> Result<KeyValue>;

    /// Replaces a key whose modification revision must be `expected` ([`StoreError::Conflict`] otherwise,
    /// [`StoreError::NotFound`] when it is gone).
    async fn update(&self, key: &str, value: Bytes, expected: Revision) -> Result<KeyValue>;

    /// Deletes a key, when `expected` is given only at that modification revision. Returns the last value and the
    /// revision of the deletion.
    async fn delete(&self, key: &str, expected: Option<Revision>) -> Result<(KeyValue, Revision)>;

    /// All changes under `prefix` with a revision greater than `after`, in order, without gaps, for ever.
    /// [`StoreError::Compacted`] when `after` lies before the compacted revision. [`WatchEvent::Progress`] comes at
    /// least every few seconds while idle.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream>;

    /// Forgets history up to and including `revision`: older reads and watches answer [`StoreError::Compacted`].
    async fn compact(&self, revision: Revision) -> Result<()>;

    /// The newest revision.
    async fn revision(&self) -> Result<Revision>;

    /// The revision history was last compacted at (0: never).
    async fn compacted(&self) -> Result<Revision>;
}
