//! StatefulSets: pods with ordinals, stable names and claims of their own.
//!
//! In: StatefulSets, their pods, claims and revisions. Out: pods created and deleted in order, claims, revisions,
//! status. [`plan`] decides, [`pod`] builds pods and claims; this file applies.

pub mod plan;
pub mod pod;

use crate::cache::key_of;
use crate::claim::claim;
use crate::context::{Context, Events};
use crate::error::{Doing, Error, Result, ignore_not_found};
use crate::fence::Fences;
use crate::meta::{label, name, uid};
use crate::pods::{PodControl, ring_owners};
use crate::queue::{Key, Queue};
use crate::replicaset::plan::next_available;
use crate::revision::{self, HASH_LABEL, History};
use causeway_api::selector::Selector;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use plan::{Action, Revisions};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// The controller.
pub struct StatefulSets {
    context: Arc<Context>,
    events: Events,
    fences: Fences,
}

/// Wires the handlers up; the queue is worked by the caller.
pub fn queue(context: &Arc<Context>) -> Arc<Queue<Key>> {
    let queue = Queue::new();
    let sink = queue.clone();
    context.caches.stateful_sets.on_change(move |old, new| {
        if let Some(set) = new.or(old) {
            sink.add(key_of(&**set));
        }
    });
    ring_owners(&queue, &context.caches.pods, &context.caches.stateful_sets, selector_of);
    queue
}

fn selector_of(set: &StatefulSet) -> Result<Selector> {
    let spec = set.spec.as_ref().ok_or_else(|| Error::Object("the StatefulSet has no spec".to_owned()))?;
    Selector::from_object(&spec.selector).map_err(Error::Object)
}

impl StatefulSets {
    /// The controller over `context`.
    pub fn new(context: Arc<Context>) -> Arc<Self> {
        let events = context.recorder("statefulset-controller");
        Arc::new(Self { context, events, fences: Fences::default() })
    }

    /// One level-triggered step for one StatefulSet.
    pub async fn reconcile(self: Arc<Self>, key: Key) -> Result<Option<Duration>> {
        let caches = &self.context.caches;
        let Some(set) = caches.stateful_sets.get(&key) else {
            self.fences.forget(&key);
            return Ok(None);
        };
        let Some(spec) = set.spec.as_ref() else { return Ok(None) };
        if let Some(wait) = self.fences.wait(&key, &caches.pods) {
            return Ok(Some(wait));
        }
        let selector = selector_of(&set)?;
        // Only pods named as the set names them can be its own.
        let mut candidates = caches.candidates(&key.namespace, uid(&set.metadata));
        candidates.retain(|p| pod::ordinal(&set, p).is_some());
        let pods = claim(&self.context, &*set, &selector, candidates).await?;
        let status = set.status.clone().unwrap_or_default();
        let history = revision::sync(&self.context, &*set, &selector, &spec.template, status.collision_count).await?;
        let current = current_revision(&status, &history);
        let revisions = Revisions { current: name(&current.metadata), update: name(&history.update.metadata) };

        let now = Timestamp::now();
        let plan = plan::plan(&set, &pods, &revisions, now.as_second());
        let mut status = plan.status;
        status.collision_count = history.collisions;
        let outcome = self.apply(&set, plan.actions, &current, &history).await;
        self.keep_claims(&set, &pods).await?;
        self.write_status(&set, status).await?;
        let mut live = vec![revisions.current, revisions.update];
        live.extend(pods.iter().filter_map(|p| label(&p.metadata, HASH_LABEL)));
        revision::truncate(&self.context, &history, &live, spec.revision_history_limit.unwrap_or(10)).await?;
        match outcome {
            Err(error) if error.is_terminating_namespace() => Ok(None),
            other => other.map(|()| next_available(&pods, spec.min_ready_seconds.unwrap_or(0), now.as_second())),
        }
    }

    async fn apply(
        &self,
        set: &StatefulSet,
        actions: Vec<Action>,
        current: &ControllerRevision,
        history: &History,
    ) -> Result<()> {
        let control = PodControl { context: &self.context, events: &self.events, fences: &self.fences, owner: set };
        for action in actions {
            match action {
                Action::Create { ordinal, updated } => {
                    let revision = if updated { &*history.update } else { current };
                    self.create(&control, set, ordinal, revision).await?;
                }
                Action::Delete { pod, reason } => {
                    if let Some(reason) = reason {
                        let text = format!(
                            "StatefulSet {} is recreating {} Pod {}",
                            key_of(set),
                            reason.1,
                            name(&pod.metadata)
                        );
                        self.events.warning(set, reason.0, text);
                    }
                    control.delete(&pod).await?;
                }
                Action::Identify { pod } => self.identify(set, &pod).await?,
            }
        }
        Ok(())
    }

