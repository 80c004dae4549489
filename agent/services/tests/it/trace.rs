//! Virtual packets through the rules of each renderer, compared with what the model says of them.
//!
//! In: random services, endpoints and packets. Out: where a packet may go, how likely each of these is, and whether its
//! source address changes. A rule that the tracer does not know is an error. Pure: nothing here touches the kernel.

#[path = "trace/cases.rs"]
pub mod cases;
#[path = "trace/iptables.rs"]
mod iptables;
#[path = "trace/nftables.rs"]
mod nftables;
#[path = "trace/tables.rs"]
mod tables;

use cases::{History, packets, steps};
use causeway_services::{
    family::Family,
    model::{Choice, Front, ServiceModel, Target, Wanted},
    renderer::Ranges,
};
use proptest::{prelude::*, strategy::ValueTree};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// A connection's first packet, as it meets the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Whether a process of the node itself sends it.
    pub by_node: bool,
    pub source: IpAddr,
    pub to: Front,
    /// The endpoint that its client was given before, where there is affinity.
    pub before: Option<Target>,
    /// Connection tracking makes nothing of it: it belongs to no connection and cannot begin one.
    pub invalid: bool,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It goes to one of these: how likely to which, and whether by the node's source address.
    To(BTreeMap<Target, (f64, bool)>),
    Refused,
    Dropped,
    /// It goes where it was sent to.
    Untouched,
}

impl Outcome {
    /// The same, as far as chances are concerned up to rounding.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::To(a), Self::To(b)) => {
                a.len() == b.len()
                    && a.iter().zip(b).all(|((t, (p, m)), (u, (q, n)))| t == u && m == n && (p - q).abs() < 0.02)
            }
            _ => self == other,
        }
    }
}

/// What the tracers must know of the node.
pub struct Node {
    pub ips: Vec<IpAddr>,
    pub ranges: Ranges,
}

impl Node {
    fn is_local(&self, ip: &IpAddr) -> bool {
        self.ranges.local.iter().any(|range| range.contains(ip))
    }
}

/// What the model says.
pub fn expected(models: &BTreeMap<String, ServiceModel>, node: &Node, packet: &Packet) -> Outcome {
    let in_range = node.ranges.services.iter().any(|range| range.contains(&packet.to.ip));
    if packet.invalid {
        return if in_range { Outcome::Dropped } else { Outcome::Untouched };
    }
    // Should two services want a front, the first by name has it.
    let Some(wanted) = models.values().find_map(|m| m.fronts.get(&packet.to)) else {
        return if models.values().any(|m| m.cluster_ips.contains(&packet.to.ip)) {
            Outcome::Refused
        } else if in_range {
            Outcome::Dropped
        } else {
            Outcome::Untouched
        };
    };
    if wanted.sources.as_ref().is_some_and(|s| !s.iter().any(|range| range.contains(&packet.source))) {
        return Outcome::Dropped;
    }
    let is_inside = packet.by_node || node.ranges.pods.iter().any(|range| range.contains(&packet.source));
    let choice = wanted.external.as_ref().filter(|_| !is_inside).unwrap_or(&wanted.choice);
    let targets = match choice {
        Choice::Refuse => return Outcome::Refused,
        Choice::Drop => return Outcome::Dropped,
        Choice::Spread(targets) => remembered(wanted, targets, packet),
    };
    let chance = 1.0 / targets.len() as f64;
    let all = targets.into_iter().map(|target| {
        let to_itself = packet.source == target.ip && models.values().any(|m| m.local.contains(&target.ip));
        let passes_through = !node.is_local(&packet.source) && !node.is_local(&target.ip);
        (target, (chance, to_itself || passes_through))
    });
    Outcome::To(all.collect())
}

