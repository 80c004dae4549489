//! Our table in the kernel's terms: its sets, its fixed chains, and how a line becomes a rule. Pure.
//!
//! A packet that a pod sends is looked at twice, in chains of their own, since what the one lets pass the other may not:
//! `out-forward` (or `out-node`, when it is for the node itself) asks whether its source may send it, `in-forward`
//! whether its destination may have it. Both come after the translation of service addresses, so that policies see
//! the real pod, and before that of sources, so that they see who really sent it. Each goes:
//!
//! 1. What belongs to a connection that was let pass goes on, in both ways. So policies hold for new connections; a
//!    policy that comes later ends no connection that is there, as with most implementations.
//! 2. A pod may talk to itself.
//! 3. An isolated pod's address leads to its chain, which decides.
//! 4. An address in the node's pod ranges that no known pod has is closed. So a new pod cannot do anything before its
//!    policies are in force, whatever else fails; that it is not hindered either is [`crate::gate`]'s concern.
//!
//! What the node itself sends never passes here: probes and the node's own components reach its pods always. Pods of
//! the node's own network have the node's address, and no policy holds for them.

use crate::{
    chains::{Line, Match, Side, Then, VERSION},
    model::Direction,
    plan::Element,
};
use causeway_nft::{
    family::Family,
    rule::{R0, Rule, VERDICT_GOTO, VERDICT_RETURN},
    set::{INTERVAL, MAP, Part, Set},
    table::Table,
    wire::Request,
};
use std::{collections::BTreeMap, net::IpAddr};

/// Our table's name, in the families `ip` and `ip6`.
pub const TABLE: &str = "causeway-policy";

/// After everybody's ordinary filters, among them those of service addresses; and one after another.
const OUT_PRIORITY: i32 = 10;
const IN_PRIORITY: i32 = 11;

/// One of our sets and maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetName {
    /// This node's known pods, each twice: so one set tells who is known and who talks to himself.
    Pods,
    /// Address → chain of what may come in.
    IsolatedIn,
    /// Address → chain of what may go out.
    IsolatedOut,
    /// Group and address.
    Members,
    /// Group or name, address, protocol and port.
    Ports,
    /// The node's pod ranges.
    Ranges,
}

impl AsRef<str> for SetName {
    fn as_ref(&self) -> &str {
        self.name()
    }
}

impl SetName {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Pods, Self::IsolatedIn, Self::IsolatedOut, Self::Members, Self::Ports, Self::Ranges];

    /// Its name in the kernel.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::IsolatedIn => "isolated-in",
            Self::IsolatedOut => "isolated-out",
            Self::Members => "members",
            Self::Ports => "ports",
            Self::Ranges => "ranges",
        }
    }

    /// Where an element belongs.
    pub fn of(element: &Element) -> Self {
        match element {
            Element::Pod(_) => Self::Pods,
            Element::Isolated(Direction::In, ..) => Self::IsolatedIn,
            Element::Isolated(Direction::Out, ..) => Self::IsolatedOut,
            Element::Member(..) => Self::Members,
            Element::Port(..) => Self::Ports,
            Element::Bound(..) => Self::Ranges,
        }
    }

    fn create(self, family: Family, id: u32) -> Request {
        use Part::{Address, Mark, Port, Protocol, Verdict};
        let (key, data, flags): (&[Part], &[Part], u32) = match self {
            Self::Pods => (&[Address, Address], &[], 0),
            Self::IsolatedIn | Self::IsolatedOut => (&[Address], &[Verdict], MAP),
            Self::Members => (&[Mark, Mark, Address], &[], 0),
            Self::Ports => (&[Mark, Mark, Address, Protocol, Port], &[], 0),
            Self::Ranges => (&[Address], &[], INTERVAL),
        };
        Set { table: TABLE, name: self.name(), key, data, flags, size: None }.create(family, id)
    }
}

/// The fixed part from nothing: an older table of the name goes in the same transaction.
pub fn table(family: Family) -> Table {
    let mut t = Table::new(family, TABLE);
    t.anew();
    for (id, set) in SetName::ALL.into_iter().enumerate() {
        t.requests.push(set.create(family, id as u32 + 1));
    }
    const INPUT: u32 = 1;
    const FORWARD: u32 = 2;
    t.chain("leaving");
    t.base("out-forward", "filter", FORWARD, OUT_PRIORITY);
    t.base("out-node", "filter", INPUT, OUT_PRIORITY);
    t.base("in-forward", "filter", FORWARD, IN_PRIORITY);
    for (chain, rules) in fixed(family) {
        for (i, rule) in rules.into_iter().enumerate() {
            t.commented_rule(chain, rule, &fixed_comment(i));
        }
    }
    t
}

/// The comments of the fixed chains' rules, by which the table is known again.
pub fn fixed_comments(family: Family) -> BTreeMap<String, Vec<String>> {
    fixed(family).into_iter().map(|(c, rules)| (c.to_owned(), (0..rules.len()).map(fixed_comment).collect())).collect()
}

