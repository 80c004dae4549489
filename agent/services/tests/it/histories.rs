//! Random histories of Services and EndpointSlices against the real kernel: whatever way led there, it holds what a fresh
//! start would have put there.

use crate::support::{FAMILIES, node_one};
use causeway_network::NetNs;
use causeway_services::{
    conntrack::Conntrack,
    family::Family,
    kernel::Kernel,
    model::{self, Front, NodeView, ServiceModel, Target},
    plan::{EXTERNAL, Element},
    program::Program,
    renderer::{Done, Ranges, Renderer},
};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

/// A namespace for one synchronisation, gone after it.
struct Place {
    netns: NetNs,
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cw-h{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self { netns: NetNs::create(&name).unwrap(), dir: tempfile::tempdir().unwrap() }
    }

    fn open(&self) -> Program {
        let dir: &Path = self.dir.path();
        let open = || Program::open(Kernel::open(FAMILIES.to_vec()).unwrap(), Conntrack::open().unwrap(), dir).unwrap();
        self.netns.run(open).unwrap()
    }

    fn elements(&self) -> BTreeSet<Element> {
        self.netns.run(|| Kernel::open(FAMILIES.to_vec()).unwrap().read().unwrap()).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = NetNs::delete(self.netns.name());
    }
}

fn node() -> NodeView {
    NodeView {
        name: "one".into(),
        ips: FAMILIES.map(node_one).into(),
        node_port_ips: FAMILIES.map(node_one).into(),
        zone: Some("z1".into()),
        pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
    }
}

fn ranges() -> Ranges {
    Ranges {
        pods: ["10.244.0.0/16", "fd10:244::/48"].map(|r| r.parse().unwrap()).into(),
        services: ["10.96.0.0/12", "fd96::/108"].map(|r| r.parse().unwrap()).into(),
        local: ["10.244.1.0/24", "10.90.0.11/32", "fd10:90::11/128"].map(|r| r.parse().unwrap()).into(),
    }
}

/// Something of a list, or nothing.
fn some_of(all: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    prop::sample::subsequence(all, 0..=all.len())
}

fn spec() -> impl Strategy<Value = Value> {
    let policy = || prop_oneof![Just("Cluster"), Just("Local")];
    let affinity = prop_oneof![2 => Just(None), 1 => Just(Some(10)), 1 => Just(Some(10_800))];
    let kind = prop_oneof![Just("ClusterIP"), Just("NodePort"), Just("LoadBalancer")];
    let ports = prop::sample::subsequence(vec!["TCP", "UDP", "SCTP"], 1..=3);
    let external = some_of(&["198.51.100.7", "2001:db8::7", "198.51.100.8"]);
    let sources = some_of(&["10.0.0.0/8", "11.0.0.0/8", "192.0.2.0/25", "2001:db8:1::/64", "2001:db8:1:1::/64"]);
    let balanced = some_of(&["198.51.100.1", "198.51.100.7", "2001:db8::1"]);
    (kind, policy(), policy(), affinity, ports, external, (sources, balanced), any::<bool>()).prop_map(
        |(kind, internal, outer, affinity, ports, external, (sources, balanced), dual)| {
            let ports: Vec<Value> = ports
                .iter()
                .map(|p| json!({"name": p.to_lowercase(), "port": 80, "protocol": p, "nodePort": if kind == "ClusterIP" { 0 } else { 30080 }}))
                .collect();
            let affine = affinity.map(|s| json!({"clientIP": {"timeoutSeconds": s}}));
            json!({"spec": {"type": kind, "internalTrafficPolicy": internal, "externalTrafficPolicy": outer,
                "sessionAffinity": if affinity.is_some() { "ClientIP" } else { "None" }, "sessionAffinityConfig": affine,
                "ports": ports, "externalIPs": external, "loadBalancerSourceRanges": sources,
                "clusterIPs": if dual { vec!["10.96.0.N", "fd96::N"] } else { vec!["10.96.0.N"] }},
                "status": {"loadBalancer": {"ingress": balanced.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>()}}})
        },
    )
}

/// (number of the pod, its state)
fn endpoints() -> impl Strategy<Value = Vec<(u16, u8)>> {
    let few = prop::collection::btree_map(1_u16..9, 0_u8..6, 0..6);
    let many = prop::collection::btree_map(1_u16..90, 0_u8..2, 60..80);
    prop_oneof![12 => few, 1 => many].prop_map(|all| all.into_iter().collect())
}

