//! Deployments: rolls pods from one template to the next through ReplicaSets.
//!
//! In: Deployments, their ReplicaSets and pods. Out: ReplicaSets created, scaled and cleaned up; the revision; the
//! status. [`plan`] decides, [`status`] reports, [`sets`] holds the working copy both use; this file applies.

pub mod plan;
pub mod sets;
pub mod status;

use crate::cache::key_of;
use crate::claim::claim;
use crate::context::{Context, Events};
use crate::error::{Doing, Error, Result, ignore_not_found};
use crate::meta::{annotation, controlled_by, controller_of, uid};
use crate::queue::{Key, Queue};
use causeway_api::selector::Selector;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use plan::{Op, Plan};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// The controller.
pub struct Deployments {
    context: Arc<Context>,
    events: Events,
}

/// Wires the handlers up; the queue is worked by the caller.
pub fn queue(context: &Arc<Context>) -> Arc<Queue<Key>> {
    let queue = Queue::new();
    let sink = queue.clone();
    context.caches.deployments.on_change(move |old, new| {
        if let Some(deployment) = new.or(old) {
            sink.add(key_of(&**deployment));
        }
    });
    let (sink, deployments) = (queue.clone(), context.caches.deployments.clone());
    context.caches.replica_sets.on_change(move |old, new| {
        for set in [old, new].into_iter().flatten() {
            let namespace = set.metadata.namespace.as_deref().unwrap_or("");
            match controller_of(&set.metadata) {
                Some(owner) if owner.kind == "Deployment" => sink.add(Key::new(namespace, &owner.name)),
                Some(_) => {}
                None => {
                    for deployment in deployments.in_namespace(namespace) {
                        if selector_of(&deployment).is_ok_and(|s| s.matches_option(set.metadata.labels.as_ref())) {
                            sink.add(key_of(&*deployment));
                        }
                    }
                }
            }
        }
    });
    // Recreate waits for the last old pod to go.
    let (sink, sets) = (queue.clone(), context.caches.replica_sets.clone());
    context.caches.pods.on_change(move |old, new| {
        let (Some(pod), None) = (old, new) else { return };
        let Some(owner) = controller_of(&pod.metadata).filter(|o| o.kind == "ReplicaSet") else { return };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        let set = sets.get(&Key::new(namespace, &owner.name));
        if let Some(owner) = set.as_ref().and_then(|s| controller_of(&s.metadata)) {
            sink.add(Key::new(namespace, &owner.name));
        }
    });
    queue
}

fn selector_of(deployment: &Deployment) -> Result<Selector> {
    let spec = deployment.spec.as_ref().ok_or_else(|| Error::Object("the Deployment has no spec".to_owned()))?;
    Selector::from_object(&spec.selector).map_err(Error::Object)
}

impl Deployments {
    /// The controller over `context`.
    pub fn new(context: Arc<Context>) -> Arc<Self> {
        let events = context.recorder("deployment-controller");
        Arc::new(Self { context, events })
    }

    /// One level-triggered step for one Deployment.
    pub async fn reconcile(self: Arc<Self>, key: Key) -> Result<Option<Duration>> {
        let caches = &self.context.caches;
        let Some(deployment) = caches.deployments.get(&key) else { return Ok(None) };
        let selector = selector_of(&deployment)?;
        if selector.is_empty() {
            self.events.warning(
                &*deployment,
                "SelectingAll",
                "This deployment is selecting all pods. A non-empty selector is required.",
            );
            return Ok(None);
        }
        let candidates = caches.replica_sets.in_namespace(&key.namespace);
        let sets = claim(&self.context, &*deployment, &selector, candidates).await?;
        let running = self.sets_with_pods(&sets);
        let plan = plan::plan(&deployment, sets, &running, Timestamp::now());
        self.apply(&deployment, plan).await
    }

    /// The uids of those sets that have pods which have not finished.
    fn sets_with_pods(&self, sets: &[Arc<ReplicaSet>]) -> HashSet<String> {
        let uids = sets.iter().map(|s| uid(&s.metadata));
        let has = |uid: &&str| self.context.caches.pods_of(uid).iter().any(|p| !causeway_api::pod::is_finished(p));
        uids.filter(has).map(str::to_owned).collect()
    }

    async fn apply(&self, deployment: &Deployment, plan: Plan) -> Result<Option<Duration>> {
        let mut status = plan.status;
        let mut outcome = Ok(());
        for op in plan.ops {
            outcome = self.apply_one(deployment, &op, &mut status).await;
            if outcome.is_err() {
                break;
            }
        }
        let mut current = deployment.clone();
        if let Some(revision) = plan.revision.filter(|r| annotation(&deployment.metadata, sets::REVISION) != Some(r)) {
            match self.write_revision(deployment, &revision).await? {
                Some(written) => current = written,
                None => return Ok(None),
            }
        }
        if deployment.status.as_ref() != Some(&status) {
            self.write_status(current, status).await?;
        }
        match outcome {
            Err(error) if error.is_terminating_namespace() => Ok(None),
            other => other.map(|()| plan.recheck),
        }
    }

