//! One node for each address, at every moment; another one when it fails.

use crate::lab::{Lab, eventually};
use kube::api::DeleteParams;
use serde_json::json;
use std::collections::BTreeSet;

const V4: [&str; 4] = ["10.90.0.200", "10.90.0.201", "10.90.0.202", "10.90.0.203"];

async fn four(lab: &Lab) {
    for ip in V4 {
        lab.service(&format!("s{}", &ip[8..]), &[ip], json!({})).await;
    }
    for ip in V4 {
        let node = lab.announced(ip).await;
        assert_eq!(lab.answering(ip), BTreeSet::from([lab.mac(&node)]), "{ip} is answered for by {node} alone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_answers_and_the_next_when_its_link_is_down() {
    let lab = Lab::new(&["one", "two"]).await;
    four(&lab).await;
    let guard = lab.guard();
    let ip = V4[0];
    let (first, second) = if lab.announced(ip).await == "one" { ("one", "two") } else { ("two", "one") };
    lab.touch(ip);
    assert_eq!(lab.remembered(ip), Some(lab.mac(first)));
    lab.link(first, "down");
    eventually("all move to the other node", || async { (lab.on_link(second).len() == V4.len()).then_some(()) }).await;
    // The neighbours were told: nobody asked in between.
    eventually("the segment has heard of it", || async { (lab.remembered(ip) == Some(lab.mac(second))).then_some(()) })
        .await;
    lab.link(first, "up");
    // It takes part again, and takes nothing away.
    lab.service("new", &["10.90.0.210"], json!({})).await;
    lab.announced("10.90.0.210").await;
    for ip in V4 {
        assert_eq!(lab.answering(ip), BTreeSet::from([lab.mac(second)]), "{ip} stays where it is");
    }
    guard.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_reach_the_api_server_falls_silent_before_another_speaks() {
    let lab = Lab::new(&["one", "two"]).await;
    four(&lab).await;
    let guard = lab.guard();
    lab.api_route("one", true);
    eventually("all move to the node that is left", || async { (lab.on_link("two").len() == V4.len()).then_some(()) })
        .await;
    assert!(lab.on_link("one").is_empty());
    lab.api_route("one", false);
    lab.service("new", &["10.90.0.210"], json!({})).await;
    lab.announced("10.90.0.210").await;
    assert!(V4.iter().all(|ip| lab.on_link("two").contains(*ip)), "and back again nothing is doubled");
    guard.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_announcer_does_not_answer_for_ever_and_a_stopped_one_hands_over() {
    let mut lab = Lab::new(&["one", "two"]).await;
    four(&lab).await;
    let guard = lab.guard();
    lab.kill("one").await;
    eventually("all move to the living one", || async { (lab.on_link("two").len() == V4.len()).then_some(()) }).await;
    assert!(lab.on_link("one").is_empty(), "the kernel has let go by itself");
    lab.start("one").await;
    lab.service("new", &["10.90.0.210"], json!({})).await;
    lab.announced("10.90.0.210").await;
    lab.stop("two").await;
    eventually("all move back", || async { V4.iter().all(|ip| lab.on_link("one").contains(*ip)).then_some(()) }).await;
    guard.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn local_policy_follows_the_endpoints_and_both_families_are_answered() {
    let lab = Lab::new(&["one", "two"]).await;
    let local = json!({ "externalTrafficPolicy": "Local" });
    lab.service("local", &["10.90.0.205"], local).await;
    lab.service("six", &["fd00:90::7"], json!({})).await;
    let node = lab.announced("fd00:90::7").await;
    assert_eq!(lab.answering("fd00:90::7"), BTreeSet::from([lab.mac(&node)]));
    assert!(lab.announcer("10.90.0.205").is_none(), "no endpoint, nobody to announce it");
    for node in ["two", "one"] {
        lab.endpoint("local", node).await;
        eventually("it follows its endpoint", || async {
            (lab.announcer("10.90.0.205").as_deref() == Some(node)).then_some(())
        })
        .await;
    }
    // What is not ours, or no more, is not announced.
    lab.service("foreign", &["10.90.0.206"], json!({ "loadBalancerClass": "x.dev/y" })).await;
    lab.service("outside", &["10.90.0.99"], json!({})).await;
    lab.services.delete("local", &DeleteParams::default()).await.unwrap();
    eventually("its address and its Lease go", || async {
        let lease = lab.leases.get_opt("load-balancer-10.90.0.205").await.unwrap();
        (lease.is_none() && lab.on_link("one").is_disjoint(&["10.90.0.205".to_owned()].into())).then_some(())
    })
    .await;
    let all: BTreeSet<String> = lab.on_link("one").union(&lab.on_link("two")).cloned().collect();
    assert_eq!(all, BTreeSet::from(["fd00:90::7".to_owned()]));
}