    /// The claims come first: a pod must never start without its storage.
    async fn create(
        &self,
        control: &PodControl<'_, StatefulSet>,
        set: &StatefulSet,
        ordinal: i32,
        revision: &ControllerRevision,
    ) -> Result<()> {
        let claims = self.context.api::<PersistentVolumeClaim>(set.metadata.namespace.as_deref().unwrap_or(""));
        for claim in pod::claims(set, ordinal) {
            let key = key_of(&claim);
            match self.context.caches.claims.get(&key) {
                Some(there) if there.metadata.deletion_timestamp.is_some() => {
                    return Err(Error::Object(format!("claim {key} is being deleted; its pod waits for a new one")));
                }
                Some(_) => continue,
                None => {}
            }
            let made = claims.create(&PostParams::default(), &claim).await.doing(|| format!("create claim {key}"));
            match made {
                Ok(_) => {
                    let text = format!(
                        "create Claim {} Pod {} in StatefulSet {} success",
                        key.name,
                        pod::pod_name(set, ordinal),
                        name(&set.metadata)
                    );
                    self.events.normal(set, "SuccessfulCreate", text);
                }
                Err(error) if error.is_already_exists() => {}
                Err(error) => {
                    self.events.warning(
                        set,
                        "FailedCreate",
                        format!("create Claim {} failed error: {}", key.name, error.reply()),
                    );
                    return Err(error);
                }
            }
        }
        let template = revision::template_of(revision)
            .or_else(|| set.spec.as_ref().map(|s| s.template.clone()))
            .unwrap_or_default();
        let pod = pod::build(set, &template, ordinal, name(&revision.metadata));
        match control.create(&pod).await {
            // Seen again when the pod of that name is gone.
            Err(error) if error.is_already_exists() => {
                Err(Error::Object(format!("pod {} is there already", key_of(&pod))))
            }
            other => other.map(drop),
        }
    }

    /// Gives an adopted pod the labels of its ordinal.
    async fn identify(&self, set: &StatefulSet, pod: &Pod) -> Result<()> {
        let Some(ordinal) = pod::ordinal(set, pod) else { return Ok(()) };
        let key = key_of(pod);
        let patch = json!({ "metadata": { "labels": pod::identity(set, ordinal) } });
        let written = self
            .context
            .api::<Pod>(&key.namespace)
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .doing(|| format!("label pod {key} with its ordinal"));
        ignore_not_found(written).map(drop)
    }

    /// Makes the claims go with the set or with a scaled-down pod, as the retention policy says.
    async fn keep_claims(&self, set: &StatefulSet, pods: &[Arc<Pod>]) -> Result<()> {
        let namespace = set.metadata.namespace.as_deref().unwrap_or("");
        for claim in self.context.caches.claims.in_namespace(namespace) {
            let Some(owners) = pod::claim_owners(set, &claim, pods) else { continue };
            let key = key_of(&*claim);
            let patch = json!({ "metadata": {
                "resourceVersion": claim.metadata.resource_version,
                "ownerReferences": owners,
            }});
            let written = self
                .context
                .api::<PersistentVolumeClaim>(namespace)
                .patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
                .await
                .doing(|| format!("set the owners of claim {key}"));
            ignore_not_found(written)?;
        }
        Ok(())
    }

    async fn write_status(&self, set: &StatefulSet, status: StatefulSetStatus) -> Result<()> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let key = key_of(set);
        let wanted = StatefulSet { status: Some(status), ..set.clone() };
        let written = self
            .context
            .api::<StatefulSet>(&key.namespace)
            .replace_status(&key.name, &PostParams::default(), &wanted)
            .await
            .doing(|| format!("write the status of StatefulSet {key}"));
        ignore_not_found(written).map(drop)
    }
}

fn current_revision(status: &StatefulSetStatus, history: &History) -> Arc<ControllerRevision> {
    let current = history.all.iter().find(|r| r.metadata.name == status.current_revision);
    current.unwrap_or(&history.update).clone()
}
