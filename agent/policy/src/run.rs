//! The loop of a node's policies: watch → model → plan → apply.

use crate::{
    gate::Gate,
    kernel::Kernel,
    metrics::{Metrics, serve},
    model::{self, PodInfo, Policy},
    peers::Peers,
    plan::Planner,
    program::Program,
    view::View,
};
use anyhow::Context;
use causeway_api::{config::ClusterConfig, endpoints::SERVICE_NAME_LABEL};
use causeway_informers::Informers;
use causeway_nft::family::Family;
use futures::StreamExt;
use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{Namespace, Node},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
};
use kube::{
    Api,
    runtime::watcher::{self, Event},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// So many events are taken over before they are programmed together.
const BATCH: usize = 1024;
/// How often our tables are looked at without news.
const CHECK: Duration = Duration::from_secs(5);

/// How long rules stay as they are while Pods of other nodes are asked for.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the policies of a node must know.
#[derive(Debug)]
pub struct PolicyConfig {
    /// The node.
    pub node_name: String,
    /// The cluster's ranges.
    pub cluster: ClusterConfig,
    /// Tells of new pods before the API does, and lets them start.
    pub gate: Gate,
    /// Serves `/healthz` and `/metrics`.
    pub admin: Option<std::net::TcpListener>,
    /// Becomes true when the first complete list is programmed.
    pub ready: Option<watch::Sender<bool>>,
}

/// Runs until shutdown, in the node's network namespace: every thread of the runtime must live there. The rules stay
/// when it ends, and the next run adopts them.
///
/// `client` reads policies, and the Pods of other nodes while a policy speaks of any; all else comes from the node's copies.
pub async fn run(
    client: kube::Client,
    informers: Informers,
    config: PolicyConfig,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let registry = prometheus::Registry::new();
    let metrics = Metrics::new(&registry).context("registering the metrics of network policies")?;
    let mut config = config;
    let (healthy, is_healthy) = watch::channel(false);
    if let Some(listener) = config.admin.take() {
        let served = serve(listener, is_healthy, registry, shutdown.clone());
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "the health endpoint of network policies ended");
            }
        });
    }
    // Whoever ran before us may have let pods through that this run does not know yet.
    config.gate.cover(&BTreeMap::new());
    let mut families: Vec<Family> = config.cluster.pod_cidrs.iter().map(|c| Family::of(&c.addr())).collect();
    families.sort();
    families.dedup();
    let kernel = Kernel::open(families).context("network policies need nftables")?;
    let planner = Planner::new(&config.node_name);
    tracing::info!(node = config.node_name, "network policies start");
    Engine {
        config,
        metrics,
        healthy,
        pods: View::default(),
        others: View::default(),
        namespaces: View::default(),
        policies: View::default(),
        dns: View::default(),
        node: View::default(),
        state: Some((Program::new(kernel), planner)),
        changed: false,
        synced: false,
    }
    .run(client, informers, shutdown)
    .await
}

struct Engine {
    config: PolicyConfig,
    metrics: Metrics,
    healthy: watch::Sender<bool>,
    /// Of this node.
    pods: View<PodInfo>,
    /// Of other nodes, while they are wanted.
    others: View<PodInfo>,
    namespaces: View<BTreeMap<String, String>>,
    policies: View<Policy>,
    dns: View<PodInfo>,
    node: View<BTreeSet<IpNet>>,
    /// Lent to a blocking thread while it works.
    state: Option<(Program, Planner)>,
    changed: bool,
    synced: bool,
}

/// Only a panic ends a watch: all begins anew then.
const ENDED: &str = "a watch of network policies ended";

