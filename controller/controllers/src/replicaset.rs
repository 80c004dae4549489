//! ReplicaSets: keeps the number of pods a ReplicaSet asks for.
//!
//! In: ReplicaSets and pods. Out: pods created in slow-start batches or deleted by rank, and the status. [`plan`]
//! decides; this file claims, applies and reports.

pub mod plan;

use crate::cache::key_of;
use crate::claim::claim;
use crate::context::{Context, Events};
use crate::error::{Doing, Error, Result};
use crate::fence::Fences;
use crate::meta::{controller_of, controller_ref, uid};
use crate::pods::{BURST, PodControl, from_template, ring_owners};
use crate::queue::{Key, Queue};
use causeway_api::selector::Selector;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use plan::Change;
use std::sync::Arc;
use std::time::Duration;

/// The controller.
pub struct ReplicaSets {
    context: Arc<Context>,
    events: Events,
    fences: Fences,
}

/// Wires the handlers up; the queue is worked by the caller.
pub fn queue(context: &Arc<Context>) -> Arc<Queue<Key>> {
    let queue = Queue::new();
    let sink = queue.clone();
    context.caches.replica_sets.on_change(move |old, new| {
        if let Some(set) = new.or(old) {
            sink.add(key_of(&**set));
        }
    });
    ring_owners(&queue, &context.caches.pods, &context.caches.replica_sets, selector_of);
    queue
}

fn selector_of(set: &ReplicaSet) -> Result<Selector> {
    let spec = set.spec.as_ref().ok_or_else(|| Error::Object("the ReplicaSet has no spec".to_owned()))?;
    Selector::from_object(&spec.selector).map_err(Error::Object)
}

impl ReplicaSets {
    /// The controller over `context`.
    pub fn new(context: Arc<Context>) -> Arc<Self> {
        let events = context.recorder("replicaset-controller");
        Arc::new(Self { context, events, fences: Fences::default() })
    }

    /// One level-triggered step for one ReplicaSet.
    pub async fn reconcile(self: Arc<Self>, key: Key) -> Result<Option<Duration>> {
        let caches = &self.context.caches;
        let Some(set) = caches.replica_sets.get(&key) else {
            self.fences.forget(&key);
            return Ok(None);
        };
        let Some(template) = set.spec.as_ref().and_then(|s| s.template.as_ref()) else { return Ok(None) };
        if let Some(wait) = self.fences.wait(&key, &caches.pods) {
            return Ok(Some(wait));
        }
        let candidates = caches.candidates(&key.namespace, uid(&set.metadata));
        let pods = claim(&self.context, &*set, &selector_of(&set)?, candidates).await?;
        let active: Vec<Arc<Pod>> = pods.into_iter().filter(|p| causeway_api::pod::is_active(p)).collect();
        let now = Timestamp::now();

        let mut outcome = Ok(());
        if set.metadata.deletion_timestamp.is_none() {
            let control =
                PodControl { context: &self.context, events: &self.events, fences: &self.fences, owner: &*set };
            outcome = match plan::change(&set, &active, &self.related(&set), now.as_second()) {
                Change::None => Ok(()),
                Change::Create(n) => {
                    let pod = from_template(template, &key.namespace, controller_ref(&*set));
                    control.create_all(&vec![pod; n.min(BURST)]).await
                }
                Change::Delete(pods) => control.delete_all(pods.iter().take(BURST).map(|p| &**p)).await,
            };
        }
        let failure = outcome.as_ref().err().map(|e| (set_failure(&set, active.len()), e.reply()));
        self.write_status(&set, plan::status(&set, &active, failure, now)).await?;
        match outcome {
            Err(error) if error.is_terminating_namespace() => Ok(None),
            other => other.map(|()| plan::recheck(&set, &active, now.as_second())),
        }
    }

    /// Active pods of sets with the same owner: nodes that carry many of them lose theirs first.
    fn related(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let namespace = set.metadata.namespace.as_deref().unwrap_or("");
        let owner = controller_of(&set.metadata).map(|o| o.uid.as_str());
        let sets = self.context.caches.replica_sets.in_namespace(namespace);
        let family = sets.iter().filter(|s| {
            uid(&s.metadata) == uid(&set.metadata)
                || owner.is_some() && owner == controller_of(&s.metadata).map(|o| o.uid.as_str())
        });
        let mut pods: Vec<_> = family.flat_map(|s| self.context.caches.pods_of(uid(&s.metadata))).collect();
        pods.retain(|p| causeway_api::pod::is_active(p));
        pods
    }

    async fn write_status(&self, set: &ReplicaSet, status: ReplicaSetStatus) -> Result<()> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let key = key_of(set);
        let wanted = ReplicaSet { status: Some(status), ..set.clone() };
        let written = self
            .context
            .api::<ReplicaSet>(&key.namespace)
            .replace_status(&key.name, &PostParams::default(), &wanted)
            .await
            .doing(|| format!("write the status of ReplicaSet {key}"));
        crate::error::ignore_not_found(written).map(drop)
    }
}

fn set_failure(set: &ReplicaSet, active: usize) -> &'static str {
    let wanted = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    if i64::from(wanted) > active as i64 { "FailedCreate" } else { "FailedDelete" }
}

/// A condition with a fresh transition time.
pub fn condition(type_: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> ReplicaSetCondition {
    ReplicaSetCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(Time(now)),
    }
}