fn remembered(wanted: &Wanted, targets: &BTreeSet<Target>, packet: &Packet) -> BTreeSet<Target> {
    match packet.before {
        Some(before) if wanted.affinity.is_some() && targets.contains(&before) => BTreeSet::from([before]),
        _ => targets.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn packets_go_where_the_model_says(steps in steps(), packets in packets()) {
        let mut history = History::default();
        for step in &steps {
            history.take(step);
        }
        let node = history.node();
        let iptables = iptables::Rules::new(history.iptables());
        let nftables = nftables::Rules::new(history.nftables());
        for packet in packets.iter().map(|p| history.packet(p)) {
            let expected = expected(&history.models, &node, &packet);
            let by_iptables = iptables.trace(&node, &packet);
            prop_assert!(by_iptables.is(&expected), "iptables: {packet:?}\n{by_iptables:?}\nexpected {expected:?}\n{}",
                iptables.dump(Family::of(&packet.to.ip)));
            let by_nftables = nftables.trace(&node, &packet);
            prop_assert!(by_nftables.is(&expected), "nftables: {packet:?}\n{by_nftables:?}\nexpected {expected:?}");
        }
    }

    #[test]
    fn any_history_ends_with_the_chains_of_a_fresh_start(steps in steps(), narrow in 0_usize..6) {
        let mut history = History::branching_above(narrow);
        let mut kernel = BTreeMap::new();
        for step in &steps {
            history.take(step);
            for (id, rules) in history.iptables.take() {
                match rules {
                    Some(rules) => kernel.insert(id, rules),
                    None => kernel.remove(&id),
                };
            }
        }
        let mut fresh = History::branching_above(narrow);
        fresh.iptables.set_ranges(&history.node().ranges);
        for (name, model) in &history.models {
            fresh.iptables.set(name, Some(model.clone()));
        }
        let fresh = fresh.iptables.all();
        prop_assert_eq!(&kernel, &fresh);
        prop_assert_eq!(&kernel, &history.iptables.all());
        iptables::Rules::new(kernel).check_references();
    }
}

/// The cases are worth something: everything that can become of a packet does.
#[test]
fn packets_meet_everything() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut met: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..60 {
        let steps = steps().new_tree(&mut runner).unwrap().current();
        let packets = packets().new_tree(&mut runner).unwrap().current();
        let mut history = History::default();
        for step in &steps {
            history.take(step);
        }
        for packet in packets.iter().map(|p| history.packet(p)) {
            let wanted = history.models.values().find_map(|m| m.fronts.get(&packet.to));
            let kind = wanted.map_or_else(|| "none".to_owned(), |w| format!("{:?}", w.kind));
            let end = match expected(&history.models, &history.node(), &packet) {
                Outcome::To(all) => {
                    let sticks =
                        all.len() == 1 && wanted.is_some_and(|w| w.affinity.is_some()) && packet.before.is_some();
                    let masquerade = all.values().any(|(_, masquerade)| *masquerade);
                    format!("to, masquerade {masquerade}, sticks {sticks}")
                }
                other => format!("{other:?}"),
            };
            *met.entry(format!("{kind}: {end}")).or_default() += 1;
        }
    }
    for kind in ["ClusterIp", "ExternalIp", "LoadBalancer", "NodePort"] {
        for end in ["Refused", "Dropped"] {
            assert!(met.contains_key(&format!("{kind}: {end}")), "{kind} {end}: {met:#?}");
        }
        for (masquerade, sticks) in [(true, true), (true, false), (false, true), (false, false)] {
            let end = format!("{kind}: to, masquerade {masquerade}, sticks {sticks}");
            assert!(met.contains_key(&end), "{end}: {met:#?}");
        }
    }
    for end in ["Refused", "Dropped", "Untouched"] {
        assert!(met.contains_key(&format!("none: {end}")), "{end}: {met:#?}");
    }
}

/// However many services there are, a change writes a few chains, and no long one.
#[test]
fn a_change_among_thousands_writes_little() {
    use causeway_services::iptables::planner::Planner;
    let of = |endpoints: u16| {
        let mut history = History::default();
        history.take(&cases::wide(endpoints));
        history.models.remove("d/s0").unwrap()
    };
    let (two, three) = (of(2), of(3));
    let model = |n: u16, endpoints: u16| {
        let [high, low] = n.to_be_bytes();
        let mut model = if endpoints == 2 { two.clone() } else { three.clone() };
        // The same service somewhere else, under another name.
        let ip = IpAddr::from([10, 100, high, low]);
        let fronts = std::mem::take(&mut model.fronts).into_iter().filter(|(f, _)| f.ip.is_ipv4());
        for (mut front, mut wanted) in fronts {
            wanted.port = format!("d/s{n}:p0").into();
            match wanted.kind {
                causeway_services::model::Kind::NodePort => front.port = 20_000 + n,
                _ => front.ip = ip,
            }
            model.fronts.insert(front, wanted);
        }
        model.cluster_ips = BTreeSet::from([ip]);
        model
    };
    let mut planner = Planner::new(vec![Family::V4]);
    planner.set_ranges(&History::default().node().ranges);
    for n in 0..2000 {
        planner.set(&format!("d/s{n}"), Some(model(n, 3)));
    }
    planner.all();
    let written = |planner: &mut Planner| {
        let changes = planner.take();
        let rules = changes.values().flatten().map(Vec::len).sum::<usize>();
        (changes.len(), rules)
    };
    planner.set("d/s77", Some(model(77, 2)));
    // KUBE-SVC-…, and the KUBE-SEP-… that goes.
    assert_eq!(written(&mut planner), (2, 2));
    planner.set("d/s2000", Some(model(2000, 3)));
    let (chains, rules) = written(&mut planner);
    assert!(chains <= 14 && rules < 250, "{chains} chains, {rules} rules");
}

#[test]
fn a_thousand_endpoints_are_all_as_likely() {
    let mut history = History::default();
    history.take(&cases::wide(1000));
    let rules = iptables::Rules::new(history.iptables());
    let packet = Packet {
        by_node: true,
        source: history.node().ips[0],
        to: *history.models["d/s0"].fronts.keys().next().unwrap(),
        before: None,
        invalid: false,
    };
    let Outcome::To(all) = rules.trace(&history.node(), &packet) else { panic!("not translated") };
    assert_eq!(all.len(), 1000);
    for (target, (chance, _)) in all {
        assert!((chance - 0.001).abs() < 0.000_002, "{target:?}: {chance}");
    }
}
