//! What a decision and a change cost.

use super::*;
use crate::rbac::bootstrap;
use std::time::{Duration, Instant};

#[test]
fn a_rule_that_breaks_down_into_millions_is_no_work() {
    let words: Vec<String> = (0..1000).map(|i| format!("w{i}")).collect();
    let huge = json!({ "verbs": words, "apiGroups": words, "resources": words, "resourceNames": words });
    let index = index(&[
        ("clusterroles", role("", "r", &[rule(&["*"], &["*"], &["pods"])])),
        ("clusterrolebindings", binding("", "b", "ClusterRole:r", &["User:u"])),
    ]);
    let start = Instant::now();
    let missing = index.uncovered(Subject { user: "u", groups: &[] }, "", std::slice::from_ref(&huge));
    assert_eq!(missing.len(), 1, "as a whole");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

/// The time of a decision, the best of several rounds.
fn cost(index: &Index, a: &Attributes) -> Duration {
    let groups: Vec<String> = ["system:authenticated", "devs"].map(str::to_owned).into();
    let me = Subject { user: "me", groups: &groups };
    let round = || {
        let start = Instant::now();
        for _ in 0..2000 {
            std::hint::black_box(index.authorize(me, std::hint::black_box(a)));
        }
        start.elapsed() / 2000
    };
    (0..7).map(|_| round()).min().unwrap()
}

#[test]
fn bindings_of_others_cost_nothing() {
    let of = |others: usize| {
        let mut index = bootstrap::tests::cluster();
        index.upsert("rolebindings", &binding("ns", "mine", "ClusterRole:edit", &["User:me"]));
        for i in 0..others {
            index.upsert(
                "clusterrolebindings",
                &binding("", &format!("c{i}"), "ClusterRole:view", &[&format!("User:u{i}")]),
            );
            index.upsert(
                "rolebindings",
                &binding("ns", &format!("r{i}"), "ClusterRole:admin", &[&format!("Group:g{i}")]),
            );
        }
        index
    };
    let (few, many) = (of(10), of(10_000));
    for a in [attributes("update", "ns", "", "secrets", "s"), attributes("get", "ns", "example.com", "nothing", "x")] {
        let (few, many) = (cost(&few, &a), cost(&many, &a));
        println!("{} {}: {few:?} beside 10 bindings, {many:?} beside 10,000", a.verb, a.resource);
        assert!(many < few * 3, "{few:?} beside 10 bindings, {many:?} beside 10,000");
    }
    let mut index = many;
    let start = Instant::now();
    for i in 0..1000 {
        let snapshot = index.clone();
        index.upsert("clusterrolebindings", &binding("", &format!("c{i}"), "ClusterRole:view", &["User:me"]));
        std::hint::black_box(snapshot);
    }
    let each = start.elapsed() / 1000;
    println!("a change among 20,000 bindings, with a snapshot: {each:?}");
    assert!(each < Duration::from_millis(3), "{each:?}");
}
