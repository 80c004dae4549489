//! The pure middle: planned rules against what the API's objects say, and plans against fresh states.

use crate::{
    chains::Then,
    kernel::Kernel,
    model,
    oracle::World,
    plan::{Element, Plan, Planner, State},
    program::{Done, Program},
    trace::{Packet, passes},
};
use causeway_nft::family::Family;
use k8s_openapi::api::{
    core::v1::{Namespace, Pod},
    networking::v1::NetworkPolicy,
};
use proptest::{prelude::*, sample::select, test_runner::TestRunner};
use serde_json::{Value, json};
use std::{collections::BTreeMap, net::IpAddr};

const NODE: &str = "one";
const NAMESPACES: [&str; 3] = ["a", "b", "c"];

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn labels() -> impl Strategy<Value = Value> {
    (select(vec!["w", "v", ""]), select(vec!["x", "y", ""])).prop_map(|(app, tier)| {
        let pairs = [("app", app), ("tier", tier)].into_iter().filter(|(_, v)| !v.is_empty());
        Value::Object(pairs.map(|(k, v)| (k.to_owned(), json!(v))).collect())
    })
}

fn selector() -> impl Strategy<Value = Value> {
    let key = || select(vec!["app", "tier"]);
    let values = || prop::sample::subsequence(vec!["w", "v", "x", "y"], 1..3);
    prop_oneof![
        2 => Just(json!({})),
        3 => (key(), select(vec!["w", "v", "x"])).prop_map(|(k, v)| json!({"matchLabels": {k: v}})),
        1 => (key(), values(), any::<bool>()).prop_map(|(k, v, is_in)| {
            let operator = if is_in { "In" } else { "NotIn" };
            json!({"matchExpressions": [{"key": k, "operator": operator, "values": v}]})
        }),
        1 => (key(), any::<bool>()).prop_map(|(k, is_there)| {
            let operator = if is_there { "Exists" } else { "DoesNotExist" };
            json!({"matchExpressions": [{"key": k, "operator": operator}]})
        }),
    ]
}

/// Pod number `i`; its addresses tell node and number.
fn pod(i: usize, namespace: &str, labels: &Value, node: &str, port: u16, kind: u8) -> Pod {
    let third = if node == NODE { 1 } else { 2 };
    // A pod that is about to start has no address yet.
    let ips = if kind == 2 {
        json!([])
    } else {
        json!([{"ip": format!("10.244.{third}.{}", i + 2)}, {"ip": format!("fd12:244:0:{third}::{:x}", i + 2)}])
    };
    read(
        json!({"metadata": {"name": format!("p{i}"), "namespace": namespace, "uid": format!("u{i}"), "labels": labels},
        "spec": {"nodeName": node, "hostNetwork": kind == 1, "containers": [{"name": "c", "ports": [
            {"name": "http", "containerPort": port}, {"name": "dns", "protocol": "UDP", "containerPort": 53}]}]},
        "status": {"podIPs": ips, "phase": if kind == 3 { "Failed" } else { "Running" }}}),
    )
}

fn any_pod(i: usize) -> impl Strategy<Value = Pod> {
    let kind = prop_oneof![9 => Just(0_u8), 1 => Just(1), 1 => Just(2), 1 => Just(3)];
    (select(NAMESPACES.to_vec()), labels(), select(vec![NODE, NODE, "two"]), select(vec![80_u16, 8080]), kind)
        .prop_map(move |(ns, labels, node, port, kind)| pod(i, ns, &labels, node, port, kind))
}

fn any_namespace() -> impl Strategy<Value = Namespace> {
    // One of them may not be known yet, or any more.
    (select(NAMESPACES.to_vec()), labels())
        .prop_map(|(name, labels)| read(json!({"metadata": {"name": name, "labels": labels}})))
}

