//! Address families and the numbers of nftables' messages.

use crate::wire::{Attributes, CREATE, NFTABLES, Request};
use std::net::IpAddr;

/// Messages of nftables.
pub mod message {
    #![allow(missing_docs)]
    pub const NEW_TABLE: u16 = 0;
    pub const DEL_TABLE: u16 = 2;
    pub const NEW_CHAIN: u16 = 3;
    pub const GET_CHAIN: u16 = 4;
    pub const DEL_CHAIN: u16 = 5;
    pub const NEW_RULE: u16 = 6;
    pub const GET_RULE: u16 = 7;
    pub const DEL_RULE: u16 = 8;
    pub const NEW_SET: u16 = 9;
    pub const GET_SET: u16 = 10;
    pub const DEL_SET: u16 = 11;
    pub const NEW_ELEMENTS: u16 = 12;
    pub const GET_ELEMENTS: u16 = 13;
    pub const DEL_ELEMENTS: u16 = 14;
    pub const GET_GENERATION: u16 = 16;
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Of an address.
    pub fn of(ip: &IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// `NFPROTO_…`.
    pub fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    /// An address' length in bytes.
    pub fn length(self) -> u32 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// A request about this family.
    pub fn request(self, message: u16, flags: u16, attributes: Attributes, what: impl Into<String>) -> Request {
        Request { kind: NFTABLES << 8 | message, family: self.number(), flags, attributes, what: what.into() }
    }

    /// A request that makes something.
    pub fn make(self, message: u16, attributes: Attributes, what: impl Into<String>) -> Request {
        self.request(message, CREATE, attributes, what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_belong_to_nftables() {
        let request = Family::V6.request(message::GET_GENERATION, 0, Attributes::default(), "x");
        assert_eq!((request.kind >> 8, request.family), (NFTABLES, 10));
    }
}
