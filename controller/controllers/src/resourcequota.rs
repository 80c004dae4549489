//! ResourceQuotas: what a namespace uses, counted anew when something is given back.
//!
//! In: quotas, and changes of what they count. Out: their status. What is added is charged by the API server's admission
//! before it is stored; this controller gives back what is gone, and counts for new quotas. What counts how much is
//! [`causeway_admission::quota`]'s; this file reads and writes.

use crate::cache::{Cache, Cached, key_of};
use crate::context::Context;
use crate::error::{Doing, Error, Result, ignore_not_found};
use crate::queue::{Key, Queue};
use crate::resources::{self, Kind};
use causeway_admission::quota;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DynamicObject, ListParams, PartialObjectMeta, PostParams};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Changes that come together are counted together.
const TOGETHER: Duration = Duration::from_millis(500);
/// Everything is counted anew after this long.
const ANEW: Duration = Duration::from_secs(300);
/// Resources of which the process has no copy are looked at this often.
const UNWATCHED: Duration = Duration::from_secs(30);
/// How long a list of kinds may be used that lacks the wanted one.
const KINDS: Duration = Duration::from_secs(30);
/// Objects in one answer.
const PAGE: u32 = 500;

/// Of these the process has copies, whose changes start a count.
const WATCHED: [(&str, &str); 4] = [("", "pods"), ("", "services"), ("", "persistentvolumeclaims"), ("", "configmaps")];

/// The controller.
pub struct Quotas {
    context: Arc<Context>,
    kinds: Mutex<Option<(Instant, Vec<Kind>)>>,
}

/// Wires the handlers up; the queue is worked by the caller.
pub fn queue(context: &Arc<Context>) -> Arc<Queue<Key>> {
    let queue = Queue::new();
    let (sink, caches) = (queue.clone(), &context.caches);
    caches.quotas.on_change(move |old, new| {
        // A charge changes only what is used, and is right as it stands.
        let hard = |q: &Arc<ResourceQuota>| q.spec.as_ref().and_then(|s| s.hard.clone());
        if let Some(quota) = new
            && old.is_none_or(|old| hard(old) != hard(quota) || quota.status.as_ref().is_none_or(|s| s.used.is_none()))
        {
            sink.add(key_of(&**quota));
        }
    });
    replenish(&queue, &caches.quotas, &caches.pods, pod_frees);
    replenish(&queue, &caches.quotas, &caches.services, |old, new| old.spec != new.spec);
    replenish(&queue, &caches.quotas, &caches.claims, |old, new| {
        let allocated = |c: &PersistentVolumeClaim| c.status.as_ref().and_then(|s| s.allocated_resources.clone());
        old.spec != new.spec || allocated(old) != allocated(new)
    });
    replenish(&queue, &caches.quotas, &caches.config_maps, |_, _| false);
    queue
}

/// Objects that go, or change so that they use something else, start a count of their namespace's quotas.
fn replenish<K: Cached>(
    queue: &Arc<Queue<Key>>,
    quotas: &Cache<ResourceQuota>,
    objects: &Cache<K>,
    changes: fn(&K, &K) -> bool,
) {
    let (sink, quotas) = (queue.clone(), quotas.clone());
    objects.on_change(move |old, new| {
        let Some(old) = old else { return };
        if new.is_none_or(|new| changes(old, new)) {
            for quota in quotas.in_namespace(old.meta().namespace.as_deref().unwrap_or("")) {
                sink.add_after(key_of(&*quota), TOGETHER);
            }
        }
    });
}

/// A pod that has ended, is on its way out, or was resized.
fn pod_frees(old: &Pod, new: &Pod) -> bool {
    let finished = causeway_api::pod::is_finished;
    let deadline = |p: &Pod| p.spec.as_ref().and_then(|s| s.active_deadline_seconds);
    let asked = |p: &Pod| {
        let spec = p.spec.as_ref();
        let containers = spec.map(|s| s.containers.iter().map(|c| c.resources.clone()).collect::<Vec<_>>());
        (containers, spec.and_then(|s| s.resources.clone()))
    };
    let held = |p: &Pod| {
        let statuses = p.status.as_ref().and_then(|s| s.container_statuses.as_ref());
        statuses.map(|all| all.iter().map(|s| s.resources.clone()).collect::<Vec<_>>())
    };
    finished(old) != finished(new)
        || deadline(old) != deadline(new)
        || asked(old) != asked(new)
        || held(old) != held(new)
}

impl Quotas {
    /// The controller over `context`.
    pub fn new(context: Arc<Context>) -> Arc<Self> {
        Arc::new(Self { context, kinds: Mutex::default() })
    }

