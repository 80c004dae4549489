//! Our tables in the kernel: reading them, changing them in one transaction, and knowing them again.
//!
//! Every rule of ours carries a comment, and a chain's name says what is in it: so what is there can be compared with
//! what should be by names and comments alone, also by a process that did not make it.

use crate::{
    chains::is_made_of_policies,
    model::Direction,
    plan::{Element, Plan, State},
    render::{SetName, TABLE, comments, fixed_comments, halves, rules, table, to_chain},
};
use causeway_nft::{
    family::{Family, message},
    table::Table,
    wire::{Attributes, CREATE, Request, Socket, WireError, attribute, number},
};
use nix::errno::Errno;
use std::{
    collections::{BTreeMap, BTreeSet},
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

    /// What is in force, for [`Plan::between`]; none when there is no whole table of ours that a plan could change into
    /// what is wanted.
    pub fn read(&mut self, wanted: &State) -> Result<Option<State>, WireError> {
        let mut found = State::default();
        for family in self.families.clone() {
            let Some(chains) = self.chains(family)? else { return Ok(None) };
            let fixed = fixed_comments(family);
            for (name, comments_found) in &chains {
                let expected = match (fixed.get(name), wanted.chains.get(name)) {
                    (Some(fixed), _) => fixed.clone(),
                    (_, Some(lines)) => comments(family, lines),
                    (None, None) if is_made_of_policies(name) => {
                        found.chains.insert(name.clone(), Vec::new());
                        continue;
                    }
                    // Somebody else's in our table.
                    (None, None) => return Ok(None),
                };
                if *comments_found != expected {
                    return Ok(None);
                }
                if let Some(lines) = wanted.chains.get(name) {
                    found.chains.insert(name.clone(), lines.clone());
                }
            }
            // A chain is made in all families or in none.
            let missing = found.chains.keys().chain(fixed.keys()).any(|name| !chains.contains_key(name));
            if missing || found.chains.len() + fixed.len() != chains.len() {
                return Ok(None);
            }
            for set in SetName::ALL {
                for element in self.socket.elements(family, TABLE, set.name())? {
                    let Some(element) = decode(family, set, &element) else { return Ok(None) };
                    found.elements.insert(element);
                }
            }
        }
        Ok(Some(found))
    }

    /// The comments of all our chains' rules; none when the table is missing, or not as we made it.
    fn chains(&mut self, family: Family) -> Result<Option<BTreeMap<String, Vec<String>>>, WireError> {
        let ours = [TABLE.as_bytes(), &[0]].concat();
        let mut ask = |kind, what: &str| -> Result<Vec<Vec<u8>>, WireError> {
            let request = family.request(kind, 0, Attributes::default().text(1, TABLE), what);
            match self.socket.ask(&request, true) {
                Err(e) if e.errno() == Errno::ENOENT => Ok(Vec::new()),
                other => Ok(other?.into_iter().filter(|a| attribute(a, 1) == Some(&ours[..])).collect()),
            }
        };
        let mut chains = BTreeMap::new();
        for chain in ask(message::GET_CHAIN, "reading our chains")? {
            let Some(name) = attribute(&chain, 3).and_then(text) else { return Ok(None) };
            // A base chain that drops by default would close the node.
            const ACCEPT: u32 = 1;
            if attribute(&chain, 5).and_then(number).is_some_and(|policy| policy != ACCEPT) {
                return Ok(None);
            }
            chains.insert(name, Vec::new());
        }
        for rule in ask(message::GET_RULE, "reading our rules")? {
            let Some(chain) = attribute(&rule, 2).and_then(text) else { return Ok(None) };
            // Type, length, the text and a zero.
            let comment = attribute(&rule, 7).and_then(|c| text(c.get(2..)?));
            chains.entry(chain).or_default().push(comment.unwrap_or_default());
        }
        Ok((!chains.is_empty()).then_some(chains))
    }

    /// Does a plan as one transaction.
    pub fn apply(&mut self, plan: &Plan) -> Result<(), WireError> {
        let mut requests = Vec::new();
        for family in &self.families {
            let mut table = Table::new(*family, TABLE);
            add_chains(&mut table, &plan.new_chains);
            requests.extend(table.requests);
        }
        self.elements(&mut requests, message::DEL_ELEMENTS, &plan.delete);
        self.elements(&mut requests, message::NEW_ELEMENTS, &plan.add);
        for family in &self.families {
            let chain = |name: &str, key| Attributes::default().text(1, TABLE).text(key, name);
            // All rules first: chains of one policy jump to each other.
            for name in &plan.old_chains {
                let what = format!("emptying the chain {name}");
                requests.push(family.request(message::DEL_RULE, 0, chain(name, 2), what));
            }
            for name in &plan.old_chains {
                let what = format!("deleting the chain {name}");
                requests.push(family.request(message::DEL_CHAIN, 0, chain(name, 3), what));
            }
        }
        self.socket.transaction(&requests)
    }

    /// Replaces our tables, with all that is wanted, as one transaction.
    pub fn rebuild(&mut self, wanted: &State) -> Result<(), WireError> {
        let mut requests = Vec::new();
        for family in &self.families {
            let mut table = table(*family);
            add_chains(&mut table, &wanted.chains);
            requests.extend(table.requests);
        }
        self.elements(&mut requests, message::NEW_ELEMENTS, &wanted.elements);
        self.socket.transaction(&requests)
    }

    fn elements(&self, requests: &mut Vec<Request>, kind: u16, elements: &BTreeSet<Element>) {
        let deleting = kind == message::DEL_ELEMENTS;
        for family in &self.families {
            for set in SetName::ALL {
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
}

/// Chains before rules: they jump to each other.
fn add_chains(table: &mut Table, chains: &BTreeMap<String, Vec<crate::chains::Line>>) {
    for name in chains.keys() {
        table.chain(name);
    }
    for (name, lines) in chains {
        for (rule, comment) in rules(table.family, lines) {
            table.commented_rule(name, rule, &comment);
        }
    }
}

fn text(bytes: &[u8]) -> Option<String> {
    let text = bytes.split(|b| *b == 0).next()?;
    String::from_utf8(text.to_vec()).ok()
}

fn put_ip(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => out.extend(ip.octets()),
        IpAddr::V6(ip) => out.extend(ip.octets()),
    }
}

/// An element's attributes, with its data or only the key.
fn encode(element: &Element, with_data: bool) -> Attributes {
    const END: u32 = 1;
    let (mut key, mut data, mut flags) = (Vec::new(), None, 0);
    match element {
        Element::Pod(ip) => {
            put_ip(&mut key, *ip);
            put_ip(&mut key, *ip);
        }
        Element::Isolated(_, ip, chain) => {
            put_ip(&mut key, *ip);
            data = Some(to_chain(chain));
        }
        Element::Member(id, ip) => {
            key.extend(halves(*id).concat());
            put_ip(&mut key, *ip);
        }
        Element::Port(id, ip, protocol, port) => {
            key.extend(halves(*id).concat());
            put_ip(&mut key, *ip);
            key.extend([*protocol, 0, 0, 0]);
            key.extend(port.to_be_bytes());
            key.extend([0, 0]);
        }
        Element::Bound(ip, start) => {
            put_ip(&mut key, *ip);
            flags = if *start { 0 } else { END };
        }
    }
    let mut all = Attributes::default().nest(1, Attributes::default().bytes(1, &key));
    if let Some(data) = data.filter(|_| with_data) {
        all = all.nest(2, data);
    }
    if flags != 0 {
        all = all.number(3, flags);
    }
    all
}

fn decode(family: Family, set: SetName, element: &[u8]) -> Option<Element> {
    let mut key = attribute(attribute(element, 1)?, 1)?;
    let mut take = |length: usize| {
        let (head, rest) = key.split_at_checked(length)?;
        key = rest;
        Some(head)
    };
    let ip = |bytes: &[u8]| {
        Some(match family {
            Family::V4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
            Family::V6 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
        })
    };
    let id = |bytes: &[u8]| {
        let half = |at: usize| Some(u64::from(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?)));
        Some(half(0)? << 32 | half(4)?)
    };
    let length = family.length() as usize;
    Some(match set {
        SetName::Pods => Element::Pod(ip(take(length)?)?),
        SetName::IsolatedIn | SetName::IsolatedOut => {
            let direction = if set == SetName::IsolatedIn { Direction::In } else { Direction::Out };
            let verdict = attribute(attribute(element, 2)?, 2)?;
            Element::Isolated(direction, ip(take(length)?)?, attribute(verdict, 2).and_then(text)?)
        }
        SetName::Members => Element::Member(id(take(8)?)?, ip(take(length)?)?),
        SetName::Ports => {
            let (id, ip) = (id(take(8)?)?, ip(take(length)?)?);
            let protocol = *take(4)?.first()?;
            let port = u16::from_be_bytes(take(4)?.get(..2)?.try_into().ok()?);
            Element::Port(id, ip, protocol, port)
        }
        SetName::Ranges => {
            let start = attribute(element, 3).and_then(number).unwrap_or_default() & 1 == 0;
            Element::Bound(ip(take(length)?)?, start)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn element() -> impl Strategy<Value = Element> {
        let v4 = any::<u32>().prop_map(|n| IpAddr::V4(n.into()));
        let v6 = any::<u128>().prop_map(|n| IpAddr::V6(n.into()));
        prop_oneof![v4, v6].prop_flat_map(|ip| {
            prop_oneof![
                Just(Element::Pod(ip)),
                "[a-z0-9-]{1,30}".prop_map(move |c| Element::Isolated(Direction::In, ip, c)),
                "[a-z0-9-]{1,30}".prop_map(move |c| Element::Isolated(Direction::Out, ip, c)),
                any::<u64>().prop_map(move |id| Element::Member(id, ip)),
                (any::<u64>(), any::<u8>(), any::<u16>()).prop_map(move |(id, p, n)| Element::Port(id, ip, p, n)),
                any::<bool>().prop_map(move |start| Element::Bound(ip, start)),
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
            for set in SetName::ALL {
                let _ = decode(Family::V4, set, &bytes);
            }
        }
    }
}
