//! The cluster as one immutable picture. In: nodes and placed pods. Out: [`Snapshot`], with what every node has, has
//! given away and runs. Pure.

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
        }
    }

    /// Puts a pod on the node.
    pub fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.ports.extend(pod.host_ports.iter().cloned());
        self.pods.push(pod);
    }
}

/// All nodes, by name.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Sorted by name.
    pub nodes: Vec<NodeInfo>,
    index: HashMap<String, usize>,
}

impl Snapshot {
    /// From nodes and the pods that are on them (pods of unknown nodes are passed over).
    pub fn new<'a>(
        nodes: impl IntoIterator<Item = &'a Node>,
        placed: impl IntoIterator<Item = (String, Arc<PodInfo>)>,
    ) -> Self {
        let mut nodes: Vec<NodeInfo> = nodes.into_iter().map(NodeInfo::new).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let index = nodes.iter().enumerate().map(|(i, n)| (n.name.clone(), i)).collect();
        let mut snapshot = Self { nodes, index };
        for (node, pod) in placed {
            snapshot.place(&node, pod);
        }
        snapshot
    }

    /// Puts a pod on a node.
    pub fn place(&mut self, node: &str, pod: Arc<PodInfo>) {
        if let Some(node) = self.index.get(node).and_then(|i| self.nodes.get_mut(*i)) {
            node.add(pod);
        }
    }
}
