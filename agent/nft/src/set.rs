//! What a set or map is made of, and the request that makes it.

use crate::{
    family::{Family, message},
    wire::{Attributes, Request},
};

/// It has data beside keys.
pub const MAP: u32 = 0x8;
/// Its elements are bounds of ranges.
pub const INTERVAL: u32 = 0x4;
/// Each part of its keys is a range: with [`INTERVAL`]. The kernel makes a copy of such a set to change it.
pub const PARTS: u32 = 0x80;
/// Its elements can end by themselves.
pub const TIMEOUT: u32 = 0x10;
/// Packets write it.
pub const DYNAMIC: u32 = 0x20;

/// A part of a key or value, as `nft` names types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// An address of the table's family.
    Address,
    /// A transport protocol.
    Protocol,
    /// A transport port.
    Port,
    /// A number.
    Mark,
    /// A verdict: values only, alone.
    Verdict,
}

impl Part {
    fn kind(self, family: Family) -> u32 {
        match self {
            Self::Address if family == Family::V4 => 7,
            Self::Address => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Mark => 19,
            Self::Verdict => 0xffff_ff00,
        }
    }

    fn length(self, family: Family) -> u32 {
        match self {
            Self::Address => family.length(),
            Self::Verdict => 16,
            _ => 4,
        }
    }
}

/// A set or map to be made.
#[derive(Debug, Clone, Copy)]
pub struct Set<'a> {
    /// Its table.
    pub table: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Of which parts its keys are.
    pub key: &'a [Part],
    /// Of which its values are; none for a set.
    pub data: &'a [Part],
    /// [`MAP`], [`INTERVAL`], …
    pub flags: u32,
    /// How many elements it takes at most.
    pub size: Option<u32>,
}

impl Set<'_> {
    /// The request that makes it; `id` must be unique in its transaction.
    pub fn create(&self, family: Family, id: u32) -> Request {
        let kind = |parts: &[Part]| parts.iter().fold(0, |all, p| all << 6 | p.kind(family));
        let length = |parts: &[Part]| parts.iter().map(|p| p.length(family)).sum();
        let mut attributes = Attributes::default()
            .text(1, self.table)
            .text(2, self.name)
            .number(3, self.flags)
            .number(4, kind(self.key))
            .number(5, length(self.key));
        if !self.data.is_empty() {
            attributes = attributes.number(6, kind(self.data));
            if self.data != [Part::Verdict] {
                attributes = attributes.number(7, length(self.data));
            }
        }
        let mut description = Attributes::default();
        if let Some(size) = self.size {
            description = description.number(1, size);
        }
        if self.flags & PARTS != 0 {
            let part = |part: &Part| Attributes::default().number(1, part.length(family));
            let parts = self.key.iter().map(part).fold(Attributes::default(), |all, p| all.nest(1, p));
            description = description.nest(2, parts);
        }
        if !description.0.is_empty() {
            attributes = attributes.nest(9, description);
        }
        family.make(message::NEW_SET, attributes.number(10, id), format!("the set {}", self.name))
    }
}
