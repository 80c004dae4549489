//! Pods nobody else takes away: those on nodes that are gone, those deleted before they had a node, and finished
//! ones beyond a bound.
//!
//! In: pods, nodes. Out: deletes without grace: no kubelet is left to wait for.

use crate::cache::key_of;
use crate::context::Context;
use crate::error::{Doing, Result, ignore_not_found};
use crate::meta::{created, name};
use causeway_api::pod;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const PERIOD: Duration = Duration::from_secs(20);
/// A node may be away for a moment, for example while its object is made anew.
const QUARANTINE: Duration = Duration::from_secs(40);

/// Collects until `shutdown`.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let mut missing: HashMap<String, Instant> = HashMap::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = shutdown.cancelled() => return,
        }
        let (pods, nodes) = (context.caches.pods.all(), context.caches.nodes.all());
        note_missing(&pods, &nodes, &mut missing, Instant::now());
        let gone: HashSet<&str> =
            missing.iter().filter(|(_, since)| since.elapsed() >= QUARANTINE).map(|(n, _)| n.as_str()).collect();
        for pod in doomed(&pods, &gone, context.config.finished_pods) {
            if let Err(error) = remove(&context, &pod).await {
                tracing::warn!(%error, "will try again");
            }
        }
    }
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

/// Remembers since when nodes that pods name have been missing.
fn note_missing(pods: &[Arc<Pod>], nodes: &[Arc<Node>], missing: &mut HashMap<String, Instant>, now: Instant) {
    let there: HashSet<&str> = nodes.iter().map(|n| name(&n.metadata)).collect();
    let named: HashSet<&str> = pods.iter().filter_map(|p| node_of(p)).filter(|n| !there.contains(n)).collect();
    missing.retain(|node, _| named.contains(node.as_str()));
    for node in named {
        missing.entry(node.to_owned()).or_insert(now);
    }
}

/// The pods to take. Pure.
pub fn doomed(pods: &[Arc<Pod>], gone_nodes: &HashSet<&str>, finished_bound: usize) -> Vec<Arc<Pod>> {
    let stranded = |p: &Pod| match node_of(p) {
        Some(node) => gone_nodes.contains(node),
        None => pod::is_terminating(p),
    };
    let (mut doomed, rest): (Vec<_>, Vec<_>) = pods.iter().cloned().partition(|p| stranded(p));
    let mut finished: Vec<_> = rest.into_iter().filter(|p| pod::is_finished(p) && !pod::is_terminating(p)).collect();
    finished.sort_by_key(|p| (created(&p.metadata), name(&p.metadata).to_owned()));
    let excess = finished.len().saturating_sub(finished_bound);
    doomed.extend(finished.into_iter().take(excess));
    doomed
}

async fn remove(context: &Context, pod: &Pod) -> Result<()> {
    let key = key_of(pod);
    let api = context.api::<Pod>(&key.namespace);
    if !pod::is_finished(pod) && node_of(pod).is_some() {
        // So that watchers see it end, and not merely vanish.
        let patch =
            json!({ "status": { "phase": "Failed", "reason": "NodeLost", "message": "the pod's node is gone" } });
        let patched = api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        ignore_not_found(patched.doing(|| format!("mark pod {key} failed")))?;
    }
    let only = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
    let parameters = DeleteParams::default().grace_period(0).preconditions(only);
    let deleted = api.delete(&key.name, &parameters).await;
    ignore_not_found(deleted.doing(|| format!("remove pod {key}"))).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod as make;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    #[test]
    fn takes_stranded_and_surplus_pods() {
        let finished = |name: &str, second: i64| {
            let mut p = make(name, "n1", false);
            p.status.as_mut().unwrap().phase = Some("Succeeded".to_owned());
            p.metadata.creation_timestamp = Some(Time(Timestamp::from_second(second).unwrap()));
            Arc::new(p)
        };
        let mut deleted = make("never-placed", "", false);
        deleted.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        let pods = [
            Arc::new(make("runs", "n1", true)),
            Arc::new(make("lost", "n2", true)),
            Arc::new(make("waits", "", false)),
            Arc::new(deleted),
            finished("f2", 2),
            finished("f1", 1),
        ];
        let got = doomed(&pods, &HashSet::from(["n2"]), 1);
        let got: Vec<_> = got.iter().map(|p| name(&p.metadata)).collect();
        assert_eq!(got, ["lost", "never-placed", "f1"]);
    }
}