    async fn apply_one(&self, deployment: &Deployment, op: &Op, status: &mut DeploymentStatus) -> Result<()> {
        match op {
            Op::Create(set) => self.create(deployment, set, status).await,
            Op::Update { set, replicas, annotations, min_ready_seconds } => {
                let mut spec = Map::new();
                if let Some(n) = replicas {
                    spec.insert("replicas".to_owned(), json!(n));
                }
                if let Some(n) = min_ready_seconds {
                    spec.insert("minReadySeconds".to_owned(), json!(n));
                }
                let mut patch = json!({ "metadata": { "resourceVersion": set.metadata.resource_version } });
                if !annotations.is_empty() {
                    patch["metadata"]["annotations"] = json!(annotations);
                }
                if !spec.is_empty() {
                    patch["spec"] = Value::Object(spec);
                }
                let key = key_of(&**set);
                let result = self
                    .context
                    .api::<ReplicaSet>(&key.namespace)
                    .patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
                    .await
                    .doing(|| format!("scale ReplicaSet {key}"));
                if ignore_not_found(result)?.is_some()
                    && let Some(now) = replicas
                {
                    let before = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
                    self.scaled(deployment, &key.name, before, *now);
                }
                Ok(())
            }
            Op::Delete(set) => {
                let key = key_of(&**set);
                let only = Preconditions {
                    uid: set.metadata.uid.clone(),
                    resource_version: set.metadata.resource_version.clone(),
                };
                let result = self
                    .context
                    .api::<ReplicaSet>(&key.namespace)
                    .delete(&key.name, &DeleteParams::background().preconditions(only))
                    .await
                    .doing(|| format!("clean up old ReplicaSet {key}"));
                ignore_not_found(result).map(drop)
            }
        }
    }

    async fn create(&self, deployment: &Deployment, set: &ReplicaSet, status: &mut DeploymentStatus) -> Result<()> {
        let key = key_of(set);
        let api = self.context.api::<ReplicaSet>(&key.namespace);
        let made = api.create(&PostParams::default(), set).await.doing(|| format!("create ReplicaSet {key}"));
        match made {
            Ok(_) => {
                let size = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
                if size > 0 {
                    self.scaled(deployment, &key.name, 0, size);
                }
                Ok(())
            }
            Err(error) if error.is_already_exists() => {
                let there = api.get(&key.name).await.doing(|| format!("read ReplicaSet {key}"))?;
                if controlled_by(&there.metadata, uid(&deployment.metadata)) && sets::same_template(&there, set) {
                    return Ok(());
                }
                // Another template has the same hash: the next name is salted with the count.
                status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
                Ok(())
            }
            Err(error) => {
                if !error.is_terminating_namespace() {
                    let text = format!("Failed to create new replica set {:?}: {}", key.name, error.reply());
                    self.events.warning(deployment, "ReplicaSetCreateError", text.clone());
                    status::set(
                        status,
                        status::condition("Progressing", "False", "ReplicaSetCreateError", &text, Timestamp::now()),
                    );
                }
                Err(error)
            }
        }
    }

    fn scaled(&self, deployment: &Deployment, set: &str, before: i32, now: i32) {
        let direction = if now > before { "up" } else { "down" };
        let text = format!("Scaled {direction} replica set {set} from {before} to {now}");
        self.events.normal(deployment, "ScalingReplicaSet", text);
    }

    async fn write_revision(&self, deployment: &Deployment, revision: &str) -> Result<Option<Deployment>> {
        let key = key_of(deployment);
        let patch = json!({ "metadata": {
            "resourceVersion": deployment.metadata.resource_version,
            "annotations": { sets::REVISION: revision },
        }});
        let written = self
            .context
            .api::<Deployment>(&key.namespace)
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .doing(|| format!("write the revision of Deployment {key}"));
        ignore_not_found(written)
    }

    async fn write_status(&self, deployment: Deployment, status: DeploymentStatus) -> Result<()> {
        let key = key_of(&deployment);
        let wanted = Deployment { status: Some(status), ..deployment };
        let written = self
            .context
            .api::<Deployment>(&key.namespace)
            .replace_status(&key.name, &PostParams::default(), &wanted)
            .await
            .doing(|| format!("write the status of Deployment {key}"));
        ignore_not_found(written).map(drop)
    }
}
