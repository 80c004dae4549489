//! The garbage collector: objects whose owners have gone go too.
//!
//! In: the metadata of every served kind ([`source`]). Out: deletes, owner references taken off, and
//! the finalizers `orphan` and `foregroundDeletion` carried out. [`graph`] knows who owns whom and decides; this
//! file watches and applies.

pub mod graph;
mod source;

use crate::context::Context;
use crate::error::{Doing, Result, ignore_not_found};
use crate::queue::Queue;
use crate::resources::{Kind, discover};
use futures::StreamExt;
use graph::{Decision, FOREGROUND, Graph, Node, ORPHAN, Owner};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::runtime::watcher::Event;
use parking_lot::Mutex;
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How often new kinds are looked for when nothing says that there are any.
const DISCOVERY_PERIOD: Duration = Duration::from_secs(30);
/// How long the first lists may take before collecting begins without them.
const FIRST_LISTS: Duration = Duration::from_secs(30);

/// The collector.
pub struct Collector {
    context: Arc<Context>,
    graph: Mutex<Graph>,
    kinds: Mutex<HashMap<(String, String), Monitor>>,
    queue: Arc<Queue<String>>,
    rediscover: Notify,
}

struct Monitor {
    kind: Kind,
    stop: CancellationToken,
    listed: watch::Receiver<bool>,
}

impl Collector {
    /// The collector over `context`.
    pub fn new(context: Arc<Context>) -> Arc<Self> {
        Arc::new(Self {
            context,
            graph: Mutex::default(),
            kinds: Mutex::default(),
            queue: Queue::new(),
            rediscover: Notify::new(),
        })
    }

