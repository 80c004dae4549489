//! The write-ahead log: what makes a write durable. In: batches of entries in revision order. Out: the same entries,
//! read back at open.
//!
//! A segment is a file `log/<number>`. A batch is on the device (`fdatasync`) before any write of it is acknowledged,
//! and before the next one is written: only the last frame of the last segment can be torn. Each segment's header says
//! how much of the segment before it counts. So what a failed sync or a power failure has left behind is neither
//! overwritten nor cut off, it is just no part of the log.

use super::frames::{self, Frames, HEADER, Header, Kind, Next};
use super::{Entry, ReadError, failed, make_dir, private, sync_dir};
use crate::{Result, Revision};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A segment under this name, beside the log's folder, is being written again.
const UNFINISHED: &str = "segment.tmp";

/// The log, open for writing.
pub(crate) struct Log {
    dir: PathBuf,
    file: File,
    header: Header,
    segment: Segment,
    /// A write failed and it is not known what of it is on the device: no more is written to this segment.
    unsure: bool,
    /// Closed segments, oldest first.
    sealed: Vec<Segment>,
}

/// A segment on disk.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub path: PathBuf,
    pub number: u64,
    /// Revision of the newest write in it and before it.
    pub last: Revision,
    /// How much of the file counts.
    pub length: u64,
}

/// Why a batch was not appended.
#[derive(Debug)]
pub(crate) enum AppendError {
    /// It is not in the log and never will be.
    NotWritten(io::Error),
    /// A restart may find it.
    Unknown(io::Error),
}

/// What is in the log's folder.
pub(crate) struct Found {
    pub segments: Vec<Segment>,
    /// Segments that hold nothing which is not in the snapshot, oldest first.
    pub covered: Vec<PathBuf>,
    /// The last segment ends with a whole frame: it can be continued.
    last_is_whole: bool,
    last_header: Option<Header>,
    /// The newest revision, of the log or of what came before it.
    pub revision: Revision,
}

fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:012}"))
}

/// The segments' files in order.
pub(crate) fn files(dir: &Path) -> Result<Vec<(u64, PathBuf)>, ReadError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(ReadError::Io(dir.to_owned(), e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| ReadError::Io(dir.to_owned(), e))?.path();
        let number = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok());
        let number = number.ok_or_else(|| ReadError::damaged(&path, 0, None, "it is no segment of the log"))?;
        found.push((number, path));
    }
    found.sort_unstable();
    Ok(found)
}

