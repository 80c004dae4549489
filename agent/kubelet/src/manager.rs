//! The node's pods: one worker each. In: the API's pods bound to this node, and the runtime's containers. Out: workers
//! that know of every change; orphans (containers whose pod the API no longer has) get one too, which removes them.

use crate::admission::{self, Room};
use crate::context::Context;
use crate::inbox::Inbox;
use crate::names;
use crate::observe::Snapshot;
use crate::pods::Pods;
use crate::worker::Worker;
use anyhow::Context as _;
use causeway_api::events::EventType;
use causeway_runtime::ContainerState;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::Event;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The runtime is listed this often even when it reports nothing.
const RELIST: Duration = Duration::from_secs(10);
/// How often leftovers without a pod are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(60);

struct Entry {
    inbox: Arc<Inbox>,
    pod: Arc<Pod>,
    refused: bool,
    orphan: bool,
}

struct Manager {
    ctx: Arc<Context>,
    pods: Arc<Pods>,
    entries: HashMap<String, Entry>,
    workers: JoinSet<String>,
    synced: bool,
}

/// Runs all workers until shutdown; containers go on running after it.
pub async fn run(ctx: Arc<Context>, pods: Arc<Pods>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut events = ctx.informers.pods_of(&ctx.config.node_name).subscribe();
    let (changed_tx, mut changed) = mpsc::channel(1);
    let pulse = tokio::spawn(pulse(ctx.clone(), changed_tx, shutdown.clone()));
    let mut m = Manager { ctx, pods, entries: HashMap::new(), workers: JoinSet::new(), synced: false };
    let mut listed: Vec<Arc<Pod>> = Vec::new();
    let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            event = events.next() => match event.context("the watch of this node's pods ended")? {
                Event::Init => listed.clear(),
                Event::InitApply(pod) => listed.push(pod),
                Event::InitDone => m.listed(std::mem::take(&mut listed)).await,
                Event::Apply(pod) => m.seen(pod),
                Event::Delete(pod) => m.vanished(pod.metadata.uid.as_deref().unwrap_or("")),
            },
            Some((snapshot, uids)) = changed.recv() => m.looked(&snapshot, &uids),
            Some(done) = m.workers.join_next() => m.finished(done),
            _ = housekeeping.tick(), if m.synced => m.housekeep().await,
        }
    }
    pulse.abort();
    Ok(())
}

impl Manager {
    /// A complete list: what is missing from it is gone.
    async fn listed(&mut self, mut all: Vec<Arc<Pod>>) {
        let uids: BTreeSet<String> = all.iter().filter_map(|p| p.metadata.uid.clone()).collect();
        let gone: Vec<String> =
            self.entries.iter().filter(|(uid, e)| !e.orphan && !uids.contains(*uid)).map(|(u, _)| u.clone()).collect();
        for uid in gone {
            self.vanished(&uid);
        }
        // Pods that this node took before come first, then the oldest: admission must not depend on the list's order.
        let taken = |p: &Arc<Pod>| p.status.as_ref().is_some_and(|s| s.start_time.is_some());
        all.sort_by_key(|p| (!taken(p), p.metadata.creation_timestamp.clone().map(|t| t.0)));
        for pod in all {
            self.seen(pod);
        }
        self.synced = true;
        self.housekeep().await;
    }