impl Engine {
    async fn run(
        mut self,
        client: kube::Client,
        informers: Informers,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let name = self.config.node_name.clone();
        let mut peers = Peers::new(client.clone(), &name, BATCH);
        let policies = causeway_api::watch::strict(Api::<NetworkPolicy>::all(client), watcher::Config::default());
        let mut policies = policies.ready_chunks(BATCH);
        let mut pods = informers.pods_of(&name).subscribe().ready_chunks(BATCH);
        let mut namespaces = informers.namespaces().subscribe().ready_chunks(BATCH);
        let mut dns = informers.slices().subscribe_where(is_of_dns).ready_chunks(BATCH);
        let mut node = informers.nodes().subscribe_to(&name).ready_chunks(BATCH);
        let mut given = self.config.gate.given();
        given.mark_changed();
        let mut check = tokio::time::interval(CHECK);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut is_check = false;
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                events = pods.next() => {
                    let Self { pods, state, changed, .. } = &mut self;
                    *changed |= take(events.context(ENDED)?, pods, model::pod, state, |planner, key, pod| {
                        planner.set_pod(key, pod);
                    });
                }
                events = peers.next() => {
                    let Self { others, state, changed, .. } = &mut self;
                    let events = told("Pods of other nodes", events);
                    *changed |= take(events, others, model::pod, state, |planner, key, pod| {
                        planner.set_pod(&elsewhere(key), pod);
                    });
                }
                events = namespaces.next() => {
                    let Self { namespaces, state, changed, .. } = &mut self;
                    let labels = |n: &Namespace| n.metadata.labels.clone().unwrap_or_default();
                    *changed |= take(events.context(ENDED)?, namespaces, labels, state, |planner, key, labels| {
                        planner.set_namespace(key.trim_start_matches('/'), labels);
                    });
                }
                events = policies.next() => {
                    let events = told("NetworkPolicies", events.context(ENDED)?);
                    let Self { policies, state, changed, .. } = &mut self;
                    *changed |= take(events, policies, model::policy, state, |planner, key, policy| {
                        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
                        planner.set_policy(namespace, name, policy);
                    });
                }
                events = dns.next() => {
                    let Self { dns, state, changed, .. } = &mut self;
                    *changed |= take(events.context(ENDED)?, dns, model::dns, state, |planner, key, pod| {
                        // Names of pods have no such prefix.
                        planner.set_pod(&format!("dns:{key}"), pod);
                    });
                }
                events = node.next() => {
                    let Self { node, state, changed, .. } = &mut self;
                    *changed |= take(events.context(ENDED)?, node, ranges, state, |planner, _, ranges| {
                        planner.set_ranges(ranges.unwrap_or_default());
                    });
                }
                Ok(()) = given.changed() => {
                    if let Some((_, planner)) = &mut self.state {
                        planner.set_given(given.borrow_and_update().clone());
                    }
                    self.changed = true;
                }
                _ = check.tick() => is_check = true,
            }
            if (is_check || self.changed) && peers.want(self.wants_peers(), Instant::now()) {
                self.forget_others();
            }
            // Policies that speak of Pods elsewhere come into force when those are known. Others must not wait for ever: then
            // the unknown ones are let in nowhere.
            let waited = peers.wanted_for(Instant::now());
            let known = self.others.is_complete() || waited.is_none_or(|waited| self.synced && waited > PATIENCE);
            let complete = self.pods.is_complete()
                && known
                && self.namespaces.is_complete()
                && self.policies.is_complete()
                && self.dns.is_complete()
                && self.node.is_complete();
            if complete && (is_check || self.changed || !self.synced) {
                self.sync().await?;
            }
        }
    }

    /// Whether a policy that speaks of Pods on other nodes selects one here.
    fn wants_peers(&self) -> bool {
        let speaking = self.policies.iter().filter(|(_, policy)| policy.names_peers());
        let mut speaking = speaking.map(|(key, policy)| (key.split_once('/').unwrap_or(("", key)).0, policy));
        speaking.any(|(namespace, policy)| {
            self.pods.iter().any(|(_, pod)| pod.namespace == namespace && policy.pods.matches(&pod.labels))
        })
    }

    /// Before a watch of other nodes' Pods begins, and after it has ended.
    fn forget_others(&mut self) {
        for key in self.others.clear() {
            if let Some((_, planner)) = &mut self.state {
                planner.set_pod(&elsewhere(&key), None);
            }
        }
        self.changed = true;
    }

    async fn sync(&mut self) -> anyhow::Result<()> {
        let Some((mut program, mut planner)) = self.state.take() else {
            anyhow::bail!("the policy rules are lost to a panic")
        };
        let started = Instant::now();
        let work = move || {
            let result = program.sync(&mut planner);
            (program, planner, result)
        };
        let (program, planner, result) = tokio::task::spawn_blocking(work).await.context("programming policy rules")?;
        let (_, planner) = self.state.insert((program, planner));
        self.healthy.send_replace(result.is_ok());
        match result {
            Ok(done) => {
                self.config.gate.cover(planner.covered());
                if self.changed || done.rebuilt || done.changes > 0 {
                    self.metrics.sync.observe(started.elapsed().as_secs_f64());
                    tracing::debug!(?done, took = ?started.elapsed(), "policy rules programmed");
                }
                self.metrics.rebuilds.inc_by(u64::from(done.rebuilt));
                self.changed = false;
                self.synced = true;
                if let Some(ready) = &self.config.ready {
                    ready.send_replace(true);
                }
            }
            Err(error) => {
                // The planner has the changes: the next check programs them.
                self.metrics.failures.inc();
                tracing::error!(%error, "programming network policies; trying again");
                self.changed = false;
            }
        }
        let (policies, isolated, elements) = planner.sizes();
        self.metrics.policies.set(policies as i64);
        self.metrics.isolated.set(isolated as i64);
        self.metrics.elements.set(elements as i64);
        Ok(())
    }
}

/// The key of a Pod on another node. One that comes to this node is both for a moment, and neither may remove the other.
fn elsewhere(key: &str) -> String {
    format!("elsewhere:{key}")
}

/// Whether it is a slice of the cluster's DNS.
fn is_of_dns(slice: &EndpointSlice) -> bool {
    slice.metadata.namespace.as_deref() == Some("kube-system")
        && slice.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_NAME_LABEL)).is_some_and(|name| name == "kube-dns")
}

/// The events of a watch of our own.
fn told<K>(what: &str, events: Vec<watcher::Result<Event<K>>>) -> Vec<Event<Arc<K>>> {
    let good = events.into_iter().filter_map(|event| {
        event
            .inspect_err(|error| tracing::warn!(%error, "watching {what} for network policies; rules stay as they are"))
            .ok()
    });
    good.map(|event| causeway_api::watch::map(event, Arc::new)).collect()
}

/// Takes events over into a view and the planner; returns whether anything has changed.
fn take<K: kube::Resource, T: Clone + PartialEq>(
    events: Vec<Event<Arc<K>>>,
    view: &mut View<T>,
    read: impl Fn(&K) -> T,
    state: &mut Option<(Program, Planner)>,
    mut set: impl FnMut(&mut Planner, &str, Option<T>),
) -> bool {
    let mut changed = false;
    for event in events {
        for (key, value) in view.take(event, &read) {
            if let Some((_, planner)) = state {
                set(planner, &key, value);
            }
            changed = true;
        }
    }
    changed
}

fn ranges(node: &Node) -> BTreeSet<IpNet> {
    let spec = node.spec.as_ref();
    let many = spec.and_then(|s| s.pod_cidrs.as_ref()).into_iter().flatten();
    let one = spec.and_then(|s| s.pod_cidr.as_ref());
    many.chain(one).filter_map(|c| c.parse::<IpNet>().ok()).map(|c| c.trunc()).collect()
}
