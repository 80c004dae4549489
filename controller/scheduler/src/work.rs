//! The loop: wakes when anything it watches changes, looks at every pod that waits, places what can be placed.
//! Level-triggered: nothing is remembered but what was just bound (until the watch shows it) and what was last said
//! about a pod that cannot be placed.

use crate::pod::PodInfo;
use crate::snapshot::Snapshot;
use crate::volume::{self, Storage};
use crate::{bind, placement};
use causeway_api::events::{EventType, Recorder};
use causeway_api::identity::USER_SCHEDULER;
use causeway_api::pod as podutil;
use futures::{Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use std::collections::HashMap;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How the scheduler is set up.
#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    /// Pods that name this scheduler in `spec.schedulerName` are ours. Default `default-scheduler`.
    pub name: String,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self { name: "default-scheduler".to_owned() }
    }
}

/// A binding that failed is tried again after this, doubled each time up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// What was bound but never shows in the watch is forgotten after this.
const ASSUMED_FOR: Duration = Duration::from_secs(30);
/// Without any change, waiting pods are looked at this often.
const RESYNC: Duration = Duration::from_secs(30);

/// Runs the scheduler until `shutdown`.
pub async fn run(client: Client, config: SchedulerConfig, shutdown: CancellationToken) -> anyhow::Result<()> {
    let wake = Arc::new(Notify::new());
    let views = Views::start(&client, &wake, &shutdown);
    let mut scheduler = Scheduler {
        recorder: Recorder::new(client.clone(), &config.name, None),
        client,
        config,
        views,
        assumed: HashMap::new(),
        said: HashMap::new(),
        retry: HashMap::new(),
    };
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        ready = scheduler.views.ready() => ready?,
    }
    tracing::info!(user = USER_SCHEDULER, "scheduler is ready");
    loop {
        let next = scheduler.pass().await;
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = wake.notified() => {}
            () = tokio::time::sleep(next) => {}
        }
    }
}

/// Local copies of everything a decision needs.
struct Views {
    pods: Store<Pod>,
    nodes: Store<Node>,
    claims: Store<PersistentVolumeClaim>,
    volumes: Store<PersistentVolume>,
    classes: Store<StorageClass>,
}

impl Views {
    fn start(client: &Client, wake: &Arc<Notify>, shutdown: &CancellationToken) -> Self {
        Self {
            pods: view(Api::all(client.clone()), wake, shutdown),
            nodes: view(Api::all(client.clone()), wake, shutdown),
            claims: view(Api::all(client.clone()), wake, shutdown),
            volumes: view(Api::all(client.clone()), wake, shutdown),
            classes: view(Api::all(client.clone()), wake, shutdown),
        }
    }

    async fn ready(&self) -> anyhow::Result<()> {
        self.pods.wait_until_ready().await?;
        self.nodes.wait_until_ready().await?;
        self.claims.wait_until_ready().await?;
        self.volumes.wait_until_ready().await?;
        self.classes.wait_until_ready().await?;
        Ok(())
    }
}

impl Storage for Views {
    fn claim(&self, namespace: &str, name: &str) -> Option<PersistentVolumeClaim> {
        get_namespaced(&self.claims, namespace, name)
    }

    fn volume(&self, name: &str) -> Option<PersistentVolume> {
        self.volumes.get(&ObjectRef::new(name)).map(|v| (*v).clone())
    }

    fn class(&self, name: &str) -> Option<StorageClass> {
        self.classes.get(&ObjectRef::new(name)).map(|c| (*c).clone())
    }
}

fn get_namespaced<K>(store: &Store<K>, namespace: &str, name: &str) -> Option<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + 'static,
{
    store.get(&ObjectRef::new(name).within(namespace)).map(|k| (*k).clone())
}

/// A reflector that wakes the loop at every change and backs off when the API is gone.
fn view<K>(api: Api<K>, wake: &Arc<Notify>, shutdown: &CancellationToken) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Hash + Eq,
{
    let (store, writer) = reflector::store();
    let (wake, shutdown) = (wake.clone(), shutdown.clone());
    let stream = reflector::reflector(writer, causeway_api::watch::watch(api, watcher::Config::default()));
    tokio::spawn(async move {
        let mut stream: Pin<Box<dyn Stream<Item = _> + Send>> = Box::pin(stream.take_until(shutdown.cancelled_owned()));
        while let Some(event) = stream.next().await {
            match event {
                Ok(_) => wake.notify_one(),
                Err(error) => tracing::debug!(%error, kind = %K::kind(&()), "watch interrupted"),
            }
        }
    });
    store
}

struct Scheduler {
    client: Client,
    config: SchedulerConfig,
    recorder: Recorder,
    views: Views,
    /// Bound by us, not yet seen in the watch: uid → node, pod, when.
    assumed: HashMap<String, (String, Arc<PodInfo>, Instant)>,
    /// What was last said about a pod that cannot be placed.
    said: HashMap<String, String>,
    /// Not before this, and the next delay.
    retry: HashMap<String, (Instant, Duration)>,
}

