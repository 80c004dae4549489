//! Pods as controllers make and unmake them: from a template, in slow-start batches, with events.

use crate::cache::{Cache, Cached, key_of};
use crate::context::{Context, Events};
use crate::error::{Doing, Result, ignore_not_found};
use crate::fence::Fences;
use crate::meta::{Map, controller_of, fit};
use crate::queue::{Key, Queue};
use causeway_api::selector::Selector;
use futures::future::join_all;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use kube::api::{DeleteParams, PostParams, Preconditions};
use std::sync::Arc;

/// Pods one reconcile creates or deletes at most.
pub const BURST: usize = 500;

/// Rings for the controller of every pod that changes, and, when a pod has none, for each of `owners` that could adopt it.
pub fn ring_owners<K: Cached>(
    queue: &Arc<Queue<Key>>,
    pods: &Cache<Pod>,
    owners: &Cache<K>,
    selector_of: fn(&K) -> Result<Selector>,
) {
    let (sink, owners) = (queue.clone(), owners.clone());
    pods.on_change(move |old, new| {
        for pod in [old, new].into_iter().flatten() {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
            match controller_of(&pod.metadata) {
                Some(owner) if owner.kind == K::kind(&()) => sink.add(Key::new(namespace, &owner.name)),
                Some(_) => {}
                None => {
                    for owner in owners.in_namespace(namespace) {
                        if selector_of(&owner).is_ok_and(|s| s.matches_option(pod.metadata.labels.as_ref())) {
                            sink.add(key_of(&*owner));
                        }
                    }
                }
            }
        }
    });
}

/// The pod a template describes, owned by `owner`.
pub fn from_template(template: &PodTemplateSpec, namespace: &str, owner: OwnerReference) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: Some(namespace.to_owned()),
            generate_name: Some(format!("{}-", fit(&owner.name, 57))),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Adds labels.
pub fn add_labels(pod: &mut Pod, labels: impl IntoIterator<Item = (&'static str, String)>) {
    let all: &mut Map = pod.metadata.labels.get_or_insert_default();
    all.extend(labels.into_iter().map(|(k, v)| (k.to_owned(), v)));
}

/// A controller's hand on its pods.
pub struct PodControl<'a, O> {
    /// The context.
    pub context: &'a Context,
    /// Where events go.
    pub events: &'a Events,
    /// Raised for every write.
    pub fences: &'a Fences,
    /// Whose pods they are.
    pub owner: &'a O,
}

impl<O: Resource<DynamicType = ()>> PodControl<'_, O> {
    /// Creates one pod.
    pub async fn create(&self, pod: &Pod) -> Result<Pod> {
        let owner = key_of(self.owner);
        let created = self
            .context
            .api::<Pod>(&owner.namespace)
            .create(&PostParams::default(), pod)
            .await
            .doing(|| format!("create a pod for {} {owner}", O::kind(&())));
        match created {
            Ok(pod) => {
                self.fences.wrote(&owner, &pod);
                self.events.normal(self.owner, "SuccessfulCreate", format!("Created pod: {}", key_of(&pod).name));
                Ok(pod)
            }
            Err(error) => {
                if !error.is_terminating_namespace() {
                    self.events.warning(self.owner, "FailedCreate", format!("Error creating: {}", error.reply()));
                }
                Err(error)
            }
        }
    }

    /// Creates pods in batches of 1, 2, 4, …: when pods are refused, few requests are wasted.
    pub async fn create_all(&self, pods: &[Pod]) -> Result<()> {
        let (mut rest, mut batch) = (pods, 1);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(batch.min(rest.len()));
            for result in join_all(now.iter().map(|pod| self.create(pod))).await {
                result?;
            }
            rest = later;
            batch *= 2;
        }
        Ok(())
    }

    /// Deletes one pod, unless another has taken its name.
    pub async fn delete(&self, pod: &Pod) -> Result<()> {
        let (owner, key): (Key, Key) = (key_of(self.owner), key_of(pod));
        let only = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let result = self
            .context
            .api::<Pod>(&key.namespace)
            .delete(&key.name, &DeleteParams::default().preconditions(only))
            .await
            .doing(|| format!("delete pod {key} of {} {owner}", O::kind(&())));
        match ignore_not_found(result) {
            Ok(deleted) => {
                if deleted.is_some() {
                    self.fences.deleted(&owner, &key, pod.metadata.uid.as_deref());
                    self.events.normal(self.owner, "SuccessfulDelete", format!("Deleted pod: {}", key.name));
                }
                Ok(())
            }
            Err(error) => {
                self.events.warning(self.owner, "FailedDelete", format!("Error deleting: {}", error.reply()));
                Err(error)
            }
        }
    }

    /// Deletes pods side by side.
    pub async fn delete_all<'p>(&self, pods: impl IntoIterator<Item = &'p Pod>) -> Result<()> {
        for result in join_all(pods.into_iter().map(|pod| self.delete(pod))).await {
            result?;
        }
        Ok(())
    }
}