fn peer() -> impl Strategy<Value = Value> {
    let cidrs = vec![
        ("10.244.0.0/16", vec!["10.244.1.0/24", "10.244.2.0/28", "10.244.1.3/32"]),
        ("0.0.0.0/0", vec!["10.0.0.0/8", "192.168.0.0/16"]),
        ("192.168.7.9/32", vec![]),
        ("fd12:244::/32", vec!["fd12:244:0:2::/64", "fd12:244:0:1::3/128"]),
        ("::/0", vec!["fd12::/16"]),
    ];
    prop_oneof![
        selector().prop_map(|s| json!({"podSelector": s})),
        selector().prop_map(|s| json!({"namespaceSelector": s})),
        (selector(), selector()).prop_map(|(n, p)| json!({"namespaceSelector": n, "podSelector": p})),
        (select(cidrs), any::<bool>()).prop_map(|((cidr, except), all)| {
            json!({"ipBlock": if all { json!({"cidr": cidr}) } else { json!({"cidr": cidr, "except": except}) }})
        }),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    prop_oneof![
        select(vec!["TCP", "UDP", "SCTP"]).prop_map(|p| json!({"protocol": p})),
        select(vec![80, 53, 8080]).prop_map(|p| json!({"port": p})),
        Just(json!({"port": 53, "protocol": "UDP"})),
        Just(json!({"port": "http"})),
        Just(json!({"port": "dns", "protocol": "UDP"})),
        Just(json!({"port": "nobody-calls-it-so"})),
        Just(json!({"port": 8000, "endPort": 8080})),
    ]
}

fn rule(peers: &'static str) -> impl Strategy<Value = Value> {
    (prop::collection::vec(peer(), 0..3), prop::collection::vec(port(), 0..3))
        .prop_map(move |(list, ports)| json!({peers: list, "ports": ports}))
}

fn any_policy() -> impl Strategy<Value = NetworkPolicy> {
    let rules = |peers| prop::option::of(prop::collection::vec(rule(peers), 0..3));
    let types = prop_oneof![
        2 => Just(None),
        1 => Just(Some(json!(["Ingress"]))),
        1 => Just(Some(json!(["Egress"]))),
        1 => Just(Some(json!(["Ingress", "Egress"]))),
    ];
    (select(NAMESPACES.to_vec()), 0..4_u8, selector(), rules("from"), rules("to"), types).prop_map(
        |(ns, name, selector, ingress, egress, types)| {
            read(json!({"metadata": {"name": format!("n{name}"), "namespace": ns},
                "spec": {"podSelector": selector, "ingress": ingress, "egress": egress, "policyTypes": types}}))
        },
    )
}

/// One change.
#[expect(clippy::large_enum_variant, reason = "a few, in tests")]
#[derive(Debug, Clone)]
enum Change {
    Pod(Pod),
    NoPod(usize),
    Namespace(Namespace),
    NoNamespace(&'static str),
    Policy(NetworkPolicy),
    NoPolicy(&'static str, u8),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (0..8_usize).prop_flat_map(any_pod).prop_map(Change::Pod),
        1 => (0..8_usize).prop_map(Change::NoPod),
        3 => any_namespace().prop_map(Change::Namespace),
        1 => select(NAMESPACES.to_vec()).prop_map(Change::NoNamespace),
        5 => any_policy().prop_map(Change::Policy),
        2 => (select(NAMESPACES.to_vec()), 0..4_u8).prop_map(|(ns, n)| Change::NoPolicy(ns, n)),
    ]
}

impl World {
    fn take(&mut self, change: &Change) {
        let name = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| meta.name.clone().unwrap();
        match change {
            Change::Pod(pod) => {
                self.pods.retain(|p| name(&p.metadata) != name(&pod.metadata));
                self.pods.push(pod.clone());
            }
            Change::NoPod(i) => self.pods.retain(|p| name(&p.metadata) != format!("p{i}")),
            Change::Namespace(ns) => {
                self.namespaces.retain(|n| n.metadata.name != ns.metadata.name);
                self.namespaces.push(ns.clone());
            }
            Change::NoNamespace(ns) => self.namespaces.retain(|n| name(&n.metadata) != *ns),
            Change::Policy(policy) => {
                let m = &policy.metadata;
                self.policies.retain(|p| (&p.metadata.namespace, &p.metadata.name) != (&m.namespace, &m.name));
                self.policies.push(policy.clone());
            }
            Change::NoPolicy(ns, n) => self
                .policies
                .retain(|p| p.metadata.namespace.as_deref() != Some(*ns) || name(&p.metadata) != format!("n{n}")),
        }
    }
}

fn tell(planner: &mut Planner, change: &Change) {
    match change {
        Change::Pod(pod) => planner.set_pod(&pod.metadata.name.clone().unwrap(), Some(model::pod(pod))),
        Change::NoPod(i) => planner.set_pod(&format!("p{i}"), None),
        Change::Namespace(ns) => {
            planner.set_namespace(&ns.metadata.name.clone().unwrap(), Some(ns.metadata.labels.clone().unwrap()));
        }
        Change::NoNamespace(ns) => planner.set_namespace(ns, None),
        Change::Policy(policy) => {
            let m = &policy.metadata;
            let (namespace, name) = (m.namespace.clone().unwrap(), m.name.clone().unwrap());
            planner.set_policy(&namespace, &name, Some(model::policy(policy)));
        }
        Change::NoPolicy(ns, n) => planner.set_policy(ns, &format!("n{n}"), None),
    }
}

fn planner() -> Planner {
    let mut planner = Planner::new(NODE);
    planner.set_ranges(["10.244.1.0/24", "fd12:244:0:1::/64"].map(|r| r.parse().unwrap()).into());
    planner
}

fn fresh(world: &World) -> State {
    let mut planner = planner();
    world.namespaces.iter().for_each(|n| tell(&mut planner, &Change::Namespace(n.clone())));
    world.policies.iter().for_each(|p| tell(&mut planner, &Change::Policy(p.clone())));
    world.pods.iter().for_each(|p| tell(&mut planner, &Change::Pod(p.clone())));
    planner.take_plan();
    planner.state()
}

/// Does a plan as the kernel does it, which refuses what cannot be.
fn apply(state: &mut State, plan: &Plan) {
    for (name, lines) in &plan.new_chains {
        assert!(state.chains.insert(name.clone(), lines.clone()).is_none(), "{name} is there already");
    }
    for element in &plan.delete {
        assert!(state.elements.remove(element), "{element:?} is not there");
    }
    for element in &plan.add {
        assert!(state.elements.insert(element.clone()), "{element:?} is there already");
    }
    for name in &plan.old_chains {
        assert!(state.chains.remove(name).is_some(), "{name} is not there");
    }
    let jumps = state.chains.values().flatten().filter_map(|l| match &l.then {
        Then::Jump(to) => Some(to),
        _ => None,
    });
    let leads = state.elements.iter().filter_map(|e| match e {
        Element::Isolated(_, _, to) => Some(to),
        _ => None,
    });
    for to in jumps.chain(leads) {
        assert!(state.chains.contains_key(to), "{to} is not there");
    }
}

fn changes(count: usize) -> impl Strategy<Value = Vec<(Change, bool)>> {
    prop::collection::vec((change(), prop::bool::weighted(0.4)), 1..count)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// For every two addresses, protocols and ports, the rules say what the objects say.
    #[test]
    fn rules_say_what_policies_say(changes in changes(40)) {
        let mut world = World::default();
        changes.iter().for_each(|(c, _)| world.take(c));
        let state = fresh(&world);
        let mut addresses: Vec<IpAddr> =
            ["192.168.7.9", "8.8.8.8", "fd00:1::9", "10.90.0.12"].map(|a| a.parse().unwrap()).to_vec();
        for pod in &world.pods {
            let ips = pod.status.as_ref().unwrap().pod_ips.iter().flatten();
            addresses.extend(ips.map(|i| i.ip.parse::<IpAddr>().unwrap()));
        }
        let here = |ip: IpAddr| ip.to_string().starts_with("10.244.1.") || ip.to_string().starts_with("fd12:244:0:1:");
        for (from, to) in addresses.iter().flat_map(|a| addresses.iter().map(move |b| (*a, *b))) {
            // A pod that policies do not know holds an address of the node's range, which therefore is closed.
            let closed = [from, to].iter().any(|ip| here(*ip) && world.pod(*ip).is_none());
            if from.is_ipv4() != to.is_ipv4() {
                continue;
            }
            for (protocol, number) in [("TCP", 6), ("UDP", 17), ("SCTP", 132)] {
                for port in [80, 8080, 53, 7999, 8000] {
                    let packet = Packet { from, to, protocol: number, port, to_node: false };
                    let wanted = world.allows(NODE, from, to, protocol, port) && !closed;
                    prop_assert_eq!(passes(&state, &packet), wanted, "{:?} in {:#?}", packet, world);
                }
            }
        }
    }

    /// However the changes come and wherever they are programmed, the end is that of a fresh start.
    #[test]
    fn any_history_ends_where_a_fresh_start_does(changes in changes(60)) {
        let (mut world, mut planner, mut state) = (World::default(), planner(), State::default());
        for (change, programmed) in &changes {
            world.take(change);
            tell(&mut planner, change);
            if *programmed {
                apply(&mut state, &planner.take_plan());
                prop_assert_eq!(&state, &planner.state());
            }
        }
        apply(&mut state, &planner.take_plan());
        prop_assert_eq!(&state, &fresh(&world));
        prop_assert!(planner.take_plan().is_empty());
        // What is known by names of chains and by elements alone leads there as well.
        let mut other = fresh(&World { policies: Vec::new(), ..world.clone() });
        let plan = Plan::between(&other, &state);
        apply(&mut other, &plan);
        prop_assert_eq!(&other, &state);
    }
}

/// The kernel takes every step as it is planned, and has at the end what is wanted: nothing is left for one who comes
/// fresh, reads it and compares. In a network namespace of the thread's own; needs root.
#[test]
fn any_history_is_taken_by_the_kernel() {
    let inside = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let open = || Program::new(Kernel::open(vec![Family::V4, Family::V6]).unwrap());
        let mut runner = TestRunner::new(ProptestConfig { cases: 40, ..ProptestConfig::default() });
        let outcome = runner.run(&changes(60), |changes| {
            let (mut program, mut planner) = (open(), planner());
            // What the case before has left is adopted, and changed into what this one wants.
            program.sync(&mut planner).unwrap();
            for (change, programmed) in &changes {
                tell(&mut planner, change);
                if *programmed {
                    prop_assert!(!program.sync(&mut planner).unwrap().rebuilt);
                }
            }
            program.sync(&mut planner).unwrap();
            prop_assert_eq!(open().sync(&mut planner).unwrap(), Done::default());
            Ok(())
        });
        outcome.map_err(|e| e.to_string())
    };
    std::thread::spawn(inside).join().unwrap().unwrap();
}

fn web(i: usize, node: &str) -> Pod {
    pod(i, "a", &json!({"app": "w"}), node, 80, 0)
}

fn policy(spec: Value) -> NetworkPolicy {
    read(json!({"metadata": {"name": "n0", "namespace": "a"}, "spec": spec}))
}

#[test]
fn a_pod_that_comes_is_elements_and_no_chains() {
    let mut planner = planner();
    tell(
        &mut planner,
        &Change::Policy(policy(json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}))),
    );
    tell(&mut planner, &Change::Pod(web(0, NODE)));
    assert_eq!(planner.take_plan().new_chains.len(), 1);
    // Another one under the same policy: who it is, that it is isolated, and that it is a member; for each family.
    tell(&mut planner, &Change::Pod(web(1, NODE)));
    let plan = planner.take_plan();
    assert_eq!((plan.new_chains.len(), plan.add.len(), plan.delete.len()), (0, 6, 0));
    // One elsewhere is a member only.
    tell(&mut planner, &Change::Pod(web(2, "two")));
    let plan = planner.take_plan();
    assert_eq!((plan.new_chains.len(), plan.add.len(), plan.delete.len()), (0, 2, 0));
    // The same pod again is nothing.
    tell(&mut planner, &Change::Pod(web(2, "two")));
    assert!(planner.take_plan().is_empty());
    // Nobody here is under a policy of another namespace: it costs nothing here.
    let other =
        read(json!({"metadata": {"name": "n1", "namespace": "b"}, "spec": {"podSelector": {}, "egress": [{}]}}));
    tell(&mut planner, &Change::Policy(other));
    assert!(planner.take_plan().is_empty());
}

