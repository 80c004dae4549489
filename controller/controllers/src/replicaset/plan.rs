//! What a ReplicaSet's pods should become, which of them go first, and how it stands. Pure.

use super::condition;
use crate::meta::{annotation, created};
use causeway_api::pod;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// A pod's wish to be deleted early (low) or late (high).
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The step towards the wanted number.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// As it should be.
    None,
    /// So many are missing.
    Create(usize),
    /// These are too many.
    Delete(Vec<Arc<Pod>>),
}

/// The wanted number of pods.
pub fn wanted(set: &ReplicaSet) -> usize {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1).max(0) as usize
}

/// Compares what is there with what is wanted; `related` are active pods of sets with the same owner.
pub fn change(set: &ReplicaSet, active: &[Arc<Pod>], related: &[Arc<Pod>], now: i64) -> Change {
    let wanted = wanted(set);
    match active.len().cmp(&wanted) {
        Ordering::Equal => Change::None,
        Ordering::Less => Change::Create(wanted - active.len()),
        Ordering::Greater => {
            let mut ranked = active.to_vec();
            let crowd = crowding(related);
            ranked.sort_by_cached_key(|p| rank(p, &crowd, now));
            ranked.truncate(active.len() - wanted);
            Change::Delete(ranked)
        }
    }
}

fn crowding(related: &[Arc<Pod>]) -> HashMap<&str, usize> {
    let mut count = HashMap::new();
    for pod in related {
        if let Some(node) = node(pod) {
            *count.entry(node).or_insert(0) += 1;
        }
    }
    count
}

fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

/// Sorts the pods to lose first to the front: not assigned, not running, not ready, cheap, crowded, younger by
/// order of magnitude, often restarted.
fn rank(pod: &Pod, crowd: &HashMap<&str, usize>, now: i64) -> impl Ord + use<> {
    let assigned = node(pod).is_some();
    let phase = match pod::phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let ready = pod::is_ready(pod);
    let cost: i32 = annotation(&pod.metadata, DELETION_COST).and_then(|c| c.parse().ok()).unwrap_or(0);
    let neighbours = node(pod).and_then(|n| crowd.get(n)).copied().unwrap_or(0);
    let since =
        pod::condition(pod, "Ready").and_then(|c| c.last_transition_time.as_ref()).map_or(0, |t| t.0.as_second());
    let restarts: i32 = pod
        .status
        .iter()
        .flat_map(|s| s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten()))
        .map(|c| c.restart_count)
        .max()
        .unwrap_or(0);
    let ready_age = if ready { magnitude(now - since) } else { 0 };
    let age = magnitude(now - created(&pod.metadata));
    ((assigned, phase, ready, cost, Reverse(neighbours)), (ready_age, Reverse(restarts), age, pod.metadata.uid.clone()))
}

/// Ages differ when their order of magnitude does; within one, chance (the uid) decides and spreads the loss.
fn magnitude(seconds: i64) -> u32 {
    u64::try_from(seconds).unwrap_or(0).checked_ilog2().map_or(0, |l| l + 1)
}

/// The status to show. `failure` is the reason and message of a create or delete that was refused.
pub fn status(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    failure: Option<(&str, String)>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let spec = set.spec.as_ref();
    let min_ready = spec.and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let template =
        spec.and_then(|s| s.template.as_ref()).and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.as_ref());
    let count = |f: &dyn Fn(&Pod) -> bool| active.iter().filter(|p| f(p)).count() as i32;
    let some = |n: i32| (n > 0).then_some(n);
    let old = set.status.clone().unwrap_or_default();
    let mut conditions = old.conditions.unwrap_or_default();
    match failure {
        Some((reason, message)) => {
            if !conditions.iter().any(|c| c.type_ == "ReplicaFailure") {
                conditions.push(condition("ReplicaFailure", "True", reason, &message, now));
            }
        }
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
    }
    ReplicaSetStatus {
        replicas: active.len() as i32,
        fully_labeled_replicas: some(count(&|p| {
            template.into_iter().flatten().all(|(k, v)| p.metadata.labels.as_ref().and_then(|l| l.get(k)) == Some(v))
        })),
        ready_replicas: some(count(&pod::is_ready)),
        available_replicas: some(count(&|p| pod::is_available(p, min_ready, now.as_second()))),
        terminating_replicas: None,
        observed_generation: set.metadata.generation,
        conditions: (!conditions.is_empty()).then_some(conditions),
    }
}

