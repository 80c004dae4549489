//! Rules one by one, and the promise that no node is ever overcommitted.

use super::*;
use k8s_openapi::api::core::v1::{Node, Pod};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::Arc;

fn node(name: &str, cpu: &str, extra: Value) -> Node {
    let mut node = json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "spec": {},
        "status": {
            "allocatable": { "cpu": cpu, "memory": "4Gi", "pods": "10" },
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    });
    merge(&mut node, extra);
    serde_json::from_value(node).unwrap()
}

fn pod(name: &str, cpu: &str, extra: Value) -> Arc<PodInfo> {
    let mut pod = json!({
        "metadata": { "name": name, "namespace": "ns", "uid": name, "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }] },
    });
    merge(&mut pod, extra);
    let pod: Pod = serde_json::from_value(pod).unwrap();
    Arc::new(PodInfo::new(&pod))
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(a), Value::Object(b)) => {
            for (k, v) in b {
                merge(a.entry(k).or_insert(Value::Null), v);
            }
        }
        (a, b) => *a = b,
    }
}

fn place(pod: &PodInfo, snapshot: &Snapshot) -> Result<String, String> {
    choose(pod, snapshot, &Volumes::default(), 0).map_err(|e| e.0)
}

#[test]
fn spreading_counts_only_where_the_pod_may_go() {
    let zone = |name: &str, zone: &str| node(name, "4", json!({ "metadata": { "labels": { "zone": zone } } }));
    let nodes = [zone("a", "1"), zone("b", "2"), zone("c", "3")];
    let spec = |policy: Value| {
        json!({ "spec": {
            "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                { "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["1", "2"] }] }] } } },
            "topologySpreadConstraints": [{ "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": { "matchLabels": { "app": "web" } }, "nodeAffinityPolicy": policy }],
        } })
    };
    let placed = ["a", "b"].map(|on| (on.to_owned(), pod(&format!("on-{on}"), "1", spec(Value::Null))));
    let snapshot = Snapshot::new(&nodes, placed);
    assert!(place(&pod("p", "1", spec(Value::Null)), &snapshot).is_ok(), "zone 3 is none of its domains");
    assert!(place(&pod("p", "1", spec(json!("Ignore"))), &snapshot).is_err());
}

#[test]
fn resources_and_the_sentence() {
    let nodes = [
        node("a", "1", json!({})),
        node("b", "4", json!({ "spec": { "taints": [{ "key": "k", "value": "v", "effect": "NoSchedule" }] } })),
        node("c", "4", json!({ "status": { "conditions": [{ "type": "Ready", "status": "Unknown" }] } })),
        node("d", "4", json!({ "spec": { "unschedulable": true } })),
    ];
    let snapshot = Snapshot::new(&nodes, []);
    assert_eq!(
        place(&pod("p", "2", json!({})), &snapshot).unwrap_err(),
        "0/4 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: v}, 1 node(s) had untolerated \
         taint {node.kubernetes.io/not-ready: }, 1 node(s) were unschedulable. preemption: 0/4 nodes are available: 4 \
         Preemption is not helpful for scheduling."
    );
    let tolerant = json!({ "spec": { "tolerations": [{ "key": "k", "operator": "Exists" }] } });
    assert_eq!(place(&pod("p", "2", tolerant), &snapshot).unwrap(), "b");
    assert_eq!(place(&pod("p", "500m", json!({})), &snapshot).unwrap(), "a");
}

#[test]
fn node_selectors_and_affinity() {
    let nodes = [
        node("a", "4", json!({ "metadata": { "labels": { "disk": "hdd", "n": "1" } } })),
        node("b", "4", json!({ "metadata": { "labels": { "disk": "ssd", "n": "5" } } })),
    ];
    let snapshot = Snapshot::new(&nodes, []);
    for (extra, want) in [
        (json!({ "nodeSelector": { "disk": "ssd" } }), Ok("b")),
        (json!({ "nodeSelector": { "disk": "tape" } }), Err(())),
        (required(json!({ "matchExpressions": [{ "key": "n", "operator": "Lt", "values": ["3"] }] })), Ok("a")),
        (required(json!({ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["b"] }] })), Ok("b")),
        (required(json!({})), Err(())),
        (
            json!({ "affinity": { "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [
                { "weight": 50, "preference": { "matchExpressions": [
                    { "key": "disk", "operator": "In", "values": ["ssd"] }] } }] } } }),
            Ok("b"),
        ),
    ] {
        let got = place(&pod("p", "1", json!({ "spec": extra })), &snapshot);
        assert_eq!(got.as_deref().map_err(|_| ()), want, "{extra}");
    }
}

