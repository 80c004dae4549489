//! Which nodes get a daemon pod, which pods go, and the status. Pure.

use crate::meta::{created, label, name, scaled};
use crate::revision::HASH_LABEL;
use crate::taints::{keys, node_matches, tolerated};
use causeway_api::pod;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One step.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Nodes that get a pod.
    pub create: Vec<String>,
    /// Pods that go.
    pub delete: Vec<Arc<Pod>>,
    /// The status to show.
    pub status: DaemonSetStatus,
}

/// Whether a pod of the set should run on a node, and whether one that runs there may stay.
pub fn suits(set: &DaemonSet, node: &Node) -> (bool, bool) {
    let mut spec = set.spec.as_ref().and_then(|s| s.template.spec.clone()).unwrap_or_default();
    if spec.node_name.as_deref().is_some_and(|n| !n.is_empty() && n != name(&node.metadata)) {
        return (false, false);
    }
    if !node_matches(&spec, node) {
        return (false, false);
    }
    tolerate(&mut spec);
    let taints = || node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    let hard = |effect: &str| taints().any(|t| t.effect == effect && !tolerated(Some(&spec), t));
    let evicts = hard("NoExecute");
    (!evicts && !hard("NoSchedule"), !evicts)
}

/// Adds the tolerations every daemon pod has.
pub fn tolerate(spec: &mut PodSpec) {
    let mut wanted = vec![
        (keys::NOT_READY, "NoExecute"),
        (keys::UNREACHABLE, "NoExecute"),
        (keys::DISK, "NoSchedule"),
        (keys::MEMORY, "NoSchedule"),
        (keys::PID, "NoSchedule"),
        (keys::UNSCHEDULABLE, "NoSchedule"),
    ];
    if spec.host_network == Some(true) {
        wanted.push((keys::NETWORK, "NoSchedule"));
    }
    let all = spec.tolerations.get_or_insert_default();
    for (key, effect) in wanted {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if !all.contains(&toleration) {
            all.push(toleration);
        }
    }
}

/// Makes the scheduler bind a pod to this node and no other.
pub fn pin(spec: &mut PodSpec, node: &str) {
    let field = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    // The node was judged by the other terms already, so this one stands for them.
    affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm { match_fields: Some(vec![field]), match_expressions: None }],
    });
}

/// The node a daemon pod is on, or is pinned to.
pub fn node_of(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_deref().filter(|n| !n.is_empty()) {
        return Some(node);
    }
    let required = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &required.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let fields = terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    fields.filter(|f| f.key == "metadata.name").find_map(|f| f.values.as_ref()?.first().map(String::as_str))
}

struct Step<'a> {
    nodes: Vec<(&'a Node, bool, bool)>,
    pods: BTreeMap<&'a str, Vec<Arc<Pod>>>,
    hash: &'a str,
    min_ready: i32,
    now: i64,
    create: Vec<String>,
    delete: Vec<Arc<Pod>>,
}

/// Plans one step. `hash` is the present template's.
pub fn plan(set: &DaemonSet, nodes: &[Arc<Node>], pods: &[Arc<Pod>], hash: &str, now: i64) -> Plan {
    let spec = set.spec.as_ref();
    let mut by_node: BTreeMap<&str, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in pods {
        by_node.entry(node_of(pod).unwrap_or("")).or_default().push(pod.clone());
    }
    for pods in by_node.values_mut() {
        pods.sort_by_key(|p| (created(&p.metadata), name(&p.metadata).to_owned()));
    }
    let judged = nodes.iter().map(|n| {
        let (run, stay) = suits(set, n);
        (&**n, run, stay)
    });
    let mut step = Step {
        nodes: judged.collect(),
        pods: by_node,
        hash,
        min_ready: spec.and_then(|s| s.min_ready_seconds).unwrap_or(0),
        now,
        create: Vec::new(),
        delete: Vec::new(),
    };
    let strategy = spec.and_then(|s| s.update_strategy.as_ref());
    let rolling = strategy.and_then(|s| s.type_.as_deref()) != Some("OnDelete");
    let rules = strategy.and_then(|s| s.rolling_update.as_ref());
    let wanted = step.nodes.iter().filter(|(_, run, _)| *run).count() as i32;
    let surge = if rolling { scaled(rules.and_then(|r| r.max_surge.as_ref()), wanted, true) } else { 0 };
    let unavailable = scaled(rules.and_then(|r| r.max_unavailable.as_ref()), wanted, true);
    let unavailable = if surge == 0 { unavailable.max(1) } else { unavailable };
    if set.metadata.deletion_timestamp.is_none() {
        step.place(surge > 0);
        if rolling {
            if surge > 0 { step.surge(surge) } else { step.roll(unavailable) }
        }
    }
    let status = step.status(set);
    Plan { create: step.create, delete: step.delete, status }
}

