//! Bands of numbers: the lower part of a range is for explicit wishes, the upper for everybody else (KEP-3070 for
//! addresses, KEP-3668 for node ports). Pure but for the dice.

use ipnet::IpNet;
use rand::Rng;
use std::net::IpAddr;

/// Random picks before the range is searched in order.
const RANDOM_TRIES: usize = 64;

/// A band of numbers: first of all, first of the dynamic part, last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Band {
    /// The lowest.
    pub first: u128,
    /// Where the dynamic part begins.
    pub dynamic: u128,
    /// The highest.
    pub last: u128,
}

impl Band {
    /// The addresses of a range that may be given to Services.
    pub fn of_range(range: IpNet) -> Self {
        let (network, last) = (number(range.network()), number(range.broadcast()));
        // Neither the network's own address nor (IPv4) the broadcast address.
        let last = if range.addr().is_ipv4() { last.saturating_sub(1) } else { last };
        let first = (network + 1).min(last);
        let size = last - first + 1;
        let offset = if size < 16 { 0 } else { (size / 16).clamp(16, 256) };
        Self { first, dynamic: (first + offset).min(last), last }
    }

    /// Node ports.
    pub fn of_ports(first: u16, last: u16) -> Self {
        let (first, last) = (u128::from(first), u128::from(last.max(first)));
        let size = last - first + 1;
        let offset = if size < 16 { 0 } else { (size / 32).clamp(16, 128) };
        Self { first, dynamic: (first + offset).min(last), last }
    }

    /// The order in which numbers are tried: at random in the dynamic band, then all of it, then the static band.
    pub fn candidates(self) -> impl Iterator<Item = u128> {
        let mut rng = rand::rng();
        let random: Vec<u128> = (0..RANDOM_TRIES).map(|_| rng.random_range(self.dynamic..=self.last)).collect();
        random.into_iter().chain(self.dynamic..=self.last).chain(self.first..self.dynamic)
    }
}

/// An address as a number.
pub(crate) fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// A number as an address.
pub(crate) fn address(n: u128, v4: bool) -> IpAddr {
    if v4 { IpAddr::V4(u32::try_from(n).unwrap_or(u32::MAX).into()) } else { IpAddr::V6(n.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn bands_follow_the_keps() {
        let band = |range: &str| {
            let b = Band::of_range(range.parse().unwrap());
            (
                address(b.first, true).to_string(),
                address(b.dynamic, true).to_string(),
                address(b.last, true).to_string(),
            )
        };
        let own = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(band("10.96.0.0/12"), own("10.96.0.1", "10.96.1.1", "10.111.255.254"));
        assert_eq!(band("10.96.0.0/24"), own("10.96.0.1", "10.96.0.17", "10.96.0.254"));
        assert_eq!(band("10.96.0.0/28"), own("10.96.0.1", "10.96.0.1", "10.96.0.14"));
        let ports = Band::of_ports(30000, 32767);
        assert_eq!(ports.dynamic, 30086);
    }

    #[test]
    fn every_number_of_a_band_is_a_candidate() {
        let band = Band::of_range("10.0.0.0/27".parse().unwrap());
        let all: BTreeSet<u128> = band.candidates().collect();
        assert_eq!(all.len(), 30);
    }
}