/// When the next pod becomes available by the passing of time alone.
pub fn recheck(set: &ReplicaSet, active: &[Arc<Pod>], now: i64) -> Option<Duration> {
    let min_ready = set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    next_available(active, min_ready, now)
}

/// As [`recheck`], for any controller's pods.
pub fn next_available(pods: &[Arc<Pod>], min_ready: i32, now: i64) -> Option<Duration> {
    let waiting = pods.iter().filter(|p| pod::is_ready(p) && !pod::is_available(p, min_ready, now));
    let left = waiting.filter_map(|p| {
        let since = pod::condition(p, "Ready")?.last_transition_time.as_ref()?.0.as_second();
        u64::try_from(since + i64::from(min_ready) - now).ok()
    });
    left.min().map(|s| Duration::from_secs(s.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{pod, replica_set};

    fn names(change: &Change) -> Vec<String> {
        match change {
            Change::Delete(pods) => pods.iter().map(|p| p.metadata.name.clone().unwrap()).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn counts() {
        let pods = |n: usize| (0..n).map(|i| Arc::new(pod(&format!("p{i}"), "n1", true))).collect::<Vec<_>>();
        let set = replica_set("web", 3);
        assert_eq!(change(&set, &pods(3), &[], 0), Change::None);
        assert_eq!(change(&set, &pods(1), &[], 0), Change::Create(2));
        assert_eq!(names(&change(&set, &pods(5), &[], 0)).len(), 2);
    }

    #[test]
    fn ranking() {
        let now = 10_000;
        let cheap = |mut p: Pod| {
            p.metadata.annotations = Some([(DELETION_COST.to_owned(), "-5".to_owned())].into());
            p
        };
        let restarted = |mut p: Pod| {
            let status = p.status.get_or_insert_default();
            status.container_statuses =
                Some(vec![k8s_openapi::api::core::v1::ContainerStatus { restart_count: 9, ..Default::default() }]);
            p
        };
        // Each pair: the first goes before the second.
        for (first, second) in [
            (pod("a", "", false), pod("b", "n1", false)),
            (pod("a", "n1", false), pod("b", "n1", true)),
            (cheap(pod("a", "n1", true)), pod("b", "n1", true)),
            (pod("a", "n1", true), pod("b", "n2", true)),
            (restarted(pod("a", "n2", true)), pod("b", "n2", true)),
        ] {
            let related: Vec<_> = ["x", "y"].iter().map(|n| Arc::new(pod(n, "n1", true))).collect();
            let both = vec![Arc::new(second.clone()), Arc::new(first.clone())];
            assert_eq!(names(&change(&replica_set("web", 1), &both, &related, now)), ["a"], "{first:?}");
        }
    }

    #[test]
    fn status_counts_and_failure() {
        let mut set = replica_set("web", 2);
        let pods = vec![Arc::new(pod("a", "n1", true)), Arc::new(pod("b", "n1", false))];
        let s = status(&set, &pods, Some(("FailedCreate", "quota".into())), Timestamp::UNIX_EPOCH);
        assert_eq!((s.replicas, s.ready_replicas, s.available_replicas), (2, Some(1), Some(1)));
        assert_eq!(s.conditions.as_ref().unwrap()[0].type_, "ReplicaFailure");
        set.status = Some(s);
        assert_eq!(status(&set, &pods, None, Timestamp::UNIX_EPOCH).conditions, None);
    }
}
