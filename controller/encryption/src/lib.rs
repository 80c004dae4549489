//! Secrets at rest: values encrypted before they reach the store.
//!
//! In: a [`Store`], an `EncryptionConfiguration` (apiserver.config.k8s.io/v1). Out: the same store for whoever reads and
//! writes through [`EncryptedStore`], with ciphertext under it. [`config`] reads the configuration, [`rules`] says which
//! providers a key of the store has, [`cipher`] is the form of a value, [`rewrite`] brings old values to the newest key, and
//! [`keeper`] makes the default key, notices changes and rotates.
//!
//! [`Store`]: causeway_store::Store

pub mod cipher;
pub mod config;
pub mod file;
pub mod keeper;
pub mod rewrite;
pub mod rules;
mod store;

pub use config::{Configuration, parse};
pub use keeper::{Keeper, Rotated};
pub use rewrite::{Rewritten, Usage};
pub use store::EncryptedStore;

use std::path::PathBuf;

/// Why keys or configuration cannot be used. No error holds anything of a key.
#[derive(Debug, thiserror::Error)]
pub enum EncryptionError {
    /// A configuration that is not one, or asks for what is not supported. The text has the field and what is wrong.
    #[error("{}: {what}", path.display())]
    Configuration {
        /// The file.
        path: PathBuf,
        /// The field, and what is wrong with it.
        what: String,
    },
    /// A file that cannot be read or written.
    #[error("{doing} {}: {cause}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] causeway_store::StoreError),
    /// The system's random numbers, or a library that refuses its input.
    #[error("{0}")]
    Cryptography(&'static str),
}

/// The result of this crate.
pub type Result<T, E = EncryptionError> = std::result::Result<T, E>;
