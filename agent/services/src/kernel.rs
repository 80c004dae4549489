//! The kernel's side: reading our sets, changing them in one transaction, and noticing what others do to our tables.

use crate::{
    family::{DATA_SETS, Family, SetName, TABLE, message},
    model::{Front, Target},
    plan::{Element, Plan, RangeSet, Timeouts},
    rules,
    wire::{Attributes, CREATE, Request, Socket, WireError, attribute, number},
};
use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Elements in one message: an attribute's length has sixteen bits.
const CHUNK: usize = 400;

/// Our tables.
#[derive(Debug)]
pub struct Kernel {
    socket: Socket,
    families: Vec<Family>,
}

impl Kernel {
    /// Of the calling thread's network namespace.
    pub fn open(families: Vec<Family>) -> Result<Self, WireError> {
        Ok(Self { socket: Socket::open()?, families })
    }

    /// Counts the changes of anybody's tables by other programs.
    pub fn generation(&mut self) -> Result<u32, WireError> {
        self.socket.generation()
    }

    /// A fingerprint of tables, chains, rules and sets without their data; none when a table is missing. It is the same
    /// as long as nobody changes them, also for another process on the same kernel and build.
    pub fn structure(&mut self) -> Result<Option<u64>, WireError> {
        let mut hash = DefaultHasher::new();
        rules::VERSION.hash(&mut hash);
        for family in self.families.clone() {
            let Some(mut parts) = self.socket.structure(family, TABLE)? else { return Ok(None) };
            parts.extend(self.dump(family, SetName::Dispatch)?);
            parts.sort();
            parts.hash(&mut hash);
        }
        Ok(Some(hash.finish()))
    }

    /// All planned elements of our sets.
    pub fn read(&mut self) -> Result<BTreeSet<Element>, WireError> {
        let mut all = BTreeSet::new();
        for family in self.families.clone() {
            for set in DATA_SETS {
                all.extend(self.dump(family, set)?.iter().filter_map(|e| decode(family, set, e)));
            }
        }
        Ok(all)
    }

    /// Takes our tables away. To be called when other rules are in force. Returns whether there was anything.
    pub fn remove(&mut self) -> Result<bool, WireError> {
        let mut requests = Vec::new();
        for family in [Family::V4, Family::V6] {
            if self.socket.structure(family, TABLE)?.is_some() {
                let table = Attributes::default().text(1, TABLE);
                requests.push(family.request(message::DEL_TABLE, 0, table, "deleting our table"));
            }
        }
        if !requests.is_empty() {
            self.socket.transaction(&requests)?;
        }
        Ok(!requests.is_empty())
    }

    /// Does a plan as one transaction.
    pub fn apply(&mut self, plan: &Plan) -> Result<(), WireError> {
        let mut requests = Vec::new();
        add_elements(&self.families, &mut requests, message::DEL_ELEMENTS, &plan.delete);
        add_elements(&self.families, &mut requests, message::NEW_ELEMENTS, &plan.add);
        self.socket.transaction(&requests)
    }

    /// Replaces our tables, with these elements, as one transaction.
    pub fn rebuild(&mut self, timeouts: &Timeouts, elements: &BTreeSet<Element>) -> Result<(), WireError> {
        self.socket.transaction(&all(&self.families, timeouts, elements))
    }

    /// Does a plan, and makes the chains of the time-outs beyond the first `known`, as one transaction.
    pub fn grow(&mut self, timeouts: &Timeouts, known: usize, plan: &Plan) -> Result<(), WireError> {
        let mut requests: Vec<Request> = self.families.iter().flat_map(|f| rules::more(*f, timeouts, known)).collect();
        add_elements(&self.families, &mut requests, message::DEL_ELEMENTS, &plan.delete);
        add_elements(&self.families, &mut requests, message::NEW_ELEMENTS, &plan.add);
        self.socket.transaction(&requests)
    }

    /// The attributes of every element of a set.
    fn dump(&mut self, family: Family, set: SetName) -> Result<Vec<Vec<u8>>, WireError> {
        self.socket.elements(family, TABLE, set.name())
    }
}

/// Requests for our tables with these elements, from nothing.
pub fn all(families: &[Family], timeouts: &Timeouts, elements: &BTreeSet<Element>) -> Vec<Request> {
    let mut requests: Vec<Request> = families.iter().flat_map(|f| rules::table(*f, timeouts)).collect();
    add_elements(families, &mut requests, message::NEW_ELEMENTS, elements);
    requests
}

