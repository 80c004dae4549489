//! From API objects to the routing table: `watch → model → plan → apply`.
//!
//! [`watch`] keeps the [`view::View`], [`model`] is the pure function from it to rules, certificates and reports, and
//! [`Planner`] applies the smallest change: new endpoints go into the upstreams that live on, anything else swaps the
//! table and the certificates whole. Readers never wait and never see half a change.

pub mod annotations;
pub mod balancing;
pub mod caches;
pub mod certs;
pub mod model;
pub mod names;
pub mod view;
pub mod watch;

use crate::acme::challenge::Challenges;
use crate::acme::wanted::{self, Wanted};
use crate::gateway::{self, expose};
use crate::metrics::Metrics;
use crate::route::front::{Front, FrontKey};
use crate::route::policy::Canary;
use crate::route::upstream::BackendKey;
use crate::route::{Action, ObjectKey, Registry, Route, Table, Upstream};
use arc_swap::ArcSwap;
use caches::Caches;
use certs::Certificates;
use model::{Model, Report, Settings, Target};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::sync::{Notify, watch as watch_channel};
use view::View;

/// What the data plane reads. Written by the [`Planner`] only.
#[derive(Debug)]
pub struct Shared {
    /// Where requests go.
    pub table: ArcSwap<Table>,
    /// Certificates by server name.
    pub certificates: ArcSwap<Certificates>,
    /// The ports of Gateways that are wanted; whoever serves them is woken by a change.
    pub fronts: watch_channel::Sender<Arc<Fronts>>,
    /// Fronts that are served at the ingress' own sockets too, after all Ingresses.
    pub local: ArcSwap<Vec<Arc<Front>>>,
    /// The sockets on which fronts are served, by their local address: the other half of [`Self::fronts`].
    pub sockets: ArcSwap<HashMap<SocketAddr, Arc<Socket>>>,
    /// The fronts whose sockets are open, and where: what leads to a Gateway's ports.
    pub opened: watch_channel::Sender<Arc<BTreeMap<FrontKey, SocketAddr>>>,
    /// Endpoints of the backends in use.
    pub registry: Registry,
    /// Counters.
    pub metrics: Metrics,
    /// What authorities are answered that look whether a name is ours.
    pub challenges: Arc<Challenges>,
    /// Connections are told with their next answer that it is the last one.
    pub closing: AtomicBool,
    /// Rung when an external name may have come into use.
    pub names_changed: Notify,
}

/// All fronts that are wanted.
pub type Fronts = BTreeMap<FrontKey, Arc<Front>>;

/// A socket of a front.
#[derive(Debug)]
pub struct Socket {
    /// Where it listens.
    pub local: SocketAddr,
    /// What is served there at the moment.
    pub front: ArcSwap<Front>,
}

/// What a change of the view can make stale.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dirt {
    /// Rules, backends or certificates.
    pub routes: bool,
    /// Only what is written back about an Ingress.
    pub reports: bool,
    /// Fronts of Gateways.
    pub fronts: bool,
    /// Only what is written back about objects of the Gateway API, or what makes Gateways reachable.
    pub front_reports: bool,
    /// Endpoints of these Services.
    pub services: BTreeSet<ObjectKey>,
}

/// Turns views into what the data plane reads.
pub struct Planner {
    shared: Arc<Shared>,
    settings: Settings,
    caches: Caches,
    reports: watch_channel::Sender<Arc<Vec<Report>>>,
    gateways: Option<GatewayPlanner>,
    acme: Option<watch_channel::Sender<Arc<Vec<Wanted>>>>,
}

/// The planner's part for Gateways.
struct GatewayPlanner {
    settings: gateway::Settings,
    caches: Caches,
    reports: watch_channel::Sender<Arc<Vec<gateway::report::Report>>>,
    writes: watch_channel::Sender<Arc<Vec<expose::Write>>>,
}

/// What comes out of the planner for those who write to the API about Gateways.
pub struct GatewayOutput {
    /// What objects are told.
    pub reports: watch_channel::Receiver<Arc<Vec<gateway::report::Report>>>,
    /// What makes Gateways reachable.
    pub writes: watch_channel::Receiver<Arc<Vec<expose::Write>>>,
}

impl Shared {
    /// Nothing configured yet.
    pub fn new() -> Result<Self, prometheus::Error> {
        Ok(Self {
            table: ArcSwap::default(),
            certificates: ArcSwap::default(),
            fronts: watch_channel::channel(Arc::default()).0,
            local: ArcSwap::default(),
            sockets: ArcSwap::default(),
            opened: watch_channel::channel(Arc::default()).0,
            registry: Registry::default(),
            metrics: Metrics::new()?,
            challenges: Arc::default(),
            closing: AtomicBool::new(false),
            names_changed: Notify::new(),
        })
    }
}

impl Dirt {
    /// Everything.
    pub fn all() -> Self {
        Self { routes: true, reports: true, fronts: true, front_reports: true, services: BTreeSet::new() }
    }

    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        !self.routes && !self.reports && !self.fronts && !self.front_reports && self.services.is_empty()
    }

    /// Adds what another change made stale.
    pub fn merge(&mut self, other: Self) {
        self.routes |= other.routes;
        self.reports |= other.reports;
        self.fronts |= other.fronts;
        self.front_reports |= other.front_reports;
        self.services.extend(other.services);
    }
}

impl Planner {
    /// A planner and the reports it makes, for those who write them back.
    pub fn new(shared: Arc<Shared>, settings: Settings) -> (Self, watch_channel::Receiver<Arc<Vec<Report>>>) {
        let (reports, receiver) = watch_channel::channel(Arc::default());
        (Self { shared, settings, caches: Caches::default(), reports, gateways: None, acme: None }, receiver)
    }

