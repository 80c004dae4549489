//! Walks packets through chains as they stand in restore files.

use super::{Node, Outcome, Packet};
use causeway_services::{
    family::Family,
    iptables::{
        names::{ChainId, Table, is_ours, protocol},
        render::hooks,
        restore::target,
    },
    model::Target,
};
use ipnet::IpNet;
use std::{
    collections::BTreeMap,
    fmt::Write,
    net::{IpAddr, SocketAddr},
};

/// Chains of both families.
pub struct Rules(BTreeMap<ChainId, Vec<String>>);

/// A packet on its way, with how likely it got there.
#[derive(Debug, Clone)]
struct State {
    chance: f64,
    to: IpAddr,
    port: u16,
    mark: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Verdict {
    Accept,
    Drop,
    Reject,
    Dnat,
    Masquerade,
}

/// How a match looks at a packet.
enum Match {
    Yes,
    No,
    Chance(f64),
}

type Ends = Vec<(State, Option<Verdict>)>;

impl Rules {
    pub fn new(chains: BTreeMap<ChainId, Vec<String>>) -> Self {
        Self(chains)
    }

    /// All that a rule jumps to is there, and all that is there is jumped to.
    pub fn check_references(&self) {
        let base: Vec<_> = hooks().into_iter().map(|(table, _, rule)| (table, rule)).collect();
        for (id, rules) in &self.0 {
            for to in rules.iter().filter_map(|rule| target(rule)).filter(|to| to.starts_with("KUBE-")) {
                let there = ChainId::new(id.family, id.table, to);
                assert!(
                    self.0.contains_key(&there) && is_ours(id.table, to),
                    "{id:?} leads to {to}, which is not there"
                );
            }
            if ["KUBE-MARK-MASQ", "KUBE-MARK-REMOTE"].contains(&id.name.as_str()) {
                // There before anybody needs them.
                continue;
            }
            let here = self.0.iter().filter(|(other, _)| other.family == id.family && other.table == id.table);
            let mut all =
                here.flat_map(|(_, rules)| rules).chain(base.iter().filter(|(t, _)| *t == id.table).map(|(_, r)| r));
            assert!(all.any(|rule| target(rule) == Some(&id.name)), "nothing leads to {id:?}");
        }
    }

    pub fn dump(&self, family: Family) -> String {
        let mut text = String::new();
        for (id, rules) in self.0.iter().filter(|(id, _)| id.family == family) {
            for rule in rules {
                let _ = writeln!(text, "{} {} {rule}", id.table.name(), id.name);
            }
        }
        text
    }

    pub fn trace(&self, node: &Node, packet: &Packet) -> Outcome {
        let start = State { chance: 1.0, to: packet.to.ip, port: packet.to.port, mark: 0 };
        let walk = Walk { rules: self, node, packet, family: Family::of(&packet.to.ip) };
        let translated = match packet.invalid {
            // Connection tracking does not translate what it cannot place.
            true => vec![(start, None)],
            false => walk.base(Table::Nat, if packet.by_node { "OUTPUT" } else { "PREROUTING" }, start),
        };
        let mut to = BTreeMap::new();
        let mut others = Vec::new();
        for (state, verdict) in translated {
            assert!(matches!(verdict, None | Some(Verdict::Dnat)), "{verdict:?} in nat");
            let is_here = node.ips.contains(&state.to);
            let filters: &[&str] = match (packet.by_node, is_here) {
                (true, true) => &["OUTPUT", "INPUT"],
                (true, false) => &["OUTPUT"],
                (false, true) => &["INPUT"],
                (false, false) => &["FORWARD"],
            };
            let mut end = None;
            for chain in filters {
                let mut ends = walk.base(Table::Filter, chain, state.clone());
                assert_eq!(ends.len(), 1, "filtering depends on chance");
                end = ends.remove(0).1.filter(|v| *v != Verdict::Accept);
                if end.is_some() {
                    break;
                }
            }
            match end {
                Some(Verdict::Drop) => others.push(Outcome::Dropped),
                Some(Verdict::Reject) => others.push(Outcome::Refused),
                None if verdict.is_none() => others.push(Outcome::Untouched),
                None => {
                    let mut ends = walk.base(Table::Nat, "POSTROUTING", state.clone());
                    let masquerade = ends.remove(0).1 == Some(Verdict::Masquerade);
                    let target = Target { ip: state.to, port: state.port };
                    let sum: &mut (f64, bool) = to.entry(target).or_insert((0.0, masquerade));
                    assert_eq!(sum.1, masquerade, "depends on chance");
                    sum.0 += state.chance;
                }
                other => panic!("{other:?} in filter"),
            }
        }
        match (to.is_empty(), others.as_slice()) {
            (false, []) => Outcome::To(to),
            (true, [one]) => one.clone(),
            _ => panic!("{packet:?} may go to {to:?}, but also {others:?}"),
        }
    }
}

struct Walk<'a> {
    rules: &'a Rules,
    node: &'a Node,
    packet: &'a Packet,
    family: Family,
}