impl Scheduler {
    /// Looks at every waiting pod once; returns how long nothing is to do unless something changes.
    async fn pass(&mut self) -> Duration {
        let pods = self.views.pods.state();
        let mut waiting: Vec<&Arc<Pod>> = pods.iter().filter(|p| self.is_ours(p)).collect();
        self.forget(&pods);
        if waiting.is_empty() {
            return RESYNC;
        }
        waiting.sort_by_key(|p| {
            let priority = p.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
            let created = p.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (std::cmp::Reverse(priority), created, p.metadata.name.clone())
        });
        let mut snapshot = self.snapshot(&pods);
        let mut next = RESYNC;
        for pod in waiting {
            let info = Arc::new(PodInfo::new(pod));
            if self.assumed.contains_key(&info.uid) {
                continue;
            }
            if let Some((not_before, _)) = self.retry.get(&info.uid) {
                let wait = not_before.saturating_duration_since(Instant::now());
                if !wait.is_zero() {
                    next = next.min(wait);
                    continue;
                }
            }
            self.place(pod, info, &mut snapshot).await;
        }
        let retries = self.retry.values().map(|(at, _)| at.saturating_duration_since(Instant::now()));
        retries.min().unwrap_or(next).min(next).max(Duration::from_millis(10))
    }

    fn is_ours(&self, pod: &Pod) -> bool {
        let Some(spec) = &pod.spec else { return false };
        let unplaced = spec.node_name.as_deref().unwrap_or("").is_empty();
        let named = spec.scheduler_name.as_deref().unwrap_or("default-scheduler") == self.config.name;
        unplaced && named && podutil::is_active(pod)
    }

    /// Drops what no longer concerns us.
    fn forget(&mut self, pods: &[Arc<Pod>]) {
        let by_uid: HashMap<&str, &Arc<Pod>> =
            pods.iter().filter_map(|p| Some((p.metadata.uid.as_deref()?, p))).collect();
        let waits = |uid: &String| {
            let pod = by_uid.get(uid.as_str());
            pod.is_some_and(|p| p.spec.as_ref().is_some_and(|s| s.node_name.is_none()))
        };
        self.assumed.retain(|uid, (_, _, since)| waits(uid) && since.elapsed() < ASSUMED_FOR);
        self.said.retain(|uid, _| waits(uid));
        self.retry.retain(|uid, _| waits(uid));
    }

    fn snapshot(&self, pods: &[Arc<Pod>]) -> Snapshot {
        let nodes = self.views.nodes.state();
        let placed = pods.iter().filter(|p| !podutil::is_finished(p)).filter_map(|p| {
            let node = p.spec.as_ref()?.node_name.clone()?;
            Some((node, Arc::new(PodInfo::new(p))))
        });
        let assumed = self.assumed.values().map(|(node, pod, _)| (node.clone(), pod.clone()));
        Snapshot::new(nodes.iter().map(AsRef::as_ref), placed.chain(assumed))
    }

    async fn place(&mut self, pod: &Arc<Pod>, info: Arc<PodInfo>, snapshot: &mut Snapshot) {
        if info.spec.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty()) {
            let message = "Scheduling is blocked due to non-empty scheduling gates";
            return self.refuse(pod, &info, "SchedulingGated", message).await;
        }
        let chosen = match volume::of_pod(&info, &self.views) {
            Err(message) => {
                let n = snapshot.nodes.len();
                let message = format!(
                    "0/{n} nodes are available: {message}. preemption: 0/{n} nodes are available: {n} Preemption is not helpful for scheduling."
                );
                return self.refuse(pod, &info, "Unschedulable", &message).await;
            }
            Ok(volumes) => {
                placement::choose(&info, snapshot, &volumes, rand::random::<u16>().into()).map(|n| (n, volumes))
            }
        };
        match chosen {
            Err(why) => self.refuse(pod, &info, "Unschedulable", &why.0).await,
            Ok((node, volumes)) if !volumes.waiting.is_empty() => {
                // The claims' binding will wake us again; until then the room is kept.
                snapshot.place(&node, info.clone());
                if let Err(error) = bind::select_node(&self.client, &info, &volumes.waiting, &node).await {
                    self.try_later(&info, &error);
                }
            }
            Ok((node, _)) => {
                snapshot.place(&node, info.clone());
                match bind::bind(&self.client, &info, &node).await {
                    Err(error) => self.try_later(&info, &error),
                    Ok(()) => {
                        let text = format!("Successfully assigned {}/{} to {node}", info.namespace, info.name);
                        self.recorder.record(pod.as_ref(), EventType::Normal, "Scheduled", text);
                        self.assumed.insert(info.uid.clone(), (node, info, Instant::now()));
                    }
                }
            }
        }
    }

    async fn refuse(&mut self, pod: &Arc<Pod>, info: &PodInfo, reason: &str, message: &str) {
        if self.said.get(&info.uid).is_some_and(|m| m == message) {
            return;
        }
        match bind::mark_unschedulable(&self.client, info, reason, message).await {
            Err(error) => self.try_later(info, &error),
            Ok(()) => {
                if reason == "Unschedulable" {
                    self.recorder.record(pod.as_ref(), EventType::Warning, "FailedScheduling", message);
                }
                self.said.insert(info.uid.clone(), message.to_owned());
            }
        }
    }

    fn try_later(&mut self, info: &PodInfo, error: &kube::Error) {
        // Gone or changed under us: the watch tells, nothing to wait for.
        let expected = matches!(error, kube::Error::Api(s) if s.code == 404 || s.code == 409);
        if !expected {
            tracing::warn!(%error, pod = %info.name, namespace = %info.namespace, "not placed; trying again");
        }
        let delay = self.retry.get(&info.uid).map_or(RETRY_MIN, |(_, d)| (*d * 2).min(RETRY_MAX));
        self.retry.insert(info.uid.clone(), (Instant::now() + delay, delay));
    }
}