    /// Serves Gateways too.
    pub fn with_gateways(&mut self, settings: gateway::Settings) -> GatewayOutput {
        let (reports, to_status) = watch_channel::channel(Arc::default());
        let (writes, to_expose) = watch_channel::channel(Arc::default());
        self.gateways = Some(GatewayPlanner { settings, caches: Caches::default(), reports, writes });
        GatewayOutput { reports: to_status, writes: to_expose }
    }

    /// Also says which certificates should come by themselves.
    pub fn with_acme(&mut self) -> watch_channel::Receiver<Arc<Vec<Wanted>>> {
        let (sender, receiver) = watch_channel::channel(Arc::default());
        self.acme = Some(sender);
        receiver
    }

    /// Whether Gateways are served.
    pub fn serves_gateways(&self) -> bool {
        self.gateways.is_some()
    }

    /// Tells when sockets of Gateways have been opened or closed.
    pub fn opened(&self) -> watch_channel::Receiver<Arc<BTreeMap<FrontKey, SocketAddr>>> {
        self.shared.opened.subscribe()
    }

    /// Brings the data plane up to the view.
    pub fn apply(&mut self, view: &View, dirt: &Dirt) {
        if dirt.routes {
            let model = model::build(view, &self.settings, &mut self.caches);
            self.swap(view, model);
        } else if dirt.reports {
            let model = model::build(view, &self.settings, &mut self.caches);
            self.reports.send_replace(Arc::new(model.reports));
        }
        if let Some(acme) = self.acme.as_ref().filter(|_| dirt.routes || dirt.fronts) {
            let all = wanted::all(view, &self.settings);
            acme.send_if_modified(|old| {
                let changed = **old != all;
                *old = Arc::new(all);
                changed
            });
        }
        for service in &dirt.services {
            for upstream in self.shared.registry.of_service(service) {
                if upstream.set(&model::addresses(view, &upstream.key)) {
                    self.shared.metrics.endpoint_changes.inc();
                }
            }
        }
        if dirt.fronts || dirt.front_reports {
            self.apply_gateways(view, dirt.fronts);
        }
    }

    fn apply_gateways(&mut self, view: &View, fronts: bool) {
        let Some(mut own) = self.gateways.take() else { return };
        let model = gateway::model::build(view, &mut own.caches, &mut upstreams(&self.shared.registry, view));
        own.caches.sweep();
        if fronts {
            self.shared.local.store(Arc::new(model.local));
            self.shared.fronts.send_replace(Arc::new(model.fronts));
            self.shared.names_changed.notify_one();
        }
        self.shared.registry.sweep();
        let opened = Arc::clone(&self.shared.opened.borrow());
        let writes = expose::plan(view, &model.exposures, &opened, own.settings.address, &own.settings.node);
        own.writes.send_if_modified(|old| {
            let changed = **old != writes;
            *old = Arc::new(writes);
            changed
        });
        own.reports.send_replace(Arc::new(model.reports));
        self.gateways = Some(own);
    }

    fn swap(&mut self, view: &View, model: Model) {
        let mut table = Table::default();
        let mut upstream = upstreams(&self.shared.registry, view);
        for rule in &model.rules {
            let canary = rule.canary.as_ref().and_then(|(choice, target)| match target {
                Target::Backend(key) => Some(Canary { choice: choice.clone(), upstream: upstream(key) }),
                // A canary that leads nowhere takes nobody with it.
                Target::Unavailable(_) => None,
            });
            let (owner, action) = (rule.owner.clone(), action(&rule.target, &mut upstream));
            let (policy, rewrite) = (rule.policy.clone(), rule.rewrite.clone());
            let route = Route { policy, rewrite, canary, ..Route::plain(owner, action) };
            table.insert(&rule.host, &rule.path, Arc::new(route));
        }
        for (host, owner, target) in &model.defaults {
            table.set_default(host, Arc::new(Route::plain(owner.clone(), action(target, &mut upstream))));
        }
        let metrics = &self.shared.metrics;
        metrics.routes.set(i64::try_from(table.len()).unwrap_or(i64::MAX));
        metrics.reloads.inc();
        // Certificates first: a host that has just got a route should not show the default certificate.
        self.shared.certificates.store(Arc::new(model.certificates));
        self.shared.table.store(Arc::new(table));
        self.shared.registry.sweep();
        self.shared.names_changed.notify_one();
        self.reports.send_replace(Arc::new(model.reports));
    }
}

fn action(target: &Target, upstream: &mut impl FnMut(&BackendKey) -> Arc<Upstream>) -> Action {
    match target {
        Target::Backend(key) => Action::Forward(upstream(key)),
        Target::Unavailable(why) => Action::Unavailable(Arc::clone(why)),
    }
}

/// Upstreams that already have their endpoints, so that a route can serve the moment it can be found. Each is brought up
/// to the view once, however many routes lead there.
fn upstreams<'a>(registry: &'a Registry, view: &'a View) -> impl FnMut(&BackendKey) -> Arc<Upstream> + 'a {
    let mut known: HashMap<BackendKey, Arc<Upstream>> = HashMap::new();
    move |key| {
        if let Some(found) = known.get(key) {
            return Arc::clone(found);
        }
        let upstream = registry.get(key);
        if let BackendKey::Service { service, .. } = key {
            upstream.tune(view.services.get(service).map(|s| balancing::read(s).0).unwrap_or_default());
            upstream.set(&model::addresses(view, key));
        }
        known.insert(key.clone(), Arc::clone(&upstream));
        upstream
    }
}
