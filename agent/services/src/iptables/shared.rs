//! Chains that all services share, kept short: above [`NARROW`] rules they branch. Pure.
//!
//! By address: on the last hexadecimal digit, then on the one before, so that a packet passes at most 32 branches and
//! then a 256th of the rules. By port: on ranges of 64 ports. In: rules with the front they are for. Out: chains.

use super::names::protocol;
use crate::{family::Family, model::Front};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

/// Up to so many rules, a shared chain is a plain list.
pub const NARROW: usize = 64;

/// How a chain branches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// On the front's address.
    Address,
    /// On its protocol and port.
    Port,
}

/// Where a rule stands: in which branch, and in which order there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    branch: [u16; 2],
    /// Rules of a lower rank come first.
    rank: u16,
    front: Front,
    /// Two services may have a rule for the same address for a moment.
    owner: Arc<str>,
}

/// One shared chain with its branches.
#[derive(Debug, Clone)]
pub struct Shared {
    base: &'static str,
    by: By,
    rules: BTreeMap<Key, String>,
    narrow: usize,
}

impl Shared {
    /// Without rules.
    pub fn new(base: &'static str, by: By, narrow: usize) -> Self {
        Self { base, by, rules: BTreeMap::new(), narrow }
    }

    /// The place of a rule.
    pub fn key(&self, front: Front, rank: u16, owner: &Arc<str>) -> Key {
        let branch = match (self.by, front.ip) {
            (By::Port, _) => [front.protocol.into(), front.port / 64],
            (By::Address, std::net::IpAddr::V4(ip)) => digits(ip.octets()[3]),
            (By::Address, std::net::IpAddr::V6(ip)) => digits(ip.octets()[15]),
        };
        Key { branch, rank, front, owner: owner.clone() }
    }

    /// Puts a rule in its place, or takes it away. Adds the names of chains that change to `changed`.
    pub fn set(&mut self, key: Key, rule: Option<String>, changed: &mut BTreeSet<String>) {
        if self.rules.get(&key) == rule.as_ref() {
            return;
        }
        let (was_wide, branch) = (self.is_wide(), key.branch);
        let before = if was_wide { Some(self.names()) } else { None };
        match rule {
            Some(rule) => self.rules.insert(key, rule),
            None => self.rules.remove(&key),
        };
        if was_wide != self.is_wide() {
            changed.extend(before.into_iter().flatten());
            changed.extend(self.names());
            return;
        }
        changed.insert(if was_wide { self.leaf(branch) } else { self.base.to_owned() });
        // A branch may have come or gone. Whether its parent really differs is found out when it is written.
        if was_wide {
            changed.insert(self.base.to_owned());
            if self.by == By::Address {
                changed.insert(self.middle(branch[0]));
            }
        }
    }

    /// The names of all chains there are now. The base is always there.
    pub fn names(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::from([self.base.to_owned()]);
        if self.is_wide() {
            for branch in self.branches() {
                names.insert(self.leaf(branch));
                if self.by == By::Address {
                    names.insert(self.middle(branch[0]));
                }
            }
        }
        names
    }

    /// The rules of a chain, without the base's head and tail; none when there is no such chain.
    pub fn chain(&self, name: &str, family: Family) -> Option<Vec<String>> {
        if !self.is_wide() {
            return (name == self.base).then(|| self.rules.values().cloned().collect());
        }
        let suffix = if name == self.base { "" } else { name.strip_prefix(self.base)?.strip_prefix('-')? };
        let branches = self.branches();
        let rules: Vec<String> = match self.by {
            By::Address => match *suffix.as_bytes() {
                [] => {
                    let firsts: BTreeSet<u16> = branches.iter().map(|b| b[0]).collect();
                    firsts.into_iter().map(|d| self.digit_rule(family, d, 0, &self.middle(d))).collect()
                }
                [first] => {
                    let first = digit(first)?;
                    let ours = branches.iter().filter(|b| b[0] == first);
                    ours.map(|b| self.digit_rule(family, b[1], 1, &self.leaf(*b))).collect()
                }
                [first, second] => self.of_branch([digit(first)?, digit(second)?]),
                _ => return None,
            },
            By::Port if suffix.is_empty() => branches.iter().filter_map(|b| self.port_rule(*b)).collect(),
            By::Port => self.of_branch(branches.into_iter().find(|b| self.leaf(*b) == name)?),
        };
        (name == self.base || !rules.is_empty()).then_some(rules)
    }

    fn is_wide(&self) -> bool {
        self.rules.len() > self.narrow
    }

    /// The branches with a rule, found by leaps from one to the next.
    fn branches(&self) -> Vec<[u16; 2]> {
        let mut all = Vec::new();
        let mut next = self.rules.keys().next();
        while let Some(key) = next {
            all.push(key.branch);
            next = self.rules.range((Bound::Excluded(end(key.branch)), Bound::Unbounded)).next().map(|(k, _)| k);
        }
        all
    }

    fn of_branch(&self, branch: [u16; 2]) -> Vec<String> {
        self.rules
            .range((Bound::Included(start(branch)), Bound::Included(end(branch))))
            .map(|(_, r)| r.clone())
            .collect()
    }

