//! From API objects to the routing table: `watch → model → plan → apply`.
//!
//! [`watch`] keeps the [`view::View`] and says what is new in it, [`model`] is the pure way from there to rules,
//! certificates and reports, and [`Planner`] applies the smallest change: new endpoints go into the upstreams that live
//! on, Ingresses into copies of the table and the certificates that share all that is the same, and take the places of
//! the old ones. Secrets and ConfigMaps that are referred to ([`references`]) are followed by name ([`follow`]), and a
//! change waits a moment for those that it is the first to name. Readers never wait and never see half a change.

pub mod annotations;
pub mod asked;
pub mod balancing;
pub mod certs;
pub mod claims;
pub mod follow;
pub mod followed;
pub mod model;
pub mod named;
pub mod names;
pub mod outbox;
pub mod reading;
pub mod references;
pub mod staple;
pub mod view;
pub mod watch;

use crate::acme::challenge::Challenges;
use crate::acme::wanted::{self, Wanted};
use crate::gateway::kept::{Kept, RouteKey};
use crate::gateway::{self, expose};
use crate::metrics::Metrics;
use crate::route::front::{Front, FrontKey};
use crate::route::policy::Canary;
use crate::route::upstream::BackendKey;
use crate::route::{Action, ObjectKey, Registry, Route, Table, Upstream};
use arc_swap::ArcSwap;
use certs::{CertCache, Certificates};
use model::{Model, Plan, Report, Row, Rule, Settings, Target};
use outbox::Outbox;
use reading::Slot;
use references::{References, Which};
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
    /// All Ingresses: a list is complete, or which ones are ours has changed.
    pub routes: bool,
    /// These Ingresses.
    pub ingresses: BTreeSet<ObjectKey>,
    /// Ingresses with these Services as backends.
    pub backends: BTreeSet<ObjectKey>,
    /// Ingresses that name these Secrets.
    pub secrets: BTreeSet<ObjectKey>,
    /// Only what is written back about these Ingresses.
    pub reports: BTreeSet<ObjectKey>,
    /// Fronts of Gateways, with all routes.
    pub fronts: bool,
    /// These routes of Gateways.
    pub gateway_routes: BTreeSet<RouteKey>,
    /// Only what is written back about Gateways and others that are no routes, or what makes Gateways reachable.
    pub front_reports: bool,
    /// Endpoints of these Services, or how they are chosen.
    pub services: BTreeSet<ObjectKey>,
}

/// Turns views into what the data plane reads.
pub struct Planner {
    shared: Arc<Shared>,
    settings: Settings,
    model: Model,
    reports: Arc<Outbox<Option<Report>>>,
    gateways: Option<GatewayPlanner>,
    acme: Option<watch_channel::Sender<Arc<Vec<Wanted>>>>,
    references: References,
}

/// The planner's part for Gateways.
struct GatewayPlanner {
    settings: gateway::Settings,
    certificates: CertCache,
    kept: Kept,
    reports: watch_channel::Sender<Arc<Vec<Arc<gateway::report::Report>>>>,
    writes: watch_channel::Sender<Arc<Vec<expose::Write>>>,
}

/// What comes out of the planner for those who write to the API about Gateways.
pub struct GatewayOutput {
    /// What objects are told.
    pub reports: watch_channel::Receiver<Arc<Vec<Arc<gateway::report::Report>>>>,
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
        Self { routes: true, fronts: true, front_reports: true, ..Self::default() }
    }

    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        !self.touches_ingresses() && !self.touches_gateways() && self.services.is_empty()
    }

    fn touches_gateways(&self) -> bool {
        self.fronts || self.front_reports || !self.gateway_routes.is_empty()
    }

    fn touches_ingresses(&self) -> bool {
        let sets = [&self.ingresses, &self.backends, &self.secrets, &self.reports];
        self.routes || sets.iter().any(|set| !set.is_empty())
    }

    /// Adds what another change made stale.
    pub fn merge(&mut self, other: Self) {
        self.routes |= other.routes;
        self.ingresses.extend(other.ingresses);
        self.backends.extend(other.backends);
        self.secrets.extend(other.secrets);
        self.reports.extend(other.reports);
        self.fronts |= other.fronts;
        self.front_reports |= other.front_reports;
        self.gateway_routes.extend(other.gateway_routes);
        self.services.extend(other.services);
    }
}

impl Planner {
    /// A planner and the reports it makes, for those who write them back.
    pub fn new(shared: Arc<Shared>, settings: Settings) -> (Self, Arc<Outbox<Option<Report>>>) {
        let reports = Arc::<Outbox<_>>::default();
        let outbox = Arc::clone(&reports);
        let (model, references) = (Model::default(), References::default());
        (Self { shared, settings, model, reports, gateways: None, acme: None, references }, outbox)
    }

