//! The inside of a backup: files of the PKI and the settings, the store's snapshot, and an end that counts them. In: those,
//! in this order. Out: the same to a [`Sink`], bounded in number and size, and an error unless the end is there and right.
//!
//! ```text
//! file   1  length of the path u16, path, mode u32, length u32, bytes
//! store  2  blocks of length u32 and bytes, until one of length 0       exactly once
//! end    3  length u32, JSON: revision, counts, SHA-256 of all before
//! ```
//!
//! The encryption around it already tells that nothing was changed; the counts and the hash tell that whoever wrote it wrote
//! all of it. Numbers are big endian.

use crate::container::{About, Decrypt, Encrypt};
use crate::error::{BackupError, Result, foreign, stream, through_io};
use crate::key::Key;
use data_encoding::HEXLOWER;
use ring::digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::{self, Read, Write};

const FILE: u8 = 1;
const STORE: u8 = 2;
const END: u8 = 3;
/// A PKI has some dozens of files of a few KiB.
pub const MAX_FILES: usize = 4096;
/// The longest file.
pub const MAX_FILE: usize = 1024 * 1024;
/// All files together.
pub const MAX_ALL_FILES: u64 = 64 * 1024 * 1024;
/// The longest path.
const MAX_PATH: usize = 255;
/// The most folders in a path.
const MAX_DEPTH: usize = 4;
/// The longest block of the store.
const BLOCK: usize = 64 * 1024;
/// The end is no longer than this.
const MAX_END: usize = 4096;
/// Where files may lie.
pub const FOLDERS: [&str; 2] = ["pki", "settings"];

/// The path of a file in a backup: below one of [`FOLDERS`], of plain names only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryPath(String);

impl EntryPath {
    /// Refuses what could lead elsewhere, or be shown as something else.
    pub fn parse(text: &str) -> Result<Self> {
        let names: Vec<&str> = text.split('/').collect();
        let is_plain = |name: &str| {
            let is_known = |b: u8| b.is_ascii_alphanumeric() || b"._-:@+".contains(&b);
            !name.is_empty() && name != "." && name != ".." && name.bytes().all(is_known)
        };
        let is_good = text.len() <= MAX_PATH
            && (2..=MAX_DEPTH).contains(&names.len())
            && names.iter().copied().all(is_plain)
            && names.first().is_some_and(|first| FOLDERS.contains(first));
        if !is_good {
            return Err(BackupError::Contents(format!("a file {:?}", text.get(..80).unwrap_or(text))));
        }
        Ok(Self(text.to_owned()))
    }

    /// As text, with `/` between names.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is in a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// What its header says.
    pub about: About,
    /// The store's revision.
    pub revision: u64,
    /// How many files.
    pub files: u64,
    /// Bytes of the store's snapshot.
    pub store_bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct End {
    revision: u64,
    files: u64,
    store_bytes: u64,
    sha256: String,
}

/// Any error of whoever takes the contents.
pub type SinkResult = std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// What takes the contents of a backup. What it was given counts only when [`read`] has come to the end.
pub trait Sink {
    /// A file.
    fn file(&mut self, path: &EntryPath, mode: u32, bytes: &[u8]) -> SinkResult;
    /// The store's snapshot, to be read to its end. Returns the store's revision.
    fn store(&mut self, snapshot: &mut dyn Read) -> std::result::Result<u64, Box<dyn std::error::Error + Send + Sync>>;
}

/// Writes a backup.
pub struct Writer<W: Write> {
    out: Encrypt<W>,
    hash: digest::Context,
    names: BTreeSet<EntryPath>,
    all_files: u64,
    store_bytes: u64,
    has_store: bool,
}

impl<W: Write> Writer<W> {
    /// Begins one.
    pub fn new(out: W, key: &Key, about: &About) -> Result<Self> {
        Ok(Self {
            out: Encrypt::new(out, key, about)?,
            hash: digest::Context::new(&digest::SHA256),
            names: BTreeSet::new(),
            all_files: 0,
            store_bytes: 0,
            has_store: false,
        })
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes)
    }

