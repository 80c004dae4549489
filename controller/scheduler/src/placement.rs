//! The decision: which node a pod goes to. In: a pod, the picture, its volumes. Out: a node, or why there is none, in
//! kube-scheduler's sentence. Pure.

use crate::filter::{self, Affinity};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};
use crate::volume::Volumes;
use crate::{score, spread};
use std::collections::BTreeMap;

/// Why a pod cannot be placed now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unschedulable(pub String);

/// Chooses a node. `tie` breaks ties between equally good nodes, so that the choice is the caller's randomness.
pub fn choose(pod: &PodInfo, snapshot: &Snapshot, volumes: &Volumes, tie: usize) -> Result<String, Unschedulable> {
    let affinity = Affinity::new(pod, snapshot);
    let only_pod_rules = |n: &NodeInfo| volumes.check(n).is_ok();
    let spreads = spread::count(pod, snapshot, only_pod_rules);
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut candidates: Vec<&NodeInfo> = Vec::new();
    for node in &snapshot.nodes {
        let checked = filter::check(pod, node, &affinity)
            .and_then(|()| volumes.check(node))
            .and_then(|()| spreads.iter().try_for_each(|s| s.check(node)));
        match checked {
            Ok(()) => candidates.push(node),
            Err(why) => why.into_iter().for_each(|reason| *reasons.entry(reason).or_default() += 1),
        }
    }
    if candidates.is_empty() {
        return Err(Unschedulable(sentence(snapshot.nodes.len(), &reasons)));
    }
    let scores = score::total(pod, snapshot, &candidates, &spreads);
    let best = scores.iter().max().copied().unwrap_or(0);
    let top: Vec<&&NodeInfo> =
        candidates.iter().zip(&scores).filter(|(_, score)| **score == best).map(|(node, _)| node).collect();
    top.get(tie % top.len().max(1))
        .map(|node| node.name.clone())
        .ok_or_else(|| Unschedulable(sentence(snapshot.nodes.len(), &reasons)))
}

fn sentence(nodes: usize, reasons: &BTreeMap<String, usize>) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let mut counted: Vec<String> = reasons.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    counted.sort();
    format!(
        "0/{nodes} nodes are available: {}. preemption: 0/{nodes} nodes are available: {nodes} Preemption is not \
         helpful for scheduling.",
        counted.join(", ")
    )
}

#[cfg(test)]
mod tests;
