//! Any history of events leaves the picture that a fresh start would make, and pods wait no longer than they must.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn node(name: &str, cpu: u32) -> Node {
    serde_json::from_value(json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "status": {
            "allocatable": { "cpu": cpu.to_string(), "memory": "4Gi", "pods": "10" },
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    }))
    .unwrap()
}

fn pod(name: &str, spec: Value, phase: &str) -> Pod {
    let mut all = json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": "1" } } }] });
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    serde_json::from_value(json!({
        "metadata": { "name": name, "namespace": "ns", "uid": name, "labels": { "app": "web" } },
        "spec": all, "status": { "phase": phase },
    }))
    .unwrap()
}

fn waiting(name: &str) -> Event<Pod> {
    Event::Apply(pod(name, json!({}), "Pending"))
}

/// With one node of so many CPUs.
fn cluster(cpu: u32) -> Cluster {
    let mut cluster = Cluster::new("default-scheduler");
    cluster.take_node(Event::<Node>::Init);
    cluster.take_node(Event::InitApply(node("a", cpu)));
    cluster.take_node(Event::<Node>::InitDone);
    assert!(!cluster.is_complete());
    cluster.take_pod(Event::<Pod>::Init);
    cluster.take_pod(Event::<Pod>::InitDone);
    assert!(cluster.is_complete());
    cluster
}

fn next(cluster: &mut Cluster, now: Instant) -> Option<String> {
    if !cluster.has_next(now) {
        return None;
    }
    cluster.take_next().map(|p| p.name.clone())
}

/// With one node, and a pod `p` that is being decided on.
fn in_hand(cpu: u32) -> (Cluster, Instant) {
    let (mut cluster, now) = (cluster(cpu), Instant::now());
    cluster.take_pod(waiting("p"));
    assert_eq!(next(&mut cluster, now).as_deref(), Some("p"));
    (cluster, now)
}

fn requested(cluster: &Cluster) -> i128 {
    cluster.snapshot().nodes[0].requested.get("cpu")
}

#[test]
fn by_priority_then_age_then_name() {
    let mut c = cluster(4);
    let now = Instant::now();
    for (name, priority, age) in [("d", 0, 2), ("c", 0, 1), ("b", 0, 1), ("a", 7, 3)] {
        let mut pod = pod(name, json!({ "priority": priority }), "Pending");
        let created = Timestamp::from_second(age).unwrap();
        pod.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(created));
        c.take_pod(Event::Apply(pod));
    }
    c.take_pod(Event::Apply(pod("other", json!({ "schedulerName": "other" }), "Pending")));
    c.take_pod(Event::Apply(pod("done", json!({}), "Succeeded")));
    let order: Vec<String> = std::iter::from_fn(|| next(&mut c, now)).collect();
    assert_eq!(order, ["a", "b", "c", "d"]);
}

#[test]
fn what_was_placed_takes_room_at_once_and_once() {
    let mut c = cluster(4);
    let now = Instant::now();
    c.take_pod(waiting("p"));
    assert_eq!(next(&mut c, now).as_deref(), Some("p"));
    c.assume("p", "a", now);
    assert_eq!(requested(&c), 1000);
    // An echo from before the binding changes nothing.
    c.take_pod(waiting("p"));
    assert_eq!((requested(&c), next(&mut c, now)), (1000, None));
    c.take_pod(Event::Apply(pod("p", json!({ "nodeName": "a" }), "Pending")));
    assert_eq!(requested(&c), 1000);
    c.retry("p", now);
    assert_eq!((requested(&c), next(&mut c, now + RETRY_MAX)), (1000, None), "it is on its node already");
    c.take_pod(Event::Apply(pod("p", json!({ "nodeName": "a" }), "Failed")));
    assert_eq!(requested(&c), 0);
}

#[test]
fn what_never_shows_is_placed_anew() {
    let (mut c, now) = in_hand(4);
    c.assume("p", "a", now);
    assert_eq!(next(&mut c, now + ASSUMED_FOR / 2), None);
    assert_eq!(c.wakes_at(), Some(now + ASSUMED_FOR));
    assert_eq!(next(&mut c, now + ASSUMED_FOR).as_deref(), Some("p"));
    assert_eq!(requested(&c), 0);
}

#[test]
fn a_failure_is_tried_again_ever_later() {
    let mut c = cluster(4);
    let mut now = Instant::now();
    c.take_pod(waiting("p"));
    let mut pauses = Vec::new();
    for _ in 0..8 {
        assert!(next(&mut c, now).is_some());
        c.assume("p", "a", now);
        c.retry("p", now);
        assert_eq!((requested(&c), next(&mut c, now)), (0, None));
        let begin = now;
        while !c.has_next(now) {
            now = c.wakes_at().unwrap();
        }
        pauses.push(now - begin);
    }
    assert_eq!(pauses[..3], [RETRY_MIN, RETRY_MIN * 2, RETRY_MIN * 4]);
    assert_eq!(pauses[7], RETRY_MAX);
}

