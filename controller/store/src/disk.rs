//! What the store keeps on disk, and in which form.
//!
//! In: batches of entries, and the state at a revision. Out: the same, read back and checked. Three modules: [`frames`]
//! is the form of every file, [`log`] makes writes durable, [`snapshot`] holds the state at one revision so that the
//! log before it can go. Log and snapshot together are the whole truth; everything else can be made from them.

pub(crate) mod frames;
pub(crate) mod lock;
pub(crate) mod log;
pub(crate) mod snapshot;

use crate::{Damage, KeyValue, Result, Revision, StoreError};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Folders and files of the store are for their owner alone.
const PRIVATE_DIR: u32 = 0o700;
const PRIVATE_FILE: u32 = 0o600;

/// One write. Borrowed, so that a file is read without a copy of every value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record<'a> {
    pub revision: Revision,
    /// Revision of the write that created the key; of a deletion, that of what was deleted.
    pub create_revision: Revision,
    /// When the key goes by itself, in seconds since 1970; 0 for never.
    pub expires: u64,
    pub key: &'a str,
    /// `None` for a deletion.
    pub value: Option<&'a [u8]>,
}

/// One state of a key: a record without its key and value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    pub revision: Revision,
    pub create_revision: Revision,
    /// As in [`Record`].
    pub expires: u64,
    pub deleted: bool,
}

impl From<&Record<'_>> for Version {
    fn from(record: &Record<'_>) -> Self {
        Self {
            revision: record.revision,
            create_revision: record.create_revision,
            expires: record.expires,
            deleted: record.value.is_none(),
        }
    }
}

impl Version {
    /// The record of this version.
    pub fn record<'a>(self, key: &'a str, value: Option<&'a [u8]>) -> Record<'a> {
        let Self { revision, create_revision, expires, .. } = self;
        Record { revision, create_revision, expires, key, value }
    }

    /// What a reader gets of this version.
    pub fn key_value(self, key: &str, value: Bytes) -> KeyValue {
        let (create_revision, mod_revision) = (self.create_revision, self.revision);
        KeyValue { key: key.to_owned(), value, create_revision, mod_revision }
    }
}

/// What a frame of the log holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Entry<'a> {
    #[serde(borrow)]
    Write(Record<'a>),
    /// History up to this revision was forgotten.
    Compacted(Revision),
}

/// Why a file could not be read.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// The device failed: nothing is known about the data.
    Io(PathBuf, io::Error),
    /// The data is not what was written.
    Damaged(Damage),
}

impl ReadError {
    pub fn damaged(file: &Path, offset: u64, revision: Option<Revision>, what: impl Into<String>) -> Self {
        Self::Damaged(Damage { file: file.to_owned(), offset, revision, what: what.into() })
    }
}

impl From<ReadError> for StoreError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(path, e) => failed("reading", &path)(e),
            ReadError::Damaged(damage) => Self::Damaged(Box::new(damage)),
        }
    }
}

/// An I/O error of something done to a file.
pub(crate) fn failed<'a>(doing: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreError + 'a {
    move |e| match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StoreError::DiskFull { path: path.display().to_string() }
        }
        _ => StoreError::Engine { doing: format!("{doing} {}", path.display()), detail: e.to_string() },
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Whether an unprivileged writer could still use that many bytes of the file system of `dir`.
pub(crate) fn has_room(dir: &Path, bytes: u64) -> bool {
    // A file system that does not say is taken to have room: it says so when it has not.
    nix::sys::statvfs::statvfs(dir)
        .map_or(true, |stat| stat.blocks_available().saturating_mul(stat.fragment_size()) >= bytes)
}

/// Makes the names in a folder durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes a folder, and its name and those of the folders it is in durable. A folder that is there may have been made by
/// a process that was killed before it could do that.
pub(crate) fn make_dir(dir: &Path) -> Result<()> {
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !dir.is_dir() {
        if !parent.is_dir() {
            make_dir(parent)?;
        }
        match DirBuilder::new().mode(PRIVATE_DIR).create(dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed("making the folder", dir)(e)),
            _ => {}
        }
    }
    sync_dir(parent).map_err(failed("syncing", parent))
}

/// How a file of the store is made: for its owner alone, whatever the process' umask.
pub(crate) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).read(true).write(true).mode(PRIVATE_FILE);
    options
}

/// Keeps others from what is in a folder. What versions before this one and sled have made is as the umask was.
pub(crate) fn keep_private(dir: &Path) {
    let keep = |path: &Path, mode: u32| {
        let kept = std::fs::metadata(path).and_then(|meta| match meta.permissions().mode() & 0o077 {
            0 => Ok(()),
            _ => std::fs::set_permissions(path, Permissions::from_mode(mode)),
        });
        if let Err(error) = kept {
            tracing::warn!(path = %path.display(), %error, "others can read it");
        }
    };
    keep(dir, PRIVATE_DIR);
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => keep_private(&entry.path()),
            Ok(kind) if kind.is_file() => keep(&entry.path(), PRIVATE_FILE),
            _ => {}
        }
    }
}

/// `fsync` of every file below a folder, and of the folders.
pub(crate) fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        match path.is_dir() {
            true => sync_tree(&path)?,
            false => File::open(&path)?.sync_all()?,
        }
    }
    sync_dir(dir)
}

/// Bytes of all files below a folder; what vanishes meanwhile counts nothing.
pub(crate) fn size_of(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size_of(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
