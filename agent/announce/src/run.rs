//! The loop: watch → model → plan → apply, a few times a second and whenever something changes.

use crate::lease::{self, Leases, Said};
use crate::link::Uplink;
use crate::model::{self, Wanted};
use crate::plan::{Alive, DEADLINE, Own, RENEW, Step, step};
use anyhow::{Context, Result};
use causeway_api::balancer::Pool;
use causeway_api::events::{EventType, Recorder};
use causeway_informers::{Informer, Informers, Kind};
use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Between two looks without news.
const TICK: Duration = Duration::from_millis(250);
/// The neighbours are told again after these, for a frame may get lost.
const AGAIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];
/// So many Leases are written at once.
const AT_ONCE: usize = 16;

/// What the announcer must know.
#[derive(Debug, Clone)]
pub struct AnnounceConfig {
    /// The node.
    pub node_name: String,
    /// An address of the node: the link that has it is the uplink.
    pub node_ip: IpAddr,
    /// The addresses that may be announced.
    pub pools: Vec<Pool>,
}

/// Runs until shutdown, in the node's network namespace: every thread of the runtime must live there. On shutdown the
/// addresses are given up, and other nodes take them at once.
///
/// `client` reads and writes Leases; all else comes from the node's copies.
pub async fn run(
    client: Client,
    informers: Informers,
    config: AnnounceConfig,
    shutdown: CancellationToken,
) -> Result<()> {
    if config.pools.is_empty() {
        shutdown.cancelled().await;
        return Ok(());
    }
    let uplink = Uplink::find(config.node_ip).await.context("the announcer needs the node's uplink")?;
    let leases = Leases::new(client.clone(), &config.node_name);
    let mut watches = Watches { tasks: JoinSet::new(), news: Arc::default() };
    let (services, slices, nodes) = (informers.services(), informers.slices(), informers.nodes());
    watches.follow(&services);
    watches.follow(&slices);
    watches.follow(&nodes);
    let signed = watches.start(leases.api(), watcher::Config::default().labels(lease::LABEL));
    let events = Recorder::new(client, "causeway-announce", Some(&config.node_name));
    let mut announcer = Announcer {
        config,
        uplink,
        leases,
        events,
        wanted: BTreeMap::new(),
        alive: Alive::default(),
        here: BTreeMap::new(),
        renewed: None,
        tried: None,
        up: false,
        failing: false,
        again: Vec::new(),
    };
    announcer.clean().await;
    let complete = async {
        let copies = services.synced().await && slices.synced().await && nodes.synced().await;
        anyhow::ensure!(copies, "a copy of the node's ended");
        signed.wait_until_ready().await.context("a watch of the announcer ended")
    };
    tokio::select! {
        ready = complete => ready?,
        () = shutdown.cancelled() => return Ok(()),
    }
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    watches.news.changed.store(true, Ordering::Release);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = tick.tick() => {}
            () = watches.news.ring.notified() => {}
        }
        if watches.news.changed.swap(false, Ordering::AcqRel) {
            let pools = &announcer.config.pools;
            announcer.wanted = model::wanted(&services.list(), &slices.list(), &nodes.list(), pools);
        }
        announcer.round(&signed.state()).await;
    }
    announcer.leave(&signed.state()).await;
    Ok(())
}

#[derive(Default)]
struct News {
    ring: Notify,
    changed: AtomicBool,
}

struct Watches {
    tasks: JoinSet<()>,
    news: Arc<News>,
}

impl Watches {
    /// Rings whenever a copy has changed.
    fn follow<K: Kind>(&mut self, copy: &Informer<K>) {
        let (mut changes, news) = (copy.subscribe(), self.news.clone());
        self.tasks.spawn(async move {
            while changes.next().await.is_some() {
                news.changed.store(true, Ordering::Release);
                news.ring.notify_one();
            }
        });
    }

    fn start<K>(&mut self, api: Api<K>, config: watcher::Config) -> Store<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + serde::de::DeserializeOwned + 'static,
        K::DynamicType: Eq + Hash + Clone,
    {
        let (reader, writer) = reflector::store();
        let stream = reflector::reflector(writer, causeway_api::watch::watch(api, config));
        let news = self.news.clone();
        self.tasks.spawn(async move {
            let mut stream = std::pin::pin!(stream);
            while let Some(event) = stream.next().await {
                match event {
                    Ok(_) => {
                        // Leases change every second; who may announce what does not depend on them.
                        if K::kind(&()) != "Lease" {
                            news.changed.store(true, Ordering::Release);
                        }
                        news.ring.notify_one();
                    }
                    Err(error) => tracing::debug!(kind = %K::kind(&()), %error, "watch interrupted"),
                }
            }
        });
        reader
    }
}