    /// Serves Gateways too.
    pub fn with_gateways(&mut self, settings: gateway::Settings) -> GatewayOutput {
        let (reports, to_status) = watch_channel::channel(Arc::default());
        let (writes, to_expose) = watch_channel::channel(Arc::default());
        self.gateways = Some(GatewayPlanner {
            settings,
            certificates: CertCache::default(),
            kept: Kept::default(),
            reports,
            writes,
        });
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

    /// The Secrets and ConfigMaps that are needed to apply what is new in a view, where they are others than before. To be
    /// asked of all that is new, before it is applied: it may become more.
    pub fn needed(&mut self, view: &View, dirt: &mut Dirt) -> Option<BTreeSet<Which>> {
        let certificates = self.gateways.as_mut().map(|own| &mut own.certificates);
        self.references.update(view, &self.settings, dirt, certificates).then(|| self.references.all())
    }

    /// Brings the data plane up to the view.
    pub fn apply(&mut self, view: &View, dirt: &Dirt) {
        if dirt.routes {
            // After a complete list, or in another zone, endpoints may be others everywhere.
            self.shared.registry.live().iter().for_each(|upstream| self.bring(view, upstream));
        }
        for service in &dirt.services {
            self.shared.registry.of_service(service).iter().for_each(|upstream| self.bring(view, upstream));
        }
        if dirt.touches_ingresses() {
            let plan = self.model.update(view, &self.settings, dirt);
            self.follow(view, plan);
        }
        if let Some(acme) = &self.acme
            && wanted::concerned(view, dirt, &acme.borrow())
        {
            let all = wanted::all(view, &self.settings);
            acme.send_if_modified(|old| {
                let changed = **old != all;
                *old = Arc::new(all);
                changed
            });
        }
        if dirt.touches_gateways() {
            self.apply_gateways(view, dirt);
        }
    }

    /// Brings an upstream up to the view.
    fn bring(&self, view: &View, upstream: &Upstream) {
        let BackendKey::Service { service, .. } = &upstream.key else { return };
        upstream.tune(view.services.get(service).map(|s| balancing::read(s).0).unwrap_or_default());
        if upstream.set(&model::addresses(view, &upstream.key)) {
            self.shared.metrics.endpoint_changes.inc();
        }
    }

    /// The upstream of a key, which already has its endpoints, so that a route can serve the moment it can be found.
    fn upstream(&self, view: &View, key: &BackendKey) -> Arc<Upstream> {
        let (upstream, new) = self.shared.registry.get(key);
        if new {
            self.bring(view, &upstream);
            if matches!(key, BackendKey::External { .. }) {
                self.shared.names_changed.notify_one();
            }
        }
        upstream
    }

    fn apply_gateways(&mut self, view: &View, dirt: &Dirt) {
        let Some(mut own) = self.gateways.take() else { return };
        let upstream = &mut |key: &BackendKey| self.upstream(view, key);
        own.kept.is_complete &= !dirt.fronts;
        let model = gateway::model::build(view, &mut own.certificates, &mut own.kept, &dirt.gateway_routes, upstream);
        own.certificates.sweep();
        if dirt.fronts || !dirt.gateway_routes.is_empty() {
            self.shared.local.store(Arc::new(model.local));
            self.shared.fronts.send_replace(Arc::new(model.fronts));
        }
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

    /// Does what a plan says.
    fn follow(&self, view: &View, plan: Plan) {
        if !plan.rows.is_empty() {
            let mut table = Table::clone(&self.shared.table.load());
            let mut certificates = Certificates::clone(&self.shared.certificates.load());
            for (slot, row) in plan.rows {
                match (&*slot, row) {
                    (Slot::Path(host, path), Some(Row::Rule(rule))) => {
                        table.insert(host, path, Arc::new(self.route(view, *rule)));
                    }
                    (Slot::Path(host, path), _) => table.remove(host, path),
                    (Slot::Default(host), Some(Row::Default(owner, target))) => {
                        let route = Route::plain(owner, self.action(view, &target));
                        table.set_default(host, Some(Arc::new(route)));
                    }
                    (Slot::Default(host), _) => table.set_default(host, None),
                    (Slot::Certificate(host), Some(Row::Certificate(key))) => certificates.insert(host, key),
                    (Slot::Certificate(host), _) => certificates.remove(host),
                }
            }
            let metrics = &self.shared.metrics;
            metrics.routes.set(i64::try_from(table.len()).unwrap_or(i64::MAX));
            metrics.reloads.inc();
            // Certificates first: a host that has just got a route should not show the default certificate.
            self.shared.certificates.store(Arc::new(certificates));
            self.shared.table.store(Arc::new(table));
        }
        self.reports.put(plan.reports);
    }

    fn route(&self, view: &View, rule: Rule) -> Route {
        let canary = rule.canary.and_then(|(choice, target)| match target {
            Target::Backend(key) => Some(Canary { choice, upstream: self.upstream(view, &key) }),
            // A canary that leads nowhere takes nobody with it.
            Target::Unavailable(_) => None,
        });
        let action = self.action(view, &rule.target);
        Route { policy: rule.policy, rewrite: rule.rewrite, canary, ..Route::plain(rule.owner, action) }
    }

    fn action(&self, view: &View, target: &Target) -> Action {
        match target {
            Target::Backend(key) => Action::Forward(self.upstream(view, key)),
            Target::Unavailable(why) => Action::Unavailable(Arc::clone(why)),
        }
    }
}

#[cfg(test)]
mod history_gateways;
#[cfg(test)]
mod history_tests;
