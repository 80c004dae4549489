//! Why a store operation failed, in words for the person who runs the cluster.

use crate::{KeyValue, Revision};

/// The store's result.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Why a store operation failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The key exists already.
    #[error("key {key} exists already")]
    AlreadyExists {
        /// The key.
        key: String,
    },
    /// The key does not exist.
    #[error("key {key} does not exist")]
    NotFound {
        /// The key.
        key: String,
    },
    /// The key was modified since the caller read it.
    #[error("key {key} was changed at revision {}, the caller expected revision {expected}", current.mod_revision)]
    Conflict {
        /// The key.
        key: String,
        /// What the caller expected.
        expected: Revision,
        /// What is there.
        current: Box<KeyValue>,
    },
    /// The requested revision has been compacted, or a watcher fell behind.
    #[error("revision {requested} is no longer available: history is kept from revision {compacted} on")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// The oldest revision that can still be read.
        compacted: Revision,
    },
    /// The requested revision lies in the future.
    #[error("revision {requested} lies in the future: the store is at revision {current}")]
    FutureRevision {
        /// What was asked for.
        requested: Revision,
        /// The newest.
        current: Revision,
    },
    /// The device is full: nothing was written.
    #[error("the disk under the store is full: free space in {path}, writes are refused until then")]
    DiskFull {
        /// The store's folder.
        path: String,
    },
    /// Another process holds the store.
    #[error("the store in {path} is in use by another process: {detail}")]
    Locked {
        /// The store's folder.
        path: String,
        /// Who, as far as known.
        detail: String,
    },
    /// The engine failed.
    #[error("store engine, while {doing}: {detail}")]
    Engine {
        /// What was being done.
        doing: String,
        /// What the engine said.
        detail: String,
    },
}