/// An address to take, from whom (a silent node, and the version of its Lease that was seen last), and the address' own
/// Lease.
type Take = (IpAddr, Option<(String, Option<String>)>, Option<Arc<Lease>>);

/// What is on our link.
struct Here {
    service: (String, String),
    /// When its life was last lengthened.
    put: Instant,
}

struct Announcer {
    config: AnnounceConfig,
    uplink: Uplink,
    leases: Leases,
    events: Recorder,
    wanted: BTreeMap<IpAddr, Wanted>,
    alive: Alive,
    here: BTreeMap<IpAddr, Here>,
    /// Start of the last renewal of our Lease that succeeded.
    renewed: Option<Instant>,
    tried: Option<Instant>,
    up: bool,
    failing: bool,
    /// When to tell the neighbours once more.
    again: Vec<(Instant, IpAddr)>,
}

impl Announcer {
    /// What a former process left on the link is not ours by right.
    async fn clean(&self) {
        match self.uplink.ours().await {
            Ok(left) => {
                for ip in left {
                    tracing::info!(%ip, "removing an announced address that was left over");
                    self.off(ip).await;
                }
            }
            Err(error) => tracing::warn!("addresses that were left over stay until their life ends: {error:#}"),
        }
    }

    async fn round(&mut self, signed: &[Arc<Lease>]) {
        self.up = self.uplink.look().await.unwrap_or_else(|error| {
            tracing::warn!("looking at the uplink: {error:#}");
            false
        });
        self.lapse().await;
        self.renew().await;
        let (mut holders, mut living) = (HashMap::new(), HashMap::new());
        for lease in signed {
            match lease::read(lease) {
                Some(Said::Node(node)) => drop(living.insert(node, lease::version(lease))),
                Some(Said::Address(ip, holder)) => drop(holders.insert(ip, (holder, lease.clone()))),
                None => {}
            }
        }
        self.alive.look(&living, Instant::now());
        let mut addresses: Vec<IpAddr> =
            self.wanted.keys().chain(holders.keys()).chain(self.here.keys()).copied().collect();
        addresses.sort_unstable();
        addresses.dedup();
        let mut takes = Vec::new();
        for ip in addresses {
            let (holder, lease) = holders.get(&ip).map_or(("", None), |(h, l)| (h.as_str(), Some(l.clone())));
            let own = Own { node: &self.config.node_name, fit: self.is_fit(), has: self.here.contains_key(&ip) };
            match step(own, self.wanted.get(&ip), holder, &mut self.alive, Instant::now()) {
                Step::Rest => self.forget(ip, holder, lease.as_deref()).await,
                Step::Keep => self.keep(ip).await,
                Step::Drop => self.drop(ip).await,
                Step::Release => self.release(ip, lease.as_deref()).await,
                Step::Take { from } => takes.push((ip, from, lease)),
            }
        }
        self.take(takes).await;
        self.repeat().await;
    }

    /// Whether our Lease is alive and packets can come.
    fn is_fit(&self) -> bool {
        self.up && self.left().is_some()
    }

