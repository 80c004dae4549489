//! Datagram flows that must not outlive their endpoint: nothing tells their clients, and connection tracking would send
//! them on to nobody for as long as they try. TCP looks after itself.
//!
//! In: what a front wanted before and wants now. Out: flows deleted from the kernel's table. [`stale`] is pure.

use crate::{
    family::Family,
    model::{Front, TCP, Target, Wanted},
    wire::{Attributes, CONNTRACK, Request, Socket, WireError, attribute},
};
use nix::errno::Errno;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Fronts whose flows are to be looked at, each with the endpoints whose flows go on.
pub type Stale = BTreeMap<Front, BTreeSet<Target>>;

/// Up to so many fronts are asked for one by one; for more, all flows are read once.
const FEW: usize = 8;

/// Whether a front's change leaves flows behind: the endpoints whose flows go on, if so. That is when one of them serves
/// no more, and when there was none: flows may have begun that nobody translates.
pub fn stale(front: &Front, old: Option<&Wanted>, new: Option<&Wanted>) -> Option<BTreeSet<Target>> {
    if front.protocol == TCP {
        return None;
    }
    let serving = |w: Option<&Wanted>| w.map(Wanted::serving).unwrap_or_default();
    let (before, after) = (serving(old), serving(new));
    // Of a front that is new to us, an earlier process may have left anything.
    let is_new = old.is_none() && new.is_some();
    let has_first = before.is_empty() && !after.is_empty();
    (is_new || has_first || !before.is_subset(&after)).then_some(after)
}

/// The kernel's table of flows.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

/// A flow: where it was sent to, who answers it, and how the kernel names it.
#[derive(Debug, Clone)]
struct Flow {
    front: Front,
    endpoint: Target,
    name: Attributes,
}

impl Conntrack {
    /// Of the calling thread's network namespace.
    pub fn open() -> Result<Self, WireError> {
        Ok(Self { socket: Socket::open()? })
    }