#[test]
fn what_allows_everything_needs_no_chain() {
    let mut planner = planner();
    tell(&mut planner, &Change::Pod(web(0, NODE)));
    tell(&mut planner, &Change::Policy(policy(json!({"podSelector": {}, "ingress": [{}]}))));
    planner.take_plan();
    assert!(planner.state().chains.is_empty());
    // Nothing allowed is one line.
    tell(&mut planner, &Change::Policy(policy(json!({"podSelector": {}, "ingress": []}))));
    planner.take_plan();
    assert_eq!(planner.state().chains.values().map(Vec::len).collect::<Vec<_>>(), [1]);
}

#[test]
fn an_address_of_the_network_counts_before_the_api_has_it() {
    let mut planner = planner();
    tell(&mut planner, &Change::Policy(policy(json!({"podSelector": {}}))));
    let starting = pod(0, "a", &json!({"app": "w"}), NODE, 80, 2);
    let ip: IpAddr = "10.244.1.2".parse().unwrap();
    let given: BTreeMap<_, _> = [("u0".to_owned(), [ip].into())].into();
    planner.set_given(given.clone());
    planner.take_plan();
    assert!(planner.covered().is_empty(), "nobody knows whose pod it is");
    tell(&mut planner, &Change::Pod(starting));
    planner.take_plan();
    assert_eq!(*planner.covered(), given);
    assert!(planner.state().elements.iter().any(|e| matches!(e, Element::Isolated(_, i, _) if *i == ip)));
    planner.set_given(BTreeMap::new());
    planner.take_plan();
    assert!(planner.covered().is_empty());
    assert!(!planner.state().elements.contains(&Element::Pod(ip)));
}

