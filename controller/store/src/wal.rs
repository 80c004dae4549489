//! The write-ahead log: what makes a write durable. In: batches of records in revision order. Out: the same batches,
//! read back at open until the first torn one.
//!
//! A segment is a file `wal-<first revision>` of frames `length u32 | crc32 u32 | postcard batch`. A batch is on the
//! device (`fdatasync`) before any write of it is acknowledged; a batch that was cut off by a crash was never
//! acknowledged and is dropped. Segments are removed once sled has everything in them on the device.

use crate::{Result, Revision, StoreError};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// One write, as it is logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub revision: Revision,
    pub key: String,
    /// `None` for a deletion.
    pub value: Option<bytes::Bytes>,
    pub create_revision: Revision,
}

/// A frame may not be larger than this: a longer length field is a torn or foreign frame.
const MAX_FRAME: u32 = 256 << 20;

/// The segment being written.
pub(crate) struct Wal {
    dir: PathBuf,
    file: File,
    path: PathBuf,
    length: u64,
}

/// A segment that is complete, to be removed after a checkpoint.
pub(crate) struct Sealed(pub PathBuf);

impl Wal {
    /// Reads every segment of `dir` in order and starts a new one for `next` onwards. Returns the old segments too.
    pub fn open(dir: &Path, next: impl FnOnce(&[Record]) -> Revision) -> Result<(Self, Vec<Record>, Vec<Sealed>)> {
        let fail = |doing: &str| {
            let doing = format!("{doing} in {}", dir.display());
            move |e: io::Error| StoreError::Engine { doing, detail: e.to_string() }
        };
        fs::create_dir_all(dir).map_err(fail("making the write-ahead log's folder"))?;
        let mut paths: Vec<PathBuf> = fs::read_dir(dir)
            .map_err(fail("listing the write-ahead log"))?
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("wal-")))
            .collect();
        paths.sort();
        let mut records = Vec::new();
        let last = paths.len().saturating_sub(1);
        for (i, path) in paths.iter().enumerate() {
            let torn = read_segment(path, &mut records).map_err(fail("reading the write-ahead log"))?;
            if torn && i != last {
                return Err(StoreError::Engine {
                    doing: format!("reading {}", path.display()),
                    detail: "a frame in the middle of the log is damaged; restore the store's folder from a backup"
                        .to_owned(),
                });
            }
        }
        let next = next(&records);
        let mut wal = Self::create(dir, next).map_err(fail("starting a write-ahead log segment"))?;
        paths.retain(|p| *p != wal.path);
        wal.sync().map_err(fail("syncing the write-ahead log"))?;
        Ok((wal, records, paths.into_iter().map(Sealed).collect()))
    }

    fn create(dir: &Path, first: Revision) -> io::Result<Self> {
        let path = dir.join(format!("wal-{first:020}"));
        let mut file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path)?;
        file.seek(SeekFrom::End(0))?;
        File::open(dir)?.sync_all()?;
        Ok(Self { dir: dir.to_owned(), file, path, length: 0 })
    }

    /// Appends a batch and waits until it is on the device. On an error the segment is as it was before.
    pub fn append(&mut self, batch: &[Record]) -> io::Result<()> {
        let payload = postcard::to_stdvec(batch).map_err(io::Error::other)?;
        let length = u32::try_from(payload.len()).ok().filter(|l| *l <= MAX_FRAME);
        let length = length.ok_or_else(|| io::Error::other("a batch of writes is larger than 256 MiB"))?;
        let mut frame = Vec::with_capacity(payload.len() + 8);
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
        frame.extend_from_slice(&payload);
        let written = self.file.write_all(&frame).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            self.file.set_len(self.length)?;
            self.file.seek(SeekFrom::Start(self.length))?;
            return Err(error);
        }
        self.length += frame.len() as u64;
        Ok(())
    }

    /// Bytes in the current segment.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Closes the segment and starts one for `first` onwards.
    pub fn rotate(&mut self, first: Revision) -> io::Result<Sealed> {
        let next = Self::create(&self.dir, first)?;
        let old = std::mem::replace(self, next);
        Ok(Sealed(old.path))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// Appends the records of a segment; true when it ends in a torn frame.
fn read_segment(path: &Path, records: &mut Vec<Record>) -> io::Result<bool> {
    let mut file = io::BufReader::new(File::open(path)?);
    loop {
        let mut head = [0u8; 8];
        match read_full(&mut file, &mut head)? {
            0 => return Ok(false),
            8 => {}
            _ => return Ok(true),
        }
        let [a, b, c, d, e, f, g, h] = head;
        let length = u32::from_le_bytes([a, b, c, d]);
        if length > MAX_FRAME {
            return Ok(true);
        }
        let mut payload = vec![0u8; length as usize];
        if read_full(&mut file, &mut payload)? != payload.len()
            || crc32fast::hash(&payload) != u32::from_le_bytes([e, f, g, h])
        {
            return Ok(true);
        }
        match postcard::from_bytes::<Vec<Record>>(&payload) {
            Ok(batch) => records.extend(batch),
            Err(_) => return Ok(true),
        }
    }
}

fn read_full(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(revision: Revision) -> Record {
        Record { revision, key: format!("/k/{revision}"), value: Some("v".into()), create_revision: revision }
    }

    #[test]
    fn a_torn_tail_is_dropped_and_the_rest_read() {
        let dir = tempfile::tempdir().unwrap();
        let (mut wal, records, _) = Wal::open(dir.path(), |_| 1).unwrap();
        assert!(records.is_empty());
        wal.append(&[record(1), record(2)]).unwrap();
        wal.append(&[record(3)]).unwrap();
        let (path, whole) = (wal.path.clone(), wal.len());
        drop(wal);
        for cut in 1..12 {
            OpenOptions::new().write(true).open(&path).unwrap().set_len(whole - cut).unwrap();
            let mut seen = Vec::new();
            assert!(read_segment(&path, &mut seen).unwrap());
            assert_eq!(seen, [record(1), record(2)]);
        }
    }

    #[test]
    fn segments_are_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (mut wal, _, _) = Wal::open(dir.path(), |_| 1).unwrap();
        wal.append(&[record(1)]).unwrap();
        wal.rotate(2).unwrap();
        wal.append(&[record(2)]).unwrap();
        drop(wal);
        let (_, records, old) = Wal::open(dir.path(), |r| r.last().unwrap().revision + 1).unwrap();
        assert_eq!(records, [record(1), record(2)]);
        assert_eq!(old.len(), 2);
    }
}
