//! The form of the store's files: a header, then frames, each with a check sum.
//!
//! In: payloads with a revision. Out: the same payloads, or where and why the file ends. A reader can tell three ends
//! apart: the *end*; a *torn* frame, which the device had not finished when the power went, so that nobody was told of
//! it; and *damage*, bytes that are not those that were written. Only the second may be passed over.
//!
//! What makes them distinguishable: a device writes sectors of 512 bytes whole or not at all, and a sector of a growing
//! file that was never written reads as zeros. Frames are whitened, so that no written sector is all zeros whatever the
//! payload. Whitening and check sums depend on a random salt of the file: no value can contain what looks like a frame.
//! Frames begin at multiples of 8, so that no part of a frame in a sector is shorter than 8 bytes.

use crate::Revision;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

/// Bytes of a file's header: a sector of its own, which no later write touches.
pub(crate) const HEADER: u64 = 512;
/// A payload is at most this long: what is longer in a file is damage, and costs no memory.
pub(crate) const MAX_PAYLOAD: usize = 32 << 20;

const MAGIC: &[u8; 8] = b"causeway";
const FORMAT: u32 = 2;
const FRAME_MAGIC: u32 = 0x6d61_7266;
const FRAME_HEAD: usize = 24;
const SECTOR: u64 = 512;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Log = 1,
    Snapshot = 2,
}

/// The header. What the three numbers mean depends on the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub kind: Kind,
    salt: u128,
    pub numbers: [u64; 3],
}