    /// Adds a file; all of them come before the store.
    pub fn file(&mut self, path: &EntryPath, mode: u32, bytes: &[u8]) -> Result<()> {
        self.all_files += bytes.len() as u64;
        let is_new = self.names.insert(path.clone());
        let length = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= MAX_FILE);
        let fits = self.names.len() <= MAX_FILES && self.all_files <= MAX_ALL_FILES;
        let (Some(length), true, true, false) = (length, is_new, fits, self.has_store) else {
            return Err(BackupError::Contents(format!("{} ({} bytes) beyond its bounds", path.as_str(), bytes.len())));
        };
        let mut head = vec![FILE];
        // MAX_PATH bounds it.
        head.extend(u16::try_from(path.0.len()).unwrap_or(u16::MAX).to_be_bytes());
        head.extend(path.0.as_bytes());
        head.extend((mode & 0o777).to_be_bytes());
        head.extend(length.to_be_bytes());
        self.put(&head).and_then(|()| self.put(bytes)).map_err(stream("writing a file into the backup"))
    }

    /// Adds the store: `write` writes its snapshot.
    pub fn store<E>(&mut self, write: impl FnOnce(&mut dyn Write) -> std::result::Result<(), E>) -> Result<()>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if std::mem::replace(&mut self.has_store, true) {
            return Err(BackupError::Contents("a second store".into()));
        }
        self.put(&[STORE]).map_err(stream("writing the store into the backup"))?;
        let mut blocks = Blocks { to: self, block: Vec::with_capacity(BLOCK + 4) };
        blocks.block.extend([0; 4]);
        let written = write(&mut blocks);
        written.map_err(|e| BackupError::Sink { doing: "taking the store's snapshot".into(), cause: e.into() })?;
        blocks.flush().map_err(stream("writing the store into the backup"))?;
        self.put(&[0; 4]).map_err(stream("writing the store into the backup"))
    }

    /// Writes the end. Without it nothing of the backup is ever used.
    pub fn finish(mut self, revision: u64) -> Result<W> {
        if !self.has_store {
            return Err(BackupError::Contents("no store".into()));
        }
        self.put(&[END]).map_err(stream("writing the end of the backup"))?;
        let end = End {
            revision,
            files: self.names.len() as u64,
            store_bytes: self.store_bytes,
            sha256: HEXLOWER.encode(self.hash.clone().finish().as_ref()),
        };
        let json = serde_json::to_vec(&end).map_err(|e| BackupError::Format(e.to_string()))?;
        let length = u32::try_from(json.len()).unwrap_or(u32::MAX).to_be_bytes();
        let written = self.out.write_all(&length).and_then(|()| self.out.write_all(&json));
        written.map_err(stream("writing the end of the backup"))?;
        self.out.finish()
    }
}

/// Cuts a stream of unknown length into blocks.
struct Blocks<'a, W: Write> {
    to: &'a mut Writer<W>,
    /// The length, and the bytes.
    block: Vec<u8>,
}

impl<W: Write> Write for Blocks<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = (BLOCK + 4).saturating_sub(self.block.len());
        let some = bytes.get(..bytes.len().min(room)).unwrap_or_default();
        self.block.extend_from_slice(some);
        if self.block.len() == BLOCK + 4 {
            self.flush()?;
        }
        Ok(some.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let length = self.block.len() - 4;
        // A block of no bytes would be the end.
        if length > 0 {
            if let Some(place) = self.block.get_mut(..4) {
                place.copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
            }
            self.to.put(&self.block)?;
            self.to.store_bytes += length as u64;
            self.block.truncate(4);
        }
        Ok(())
    }
}

/// What is being read, and its hash up to here.
struct Input<R> {
    from: Decrypt<R>,
    hash: digest::Context,
}

impl<R: Read> Input<R> {
    fn exact(&mut self, into: &mut [u8]) -> io::Result<()> {
        self.from.read_exact(into).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => self.damaged("it ends in the middle"),
            _ => e,
        })?;
        self.hash.update(into);
        Ok(())
    }

    fn number<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.exact(&mut bytes)?;
        Ok(bytes)
    }

    fn length(&mut self, most: usize, of: &str) -> io::Result<usize> {
        let length = u32::from_be_bytes(self.number()?) as usize;
        if length > most {
            return Err(through_io(BackupError::Contents(format!("{of} of {length} bytes"))));
        }
        Ok(length)
    }

    fn bytes(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.exact(&mut bytes)?;
        Ok(bytes)
    }

    fn damaged(&self, what: &str) -> io::Error {
        through_io(BackupError::Damaged { offset: self.from.offset(), what: what.to_owned() })
    }
}

/// The store's snapshot out of its blocks.
struct Snapshot<'a, R> {
    from: &'a mut Input<R>,
    rest: usize,
    total: u64,
    ended: bool,
}

impl<R: Read> Read for Snapshot<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.ended || into.is_empty() {
            return Ok(0);
        }
        if self.rest == 0 {
            self.rest = self.from.length(BLOCK, "a block")?;
            self.ended = self.rest == 0;
        }
        let count = self.rest.min(into.len());
        let place = into.get_mut(..count).unwrap_or_default();
        self.from.exact(place)?;
        self.rest -= count;
        self.total += count as u64;
        Ok(count)
    }
}

