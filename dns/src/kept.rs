//! Answers of the zone as they go on the wire, kept to be given again. In: packets, and answers that hickory wrote. Out: the
//! same answer with the id, the flags and the case of who asks, without parsing or building anything.
//!
//! What is read here is only enough to recognise a plain question; anything unusual is left to hickory.

use crate::zone::Stamp;
use std::collections::HashMap;

/// Answers kept by each socket; when there are more, it starts anew.
const MAX_ITEMS: usize = 32_768;
/// A header.
const HEADER: usize = 12;
/// The longest name, and type and class.
const MAX_QUESTION: usize = 255 + 4;
/// An OPT record without options.
pub const OPT_LENGTH: usize = 11;
/// Options of an OPT record.
const COOKIE: u8 = 10;
const PADDING: u8 = 12;
/// Flags of a question that change nothing for us or are repeated: recursion desired, authentic data, checking disabled.
const PLAIN_FLAGS: u16 = 0x0130;
/// The flags that are repeated: recursion desired, checking disabled.
const REPEATED: u16 = 0x0110;

/// What a client says about the answer it can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opt {
    /// Its buffer.
    pub payload: u16,
    /// It wants signatures.
    pub dnssec: bool,
}

/// A plain question.
#[derive(Debug, Clone, Copy)]
pub struct Plain {
    key: [u8; MAX_QUESTION],
    length: usize,
    /// What it says about itself, if it does.
    pub opt: Option<Opt>,
}

impl Plain {
    /// Reads a packet of one question, whose name is not compressed, with nothing after it but perhaps an OPT record.
    pub fn read(packet: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER] = packet.first_chunk()?;
        let flags = u16::from_be_bytes([header[2], header[3]]);
        let [additionals @ (0 | 1)] = header[11..] else { return None };
        if flags & !PLAIN_FLAGS != 0 || header[4..11] != [0, 1, 0, 0, 0, 0, 0] {
            return None;
        }
        let body = &packet[HEADER..];
        let mut end = 0;
        loop {
            let length = *body.get(end)?;
            end += 1 + usize::from(length);
            match length {
                0 => break,
                1..=63 if end < MAX_QUESTION - 4 => {}
                _ => return None,
            }
        }
        let length = end + 4;
        let mut key = [0; MAX_QUESTION];
        let (mine, question) = (key.get_mut(..length)?, body.get(..length)?);
        mine.copy_from_slice(question);
        // Lengths of labels are below 64 and so no letters; nor do we know types or classes that are.
        mine[..end].make_ascii_lowercase();
        let rest = &body[length..];
        let opt = if additionals == 0 { rest.is_empty().then_some(None)? } else { Some(Opt::read(rest)?) };
        Some(Self { key, length, opt })
    }

    /// The number of its type.
    pub fn kind(&self) -> u16 {
        u16::from_be_bytes([self.key[self.length - 4], self.key[self.length - 3]])
    }

    /// Name in lower case, type and class.
    fn key(&self) -> &[u8] {
        &self.key[..self.length]
    }
}

impl Opt {
    fn read(record: &[u8]) -> Option<Self> {
        // Root, type 41, payload, extended code 0, version 0, flags, length of the options; those change nothing.
        let [0, 0, 41, high, low, 0, 0, flags @ (0 | 0x80), 0, long, short, options @ ..] = record else { return None };
        let length = usize::from(u16::from_be_bytes([*long, *short]));
        let plain = options.len() == length && are_harmless(options);
        plain.then_some(Self { payload: u16::from_be_bytes([*high, *low]), dnssec: *flags != 0 })
    }

    /// The record of an answer.
    fn write(self, payload: u16) -> [u8; OPT_LENGTH] {
        let [high, low] = payload.to_be_bytes();
        [0, 0, 41, high, low, 0, 0, if self.dnssec { 0x80 } else { 0 }, 0, 0, 0]
    }
}

/// Whether these are options whose content is nobody's business: cookies and padding, each as long as it says.
fn are_harmless(mut options: &[u8]) -> bool {
    while let [0, COOKIE | PADDING, high, low, rest @ ..] = options {
        match rest.get(usize::from(u16::from_be_bytes([*high, *low]))..) {
            Some(behind) => options = behind,
            None => return false,
        }
    }
    options.is_empty()
}

