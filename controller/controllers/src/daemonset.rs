//! DaemonSets: a pod on every node that suits.
//!
//! In: DaemonSets, nodes, pods, revisions. Out: pods bound to nodes by affinity, and the status. [`plan`] decides;
//! this file applies.

pub mod plan;

use crate::cache::key_of;
use crate::claim::claim;
use crate::context::{Context, Events};
use crate::error::{Doing, Error, Result, ignore_not_found};
use crate::fence::Fences;
use crate::meta::{controller_ref, label, name, uid};
use crate::pods::{BURST, PodControl, add_labels, from_template, ring_owners};
use crate::queue::{Key, Queue};
use crate::replicaset::plan::next_available;
use crate::revision::{self, HASH_LABEL};
use causeway_api::selector::Selector;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use std::sync::Arc;
use std::time::Duration;

/// The controller.
pub struct DaemonSets {
    context: Arc<Context>,
    events: Events,
    fences: Fences,
}

/// Wires the handlers up; the queue is worked by the caller.
pub fn queue(context: &Arc<Context>) -> Arc<Queue<Key>> {
    let queue = Queue::new();
    let sink = queue.clone();
    context.caches.daemon_sets.on_change(move |old, new| {
        if let Some(set) = new.or(old) {
            sink.add(key_of(&**set));
        }
    });
    let (sink, sets) = (queue.clone(), context.caches.daemon_sets.clone());
    context.caches.nodes.on_change(move |old, new| {
        // Heartbeats change nothing here.
        let same = |a: &k8s_openapi::api::core::v1::Node, b: &k8s_openapi::api::core::v1::Node| {
            a.metadata.labels == b.metadata.labels && a.spec == b.spec
        };
        if !matches!((old, new), (Some(a), Some(b)) if same(a, b)) {
            for set in sets.all() {
                sink.add(key_of(&*set));
            }
        }
    });
    ring_owners(&queue, &context.caches.pods, &context.caches.daemon_sets, selector_of);
    queue
}

fn selector_of(set: &DaemonSet) -> Result<Selector> {
    let spec = set.spec.as_ref().ok_or_else(|| Error::Object("the DaemonSet has no spec".to_owned()))?;
    Selector::from_object(&spec.selector).map_err(Error::Object)
}

impl DaemonSets {
    /// The controller over `context`.
    pub fn new(context: Arc<Context>) -> Arc<Self> {
        let events = context.recorder("daemonset-controller");
        Arc::new(Self { context, events, fences: Fences::default() })
    }

    /// One level-triggered step for one DaemonSet.
    pub async fn reconcile(self: Arc<Self>, key: Key) -> Result<Option<Duration>> {
        let caches = &self.context.caches;
        let Some(set) = caches.daemon_sets.get(&key) else {
            self.fences.forget(&key);
            return Ok(None);
        };
        let Some(spec) = set.spec.as_ref() else { return Ok(None) };
        if let Some(wait) = self.fences.wait(&key, &caches.pods) {
            return Ok(Some(wait));
        }
        let selector = selector_of(&set)?;
        if selector.is_empty() {
            let text = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.events.warning(&*set, "SelectingAll", text);
            return Ok(None);
        }
        let candidates = caches.candidates(&key.namespace, uid(&set.metadata));
        let pods = claim(&self.context, &*set, &selector, candidates).await?;
        let collisions = set.status.as_ref().and_then(|s| s.collision_count);
        let history = revision::sync(&self.context, &*set, &selector, &spec.template, collisions).await?;
        let hash = revision::hash_of(&history.update).to_owned();
        let now = Timestamp::now();
        let plan = plan::plan(&set, &caches.nodes.all(), &pods, &hash, now.as_second());
        let outcome = self.apply(&set, &plan, &hash).await;
        let status = DaemonSetStatus { collision_count: history.collisions, ..plan.status };
        self.write_status(&set, status).await?;
        let live: Vec<_> = history
            .all
            .iter()
            .filter(|r| pods.iter().any(|p| label(&p.metadata, HASH_LABEL) == Some(revision::hash_of(r))))
            .map(|r| name(&r.metadata))
            .chain([name(&history.update.metadata)])
            .collect();
        revision::truncate(&self.context, &history, &live, spec.revision_history_limit.unwrap_or(10)).await?;
        match outcome {
            Err(error) if error.is_terminating_namespace() => Ok(None),
            other => other.map(|()| next_available(&pods, spec.min_ready_seconds.unwrap_or(0), now.as_second())),
        }
    }

    async fn apply(&self, set: &DaemonSet, plan: &plan::Plan, hash: &str) -> Result<()> {
        let control = PodControl { context: &self.context, events: &self.events, fences: &self.fences, owner: set };
        for pod in plan.delete.iter().filter(|p| causeway_api::pod::phase(p) == "Failed") {
            let node = plan::node_of(pod).unwrap_or("");
            let text = format!("Found failed daemon pod {} on node {node}, will try to kill it", key_of(&**pod));
            self.events.warning(set, "FailedDaemonPod", text);
        }
        control.delete_all(plan.delete.iter().take(BURST).map(|p| &**p)).await?;
        let pods: Vec<Pod> = plan.create.iter().take(BURST).map(|node| self.pod(set, node, hash)).collect();
        control.create_all(&pods).await
    }

    fn pod(&self, set: &DaemonSet, node: &str, hash: &str) -> Pod {
        let template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
        let mut pod = from_template(&template, set.metadata.namespace.as_deref().unwrap_or(""), controller_ref(set));
        add_labels(&mut pod, [(HASH_LABEL, hash.to_owned())]);
        let spec = pod.spec.get_or_insert_default();
        plan::pin(spec, node);
        plan::tolerate(spec);
        pod
    }

    async fn write_status(&self, set: &DaemonSet, status: DaemonSetStatus) -> Result<()> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let key = key_of(set);
        let wanted = DaemonSet { status: Some(status), ..set.clone() };
        let written = self
            .context
            .api::<DaemonSet>(&key.namespace)
            .replace_status(&key.name, &PostParams::default(), &wanted)
            .await
            .doing(|| format!("write the status of DaemonSet {key}"));
        ignore_not_found(written).map(drop)
    }
}