    /// Deletes what is stale; returns how many flows.
    pub fn forget(&mut self, stale: &Stale) -> Result<usize, WireError> {
        let mut deleted = 0;
        for family in [Family::V4, Family::V6] {
            let fronts: Vec<&Front> = stale.keys().filter(|f| Family::of(&f.ip) == family).collect();
            if fronts.is_empty() {
                continue;
            }
            for flow in self.flows(family, &fronts)? {
                if stale.get(&flow.front).is_none_or(|on| on.contains(&flow.endpoint)) {
                    continue;
                }
                match self.socket.single(&request(family, DELETE, flow.name, "deleting a connection")) {
                    Ok(()) => deleted += 1,
                    // It has ended, or was told of twice.
                    Err(e) if e.errno() == Errno::ENOENT => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(deleted)
    }

    /// The flows to these fronts, and perhaps others.
    fn flows(&mut self, family: Family, fronts: &[&Front]) -> Result<Vec<Flow>, WireError> {
        let what = "reading connections";
        if fronts.len() <= FEW {
            let asked: Result<Vec<_>, _> =
                fronts.iter().map(|front| self.socket.ask(&request(family, GET, only(front), what), true)).collect();
            match asked {
                Ok(all) => return Ok(all.iter().flatten().filter_map(|f| read(f)).collect()),
                // A kernel before 5.8 knows no filter.
                Err(e) if [Errno::EINVAL, Errno::EOPNOTSUPP].contains(&e.errno()) => {}
                Err(e) => return Err(e),
            }
        }
        let all = self.socket.ask(&request(family, GET, Attributes::default(), what), true)?;
        Ok(all.iter().filter_map(|f| read(f)).collect())
    }
}

const GET: u16 = 1;
const DELETE: u16 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const FILTER: u16 = 25;

fn request(family: Family, message: u16, attributes: Attributes, what: &str) -> Request {
    let kind = CONNTRACK << 8 | message;
    Request { kind, family: family.number(), flags: 0, attributes, what: what.to_owned() }
}

/// A filter for the flows to a front, and perhaps others.
fn only(front: &Front) -> Attributes {
    const ADDRESS: u32 = 1 << 1;
    const PROTOCOL_AND_PORT: u32 = 1 << 3 | 1 << 5;
    // Kernels up to 6.18 at least compare addresses of IPv6 the wrong way round: they give all flows but those wanted.
    let wanted = PROTOCOL_AND_PORT | if front.ip.is_ipv4() { ADDRESS } else { 0 };
    let address = match front.ip {
        IpAddr::V4(ip) => Attributes::default().bytes(2, &ip.octets()),
        IpAddr::V6(ip) => Attributes::default().bytes(4, &ip.octets()),
    };
    let protocol = Attributes::default().bytes(1, &[front.protocol]).bytes(3, &front.port.to_be_bytes());
    let tuple = Attributes::default().nest(1, address).nest(2, protocol);
    let flags = Attributes::default().bytes(1, &wanted.to_ne_bytes());
    Attributes::default().nest(TUPLE_ORIGINAL, tuple).nest(FILTER, flags)
}

fn read(flow: &[u8]) -> Option<Flow> {
    let (original, reply) = (attribute(flow, TUPLE_ORIGINAL)?, attribute(flow, TUPLE_REPLY)?);
    let (ip, protocol, port) = side(original, 2, 3)?;
    let (from, _, from_port) = side(reply, 1, 2)?;
    // The number makes sure that it is this flow and not the next one between the same two.
    let mut name = Attributes::default().nest(TUPLE_ORIGINAL, Attributes(original.to_vec()));
    if let Some(id) = attribute(flow, ID) {
        name = name.bytes(ID, id);
    }
    Some(Flow { front: Front { ip, protocol, port }, endpoint: Target { ip: from, port: from_port }, name })
}

/// Address, protocol and port of one side of a tuple: 1 and 2 are source, 2 and 3 destination, as the kernel numbers.
fn side(tuple: &[u8], side: u16, port: u16) -> Option<(IpAddr, u8, u16)> {
    let addresses = attribute(tuple, 1)?;
    let ip = match (attribute(addresses, side), attribute(addresses, side + 2)) {
        (Some(v4), _) => IpAddr::from(<[u8; 4]>::try_from(v4).ok()?),
        (_, Some(v6)) => IpAddr::from(<[u8; 16]>::try_from(v6).ok()?),
        _ => return None,
    };
    let protocol = attribute(tuple, 2)?;
    let number = *attribute(protocol, 1)?.first()?;
    Some((ip, number, u16::from_be_bytes(attribute(protocol, port)?.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Choice, Kind, UDP};

    fn target(n: u8) -> Target {
        Target { ip: [10, 244, 0, n].into(), port: 53 }
    }

    fn wanted(chosen: &[u8], lingering: &[u8]) -> Wanted {
        let all = |numbers: &[u8]| -> BTreeSet<Target> { numbers.iter().map(|n| target(*n)).collect() };
        let choice = if chosen.is_empty() { Choice::Refuse } else { Choice::Spread(all(chosen)) };
        Wanted {
            port: "d/s".into(),
            kind: Kind::ClusterIp,
            choice,
            external: None,
            affinity: None,
            sources: None,
            lingering: all(lingering),
        }
    }

    #[test]
    fn flows_are_stale_when_an_endpoint_stops_serving_or_the_first_comes() {
        let front = Front { ip: [10, 96, 0, 1].into(), protocol: UDP, port: 53 };
        let stale = |old: Option<Wanted>, new: Option<Wanted>| stale(&front, old.as_ref(), new.as_ref());
        let on = |numbers: &[u8]| Some(numbers.iter().map(|n| target(*n)).collect());
        let w = |chosen: &[u8], lingering: &[u8]| Some(wanted(chosen, lingering));
        assert_eq!(stale(w(&[1], &[]), w(&[1, 2], &[])), None, "one more disturbs nobody");
        assert_eq!(stale(w(&[1, 2], &[]), w(&[1], &[2])), None, "it terminates, and serves while it does");
        assert_eq!(stale(w(&[1], &[2]), w(&[1], &[])), on(&[1]), "now it is gone");
        assert_eq!(stale(w(&[1], &[]), w(&[], &[])), on(&[]));
        assert_eq!(stale(w(&[], &[]), w(&[1], &[])), on(&[1]));
        assert_eq!(stale(None, w(&[1], &[])), on(&[1]), "the address is the Service's from now on");
        assert_eq!(stale(w(&[1], &[]), None), on(&[]), "the Service is deleted");
        assert_eq!(stale(None, w(&[], &[])), on(&[]), "who knows what was before");
        assert_eq!(stale(w(&[], &[]), w(&[], &[])), None);
        let tcp = Front { protocol: TCP, ..front };
        assert_eq!(super::stale(&tcp, w(&[1], &[]).as_ref(), None), None);
    }
}