fn fixed_comment(i: usize) -> String {
    format!("version {VERSION}, {i}")
}

fn fixed(family: Family) -> Vec<(&'static str, Vec<Rule>)> {
    let width = family.length() / 4;
    let rule = Rule::default;
    let pair = || rule().source(family, R0).destination(family, R0 + width);
    let check = |isolated: SetName, address: &dyn Fn(Rule, u32) -> Rule| {
        // ESTABLISHED and RELATED of the connection's state.
        let passed = rule().connection(0, R0).and(R0, &6_u32.to_ne_bytes()).differs(R0, &[0; 4]).accept();
        let unknown = address(address(rule(), R0).if_in(SetName::Ranges, R0), R0);
        vec![
            passed,
            pair().if_in(SetName::Pods, R0).accept(),
            address(rule(), R0).look_up(isolated, R0, 0),
            address(unknown, R0 + width).unless_in(SetName::Pods, R0).drop(),
        ]
    };
    let source = |r: Rule, to: u32| r.source(family, to);
    let destination = |r: Rule, to: u32| r.destination(family, to);
    // The first interface of every namespace is its loopback.
    let mut to_node = vec![rule().meta(4, R0).compare(R0, &1_u32.to_ne_bytes()).verdict(VERDICT_RETURN, None)];
    if family == Family::V6 {
        // Without neighbour discovery there is no way to anybody. It never crosses a router.
        let kind = rule().protocol(R0).compare(R0, &[58]).payload(2, 0, 1, R0);
        to_node.push(kind.at_least(R0, &[133]).at_most(R0, &[137]).accept());
    }
    to_node.push(rule().jump("leaving"));
    vec![
        ("leaving", check(SetName::IsolatedOut, &source)),
        ("out-forward", vec![rule().jump("leaving")]),
        ("out-node", to_node),
        ("in-forward", check(SetName::IsolatedIn, &destination)),
    ]
}

/// The rules of a chain with their comments; lines about the other family's addresses are none.
pub fn rules(family: Family, lines: &[Line]) -> Vec<(Rule, String)> {
    let rendered = lines.iter().enumerate().filter_map(|(i, line)| Some((rule(family, line)?, i.to_string())));
    rendered.collect()
}

/// The comments alone.
pub fn comments(family: Family, lines: &[Line]) -> Vec<String> {
    rules(family, lines).into_iter().map(|(_, comment)| comment).collect()
}

fn rule(family: Family, line: &Line) -> Option<Rule> {
    let mut rule = Rule::default();
    for m in &line.matches {
        rule = condition(family, rule, m)?;
    }
    Some(match &line.then {
        Then::Accept => rule.accept(),
        Then::Drop => rule.drop(),
        Then::Return => rule.verdict(VERDICT_RETURN, None),
        Then::Jump(chain) => rule.jump(chain),
    })
}

fn condition(family: Family, rule: Rule, m: &Match) -> Option<Rule> {
    let address = |rule: Rule, side: Side, to: u32| match side {
        Side::Source => rule.source(family, to),
        Side::Destination => rule.destination(family, to),
    };
    Some(match m {
        Match::Member(side, id) => address(number(rule, *id), *side, R0 + 2).if_in(SetName::Members, R0),
        Match::Port(id) => number(rule, *id).front(family, R0 + 2).0.if_in(SetName::Ports, R0),
        Match::Net(side, net) => {
            if Family::of(&net.addr()) != family {
                return None;
            }
            match net.prefix_len() {
                0 => rule,
                length if length == net.max_prefix_len() => {
                    address(rule, *side, R0).compare(R0, &octets(net.network()))
                }
                _ => address(rule, *side, R0).and(R0, &octets(net.netmask())).compare(R0, &octets(net.network())),
            }
        }
        Match::Protocol(protocol) => rule.protocol(R0).compare(R0, &[*protocol]),
        Match::Range(protocol, first, last) => {
            let rule = rule.protocol(R0).compare(R0, &[*protocol]).port(R0);
            if first == last {
                rule.compare(R0, &first.to_be_bytes())
            } else {
                rule.at_least(R0, &first.to_be_bytes()).at_most(R0, &last.to_be_bytes())
            }
        }
    })
}

/// A group's or name's number in the first two registers.
fn number(rule: Rule, id: u64) -> Rule {
    let [high, low] = halves(id);
    rule.constant(R0, &high).constant(R0 + 1, &low)
}

/// A number as the two parts of a key.
pub fn halves(id: u64) -> [[u8; 4]; 2] {
    [((id >> 32) as u32).to_ne_bytes(), (id as u32).to_ne_bytes()]
}

/// The data of a map's element: go to the chain.
pub fn to_chain(chain: &str) -> causeway_nft::wire::Attributes {
    causeway_nft::rule::verdict(VERDICT_GOTO, Some(chain))
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
