//! Topology spread constraints (KEP-895). In: a pod, the picture, the nodes that passed the other filters. Out: which
//! nodes would break `DoNotSchedule`, and how crowded each is for `ScheduleAnyway`. Pure.

use crate::filter;
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};
use causeway_api::selector::Selector;
use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use std::collections::HashMap;

/// One constraint with the matching pods counted by the value of its topology key.
pub struct Spread {
    key: String,
    max_skew: i64,
    hard: bool,
    self_match: i64,
    counts: HashMap<String, i64>,
    least: i64,
}

/// Counts all constraints of a pod. Nodes that the pod's own node affinity excludes are not part of the domain, unless the
/// constraint says so.
pub fn count(pod: &PodInfo, snapshot: &Snapshot, eligible: impl Fn(&NodeInfo) -> bool) -> Vec<Spread> {
    pod.spread.iter().map(|c| one(c, pod, snapshot, &eligible)).collect()
}

fn one(
    c: &TopologySpreadConstraint,
    pod: &PodInfo,
    snapshot: &Snapshot,
    eligible: impl Fn(&NodeInfo) -> bool,
) -> Spread {
    let mut selector = c.label_selector.as_ref().and_then(|s| Selector::from_object(s).ok()).unwrap_or_default();
    for key in c.match_label_keys.iter().flatten() {
        if let Some(value) = pod.labels.get(key) {
            selector.0.extend(Selector::from_map(&[(key.clone(), value.clone())].into()).0);
        }
    }
    let selects = |other: &PodInfo| {
        c.label_selector.is_some() && other.namespace == pod.namespace && selector.matches(&other.labels)
    };
    let mut counts: HashMap<String, i64> = HashMap::new();
    // KEP-3094; by default nodes are honoured by affinity, and not by taints.
    let by_affinity = c.node_affinity_policy.as_deref() != Some("Ignore");
    let by_taints = c.node_taints_policy.as_deref() == Some("Honor");
    let counts_for = |n: &NodeInfo| {
        eligible(n)
            && (!by_affinity || filter::node_affinity(pod, n).is_ok())
            && (!by_taints || filter::taints(pod, n).is_ok())
    };
    for node in snapshot.nodes.iter().filter(|n| counts_for(n)) {
        if let Some(value) = node.labels.get(&c.topology_key) {
            let here = node.pods.iter().filter(|p| selects(p)).count();
            *counts.entry(value.clone()).or_default() += i64::try_from(here).unwrap_or(i64::MAX);
        }
    }
    let domains = i64::try_from(counts.len()).unwrap_or(i64::MAX);
    let too_few = c.min_domains.is_some_and(|min| domains < i64::from(min));
    let least = if too_few { 0 } else { counts.values().copied().min().unwrap_or(0) };
    Spread {
        key: c.topology_key.clone(),
        max_skew: i64::from(c.max_skew),
        hard: c.when_unsatisfiable == "DoNotSchedule",
        self_match: i64::from(selects(pod)),
        counts,
        least,
    }
}

impl Spread {
    /// Whether putting the pod on the node keeps the skew within bounds.
    pub fn check(&self, node: &NodeInfo) -> Result<(), Vec<String>> {
        if !self.hard {
            return Ok(());
        }
        let Some(value) = node.labels.get(&self.key) else {
            return Err(vec![
                "node(s) didn't match pod topology spread constraints (missing required label)".to_owned(),
            ]);
        };
        let here = self.counts.get(value).copied().unwrap_or(0);
        if here + self.self_match - self.least > self.max_skew {
            return Err(vec!["node(s) didn't match pod topology spread constraints".to_owned()]);
        }
        Ok(())
    }

    /// How many matching pods the node's domain holds already.
    pub fn crowd(&self, node: &NodeInfo) -> i64 {
        node.labels.get(&self.key).and_then(|v| self.counts.get(v)).copied().unwrap_or(0)
    }
}
