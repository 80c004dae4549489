//! The controllers: one file each.
//!
//! In: the process' copies of the kinds ([`cache`]). Out: objects created, changed and deleted through the API.
//! Every controller is a queue of keys ([`queue`]) and a level-triggered reconcile; what it decides is in a pure
//! `plan`, what it does is next to it. [`run`] wires them all up and is the map of this crate.

pub mod bootstrap;
pub mod cache;
pub mod claim;
pub mod context;
pub mod csr;
pub mod daemonset;
pub mod deployment;
pub mod disruption;
pub mod endpoints;
pub mod endpointslice;
pub mod error;
pub mod fence;
pub mod garbage;
pub mod loadbalancer;
pub mod meta;
pub mod namespace;
pub mod node;
pub mod podgc;
pub mod pods;
pub mod queue;
pub mod replicaset;
pub mod resourcequota;
pub mod resources;
pub mod revision;
pub mod serviceaccount;
pub mod servicecidr;
pub mod statefulset;
pub mod taints;
#[cfg(test)]
mod testing;
pub mod volume;

use causeway_api::config::ClusterConfig;
use causeway_informers::Informers;
use context::{Caches, Context};
use error::Result;
use kube::Client;
use queue::{Queue, Work};
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What the controllers need to know.
#[derive(Debug, Clone)]
pub struct ControllersConfig {
    /// Ranges and names.
    pub cluster: ClusterConfig,
    /// The cluster's CA, as PEM: goes into the ConfigMap `kube-root-ca.crt` of every namespace.
    pub ca_pem: String,
    /// Where on the nodes the directories of local volumes are made.
    pub volume_directory: PathBuf,
    /// How long a node may be silent before it counts as unreachable. Default 40 s.
    pub node_grace: Duration,
    /// Finished pods that are kept. Default 12,500.
    pub finished_pods: usize,
    /// Names and addresses by which the API is reached, as in its own certificate: no node gets one for them.
    pub api_hosts: Vec<String>,
}

impl ControllersConfig {
    /// Defaults for all but what has none.
    pub fn new(cluster: ClusterConfig, ca_pem: String, volume_directory: PathBuf) -> Self {
        let node_grace = Duration::from_secs(cluster.node_monitor_grace_period_seconds.into());
        Self { cluster, ca_pem, volume_directory, node_grace, finished_pods: 12_500, api_hosts: Vec::new() }
    }
}

/// A future that says when what a controller reads is complete.
type Synced = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Waits for the named copies.
macro_rules! synced {
    ($context:expr, $($cache:ident),+) => {{
        let caches = $context.caches.clone();
        Box::pin(async move { $( caches.$cache.synced().await; )+ }) as Synced
    }};
}

struct Starter {
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Starter {
    /// Works a controller's queue once its copies are complete.
    fn start<T, F, Fut>(&self, name: &'static str, workers: usize, queue: Arc<Queue<T>>, synced: Synced, reconcile: F)
    where
        T: Work,
        F: Fn(T) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<Duration>>> + Send + 'static,
    {
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = synced => {}
                () = shutdown.cancelled() => return,
            }
            tracing::debug!(controller = name, "started");
            queue.work(name, workers, shutdown, reconcile).await;
        });
    }
}

/// A controller's reconcile as a function of its key.
macro_rules! reconcile {
    ($controller:expr) => {{
        let controller = $controller;
        move |key| controller.clone().reconcile(key)
    }};
}

/// Runs all controllers until `shutdown`.
///
/// `client` writes, and reads what is the controllers' alone (Secrets of tokens); `informers` are the process' copies.
pub async fn run(
    client: Client,
    informers: Informers,
    config: ControllersConfig,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let tasks = TaskTracker::new();
    let context = Arc::new(Context { client, informers, config, caches: Caches::new() });
    let starter = Starter { tasks: tasks.clone(), shutdown: shutdown.clone() };
    start_workloads(&context, &starter);
    start_network(&context, &starter);
    start_cluster(&context, &starter);
    // Handlers are all in place: no change is missed.
    context.watch(&tasks, &shutdown);
    tasks.close();
    shutdown.cancelled().await;
    tasks.wait().await;
    Ok(())
}