    fn seen(&mut self, pod: Arc<Pod>) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        self.pods.put(pod.clone());
        if let Some(entry) = self.entries.get_mut(&uid) {
            entry.pod = pod.clone();
            entry.inbox.pod(pod);
            return;
        }
        let failure = self.admit(&pod);
        if let Some(f) = &failure {
            self.ctx.pod_event(&pod, EventType::Warning, &f.reason, f.message.clone());
        }
        self.spawn(uid, pod, failure, false);
    }

    fn admit(&self, pod: &Pod) -> Option<crate::model::Failure> {
        let taken = pod.status.as_ref().is_some_and(|s| s.start_time.is_some());
        if taken || causeway_api::pod::is_terminating(pod) || causeway_api::pod::is_finished(pod) {
            return None;
        }
        let active = |e: &&Entry| !e.refused && !e.orphan && !causeway_api::pod::is_finished(&e.pod);
        let others: Vec<&Pod> = self.entries.values().filter(active).map(|e| &*e.pod).collect();
        let (cpu_milli, memory_bytes) = self.ctx.allocatable;
        let room =
            Room { cpu_milli, memory_bytes, pods: usize::try_from(self.ctx.config.max_pods).unwrap_or(usize::MAX) };
        let node = self.ctx.node.borrow().clone();
        admission::admit(pod, &others, room, node.as_deref()).err()
    }

    fn spawn(&mut self, uid: String, pod: Arc<Pod>, failure: Option<crate::model::Failure>, orphan: bool) {
        let inbox = Arc::new(Inbox::default());
        let refused = failure.is_some();
        let worker = Worker::new(self.ctx.clone(), inbox.clone(), pod.clone(), failure, orphan);
        self.entries.insert(uid.clone(), Entry { inbox, pod, refused, orphan });
        self.workers.spawn(async move {
            worker.run().await;
            uid
        });
    }

    fn vanished(&mut self, uid: &str) {
        if let Some(entry) = self.entries.get(uid) {
            self.pods.remove(&entry.pod);
            entry.inbox.vanish();
        }
    }

    fn finished(&mut self, done: Result<String, tokio::task::JoinError>) {
        match done {
            Ok(uid) => {
                self.entries.remove(&uid);
            }
            Err(error) => {
                // A defect of ours must not take the pod with it: those without a worker get a new one.
                tracing::error!(%error, "a pod's worker broke; it is started again");
                let alone = |e: &Entry| Arc::strong_count(&e.inbox) == 1;
                let broken: Vec<String> =
                    self.entries.iter().filter(|(_, e)| alone(e)).map(|(uid, _)| uid.clone()).collect();
                for uid in broken {
                    if let Some(entry) = self.entries.remove(&uid) {
                        self.spawn(uid, entry.pod, None, entry.orphan);
                    }
                }
            }
        }
    }

    fn looked(&mut self, snapshot: &Snapshot, uids: &[String]) {
        for uid in uids {
            if let Some(entry) = self.entries.get(uid) {
                entry.inbox.look();
            }
        }
        let running = |c: &&causeway_runtime::ContainerInfo| matches!(c.state, ContainerState::Running { .. });
        let count = snapshot.values().flatten().filter(running).count();
        self.ctx.metrics.running_containers.store(i64::try_from(count).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Finds containers, folders and networks of pods that the API does not have, and has them removed.
    async fn housekeep(&mut self) {
        let mut orphans: HashMap<String, Pod> = HashMap::new();
        if let Ok(snapshot) = self.ctx.observer.fresh().await {
            for (uid, infos) in snapshot.iter() {
                if let Some(info) = infos.first() {
                    let name = names::label(info, names::POD_NAME);
                    orphans.insert(uid.clone(), stand_in(uid, names::label(info, names::POD_NAMESPACE), name));
                }
            }
        }
        for entry in std::fs::read_dir(self.ctx.config.dir.join("pods")).into_iter().flatten().flatten() {
            let uid = entry.file_name().to_string_lossy().into_owned();
            orphans.entry(uid.clone()).or_insert_with(|| stand_in(&uid, "", ""));
        }
        let network = self.ctx.network.borrow().clone();
        if let Some(network) = network
            && let Ok(all) = network.pods().await
        {
            for (uid, _) in all {
                orphans.entry(uid.clone()).or_insert_with(|| stand_in(&uid, "", ""));
            }
        }
        for entry in std::fs::read_dir(self.ctx.config.dir.join("logs/pods")).into_iter().flatten().flatten() {
            let folder = entry.file_name().to_string_lossy().into_owned();
            if let [namespace, name, uid] = folder.split('_').collect::<Vec<_>>()[..] {
                let stand_in = stand_in(uid, namespace, name);
                orphans.insert(uid.to_owned(), stand_in);
            }
        }
        for (uid, pod) in orphans {
            if !self.entries.contains_key(&uid) {
                tracing::info!(uid, "removing what is left of a pod that is gone");
                self.spawn(uid, Arc::new(pod), None, true);
            }
        }
    }
}

/// A pod of which only the traces on this node are known.
fn stand_in(uid: &str, namespace: &str, name: &str) -> Pod {
    Pod {
        metadata: ObjectMeta {
            uid: Some(uid.to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec::default()),
        status: None,
    }
}

/// Watches the runtime and says which pods' containers have changed.
async fn pulse(ctx: Arc<Context>, changed: mpsc::Sender<(Snapshot, Vec<String>)>, shutdown: CancellationToken) {
    let mut before = Snapshot::default();
    while !shutdown.is_cancelled() {
        let mut events = match ctx.runtime.events().await {
            Ok(events) => events,
            Err(error) => {
                tracing::warn!(%error, "no events from the container runtime");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        loop {
            let live = tokio::select! {
                event = events.next() => event.is_some(),
                () = tokio::time::sleep(RELIST) => true,
                () = shutdown.cancelled() => return,
            };
            let Ok(now) = ctx.observer.fresh().await else { break };
            let differs = |uid: &&String| state(now.get(*uid)) != state(before.get(*uid));
            let all: BTreeSet<&String> = now.keys().chain(before.keys()).collect();
            let uids: Vec<String> = all.into_iter().filter(differs).cloned().collect();
            before = now.clone();
            if changed.send((now, uids)).await.is_err() {
                return;
            }
            if !live {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn state(infos: Option<&Vec<causeway_runtime::ContainerInfo>>) -> Vec<(&str, &ContainerState)> {
    let mut all: Vec<_> = infos.into_iter().flatten().map(|i| (i.id.as_str(), &i.state)).collect();
    all.sort_by_key(|(id, _)| *id);
    all
}