    /// One level-triggered step for one quota.
    pub async fn reconcile(self: Arc<Self>, key: Key) -> Result<Option<Duration>> {
        let api = self.context.api::<ResourceQuota>(&key.namespace);
        // First the quota, then the objects: whatever is stored in between has changed the quota, and the write fails.
        let found = api.get_opt(&key.name).await.doing(|| format!("read ResourceQuota {key}"))?;
        let Some(found) = found.filter(|q| q.metadata.deletion_timestamp.is_none()) else { return Ok(None) };
        let found = to_value(&found)?;
        let mut objects: BTreeMap<(String, String), Vec<Value>> = BTreeMap::new();
        let tracked = quota::tracked(&found);
        for (group, resource) in &tracked {
            if let Some(all) = self.objects(&key.namespace, group, resource).await? {
                objects.insert((group.clone(), resource.clone()), all);
            }
        }
        let of = |group: &str, resource: &str| objects.get(&(group.to_owned(), resource.to_owned()));
        let status = quota::recalculate(&found, of, Timestamp::now().as_second()).map_err(Error::Object)?;
        if quota::differs(&found["status"], &status) {
            let mut new = found;
            new["status"] = status;
            let new: ResourceQuota = serde_json::from_value(new).map_err(|e| Error::Object(e.to_string()))?;
            let written = api.replace_status(&key.name, &PostParams::default(), &new).await;
            ignore_not_found(written.doing(|| format!("update the status of ResourceQuota {key}")))?;
        }
        let watched = tracked.iter().all(|(group, resource)| WATCHED.contains(&(group.as_str(), resource.as_str())));
        Ok(Some(if watched { ANEW } else { UNWATCHED }))
    }

    /// The objects of a resource in a namespace; of those that are only counted, as many empty ones. `None` when no
    /// such resource is served.
    async fn objects(&self, namespace: &str, group: &str, resource: &str) -> Result<Option<Vec<Value>>> {
        let Some(kind) = self.kind(group, resource).await? else { return Ok(None) };
        if WATCHED[..3].contains(&(group, resource)) {
            return self.list(namespace, &kind).await.map(Some);
        }
        let api: Api<PartialObjectMeta<DynamicObject>> =
            Api::namespaced_with(self.context.client.clone(), namespace, &kind.resource);
        let page = api.list_metadata(&ListParams::default().limit(1)).await;
        let page = page.doing(|| format!("count the {resource} of {namespace}"))?;
        let left = page.metadata.remaining_item_count.unwrap_or(0);
        let count = page.items.len() + usize::try_from(left).unwrap_or(0);
        Ok(Some(vec![json!({}); count]))
    }

    async fn list(&self, namespace: &str, kind: &Kind) -> Result<Vec<Value>> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.context.client.clone(), namespace, &kind.resource);
        let (mut all, mut parameters) = (Vec::new(), ListParams::default().limit(PAGE));
        loop {
            let page = api.list(&parameters).await;
            let page = page.doing(|| format!("list the {} of {namespace}", kind.resource.plural))?;
            for object in &page.items {
                all.push(to_value(object)?);
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters = parameters.continue_token(&token),
                None => return Ok(all),
            }
        }
    }

    /// The kind behind a group and plural, in namespaces.
    async fn kind(&self, group: &str, resource: &str) -> Result<Option<Kind>> {
        let mut known = self.kinds.lock().await;
        let find = |kinds: &[Kind]| {
            let wanted = |k: &&Kind| k.resource.group == group && k.resource.plural == resource && k.namespaced;
            kinds.iter().find(wanted).filter(|k| k.can("list")).cloned()
        };
        if let Some((since, kinds)) = known.as_ref() {
            let found = find(kinds);
            if found.is_some() || since.elapsed() < KINDS {
                return Ok(found);
            }
        }
        let kinds = resources::discover(&self.context.client).await?;
        let found = find(&kinds);
        *known = Some((Instant::now(), kinds));
        Ok(found)
    }
}

fn to_value<K: serde::Serialize>(object: &K) -> Result<Value> {
    serde_json::to_value(object).map_err(|error| Error::Object(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod;

    #[test]
    fn only_what_frees_or_moves_usage_starts_a_count() {
        let old = pod("p", "n1", true);
        let changed = |path: &str, value: Value| {
            let mut new = serde_json::to_value(&old).unwrap();
            let (parent, key) = path.rsplit_once('/').unwrap();
            new.pointer_mut(parent).unwrap()[key] = value;
            serde_json::from_value::<Pod>(new).unwrap()
        };
        let more = json!({"requests": {"cpu": "1"}});
        let held =
            json!([{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0, "resources": more}]);
        for (new, want) in [
            (changed("/metadata/labels", json!({"a": "b"})), false),
            (changed("/status/podIP", json!("10.0.0.1")), false),
            (changed("/status/phase", json!("Succeeded")), true),
            (changed("/spec/activeDeadlineSeconds", json!(5)), true),
            (changed("/spec/containers/0/resources", more.clone()), true),
            (changed("/status/containerStatuses", held), true),
        ] {
            assert_eq!(pod_frees(&old, &new), want, "{new:?}");
        }
    }
}