fn add_elements(families: &[Family], requests: &mut Vec<Request>, kind: u16, elements: &BTreeSet<Element>) {
    let deleting = kind == message::DEL_ELEMENTS;
    for family in families {
        for set in DATA_SETS {
            let here = |e: &&Element| SetName::of(e) == set && Family::of(&e.ip()) == *family;
            let here: Vec<&Element> = elements.iter().filter(here).collect();
            for chunk in here.chunks(CHUNK) {
                let list = chunk.iter().fold(Attributes::default(), |list, e| list.nest(1, encode(e, !deleting)));
                let list = Attributes::default().text(1, TABLE).text(2, set.name()).nest(3, list);
                let verb = if deleting { "deleting" } else { "adding" };
                let what = format!("{verb} {} elements of the set {}", chunk.len(), set.name());
                requests.push(family.request(kind, if deleting { 0 } else { CREATE }, list, what));
            }
        }
    }
}

fn put_ip(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => out.extend(ip.octets()),
        IpAddr::V6(ip) => out.extend(ip.octets()),
    }
}

fn put_port(out: &mut Vec<u8>, port: u16) {
    out.extend(port.to_be_bytes());
    out.extend([0, 0]);
}

fn put_front(out: &mut Vec<u8>, front: &Front) {
    put_ip(out, front.ip);
    out.extend([front.protocol, 0, 0, 0]);
    put_port(out, front.port);
}

fn put_target(out: &mut Vec<u8>, target: &Target) {
    put_ip(out, target.ip);
    put_port(out, target.port);
}

/// An element's attributes, with its data or only the key.
fn encode(element: &Element, with_data: bool) -> Attributes {
    const END: u32 = 1;
    let (mut key, mut last, mut data, mut flags) = (Vec::new(), Vec::new(), Vec::new(), 0);
    match element {
        Element::Service(front, group, value) | Element::External(front, group, value) => {
            put_front(&mut key, front);
            data.extend([0; 4]);
            data.extend(group.to_ne_bytes());
            data.extend(value.to_ne_bytes());
        }
        Element::Endpoint(front, place, target) => {
            put_front(&mut key, front);
            key.extend(place.to_ne_bytes());
            put_target(&mut data, target);
        }
        Element::Id(front, place, id) => {
            put_front(&mut key, front);
            key.extend(place.to_ne_bytes());
            data.extend([0; 4]);
            data.extend(id.to_ne_bytes());
        }
        Element::Sticky(front, id, target) => {
            put_front(&mut key, front);
            key.extend(id.to_ne_bytes());
            put_target(&mut data, target);
        }
        Element::Limited(front) => put_front(&mut key, front),
        Element::Source(front, from, to) => {
            for (key, ip) in [(&mut key, from), (&mut last, to)] {
                put_front(key, front);
                put_ip(key, *ip);
            }
        }
        Element::ClusterIp(ip) => put_ip(&mut key, *ip),
        Element::Hairpin(ip) => {
            put_ip(&mut key, *ip);
            put_ip(&mut key, *ip);
        }
        Element::Bound(_, ip, start) => {
            put_ip(&mut key, *ip);
            flags = if *start { 0 } else { END };
        }
    }
    let mut all = Attributes::default().nest(1, Attributes::default().bytes(1, &key));
    if !last.is_empty() {
        all = all.nest(10, Attributes::default().bytes(1, &last));
    }
    if with_data && !data.is_empty() {
        all = all.nest(2, Attributes::default().bytes(1, &data));
    }
    if flags != 0 {
        all = all.number(3, flags);
    }
    all
}

/// Reads the bytes of keys and data, part by part.
struct Parts<'a>(&'a [u8], Family);

