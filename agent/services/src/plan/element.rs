//! The elements of the kernel's sets, and changes of them. Pure.

use crate::model::{Front, Target};
use ipnet::IpNet;
use std::{collections::BTreeSet, net::IpAddr};

/// Sets of ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RangeSet {
    /// All pods of the cluster.
    Pods,
    /// All service addresses.
    Services,
    /// The node's own addresses and pods.
    Local,
}

/// One element of one of the kernel's sets and maps. A start sorts after an end at the same address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// Where a range starts (`true`), or has ended.
    Bound(RangeSet, IpAddr, bool),
    /// Front → the Service port by whose name clients are remembered, or 0 without affinity; number of places and how to
    /// choose.
    Service(Front, u64, u32),
    /// The same for sources outside of the cluster.
    External(Front, u64, u32),
    /// Front and place → endpoint.
    Endpoint(Front, u32, Target),
    /// Front with affinity and place → the endpoint's number, which stays the same wherever its place is.
    Id(Front, u32, u32),
    /// Front with affinity and endpoint's number, with a bit for the external choice → endpoint.
    Sticky(Front, u32, Target),
    /// A front that takes connections from some sources alone.
    Limited(Front),
    /// A front with limits, and the first and the last address of a range that may connect.
    Source(Front, IpAddr, IpAddr),
    /// An address of a Service.
    ClusterIp(IpAddr),
    /// An endpoint on this node.
    Hairpin(IpAddr),
}

impl Element {
    /// Whose family's table it belongs to.
    pub fn ip(&self) -> IpAddr {
        match self {
            Self::Bound(_, ip, _) | Self::ClusterIp(ip) | Self::Hairpin(ip) => *ip,
            Self::Service(f, ..) | Self::External(f, ..) | Self::Limited(f) | Self::Source(f, ..) => f.ip,
            Self::Endpoint(f, ..) | Self::Id(f, ..) | Self::Sticky(f, ..) => f.ip,
        }
    }
}

/// The smallest change. Everything to delete goes first: an element whose value changes is deleted and added.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Elements that are there.
    pub delete: BTreeSet<Element>,
    /// Elements that are not.
    pub add: BTreeSet<Element>,
}

impl Plan {
    /// From one state to another.
    pub fn between(old: &BTreeSet<Element>, new: &BTreeSet<Element>) -> Self {
        Self { delete: old - new, add: new - old }
    }

    /// This, and then another one, as one change: what the other takes back is not done at all.
    pub fn extend(&mut self, next: Self) {
        for element in next.delete {
            if !self.add.remove(&element) {
                self.delete.insert(element);
            }
        }
        for element in next.add {
            if !self.delete.remove(&element) {
                self.add.insert(element);
            }
        }
    }

    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.add.is_empty()
    }
}

/// The prefixes that nets cover, first and last address, apart from one another.
pub(super) fn prefixes<'a>(nets: impl IntoIterator<Item = &'a IpNet>) -> Vec<(IpAddr, IpAddr)> {
    let all = IpNet::aggregate(&nets.into_iter().copied().collect());
    all.into_iter().map(|net| (net.network(), net.broadcast())).collect()
}

/// The same, joined where they meet.
fn ranges<'a>(nets: impl IntoIterator<Item = &'a IpNet>) -> Vec<(IpAddr, IpAddr)> {
    let mut all: Vec<(IpAddr, IpAddr)> = Vec::new();
    for (first, end) in prefixes(nets) {
        match all.last_mut() {
            Some((_, last)) if after(*last) == Some(first) => *last = end,
            _ => all.push((first, end)),
        }
    }
    all
}

/// The next address, if there is one.
fn after(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|n| IpAddr::V6(n.into())),
    }
}

/// The bounds of ranges, merged where they meet. What reaches to the end of all addresses has no end.
pub(super) fn bounds(set: RangeSet, nets: &[IpNet]) -> Vec<Element> {
    let starts = |(first, _): &(IpAddr, IpAddr)| Element::Bound(set, *first, true);
    let ranges = ranges(nets);
    let ends = ranges.iter().filter_map(|(_, last)| after(*last)).map(|end| Element::Bound(set, end, false));
    ranges.iter().map(starts).chain(ends).collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_merged() {
        let nets: Vec<IpNet> =
            ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24", "255.255.255.0/24"].map(|n| n.parse().unwrap()).into();
        let at = |ip: &str, s| Element::Bound(RangeSet::Pods, ip.parse().unwrap(), s);
        assert_eq!(
            bounds(RangeSet::Pods, &nets),
            [at("10.0.0.0", true), at("10.0.3.0", false), at("255.255.255.0", true)]
        );
    }
}