fn slice(family: Family, ends: &[(u16, u8)]) -> EndpointSlice {
    let ends = ends.iter().map(|(n, state)| {
        let ip = if family == Family::V4 {
            format!("10.244.{}.{n}", n % 2 + 1)
        } else {
            format!("fd10:244:0:{}::{n:x}", n % 2 + 1)
        };
        let (ready, leaving) = (*state < 4, *state == 4);
        json!({"addresses": [ip], "nodeName": if n % 2 == 0 { "one" } else { "two" },
            "conditions": {"ready": ready, "serving": ready || leaving, "terminating": leaving},
            "hints": (*state == 3).then(|| json!({"forZones": [{"name": "z1"}]}))})
    });
    let port = |p: &str| json!({"name": p.to_lowercase(), "port": 8080, "protocol": p});
    let ports = ["TCP", "UDP", "SCTP"].map(port);
    serde_json::from_value(json!({"metadata": {"name": "x"}, "endpoints": ends.collect::<Vec<_>>(),
        "addressType": if family == Family::V4 { "IPv4" } else { "IPv6" }, "ports": ports}))
    .unwrap()
}

fn model(name: u8, spec: &Value, ends: &[(u16, u8)]) -> ServiceModel {
    let text = spec.to_string().replace(".N\"", &format!(".{name}\"")).replace("::N\"", &format!("::{name}\""));
    let mut service: Service = serde_json::from_str(&text).unwrap();
    service.metadata.name = Some(format!("s{name}"));
    let slices = FAMILIES.map(|family| slice(family, ends));
    model::service(&service, &slices, &node())
}

/// Places are history; how many there are, and who has some, is not.
type Seen = (BTreeSet<Element>, BTreeMap<(Front, bool), (usize, BTreeSet<Target>)>);

fn seen(elements: BTreeSet<Element>) -> Seen {
    let mut behind: BTreeMap<_, (usize, BTreeSet<Target>)> = BTreeMap::new();
    let mut rest = BTreeSet::new();
    for element in elements {
        match element {
            Element::Endpoint(front, place, target) => {
                let (count, targets) = behind.entry((front, place >= EXTERNAL)).or_default();
                *count += 1;
                targets.insert(target);
            }
            Element::Id(..) => {}
            other => {
                rest.insert(other);
            }
        }
    }
    (rest, behind)
}

/// A program whose kernel knows both time-outs, in the same order always.
fn seeded(place: &Place) -> Program {
    let mut program = place.open();
    for seconds in [10, 10_800] {
        let spec = json!({"spec": {"clusterIPs": ["10.96.0.N"], "sessionAffinity": "ClientIP", "ports": [{"port": 80}],
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}}});
        program.sync(vec![("seed".into(), Some(model(99, &spec, &[(1, 0)])))], &ranges(), false).unwrap();
    }
    program.sync(vec![("seed".into(), None)], &ranges(), false).unwrap();
    program
}

#[test]
fn any_history_leaves_in_the_kernel_what_a_fresh_start_puts_there() {
    let step = (1_u8..5, spec(), endpoints(), prop::bool::weighted(0.85));
    let steps = prop::collection::vec(prop::collection::vec(step, 1..4), 1..12);
    let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
    let result = runner.run(&steps, |steps| {
        let here = Place::new();
        let mut program = seeded(&here);
        let mut last: BTreeMap<String, ServiceModel> = BTreeMap::new();
        for batch in &steps {
            let mut changes = Vec::new();
            for (name, spec, ends, present) in batch {
                let key = format!("d/s{name}");
                let model = present.then(|| model(*name, spec, ends));
                match &model {
                    Some(m) => last.insert(key.clone(), m.clone()),
                    None => last.remove(&key),
                };
                changes.push((key, model));
            }
            let done = program.sync(changes, &ranges(), false).unwrap();
            prop_assert!(!done.rebuilt, "a change is a change of elements: {:?}", done);
        }
        let all = || last.iter().map(|(k, m)| (k.clone(), Some(m.clone()))).collect::<Vec<_>>();
        let there = Place::new();
        seeded(&there).sync(all(), &ranges(), true).unwrap();
        let found = here.elements();
        prop_assert_eq!(seen(found.clone()), seen(there.elements()));
        // And the next process has nothing to do.
        let mut next = here.open();
        prop_assert!(next.adopted());
        let done = next.sync(all(), &ranges(), true).unwrap();
        prop_assert_eq!((done.elements, done.rebuilt), (Done::default().elements, false));
        prop_assert_eq!(here.elements(), found);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
