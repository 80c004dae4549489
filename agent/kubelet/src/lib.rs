//! The kubelet: pods from the API to running containers and back to status.
//!
//! In: pods bound to this node, from the API. Out: containers through [`causeway_runtime::Runtime`], their network
//! through [`causeway_network::PodNetwork`], and the node's and pods' status, conditions, events and lease back.
//!
//! A pod is one worker ([`worker`]): it looks at the runtime ([`observe`] → [`model`]), decides ([`plan`], pure),
//! reports ([`status`], pure) and starts what has to be done ([`operations`]). Everything is level-triggered, so a
//! restarted kubelet finds its pods again by their containers' labels.

pub mod admission;
pub mod backoff;
mod cgroups;
mod config;
pub mod container;
mod context;
pub mod downward;
pub mod env;
pub mod files;
mod grpc;
mod hooks;
mod images;
mod inbox;
mod logs;
mod manager;
mod metrics;
pub mod model;
pub mod names;
mod net;
mod node;
mod objects;
mod observe;
mod operations;
pub mod plan;
mod pods;
mod probe;
mod publish;
pub mod resources;
mod server;
#[cfg(test)]
mod simulation;
pub mod status;
mod volumes;
mod worker;

pub use config::{KubeletConfig, NodeCapacity};
pub use volumes::host::unmount_below;

use crate::context::Context as Shared;
use anyhow::Context;
use causeway_api::events::Recorder;
use causeway_informers::Informers;
use causeway_network::PodNetwork;
use causeway_runtime::Runtime;
use futures::future::BoxFuture;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Runs a kubelet until shutdown; containers go on running after it.
///
/// `network` makes the pod network once the node has its pod CIDRs (`Node.spec.podCIDRs`); until then the node says
/// `Ready=False`. A kubelet that begins anew leaves what the node said before while it looks around. Fails when the
/// configuration cannot work or the network cannot be made.
///
/// `client` writes, and reads what is this node's alone; `informers` are the copies that the node's components share.
pub async fn run<F>(
    client: Client,
    informers: Informers,
    config: KubeletConfig,
    runtime: Arc<dyn Runtime>,
    network: F,
    shutdown: CancellationToken,
) -> anyhow::Result<()>
where
    F: FnOnce(Vec<IpNet>) -> BoxFuture<'static, anyhow::Result<Arc<dyn PodNetwork>>> + Send + 'static,
{
    std::fs::create_dir_all(config.dir.join("pods"))
        .with_context(|| format!("making the kubelet's folder {}", config.dir.display()))?;
    let stop = shutdown.child_token();
    let _guard = stop.clone().drop_guard();
    let capacity = node::facts::capacity(&config);
    let allocatable = (
        i64::try_from(capacity.cpu_milli).unwrap_or(i64::MAX),
        i64::try_from(capacity.memory_bytes).unwrap_or(i64::MAX),
    );
    let (network_tx, network_rx) = watch::channel(None);
    let (node_tx, node_rx) = watch::channel(None);
    let (state_tx, state_rx) = watch::channel(node::Network::Opening);
    let name = config.node_name.clone();
    let shared = Arc::new(Shared {
        observer: observe::Observer::new(runtime.clone()),
        recorder: Recorder::new(client.clone(), "kubelet", Some(&name)),
        images: images::Images::default(),
        objects: Arc::new(objects::Objects::new(client.clone())),
        volumes: volumes::Volumes::new(client.clone()),
        metrics: metrics::Metrics::default(),
        network: network_rx,
        node: node_rx.clone(),
        client: client.clone(),
        config,
        runtime,
        services: informers.services(),
        informers,
        allocatable,
    });
    let pods = Arc::new(pods::Pods::default());
    let keeper = node::Keeper { client: client.clone(), shared: shared.clone(), capacity, network: state_rx };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(ok(keeper.run(stop.clone())));
    let grace = shared.config.cluster.node_monitor_grace_period_seconds;
    tasks.spawn(ok(node::keep_lease(client.clone(), name.clone(), grace, node_rx.clone(), stop.clone())));
    tasks.spawn(node::follow(shared.informers.nodes(), name.clone(), node_tx, stop.clone()));
    tasks.spawn(ok(volumes::local_path::run(client, name, stop.clone())));
    tasks.spawn(server::run(shared.clone(), pods.clone(), stop.clone()));
    tasks.spawn(make_network(node_rx, network, network_tx, state_tx, stop.clone()));
    tasks.spawn(start_pods(shared, pods, stop.clone()));
    while let Some(done) = tasks.join_next().await {
        done.context("a part of the kubelet broke")??;
    }
    Ok(())
}

async fn ok(work: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
    work.await;
    Ok(())
}

/// Pods start when the services are known, since their environment names them.
async fn start_pods(shared: Arc<Shared>, pods: Arc<pods::Pods>, stop: CancellationToken) -> anyhow::Result<()> {
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        synced = shared.services.synced() => anyhow::ensure!(synced, "the watch of Services ended"),
    }
    // Leftovers and pods alike need the network to be known; a pod of the host's network does not, but waits with them
    // only for a moment.
    let mut network = shared.network.clone();
    let wait = network.wait_for(Option::is_some);
    let _ = tokio::time::timeout(std::time::Duration::from_secs(3), wait).await;
    manager::run(shared, pods, stop).await
}

/// Makes the pod network once the node has its pod CIDRs.
async fn make_network<F>(
    mut node: watch::Receiver<Option<Arc<Node>>>,
    network: F,
    made: watch::Sender<Option<Arc<dyn PodNetwork>>>,
    state: watch::Sender<node::Network>,
    stop: CancellationToken,
) -> anyhow::Result<()>
where
    F: FnOnce(Vec<IpNet>) -> BoxFuture<'static, anyhow::Result<Arc<dyn PodNetwork>>> + Send + 'static,
{
    let cidrs = loop {
        let cidrs = node.borrow_and_update().as_deref().map(pod_cidrs);
        match cidrs {
            Some(cidrs) if !cidrs.is_empty() => break cidrs,
            Some(_) => drop(state.send_replace(node::Network::NotReady("the node has no pod CIDR yet".to_owned()))),
            None => {}
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = node.changed() => changed.context("following this node")?,
        }
    };
    match network(cidrs.clone()).await {
        Ok(network) => {
            made.send_replace(Some(network));
            state.send_replace(node::Network::Ready);
        }
        Err(error) => {
            state.send_replace(node::Network::NotReady(format!("{error:#}")));
            // The node says so before all of the kubelet ends.
            let _ = tokio::time::timeout(std::time::Duration::from_secs(2), stop.cancelled()).await;
            return Err(error.context(format!("making the pod network for {cidrs:?}")));
        }
    }
    stop.cancelled().await;
    Ok(())
}

fn pod_cidrs(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let listed = spec.pod_cidrs.iter().flatten();
    let all: Vec<IpNet> = listed.filter_map(|c| c.parse().ok()).collect();
    if all.is_empty() { spec.pod_cidr.iter().filter_map(|c| c.parse().ok()).collect() } else { all }
}