#[test]
fn of_two_that_claim_an_address_the_one_that_stays_has_it() {
    let mut planner = planner();
    tell(&mut planner, &Change::Policy(policy(json!({"podSelector": {"matchLabels": {"app": "w"}}}))));
    let mut old = model::pod(&web(0, NODE));
    old.leaving = true;
    let mut new = model::pod(&pod(0, "b", &json!({}), NODE, 80, 0));
    new.uid = "another".into();
    planner.set_pod("old", Some(old.clone()));
    planner.set_pod("new", Some(new));
    planner.take_plan();
    let isolated = |p: &Planner| p.state().elements.iter().any(|e| matches!(e, Element::Isolated(..)));
    assert!(!isolated(&planner));
    assert_eq!(planner.covered().keys().collect::<Vec<_>>(), ["another"]);
    planner.set_pod("new", None);
    planner.take_plan();
    assert!(isolated(&planner));
}

#[test]
fn dns_on_the_nodes_is_the_pod_that_policies_name() {
    let mut planner = planner();
    planner.set_namespace("kube-system", Some([("kubernetes.io/metadata.name".into(), "kube-system".into())].into()));
    let slice = read(json!({"metadata": {"name": "kube-dns-one", "namespace": "kube-system"}, "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.90.0.11"]}],
        "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]}));
    planner.set_pod("dns:kube-system/kube-dns-one", Some(model::dns(&slice)));
    tell(&mut planner, &Change::Pod(web(0, NODE)));
    let to = json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}]);
    let packet = |protocol, port| Packet {
        from: "10.244.1.2".parse().unwrap(),
        to: "10.90.0.11".parse().unwrap(),
        protocol,
        port,
        to_node: true,
    };
    for (ports, udp, tcp) in [
        (json!([]), true, true),
        (json!([{"port": 53, "protocol": "UDP"}]), true, false),
        (json!([{"port": "dns-tcp"}]), false, true),
        (json!([{"port": 54}]), false, false),
    ] {
        let spec = json!({"podSelector": {}, "egress": [{"to": to, "ports": ports}], "policyTypes": ["Egress"]});
        tell(&mut planner, &Change::Policy(policy(spec)));
        planner.take_plan();
        let state = planner.state();
        assert_eq!((passes(&state, &packet(17, 53)), passes(&state, &packet(6, 53))), (udp, tcp), "{ports}");
        assert!(!passes(&state, &packet(6, 10250)), "the node's other ports are no part of DNS");
    }
    // Nor may DNS be taken for a peer that asks.
    let spec = json!({"podSelector": {}, "ingress": [{"from": to}]});
    tell(&mut planner, &Change::Policy(policy(spec)));
    planner.take_plan();
    let ask = Packet {
        from: "10.90.0.11".parse().unwrap(),
        to: "10.244.1.2".parse().unwrap(),
        protocol: 6,
        port: 80,
        to_node: false,
    };
    assert!(!passes(&planner.state(), &ask));
}