/// Reads the log: every entry after `after` goes to `each`, in order. What is damaged is an error.
pub(crate) fn read(
    dir: &Path,
    after: Revision,
    each: &mut dyn FnMut(Entry<'_>) -> Result<(), String>,
) -> Result<Found, ReadError> {
    let mut files = files(dir)?;
    // What is damaged is told when all before it has been read.
    let mut headers = Vec::new();
    for (i, (number, path)) in files.iter().enumerate() {
        headers.push(match header_of(path) {
            Ok(Ok(header)) if header.numbers[0] == *number => Ok(header),
            Ok(Ok(_)) => Err(ReadError::damaged(path, 0, None, "its header is that of another segment")),
            // It was being made when the power went: nothing was written to it yet.
            Ok(Err(Unfinished)) if i + 1 == files.len() => break,
            Ok(Err(Unfinished)) => Err(ReadError::damaged(path, 0, None, "its header was never written")),
            Err(error) => Err(error),
        });
    }
    files.truncate(headers.len());
    // What lies before the last segment that can go on from the snapshot is not needed, and may have gaps: a crash while
    // segments are removed leaves any of them.
    let goes_on = |header: &Result<Header, ReadError>| header.as_ref().is_ok_and(|h| h.numbers[1] <= after + 1);
    let covered = headers.iter().rposition(goes_on).unwrap_or(0);
    headers.drain(..covered);
    let covered: Vec<PathBuf> = files.drain(..covered).map(|(_, path)| path).collect();
    let mut reader = Reader { revision: after, after, each };
    let mut found = Found { segments: Vec::new(), covered, last_is_whole: true, last_header: None, revision: after };
    let mut headers = headers.into_iter().peekable();
    let mut before = None;
    for (number, path) in files {
        let Some(header) = headers.next() else { break };
        let header = header?;
        if before.is_some_and(|before| before + 1 != number) {
            return Err(ReadError::damaged(&path, 0, None, format!("segment {} before it is missing", number - 1)));
        }
        before = Some(number);
        let first = header.numbers[1];
        if first > reader.revision + 1 {
            let what = format!("it begins at revision {first}, and revision {} is missing", reader.revision + 1);
            return Err(ReadError::damaged(&path, 0, Some(reader.revision + 1), what));
        }
        let limit = headers.peek().and_then(|next| next.as_ref().ok()).map(|next| next.numbers[2]);
        let (length, whole) = reader.segment(&path, header, limit)?;
        (found.last_is_whole, found.last_header) = (whole, Some(header));
        found.segments.push(Segment { path, number, last: reader.revision, length });
    }
    found.revision = reader.revision;
    Ok(found)
}

struct Unfinished;

fn header_of(path: &Path) -> Result<Result<Header, Unfinished>, ReadError> {
    let io = |e| ReadError::Io(path.to_owned(), e);
    let mut file = File::open(path).map_err(io)?;
    let mut raw = Vec::new();
    (&mut file).take(HEADER).read_to_end(&mut raw).map_err(io)?;
    // The header is on the device before anything else is written.
    let unwritten = raw.len() < HEADER as usize || raw.iter().all(|b| *b == 0);
    if unwritten && file.metadata().map_err(io)?.len() <= HEADER {
        return Ok(Err(Unfinished));
    }
    Header::decode(&raw, Kind::Log).map(Ok).map_err(|what| ReadError::damaged(path, 0, None, what))
}

struct Reader<'a> {
    /// Of the last write read.
    revision: Revision,
    after: Revision,
    each: &'a mut dyn FnMut(Entry<'_>) -> Result<(), String>,
}

impl Reader<'_> {
    /// How much of the segment counts, and whether nothing follows.
    fn segment(&mut self, path: &Path, header: Header, limit: Option<u64>) -> Result<(u64, bool), ReadError> {
        let io = |e| ReadError::Io(path.to_owned(), e);
        let mut file = File::open(path).map_err(io)?;
        file.seek(SeekFrom::Start(HEADER)).map_err(io)?;
        let mut frames = Frames::new(BufReader::with_capacity(256 << 10, &file), header);
        loop {
            if limit == Some(frames.offset()) {
                return Ok((frames.offset(), true));
            }
            let next_revision = Some(self.revision + 1);
            match frames.next().map_err(io)? {
                Next::Frame { offset, payload, .. } => {
                    self.frame(&payload).map_err(|what| ReadError::damaged(path, offset, next_revision, what))?;
                    if limit.is_some_and(|limit| frames.offset() > limit) {
                        return Err(ReadError::damaged(path, offset, next_revision, "a frame is longer than it was"));
                    }
                }
                Next::End if limit.is_none() => return Ok((frames.offset(), true)),
                Next::End => {
                    let what = "the end of the file is missing";
                    return Err(ReadError::damaged(path, frames.offset(), next_revision, what));
                }
                Next::Bad { offset, end, revision } => {
                    if limit.is_none() && frames::is_torn(&file, &header, offset, end).map_err(io)? {
                        tracing::info!(path = %path.display(), offset, "the last batch was not written to its end");
                        return Ok((offset, false));
                    }
                    let what = "a batch's check sum is wrong";
                    return Err(ReadError::damaged(path, offset, revision.or(next_revision), what));
                }
            }
        }
    }

    fn frame(&mut self, payload: &[u8]) -> Result<(), String> {
        let entries: Vec<Entry<'_>> =
            postcard::from_bytes(payload).map_err(|e| format!("it cannot be decoded: {e}"))?;
        for entry in entries {
            if let Entry::Write(record) = &entry {
                if record.revision <= self.after {
                    continue;
                }
                if record.revision != self.revision + 1 {
                    return Err(format!("revision {} follows revision {}", record.revision, self.revision));
                }
                self.revision = record.revision;
            }
            (self.each)(entry)?;
        }
        Ok(())
    }
}