#[test]
fn parked_until_there_may_be_room() {
    let mut c = cluster(1);
    let mut now = Instant::now();
    c.take_pod(Event::Apply(pod("big", json!({ "nodeName": "a" }), "Running")));
    c.take_pod(waiting("p"));
    assert!(next(&mut c, now).is_some());
    assert!(c.park("p", "no room", now), "the first time is told");
    assert_eq!(next(&mut c, now), None);
    now += PARKED_MIN;
    // What says nothing new about room wakes nobody: a node's heartbeat, a pod's status, a pod that comes.
    c.take_node(Event::Apply(node("a", 1)));
    c.take_pod(Event::Apply(pod("big", json!({ "nodeName": "a" }), "Running")));
    c.take_pod(Event::Apply(pod("more", json!({ "nodeName": "a" }), "Running")));
    assert_eq!(next(&mut c, now), None);
    c.take_node(Event::Apply(node("b", 1)));
    assert!(next(&mut c, now).is_some());
    assert!(!c.park("p", "no room", now), "the same is not told again");
    now += PARKED_MAX;
    c.take_pod(Event::Delete(pod("big", json!({ "nodeName": "a" }), "Running")));
    assert!(next(&mut c, now).is_some());
    c.assume("p", "a", now);
    assert_eq!(c.parked.len(), 0);
}

#[test]
fn reasons_that_change_are_not_told_at_each_change() {
    let mut c = cluster(1);
    let mut now = Instant::now();
    c.take_pod(waiting("p"));
    let (mut told, mut looked) = (0, 0);
    let end = now + Duration::from_secs(60);
    while now < end {
        c.storage_changed();
        while next(&mut c, now).is_some() {
            looked += 1;
            told += usize::from(c.park("p", &format!("reason {looked}"), now));
        }
        now += Duration::from_millis(10);
    }
    assert!((8..=14).contains(&told), "told {told} times in a minute");
    assert!((15..=40).contains(&looked), "looked at {looked} times in a minute of changes");
}

#[test]
fn who_wants_to_be_near_others_hears_of_them() {
    let mut c = cluster(4);
    let now = Instant::now();
    let near = json!({ "affinity": { "podAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [
        { "labelSelector": { "matchLabels": { "app": "web" } }, "topologyKey": "kubernetes.io/hostname" }] } } });
    c.take_pod(Event::Apply(pod("near", near, "Pending")));
    assert!(next(&mut c, now).is_some());
    c.park("near", "nobody there", now);
    c.take_pod(Event::Apply(pod("there", json!({ "nodeName": "a" }), "Running")));
    assert_eq!(next(&mut c, now + PARKED_MIN).as_deref(), Some("near"));
}

#[test]
fn room_is_held_while_claims_are_bound() {
    let (mut c, now) = in_hand(1);
    c.hold("p", "a", now);
    assert_eq!((requested(&c), next(&mut c, now)), (1000, None));
    c.storage_changed();
    assert_eq!(next(&mut c, now).as_deref(), Some("p"));
    assert_eq!(requested(&c), 0);
}

#[test]
fn a_decision_waits_for_the_one_before_to_be_written() {
    let (mut c, mut now) = in_hand(4);
    c.hold("p", "a", now);
    c.writing("p");
    c.storage_changed();
    assert_eq!((next(&mut c, now), requested(&c)), (None, 1000), "its claims are being told of the node");
    c.written("p");
    assert_eq!(next(&mut c, now).as_deref(), Some("p"));
    assert_eq!(c.held_on("p"), Some("a"));
    // No room is left there: nothing ties it to the node any longer.
    assert!(c.park("p", "full", now));
    assert_eq!(c.held_on("p"), None);
    c.writing("p");
    now += PARKED_MAX;
    c.look_around();
    assert_eq!(next(&mut c, now), None);
    c.take_pod(Event::Apply(pod("p", json!({ "priority": 3 }), "Pending")));
    assert_eq!(next(&mut c, now), None, "a change waits, too");
    c.written("p");
    assert_eq!(next(&mut c, now).as_deref(), Some("p"));
    c.assume("p", "a", now);
    c.writing("p");
    c.retry("p", now);
    assert_eq!((requested(&c), next(&mut c, now + RETRY_MAX).as_deref()), (0, Some("p")));
}

#[test]
fn a_pod_that_changes_meanwhile_is_placed_as_it_is() {
    let (mut c, now) = in_hand(4);
    c.hold("p", "a", now);
    let tolerates = json!({ "tolerations": [{ "operator": "Exists" }] });
    c.take_pod(Event::Apply(pod("p", tolerates, "Pending")));
    assert_eq!(requested(&c), 1000);
    c.storage_changed();
    assert!(c.has_next(now));
    assert_eq!(c.take_next().unwrap().tolerations.len(), 1);
}