fn required(term: Value) -> Value {
    json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [term] } } } })
}

#[test]
fn pods_keep_together_and_apart() {
    let zone = |z: &str| json!({ "metadata": { "labels": { "zone": z } } });
    let nodes = [node("a", "4", zone("1")), node("b", "4", zone("1")), node("c", "4", zone("2"))];
    let term = |app: &str, key: &str| {
        json!({ "requiredDuringSchedulingIgnoredDuringExecution": [
            { "labelSelector": { "matchLabels": { "app": app } }, "topologyKey": key }] })
    };
    let apart = json!({ "spec": { "affinity": { "podAntiAffinity": term("web", "zone") } } });
    let together = json!({ "spec": { "affinity": { "podAffinity": term("web", "zone") } } });
    let with_nothing = json!({ "spec": { "affinity": { "podAffinity": term("db", "zone") } } });
    let snapshot = Snapshot::new(&nodes, [("a".to_owned(), pod("old", "1", json!({})))]);
    assert_eq!(place(&pod("p", "1", apart.clone()), &snapshot).unwrap(), "c");
    assert_ne!(place(&pod("p", "1", together.clone()), &snapshot).unwrap(), "c");
    assert!(place(&pod("p", "1", with_nothing), &snapshot).unwrap_err().contains("didn't match pod affinity rules"));
    // The first of a group that wants itself goes anywhere.
    assert!(place(&pod("p", "1", together), &Snapshot::new(&nodes, [])).is_ok());
    // What is placed refuses newcomers, too.
    let snapshot = Snapshot::new(&nodes, [("a".to_owned(), pod("old", "1", apart))]);
    assert_eq!(place(&pod("p", "1", json!({})), &snapshot).unwrap(), "c");
}

#[test]
fn topology_is_spread() {
    let zone = |z: &str| json!({ "metadata": { "labels": { "zone": z } } });
    let nodes = [node("a", "4", zone("1")), node("b", "4", zone("2"))];
    let spread = json!({ "spec": { "topologySpreadConstraints": [{ "maxSkew": 1, "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": { "matchLabels": { "app": "web" } } }] } });
    let mut snapshot = Snapshot::new(&nodes, []);
    let mut seen = Vec::new();
    for i in 0..6 {
        let p = pod(&format!("p{i}"), "10m", spread.clone());
        let chosen = choose(&p, &snapshot, &Volumes::default(), i).unwrap();
        snapshot.place(&chosen, p);
        seen.push(chosen);
    }
    assert_eq!(seen.iter().filter(|n| *n == "a").count(), 3);
}

#[test]
fn host_ports_do_not_clash() {
    let port =
        json!({ "spec": { "containers": [{ "name": "c", "ports": [{ "containerPort": 80, "hostPort": 80 }] }] } });
    let nodes = [node("a", "4", json!({}))];
    let snapshot = Snapshot::new(&nodes, [("a".to_owned(), pod("old", "1", port.clone()))]);
    assert!(place(&pod("p", "1", port), &snapshot).unwrap_err().contains("free ports"));
}

proptest! {
    #[test]
    fn a_burst_never_overcommits(cpus in prop::collection::vec(1u32..3000, 1..60), capacities in prop::collection::vec(500u32..8000, 1..6)) {
        let nodes: Vec<Node> =
            capacities.iter().enumerate().map(|(i, c)| node(&format!("n{i}"), &format!("{c}m"), json!({}))).collect();
        let mut snapshot = Snapshot::new(&nodes, []);
        for (i, cpu) in cpus.iter().enumerate() {
            let p = pod(&format!("p{i}"), &format!("{cpu}m"), json!({}));
            let room = |n: &NodeInfo| n.pods.len() < 10 && n.requested.get("cpu") + i128::from(*cpu) <= n.allocatable.get("cpu");
            match place(&p, &snapshot) {
                Ok(chosen) => snapshot.place(&chosen, p),
                Err(_) => prop_assert!(!snapshot.nodes.iter().any(room)),
            }
            for n in &snapshot.nodes {
                prop_assert!(n.requested.get("cpu") <= n.allocatable.get("cpu") && n.pods.len() <= 10);
            }
        }
    }
}
