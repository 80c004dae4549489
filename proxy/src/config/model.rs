//! The pure middle of Ingress: what the view says about rules, certificates and reports, kept from one change to the next
//! so that a change costs what it touches and not what there is. In: a view, and what in it is new. Out: a [`Plan`].
//!
//! [`super::reading`] is what one Ingress asks for, [`super::claims`] who gets what several want.

use super::Dirt;
use super::certs::CertCache;
use super::claims::Claims;
use super::reading::{self, Reading, Slot};
use super::view::View;
use crate::route::ObjectKey;
use crate::route::policy::{CanaryChoice, Policy, Rewrite};
use crate::route::upstream::BackendKey;
use causeway_api::endpoints;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use rustls::sign::CertifiedKey;
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

/// The controller that IngressClasses name to mean us.
pub const CONTROLLER: &str = "causeway.dev/ingress";
/// Marks the class of Ingresses that name none.
pub const DEFAULT_CLASS_ANNOTATION: &str = "ingressclass.kubernetes.io/is-default-class";
/// The old way to name a class.
pub const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// What the model needs to know besides the view.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Our class' name.
    pub class: String,
    /// Whether Ingresses without a class are ours while no IngressClass of ours is there to say so.
    pub default_class: bool,
}

/// All Ingresses of ours, as they were read.
#[derive(Debug, Default)]
pub struct Model {
    ingresses: HashMap<ObjectKey, Entry>,
    claims: Claims,
    /// Ingresses by the Services and Secrets that they depend on.
    by_service: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    by_secret: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    certificates: CertCache,
}

/// One of them.
#[derive(Debug)]
struct Entry {
    ingress: Arc<Ingress>,
    reading: Arc<Reading>,
}

/// What has to be changed to be up to date.
#[derive(Debug, Default)]
pub struct Plan {
    /// What stands in these places now; nothing where it is none.
    pub rows: Vec<(Arc<Slot>, Option<Row>)>,
    /// What these Ingresses are told; none where one is not ours any more.
    pub reports: Vec<(ObjectKey, Option<Report>)>,
}

/// What stands in a place.
#[derive(Debug, Clone)]
pub enum Row {
    /// A rule.
    Rule(Box<Rule>),
    /// A default backend, of this Ingress.
    Default(ObjectKey, Target),
    /// A certificate.
    Certificate(Arc<CertifiedKey>),
}

/// One rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Of this Ingress.
    pub owner: ObjectKey,
    /// Goes there.
    pub target: Target,
    /// What the Ingress' annotations ask for.
    pub policy: Option<Arc<Policy>>,
    /// The path that is sent on.
    pub rewrite: Option<Rewrite>,
    /// Another backend for some of the requests.
    pub canary: Option<(CanaryChoice, Target)>,
}

/// Where a rule leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// To the endpoints of a backend.
    Backend(BackendKey),
    /// Nowhere, for this reason.
    Unavailable(Arc<str>),
}

/// What to tell about an Ingress.
#[derive(Debug, Clone)]
pub struct Report {
    /// The Ingress as it was read.
    pub ingress: Arc<Ingress>,
    /// What is wrong with it; empty when all of it is in force.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// CamelCase, as in events.
    pub reason: &'static str,
    /// What, where, and what to do.
    pub message: String,
}

impl Model {
    /// Takes in what is new in a view.
    pub fn update(&mut self, view: &View, settings: &Settings, dirt: &Dirt) -> Plan {
        let mut stale = dirt.ingresses.clone();
        if dirt.routes {
            stale.extend(self.ingresses.keys().cloned());
            stale.extend(view.ingresses.keys().cloned());
        } else {
            let users = |of: &HashMap<ObjectKey, BTreeSet<ObjectKey>>, key| of.get(key).cloned().unwrap_or_default();
            stale.extend(dirt.backends.iter().flat_map(|key| users(&self.by_service, key)));
            stale.extend(dirt.secrets.iter().flat_map(|key| users(&self.by_secret, key)));
        }
        let ours = ours(view, settings);
        let mut gone = Vec::new();
        for key in &stale {
            match view.ingresses.get(key).filter(|i| ours(i)) {
                Some(ingress) => self.read(view, key, ingress),
                None if self.forget(key) => gone.push((key.clone(), None)),
                None => {}
            }
        }
        for key in &dirt.reports {
            if let (Some(entry), Some(ingress)) = (self.ingresses.get_mut(key), view.ingresses.get(key)) {
                entry.ingress = Arc::clone(ingress);
            }
        }
        let settled = self.claims.settle();
        let told = stale.into_iter().chain(dirt.reports.iter().cloned()).chain(settled.concerned);
        let told: BTreeSet<ObjectKey> = told.collect();
        let reports = told.into_iter().filter_map(|key| Some((self.report(&key)?, key)));
        let reports = gone.into_iter().chain(reports.map(|(report, key)| (key, Some(report)))).collect();
        Plan { rows: settled.rows, reports }
    }