impl Header {
    /// A header with a fresh salt.
    pub fn new(kind: Kind, numbers: [u64; 3]) -> io::Result<Self> {
        let mut salt = [0u8; 16];
        File::open("/dev/urandom")?.read_exact(&mut salt)?;
        Ok(Self { kind, salt: u128::from_le_bytes(salt), numbers })
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER as usize);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&(self.kind as u32).to_le_bytes());
        out.extend_from_slice(&self.salt.to_le_bytes());
        for number in self.numbers {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let sum = crc32fast::hash(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out.resize(HEADER as usize, 0);
        out
    }

    /// What is wrong with it otherwise.
    pub fn decode(raw: &[u8], kind: Kind) -> Result<Self, String> {
        let field = |at: usize, len: usize| raw.get(at..at + len).ok_or("the header is cut off");
        let word = |at| field(at, 8).map(|b| b.try_into().map_or(0, u64::from_le_bytes));
        let half = |at| field(at, 4).map(|b| b.try_into().map_or(0, u32::from_le_bytes));
        if field(0, 8)? != MAGIC {
            return Err("it does not begin as a file of the store does".to_owned());
        }
        if crc32fast::hash(field(0, 56)?) != half(56)? || raw.get(60..HEADER as usize).is_none_or(|r| r != [0; 452]) {
            return Err("the header's check sum is wrong".to_owned());
        }
        if half(8)? != FORMAT {
            return Err(format!("format {} is not one that this program knows", half(8)?));
        }
        if half(12)? != kind as u32 {
            return Err(format!("it is not a file of the kind {kind:?}"));
        }
        let salt = u128::from(word(16)?) | (u128::from(word(24)?) << 64);
        Ok(Self { kind, salt, numbers: [word(32)?, word(40)?, word(48)?] })
    }

    /// A frame to be written at an offset.
    pub fn frame(&self, offset: u64, revision: Revision, payload: &[u8]) -> io::Result<Vec<u8>> {
        let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= MAX_PAYLOAD);
        let length = length.ok_or_else(|| io::Error::other(format!("{} bytes in one frame", payload.len())))?;
        let mut out = Vec::with_capacity(FRAME_HEAD + payload.len() + 8);
        out.extend_from_slice(&FRAME_MAGIC.to_le_bytes());
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&revision.to_le_bytes());
        out.extend_from_slice(&self.sum(offset, &out[..16]).to_le_bytes());
        out.extend_from_slice(&self.sum(offset, payload).to_le_bytes());
        out.extend_from_slice(payload);
        out.resize(out.len().next_multiple_of(8), 0);
        self.whiten(offset, 0, &mut out);
        Ok(out)
    }

    fn sum(&self, offset: u64, bytes: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.salt.to_le_bytes());
        hasher.update(&offset.to_le_bytes());
        hasher.update(bytes);
        hasher.finalize()
    }

    /// Adds a key stream to the bytes of the frame at `offset`, from byte `skip` (a multiple of 8) of the frame on.
    /// Twice gives the original.
    fn whiten(&self, offset: u64, skip: usize, bytes: &mut [u8]) {
        let seed =
            (self.salt as u64).wrapping_add(offset).wrapping_mul(0xd6e8_feb8_6659_fd93) ^ (self.salt >> 64) as u64;
        let mut counter = seed.wrapping_add((skip as u64 / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // Always whole words but at the end of a payload that is read.
        let mut key = || {
            counter = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (counter ^ (counter >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        };
        let (words, rest) = bytes.as_chunks_mut::<8>();
        for word in words {
            *word = (u64::from_le_bytes(*word) ^ key()).to_le_bytes();
        }
        for (byte, key) in rest.iter_mut().zip(key().to_le_bytes()) {
            *byte ^= key;
        }
    }

    fn head(&self, offset: u64, raw: &[u8; FRAME_HEAD]) -> Option<Head> {
        let mut plain = *raw;
        self.whiten(offset, 0, &mut plain);
        let half = |at: usize| plain.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        let revision = plain.get(8..16).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        let length = half(4) as usize;
        let right = half(0) == FRAME_MAGIC && self.sum(offset, &plain[..16]) == half(16) && length <= MAX_PAYLOAD;
        right.then_some(Head { length, revision, sum: half(20) })
    }
}

struct Head {
    length: usize,
    revision: Revision,
    sum: u32,
}

impl Head {
    fn padded(&self) -> usize {
        self.length.next_multiple_of(8)
    }
}

/// What comes next in a file.
pub(crate) enum Next {
    /// A whole frame, and where it begins.
    Frame { offset: u64, payload: Vec<u8> },
    /// The file ends here, behind a whole frame.
    End,
    /// No whole frame begins here. `end` is where it would end, if its head is whole.
    Bad { offset: u64, end: Option<u64>, revision: Option<Revision> },
}

/// Reads frames one after another. The header has been read already.
pub(crate) struct Frames<R> {
    input: R,
    header: Header,
    offset: u64,
}

impl<R: Read> Frames<R> {
    pub fn new(input: R, header: Header) -> Self {
        Self { input, header, offset: HEADER }
    }

    /// Where the next frame begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next frame. To be called no more after anything else.
    pub fn next(&mut self) -> io::Result<Next> {
        let offset = self.offset;
        let mut head = [0u8; FRAME_HEAD];
        match read_full(&mut self.input, &mut head)? {
            0 => return Ok(Next::End),
            FRAME_HEAD => {}
            _ => return Ok(Next::Bad { offset, end: None, revision: None }),
        }
        let Some(head) = self.header.head(offset, &head) else {
            return Ok(Next::Bad { offset, end: None, revision: None });
        };
        let end = offset + (FRAME_HEAD + head.padded()) as u64;
        let mut payload = vec![0u8; head.padded()];
        let whole = read_full(&mut self.input, &mut payload)? == payload.len();
        self.header.whiten(offset, FRAME_HEAD, &mut payload);
        let padding = payload.split_off(head.length);
        if !whole || self.header.sum(offset, &payload) != head.sum || padding.iter().any(|b| *b != 0) {
            return Ok(Next::Bad { offset, end: Some(end), revision: Some(head.revision) });
        }
        self.offset = end;
        Ok(Next::Frame { offset, payload })
    }
}

/// Whether what is bad at `offset` was cut off by a power failure: it is the last thing in the file, and a sector of it
/// was never written.
pub(crate) fn is_torn(file: &File, header: &Header, offset: u64, end: Option<u64>) -> io::Result<bool> {
    let length = file.metadata()?.len();
    match end {
        // A next frame is begun only when the one before is on the device.
        Some(end) => Ok(length <= end && (length < end || has_unwritten_sector(file, offset, end)?)),
        None => {
            let end = offset + FRAME_HEAD as u64;
            let unwritten = length < end || has_unwritten_sector(file, offset, end)?;
            Ok(unwritten && !has_frame_after(file, header, end.min(length), length)?)
        }
    }
}

fn has_unwritten_sector(file: &File, offset: u64, end: u64) -> io::Result<bool> {
    let mut at = offset;
    let mut sector = [0u8; SECTOR as usize];
    while at < end {
        let next = end.min((at / SECTOR + 1) * SECTOR);
        let part = &mut sector[..(next - at) as usize];
        file.read_exact_at(part, at)?;
        if part.iter().all(|b| *b == 0) {
            return Ok(true);
        }
        at = next;
    }
    Ok(false)
}

/// Whether a frame's head is anywhere in `[from, length)`.
fn has_frame_after(file: &File, header: &Header, from: u64, length: u64) -> io::Result<bool> {
    const CHUNK: usize = 64 << 10;
    let mut buffer = vec![0u8; CHUNK + FRAME_HEAD];
    let mut at = from.next_multiple_of(8);
    while at + FRAME_HEAD as u64 <= length {
        let wanted = buffer.len().min((length - at) as usize);
        file.read_exact_at(&mut buffer[..wanted], at)?;
        for (i, raw) in buffer[..wanted].windows(FRAME_HEAD).enumerate().step_by(8).take(CHUNK / 8) {
            if raw.try_into().is_ok_and(|raw| header.head(at + i as u64, raw).is_some()) {
                return Ok(true);
            }
        }
        at += CHUNK as u64;
    }
    Ok(false)
}

/// As much of the buffer as there is.
pub(crate) fn read_full(input: &mut (impl Read + ?Sized), buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match input.read(&mut buffer[done..]) {
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
    use proptest::prelude::*;
    use std::io::{Seek, Write};

    /// A file with these payloads, and where each frame ends.
    fn written(payloads: &[Vec<u8>]) -> (File, Header, Vec<u64>) {
        let mut file = tempfile::tempfile().unwrap();
        let header = Header::new(Kind::Log, [1, 2, 3]).unwrap();
        file.write_all(&header.encode()).unwrap();
        let mut ends = vec![HEADER];
        for (i, payload) in payloads.iter().enumerate() {
            let frame = header.frame(*ends.last().unwrap(), i as u64, payload).unwrap();
            file.write_all(&frame).unwrap();
            ends.push(ends.last().unwrap() + frame.len() as u64);
        }
        (file, header, ends)
    }

    /// How many frames are whole, and what is behind them: `None` for nothing, else whether it is torn.
    fn read(mut file: &File, header: &Header) -> (usize, Option<bool>) {
        file.seek(io::SeekFrom::Start(HEADER)).unwrap();
        let mut frames = Frames::new(io::BufReader::new(file), *header);
        let mut count = 0;
        loop {
            match frames.next().unwrap() {
                Next::Frame { .. } => count += 1,
                Next::End => return (count, None),
                Next::Bad { offset, end, .. } => return (count, Some(is_torn(file, header, offset, end).unwrap())),
            }
        }
    }

    fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let payload =
            prop_oneof![prop::collection::vec(any::<u8>(), 0..3000), (0usize..3000).prop_map(|n| vec![0u8; n]),];
        prop::collection::vec(payload, 1..6)
    }

    proptest! {
        #[test]
        fn a_header_is_read_back_and_a_flipped_bit_seen(bit in 0usize..4096) {
            let header = Header::new(Kind::Snapshot, [7, 8, 9]).unwrap();
            let mut raw = header.encode();
            prop_assert_eq!(Header::decode(&raw, Kind::Snapshot).unwrap(), header);
            prop_assert!(Header::decode(&raw, Kind::Log).is_err());
            raw[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Header::decode(&raw, Kind::Snapshot).is_err());
        }

        #[test]
        fn a_flipped_bit_is_damage_and_never_torn(payloads in payloads(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let (file, header, ends) = written(&payloads);
            prop_assert_eq!(read(&file, &header), (payloads.len(), None));
            let length = *ends.last().unwrap();
            let at = HEADER + at.index((length - HEADER) as usize) as u64;
            let mut byte = [0u8];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
            let before = ends.iter().filter(|end| **end <= at).count() - 1;
            prop_assert_eq!(read(&file, &header), (before, Some(false)));
        }

        #[test]
        fn a_frame_with_missing_sectors_is_torn(payloads in payloads(), lost in prop::collection::vec(any::<bool>(), 16), cut in any::<bool>()) {
            let (file, header, ends) = written(&payloads);
            let (begin, end) = (ends[ends.len() - 2], ends[ends.len() - 1]);
            // Sectors of the last frame that did not get to the device: what was there before, and zeros.
            let mut any = false;
            let mut at = begin;
            for lost in lost.iter().cycle() {
                if at >= end { break }
                let next = end.min((at / SECTOR + 1) * SECTOR);
                if *lost {
                    any = true;
                    if cut {
                        file.set_len(at).unwrap();
                        break;
                    }
                    file.write_all_at(&vec![0; (next - at) as usize], at).unwrap();
                }
                at = next;
            }
            let torn = if cut && any && file.metadata().unwrap().len() == begin { None } else { Some(true) };
            let want = if any { (payloads.len() - 1, torn) } else { (payloads.len(), None) };
            prop_assert_eq!(read(&file, &header), want);
        }

        #[test]
        fn zeros_before_a_whole_frame_are_damage(payloads in payloads(), which in any::<prop::sample::Index>()) {
            prop_assume!(payloads.len() > 1);
            let (file, header, ends) = written(&payloads);
            let i = which.index(payloads.len() - 1);
            // A sector that was lost after all, with whole frames behind it.
            let next = ends[i + 1].min((ends[i] / SECTOR + 1) * SECTOR);
            file.write_all_at(&vec![0; (next - ends[i]) as usize], ends[i]).unwrap();
            prop_assert_eq!(read(&file, &header), (i, Some(false)));
        }

        #[test]
        fn no_bytes_make_the_reader_fail(raw in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut file = tempfile::tempfile().unwrap();
            let header = Header::new(Kind::Log, [0; 3]).unwrap();
            file.write_all(&header.encode()).unwrap();
            file.write_all(&raw).unwrap();
            prop_assert_eq!(read(&file, &header).0, 0);
        }
    }
}
