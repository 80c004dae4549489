//! Nodes: their pod address ranges, their health, the taints that follow from it, and evictions.
//!
//! In: nodes, their leases, pods. Out: `spec.podCIDRs`, condition Ready `Unknown` for a node that is silent, taints,
//! pods marked not ready and in the end evicted. [`health`], [`cidr`] and [`evict`] decide; this file applies.

pub mod cidr;
pub mod evict;
pub mod health;

use crate::cache::key_of;
use crate::context::{Context, Events};
use crate::error::{Doing, Result, ignore_not_found};
use crate::meta::name;
use crate::queue::{Key, Queue};
use causeway_api::pod;
use health::Heard;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Where nodes' leases are.
const LEASES: &str = "kube-node-lease";
/// How often a node is looked at when nothing changes, at the least.
const PERIOD: Duration = Duration::from_secs(5);

/// The controller of nodes.
pub struct Nodes {
    context: Arc<Context>,
    events: Events,
    ranges: Mutex<cidr::Allocator>,
    heard: Mutex<HashMap<String, (Heard, Instant)>>,
}

/// Wires the handlers up; the queue is worked by the caller.
pub fn queue(context: &Arc<Context>) -> Arc<Queue<Key>> {
    let queue = Queue::new();
    let sink = queue.clone();
    context.caches.nodes.on_change(move |old, new| {
        if let Some(node) = new.or(old) {
            sink.add(key_of(&**node));
        }
    });
    let sink = queue.clone();
    context.caches.leases.on_change(move |old, new| {
        if let Some(lease) = new.or(old).filter(|l| l.metadata.namespace.as_deref() == Some(LEASES)) {
            sink.add(Key::new("", name(&lease.metadata)));
        }
    });
    queue
}

impl Nodes {
    /// The controller over `context`.
    pub fn new(context: Arc<Context>) -> Arc<Self> {
        let events = context.recorder("node-controller");
        let ranges = Mutex::new(cidr::Allocator::new(&context.config.cluster.pod_cidrs));
        Arc::new(Self { context, events, ranges, heard: Mutex::default() })
    }

    /// How often a node is looked at: often enough to keep to the grace period.
    fn period(&self) -> Duration {
        PERIOD.min(self.context.config.node_grace / 4)
    }

    /// One level-triggered step for one node.
    pub async fn reconcile(self: Arc<Self>, key: Key) -> Result<Option<Duration>> {
        let caches = &self.context.caches;
        let Some(node) = caches.nodes.get(&key) else {
            self.heard.lock().remove(&key.name);
            self.ranges.lock().release(&key.name);
            return Ok(None);
        };
        if node.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        if let Some(ranges) = self.allocate(&node)? {
            // The change comes back through the watch.
            return self.write_ranges(&node, ranges).await.map(|()| Some(self.period()));
        }
        let silent = self.silence(&node);
        let now = Timestamp::now();
        if let Some(status) = health::status(&node, silent, self.context.config.node_grace, now) {
            let text = format!("Node {} status is now: NodeNotReady", key.name);
            self.events.normal(&*node, "NodeNotReady", text);
            // Not the whole status: the copy that we have lacks what nobody here reads.
            let patch = json!({
                "metadata": { "resourceVersion": node.metadata.resource_version },
                "status": { "conditions": status.conditions },
            });
            let nodes = self.context.cluster::<Node>();
            let written = nodes.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(&patch)).await;
            ignore_not_found(written.doing(|| format!("mark node {key} unknown")))?;
            return Ok(Some(self.period()));
        }
        // The others count only where this one is not ready: a renewed lease costs the same however many there are.
        let others = if health::ready(&node) == Some("True") { Vec::new() } else { caches.nodes.all() };
        let taints = health::taints(&node, &others, now);
        if let Some(taints) = taints {
            // No list rather than an empty one, as Kubernetes writes it.
            let taints = (!taints.is_empty()).then_some(taints);
            let patch = json!({
                "metadata": { "resourceVersion": node.metadata.resource_version },
                "spec": { "taints": taints },
            });
            let nodes = self.context.cluster::<Node>();
            let written = nodes.patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await;
            ignore_not_found(written.doing(|| format!("taint node {key}")))?;
        }
        if health::ready(&node) == Some("Unknown") {
            self.mark_pods(&key.name, now).await?;
        }
        Ok(Some(self.period()))
    }

    /// How long ago the node was last heard of, by our own clock: nodes' clocks may differ.
    fn silence(&self, node: &Node) -> Duration {
        let node_name = name(&node.metadata);
        let lease = self.context.caches.leases.get(&Key::new(LEASES, node_name));
        let now_heard = Heard::of(node, lease.as_deref());
        let mut heard = self.heard.lock();
        let entry = heard.entry(node_name.to_owned()).or_insert_with(|| (now_heard.clone(), Instant::now()));
        if entry.0 != now_heard {
            *entry = (now_heard, Instant::now());
        }
        entry.1.elapsed()
    }

    /// The ranges the node is to get, if it has none yet.
    fn allocate(&self, node: &Node) -> Result<Option<Vec<String>>> {
        let node_name = name(&node.metadata);
        let mut ranges = self.ranges.lock();
        let own = cidr::of(node);
        if !own.is_empty() {
            ranges.occupy(node_name, &own);
            return Ok(None);
        }
        for other in self.context.caches.nodes.all() {
            ranges.occupy(name(&other.metadata), &cidr::of(&other));
        }
        let free = ranges.allocate(node_name);
        if free.is_err() {
            self.events.normal(node, "CIDRNotAvailable", format!("Node {node_name} status is now: CIDRNotAvailable"));
        }
        free.map(Some)
    }

    async fn write_ranges(&self, node: &Node, ranges: Vec<String>) -> Result<()> {
        let key = key_of(node);
        let patch = json!({
            "metadata": { "resourceVersion": node.metadata.resource_version },
            "spec": { "podCIDR": ranges.first(), "podCIDRs": ranges },
        });
        let nodes = self.context.cluster::<Node>();
        let written = nodes.patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        ignore_not_found(written.doing(|| format!("give node {key} its pod addresses"))).map(drop)
    }

    /// Pods on a silent node get no traffic.
    async fn mark_pods(&self, node: &str, now: Timestamp) -> Result<()> {
        for pod in self.context.caches.pods_on(node).iter().filter(|p| pod::is_ready(p)) {
            let key = key_of(&**pod);
            let patch = json!({ "status": { "conditions": [{
                "type": "Ready", "status": "False", "reason": "NodeNotReady", "lastTransitionTime": Time(now),
            }]}});
            let api = self.context.api::<Pod>(&key.namespace);
            let written = api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(&patch)).await;
            ignore_not_found(written.doing(|| format!("mark pod {key} not ready")))?;
            self.events.warning(&**pod, "NodeNotReady", "Node is not ready");
        }
        Ok(())
    }
}

