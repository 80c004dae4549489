//! What a cluster at rest asks of the API server for its load balancers' addresses.

use crate::lab::Lab;
use futures::StreamExt;
use kube::runtime::watcher::{Config, Event};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

const NODES: [&str; 6] = ["n1", "n2", "n3", "n4", "n5", "n6"];
/// The holder and those that stand by.
const RENEWING: usize = 3;
/// Who follows whom: the first that stands by the holder, the second the holder and the first.
const FOLLOWED: u64 = 3;
const FOR: Duration = Duration::from_secs(10);

/// Changes of Leases of a kind, by name, while the time lasts.
async fn changes(lab: &Lab, kind: &str) -> BTreeMap<String, u64> {
    let config = Config::default().labels(&format!("causeway.dev/announce={kind}"));
    let mut events = causeway_api::watch::watch(lab.leases.clone(), config);
    let mut counts = BTreeMap::new();
    let counting = async {
        while let Some(event) = events.next().await {
            if let Event::Apply(lease) | Event::Delete(lease) = event.unwrap() {
                *counts.entry(lease.metadata.name.unwrap()).or_default() += 1;
            }
        }
    };
    let _ = tokio::time::timeout(FOR, counting).await;
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_at_rest_asks_little_however_many_nodes_it_has() {
    let lab = Lab::new(&NODES).await;
    lab.service("one", &["10.90.0.200"], json!({})).await;
    lab.announced("10.90.0.200").await;
    // Who only stood by until the last node came has let go.
    tokio::time::sleep(Duration::from_secs(7)).await;
    let asked = |now: BTreeMap<String, u64>, then: &BTreeMap<String, u64>| -> BTreeMap<String, u64> {
        now.into_iter().map(|(verb, n)| (verb.clone(), n - then.get(&verb).unwrap_or(&0))).collect()
    };
    // Without those of this test.
    let watches = lab.watches_of_leases().await;
    let then = lab.requests_for_leases().await;
    let (nodes, addresses) = tokio::join!(changes(&lab, "node"), changes(&lab, "address"));
    let requests = asked(lab.requests_for_leases().await, &then);
    eprintln!("{} nodes, {FOR:?}: requests {requests:?}, watches {watches}, renewed {nodes:?}", NODES.len());
    let renewals: u64 = nodes.values().sum();
    assert!(nodes.len() <= RENEWING, "only who must renews: {nodes:?}");
    let most = RENEWING as u64 * (FOR.as_millis() as u64 / 1500 + 1);
    assert!((4..=most).contains(&renewals), "{renewals} renewals");
    assert!(requests.get("PATCH").is_some_and(|n| *n <= most), "{requests:?}");
    // Further candidates look at the holder now and then.
    assert!(requests.get("GET").is_none_or(|n| *n <= NODES.len() as u64), "{requests:?}");
    assert_eq!(addresses, BTreeMap::new(), "what all watch does not change");
    // Each watches the Leases of addresses; the Leases of nodes are watched by name.
    assert_eq!(watches, NODES.len() as u64 + FOLLOWED);
}
