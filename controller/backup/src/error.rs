//! What can go wrong with a backup. In: what was being done, on what. Out: a sentence that also says what to do next.

use std::io;
use std::path::{Path, PathBuf};

/// Why a backup could not be made, kept or read. Each says its cause itself, and so has no `source`: whoever prints the chain
/// would print it twice.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file or folder.
    #[error("{doing} {}: {cause}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// There is no key, or what is there is none.
    #[error("the backup key {}: {what}", path.display())]
    Key {
        /// The key file.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// The backup was made with another key.
    #[error(
        "the backup was made with the key {needed}, and this is the key {given}; give the right one with --key-file"
    )]
    WrongKey {
        /// The fingerprint in the backup's header.
        needed: String,
        /// The fingerprint of the key at hand.
        given: String,
    },
    /// No backup, or of another version.
    #[error("this is not a backup that can be read: {0}")]
    Format(String),
    /// What was read is not what was written.
    #[error("the backup is damaged at byte {offset}: {what}; use another one")]
    Damaged {
        /// Where in the file.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// Decrypted in order, but it holds what no backup holds.
    #[error("the backup holds what no backup may: {0}; nothing of it is used")]
    Contents(String),
    /// What takes the contents refused them.
    #[error("{doing}: {cause}")]
    Sink {
        /// What was being done.
        doing: String,
        /// Why it was refused.
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Reading or writing the stream itself.
    #[error("{doing}: {cause}")]
    Stream {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        cause: io::Error,
    },
    /// A place for backups that makes no sense.
    #[error("{text:?} is no place for backups: {what}")]
    Destination {
        /// What was given.
        text: String,
        /// What is wrong, and what to write.
        what: String,
    },
    /// The object store.
    #[error("{doing} {at}: {detail}; check AWS_ENDPOINT_URL, AWS_REGION, the credentials (AWS_*) and the bucket")]
    Remote {
        /// What was being done.
        doing: &'static str,
        /// On which object.
        at: String,
        /// The chain of reasons.
        detail: String,
    },
}

/// The result of anything here.
pub type Result<T, E = BackupError> = std::result::Result<T, E>;

/// Names what was being done to a path.
pub(crate) fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |cause| BackupError::File { doing, path, cause }
}

/// An error of a stream; one of ours that travelled through `std::io` is taken out again.
pub(crate) fn stream(doing: &'static str) -> impl FnOnce(io::Error) -> BackupError {
    move |cause| match cause.downcast::<BackupError>() {
        Ok(ours) => ours,
        Err(cause) => BackupError::Stream { doing, cause },
    }
}

/// Characters of what others have written, in an error.
const MAX_FOREIGN: usize = 500;

/// Words that others have written, or may have: shortened, and nothing in them steers a terminal.
pub(crate) fn foreign(words: &str) -> String {
    words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_FOREIGN).collect()
}

/// Sends one of ours through `std::io`.
pub(crate) fn through_io(error: BackupError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