impl Log {
    /// Goes on after what was found.
    pub fn open(dir: &Path, found: Found) -> Result<Self> {
        make_dir(dir)?;
        let mut sealed = found.segments;
        let next = found.revision + 1;
        let last = sealed.last().cloned();
        if let (Some(last), Some(header), true) = (last, found.last_header, found.last_is_whole) {
            let file = rewrite(dir, &last).map_err(failed("opening the log's segment", &last.path))?;
            sealed.pop();
            let mut log = Self { dir: dir.to_owned(), file, header, segment: last, unsure: false, sealed };
            log.remove_unfinished()?;
            return Ok(log);
        }
        let (number, length) = sealed.last().map_or((1, 0), |last| (last.number + 1, last.length));
        let (file, header, segment) =
            create(dir, number, next, length).map_err(failed("starting a segment of the log in", dir))?;
        Ok(Self { dir: dir.to_owned(), file, header, segment, unsure: false, sealed })
    }

    /// A segment that was being made would be in the way of the next one.
    fn remove_unfinished(&mut self) -> Result<()> {
        let path = path_of(&self.dir, self.segment.number + 1);
        match fs::remove_file(&path).and_then(|()| sync_dir(&self.dir)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("removing", &path)(e)),
            _ => Ok(()),
        }
    }

    /// Appends a batch whose newest write is `last` and waits until it is on the device.
    pub fn append(&mut self, last: Revision, entries: &[Entry<'_>]) -> Result<(), AppendError> {
        if self.unsure {
            self.renew().map_err(AppendError::NotWritten)?;
        }
        let frame = postcard::to_stdvec(entries)
            .map_err(io::Error::other)
            .and_then(|payload| self.header.frame(self.segment.length, last, &payload))
            .map_err(AppendError::NotWritten)?;
        let written = self.file.write_all(&frame);
        if let Err(error) = written {
            // Nothing of it may be mistaken for what is written next.
            let cut = self.file.set_len(self.segment.length).and_then(|()| self.file.sync_all());
            let back = cut.and_then(|()| self.file.seek(SeekFrom::Start(self.segment.length)));
            return Err(if back.is_ok() { AppendError::NotWritten(error) } else { self.give_up(error) });
        }
        if let Err(error) = self.file.sync_data() {
            // What a device says after a failed sync says nothing about the data before it.
            return Err(self.give_up(error));
        }
        self.segment.length += frame.len() as u64;
        self.segment.last = last;
        Ok(())
    }

    fn give_up(&mut self, error: io::Error) -> AppendError {
        self.unsure = true;
        match self.renew() {
            Ok(()) => AppendError::NotWritten(error),
            Err(_) => AppendError::Unknown(error),
        }
    }

    /// Starts the next segment. Its header says what of this one counts, so where that fails half-way nothing more is
    /// written to this one.
    pub fn renew(&mut self) -> io::Result<()> {
        self.unsure = true;
        let (number, next) = (self.segment.number + 1, self.segment.last + 1);
        let (file, header, segment) = create(&self.dir, number, next, self.segment.length)?;
        (self.file, self.header) = (file, header);
        self.sealed.push(std::mem::replace(&mut self.segment, segment));
        self.unsure = false;
        Ok(())
    }

    /// Closes a segment of at least so many bytes.
    pub fn rotate(&mut self, bytes: u64) -> io::Result<()> {
        if self.segment.length < bytes { Ok(()) } else { self.renew() }
    }

    /// Takes the closed segments that hold nothing after `upto`, for them to be removed.
    pub fn take_sealed(&mut self, upto: Revision) -> Vec<Segment> {
        let count = self.sealed.iter().take_while(|s| s.last <= upto).count();
        self.sealed.drain(..count).collect()
    }

    /// Bytes in closed segments.
    pub fn sealed_bytes(&self) -> u64 {
        self.sealed.iter().map(|s| s.length).sum()
    }
}

