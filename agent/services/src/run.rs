//! kube-proxy's loop: watch → model → plan → apply.

use crate::{
    family::Family,
    health::{Health, serve},
    healthcheck::HealthChecks,
    metrics::{Metrics, trigger},
    model::{self, NodeView, ServiceModel, node_port_ips},
    ranges::ServiceRanges,
    renderer::{Ranges, Renderer},
    switch,
    view::View,
};
use anyhow::Context;
use causeway_api::{
    config::{ClusterConfig, ProxyMode},
    endpoints::ZONE_LABEL,
};
use causeway_informers::Informers;
use causeway_network::routes::Routes;
use futures::StreamExt;
use ipnet::IpNet;
use k8s_openapi::{
    api::{
        core::v1::{Node, Service},
        discovery::v1::EndpointSlice,
        networking::v1::ServiceCIDR,
    },
    jiff::Timestamp,
};
use kube::runtime::watcher::Event;
use std::{collections::HashMap, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// So many events are taken over before they are programmed together.
const BATCH: usize = 1024;
/// How often our tables are looked at without news.
const CHECK: Duration = Duration::from_secs(5);
/// The autoscaler's announcement that it deletes the node.
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// What kube-proxy must know.
#[derive(Debug)]
pub struct ServicesConfig {
    /// The node.
    pub node_name: String,
    /// Its addresses: node ports are served on them, and the node's own connections to services come from them.
    pub node_ips: Vec<IpAddr>,
    /// The cluster's ranges.
    pub cluster: ClusterConfig,
    /// Where what must survive a restart is kept.
    pub state_dir: PathBuf,
    /// Serves `/healthz`, `/livez` and `/metrics`; kube-proxy's usual port is 10256.
    pub healthz_listener: Option<std::net::TcpListener>,
    /// Where to register metrics: one registry a node. `None` for one of its own.
    pub registry: Option<prometheus::Registry>,
    /// Becomes true when the first complete list is programmed.
    pub ready: Option<tokio::sync::watch::Sender<bool>>,
}

/// Runs until shutdown, in the node's network namespace: every thread of the runtime must live there. The rules stay
/// when it ends, and the next run adopts them.
pub async fn run(informers: Informers, config: ServicesConfig, shutdown: CancellationToken) -> anyhow::Result<()> {
    let registry = config.registry.clone().unwrap_or_default();
    let metrics = Metrics::new(&registry).context("registering kube-proxy's metrics")?;
    let health = Arc::new(Health::default());
    let mut config = config;
    if let Some(listener) = config.healthz_listener.take() {
        let served = serve(listener, health.clone(), metrics.clone(), registry.clone(), shutdown.clone());
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "kube-proxy's health endpoint ended");
            }
        });
    }
    let mut families: Vec<Family> = config.cluster.service_cidrs.iter().map(|c| Family::of(&c.addr())).collect();
    families.sort();
    families.dedup();
    let mode = config.cluster.proxy_mode;
    let program = switch::open(mode, config.cluster.iptables_flavour, families, &config.state_dir, &registry)?;
    tracing::info!(node = config.node_name, %mode, adopted = program.adopted(), "kube-proxy starts");
    let routes = Routes::here()?;
    let node = NodeView {
        name: config.node_name.clone(),
        ips: config.node_ips.clone(),
        node_port_ips: node_port_ips(&config.cluster.node_port_addresses, &config.node_ips, &own_addresses()),
        ..NodeView::default()
    };
    Proxy {
        ranges: ServiceRanges::new(config.cluster.service_cidrs.clone()),
        config,
        routes,
        view: View::default(),
        node,
        program: Some(program),
        metrics,
        checks: HealthChecks::new(health.clone()),
        without_local: HashMap::new(),
        health,
        pending: Vec::new(),
        triggers: Vec::new(),
        synced: false,
        alone: false,
    }
    .run(informers, shutdown)
    .await
}

/// All addresses of the calling thread's network namespace.
fn own_addresses() -> Vec<IpAddr> {
    let all = match nix::ifaddrs::getifaddrs() {
        Ok(all) => all,
        Err(error) => {
            tracing::warn!(%error, "reading the node's addresses; node ports are served on its primary ones");
            return Vec::new();
        }
    };
    let ip = |address: nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
    };
    all.filter_map(|a| ip(a.address?)).collect()
}

