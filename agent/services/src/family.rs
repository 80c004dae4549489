//! Names and numbers of our tables in the kernel: one table a family, the same sets and chains in each.

use crate::{
    plan::{Element, RangeSet},
    wire::{Attributes, CREATE, NFTABLES, Request},
};
use std::net::IpAddr;

/// Our table's name, in the families `ip` and `ip6`.
pub const TABLE: &str = "causeway";

/// Messages of nftables.
pub mod message {
    #![allow(missing_docs)]
    pub const NEW_TABLE: u16 = 0;
    pub const DEL_TABLE: u16 = 2;
    pub const NEW_CHAIN: u16 = 3;
    pub const GET_CHAIN: u16 = 4;
    pub const NEW_RULE: u16 = 6;
    pub const GET_RULE: u16 = 7;
    pub const NEW_SET: u16 = 9;
    pub const GET_SET: u16 = 10;
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

/// A part of a key, as `nft` names types.
#[derive(Debug, Clone, Copy)]
enum Part {
    Address,
    Protocol,
    Port,
    Mark,
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

/// One of our sets and maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetName {
    /// Front → zero and the number of places and class.
    Services,
    /// The same for sources outside of the cluster.
    External,
    /// Front and place → endpoint.
    Endpoints,
    /// Fronts with affinity and place → zero and the endpoint's number.
    Ids,
    /// Fronts with affinity and endpoint's number → endpoint.
    Sticky,
    /// Addresses of services.
    ClusterIps,
    /// Endpoints on this node, each with itself.
    Hairpin,
    /// All pods.
    Pods,
    /// All service addresses.
    Ranges,
    /// The node's addresses and pods.
    Local,
    /// Client and front → anything and the endpoint's number: written by the packets themselves.
    Affinity,
    /// Number of places and class → chain. Fixed.
    Dispatch,
}

const MAP: u32 = 0x8;
const INTERVAL: u32 = 0x4;
const TIMEOUT: u32 = 0x10;
const DYNAMIC: u32 = 0x20;

/// Those whose elements are data, and planned.
pub const DATA_SETS: [SetName; 10] = [
    SetName::Services,
    SetName::External,
    SetName::Endpoints,
    SetName::Ids,
    SetName::Sticky,
    SetName::ClusterIps,
    SetName::Hairpin,
    SetName::Pods,
    SetName::Ranges,
    SetName::Local,
];

impl SetName {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        DATA_SETS.into_iter().chain([Self::Affinity, Self::Dispatch])
    }

    /// Its name in the kernel.
    pub fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::External => "external",
            Self::Endpoints => "endpoints",
            Self::Ids => "ids",
            Self::Sticky => "sticky",
            Self::ClusterIps => "cluster-ips",
            Self::Hairpin => "hairpin",
            Self::Pods => "pods",
            Self::Ranges => "ranges",
            Self::Local => "local",
            Self::Affinity => "affinity",
            Self::Dispatch => "dispatch",
        }
    }

    /// Where an element belongs.
    pub fn of(element: &Element) -> Self {
        match element {
            Element::Service(..) => Self::Services,
            Element::External(..) => Self::External,
            Element::Endpoint(..) => Self::Endpoints,
            Element::Id(..) => Self::Ids,
            Element::Sticky(..) => Self::Sticky,
            Element::ClusterIp(_) => Self::ClusterIps,
            Element::Hairpin(_) => Self::Hairpin,
            Element::Bound(RangeSet::Pods, ..) => Self::Pods,
            Element::Bound(RangeSet::Services, ..) => Self::Ranges,
            Element::Bound(RangeSet::Local, ..) => Self::Local,
        }
    }

    fn parts(self) -> (&'static [Part], &'static [Part], u32) {
        use Part::{Address, Mark, Port, Protocol, Verdict};
        match self {
            Self::Services | Self::External => (&[Address, Protocol, Port], &[Mark, Mark], MAP),
            Self::Endpoints => (&[Address, Protocol, Port, Mark], &[Address, Port], MAP),
            Self::Ids => (&[Address, Protocol, Port, Mark], &[Mark, Mark], MAP),
            Self::Sticky => (&[Address, Protocol, Port, Mark], &[Address, Port], MAP),
            Self::ClusterIps => (&[Address], &[], 0),
            Self::Hairpin => (&[Address, Address], &[], 0),
            Self::Pods | Self::Ranges | Self::Local => (&[Address], &[], INTERVAL),
            Self::Affinity => (&[Address, Address, Protocol, Port], &[Mark, Mark], MAP | TIMEOUT | DYNAMIC),
            Self::Dispatch => (&[Mark], &[Verdict], MAP),
        }
    }

    /// The request that makes it; `id` must be unique in its transaction.
    pub fn create(self, family: Family, id: u32) -> Request {
        /// Clients remembered at most: beyond, connections are spread as if there were no affinity.
        const CLIENTS: u32 = 262_144;
        let (key, data, flags) = self.parts();
        let kind = |parts: &[Part]| parts.iter().fold(0, |all, p| all << 6 | p.kind(family));
        let length = |parts: &[Part]| parts.iter().map(|p| p.length(family)).sum();
        let mut attributes = Attributes::default()
            .text(1, TABLE)
            .text(2, self.name())
            .number(3, flags)
            .number(4, kind(key))
            .number(5, length(key));
        if !data.is_empty() {
            attributes = attributes.number(6, kind(data));
            if self != Self::Dispatch {
                attributes = attributes.number(7, length(data));
            }
        }
        if flags & DYNAMIC != 0 {
            attributes = attributes.nest(9, Attributes::default().number(1, CLIENTS));
        }
        family.make(message::NEW_SET, attributes.number(10, id), format!("the set {}", self.name()))
    }
}