    /// How long what we announce may stay.
    fn left(&self) -> Option<Duration> {
        let left = (self.renewed? + DEADLINE).saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// Before any renewal: what lapsed must be taken anew.
    async fn lapse(&mut self) {
        if self.left().is_none() && !self.here.is_empty() {
            tracing::warn!(
                addresses = self.here.len(),
                "the API server did not confirm for {DEADLINE:?} that this node is alive: it announces nothing until it does"
            );
            for ip in self.here.keys().copied().collect::<Vec<_>>() {
                self.drop(ip).await;
            }
        }
    }

    async fn renew(&mut self) {
        let now = Instant::now();
        if self.tried.is_some_and(|t| now.duration_since(t) < if self.failing { TICK } else { RENEW }) {
            return;
        }
        self.tried = Some(now);
        match self.leases.renew().await {
            Ok(()) => {
                // Too late an answer must not bring back what may be another's by now.
                self.lapse().await;
                self.renewed = Some(now);
                self.failing = false;
            }
            Err(error) => {
                if !self.failing {
                    tracing::warn!("saying that this node announces addresses: {error}; trying again");
                }
                self.failing = true;
            }
        }
    }

    async fn keep(&mut self, ip: IpAddr) {
        let Some(left) = self.left() else { return };
        let (Some(here), Some(renewed)) = (self.here.get_mut(&ip), self.renewed) else { return };
        // Once for every renewal.
        if here.put >= renewed && here.put.elapsed() < RENEW {
            return;
        }
        here.put = Instant::now();
        if let Err(error) = self.uplink.put(ip, left).await {
            tracing::warn!("{error:#}");
        }
    }

    /// Signs what is to come here, several at once, then puts it on the link.
    async fn take(&mut self, takes: Vec<Take>) {
        let (leases, node) = (&self.leases, &self.config.node_name);
        let signing = takes.into_iter().map(|(ip, from, lease)| async move {
            if let Some((silent, seen)) = &from
                && !leases.is_still(silent, seen.as_ref()).await?
            {
                return Ok(None);
            }
            leases.sign(ip, lease.as_deref(), node).await.map(|_| Some((ip, from)))
        });
        let signed: Vec<_> = futures::stream::iter(signing).buffer_unordered(AT_ONCE).collect().await;
        let mut new = Vec::new();
        for outcome in signed {
            match outcome {
                Ok(Some((ip, from))) => new.push((ip, from.map(|(node, _)| node))),
                Ok(None) => {}
                Err(error) if lease::is_race(&error) => {}
                Err(error) => tracing::warn!("taking over an address: {error}; trying again"),
            }
        }
        for (ip, from) in &new {
            // Nothing is put there that may have to go again before it is known.
            let (Some(left), Some(wanted)) = (self.left(), self.wanted.get(ip)) else { continue };
            if let Err(error) = self.uplink.put(*ip, left).await {
                tracing::warn!("{error:#}");
                continue;
            }
            self.here.insert(*ip, Here { service: wanted.service.clone(), put: Instant::now() });
            tracing::info!(%ip, from = from.as_deref().unwrap_or(""), "announcing a load balancer's address");
            let now = Instant::now();
            self.again.extend(AGAIN.map(|after| (now + after, *ip)));
            self.report(ip, wanted);
        }
        self.tell(new.into_iter().map(|(ip, _)| ip).filter(|ip| self.here.contains_key(ip)).collect()).await;
    }

    async fn tell(&self, addresses: Vec<IpAddr>) {
        if !addresses.is_empty()
            && let Err(error) = self.uplink.tell(addresses).await
        {
            tracing::warn!("{error:#}; neighbours will ask by themselves");
        }
    }

    async fn repeat(&mut self) {
        let now = Instant::now();
        let due: Vec<IpAddr> = self.again.iter().filter(|(at, _)| *at <= now).map(|(_, ip)| *ip).collect();
        self.again.retain(|(at, _)| *at > now);
        self.tell(due.into_iter().filter(|ip| self.here.contains_key(ip)).collect()).await;
    }

    fn report(&self, ip: &IpAddr, wanted: &Wanted) {
        let (namespace, name) = &wanted.service;
        let service = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            namespace: Some(namespace.clone()),
            name: Some(name.clone()),
            uid: wanted.uid.clone(),
            ..ObjectReference::default()
        };
        let message = format!("announcing {ip} from node {}", Value::from(self.config.node_name.as_str()));
        self.events.record_ref(service, EventType::Normal, "AnnouncingAddress", message);
    }

    async fn off(&self, ip: IpAddr) {
        if let Err(error) = self.uplink.remove(ip).await {
            tracing::warn!("{error:#}; its life ends by itself");
        }
    }

    async fn drop(&mut self, ip: IpAddr) {
        self.off(ip).await;
        if let Some(here) = self.here.remove(&ip) {
            tracing::info!(%ip, service = here.service.1, "no longer announcing a load balancer's address");
        }
    }

    /// Off the link first, then the name: at no moment is it another's while it is still here.
    async fn release(&mut self, ip: IpAddr, lease: Option<&Lease>) {
        self.drop(ip).await;
        let Some(lease) = lease else { return };
        let done = match self.wanted.contains_key(&ip) {
            true => self.leases.sign(ip, Some(lease), "").await.map(drop),
            false => self.leases.forget(ip, lease).await,
        };
        if let Err(error) = done
            && !lease::is_race(&error)
        {
            tracing::warn!("giving up the address {ip}: {error}; trying again");
        }
    }

    /// The Lease of an address that nobody wants or holds any more goes; one node is enough to see to it.
    async fn forget(&mut self, ip: IpAddr, holder: &str, lease: Option<&Lease>) {
        let Some(lease) = lease.filter(|_| !self.wanted.contains_key(&ip) && self.is_fit()) else { return };
        let free = holder.is_empty() || self.alive.is_alive(holder, Instant::now()).is_err();
        if free && let Err(error) = self.leases.forget(ip, lease).await {
            tracing::debug!("forgetting the address {ip}: {error}");
        }
    }

    /// Gives everything up, so that others take it without waiting.
    async fn leave(&mut self, signed: &[Arc<Lease>]) {
        self.clean().await;
        for lease in signed {
            if let Some(Said::Address(ip, holder)) = lease::read(lease)
                && holder == self.config.node_name
            {
                self.release(ip, Some(lease)).await;
            }
        }
        if let Err(error) = self.leases.leave().await {
            tracing::debug!("taking this node's Lease away: {error}");
        }
    }
}