struct Proxy {
    config: ServicesConfig,
    routes: Routes,
    ranges: ServiceRanges,
    view: View,
    node: NodeView,
    /// Lent to a blocking thread while it works.
    program: Option<Box<dyn Renderer>>,
    metrics: Metrics,
    health: Arc<Health>,
    checks: HealthChecks,
    /// By Service, as [`ServiceModel::without_local`]; those with none are left out.
    without_local: HashMap<String, [i64; 2]>,
    pending: Vec<(String, Option<ServiceModel>)>,
    triggers: Vec<Timestamp>,
    synced: bool,
    /// What another renderer may have left is gone.
    alone: bool,
}

/// Only a panic ends a watch: all begins anew then.
const ENDED: &str = "a watch of kube-proxy ended";

type Events<K> = Vec<Event<Arc<K>>>;

impl Proxy {
    async fn run(mut self, informers: Informers, shutdown: CancellationToken) -> anyhow::Result<()> {
        let mut services = informers.services().subscribe().ready_chunks(BATCH);
        let mut slices = informers.slices().subscribe().ready_chunks(BATCH);
        let mut nodes = informers.nodes().subscribe_to(&self.config.node_name).ready_chunks(BATCH);
        let mut cidrs = informers.all::<ServiceCIDR>().subscribe().ready_chunks(BATCH);
        let mut check = tokio::time::interval(CHECK);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut is_check = false;
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                events = services.next() => self.take_services(events.context(ENDED)?),
                events = slices.next() => self.take_slices(events.context(ENDED)?),
                events = nodes.next() => self.take_nodes(events.context(ENDED)?),
                events = cidrs.next() => self.take_ranges(events.context(ENDED)?),
                _ = check.tick() => is_check = true,
            }
            if is_check {
                self.look_at_addresses();
            }
            self.look();
            if self.view.is_complete() && (is_check || !self.synced || !self.pending.is_empty()) {
                self.sync().await?;
            }
        }
    }

    fn take_services(&mut self, events: Events<Service>) {
        for event in events {
            let changed = self.view.service(event);
            self.metrics.service_changes.inc_by(changed as u64);
            self.metrics.services_pending.add(changed as i64);
            self.metrics.waits();
        }
    }

    fn take_slices(&mut self, events: Events<EndpointSlice>) {
        for event in events {
            let changed = self.view.slice(event);
            self.metrics.endpoint_changes.inc_by(changed.len() as u64);
            self.metrics.endpoints_pending.add(changed.len() as i64);
            self.metrics.waits();
            // What the first list tells happened before we were there.
            if self.synced {
                self.triggers.extend(changed.iter().filter_map(|s| trigger(s)));
            }
        }
    }

    fn take_nodes(&mut self, events: Events<Node>) {
        for event in events {
            let (Event::Apply(node) | Event::InitApply(node)) = event else { continue };
            let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
            self.health.set_leaving(taints.into_iter().flatten().any(|t| t.key == LEAVING_TAINT));
            let mut new = self.node.clone();
            let labels = node.metadata.labels.as_ref();
            new.zone = labels.and_then(|l| l.get(ZONE_LABEL)).cloned();
            let cidrs = node.spec.as_ref().and_then(|s| s.pod_cidrs.as_ref());
            new.pod_cidrs = cidrs.into_iter().flatten().filter_map(|c| c.parse().ok()).collect();
            if new != self.node {
                self.node = new;
                self.view.touch_all();
                // Ranges may change without any Service.
                self.synced = false;
            }
        }
    }

    fn take_ranges(&mut self, events: Events<ServiceCIDR>) {
        for event in events {
            self.synced &= !self.ranges.take(event);
        }
    }

    /// Node ports follow the node's addresses.
    fn look_at_addresses(&mut self) {
        let cluster = &self.config.cluster;
        let ips = node_port_ips(&cluster.node_port_addresses, &self.config.node_ips, &own_addresses());
        if ips != self.node.node_port_ips {
            tracing::info!(?ips, "node ports are served on these addresses from now on");
            self.node.node_port_ips = ips;
            self.view.touch_all();
        }
        self.checks.refresh(&self.node.node_port_ips);
    }

    /// Models what has changed.
    fn look(&mut self) {
        if !self.view.is_complete() {
            return;
        }
        for (key, found) in self.view.take_dirty() {
            let model = found.map(|(service, slices)| model::service(service, slices, &self.node));
            self.pending.push((key, model));
        }
    }

    async fn sync(&mut self) -> anyhow::Result<()> {
        let Some(mut program) = self.program.take() else { anyhow::bail!("the service rules are lost to a panic") };
        let ranges = Ranges {
            pods: self.config.cluster.pod_cidrs.clone(),
            services: self.ranges.all(),
            local: self.config.node_ips.iter().map(|ip| IpNet::from(*ip)).chain(self.node.pod_cidrs.clone()).collect(),
        };
        let changes = std::mem::take(&mut self.pending);
        let count = changes.len();
        let told: Vec<_> = changes
            .iter()
            .map(|(key, model)| {
                let model = model.as_ref();
                (key.clone(), model.and_then(|m| m.health), model.map_or([0, 0], ServiceModel::without_local))
            })
            .collect();
        let first = self.config.ready.as_ref().is_some_and(|r| !*r.borrow()) || !self.synced;
        self.health.begins();
        let started = std::time::Instant::now();
        let work = move || {
            let result = program.sync(changes, &ranges, first);
            (program, result)
        };
        let (program, result) = tokio::task::spawn_blocking(work).await.context("programming service rules")?;
        self.program = Some(program);
        for (key, health, without_local) in told {
            self.checks.set(&key, health, &self.node.node_port_ips);
            if without_local == [0, 0] {
                self.without_local.remove(&key);
            } else {
                self.without_local.insert(key, without_local);
            }
        }
        self.metrics.set_without_local(&self.without_local);
        let done = match result {
            Ok(done) => done,
            Err(error) => {
                // The planner has the changes: the next check programs them.
                if self.config.cluster.proxy_mode == ProxyMode::Nftables {
                    self.metrics.failures.inc();
                }
                tracing::error!(error = format!("{error:#}"), "programming service rules; trying again");
                return Ok(());
            }
        };
        let (services, own) = (&self.ranges.all(), &self.config.node_ips);
        let routed = match self.config.cluster.proxy_mode {
            ProxyMode::Nftables => self.routes.sync_service_ranges(services, own).await,
            ProxyMode::Iptables => self.routes.sync_forwarded_service_ranges(services, own).await,
        };
        if let Err(error) = routed {
            tracing::warn!(%error, "routes of the service ranges; trying again");
        }
        self.metrics.programmed(&std::mem::take(&mut self.triggers), Timestamp::now());
        if count > 0 || done.rebuilt || done.elements > 0 {
            let seconds = started.elapsed().as_secs_f64();
            self.metrics.sync.observe(seconds);
            if done.rebuilt || first { &self.metrics.full } else { &self.metrics.partial }.observe(seconds);
            self.metrics.flows.inc_by(done.flows as u64);
            tracing::debug!(services = count, ?done, took = ?started.elapsed(), "service rules programmed");
        }
        self.metrics.last.set(Timestamp::now().as_millisecond() as f64 / 1000.0);
        self.health.succeeds();
        self.synced = true;
        self.remove_others().await;
        if let Some(ready) = &self.config.ready {
            ready.send_replace(true);
        }
        Ok(())
    }

    /// Once our rules are in force, takes away what another renderer has left; when that fails, the next check tries
    /// again.
    async fn remove_others(&mut self) {
        if self.alone {
            return;
        }
        let (mode, flavour) = (self.config.cluster.proxy_mode, self.config.cluster.iptables_flavour);
        match tokio::task::spawn_blocking(move || switch::remove_others(mode, flavour)).await {
            Ok(Ok(found)) => {
                self.alone = true;
                if found {
                    tracing::info!(%mode, "took over from another mode, and removed its rules");
                }
            }
            Ok(Err(error)) => {
                if mode == ProxyMode::Nftables {
                    self.metrics.cleanup_failures.inc();
                }
                tracing::warn!("the rules of another mode stay for now: {error:#}");
            }
            Err(error) => tracing::warn!(%error, "the rules of another mode stay for now"),
        }
    }
}
