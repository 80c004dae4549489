//! Namespaces that are being deleted: deletes everything in them, then lets them go.
//!
//! In: namespaces with a deletion timestamp, discovery. Out: deleted objects (pods first, so that what they use
//! outlives them), conditions that say what is left, and in the end the finalizer `kubernetes` taken off.

use crate::cache::key_of;
use crate::context::Context;
use crate::error::{Doing, Result, ignore_not_found};
use crate::queue::{Key, Queue};
use crate::resources::{Kind, discover};
use futures::{FutureExt, StreamExt, stream};
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const FINALIZER: &str = "kubernetes";
/// Kinds emptied at the same time.
const PARALLEL: usize = 8;

/// The controller.
pub struct Namespaces {
    context: Arc<Context>,
}

/// What a round of deletion left.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Left {
    /// Objects by `plural.group`.
    pub objects: BTreeMap<String, usize>,
    /// Objects by the finalizer they wait for.
    pub finalizers: BTreeMap<String, usize>,
    /// Kinds that could not be listed or emptied, and why.
    pub failures: Vec<String>,
    /// Discovery failed.
    pub undiscovered: Option<String>,
}

/// Wires the handlers up; the queue is worked by the caller.
pub fn queue(context: &Arc<Context>) -> Arc<Queue<Key>> {
    let queue = Queue::new();
    let sink = queue.clone();
    context.caches.namespaces.on_change(move |_, new| {
        if let Some(namespace) = new.filter(|n| n.metadata.deletion_timestamp.is_some()) {
            sink.add(key_of(&**namespace));
        }
    });
    let (sink, namespaces) = (queue.clone(), context.caches.namespaces.clone());
    context.caches.pods.on_change(move |old, new| {
        let (Some(pod), None) = (old, new) else { return };
        let key = Key::new("", pod.metadata.namespace.as_deref().unwrap_or(""));
        if namespaces.get(&key).is_some_and(|n| n.metadata.deletion_timestamp.is_some()) {
            sink.add(key);
        }
    });
    queue
}

impl Namespaces {
    /// The controller over `context`.
    pub fn new(context: Arc<Context>) -> Arc<Self> {
        Arc::new(Self { context })
    }

    /// One level-triggered step for one namespace.
    pub async fn reconcile(self: Arc<Self>, key: Key) -> Result<Option<Duration>> {
        let Some(namespace) = self.context.caches.namespaces.get(&key) else { return Ok(None) };
        let Some(deleted) = namespace.metadata.deletion_timestamp.as_ref() else { return Ok(None) };
        let held = namespace.spec.iter().flat_map(|s| s.finalizers.iter().flatten()).any(|f| f == FINALIZER);
        if !held {
            return Ok(None);
        }
        let left = self.empty(&key.name).await;
        let now = Timestamp::now();
        if left == Left::default() {
            return self.finalize(&namespace).await.map(|()| None);
        }
        self.write_status(&namespace, &left, now).await?;
        let age = now.as_second() - deleted.0.as_second();
        Ok(Some(if age < 30 { Duration::from_millis(300) } else { Duration::from_secs(3) }))
    }

    async fn empty(&self, namespace: &str) -> Left {
        let mut left = Left::default();
        let kinds = match discover(&self.context.client).await {
            Ok(kinds) => kinds,
            Err(error) => {
                left.undiscovered = Some(error.reply());
                return left;
            }
        };
        let (pods, others): (Vec<_>, Vec<_>) = kinds
            .into_iter()
            .filter(|k| k.namespaced && k.can("list") && k.can("delete"))
            .partition(|k| k.resource.group.is_empty() && k.resource.plural == "pods");
        for kind in &pods {
            self.note(kind, self.empty_kind(namespace, kind).await, &mut left);
        }
        if left != Left::default() {
            return left;
        }
        let mut rounds = Vec::new();
        for kind in others {
            rounds.push(async move { (self.empty_kind(namespace, &kind).await, kind) }.boxed());
        }
        let results: Vec<_> = stream::iter(rounds).buffer_unordered(PARALLEL).collect().await;
        for (result, kind) in results {
            self.note(&kind, result, &mut left);
        }
        left
    }

    fn note(&self, kind: &Kind, result: Result<Vec<Vec<String>>>, left: &mut Left) {
        let name = match kind.resource.group.as_str() {
            "" => format!("{}.", kind.resource.plural),
            group => format!("{}.{group}", kind.resource.plural),
        };
        match result {
            Ok(rest) if rest.is_empty() => {}
            Ok(rest) => {
                left.objects.insert(name, rest.len());
                for finalizer in rest.into_iter().flatten() {
                    *left.finalizers.entry(finalizer).or_insert(0) += 1;
                }
            }
            // The kind itself went away meanwhile.
            Err(error) if error.is_not_found() => {}
            Err(error) => left.failures.push(format!("{name}: {}", error.reply())),
        }
    }