impl Step<'_> {
    fn updated(&self, p: &Pod) -> bool {
        label(&p.metadata, HASH_LABEL) == Some(self.hash)
    }

    fn available(&self, p: &Pod) -> bool {
        !pod::is_terminating(p) && pod::is_available(p, self.min_ready, self.now)
    }

    fn on(&self, node: &Node) -> Vec<Arc<Pod>> {
        self.pods.get(name(&node.metadata)).cloned().unwrap_or_default()
    }

    fn remove(&mut self, p: &Arc<Pod>) {
        if !pod::is_terminating(p) && !self.delete.contains(p) {
            self.delete.push(p.clone());
        }
    }

    /// One pod where one should run, none where none may stay.
    fn place(&mut self, surging: bool) {
        for (node, run, stay) in self.nodes.clone() {
            let pods = self.on(node);
            if run && pods.is_empty() {
                self.create.push(name(&node.metadata).to_owned());
                continue;
            }
            if !stay {
                pods.iter().for_each(|p| self.remove(p));
                continue;
            }
            let (ended, alive): (Vec<_>, Vec<_>) = pods.into_iter().partition(|p| pod::is_finished(p));
            ended.iter().for_each(|p| self.remove(p));
            let alive: Vec<_> = alive.into_iter().filter(|p| !pod::is_terminating(p)).collect();
            // While surging, an old and a new one may stand side by side.
            let (new, old): (Vec<_>, Vec<_>) = match surging {
                true => alive.into_iter().partition(|p| self.updated(p)),
                false => (Vec::new(), alive),
            };
            new.iter().skip(1).chain(old.iter().skip(1)).for_each(|p| self.remove(p));
        }
    }

    /// Replaces old pods while at most `budget` nodes lack an available one.
    fn roll(&mut self, budget: i32) {
        let (mut missing, mut sick, mut candidates) = (0, Vec::new(), Vec::new());
        for (node, run, _) in self.nodes.clone() {
            let pods = self.on(node);
            let alive: Vec<_> = pods.iter().filter(|p| !pod::is_finished(p) && !self.delete.contains(p)).collect();
            let old = alive.iter().find(|p| !self.updated(p));
            let new = alive.iter().find(|p| self.updated(p));
            match (old, new) {
                (None, None) => missing += i32::from(run),
                (_, Some(new)) => {
                    missing += i32::from(!self.available(new));
                    if let Some(old) = old {
                        sick.push((*old).clone());
                    }
                }
                (Some(old), None) if !self.available(old) => {
                    missing += 1;
                    sick.push((*old).clone());
                }
                (Some(old), None) => candidates.push((*old).clone()),
            }
        }
        // An old pod that serves nobody can go at once.
        sick.iter().for_each(|p| self.remove(p));
        let room = usize::try_from(budget - missing).unwrap_or(0);
        candidates.iter().take(room).for_each(|p| self.remove(p));
    }

    /// Starts new pods beside old ones, on at most `budget` nodes, and takes the old when the new are available.
    fn surge(&mut self, budget: i32) {
        let (mut doubled, mut ready, mut candidates) = (0, Vec::new(), Vec::new());
        for (node, run, _) in self.nodes.clone() {
            let pods = self.on(node);
            let alive: Vec<_> = pods.iter().filter(|p| !pod::is_finished(p) && !self.delete.contains(p)).collect();
            let old = alive.iter().find(|p| !self.updated(p));
            let new = alive.iter().find(|p| self.updated(p));
            match (old, new) {
                (Some(old), Some(new)) if self.available(new) => self.remove(old),
                (Some(_), Some(_)) => doubled += 1,
                (Some(old), None) if run && !self.available(old) => ready.push(name(&node.metadata).to_owned()),
                (Some(_), None) if run => candidates.push(name(&node.metadata).to_owned()),
                _ => {}
            }
        }
        let room = usize::try_from(budget - doubled).unwrap_or(0);
        self.create.extend(ready);
        self.create.extend(candidates.into_iter().take(room));
    }

    fn status(&self, set: &DaemonSet) -> DaemonSetStatus {
        let old = set.status.clone().unwrap_or_default();
        let mut s = DaemonSetStatus {
            observed_generation: set.metadata.generation,
            conditions: old.conditions,
            collision_count: old.collision_count,
            ..DaemonSetStatus::default()
        };
        let (mut available, mut updated) = (0, 0);
        for (node, run, _) in &self.nodes {
            let pods = self.on(node);
            if !run {
                s.number_misscheduled += i32::from(!pods.is_empty());
                continue;
            }
            s.desired_number_scheduled += 1;
            if pods.is_empty() {
                continue;
            }
            s.current_number_scheduled += 1;
            // The newest template's pod speaks for the node.
            let chosen = pods.iter().find(|p| self.updated(p)).or(pods.first());
            let Some(chosen) = chosen else { continue };
            updated += i32::from(self.updated(chosen));
            let ready = pods.iter().any(|p| pod::is_ready(p) && !pod::is_terminating(p));
            s.number_ready += i32::from(ready);
            available += i32::from(pods.iter().any(|p| self.available(p)));
        }
        let some = |n: i32| (n != 0).then_some(n);
        s.updated_number_scheduled = some(updated);
        s.number_available = some(available);
        s.number_unavailable = some(s.desired_number_scheduled - available);
        s
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{meta, node, pod as make, selector, template};
    use k8s_openapi::api::apps::v1::{DaemonSetSpec, DaemonSetUpdateStrategy, RollingUpdateDaemonSet};
    use k8s_openapi::api::core::v1::Taint;
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

    fn set(surge: i32, unavailable: i32) -> DaemonSet {
        DaemonSet {
            metadata: meta("agent"),
            spec: Some(DaemonSetSpec {
                selector: selector("web"),
                template: template("web", "i"),
                update_strategy: Some(DaemonSetUpdateStrategy {
                    type_: Some("RollingUpdate".to_owned()),
                    rolling_update: Some(RollingUpdateDaemonSet {
                        max_surge: Some(IntOrString::Int(surge)),
                        max_unavailable: Some(IntOrString::Int(unavailable)),
                    }),
                }),
                ..DaemonSetSpec::default()
            }),
            status: None,
        }
    }

    fn nodes(n: usize) -> Vec<Arc<Node>> {
        (1..=n).map(|i| Arc::new(node(&format!("n{i}")))).collect()
    }

    fn daemon(pod_name: &str, node: &str, hash: &str, ready: bool) -> Arc<Pod> {
        let mut p = make(pod_name, node, ready);
        p.metadata.labels.get_or_insert_default().insert(HASH_LABEL.to_owned(), hash.to_owned());
        Arc::new(p)
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|p| name(&p.metadata)).collect()
    }

    #[test]
    fn a_pod_for_every_node_that_suits() {
        let mut all = nodes(3);
        let taint = |effect: &str| Taint { key: "own".into(), effect: effect.into(), ..Taint::default() };
        Arc::make_mut(&mut all[2]).spec.get_or_insert_default().taints = Some(vec![taint("NoSchedule")]);
        let p = plan(&set(0, 1), &all, &[], "h", 0);
        assert_eq!(p.create, ["n1", "n2"]);
        assert_eq!(p.status.desired_number_scheduled, 2);
        // NoSchedule lets a running one stay, NoExecute does not.
        let there = vec![daemon("a", "n3", "h", true)];
        assert!(plan(&set(0, 1), &all, &there, "h", 0).delete.is_empty());
        Arc::make_mut(&mut all[2]).spec.get_or_insert_default().taints = Some(vec![taint("NoExecute")]);
        assert_eq!(names(&plan(&set(0, 1), &all, &there, "h", 0).delete), ["a"]);
    }

    #[test]
    fn a_pinned_pod_counts_for_its_node() {
        let mut p = make("a", "", false);
        pin(p.spec.as_mut().unwrap(), "n1");
        assert_eq!(node_of(&p), Some("n1"));
        assert!(plan(&set(0, 1), &nodes(1), &[Arc::new(p)], "h", 0).create.is_empty());
    }

    #[test]
    fn rolls_within_the_budget_and_takes_sick_ones_first() {
        let pods: Vec<_> = (1..=4).map(|i| daemon(&format!("p{i}"), &format!("n{i}"), "old", i != 3)).collect();
        assert_eq!(names(&plan(&set(0, 1), &nodes(4), &pods, "new", 0).delete), ["p3"]);
        assert_eq!(names(&plan(&set(0, 2), &nodes(4), &pods, "new", 0).delete), ["p3", "p1"]);
        let mut settled = pods.clone();
        settled[2] = daemon("q3", "n3", "new", false);
        assert!(plan(&set(0, 1), &nodes(4), &settled, "new", 0).delete.is_empty(), "waits for the new one");
    }

    #[test]
    fn surges_before_it_takes() {
        let pods: Vec<_> = (1..=2).map(|i| daemon(&format!("p{i}"), &format!("n{i}"), "old", true)).collect();
        let p = plan(&set(1, 0), &nodes(2), &pods, "new", 0);
        assert_eq!((p.create, p.delete.len()), (vec!["n1".to_owned()], 0));
        let both = [pods[0].clone(), pods[1].clone(), daemon("q1", "n1", "new", true)];
        let p = plan(&set(1, 0), &nodes(2), &both, "new", 0);
        assert_eq!((p.create, names(&p.delete)), (vec!["n2".to_owned()], vec!["p1"]));
    }

    #[test]
    fn doubles_and_ended_ones_go() {
        let mut failed = make("f", "n1", false);
        failed.status.as_mut().unwrap().phase = Some("Failed".into());
        let pods = [daemon("a", "n1", "h", true), daemon("b", "n1", "h", true), Arc::new(failed)];
        assert_eq!(names(&plan(&set(0, 1), &nodes(1), &pods, "h", 0).delete), ["f", "b"]);
    }
}
