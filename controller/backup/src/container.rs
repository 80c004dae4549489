//! The outside of a backup: a readable header, then the contents in encrypted chunks. In: bytes and a key. Out: the same
//! bytes on the other side, or an error at the first one that is not as it was written.
//!
//! ```text
//! "causeway-backup\n"   16 bytes
//! length of the header  u32, big endian
//! header                JSON: format, cluster, created, program, the key's fingerprint, a random salt
//! chunks                65536 bytes + 16 of tag each; the last one may be shorter
//! ```
//!
//! AES-256-GCM with a key of this backup's own (HKDF-SHA256 of the key, the salt and the header). A chunk's nonce is its
//! number and whether it is the last: one that is moved, left out or doubled does not decrypt, and nor does the end of a
//! file that was cut off. This is the construction STREAM of Hoang, Reyhanitabar, Rogaway and Vizár. Both directions hold
//! one chunk in memory.

use crate::error::{BackupError, Result, foreign, stream, through_io};
use crate::key::{self, Key};
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use ring::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// What a backup begins with.
const MAGIC: &[u8; 16] = b"causeway-backup\n";
/// The version of everything below the magic.
const FORMAT: u32 = 1;
/// A header is no longer than this.
const MAX_HEADER: u32 = 4096;
/// Bytes in a chunk.
const CHUNK: usize = 64 * 1024;
/// Bytes of its tag.
const TAG: usize = 16;

/// What anyone may know of a backup. It is authenticated with the first chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct About {
    /// The cluster's name.
    pub cluster: String,
    /// When the backup was begun.
    pub created: Timestamp,
    /// The version of the program that made it.
    pub program: String,
}

impl About {
    /// It is shown to people, and so has to be what it says it is.
    fn is_plain(&self) -> bool {
        let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let is_version = |b: u8| b.is_ascii_alphanumeric() || b".-+".contains(&b);
        (1..=63).contains(&self.cluster.len())
            && self.cluster.bytes().all(is_name)
            && self.program.len() <= 63
            && self.program.bytes().all(is_version)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    format: u32,
    key: String,
    salt: String,
    about: About,
}

/// Only the version, for backups of versions to come.
#[derive(Deserialize)]
struct Version {
    format: u32,
}

/// A chunk's nonce: its number and whether it is the last. The key is this backup's own, so none is used twice.
fn nonce(number: u32, last: bool) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    if let Some(place) = bytes.get_mut(7..11) {
        place.copy_from_slice(&number.to_be_bytes());
    }
    if let Some(place) = bytes.last_mut() {
        *place = u8::from(last);
    }
    Nonce::assume_unique_for_key(bytes)
}

/// Encrypts what is written to it.
pub struct Encrypt<W> {
    out: W,
    key: LessSafeKey,
    number: u32,
    chunk: Vec<u8>,
}

impl<W: Write> Encrypt<W> {
    /// Writes the header.
    pub fn new(mut out: W, key: &Key, about: &About) -> Result<Self> {
        let salt = key::random()?;
        let header =
            Header { format: FORMAT, key: key.fingerprint(), salt: HEXLOWER.encode(&salt), about: about.clone() };
        let json = serde_json::to_vec(&header).map_err(|e| BackupError::Format(e.to_string()))?;
        let length = u32::try_from(json.len()).ok().filter(|l| *l <= MAX_HEADER);
        let length = length.ok_or_else(|| BackupError::Format("its header would be too long".into()))?;
        let mut head = MAGIC.to_vec();
        head.extend(length.to_be_bytes());
        head.extend(&json);
        let own = key.of_backup(&salt, &head)?;
        out.write_all(&head).map_err(stream("writing the backup's header"))?;
        Ok(Self { out, key: own, number: 0, chunk: Vec::with_capacity(CHUNK + TAG) })
    }

    fn seal(&mut self, last: bool) -> io::Result<()> {
        let sealed = self.key.seal_in_place_append_tag(nonce(self.number, last), Aad::empty(), &mut self.chunk);
        sealed.map_err(|_| io::Error::other("encrypting a chunk of the backup failed"))?;
        self.out.write_all(&self.chunk)?;
        self.chunk.clear();
        self.number = self.number.checked_add(1).ok_or_else(|| io::Error::other("the backup is too large"))?;
        Ok(())
    }