    fn read(&mut self, view: &View, key: &ObjectKey, ingress: &Arc<Ingress>) {
        let before = self.ingresses.get(key).map(|e| Arc::clone(&e.reading));
        let reading = Arc::new(reading::read(view, ingress, before.as_deref(), &mut self.certificates));
        for service in &reading.services {
            self.by_service.entry(service.clone()).or_default().insert(key.clone());
        }
        for secret in secrets(&reading) {
            self.by_secret.entry(secret.clone()).or_default().insert(key.clone());
        }
        if let Some(before) = before {
            self.claims.remove(&before);
            self.leave(key, &before, Some(&reading));
        }
        self.claims.add(&reading);
        self.ingresses.insert(key.clone(), Entry { ingress: Arc::clone(ingress), reading });
    }

    fn forget(&mut self, key: &ObjectKey) -> bool {
        let Some(entry) = self.ingresses.remove(key) else { return false };
        self.claims.remove(&entry.reading);
        self.leave(key, &entry.reading, None);
        true
    }

    /// An Ingress does not depend any more on what it does `now` not depend on.
    fn leave(&mut self, key: &ObjectKey, before: &Reading, now: Option<&Reading>) {
        for service in before.services.iter().filter(|s| now.is_none_or(|now| !now.services.contains(s))) {
            take(&mut self.by_service, service, key);
        }
        for secret in secrets(before).filter(|s| now.is_none_or(|now| !secrets(now).any(|other| other == *s))) {
            if take(&mut self.by_secret, secret, key) {
                self.certificates.forget(secret);
            }
        }
    }

    fn report(&self, key: &ObjectKey) -> Option<Report> {
        let entry = self.ingresses.get(key)?;
        let mut problems = entry.reading.problems.clone();
        problems.extend(self.claims.conflicts(&entry.reading));
        Some(Report { ingress: Arc::clone(&entry.ingress), problems })
    }
}

fn secrets(reading: &Reading) -> impl Iterator<Item = &ObjectKey> {
    reading.secrets.iter().chain(&reading.known.auth_secret)
}

/// Says whether nobody is left.
fn take(of: &mut HashMap<ObjectKey, BTreeSet<ObjectKey>>, what: &ObjectKey, user: &ObjectKey) -> bool {
    let Some(users) = of.get_mut(what) else { return false };
    users.remove(user);
    let none = users.is_empty();
    if none {
        of.remove(what);
    }
    none
}

/// The addresses of a backend that may be sent new requests.
pub fn addresses(view: &View, key: &BackendKey) -> Vec<SocketAddr> {
    let BackendKey::Service { service, port, .. } = key else { return Vec::new() };
    let all = endpoints::of_port(view.slices_of(service), port);
    endpoints::near(&all, &view.node, view.zone.as_deref()).into_iter().map(|e| SocketAddr::new(e.ip, e.port)).collect()
}

/// Tells which Ingresses are of our class.
pub fn ours<'a>(view: &'a View, settings: &'a Settings) -> impl Fn(&Ingress) -> bool + 'a {
    let is_our = |class: &IngressClass| class.spec.as_ref().and_then(|s| s.controller.as_deref()) == Some(CONTROLLER);
    let mut classes = view.classes.values().filter(|c| is_our(c)).peekable();
    let is_default = if classes.peek().is_none() {
        settings.default_class
    } else {
        classes.any(|c| {
            let annotations = c.metadata.annotations.as_ref();
            annotations.and_then(|a| a.get(DEFAULT_CLASS_ANNOTATION)).is_some_and(|v| v == "true")
        })
    };
    move |ingress| {
        let annotation = ingress.metadata.annotations.as_ref().and_then(|a| a.get(CLASS_ANNOTATION));
        match ingress.spec.as_ref().and_then(|s| s.ingress_class_name.as_ref()).or(annotation) {
            Some(name) => match view.classes.get(&ObjectKey::new("", name)) {
                Some(class) => is_our(class),
                None => *name == settings.class,
            },
            None => is_default,
        }
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