#[test]
fn room_that_nobody_came_for_is_told() {
    let mut c = cluster(1);
    let now = Instant::now();
    c.take_pod(waiting("first"));
    assert!(next(&mut c, now).is_some());
    c.assume("first", "a", now);
    c.take_pod(waiting("second"));
    assert!(next(&mut c, now).is_some());
    c.park("second", "no room", now);
    let later = now + ASSUMED_FOR;
    let both: BTreeSet<String> = std::iter::from_fn(|| next(&mut c, later)).collect();
    assert_eq!(both.into_iter().collect::<Vec<_>>(), ["first", "second"]);
}

#[derive(Debug, Clone)]
enum Step {
    Node(u8, u32),
    NoNode(u8),
    Pod { number: u8, node: Option<u8>, phase: &'static str, port: bool },
    NoPod(u8),
    Place(u8),
    Relist,
}

fn step() -> impl Strategy<Value = Step> {
    let phase = prop_oneof![Just("Pending"), Just("Running"), Just("Succeeded")];
    prop_oneof![
        (0..4u8, 1..9u32).prop_map(|(n, cpu)| Step::Node(n, cpu)),
        (0..4u8).prop_map(Step::NoNode),
        (0..12u8, prop::option::of(0..4u8), phase, any::<bool>()).prop_map(|(number, node, phase, port)| Step::Pod {
            number,
            node,
            phase,
            port
        }),
        (0..12u8).prop_map(Step::NoPod),
        (0..4u8).prop_map(Step::Place),
        Just(Step::Relist),
    ]
}

proptest! {
    #[test]
    fn any_history_leaves_the_picture_of_a_fresh_start(steps in prop::collection::vec(step(), 1..80)) {
        let now = Instant::now();
        let mut c = Cluster::new("default-scheduler");
        let (mut nodes, mut pods): (BTreeMap<String, Node>, BTreeMap<String, Pod>) = Default::default();
        for step in steps {
            match step {
                Step::Node(n, cpu) => {
                    let node = node(&format!("n{n}"), cpu);
                    nodes.insert(format!("n{n}"), node.clone());
                    c.take_node(Event::Apply(node));
                }
                Step::NoNode(n) => {
                    if let Some(node) = nodes.remove(&format!("n{n}")) {
                        c.take_node(Event::Delete(node));
                    }
                }
                Step::Pod { number, node, phase, port } => {
                    let name = format!("p{number}");
                    let mut spec = node.map_or_else(|| json!({}), |n| json!({ "nodeName": format!("n{n}") }));
                    if port {
                        spec["containers"] = json!([{ "name": "c", "ports": [{ "containerPort": 80, "hostPort": 80 }] }]);
                    }
                    let pod = pod(&name, spec, phase);
                    pods.insert(name, pod.clone());
                    c.take_pod(Event::Apply(pod));
                }
                Step::NoPod(number) => {
                    if let Some(pod) = pods.remove(&format!("p{number}")) {
                        c.take_pod(Event::Delete(pod));
                    }
                }
                // A decision, and what the watch says of it.
                Step::Place(n) => if c.has_next(now) && let Some(info) = c.take_next() {
                    let node = format!("n{n}");
                    c.assume(&info.uid, &node, now);
                    let pod = pods.get_mut(&info.name).unwrap();
                    pod.spec.as_mut().unwrap().node_name = Some(node);
                    c.take_pod(Event::Apply(pod.clone()));
                },
                Step::Relist => {
                    // What goes while nobody watches is missing in the next list.
                    let last = pods.keys().next_back().cloned();
                    last.map(|name| pods.remove(&name));
                    c.take_pod(Event::<Pod>::Init);
                    pods.values().for_each(|pod| c.take_pod(Event::InitApply(pod.clone())));
                    c.take_pod(Event::<Pod>::InitDone);
                    c.take_node(Event::<Node>::Init);
                    nodes.values().for_each(|node| c.take_node(Event::InitApply(node.clone())));
                    c.take_node(Event::<Node>::InitDone);
                }
            }
            let placed = pods.values().filter(|p| !podutil::is_finished(p)).filter_map(|p| {
                Some((p.spec.as_ref()?.node_name.clone()?, Arc::new(PodInfo::new(p))))
            });
            let fresh = Snapshot::new(nodes.values(), placed);
            prop_assert_eq!(fresh.nodes.len(), c.snapshot().nodes.len());
            for (wanted, found) in fresh.nodes.iter().zip(&c.snapshot().nodes) {
                let uids = |n: &crate::snapshot::NodeInfo| n.pods.iter().map(|p| p.uid.clone()).collect::<BTreeSet<_>>();
                prop_assert_eq!(&wanted.name, &found.name);
                prop_assert_eq!(uids(wanted), uids(found));
                prop_assert_eq!(wanted.requested.get("cpu"), found.requested.get("cpu"));
                prop_assert_eq!(&wanted.ports, &found.ports);
                prop_assert_eq!(&wanted.allocatable, &found.allocatable);
            }
            let waiting = pods.values().filter(|p| {
                p.spec.as_ref().is_some_and(|s| s.node_name.is_none()) && podutil::is_active(p)
            });
            c.has_next(now);
            prop_assert_eq!(waiting.count(), c.queue.len());
        }
    }
}