    fn middle(&self, first: u16) -> String {
        format!("{}-{first:X}", self.base)
    }

    fn leaf(&self, branch: [u16; 2]) -> String {
        match self.by {
            By::Address => format!("{}-{:X}{:X}", self.base, branch[0], branch[1]),
            By::Port => {
                let letter = match branch[0] {
                    6 => 'T',
                    17 => 'U',
                    _ => 'S',
                };
                format!("{}-{letter}{:X}", self.base, branch[1])
            }
        }
    }

    fn digit_rule(&self, family: Family, value: u16, position: u32, chain: &str) -> String {
        let (value, mask) = (value << (4 * position), 0xf << (4 * position));
        match family {
            Family::V4 => format!("-d 0.0.0.{value}/0.0.0.{mask} -j {chain}"),
            Family::V6 if value == 0 => format!("-d ::/::{mask:x} -j {chain}"),
            Family::V6 => format!("-d ::{value:x}/::{mask:x} -j {chain}"),
        }
    }

    fn port_rule(&self, branch: [u16; 2]) -> Option<String> {
        let protocol = protocol(u8::try_from(branch[0]).ok()?)?;
        let first = branch[1] * 64;
        let ports = format!("{first}:{}", first + 63);
        Some(format!("-p {protocol} -m {protocol} --dport {ports} -j {}", self.leaf(branch)))
    }
}

fn digits(last: u8) -> [u16; 2] {
    [(last & 0xf).into(), (last >> 4).into()]
}

fn digit(text: u8) -> Option<u16> {
    char::from(text).to_digit(16).and_then(|d| u16::try_from(d).ok())
}

fn start(branch: [u16; 2]) -> Key {
    let ip = std::net::Ipv4Addr::UNSPECIFIED.into();
    Key { branch, rank: 0, front: Front { ip, protocol: 0, port: 0 }, owner: Arc::from("") }
}

fn end(branch: [u16; 2]) -> Key {
    // No front has this port with this protocol, so nothing stands behind it.
    let ip = std::net::Ipv6Addr::from([0xff; 16]).into();
    Key { branch, rank: u16::MAX, front: Front { ip, protocol: u8::MAX, port: u16::MAX }, owner: Arc::from("") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn front(n: u16) -> Front {
        let [high, low] = n.to_be_bytes();
        Front { ip: [10, 96, high, low].into(), protocol: 6, port: 30_000 + n }
    }

    fn filled(by: By, fronts: &BTreeSet<u16>) -> Shared {
        let mut shared = Shared::new("BASE", by, 3);
        for n in fronts {
            let key = shared.key(front(*n), 0, &Arc::from("s"));
            shared.set(key, Some(format!("rule {n}")), &mut BTreeSet::new());
        }
        shared
    }

    fn chains(shared: &Shared) -> BTreeMap<String, Vec<String>> {
        shared.names().into_iter().map(|n| (n.clone(), shared.chain(&n, Family::V4).unwrap())).collect()
    }

    #[test]
    fn a_branch_holds_what_its_match_lets_in() {
        let shared = filled(By::Address, &(0..300).collect());
        let chain = |name| shared.chain(name, Family::V4).unwrap();
        assert_eq!(chain("BASE").len(), 16);
        assert_eq!(chain("BASE-A")[2], "-d 0.0.0.32/0.0.0.240 -j BASE-A2");
        assert_eq!(chain("BASE-A2"), ["rule 42", "rule 298"]);
        assert_eq!(shared.chain("BASE-A23", Family::V4), None);
        assert_eq!(shared.chain("BASE-A", Family::V6).unwrap()[2], "-d ::20/::f0 -j BASE-A2");
        let ports = filled(By::Port, &(0..300).collect());
        assert_eq!(ports.chain("BASE", Family::V4).unwrap()[1], "-p tcp -m tcp --dport 30016:30079 -j BASE-T1D5");
        assert_eq!(ports.chain("BASE-T1D5", Family::V4).unwrap().len(), 64);
    }

    proptest! {
        #[test]
        fn a_change_names_all_chains_that_change(
            by_port in any::<bool>(),
            steps in prop::collection::vec((0_u16..40, any::<bool>()), 1..30),
        ) {
            let by = if by_port { By::Port } else { By::Address };
            let (mut shared, mut fronts) = (filled(by, &BTreeSet::new()), BTreeSet::new());
            for (n, present) in steps {
                let before = chains(&shared);
                let mut changed = BTreeSet::new();
                let key = shared.key(front(n * 7), 0, &Arc::from("s"));
                shared.set(key, present.then(|| format!("rule {}", n * 7)), &mut changed);
                if present { fronts.insert(n * 7) } else { fronts.remove(&(n * 7)) };
                let after = chains(&shared);
                prop_assert_eq!(&after, &chains(&filled(by, &fronts)));
                for name in before.keys().chain(after.keys()) {
                    prop_assert!(before.get(name) == after.get(name) || changed.contains(name), "{}", name);
                }
            }
        }
    }
}
