//! From what pods are allowed to chains of rules. Pure.
//!
//! In: everything that the policies which select a pod allow it in one direction. Out: a chain that accepts just that and
//! drops the rest, with the chains it jumps to. A chain is called by a hash of its lines: it never changes, pods that
//! are allowed the same share it, and what comes and goes with other pods stands in sets that its lines look up.

use crate::{
    model::{Allow, Block, Direction, Group, Peers, PortMatch, Ports},
    names::number,
};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};

/// To be raised when lines are rendered otherwise, or the fixed chains change: what another version left is replaced.
pub const VERSION: u32 = 1;

/// Which address of the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// A condition of a line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Match {
    /// The address is one of the group's.
    Member(Side, u64),
    /// Destination, protocol and port are one of the group's, or of the name's.
    Port(u64),
    /// The address is in the range.
    Net(Side, IpNet),
    /// The protocol.
    Protocol(u8),
    /// Protocol, and destination port from the first to the last.
    Range(u8, u16, u16),
}

/// What a line does when all its conditions hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Then {
    /// Lets the packet pass this direction's checks.
    Accept,
    /// Ends it.
    Drop,
    /// Goes on after the jump that came here.
    Return,
    /// Looks into another chain, and goes on if that does not decide.
    Jump(String),
}

/// A line of a chain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Line {
    /// All must hold.
    pub matches: Vec<Match>,
    /// What then.
    pub then: Then,
}

/// What pods under some policies need in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// By name.
    pub chains: BTreeMap<String, Vec<Line>>,
    /// Groups whose members must be known.
    pub groups: BTreeMap<u64, Group>,
    /// Names of ports, with their protocols, of which every pod's must be known.
    pub ports: BTreeMap<u64, (u8, String)>,
}

impl Needs {
    /// Adds what pods with these rules need; returns the chain for them, or none when they may do everything.
    pub fn add(&mut self, direction: Direction, allows: &BTreeSet<Allow>) -> Option<String> {
        let everything = Allow { peers: Peers::All, ports: Ports::All };
        if allows.contains(&everything) {
            return None;
        }
        let mut lines = Vec::new();
        for allow in allows {
            self.lines(direction, allow, &mut lines);
        }
        lines.push(Line { matches: Vec::new(), then: Then::Drop });
        Some(self.chain(if direction == Direction::In { "in" } else { "out" }, lines))
    }

    fn lines(&mut self, direction: Direction, allow: &Allow, lines: &mut Vec<Line>) {
        let (ports, then) = match &allow.ports {
            Ports::All => (Vec::new(), Then::Accept),
            Ports::Some(some) => match some.iter().collect::<Vec<_>>()[..] {
                [] => return,
                [one] => (vec![self.port(one)], Then::Accept),
                _ => {
                    let each = some.iter().map(|p| Line { matches: vec![self.port(p)], then: Then::Accept }).collect();
                    (Vec::new(), Then::Jump(self.chain("ports", each)))
                }
            },
        };
        let line = |first: Option<Match>| Line {
            matches: first.into_iter().chain(ports.clone()).collect(),
            then: then.clone(),
        };
        let side = if direction == Direction::In { Side::Source } else { Side::Destination };
        let Peers::Some { group, blocks } = &allow.peers else {
            lines.push(line(None));
            return;
        };
        if !group.0.is_empty() {
            let id = group.id();
            self.groups.insert(id, group.clone());
            lines.push(line(Some(Match::Member(side, id))));
            // What is a pod on some ports only serves there, and asks nobody.
            if direction == Direction::Out {
                lines.push(line(Some(Match::Port(id))));
            }
        }
        for Block { cidr, except } in blocks {
            let within = Match::Net(side, *cidr);
            if except.is_empty() {
                lines.push(line(Some(within)));
                continue;
            }
            let out = except.iter().map(|e| Line { matches: vec![Match::Net(side, *e)], then: Then::Return });
            let inner = out.chain([line(None)]).collect();
            let inner = self.chain("block", inner);
            lines.push(Line { matches: vec![within], then: Then::Jump(inner) });
        }
    }

    fn port(&mut self, port: &PortMatch) -> Match {
        match port {
            PortMatch::Protocol(protocol) => Match::Protocol(*protocol),
            PortMatch::Range(protocol, first, last) => Match::Range(*protocol, *first, *last),
            PortMatch::Named(protocol, name) => {
                let named = (*protocol, name.clone());
                let id = number("port", &named);
                self.ports.insert(id, named);
                Match::Port(id)
            }
        }
    }

    fn chain(&mut self, kind: &str, lines: Vec<Line>) -> String {
        let name = format!("{kind}-{:016x}", number(&format!("chain {VERSION}"), &lines));
        self.chains.insert(name.clone(), lines);
        name
    }
}

/// Whether a chain is one of these, or one of the fixed ones.
pub fn is_made_of_policies(chain: &str) -> bool {
    ["in-", "out-", "ports-", "block-"].iter().any(|kind| {
        chain.strip_prefix(kind).is_some_and(|hash| hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()))
    })
}
