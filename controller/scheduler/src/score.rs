//! How well a node suits a pod, among those that can take it. Each score runs from 0 to 100 and has kube-scheduler's
//! default weight. Pure.

use crate::filter::{node_term, tolerates};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};
use crate::spread::Spread;
use std::collections::HashMap;

/// The total score of every candidate, in their order.
pub fn total(pod: &PodInfo, snapshot: &Snapshot, candidates: &[&NodeInfo], spreads: &[Spread]) -> Vec<i64> {
    let affinity = pod_affinity(pod, snapshot, candidates);
    let taints = normalized(candidates, true, |n| {
        let soft = n.taints.iter().filter(|t| t.effect == "PreferNoSchedule");
        count(soft.filter(|t| !tolerates(&pod.tolerations, t)))
    });
    let wishes = normalized(candidates, false, |n| node_preference(pod, n));
    let crowd = normalized(candidates, true, |n| spreads.iter().map(|s| s.crowd(n)).sum());
    let siblings = normalized(candidates, true, |n| match &pod.owner {
        Some(owner) => n.of_owner(owner),
        None => 0,
    });
    let each = candidates.iter().enumerate().map(|(i, node)| {
        let at = |list: &[i64]| list.get(i).copied().unwrap_or(0);
        least_allocated(pod, node)
            + balanced(pod, node)
            + 2 * at(&affinity)
            + 3 * at(&taints)
            + 2 * at(&wishes)
            + 2 * at(&crowd)
            + 2 * at(&siblings)
    });
    each.collect()
}

fn count<T>(items: impl Iterator<Item = T>) -> i64 {
    i64::try_from(items.count()).unwrap_or(i64::MAX)
}

/// Share of CPU and memory that stays free, 0 to 100.
fn least_allocated(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let free = |name: &str| 100 - used_percent(pod, node, name);
    (free("cpu") + free("memory")) / 2
}

/// 100 when CPU and memory are used in the same proportion.
fn balanced(pod: &PodInfo, node: &NodeInfo) -> i64 {
    100 - (used_percent(pod, node, "cpu") - used_percent(pod, node, "memory")).abs()
}

fn used_percent(pod: &PodInfo, node: &NodeInfo, name: &str) -> i64 {
    let all = node.allocatable.get(name);
    if all <= 0 {
        return 100;
    }
    let used = node.requested.get(name) + pod.requests.get(name);
    i64::try_from((used * 100 / all).clamp(0, 100)).unwrap_or(100)
}

fn node_preference(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let terms =
        pod.node_affinity.as_ref().and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let met = terms.into_iter().flatten().filter(|t| node_term(&t.preference, node));
    met.map(|t| i64::from(t.weight)).sum()
}

/// Preferred (anti-)affinity of the pod, and of the pods already placed towards it.
fn pod_affinity(pod: &PodInfo, snapshot: &Snapshot, candidates: &[&NodeInfo]) -> Vec<i64> {
    let mut weights: HashMap<(&str, &str), i64> = HashMap::new();
    if pod.preferred.is_empty() && snapshot.preferring() == 0 {
        return vec![0; candidates.len()];
    }
    for node in &snapshot.nodes {
        for other in &node.pods {
            let mine = pod.preferred.iter().filter(|t| t.selects(other));
            let theirs = other.preferred.iter().filter(|t| t.selects(pod));
            for term in mine.chain(theirs) {
                if let Some(value) = node.labels.get(&term.topology_key) {
                    *weights.entry((term.topology_key.as_str(), value.as_str())).or_default() += term.weight;
                }
            }
        }
    }
    normalized(candidates, false, |node| {
        let shares = |(key, value): &(&str, &str)| node.labels.get(*key).is_some_and(|v| v == value);
        weights.iter().filter(|(pair, _)| shares(pair)).map(|(_, weight)| weight).sum()
    })
}

/// Stretches raw values to 0–100; `reverse` when less is better. All alike: 100 or 0 makes no difference.
fn normalized(candidates: &[&NodeInfo], reverse: bool, raw: impl Fn(&NodeInfo) -> i64) -> Vec<i64> {
    let values: Vec<i64> = candidates.iter().map(|n| raw(n)).collect();
    let (low, high) = (values.iter().min().copied().unwrap_or(0), values.iter().max().copied().unwrap_or(0));
    let scale = |v: i64| {
        if high == low {
            return 0;
        }
        let score = (v - low) * 100 / (high - low);
        if reverse { 100 - score } else { score }
    };
    values.into_iter().map(scale).collect()
}