/// Removes what a crash has left of a segment that was being written again.
pub(crate) fn remove_unfinished(dir: &Path) {
    let _ = fs::remove_file(dir.join(UNFINISHED));
}

/// Writes what counts of a segment again. What was read may never have been on the device: a killed process had not
/// synced it yet, or its sync failed, and after that the kernel takes it for written.
fn rewrite(dir: &Path, segment: &Segment) -> io::Result<File> {
    let unfinished = dir.with_file_name(UNFINISHED);
    // Read and written by hand: a copy by the kernel may share what is on the device instead.
    let mut bytes = Vec::new();
    File::open(&segment.path)?.take(segment.length).read_to_end(&mut bytes)?;
    let mut file = private().truncate(true).open(&unfinished)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&unfinished, &segment.path)?;
    sync_dir(dir)?;
    sync_dir(dir.parent().unwrap_or(dir))?;
    Ok(file)
}

fn create(dir: &Path, number: u64, next: Revision, before: u64) -> io::Result<(File, Header, Segment)> {
    let path = path_of(dir, number);
    let header = Header::new(Kind::Log, [number, next, before])?;
    let mut file = private().truncate(true).open(&path)?;
    file.write_all(&header.encode())?;
    file.sync_all()?;
    sync_dir(dir)?;
    Ok((file, header, Segment { path, number, last: next - 1, length: HEADER }))
}

#[cfg(test)]
mod tests {
    use super::super::Record;
    use super::*;

