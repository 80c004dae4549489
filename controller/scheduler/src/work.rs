//! The loop: takes over what the watches say, and places one pod after another. What is to be written (bindings, conditions,
//! the node chosen for claims) is written by tasks, a bounded number at a time, while the next pods are placed.

use crate::cluster::Cluster;
use crate::pod::PodInfo;
use crate::volume::{self, Storage};
use crate::{bind, placement};
use anyhow::Context;
use causeway_api::events::{EventType, Recorder};
use causeway_api::identity::USER_SCHEDULER;
use causeway_informers::{Informer, Informers, Kind};
use futures::stream::{BoxStream, Stream, StreamExt};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Client;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
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

/// So many decisions are being written at a time.
const WRITERS: usize = 32;
/// So many events are taken over in one go.
const BATCH: usize = 1024;
/// Without any change, pods that wait are looked at this often.
const RESYNC: Duration = Duration::from_secs(30);

/// Only a panic ends a watch: all begins anew then.
const ENDED: &str = "a watch of the scheduler ended";

/// Runs the scheduler until `shutdown`.
///
/// `client` writes under the scheduler's own name; what it knows comes from the process' copies.
pub async fn run(
    client: Client,
    informers: Informers,
    config: SchedulerConfig,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let storage = Views::new(&informers);
    let mut stored = storage.changes().ready_chunks(BATCH);
    let mut pods = informers.pods().subscribe().ready_chunks(BATCH);
    let mut nodes = informers.nodes().subscribe().ready_chunks(BATCH);
    let scheduler = Scheduler { recorder: Recorder::new(client.clone(), &config.name, None), client };
    let mut cluster = Cluster::new(&config.name);
    let mut writers: JoinSet<Written> = JoinSet::new();
    let mut refused = None;
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        synced = storage.synced() => synced?,
    }
    let mut resync = tokio::time::interval(RESYNC);
    resync.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut ready = false;
    loop {
        if !ready && cluster.is_complete() {
            ready = true;
            tracing::info!(user = USER_SCHEDULER, "scheduler is ready");
        }
        let now = Instant::now();
        let free = ready && writers.len() < WRITERS;
        let work = free && cluster.has_next(now);
        let alarm = cluster.wakes_at().filter(|_| free).map_or(RESYNC, |at| at.saturating_duration_since(now));
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Some(written) = writers.join_next() => match written {
                Ok(Written { pod, error: None }) => cluster.written(&pod.uid),
                Ok(Written { pod, error: Some(error) }) => {
                    told(&pod, &error);
                    cluster.retry(&pod.uid, Instant::now());
                }
                Err(error) => tracing::error!(%error, "a decision of the scheduler was not written"),
            },
            events = pods.next() => events.context(ENDED)?.into_iter().for_each(|event| cluster.take_pod(event)),
            events = nodes.next() => events.context(ENDED)?.into_iter().for_each(|event| cluster.take_node(event)),
            changes = stored.next() => {
                changes.context(ENDED)?;
                refused = None;
                cluster.storage_changed();
            }
            // One pod, then what has been heard meanwhile: neither is kept from its turn by the other.
            () = std::future::ready(()), if work => {
                if let Some(pod) = cluster.take_next() {
                    scheduler.place(pod, &mut cluster, &storage, &mut refused, &mut writers);
                }
                tokio::task::yield_now().await;
            }
            () = tokio::time::sleep(alarm), if !work => {}
            _ = resync.tick() => cluster.look_around(),
        }
    }
}

fn told(pod: &PodInfo, error: &kube::Error) {
    // Gone or changed under us: the watch tells.
    let expected = matches!(error, kube::Error::Api(s) if s.code == 404 || s.code == 409);
    if !expected {
        tracing::warn!(%error, pod = %pod.name, namespace = %pod.namespace, "not placed; trying again");
    }
}

/// What became of writing a decision.
struct Written {
    pod: Arc<PodInfo>,
    error: Option<kube::Error>,
}

/// Starts to write what was decided on a pod; the outcome comes out of `writers`.
fn write<W, F>(cluster: &mut Cluster, writers: &mut JoinSet<Written>, pod: Arc<PodInfo>, work: W)
where
    W: FnOnce(Arc<PodInfo>) -> F,
    F: Future<Output = Result<(), kube::Error>> + Send + 'static,
{
    cluster.writing(&pod.uid);
    let work = work(pod.clone());
    writers.spawn(async move { Written { error: work.await.err(), pod } });
}

/// There was no node for a pod, as the picture was.
struct Refused {
    pod: Arc<PodInfo>,
    version: u64,
    message: String,
}