    /// Deletes all objects of a kind; the finalizers of each that is still there.
    async fn empty_kind(&self, namespace: &str, kind: &Kind) -> Result<Vec<Vec<String>>> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.context.client.clone(), namespace, &kind.resource);
        let plural = &kind.resource.plural;
        let list = || async {
            let list = api.list_metadata(&ListParams::default()).await;
            list.doing(|| format!("list {plural} in namespace {namespace}"))
        };
        let there = list().await?.items;
        if there.is_empty() {
            return Ok(Vec::new());
        }
        if kind.can("deletecollection") {
            let gone = api.delete_collection(&DeleteParams::background(), &ListParams::default()).await;
            gone.doing(|| format!("delete all {plural} in namespace {namespace}"))?;
        } else {
            for object in there {
                let name = object.metadata.name.unwrap_or_default();
                let gone = api.delete(&name, &DeleteParams::background()).await;
                ignore_not_found(gone.doing(|| format!("delete {plural} {namespace}/{name}")))?;
            }
        }
        let rest = list().await?.items;
        Ok(rest.into_iter().map(|o| o.metadata.finalizers.unwrap_or_default()).collect())
    }

    async fn finalize(&self, namespace: &Namespace) -> Result<()> {
        let key = key_of(namespace);
        let mut wanted = namespace.clone();
        if let Some(finalizers) = wanted.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
            finalizers.retain(|f| f != FINALIZER);
        }
        let body = self
            .context
            .cluster::<Namespace>()
            .replace_subresource("finalize", &key.name, &PostParams::default(), &wanted)
            .await
            .doing(|| format!("finalize namespace {key}"));
        ignore_not_found(body).map(drop)
    }

    async fn write_status(&self, namespace: &Namespace, left: &Left, now: Timestamp) -> Result<()> {
        let mut status = namespace.status.clone().unwrap_or_default();
        status.phase = Some("Terminating".to_owned());
        let conditions = status.conditions.get_or_insert_default();
        for condition in conditions_of(left, now) {
            match conditions.iter_mut().find(|c| c.type_ == condition.type_) {
                Some(old) if old.status == condition.status && old.message == condition.message => {}
                Some(old) => *old = condition,
                None => conditions.push(condition),
            }
        }
        if namespace.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let key = key_of(namespace);
        let wanted = Namespace { status: Some(status), ..namespace.clone() };
        let namespaces = self.context.cluster::<Namespace>();
        let written = namespaces.replace_status(&key.name, &PostParams::default(), &wanted).await;
        let written = written.doing(|| format!("write the status of namespace {key}"));
        ignore_not_found(written).map(drop)
    }
}

/// What `kubectl get namespace -o yaml` shows of a deletion that takes long. Pure.
pub fn conditions_of(left: &Left, now: Timestamp) -> Vec<NamespaceCondition> {
    let make = |type_: &str, bad: Option<(&str, String)>, good: (&str, &str)| NamespaceCondition {
        type_: type_.to_owned(),
        status: if bad.is_some() { "True" } else { "False" }.to_owned(),
        reason: Some(bad.as_ref().map_or(good.0, |b| b.0).to_owned()),
        message: Some(bad.map_or_else(|| good.1.to_owned(), |b| b.1)),
        last_transition_time: Some(Time(now)),
    };
    let failures = (!left.failures.is_empty()).then(|| {
        (
            "ContentDeletionFailed",
            format!(
                "Failed to delete all resource types, {} remaining: {}",
                left.failures.len(),
                left.failures.join(", ")
            ),
        )
    });
    let objects: Vec<_> = left.objects.iter().map(|(k, n)| format!("{k} has {n} resource instances")).collect();
    let objects = (!objects.is_empty())
        .then(|| ("SomeResourcesRemain", format!("Some resources are remaining: {}", objects.join(", "))));
    let finalizers: Vec<_> = left.finalizers.iter().map(|(f, n)| format!("{f} in {n} resource instances")).collect();
    let finalizers = (!finalizers.is_empty()).then(|| {
        (
            "SomeFinalizersRemain",
            format!("Some content in the namespace has finalizers remaining: {}", finalizers.join(", ")),
        )
    });
    let undiscovered =
        left.undiscovered.as_ref().map(|e| ("DiscoveryFailed", format!("Discovery failed for some groups: {e}")));
    vec![
        make(
            "NamespaceDeletionDiscoveryFailure",
            undiscovered,
            ("ResourcesDiscovered", "All resources successfully discovered"),
        ),
        make(
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        ),
        make(
            "NamespaceDeletionContentFailure",
            failures,
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        ),
        make("NamespaceContentRemaining", objects, ("ContentRemoved", "All content successfully removed")),
        make(
            "NamespaceFinalizersRemaining",
            finalizers,
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_what_is_left() {
        let left = Left {
            objects: [("pods.".to_owned(), 2)].into(),
            finalizers: [("example.com/hold".to_owned(), 1)].into(),
            ..Left::default()
        };
        let all = conditions_of(&left, Timestamp::UNIX_EPOCH);
        let get = |t: &str| all.iter().find(|c| c.type_ == t).unwrap();
        assert_eq!(get("NamespaceContentRemaining").status, "True");
        assert_eq!(
            get("NamespaceContentRemaining").message.as_deref(),
            Some("Some resources are remaining: pods. has 2 resource instances")
        );
        assert_eq!(get("NamespaceFinalizersRemaining").reason.as_deref(), Some("SomeFinalizersRemain"));
        assert_eq!(get("NamespaceDeletionContentFailure").status, "False");
    }
}