    fn write(revision: Revision) -> Entry<'static> {
        Entry::Write(Record { revision, create_revision: revision, expires: 0, key: "/k", value: Some(b"value") })
    }

    fn revisions(dir: &Path, after: Revision) -> Result<(Vec<Revision>, Found), ReadError> {
        let mut seen = Vec::new();
        let found = read(dir, after, &mut |entry| {
            if let Entry::Write(record) = entry {
                seen.push(record.revision);
            }
            Ok(())
        })?;
        Ok((seen, found))
    }

    fn reopened(dir: &Path) -> Log {
        let (_, found) = revisions(dir, 1).unwrap();
        Log::open(dir, found).unwrap()
    }

    #[test]
    fn two_crashes_in_a_row_leave_a_log_that_opens() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let mut want = Vec::new();
        for crash in 0..20 {
            let mut log = reopened(dir);
            for _ in 0..2 {
                want.push(log.segment.last + 1);
                log.append(log.segment.last + 1, &[write(log.segment.last + 1)]).unwrap();
            }
            // The third is cut off.
            let torn = log.header.frame(log.segment.length, log.segment.last + 1, &[1; 40]).unwrap();
            log.file.write_all(&torn[..10 + crash]).unwrap();
            drop(log);
            assert_eq!(revisions(dir, 1).unwrap().0, want);
        }
        assert_eq!(files(dir).unwrap().len(), 20);
    }

    #[test]
    fn damage_is_said_with_file_offset_and_revision() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let mut log = reopened(dir);
        let mut offsets = Vec::new();
        for revision in 2..7 {
            offsets.push(log.segment.length);
            log.append(revision, &[write(revision)]).unwrap();
        }
        let path = log.segment.path.clone();
        drop(log);
        let whole = fs::read(&path).unwrap();
        for (i, offset) in offsets.iter().enumerate() {
            let mut raw = whole.clone();
            raw[*offset as usize + 30] ^= 4;
            fs::write(&path, raw).unwrap();
            match revisions(dir, 1).err().unwrap() {
                ReadError::Damaged(damage) => {
                    assert_eq!((&damage.file, damage.offset, damage.revision), (&path, *offset, Some(i as u64 + 2)));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_missing_segment_or_the_end_of_one_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let mut log = reopened(dir);
        for revision in 2..8 {
            log.append(revision, &[write(revision)]).unwrap();
            log.renew().unwrap();
        }
        drop(log);
        assert_eq!(revisions(dir, 1).unwrap().0, (2..8).collect::<Vec<_>>());
        // What a snapshot covers may be missing, and nothing else.
        fs::remove_file(path_of(dir, 1)).unwrap();
        assert_eq!(revisions(dir, 2).unwrap().0, (3..8).collect::<Vec<_>>());
        assert!(matches!(revisions(dir, 1), Err(ReadError::Damaged(d)) if d.revision == Some(2)));
        let middle = fs::read(path_of(dir, 4)).unwrap();
        fs::remove_file(path_of(dir, 4)).unwrap();
        assert!(matches!(revisions(dir, 2), Err(ReadError::Damaged(d)) if d.what.contains("segment 4")));
        fs::write(path_of(dir, 4), &middle[..middle.len() - 8]).unwrap();
        assert!(matches!(revisions(dir, 2), Err(ReadError::Damaged(d)) if d.revision == Some(5)));
    }

    #[test]
    fn a_segment_that_was_being_made_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let mut log = reopened(dir);
        log.append(2, &[write(2)]).unwrap();
        drop(log);
        for unfinished in [&[][..], &[0u8; 512], b"causeway"] {
            fs::write(path_of(dir, 2), unfinished).unwrap();
            assert_eq!(revisions(dir, 1).unwrap().0, [2]);
            let mut log = reopened(dir);
            assert!(!path_of(dir, 2).exists());
            log.renew().unwrap();
            fs::remove_file(path_of(dir, 2)).unwrap();
        }
    }

    #[test]
    fn nothing_is_written_behind_the_back_of_a_segment_that_may_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let mut log = reopened(dir);
        log.append(2, &[write(2)]).unwrap();
        // The next segment cannot be made, or only its header: it would not count what is written here from now on.
        fs::create_dir(path_of(dir, 2)).unwrap();
        assert!(log.rotate(0).is_err());
        assert!(matches!(log.append(3, &[write(3)]), Err(AppendError::NotWritten(_))));
        fs::remove_dir(path_of(dir, 2)).unwrap();
        log.append(3, &[write(3)]).unwrap();
        assert_eq!(log.segment.number, 2);
        drop(log);
        assert_eq!(revisions(dir, 1).unwrap().0, [2, 3]);
    }

    #[test]
    fn a_batch_after_a_failed_one_goes_to_a_new_segment() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let mut log = reopened(dir);
        log.append(2, &[write(2)]).unwrap();
        // Whole in the file, and yet its sync failed: it was refused.
        let frame = log.header.frame(log.segment.length, 3, &postcard::to_stdvec(&[write(3)]).unwrap()).unwrap();
        log.file.write_all(&frame).unwrap();
        assert!(matches!(log.give_up(io::Error::other("device")), AppendError::NotWritten(_)));
        log.append(3, &[write(3)]).unwrap();
        log.append(4, &[write(4)]).unwrap();
        drop(log);
        assert_eq!(revisions(dir, 1).unwrap().0, [2, 3, 4]);
    }

    /// A snapshot covers segments 1 and 2; of their removals only the second is on the device when the power goes.
    #[test]
    fn removals_out_of_order_are_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let mut log = reopened(dir);
        for revision in 2..6 {
            log.append(revision, &[write(revision)]).unwrap();
            log.renew().unwrap();
        }
        drop(log);
        fs::remove_file(path_of(dir, 2)).unwrap();
        match revisions(dir, 3) {
            Ok((seen, _)) => assert_eq!(seen, [4, 5]),
            Err(e) => panic!("{:?}", crate::StoreError::from(e).to_string()),
        }
    }
}
