//! The whole state at one revision as one file or stream: what the log before it can be forgotten for, and what a
//! backup holds.
//!
//! In: versions of keys, in order of key and revision. Out: the same, checked. A snapshot that is not whole to its last
//! frame is damaged, whatever the reason: it gets its name only when it is on the device.

use super::frames::{Frames, Header, Kind, Next, read_full};
use super::{ReadError, Record, Version, failed, private, sync_dir};
use crate::{MAX_KEY, Result, Revision, StoreError, Summary};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// No store gets here: what says so is refused, before a sum of revisions overflows.
pub(crate) const MAX_REVISION: Revision = 1 << 62;
/// Versions before this one took values of twice the present limit.
const MAX_VALUE: usize = 4 << 20;
/// Records are gathered in blocks of about this many bytes.
const BLOCK: usize = 256 << 10;
/// A snapshot under this name is being written.
const UNFINISHED: &str = "snapshot.tmp";

#[derive(Serialize, Deserialize)]
enum Block<'a> {
    #[serde(borrow)]
    Records(Vec<Record<'a>>),
    End {
        keys: u64,
        records: u64,
        bytes: u64,
    },
}

/// Writes a snapshot, record by record.
pub(crate) struct Writer<W> {
    into: W,
    header: Header,
    offset: u64,
    /// Keys, values and revisions of the records of the block, as they are encoded when it is full.
    block: Vec<(Version, String, Option<bytes::Bytes>)>,
    block_bytes: usize,
    records: u64,
    last_key: String,
    summary: Summary,
}

impl<W: Write> Writer<W> {
    pub fn new(mut into: W, revision: Revision, compacted: Revision) -> io::Result<Self> {
        let header = Header::new(Kind::Snapshot, [revision, compacted, 0])?;
        let head = header.encode();
        into.write_all(&head)?;
        let summary = Summary { revision, compacted, keys: 0, bytes: 0 };
        let (block, last_key) = (Vec::new(), String::new());
        Ok(Self { into, header, offset: head.len() as u64, block, block_bytes: 0, records: 0, last_key, summary })
    }

    /// Adds a version of a key. They come in order of key, then revision.
    pub fn push(&mut self, version: Version, key: &str, value: Option<bytes::Bytes>) -> io::Result<()> {
        if self.last_key != key || self.records == 0 {
            key.clone_into(&mut self.last_key);
            self.summary.keys += 1;
        }
        self.records += 1;
        self.summary.bytes += value.as_ref().map_or(0, |v| v.len() as u64);
        self.block_bytes += key.len() + value.as_ref().map_or(0, bytes::Bytes::len) + 24;
        self.block.push((version, key.to_owned(), value));
        if self.block_bytes >= BLOCK { self.flush_block() } else { Ok(()) }
    }

    fn flush_block(&mut self) -> io::Result<()> {
        let records = self.block.iter().map(|(version, key, value)| version.record(key, value.as_deref()));
        let payload = postcard::to_stdvec(&Block::Records(records.collect())).map_err(io::Error::other)?;
        self.write(&payload)?;
        self.block.clear();
        self.block_bytes = 0;
        Ok(())
    }

    fn write(&mut self, payload: &[u8]) -> io::Result<()> {
        let frame = self.header.frame(self.offset, self.summary.revision, payload)?;
        self.into.write_all(&frame)?;
        self.offset += frame.len() as u64;
        Ok(())
    }

    /// Writes what says that nothing is missing.
    pub fn finish(mut self) -> io::Result<(W, Summary)> {
        if !self.block.is_empty() {
            self.flush_block()?;
        }
        let Summary { keys, bytes, .. } = self.summary;
        let end = Block::End { keys, records: self.records, bytes };
        let payload = postcard::to_stdvec(&end).map_err(io::Error::other)?;
        self.write(&payload)?;
        self.into.flush()?;
        Ok((self.into, self.summary))
    }
}

/// The head of a snapshot: what it says of itself, without counts.
pub(crate) struct Head {
    header: Header,
    pub summary: Summary,
}

/// Reads the head of a snapshot that is called `name` in errors.
pub(crate) fn begin(name: &Path, from: &mut dyn Read) -> Result<Head, ReadError> {
    let mut raw = vec![0u8; super::frames::HEADER as usize];
    let length = read_full(from, &mut raw).map_err(|e| ReadError::Io(name.to_owned(), e))?;
    raw.truncate(length);
    let header = Header::decode(&raw, Kind::Snapshot).map_err(|what| ReadError::damaged(name, 0, None, what))?;
    let summary = Summary { revision: header.numbers[0], compacted: header.numbers[1], keys: 0, bytes: 0 };
    if summary.compacted > summary.revision || summary.revision > MAX_REVISION {
        return Err(ReadError::damaged(name, 0, None, "its revisions are none that the store writes"));
    }
    Ok(Head { header, summary })
}