fn start_workloads(context: &Arc<Context>, starter: &Starter) {
    starter.start(
        "replicaset",
        5,
        replicaset::queue(context),
        synced!(context, replica_sets, pods),
        reconcile!(replicaset::ReplicaSets::new(context.clone())),
    );
    starter.start(
        "deployment",
        5,
        deployment::queue(context),
        synced!(context, deployments, replica_sets, pods),
        reconcile!(deployment::Deployments::new(context.clone())),
    );
    starter.start(
        "statefulset",
        5,
        statefulset::queue(context),
        synced!(context, stateful_sets, pods, revisions, claims),
        reconcile!(statefulset::StatefulSets::new(context.clone())),
    );
    starter.start(
        "daemonset",
        2,
        daemonset::queue(context),
        synced!(context, daemon_sets, pods, nodes, revisions),
        reconcile!(daemonset::DaemonSets::new(context.clone())),
    );
}

fn start_network(context: &Arc<Context>, starter: &Starter) {
    starter.start(
        "endpointslice",
        5,
        endpointslice::queue(context),
        synced!(context, services, pods, nodes, slices),
        reconcile!(endpointslice::Slices::new(context.clone())),
    );
    starter.start(
        "endpoint",
        5,
        endpoints::queue(context),
        synced!(context, services, pods, endpoints),
        reconcile!(endpoints::EndpointObjects::new(context.clone())),
    );
    starter.start(
        "servicecidr",
        1,
        servicecidr::queue(context),
        synced!(context, cidrs, addresses),
        reconcile!(servicecidr::ServiceCidrs::new(context.clone())),
    );
    // One worker: addresses are given out one after the other.
    starter.start(
        "loadbalancer",
        1,
        loadbalancer::queue(context),
        synced!(context, services, addresses),
        reconcile!(loadbalancer::LoadBalancers::new(context.clone())),
    );
}

fn start_cluster(context: &Arc<Context>, starter: &Starter) {
    starter.start(
        "namespace",
        3,
        namespace::queue(context),
        synced!(context, namespaces),
        reconcile!(namespace::Namespaces::new(context.clone())),
    );
    starter.start(
        "serviceaccount",
        2,
        serviceaccount::queue(context),
        synced!(context, namespaces, accounts, config_maps),
        reconcile!(serviceaccount::Accounts::new(context.clone())),
    );
    // One worker: ranges are given out one after the other.
    starter.start(
        "node",
        1,
        node::queue(context),
        synced!(context, nodes, leases, pods),
        reconcile!(node::Nodes::new(context.clone())),
    );
    starter.start(
        "taint-eviction",
        4,
        node::eviction_queue(context),
        synced!(context, nodes, pods),
        reconcile!(node::Evictions::new(context.clone())),
    );
    starter.start(
        "disruption",
        2,
        disruption::queue(context),
        synced!(context, budgets, pods, replica_sets, deployments, stateful_sets),
        reconcile!(disruption::Disruptions::new(context.clone())),
    );
    starter.start(
        "resourcequota",
        2,
        resourcequota::queue(context),
        synced!(context, quotas, pods),
        reconcile!(resourcequota::Quotas::new(context.clone())),
    );
    starter.start(
        "csr",
        1,
        csr::queue(context),
        synced!(context, requests, nodes, cidrs, endpoints),
        reconcile!(csr::Requests::new(context.clone())),
    );
    starter.tasks.spawn(bootstrap::run(context.clone(), starter.shutdown.clone()));
    let volumes = volume::Volumes::new(context.clone());
    starter.start(
        "persistentvolume",
        1,
        volume::queue(context),
        synced!(context, claims, volumes, classes, pods, nodes),
        reconcile!(volumes.clone()),
    );
    let shutdown = starter.shutdown.clone();
    starter.tasks.spawn(async move { install_class(&volumes, shutdown).await });
    let (gc, shutdown) = (context.clone(), starter.shutdown.clone());
    starter.tasks.spawn(async move {
        let (pods, nodes) = (gc.caches.pods.clone(), gc.caches.nodes.clone());
        tokio::select! {
            () = async { pods.synced().await; nodes.synced().await } => podgc::run(gc, shutdown).await,
            () = shutdown.cancelled() => {}
        }
    });
    starter.tasks.spawn(garbage::Collector::new(context.clone()).run(starter.shutdown.clone()));
}

/// Tries until the default StorageClass is there.
async fn install_class(volumes: &volume::Volumes, shutdown: CancellationToken) {
    let mut pause = Duration::from_millis(100);
    while let Err(error) = volumes.install_class().await {
        tracing::debug!(%error, "will try again");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => return,
        }
        pause = (pause * 2).min(Duration::from_secs(10));
    }
}