impl Walk<'_> {
    /// A chain of the kernel, with nothing in it but our rules.
    fn base(&self, table: Table, chain: &str, state: State) -> Ends {
        let rules = hooks().into_iter().filter(|(t, c, _)| *t == table && *c == chain).map(|(.., rule)| rule);
        self.pass(table, &rules.collect::<Vec<_>>(), state)
    }

    fn pass(&self, table: Table, rules: &[String], state: State) -> Ends {
        let mut ends = Ends::new();
        let mut here = vec![state];
        for rule in rules {
            for state in std::mem::take(&mut here) {
                let (matched, rest) = self.apply(table, rule, state);
                here.extend(rest);
                for (state, end) in matched {
                    match end {
                        End::Next => here.push(state),
                        End::Return => ends.push((state, None)),
                        End::Verdict(verdict) => ends.push((state, Some(verdict))),
                    }
                }
            }
        }
        ends.extend(here.into_iter().map(|state| (state, None)));
        ends
    }

    /// Returns where those go that match, and those that do not.
    fn apply(&self, table: Table, rule: &str, state: State) -> (Vec<(State, End)>, Option<State>) {
        let words = words(rule);
        let mut words = words.iter().map(String::as_str).peekable();
        let (mut chance, mut invert) = (1.0, false);
        let rest_of = |chance: f64| {
            let left = State { chance: state.chance * (1.0 - chance), ..state.clone() };
            (chance < 1.0).then_some(left)
        };
        while let Some(word) = words.next() {
            if word == "!" {
                invert = true;
                continue;
            }
            if word == "-j" {
                let mut state = state.clone();
                state.chance *= chance;
                let to = words.next().unwrap();
                let arguments: Vec<&str> = words.collect();
                return (self.jump(table, to, &arguments, state), rest_of(chance));
            }
            let option = (word, words.next().unwrap());
            let found = match option {
                ("-m", "comment" | "tcp" | "udp" | "sctp" | "conntrack" | "mark" | "addrtype" | "statistic") => {
                    Match::Yes
                }
                ("--comment", _) => Match::Yes,
                ("-s", net) => is(contains(net, self.packet.source)),
                ("-d", net) => is(contains(net, state.to)),
                ("-p", name) => is(protocol(self.packet.to.protocol) == Some(name)),
                ("--dport", ports) => {
                    let (first, last) = ports.split_once(':').unwrap_or((ports, ports));
                    is((first.parse().unwrap()..=last.parse().unwrap()).contains(&state.port))
                }
                ("--ctstate", "NEW") => is(!self.packet.invalid),
                ("--ctstate", "INVALID") => is(self.packet.invalid),
                ("--ctstate", "RELATED,ESTABLISHED") => Match::No,
                ("--mark", mark) => {
                    let (value, mask) = mark.split_once('/').unwrap();
                    is(state.mark & hex(mask) == hex(value))
                }
                ("--dst-type", "LOCAL") => is(self.node.ips.contains(&state.to)),
                ("--src-type", "LOCAL") => is(self.node.ips.contains(&self.packet.source)),
                ("--mode", "random") => {
                    assert_eq!(words.next(), Some("--probability"));
                    Match::Chance(words.next().unwrap().parse().unwrap())
                }
                ("-m", "recent") => self.recent(&mut words),
                other => panic!("the tracer does not know {other:?} of: {rule}"),
            };
            match (found, std::mem::take(&mut invert)) {
                (Match::Yes, false) | (Match::No, true) => {}
                (Match::No, false) | (Match::Yes, true) => return (Vec::new(), Some(state)),
                (Match::Chance(p), false) => chance *= p,
                (Match::Chance(_), true) => panic!("the tracer does not know an inverted chance"),
            }
        }
        panic!("a rule without a target: {rule}")
    }

    fn recent<'w>(&self, words: &mut impl Iterator<Item = &'w str>) -> Match {
        let (mut list, mut verb) = ("", "");
        while list.is_empty() || verb.is_empty() {
            match words.next().unwrap() {
                "--set" => verb = "set",
                "--rcheck" => verb = "rcheck",
                "--seconds" => drop(words.next()),
                "--reap" => {}
                "--name" => list = words.next().unwrap(),
                other => panic!("the tracer does not know {other} of recent"),
            }
        }
        assert_eq!(words.next(), Some("--mask"));
        words.next();
        assert_eq!(words.next(), Some("--rsource"));
        if verb == "set" {
            return Match::Yes;
        }
        // A list remembers clients of one endpoint: that to which its chain translates.
        let id = ChainId::new(self.family, Table::Nat, list);
        let last = self.rules.0[&id].last().unwrap();
        let to: SocketAddr = last.rsplit(' ').next().unwrap().parse().unwrap();
        is(self.packet.before == Some(Target { ip: to.ip(), port: to.port() }))
    }

    fn jump(&self, table: Table, to: &str, arguments: &[&str], mut state: State) -> Vec<(State, End)> {
        let verdict = match (table, to, arguments) {
            (_, "RETURN", []) => return vec![(state, End::Return)],
            (Table::Nat, "MARK", ["--set-xmark", mark]) => {
                let (value, mask) = mark.split_once('/').unwrap();
                state.mark = state.mark & !hex(mask) ^ hex(value);
                return vec![(state, End::Next)];
            }
            (Table::Nat, "DNAT", ["--to-destination", to]) => {
                let to: SocketAddr = to.parse().unwrap();
                (state.to, state.port) = (to.ip(), to.port());
                Verdict::Dnat
            }
            (Table::Nat, "MASQUERADE", ["--random-fully"]) => Verdict::Masquerade,
            (Table::Filter, "ACCEPT", []) => Verdict::Accept,
            (Table::Filter, "DROP", []) => Verdict::Drop,
            (Table::Filter, "REJECT", ["--reject-with", kind]) => {
                let fits = match (self.packet.to.protocol, self.family) {
                    (6, _) => *kind == "tcp-reset",
                    (_, Family::V4) => *kind == "icmp-port-unreachable",
                    (_, Family::V6) => *kind == "icmp6-port-unreachable",
                };
                assert!(fits, "refused by {kind}");
                Verdict::Reject
            }
            (_, chain, []) if chain.starts_with("KUBE-") => {
                let id = ChainId::new(self.family, table, chain);
                let rules = self.rules.0.get(&id).unwrap_or_else(|| panic!("there is no {id:?}"));
                let ends = self.pass(table, rules, state);
                let back = |end: Option<Verdict>| end.map_or(End::Next, End::Verdict);
                return ends.into_iter().map(|(state, end)| (state, back(end))).collect();
            }
            other => panic!("the tracer does not know the target {other:?}"),
        };
        vec![(state, End::Verdict(verdict))]
    }
}

enum End {
    Next,
    Return,
    Verdict(Verdict),
}

fn is(yes: bool) -> Match {
    if yes { Match::Yes } else { Match::No }
}

fn hex(text: &str) -> u32 {
    u32::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap()
}

/// Also with masks that are no prefixes.
fn contains(net: &str, ip: IpAddr) -> bool {
    if let Ok(net) = net.parse::<IpNet>() {
        return net.contains(&ip);
    }
    let (value, mask) = net.split_once('/').unwrap();
    let number = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => ip.into(),
    };
    number(ip) & number(mask.parse().unwrap()) == number(value.parse().unwrap())
}

/// Splits at blanks outside of quotes.
fn words(rule: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (i, part) in rule.split('"').enumerate() {
        match i % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_owned)),
            _ => words.push(part.to_owned()),
        }
    }
    words
}
