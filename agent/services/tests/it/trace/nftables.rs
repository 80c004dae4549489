//! Walks packets through tables as they stand in the netlink requests that make them: the kernel's expressions, one by
//! one, over its registers.

use super::tables::{self, Data, Element, Table, text, value, verdict};
use super::{Node, Outcome, Packet};
use causeway_nft::rule::{R0, VERDICT_ACCEPT, VERDICT_DROP, VERDICT_GOTO, VERDICT_JUMP, VERDICT_RETURN};
use causeway_services::{
    family::Family,
    model::Target,
    wire::{Request, attribute},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Sixteen registers of four bytes.
const REGISTERS: usize = 64;

/// One table of each family.
pub struct Rules(BTreeMap<u8, Table>);

impl Rules {
    /// What these requests make.
    pub fn new(requests: Vec<Request>) -> Self {
        Self(tables::made_by(requests))
    }

    pub fn trace(&self, node: &Node, packet: &Packet) -> Outcome {
        let family = Family::of(&packet.to.ip);
        let walk = Walk { table: &self.0[&family.number()], family, packet };
        let start = State { chance: 1.0, to: packet.to.ip, port: packet.to.port, mark: 0, registers: [0; REGISTERS] };
        let first: &[u32] = if packet.by_node { &[OUTPUT] } else { &[PREROUTING] };
        let mut to = BTreeMap::new();
        let mut others = Vec::new();
        for (state, mut end) in walk.hooks(first, start) {
            let translated = end == Some(Verdict::Translate);
            let mut state = state;
            if matches!(end, None | Some(Verdict::Translate)) {
                let is_here = node.ips.contains(&state.to);
                let next: &[u32] = match (packet.by_node, is_here) {
                    (true, true) => &[INPUT],
                    (true, false) => &[],
                    (false, true) => &[INPUT],
                    (false, false) => &[FORWARD],
                };
                let mut ends = walk.hooks(next, state.clone());
                assert_eq!(ends.len(), 1, "filtering depends on chance");
                (state, end) = ends.remove(0);
            }
            match end {
                Some(Verdict::Drop) => others.push(Outcome::Dropped),
                Some(Verdict::Reject) => others.push(Outcome::Refused),
                None if !translated => others.push(Outcome::Untouched),
                None => {
                    let mut ends = walk.hooks(&[POSTROUTING], state.clone());
                    let masquerade = ends.remove(0).1 == Some(Verdict::Masquerade);
                    let target = Target { ip: state.to, port: state.port };
                    let sum: &mut (f64, bool) = to.entry(target).or_insert((0.0, masquerade));
                    assert_eq!(sum.1, masquerade, "depends on chance");
                    sum.0 += state.chance;
                }
                other => panic!("{other:?} in a filter"),
            }
        }
        match (to.is_empty(), others.as_slice()) {
            (false, []) => Outcome::To(to),
            (true, [one]) => one.clone(),
            _ => panic!("{packet:?} may go to {to:?}, but also {others:?}"),
        }
    }
}

const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

#[derive(Debug, Clone)]
struct State {
    chance: f64,
    to: IpAddr,
    port: u16,
    mark: u32,
    registers: [u8; REGISTERS],
}

impl State {
    /// Registers by the kernel's two ways to count: sixteen of four bytes, or four of sixteen after the verdict's.
    fn at(register: u32) -> usize {
        if register >= R0 { (register - R0) as usize * 4 } else { (register as usize - 1) * 16 }
    }

    fn read(&self, register: u32, length: usize) -> Vec<u8> {
        let at = Self::at(register);
        self.registers[at..at + length].to_vec()
    }

    /// What is loaded fills whole registers.
    fn write(&mut self, register: u32, value: &[u8]) {
        let at = Self::at(register);
        let length = value.len().div_ceil(4) * 4;
        self.registers[at..at + length].fill(0);
        self.registers[at..at + value.len()].copy_from_slice(value);
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Verdict {
    Drop,
    Reject,
    Translate,
    Masquerade,
}

/// How a chain ended: by a verdict, by letting the packet pass the hook, or not at all.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Verdict(Verdict),
    Accept,
    Back,
}

enum Step {
    Next,
    Break,
    End(End),
    Jump(String),
    Goto(String),
    /// As likely as each other.
    Fork(Vec<State>),
}

struct Walk<'a> {
    table: &'a Table,
    family: Family,
    packet: &'a Packet,
}

impl Walk<'_> {
    /// All chains at these hooks, one after the other. Translating ends what there is for that at a hook, not the rest.
    fn hooks(&self, hooks: &[u32], start: State) -> Vec<(State, Option<Verdict>)> {
        let mut all = vec![(start, None)];
        for hook in hooks {
            for base in self.table.bases.iter().filter(|b| b.hook == *hook) {
                // Connection tracking does not translate what it cannot place.
                if base.kind == "nat" && self.packet.invalid {
                    continue;
                }
                let mut next = Vec::new();
                for (state, before) in all {
                    match before {
                        None => next.extend(self.chain(&base.name, state).into_iter().map(|(s, e)| (s, ended(e)))),
                        Some(Verdict::Translate) if base.kind != "nat" => {
                            let ends = self.chain(&base.name, state).into_iter();
                            next.extend(ends.map(|(s, e)| (s, ended(e).or(before))));
                        }
                        Some(_) => next.push((state, before)),
                    }
                }
                all = next;
            }
        }
        all
    }

    fn chain(&self, name: &str, state: State) -> Vec<(State, End)> {
        let rules = self.table.chains.get(name).unwrap_or_else(|| panic!("there is no chain {name}"));
        let mut here = vec![state];
        let mut ends = Vec::new();
        for rule in rules {
            let mut next = Vec::new();
            for state in here {
                self.rule(rule, state, &mut next, &mut ends);
            }
            here = next;
        }
        ends.extend(here.into_iter().map(|state| (state, End::Back)));
        ends
    }

    fn rule(&self, rule: &[(String, Vec<u8>)], state: State, next: &mut Vec<State>, ends: &mut Vec<(State, End)>) {
        let mut states = vec![state];
        for (i, (name, data)) in rule.iter().enumerate() {
            let mut on = Vec::new();
            for mut state in states {
                match self.expression(name, data, &mut state) {
                    Step::Next => on.push(state),
                    Step::Break => next.push(state),
                    Step::End(end) => ends.push((state, end)),
                    Step::Goto(chain) => ends.extend(self.chain(&chain, state)),
                    Step::Jump(chain) => {
                        assert_eq!(i + 1, rule.len(), "something after a verdict");
                        for (state, end) in self.chain(&chain, state) {
                            match end {
                                End::Back => next.push(state),
                                end => ends.push((state, end)),
                            }
                        }
                    }
                    Step::Fork(all) => on.extend(all),
                }
            }
            states = on;
        }
        next.extend(states);
    }

    fn expression(&self, name: &str, data: &[u8], state: &mut State) -> Step {
        match name {
            "payload" => {
                let (base, offset, length) = (value(data, 2), value(data, 3), value(data, 4));
                let loaded = match (base, offset, length, self.family) {
                    (1, 12, 4, Family::V4) | (1, 8, 16, Family::V6) => octets(self.packet.source),
                    (1, 16, 4, Family::V4) | (1, 24, 16, Family::V6) => octets(state.to),
                    (2, 2, 2, _) => state.port.to_be_bytes().into(),
                    other => panic!("the tracer does not know the payload {other:?}"),
                };
                state.write(value(data, 1), &loaded);
            }
            "meta" => {
                let loaded = match value(data, 2) {
                    3 => state.mark.to_ne_bytes().to_vec(),
                    16 => vec![self.packet.to.protocol],
                    other => panic!("the tracer does not know the meta key {other}"),
                };
                state.write(value(data, 1), &loaded);
            }
            "ct" => {
                let loaded = match (value(data, 2), attribute(data, 3)) {
                    // Invalid, new.
                    (0, None) => (if self.packet.invalid { 1_u32 } else { 8 }).to_ne_bytes().to_vec(),
                    (19 | 21, Some([0])) => octets(self.packet.source),
                    (20 | 22, Some([0])) => octets(self.packet.to.ip),
                    (12, Some([0])) => self.packet.to.port.to_be_bytes().into(),
                    other => panic!("the tracer does not know the connection's key {other:?}"),
                };
                state.write(value(data, 1), &loaded);
            }
            "bitwise" => {
                let length = value(data, 3) as usize;
                let part = |kind| attribute(data, kind).and_then(|v| attribute(v, 1)).unwrap();
                let (mask, xor) = (part(4), part(5));
                let bytes = state.read(value(data, 1), length);
                let result: Vec<u8> = bytes.iter().zip(mask).zip(xor).map(|((b, m), x)| b & m ^ x).collect();
                state.write(value(data, 2), &result);
            }
            "cmp" => {
                let wanted = attribute(data, 3).and_then(|v| attribute(v, 1)).unwrap();
                let same = state.read(value(data, 1), wanted.len()) == wanted;
                let is_met = match value(data, 2) {
                    0 => same,
                    1 => !same,
                    other => panic!("the tracer does not know the comparison {other}"),
                };
                return if is_met { Step::Next } else { Step::Break };
            }
            "lookup" => return self.look_up(data, state),
            "numgen" => {
                assert_eq!(value(data, 3), 1, "not random");
                let (to, modulus, offset) = (value(data, 1), value(data, 2), value(data, 4));
                let fork = |n: u32| {
                    let mut state = state.clone();
                    state.chance /= f64::from(modulus);
                    state.write(to, &(n + offset).to_ne_bytes());
                    state
                };
                return Step::Fork((0..modulus).map(fork).collect());
            }
            // What packets remember is given with them.
            "dynset" => {}
            "nat" => {
                assert_eq!(value(data, 1), 1, "not the destination");
                let length = self.family.length() as usize;
                state.to = address(&state.read(value(data, 3), length));
                let port = state.read(value(data, 5), 2);
                state.port = u16::from_be_bytes([port[0], port[1]]);
                return Step::End(End::Verdict(Verdict::Translate));
            }
            "masq" => return Step::End(End::Verdict(Verdict::Masquerade)),
            "reject" => {
                let is_reset = value(data, 1) == 1;
                assert_eq!(is_reset, self.packet.to.protocol == 6, "refused the wrong way");
                return Step::End(End::Verdict(Verdict::Reject));
            }
            "counter" => {}
            "immediate" => {
                let given = attribute(data, 2).unwrap();
                match (value(data, 1), verdict(given)) {
                    (0, Some((code, chain))) => return step(code, chain),
                    (register, None) => state.write(register, attribute(given, 1).unwrap()),
                    other => panic!("the tracer does not know immediate {other:?}"),
                }
            }
            other => panic!("the tracer does not know the expression {other}"),
        }
        Step::Next
    }

    fn look_up(&self, data: &[u8], state: &mut State) -> Step {
        let name = text(attribute(data, 1));
        let set = self.table.sets.get(&name).unwrap_or_else(|| panic!("there is no set {name}"));
        let key = state.read(value(data, 2), set.key_length);
        let inverted = value(data, 5) & 1 != 0;
        const DYNAMIC: u32 = 0x20;
        let remembered = (set.flags & DYNAMIC != 0).then(|| self.remembered(&key)).flatten();
        let found = match &remembered {
            Some(element) => Some(element),
            None => set.find(&key),
        };
        match (found, inverted, attribute(data, 3)) {
            (None, true, _) => Step::Next,
            (None, false, _) | (Some(_), true, _) => Step::Break,
            (Some(_), false, None) => Step::Next,
            (Some(element), false, Some(_)) => match (&element.data, value(data, 3)) {
                (Data::Value(bytes), to) => {
                    state.write(to, bytes);
                    Step::Next
                }
                (Data::Verdict(code, chain), 0) => step(*code, chain.clone()),
                other => panic!("the set {name} gives {other:?}"),
            },
        }
    }

    /// What the map of remembered clients has for this one: the number of the endpoint, which another map knows.
    fn remembered(&self, key: &[u8]) -> Option<Element> {
        let before = self.packet.before?;
        let to = &self.packet.to;
        let [high, low] = to.port.to_be_bytes();
        let front = [&*octets(to.ip), &[to.protocol, 0, 0, 0, high, low, 0, 0]].concat();
        // Behind the client's address stands what it is remembered for.
        let (client, group) = key.split_at(self.family.length() as usize);
        let Some(Element { data: Data::Value(service), .. }) = self.table.sets["services"].elements.get(&front) else {
            panic!("{front:?} is no service's");
        };
        assert_eq!((client, group), (&*octets(self.packet.source), &service[4..12]));
        let mut target = octets(before.ip);
        target.extend(before.port.to_be_bytes());
        target.extend([0, 0]);
        // Endpoints of an external choice have odd numbers, and are remembered by the even ones before.
        let is_limited = self.table.sets["external"].elements.contains_key(&front);
        let is_inside = self.packet.by_node || self.table.sets["pods"].find(&octets(self.packet.source)).is_some();
        let parity = u32::from(is_limited && !is_inside);
        let known = self.table.sets["sticky"].elements.iter().find(|(key, element)| {
            let id = key.strip_prefix(&*front).and_then(|id| id.try_into().ok()).map(u32::from_ne_bytes);
            let is_theirs = id.is_some_and(|id| id & 1 == parity);
            is_theirs && matches!(&element.data, Data::Value(value) if *value == target)
        });
        // One that is gone had another number.
        let id = known.and_then(|(key, _)| key[front.len()..].try_into().ok()).map(u32::from_ne_bytes);
        let id = (id.unwrap_or(0xfefe_fefe) & !1).to_ne_bytes();
        Some(Element { is_end: false, end: None, data: Data::Value([[0; 4], id].concat()) })
    }
}

fn step(code: i32, chain: String) -> Step {
    match code {
        VERDICT_DROP => Step::End(End::Verdict(Verdict::Drop)),
        VERDICT_ACCEPT => Step::End(End::Accept),
        VERDICT_JUMP => Step::Jump(chain),
        VERDICT_GOTO => Step::Goto(chain),
        VERDICT_RETURN => Step::End(End::Back),
        other => panic!("the tracer does not know the verdict {other}"),
    }
}

fn ended(end: End) -> Option<Verdict> {
    match end {
        End::Verdict(verdict) => Some(verdict),
        End::Accept | End::Back => None,
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().into(),
        IpAddr::V6(ip) => ip.octets().into(),
    }
}

fn address(bytes: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => Ipv4Addr::from(v4).into(),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).unwrap()).into(),
    }
}