/// Reads a whole backup, verifying it on the way.
pub fn read(from: impl Read, key: &Key, sink: &mut dyn Sink) -> Result<Contents> {
    let from = Decrypt::new(from, key)?;
    let about = from.about().clone();
    let mut input = Input { from, hash: digest::Context::new(&digest::SHA256) };
    let (mut names, mut all_files) = (BTreeSet::new(), 0);
    let mut store = None;
    let reading = "reading the backup";
    let end = loop {
        let [kind] = input.number().map_err(stream(reading))?;
        match kind {
            FILE if store.is_none() => {
                let path = file(&mut input, &mut all_files, sink)?;
                if names.len() == MAX_FILES || !names.insert(path) {
                    return Err(BackupError::Contents("too many files, or one twice".into()));
                }
            }
            STORE if store.is_none() => store = Some(snapshot(&mut input, sink)?),
            END => break end(&mut input)?,
            _ => return Err(BackupError::Contents(format!("an entry {kind} where none is expected"))),
        }
    };
    let (revision, store_bytes) = store.ok_or_else(|| BackupError::Contents("no store".into()))?;
    let counted = (end.files, end.store_bytes, end.revision);
    if counted != (names.len() as u64, store_bytes, revision) {
        return Err(BackupError::Contents("another number of files, bytes or revisions than its end says".into()));
    }
    if input.from.read(&mut [0]).map_err(stream(reading))? != 0 {
        return Err(BackupError::Contents("more after its end".into()));
    }
    Ok(Contents { about, revision, files: end.files, store_bytes })
}

fn file<R: Read>(input: &mut Input<R>, all_files: &mut u64, sink: &mut dyn Sink) -> Result<EntryPath> {
    let reading = || stream("reading a file of the backup");
    let length = usize::from(u16::from_be_bytes(input.number().map_err(reading())?));
    if length > MAX_PATH {
        return Err(BackupError::Contents(format!("a path of {length} bytes")));
    }
    let path = String::from_utf8(input.bytes(length).map_err(reading())?);
    let path = EntryPath::parse(&path.map_err(|_| BackupError::Contents("a path that is no text".into()))?)?;
    let mode = u32::from_be_bytes(input.number().map_err(reading())?);
    if mode & !0o777 != 0 {
        return Err(BackupError::Contents(format!("the mode {mode:o} of {}", path.as_str())));
    }
    let length = input.length(MAX_FILE, "a file").map_err(reading())?;
    *all_files += length as u64;
    if *all_files > MAX_ALL_FILES {
        return Err(BackupError::Contents("too many bytes of files".into()));
    }
    let bytes = input.bytes(length).map_err(reading())?;
    let doing = || format!("taking {} out of the backup", path.as_str());
    sink.file(&path, mode, &bytes).map_err(|cause| BackupError::Sink { doing: doing(), cause })?;
    Ok(path)
}

/// Hands the snapshot on; what is left of it afterwards is more than its reader knows of.
fn snapshot<R: Read>(input: &mut Input<R>, sink: &mut dyn Sink) -> Result<(u64, u64)> {
    let mut snapshot = Snapshot { from: input, rest: 0, total: 0, ended: false };
    let taken = sink.store(&mut snapshot);
    let doing = "reading the store's snapshot out of the backup";
    // Damage of the backup says more than what its reader makes of it.
    if snapshot.from.from.has_failed() {
        let error = snapshot.from.from.read(&mut [0]).err().unwrap_or_else(|| io::Error::other("it failed before"));
        return Err(stream(doing)(error));
    }
    let revision = taken.map_err(|cause| BackupError::Sink { doing: doing.into(), cause })?;
    if snapshot.read(&mut [0]).map_err(stream(doing))? != 0 {
        return Err(BackupError::Contents("more of the store than the store reads".into()));
    }
    Ok((revision, snapshot.total))
}

fn end<R: Read>(input: &mut Input<R>) -> Result<End> {
    let reading = || stream("reading the end of the backup");
    let hash = HEXLOWER.encode(input.hash.clone().finish().as_ref());
    let length = input.length(MAX_END, "an end").map_err(reading())?;
    let end: End = serde_json::from_slice(&input.bytes(length).map_err(reading())?)
        .map_err(|e| BackupError::Contents(format!("an end that is none ({})", foreign(&e.to_string()))))?;
    if end.sha256 != hash {
        return Err(BackupError::Contents("other bytes than its end says (SHA-256)".into()));
    }
    Ok(end)
}