#[test]
fn sidecars_ports_have_names_too() {
    let pod: Pod = read(json!({"metadata": {"name": "p"}, "spec": {
        "containers": [{"name": "c", "ports": [{"containerPort": 1}]}],
        "initContainers": [
            {"name": "s", "restartPolicy": "Always", "ports": [{"name": "proxy", "containerPort": 15001}]},
            {"name": "i", "ports": [{"name": "gone", "containerPort": 2}]}]}}));
    assert_eq!(model::pod(&pod).ports, [("proxy".to_owned(), 6, 15001)].into());
}

#[test]
fn ranges_side_by_side_have_no_gap() {
    let bounds = |ranges: &[&str]| {
        let mut planner = Planner::new(NODE);
        planner.set_ranges(ranges.iter().map(|r| r.parse().unwrap()).collect());
        planner.take_plan().add.len()
    };
    assert_eq!(bounds(&["10.244.1.0/24"]), 2);
    assert_eq!(bounds(&["10.244.1.0/25", "10.244.1.128/25"]), 2);
    assert_eq!(bounds(&["10.244.1.0/24", "10.244.1.128/25"]), 2);
    assert_eq!(bounds(&["10.244.1.0/24", "10.244.3.0/24"]), 4);
    assert_eq!(bounds(&["255.255.255.0/24"]), 1);
}
