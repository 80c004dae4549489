//! Which addresses of a range are free. Pure.
//!
//! Addresses are given out in turn, not lowest first: one that was just given back rests until the range has been gone
//! through, so that late packets and stale connection-tracking entries do not meet a new pod.

use ipnet::IpNet;
use std::{collections::BTreeSet, net::IpAddr};

/// The addresses of one range; the first is the gateway's, network and broadcast address are never given out.
#[derive(Debug, Clone)]
pub struct Pool {
    cidr: IpNet,
    used: BTreeSet<u128>,
    last: u128,
}

impl Pool {
    /// All free.
    pub fn new(cidr: IpNet) -> Self {
        Self { cidr: cidr.trunc(), used: BTreeSet::new(), last: 1 }
    }

    /// The range.
    pub fn cidr(&self) -> IpNet {
        self.cidr
    }

    /// The gateway: the first address, with the range's prefix length.
    pub fn gateway(&self) -> IpNet {
        IpNet::new(self.address(1), self.cidr.prefix_len()).unwrap_or(self.cidr)
    }

    /// How many are given out.
    pub fn used(&self) -> usize {
        self.used.len()
    }

    /// Gives out the next free address; none when the range is used up.
    pub fn take(&mut self) -> Option<IpAddr> {
        let last = self.last_offset();
        if last < 2 || self.used.len() as u128 >= last - 1 {
            return None;
        }
        let mut next = self.last;
        loop {
            next = if next >= last { 2 } else { next + 1 };
            if self.used.insert(next) {
                self.last = next;
                return Some(self.address(next));
            }
        }
    }

    /// Marks an address as given out. False when it is outside of the range or somebody has it.
    pub fn claim(&mut self, ip: IpAddr) -> bool {
        let Some(offset) = self.offset(ip) else { return false };
        self.last = offset;
        self.used.insert(offset)
    }

    /// Takes an address back.
    pub fn give_back(&mut self, ip: IpAddr) {
        if let Some(offset) = self.offset(ip) {
            self.used.remove(&offset);
        }
    }

    /// How far into the range an address is.
    pub fn place_of(&self, ip: IpAddr) -> Option<u128> {
        self.cidr.contains(&ip).then(|| number(ip) - number(self.cidr.network()))
    }

    /// The address so far into the range.
    pub fn at(&self, place: u128) -> IpAddr {
        self.address(place)
    }

    fn offset(&self, ip: IpAddr) -> Option<u128> {
        if !self.cidr.contains(&ip) {
            return None;
        }
        let offset = number(ip) - number(self.cidr.network());
        (2..=self.last_offset()).contains(&offset).then_some(offset)
    }

    /// The offset of the last address that may be given out.
    fn last_offset(&self) -> u128 {
        let size = number(self.cidr.broadcast()) - number(self.cidr.network());
        if self.cidr.addr().is_ipv4() { size.saturating_sub(1) } else { size }
    }

    fn address(&self, offset: u128) -> IpAddr {
        match self.cidr.network() {
            IpAddr::V4(ip) => IpAddr::V4(u32::from(ip).wrapping_add(offset as u32).into()),
            IpAddr::V6(ip) => IpAddr::V6(u128::from(ip).wrapping_add(offset).into()),
        }
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool(cidr: &str) -> Pool {
        Pool::new(cidr.parse().unwrap())
    }

    #[test]
    fn a_range_gives_all_but_network_gateway_and_broadcast() {
        let mut p = pool("10.1.2.0/29");
        let all: Vec<_> = std::iter::from_fn(|| p.take()).map(|ip| ip.to_string()).collect();
        assert_eq!(all, ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]);
        assert_eq!(p.gateway().to_string(), "10.1.2.1/29");
    }

    #[test]
    fn what_was_given_back_rests() {
        let mut p = pool("10.1.2.0/24");
        let first = p.take().unwrap();
        p.give_back(first);
        assert_ne!(p.take().unwrap(), first);
    }

    #[test]
    fn ranges_too_small_or_very_large() {
        assert_eq!(pool("10.0.0.0/32").take(), None);
        assert_eq!(pool("10.0.0.0/31").take(), None);
        assert_eq!(pool("10.0.0.0/30").take(), Some("10.0.0.2".parse().unwrap()));
        assert_eq!(pool("fd12::/64").take(), Some("fd12::2".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn never_twice_never_outside(steps in prop::collection::vec(any::<(bool, u8)>(), 0..200)) {
            let mut p = pool("192.168.7.0/28");
            let mut held: Vec<IpAddr> = Vec::new();
            for (take, pick) in steps {
                if take {
                    match p.take() {
                        Some(ip) => {
                            prop_assert!(p.cidr().contains(&ip) && !held.contains(&ip) && ip != p.gateway().addr());
                            held.push(ip);
                        }
                        None => prop_assert_eq!(held.len(), 13),
                    }
                } else if !held.is_empty() {
                    p.give_back(held.swap_remove(usize::from(pick) % held.len()));
                }
                prop_assert_eq!(p.used(), held.len());
            }
        }
    }
}