/// Local copies of what claims need.
struct Views {
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
}

impl Views {
    fn new(informers: &Informers) -> Self {
        Self { claims: informers.all(), volumes: informers.all(), classes: informers.all() }
    }

    /// Something, whenever any of them has changed.
    fn changes(&self) -> impl Stream<Item = ()> + Unpin + use<> {
        fn changes<K: Kind>(copy: &Informer<K>) -> BoxStream<'static, ()> {
            copy.subscribe().map(drop).boxed()
        }
        futures::stream::select_all([changes(&self.claims), changes(&self.volumes), changes(&self.classes)])
    }

    async fn synced(&self) -> anyhow::Result<()> {
        let all = self.claims.synced().await && self.volumes.synced().await && self.classes.synced().await;
        anyhow::ensure!(all, "a watch of the scheduler ended");
        Ok(())
    }
}

impl Storage for Views {
    fn claim(&self, namespace: &str, name: &str) -> Option<PersistentVolumeClaim> {
        self.claims.get(namespace, name).map(|c| (*c).clone())
    }

    fn volume(&self, name: &str) -> Option<PersistentVolume> {
        self.volumes.get("", name).map(|v| (*v).clone())
    }

    fn class(&self, name: &str) -> Option<StorageClass> {
        self.classes.get("", name).map(|c| (*c).clone())
    }
}

struct Scheduler {
    client: Client,
    recorder: Recorder,
}

impl Scheduler {
    fn place(
        &self,
        pod: Arc<PodInfo>,
        cluster: &mut Cluster,
        storage: &Views,
        refused: &mut Option<Refused>,
        writers: &mut JoinSet<Written>,
    ) {
        if pod.gated {
            let message = "Scheduling is blocked due to non-empty scheduling gates";
            return self.refuse(pod, "SchedulingGated", message, cluster, writers);
        }
        let volumes = match volume::of_pod(&pod, storage) {
            Err(message) => {
                let n = cluster.snapshot().nodes.len();
                let message = format!(
                    "0/{n} nodes are available: {message}. preemption: 0/{n} nodes are available: {n} Preemption is not helpful for scheduling."
                );
                return self.refuse(pod, "Unschedulable", &message, cluster, writers);
            }
            Ok(volumes) => volumes,
        };
        // Its claims may have been told of a node that the local copies do not show yet.
        let volumes = match cluster.held_on(&pod.uid) {
            Some(node) => volumes.keep_to(node),
            None => volumes,
        };
        let version = cluster.snapshot().version();
        if let Some(last) = refused.as_ref().filter(|r| r.version == version && r.pod.wants_as(&pod)) {
            return self.refuse(pod, "Unschedulable", &last.message, cluster, writers);
        }
        let node = match placement::choose(&pod, cluster.snapshot(), &volumes, rand::random::<u16>().into()) {
            Err(why) => {
                self.refuse(pod.clone(), "Unschedulable", &why.0, cluster, writers);
                *refused = Some(Refused { pod, version, message: why.0 });
                return;
            }
            Ok(node) => node,
        };
        let now = Instant::now();
        let client = self.client.clone();
        if !volumes.waiting {
            cluster.assume(&pod.uid, &node, now);
            let recorder = self.recorder.clone();
            write(cluster, writers, pod, |pod| async move {
                bind::bind(&client, &pod, &node).await?;
                let text = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
                recorder.record_ref(pod.reference(), EventType::Normal, "Scheduled", text);
                Ok(())
            });
        } else {
            // The claims' binding will wake us again; until then the room is kept.
            cluster.hold(&pod.uid, &node, now);
            if volumes.unselected.is_empty() {
                return;
            }
            write(cluster, writers, pod, |pod| async move {
                bind::select_node(&client, &pod, &volumes.unselected, &node).await
            });
        }
    }

    fn refuse(
        &self,
        pod: Arc<PodInfo>,
        reason: &'static str,
        message: &str,
        cluster: &mut Cluster,
        writers: &mut JoinSet<Written>,
    ) {
        if !cluster.park(&pod.uid, message, Instant::now()) {
            return;
        }
        let (client, recorder, message) = (self.client.clone(), self.recorder.clone(), message.to_owned());
        write(cluster, writers, pod, |pod| async move {
            bind::mark_unschedulable(&client, &pod, reason, &message).await?;
            if reason == "Unschedulable" {
                recorder.record_ref(pod.reference(), EventType::Warning, "FailedScheduling", message);
            }
            Ok(())
        });
    }
}
