//! The cluster as one picture. In: nodes and placed pods, as they come and go. Out: [`Snapshot`], with what every node has,
//! has given away and runs. Pure.

use crate::pod::{PodInfo, Resources};
use k8s_openapi::api::core::v1::{Node, Taint};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Set on nodes that are not ready; also assumed for a node that does not say it is.
pub const TAINT_NOT_READY: &str = "node.kubernetes.io/not-ready";
/// Set on cordoned nodes.
pub const TAINT_UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// A node with what is on it.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `spec.taints`, with not-ready added for a node that is not.
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    /// `status.allocatable`.
    pub allocatable: Resources,
    /// Sum of the requests of its pods.
    pub requested: Resources,
    /// Its pods.
    pub pods: Vec<Arc<PodInfo>>,
    /// Host ports in use: protocol, address, port.
    pub ports: BTreeSet<(String, String, i32)>,
    /// How many of its pods belong to a controller, by its uid.
    owners: HashMap<String, i64>,
}

impl NodeInfo {
    /// An empty node.
    pub fn new(node: &Node) -> Self {
        let spec = node.spec.clone().unwrap_or_default();
        let status = node.status.as_ref();
        let conditions = status.and_then(|s| s.conditions.as_ref()).into_iter().flatten();
        let ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
        let mut taints = spec.taints.unwrap_or_default();
        if !ready && !taints.iter().any(|t| t.key == TAINT_NOT_READY && t.effect == "NoSchedule") {
            taints.push(Taint { key: TAINT_NOT_READY.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() });
        }
        let allocatable = status.and_then(|s| s.allocatable.as_ref()).into_iter().flatten();
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints,
            unschedulable: spec.unschedulable == Some(true),
            allocatable: Resources::parse(allocatable.map(|(k, q)| (k, &q.0))),
            requested: Resources::default(),
            pods: Vec::new(),
            ports: BTreeSet::new(),
            owners: HashMap::new(),
        }
    }

    /// Puts a pod on the node.
    pub fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.ports.extend(pod.host_ports.iter().cloned());
        if let Some(owner) = &pod.owner {
            *self.owners.entry(owner.clone()).or_default() += 1;
        }
        self.pods.push(pod);
    }

    /// Takes a pod off the node; `None` if it is not there.
    pub fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let at = self.pods.iter().position(|p| p.uid == uid)?;
        let pod = self.pods.swap_remove(at);
        self.requested.subtract(&pod.requests);
        if !pod.host_ports.is_empty() {
            self.ports = self.pods.iter().flat_map(|p| p.host_ports.iter().cloned()).collect();
        }
        if let Some(owner) = &pod.owner
            && let Some(count) = self.owners.get_mut(owner)
        {
            *count -= 1;
            if *count == 0 {
                self.owners.remove(owner);
            }
        }
        Some(pod)
    }

    /// How many of its pods a controller owns.
    pub fn of_owner(&self, uid: &str) -> i64 {
        self.owners.get(uid).copied().unwrap_or(0)
    }

    /// Whether the other says the same of the node, whatever is on it.
    fn is_as(&self, other: &Self) -> bool {
        let of = |n: &Self| (n.labels.clone(), n.taints.clone(), n.unschedulable, n.allocatable.clone());
        of(self) == of(other)
    }
}

/// All nodes, by name.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Sorted by name.
    pub nodes: Vec<NodeInfo>,
    index: HashMap<String, usize>,
    avoiding: usize,
    preferring: usize,
    version: u64,
}

impl Snapshot {
    /// From nodes and the pods that are on them (pods of unknown nodes are passed over).
    pub fn new<'a>(
        nodes: impl IntoIterator<Item = &'a Node>,
        placed: impl IntoIterator<Item = (String, Arc<PodInfo>)>,
    ) -> Self {
        let mut snapshot = Self::default();
        for node in nodes {
            snapshot.set_node(node);
        }
        for (node, pod) in placed {
            snapshot.place(&node, pod);
        }
        snapshot
    }

    /// Another number after each change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether there is a node of this name.
    pub fn has(&self, node: &str) -> bool {
        self.index.contains_key(node)
    }

    /// How many placed pods have required anti-affinity.
    pub fn avoiding(&self) -> usize {
        self.avoiding
    }

    /// How many placed pods have preferred (anti-)affinity.
    pub fn preferring(&self) -> usize {
        self.preferring
    }

    /// A node is there or has changed; what is on it stays. Returns whether that makes a difference to any pod.
    pub fn set_node(&mut self, node: &Node) -> bool {
        let mut new = NodeInfo::new(node);
        if let Some(old) = self.index.get(&new.name).and_then(|i| self.nodes.get_mut(*i)) {
            if old.is_as(&new) {
                return false;
            }
            new.requested = std::mem::take(&mut old.requested);
            new.pods = std::mem::take(&mut old.pods);
            new.ports = std::mem::take(&mut old.ports);
            new.owners = std::mem::take(&mut old.owners);
            *old = new;
            self.version += 1;
            return true;
        }
        self.version += 1;
        let at = self.nodes.partition_point(|n| n.name < new.name);
        self.nodes.insert(at, new);
        self.reindex(at);
        true
    }

    /// A node is gone, with what is on it.
    pub fn remove_node(&mut self, name: &str) {
        let Some(at) = self.index.remove(name) else { return };
        self.version += 1;
        let node = self.nodes.remove(at);
        for pod in &node.pods {
            self.count(pod, false);
        }
        self.reindex(at);
    }

    /// Nodes from this position on have moved.
    fn reindex(&mut self, from: usize) {
        for (at, node) in self.nodes.iter().enumerate().skip(from) {
            match self.index.get_mut(&node.name) {
                Some(known) => *known = at,
                None => drop(self.index.insert(node.name.clone(), at)),
            }
        }
    }

    fn count(&mut self, pod: &PodInfo, there: bool) {
        self.version += 1;
        let step = |number: &mut usize| *number = if there { *number + 1 } else { number.saturating_sub(1) };
        if !pod.anti_affinity.is_empty() {
            step(&mut self.avoiding);
        }
        if !pod.preferred.is_empty() {
            step(&mut self.preferring);
        }
    }

    /// Puts a pod on a node.
    pub fn place(&mut self, node: &str, pod: Arc<PodInfo>) {
        let Some(node) = self.index.get(node).and_then(|i| self.nodes.get_mut(*i)) else { return };
        node.add(pod.clone());
        self.count(&pod, true);
    }

    /// Takes a pod off a node.
    pub fn remove(&mut self, node: &str, uid: &str) {
        let Some(node) = self.index.get(node).and_then(|i| self.nodes.get_mut(*i)) else { return };
        if let Some(pod) = node.remove(uid) {
            self.count(&pod, false);
        }
    }
}
