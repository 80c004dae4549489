//! How many connections there may be, in all and from one address: a stranger who opens as many as possible takes no
//! place from others.
//!
//! In: the other end's address. Out: a [`Place`], held as long as the connection is, or nothing.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Connections in all.
const TOTAL: usize = 8192;
/// Connections from one address. Clients of Kubernetes use one or two; what stands for many (a proxy, a NAT) some hundred.
const PER_ADDRESS: usize = 1024;

#[derive(Default)]
struct Counts {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// All connections of a server.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<Counts>>);

/// The place of one connection.
pub struct Place {
    counts: Arc<Mutex<Counts>>,
    address: IpAddr,
}

/// Who is counted as one: an IPv4 address, or the /64 that one machine usually has of IPv6.
fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let segments = v6.segments();
            IpAddr::from([segments[0], segments[1], segments[2], segments[3], 0, 0, 0, 0])
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Connections {
    /// A place for a connection from this address; `None` when it, or the server, has enough.
    pub fn enter(&self, address: IpAddr) -> Option<Place> {
        let address = counted(address);
        let mut counts = self.0.lock();
        let own = counts.by_address.get(&address).copied().unwrap_or(0);
        if counts.total >= TOTAL || own >= PER_ADDRESS {
            return None;
        }
        counts.total += 1;
        counts.by_address.insert(address, own + 1);
        Some(Place { counts: self.0.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        counts.total = counts.total.saturating_sub(1);
        match counts.by_address.get_mut(&self.address) {
            Some(own) if *own > 1 => *own -= 1,
            _ => {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_takes_no_place_from_another() {
        let all = Connections::default();
        let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
        let mut held: Vec<Place> = std::iter::from_fn(|| all.enter(ip(1))).collect();
        assert_eq!(held.len(), PER_ADDRESS);
        let other = all.enter(ip(2)).unwrap();
        // Written in another way it is the same address.
        assert!(all.enter(ip(1).to_string().parse::<std::net::Ipv4Addr>().unwrap().to_ipv6_mapped().into()).is_none());
        held.pop();
        let again = all.enter(ip(1)).unwrap();
        assert!(all.enter(ip(1)).is_none());
        drop((held, other, again));
        assert!(all.0.lock().by_address.is_empty() && all.0.lock().total == 0);
    }

    #[test]
    fn addresses_of_one_machine_are_one() {
        let all = Connections::default();
        let v6 = |host: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, host]);
        let held: Vec<Place> = (0..).map_while(|n| all.enter(v6(n))).collect();
        assert_eq!(held.len(), PER_ADDRESS);
        assert!(all.enter(IpAddr::from([0x2001, 0xdb8, 0, 2, 0, 0, 0, 1])).is_some());
    }
}