    /// Writes the last chunk; without it a backup is not one.
    pub fn finish(mut self) -> Result<W> {
        self.seal(true).and_then(|()| self.out.flush()).map_err(stream("writing the end of the backup"))?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Encrypt<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Not before there is more to come: a full chunk may be the last one.
        if self.chunk.len() == CHUNK && !bytes.is_empty() {
            self.seal(false)?;
        }
        let some = bytes.get(..bytes.len().min(CHUNK - self.chunk.len())).unwrap_or_default();
        self.chunk.extend_from_slice(some);
        Ok(some.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Decrypts what is read through it.
pub struct Decrypt<R> {
    input: R,
    key: LessSafeKey,
    about: About,
    number: u32,
    /// Encrypted: a chunk and the first byte after it, by which the last one is known.
    ahead: Vec<u8>,
    /// Decrypted, and how much of it was read.
    chunk: Vec<u8>,
    taken: usize,
    offset: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    More,
    Ended,
    Failed,
}

impl<R: Read> Decrypt<R> {
    /// Reads the header and the first chunk, with which the header is known to be genuine.
    pub fn new(mut input: R, key: &Key) -> Result<Self> {
        let mut head = vec![0; MAGIC.len() + 4];
        let short = |e: io::Error| match e.kind() {
            io::ErrorKind::UnexpectedEof => BackupError::Format("it is too short".into()),
            _ => stream("reading the backup's header")(e),
        };
        input.read_exact(&mut head).map_err(short)?;
        let (magic, length) = head.split_at(MAGIC.len());
        let length = <[u8; 4]>::try_from(length).map(u32::from_be_bytes).unwrap_or(u32::MAX);
        if magic != MAGIC {
            return Err(BackupError::Format("it does not begin as one".into()));
        }
        if length > MAX_HEADER {
            return Err(BackupError::Format("its header is too long".into()));
        }
        let begin = head.len();
        head.resize(begin + length as usize, 0);
        let json = head.get_mut(begin..).unwrap_or_default();
        input.read_exact(json).map_err(short)?;
        let unclear = |e: serde_json::Error| BackupError::Format(format!("its header: {}", foreign(&e.to_string())));
        let version: Version = serde_json::from_slice(json).map_err(unclear)?;
        if version.format != FORMAT {
            let what =
                format!("its format is {}, this program knows {FORMAT}; use the one that made it", version.format);
            return Err(BackupError::Format(what));
        }
        let header: Header = serde_json::from_slice(json).map_err(unclear)?;
        if header.key != key.fingerprint() {
            // What stands there is shown, so it has to be what a fingerprint looks like.
            let needed = if header.key.len() <= 64 && header.key.bytes().all(|b| b.is_ascii_hexdigit()) {
                header.key
            } else {
                "of no known form".to_owned()
            };
            return Err(BackupError::WrongKey { needed, given: key.fingerprint() });
        }
        let salt = HEXLOWER.decode(header.salt.as_bytes()).ok().and_then(|s| <[u8; key::LENGTH]>::try_from(s).ok());
        let salt = salt.ok_or_else(|| BackupError::Format("its header has no salt".into()))?;
        let mut this = Self {
            input,
            key: key.of_backup(&salt, &head)?,
            about: header.about,
            number: 0,
            ahead: Vec::with_capacity(CHUNK + TAG + 1),
            chunk: Vec::new(),
            taken: 0,
            offset: head.len() as u64,
            state: State::More,
        };
        this.open().map_err(stream("reading the backup"))?;
        if !this.about.is_plain() {
            return Err(BackupError::Contents("a header that names no cluster or version".into()));
        }
        Ok(this)
    }

    /// What the header says.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Where in the file the current chunk begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether something was found that is not as it was written.
    pub fn has_failed(&self) -> bool {
        self.state == State::Failed
    }

    /// Reads and opens the next chunk.
    fn open(&mut self) -> io::Result<()> {
        self.offset += if self.number == 0 { 0 } else { (CHUNK + TAG) as u64 };
        let most = (CHUNK + TAG + 1).saturating_sub(self.ahead.len());
        self.input.by_ref().take(most as u64).read_to_end(&mut self.ahead)?;
        let after = (self.ahead.len() > CHUNK + TAG).then(|| self.ahead.pop()).flatten();
        let last = after.is_none();
        std::mem::swap(&mut self.chunk, &mut self.ahead);
        self.ahead.clear();
        self.ahead.extend(after);
        self.taken = 0;
        let opened = self.key.open_in_place(nonce(self.number, last), Aad::empty(), &mut self.chunk);
        let Some(length) = opened.ok().map(|plain| plain.len()) else {
            return Err(self.damaged("its bytes are not those that were written"));
        };
        if length == 0 && self.number > 0 {
            return Err(self.damaged("an empty chunk"));
        }
        self.chunk.truncate(length);
        self.number = self.number.checked_add(1).ok_or_else(|| self.damaged("it is too long"))?;
        self.state = if last { State::Ended } else { State::More };
        Ok(())
    }

    fn damaged(&self, what: &str) -> io::Error {
        through_io(BackupError::Damaged { offset: self.offset, what: what.to_owned() })
    }
}

impl<R: Read> Read for Decrypt<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.state == State::Failed {
            return Err(self.damaged("it could not be read to here"));
        }
        if self.taken == self.chunk.len() {
            if self.state == State::Ended || into.is_empty() {
                return Ok(0);
            }
            if let Err(error) = self.open() {
                self.state = State::Failed;
                self.chunk.clear();
                self.taken = 0;
                return Err(error);
            }
        }
        let rest = self.chunk.get(self.taken..).unwrap_or_default();
        let count = rest.len().min(into.len());
        if let (Some(from), Some(to)) = (rest.get(..count), into.get_mut(..count)) {
            to.copy_from_slice(from);
        }
        self.taken += count;
        Ok(count)
    }
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