impl Parts<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_at_checked(N)?;
        self.0 = rest;
        head.try_into().ok()
    }

    fn ip(&mut self) -> Option<IpAddr> {
        Some(match self.1 {
            Family::V4 => Ipv4Addr::from(self.take::<4>()?).into(),
            Family::V6 => Ipv6Addr::from(self.take::<16>()?).into(),
        })
    }

    fn port(&mut self) -> Option<u16> {
        let [a, b, _, _] = self.take::<4>()?;
        Some(u16::from_be_bytes([a, b]))
    }

    fn value(&mut self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.take()?))
    }

    /// What the maps of fronts give: the Service port's number, and that of places.
    fn service(&mut self) -> Option<(u64, u32)> {
        self.value()?;
        Some((u64::from_ne_bytes(self.take()?), self.value()?))
    }

    /// What the map of endpoints' numbers gives.
    fn number(&mut self) -> Option<u32> {
        self.value()?;
        self.value()
    }

    fn front(&mut self) -> Option<Front> {
        let ip = self.ip()?;
        let [protocol, ..] = self.take::<4>()?;
        Some(Front { ip, protocol, port: self.port()? })
    }

    fn target(&mut self) -> Option<Target> {
        Some(Target { ip: self.ip()?, port: self.port()? })
    }
}

fn decode(family: Family, set: SetName, element: &[u8]) -> Option<Element> {
    let part = |kind| attribute(element, kind).and_then(|v| attribute(v, 1)).map(|v| Parts(v, family));
    let mut key = part(1)?;
    let start = attribute(element, 3).and_then(number).unwrap_or_default() & 1 == 0;
    Some(match set {
        SetName::Services => {
            let (group, value) = part(2)?.service()?;
            Element::Service(key.front()?, group, value)
        }
        SetName::External => {
            let (group, value) = part(2)?.service()?;
            Element::External(key.front()?, group, value)
        }
        SetName::Endpoints => Element::Endpoint(key.front()?, key.value()?, part(2)?.target()?),
        SetName::Ids => Element::Id(key.front()?, key.value()?, part(2)?.number()?),
        SetName::Sticky => Element::Sticky(key.front()?, key.value()?, part(2)?.target()?),
        SetName::Limited => Element::Limited(key.front()?),
        SetName::Sources => {
            let mut last = part(10)?;
            last.front()?;
            Element::Source(key.front()?, key.ip()?, last.ip()?)
        }
        SetName::ClusterIps => Element::ClusterIp(key.ip()?),
        SetName::Hairpin => Element::Hairpin(key.ip()?),
        SetName::Pods => Element::Bound(RangeSet::Pods, key.ip()?, start),
        SetName::Ranges => Element::Bound(RangeSet::Services, key.ip()?, start),
        SetName::Local => Element::Bound(RangeSet::Local, key.ip()?, start),
        SetName::Affinity | SetName::Dispatch => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(v6: bool) -> impl Strategy<Value = IpAddr> {
        if v6 {
            any::<u128>().prop_map(|n| IpAddr::V6(n.into())).boxed()
        } else {
            any::<u32>().prop_map(|n| IpAddr::V4(n.into())).boxed()
        }
    }

    fn element() -> impl Strategy<Value = Element> {
        any::<bool>().prop_flat_map(|v6| {
            let front = move || {
                (ip(v6), any::<u8>(), any::<u16>()).prop_map(|(ip, protocol, port)| Front { ip, protocol, port })
            };
            let target = move || (ip(v6), any::<u16>()).prop_map(|(ip, port)| Target { ip, port });
            prop_oneof![
                (front(), any::<u64>(), any::<u32>()).prop_map(|(f, g, v)| Element::Service(f, g, v)),
                (front(), any::<u64>(), any::<u32>()).prop_map(|(f, g, v)| Element::External(f, g, v)),
                (front(), any::<u32>(), target()).prop_map(|(f, p, t)| Element::Endpoint(f, p, t)),
                (front(), any::<u32>(), any::<u32>()).prop_map(|(f, p, i)| Element::Id(f, p, i)),
                (front(), any::<u32>(), target()).prop_map(|(f, i, t)| Element::Sticky(f, i, t)),
                front().prop_map(Element::Limited),
                (front(), ip(v6), ip(v6)).prop_map(|(f, a, b)| Element::Source(f, a.min(b), a.max(b))),
                ip(v6).prop_map(Element::ClusterIp),
                ip(v6).prop_map(Element::Hairpin),
                (ip(v6), any::<bool>()).prop_map(|(ip, s)| Element::Bound(RangeSet::Local, ip, s)),
            ]
        })
    }

    proptest! {
        #[test]
        fn elements_read_back(e in element()) {
            let encoded = encode(&e, true);
            prop_assert_eq!(decode(Family::of(&e.ip()), SetName::of(&e), &encoded.0), Some(e));
        }

        #[test]
        fn garbage_is_no_element(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            for set in SetName::all() {
                let _ = decode(Family::V4, set, &bytes);
            }
        }
    }
}
