//! Why a store operation failed, in words for the person who runs the cluster.

use crate::{KeyValue, Revision};
use std::path::PathBuf;

/// The store's result.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A place where the store's files are not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Where in it, in bytes.
    pub offset: u64,
    /// The first revision that cannot be read, as far as known.
    pub revision: Option<Revision>,
    /// What is wrong.
    pub what: String,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at offset {}", self.file.display(), self.offset)?;
        if let Some(revision) = self.revision {
            write!(f, " (revision {revision})")?;
        }
        write!(f, ": {}", self.what)
    }
}

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
    /// The write is larger than the store takes. Nothing was written.
    #[error("{key}: request is too large: {bytes} bytes, the store takes {limit}")]
    TooLarge {
        /// The (first) key.
        key: String,
        /// How large it was.
        bytes: usize,
        /// How large it may be.
        limit: usize,
    },
    /// A transaction that makes no sense. Nothing was written.
    #[error("the transaction is not valid: {0}")]
    InvalidTransaction(String),
    /// The device is full: nothing was written.
    #[error("the disk under the store is full: free space in {path}, writes are refused until then")]
    DiskFull {
        /// The store's folder.
        path: String,
    },
    /// More writes wait than the device can take. Nothing was written.
    #[error("the store is overloaded: {key} waited {seconds} s for its turn; the disk is too slow, try again")]
    Overloaded {
        /// The (first) key.
        key: String,
        /// How long it waited.
        seconds: u64,
    },
    /// The write may or may not have happened.
    #[error("{doing}: the outcome is unknown, read before trying again: {detail}")]
    OutcomeUnknown {
        /// What was being done.
        doing: String,
        /// Why it is not known.
        detail: String,
    },
    /// Another process holds the store.
    #[error("the store in {path} is in use by another process: {detail}")]
    Locked {
        /// The store's folder.
        path: String,
        /// Who, as far as known.
        detail: String,
    },
    /// The store's files are not what was written.
    #[error(
        "the store is damaged: {0}. Nothing was changed; `causeway store check` tells all of it, `causeway store restore` \
         brings back a backup, `causeway store salvage` goes on with what is whole before the damage"
    )]
    Damaged(Box<Damage>),
    /// A value is there and cannot be decrypted.
    #[error("{key} cannot be decrypted: {detail}")]
    Undecryptable {
        /// The key.
        key: String,
        /// Why, and what to do.
        detail: String,
    },
    /// The engine failed. Nothing was written.
    #[error("store engine, while {doing}: {detail}")]
    Engine {
        /// What was being done.
        doing: String,
        /// What the engine said.
        detail: String,
    },
}