/// Reads a whole snapshot: every record goes to `each`.
pub(crate) fn read(
    name: &Path,
    from: &mut dyn Read,
    each: &mut dyn FnMut(Record<'_>) -> Result<(), String>,
) -> Result<Summary, ReadError> {
    begin(name, from)?.read(name, from, each)
}

impl Head {
    /// Reads what follows the head.
    pub fn read(
        self,
        name: &Path,
        from: &mut dyn Read,
        each: &mut dyn FnMut(Record<'_>) -> Result<(), String>,
    ) -> Result<Summary, ReadError> {
        let io = |e| ReadError::Io(name.to_owned(), e);
        let Self { header, mut summary } = self;
        let mut frames = Frames::new(from, header);
        let (mut last, mut records) = ((String::new(), 0), 0);
        loop {
            let damaged = |offset, what: String| ReadError::damaged(name, offset, Some(summary.revision), what);
            let (offset, payload) = match frames.next().map_err(io)? {
                Next::Frame { offset, payload, .. } => (offset, payload),
                Next::End => return Err(damaged(frames.offset(), "its end is missing".to_owned())),
                Next::Bad { offset, .. } => return Err(damaged(offset, "a block's check sum is wrong".to_owned())),
            };
            let block =
                postcard::from_bytes(&payload).map_err(|e| damaged(offset, format!("a block cannot be read: {e}")));
            match block? {
                Block::Records(block) => {
                    for record in block {
                        let (order, same) = ((record.key, record.revision), record.key == last.0);
                        let long = record.key.len() > MAX_KEY || record.value.is_some_and(|v| v.len() > MAX_VALUE);
                        if long || record.create_revision > record.revision {
                            return Err(damaged(offset, "a record is not one that the store writes".to_owned()));
                        }
                        if records > 0 && order <= (last.0.as_str(), last.1) || record.revision > summary.revision {
                            return Err(damaged(
                                offset,
                                format!("{} at {} is out of order", record.key, record.revision),
                            ));
                        }
                        if !same || records == 0 {
                            record.key.clone_into(&mut last.0);
                            summary.keys += 1;
                        }
                        last.1 = record.revision;
                        records += 1;
                        summary.bytes += record.value.map_or(0, |v| v.len() as u64);
                        each(record).map_err(|what| damaged(offset, what))?;
                    }
                }
                Block::End { keys, records: all, bytes } => {
                    if (keys, all, bytes) != (summary.keys, records, summary.bytes) {
                        let what = format!("{records} records were read where {all} were written");
                        return Err(damaged(offset, what));
                    }
                    return match frames.next().map_err(io)? {
                        Next::End => Ok(summary),
                        _ => Err(damaged(frames.offset(), "something follows its end".to_owned())),
                    };
                }
            }
        }
    }
}

/// The snapshots of a store's folder, oldest first.
pub(crate) fn files(dir: &Path) -> Result<Vec<(Revision, PathBuf)>, ReadError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| ReadError::Io(dir.to_owned(), e))? {
        let path = entry.map_err(|e| ReadError::Io(dir.to_owned(), e))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("snapshot-"));
        if let Some(revision) = name.and_then(|n| n.parse().ok()) {
            found.push((revision, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Reads the file of a snapshot.
pub(crate) fn read_file(
    path: &Path,
    each: &mut dyn FnMut(Record<'_>) -> Result<(), String>,
) -> Result<Summary, ReadError> {
    let file = File::open(path).map_err(|e| ReadError::Io(path.to_owned(), e))?;
    read(path, &mut BufReader::with_capacity(BLOCK, file), each)
}

/// Writes a snapshot into the store's folder. It has its name, and is on the device, or it is not there.
pub(crate) fn write_file(
    dir: &Path,
    revision: Revision,
    compacted: Revision,
    fill: impl FnOnce(&mut Writer<BufWriter<File>>) -> Result<()>,
) -> Result<(PathBuf, Summary)> {
    let written = try_write_file(dir, revision, compacted, fill);
    if written.is_err() {
        remove_unfinished(dir);
    }
    written
}

fn try_write_file(
    dir: &Path,
    revision: Revision,
    compacted: Revision,
    fill: impl FnOnce(&mut Writer<BufWriter<File>>) -> Result<()>,
) -> Result<(PathBuf, Summary)> {
    let (unfinished, path) = (dir.join(UNFINISHED), dir.join(format!("snapshot-{revision:020}")));
    let doing = || failed("writing the snapshot", &path);
    let file = private().truncate(true).open(&unfinished).map_err(doing())?;
    let mut writer = Writer::new(BufWriter::with_capacity(BLOCK, file), revision, compacted).map_err(doing())?;
    fill(&mut writer)?;
    let (buffered, summary) = writer.finish().map_err(doing())?;
    let file = buffered.into_inner().map_err(|e| StoreError::Engine {
        doing: format!("writing the snapshot {}", path.display()),
        detail: e.to_string(),
    })?;
    file.sync_all().map_err(doing())?;
    fs::rename(&unfinished, &path).and_then(|()| sync_dir(dir)).map_err(doing())?;
    Ok((path, summary))
}

/// Removes what a crash has left of a snapshot.
pub(crate) fn remove_unfinished(dir: &Path) {
    let _ = fs::remove_file(dir.join(UNFINISHED));
}