/// Evicts pods from nodes with a taint they do not tolerate, or no longer.
pub struct Evictions {
    context: Arc<Context>,
    events: Events,
    /// When a taint without a time of its own was first seen.
    seen: Mutex<HashMap<(String, String), Timestamp>>,
}

/// Wires the handlers of evictions up; keys are pods.
pub fn eviction_queue(context: &Arc<Context>) -> Arc<Queue<Key>> {
    let queue = Queue::new();
    let sink = queue.clone();
    context.caches.pods.on_change(move |old, new| {
        let Some(pod) = new else { return };
        let moved =
            |p: &Pod| (evict::node_of(p).map(str::to_owned), p.spec.as_ref().and_then(|s| s.tolerations.clone()));
        if evict::node_of(pod).is_some() && old.is_none_or(|o| moved(o) != moved(pod)) {
            sink.add(key_of(&**pod));
        }
    });
    let (sink, caches) = (queue.clone(), context.caches.clone());
    context.caches.nodes.on_change(move |old, new| {
        let taints = |n: Option<&Arc<Node>>| n.and_then(|n| n.spec.as_ref()?.taints.clone()).unwrap_or_default();
        if let Some(node) = new.filter(|_| taints(old) != taints(new)) {
            caches.pods_on(name(&node.metadata)).iter().for_each(|pod| sink.add(key_of(&**pod)));
        }
    });
    queue
}

impl Evictions {
    /// The controller over `context`.
    pub fn new(context: Arc<Context>) -> Arc<Self> {
        let events = context.recorder("taint-eviction-controller");
        Arc::new(Self { context, events, seen: Mutex::default() })
    }

    /// One level-triggered step for one pod.
    pub async fn reconcile(self: Arc<Self>, key: Key) -> Result<Option<Duration>> {
        let caches = &self.context.caches;
        let Some(pod) = caches.pods.get(&key).filter(|p| !pod::is_terminating(p)) else { return Ok(None) };
        let Some(node) = evict::node_of(&pod).and_then(|n| caches.nodes.get(&Key::new("", n))) else { return Ok(None) };
        let now = Timestamp::now();
        let due = {
            let mut seen = self.seen.lock();
            seen.retain(|(n, t), _| *n != name(&node.metadata) || evict::taints(&node).any(|x| x.key == *t));
            evict::due(&pod, &node, |taint| {
                let first = seen.entry((name(&node.metadata).to_owned(), taint.key.clone())).or_insert(now);
                taint.time_added.as_ref().map_or(*first, |t| t.0)
            })
        };
        let Some(due) = due else { return Ok(None) };
        let left = due.as_second() - now.as_second();
        if left > 0 {
            return Ok(Some(Duration::from_secs(left.unsigned_abs())));
        }
        self.events.normal(&*pod, "TaintManagerEviction", format!("Marking for deletion Pod {key}"));
        let api = self.context.api::<Pod>(&key.namespace);
        let patch = json!({ "status": { "conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": Time(now),
        }]}});
        let marked = api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(&patch)).await;
        ignore_not_found(marked.doing(|| format!("mark pod {key} for eviction")))?;
        let only = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let deleted = api.delete(&key.name, &DeleteParams::default().preconditions(only)).await;
        ignore_not_found(deleted.doing(|| format!("evict pod {key}"))).map(|_| None)
    }
}