/// An answer.
#[derive(Debug)]
struct Item {
    stamp: Stamp,
    bytes: Box<[u8]>,
    /// Where the records begin that take turns, and the length of each.
    turns: Option<(usize, usize)>,
    /// For metrics.
    label: (u8, u8),
}

/// The kept answers of one socket.
#[derive(Default)]
pub struct Kept {
    items: HashMap<Box<[u8]>, Item>,
    turn: usize,
}

impl Kept {
    /// Writes the answer to a question into `out`; its labels for metrics. `None` when there is none that fits `limit`.
    pub fn answer(
        &mut self,
        plain: &Plain,
        packet: &[u8],
        (limit, payload): (u16, u16),
        is_current: impl Fn(Stamp) -> bool,
        out: &mut Vec<u8>,
    ) -> Option<(u8, u8)> {
        let item = self.items.get(plain.key())?;
        let length = item.bytes.len() + plain.opt.map_or(0, |_| OPT_LENGTH);
        if length > usize::from(limit) || !is_current(item.stamp) {
            return None;
        }
        out.clear();
        out.extend_from_slice(&item.bytes);
        out[..2].copy_from_slice(&packet[..2]);
        let asked = u16::from_be_bytes([packet[2], packet[3]]) & REPEATED;
        let flags = u16::from_be_bytes([out[2], out[3]]) & !REPEATED | asked;
        out[2..4].copy_from_slice(&flags.to_be_bytes());
        // The name as it was asked; names in the records point here.
        let question = HEADER..HEADER + plain.length;
        out[question.clone()].copy_from_slice(&packet[question]);
        if let Some((begin, each)) = item.turns {
            let records = &mut out[begin..];
            self.turn = self.turn.wrapping_add(1);
            records.rotate_left(each * (self.turn % (records.len() / each)));
        }
        if let Some(opt) = plain.opt {
            out.extend_from_slice(&opt.write(payload));
            // Fewer than 255 additional records fit a packet.
            out[11] += 1;
        }
        Some(item.label)
    }

    /// Keeps an answer that was written for this question, if it can be given again.
    pub fn keep(&mut self, plain: &Plain, answer: &[u8], stamp: Stamp, label: (u8, u8)) {
        let Some(item) = Item::of(plain, answer, stamp, label) else { return };
        if self.items.len() >= MAX_ITEMS && !self.items.contains_key(plain.key()) {
            self.items.clear();
        }
        self.items.insert(plain.key().into(), item);
    }
}

impl Item {
    /// `None` when its records should take turns and cannot by moving bytes, or when it was cut.
    fn of(plain: &Plain, answer: &[u8], stamp: Stamp, label: (u8, u8)) -> Option<Self> {
        let opt = plain.opt.map_or(0, |_| OPT_LENGTH);
        let (bytes, end) = answer.split_at_checked(answer.len().checked_sub(opt)?)?;
        let count = |at: usize| bytes.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
        if count(2)? & 0x0200 != 0 || !plain.opt.is_none_or(|_| end.starts_with(&[0, 0, 41])) {
            return None;
        }
        let (answers, authorities, additionals) = (count(6)?, count(8)?, count(10)?);
        let additionals = additionals.checked_sub(u16::from(plain.opt.is_some()))?;
        let turns = match answers {
            0 | 1 => None,
            _ if authorities != 0 || additionals != 0 => return None,
            _ => Some(equal_records(bytes, HEADER + plain.length, answers.into())?),
        };
        let mut bytes: Box<[u8]> = bytes.into();
        bytes.get_mut(10..12)?.copy_from_slice(&additionals.to_be_bytes());
        (additionals < 255).then_some(Self { stamp, bytes, turns, label })
    }
}

/// Where records begin, and how long each is, if they are all of the same length and of the question's name.
fn equal_records(bytes: &[u8], begin: usize, count: usize) -> Option<(usize, usize)> {
    let records = bytes.get(begin..)?;
    let each = records.len() / count;
    let is_one = |record: &[u8]| {
        record.starts_with(&[0xc0, 0x0c]) && record.get(10..12) == Some(&[0, each.wrapping_sub(12) as u8])
    };
    let equal = each > 12 && each < 256 && records.len() == each * count && records.chunks_exact(each).all(is_one);
    equal.then_some((begin, each))
}
