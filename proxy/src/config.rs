//! From API objects to the routing table: `watch → model → plan → apply`.
//!
//! [`watch`] keeps the [`view::View`], [`model`] is the pure function from it to rules, certificates and reports, and
//! [`Planner`] applies the smallest change: new endpoints go into the upstreams that live on, anything else swaps the
//! table and the certificates whole. Readers never wait and never see half a change.

pub mod annotations;
pub mod caches;
pub mod certs;
pub mod model;
pub mod names;
pub mod view;
pub mod watch;

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
    /// The sockets on which fronts are served, by their local address: the other half of [`Self::fronts`].
    pub sockets: ArcSwap<HashMap<SocketAddr, Arc<Socket>>>,
    /// Endpoints of the backends in use.
    pub registry: Registry,
    /// Counters.
    pub metrics: Metrics,
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
    /// Endpoints of these Services.
    pub services: BTreeSet<ObjectKey>,
}

/// Turns views into what the data plane reads.
pub struct Planner {
    shared: Arc<Shared>,
    settings: Settings,
    caches: Caches,
    reports: watch_channel::Sender<Arc<Vec<Report>>>,
}

impl Shared {
    /// Nothing configured yet.
    pub fn new() -> Result<Self, prometheus::Error> {
        Ok(Self {
            table: ArcSwap::default(),
            certificates: ArcSwap::default(),
            fronts: watch_channel::channel(Arc::default()).0,
            sockets: ArcSwap::default(),
            registry: Registry::default(),
            metrics: Metrics::new()?,
            names_changed: Notify::new(),
        })
    }
}

impl Dirt {
    /// Everything.
    pub fn all() -> Self {
        Self { routes: true, reports: true, services: BTreeSet::new() }
    }

    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        !self.routes && !self.reports && self.services.is_empty()
    }

    /// Adds what another change made stale.
    pub fn merge(&mut self, other: Self) {
        self.routes |= other.routes;
        self.reports |= other.reports;
        self.services.extend(other.services);
    }
}

impl Planner {
    /// A planner and the reports it makes, for those who write them back.
    pub fn new(shared: Arc<Shared>, settings: Settings) -> (Self, watch_channel::Receiver<Arc<Vec<Report>>>) {
        let (reports, receiver) = watch_channel::channel(Arc::default());
        (Self { shared, settings, caches: Caches::default(), reports }, receiver)
    }

    /// Brings the data plane up to the view.
    pub fn apply(&mut self, view: &View, dirt: &Dirt) {
        if dirt.routes {
            let model = model::build(view, &self.settings, &mut self.caches);
            self.swap(view, model);
        } else {
            for service in &dirt.services {
                for upstream in self.shared.registry.of_service(service) {
                    if upstream.set(&model::addresses(view, &upstream.key)) {
                        self.shared.metrics.endpoint_changes.inc();
                    }
                }
            }
            if dirt.reports {
                let model = model::build(view, &self.settings, &mut self.caches);
                self.reports.send_replace(Arc::new(model.reports));
            }
        }
    }

    fn swap(&mut self, view: &View, model: Model) {
        let mut table = Table::default();
        for rule in &model.rules {
            let canary = rule.canary.as_ref().and_then(|(choice, target)| match target {
                Target::Backend(key) => Some(Canary { choice: choice.clone(), upstream: self.upstream(view, key) }),
                // A canary that leads nowhere takes nobody with it.
                Target::Unavailable(_) => None,
            });
            let (owner, action) = (rule.owner.clone(), self.action(view, &rule.target));
            let (policy, rewrite) = (rule.policy.clone(), rule.rewrite.clone());
            let route = Route { policy, rewrite, canary, ..Route::plain(owner, action) };
            table.insert(&rule.host, &rule.path, Arc::new(route));
        }
        for (host, owner, target) in &model.defaults {
            table.set_default(host, Arc::new(Route::plain(owner.clone(), self.action(view, target))));
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

    fn action(&self, view: &View, target: &Target) -> Action {
        match target {
            Target::Backend(key) => Action::Forward(self.upstream(view, key)),
            Target::Unavailable(why) => Action::Unavailable(Arc::clone(why)),
        }
    }

    /// An upstream that already has its endpoints, so that a route can serve the moment it can be found.
    fn upstream(&self, view: &View, key: &BackendKey) -> Arc<Upstream> {
        let upstream = self.shared.registry.get(key);
        if matches!(key, BackendKey::Service { .. }) {
            upstream.set(&model::addresses(view, key));
        }
        upstream
    }
}