    /// Watches and collects until `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let tasks = TaskTracker::new();
        let (this, stop, tracker) = (self.clone(), shutdown.clone(), tasks.clone());
        tasks.spawn(async move { this.keep_monitors(&tracker, stop).await });
        tokio::select! {
            () = self.first_lists() => {}
            () = tokio::time::sleep(FIRST_LISTS) => tracing::warn!("collecting before all kinds are listed"),
            () = shutdown.cancelled() => {}
        }
        let this = self.clone();
        let reconcile = move |uid| this.clone().reconcile(uid);
        self.queue.clone().work("garbage-collector", 8, shutdown, reconcile).await;
        tasks.close();
        tasks.wait().await;
    }

    async fn first_lists(&self) {
        loop {
            let waiting: Vec<_> = self.kinds.lock().values().map(|m| m.listed.clone()).collect();
            if waiting.is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            for mut listed in waiting {
                // A monitor that has stopped has nothing to list.
                let _ = listed.wait_for(|yes| *yes).await;
            }
            return;
        }
    }

    /// One monitor for each kind that can be listed, watched and deleted.
    async fn keep_monitors(self: &Arc<Self>, tasks: &TaskTracker, shutdown: CancellationToken) {
        loop {
            let pause = match discover(&self.context.client).await {
                Ok(kinds) => {
                    self.set_monitors(kinds, tasks, &shutdown);
                    DISCOVERY_PERIOD
                }
                Err(error) => {
                    tracing::debug!(%error, "will try again");
                    Duration::from_secs(1)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.rediscover.notified() => tokio::time::sleep(Duration::from_millis(200)).await,
                () = shutdown.cancelled() => return,
            }
        }
    }

    fn set_monitors(self: &Arc<Self>, kinds: Vec<Kind>, tasks: &TaskTracker, shutdown: &CancellationToken) {
        let wanted: HashMap<_, _> = kinds
            .into_iter()
            .filter(|k| k.can("list") && k.can("watch") && k.can("delete") && k.resource.plural != "events")
            .map(|k| (k.id(), k))
            .collect();
        let mut monitors = self.kinds.lock();
        let gone: Vec<_> = monitors
            .iter()
            .filter(|(id, m)| wanted.get(*id).is_none_or(|k| k.resource.version != m.kind.resource.version))
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            if let Some(monitor) = monitors.remove(&id) {
                monitor.stop.cancel();
            }
            if !wanted.contains_key(&id) {
                let checks = self.graph.lock().retain_kind(&id, &HashSet::new());
                checks.into_iter().for_each(|uid| self.queue.add(uid));
            }
        }
        for (id, kind) in wanted {
            if monitors.contains_key(&id) {
                continue;
            }
            let stop = shutdown.child_token();
            let (sender, listed) = watch::channel(false);
            tasks.spawn(self.clone().monitor(Arc::new(kind.clone()), sender, stop.clone()));
            monitors.insert(id, Monitor { kind, stop, listed });
        }
    }

    async fn monitor(self: Arc<Self>, kind: Arc<Kind>, listed: watch::Sender<bool>, stop: CancellationToken) {
        let mut seen = HashSet::new();
        let is_definition = kind.resource.plural == "customresourcedefinitions";
        let open = || source::events(&self.context.client, &self.context.informers, &kind);
        let mut events = open();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = stop.cancelled() => return,
            };
            let checks = match event {
                None => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    events = open();
                    continue;
                }
                Some(Err(error)) => {
                    tracing::debug!(kind = %kind.resource.plural, %error, "watch interrupted");
                    continue;
                }
                Some(Ok(Event::Init)) => {
                    seen.clear();
                    continue;
                }
                Some(Ok(Event::InitApply(meta))) => {
                    seen.extend(meta.uid.clone());
                    self.put(&kind, meta)
                }
                Some(Ok(Event::InitDone)) => {
                    listed.send_replace(true);
                    self.graph.lock().retain_kind(&kind.id(), &std::mem::take(&mut seen))
                }
                Some(Ok(Event::Apply(meta))) => self.put(&kind, meta),
                Some(Ok(Event::Delete(meta))) => self.graph.lock().remove(meta.uid.as_deref().unwrap_or("")),
            };
            checks.into_iter().for_each(|uid| self.queue.add(uid));
            if is_definition {
                self.rediscover.notify_one();
            }
        }
    }

    fn put(&self, kind: &Arc<Kind>, meta: ObjectMeta) -> Vec<String> {
        let Some(uid) = meta.uid.clone() else { return Vec::new() };
        self.graph.lock().put(uid, Node::of(kind.clone(), meta))
    }

    async fn reconcile(self: Arc<Self>, uid: String) -> Result<Option<Duration>> {
        let Some((node, unknown)) = self.graph.lock().unknown_owners(&uid) else { return Ok(None) };
        let mut found = HashMap::new();
        for owner in unknown {
            match self.look_up(&node, &owner).await? {
                Some(state) => drop(found.insert(owner.uid.clone(), state)),
                // A kind that is not served (yet) says nothing about its objects.
                None => return Ok(Some(DISCOVERY_PERIOD)),
            }
        }
        let decision = self.graph.lock().decide(&uid, &found);
        match decision {
            Decision::Nothing => Ok(None),
            Decision::CheckDependents(uids) => {
                uids.into_iter().for_each(|uid| self.queue.add(uid));
                Ok(None)
            }
            Decision::Delete(policy) => self.delete(&uid, &node, policy).await,
            Decision::DropOwners(owners) => self.drop_owners(&uid, &node, &owners).await,
            Decision::Unblock(finalizer) => self.drop_finalizer(&uid, &node, finalizer).await,
            Decision::Orphan(dependents) => {
                for (dependent_uid, dependent) in dependents {
                    self.drop_owners(&dependent_uid, &dependent, std::slice::from_ref(&uid)).await?;
                }
                self.drop_finalizer(&uid, &node, ORPHAN).await
            }
        }
    }

    /// Asks the API about an owner that no watch has shown. `None`: its kind is not served.
    async fn look_up(&self, node: &Node, owner: &OwnerReference) -> Result<Option<Owner>> {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let kind = {
            let kinds = self.kinds.lock();
            let mut all = kinds.values().map(|m| &m.kind);
            all.find(|k| k.resource.group == group && k.resource.kind == owner.kind).cloned()
        };
        let Some(kind) = kind else { return Ok(None) };
        if kind.namespaced && node.namespace.is_empty() {
            return Ok(Some(Owner::Absent));
        }
        let api = self.api(&kind, &node.namespace);
        let there = api.get_metadata_opt(&owner.name).await;
        let there = there.doing(|| format!("look up owner {} {}", owner.kind, owner.name))?;
        Ok(Some(match there.filter(|o| o.metadata.uid.as_deref() == Some(&owner.uid)) {
            None => Owner::Absent,
            Some(o)
                if o.metadata.deletion_timestamp.is_some() && crate::meta::has_finalizer(&o.metadata, FOREGROUND) =>
            {
                Owner::Waiting
            }
            Some(_) => Owner::Solid,
        }))
    }

    fn api(&self, kind: &Kind, namespace: &str) -> Api<DynamicObject> {
        if kind.namespaced {
            Api::namespaced_with(self.context.client.clone(), namespace, &kind.resource)
        } else {
            Api::all_with(self.context.client.clone(), &kind.resource)
        }
    }

    async fn delete(&self, uid: &str, node: &Node, policy: PropagationPolicy) -> Result<Option<Duration>> {
        let parameters = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..DeleteParams::default()
        };
        let deleted = self.api(&node.kind, &node.namespace).delete(&node.name, &parameters).await;
        let deleted = deleted.doing(|| format!("collect {node}"));
        self.settle(uid, ignore_not_found(deleted).map(|d| d.is_some()))
    }

    async fn drop_owners(&self, uid: &str, node: &Node, owners: &[String]) -> Result<Option<Duration>> {
        let rest: Vec<_> = node.owners.iter().filter(|o| !owners.contains(&o.uid)).collect();
        let patch = json!({ "metadata": {
            "uid": uid,
            "resourceVersion": node.version,
            "ownerReferences": rest,
        }});
        let api = self.api(&node.kind, &node.namespace);
        let written = api.patch_metadata(&node.name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        let written = written.doing(|| format!("take owners off {node}"));
        self.settle(uid, ignore_not_found(written).map(|w| w.is_some()))
    }

    async fn drop_finalizer(&self, uid: &str, node: &Node, finalizer: &str) -> Result<Option<Duration>> {
        let rest: Vec<_> = node.finalizers.iter().filter(|f| *f != finalizer).collect();
        let patch = json!({ "metadata": {
            "uid": uid,
            "resourceVersion": node.version,
            "finalizers": rest,
        }});
        let api = self.api(&node.kind, &node.namespace);
        let written = api.patch_metadata(&node.name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        let written = written.doing(|| format!("take finalizer {finalizer} off {node}"));
        self.settle(uid, ignore_not_found(written).map(|w| w.is_some()))
    }

    /// An object that is not there although no watch said so is forgotten.
    fn settle(&self, uid: &str, there: Result<bool>) -> Result<Option<Duration>> {
        if !there? {
            let checks = self.graph.lock().remove(uid);
            checks.into_iter().for_each(|uid| self.queue.add(uid));
        }
        Ok(None)
    }
}
