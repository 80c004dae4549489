//! Backups of a cluster. In: the store's snapshot as a stream of bytes, the files of its PKI and settings, a key. Out:
//! one encrypted file each ([`container`], [`contents`]), kept in a folder or in S3 ([`destination`]) for as long as the
//! settings say ([`retention`], [`settings`]); and back again, with every byte taken for an enemy's until it is verified.
//!
//! The store's snapshot is opaque here: who calls hands it in and verifies it. So this crate depends on none of the others.

pub mod container;
pub mod contents;
pub mod destination;
pub mod error;
pub mod files;
pub mod key;
pub mod retention;
pub mod settings;

pub use container::About;
pub use contents::{Contents, EntryPath, Sink};
pub use destination::Destination;
pub use error::{BackupError, Result};
pub use key::Key;
pub use retention::{Keep, Name};
pub use settings::Settings;
