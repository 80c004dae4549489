//! The pure middle: from the view to rules, certificates and a report for every Ingress.
//!
//! Ingresses are taken in the order of their age (then namespace and name), so that of two that claim the same host
//! and path the older one wins and the younger one is told. A mistake never takes more with it than the rule it is in.

use super::annotations::Asked;
use super::caches::Caches;
use super::certs::Certificates;
use super::view::View;
use crate::route::path::BadPath;
use crate::route::policy::{CanaryChoice, Policy, Rewrite};
use crate::route::upstream::{BackendKey, Protocol};
use crate::route::{HostPattern, ObjectKey, PathPattern};
use causeway_api::endpoints;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, Ingress, IngressBackend, IngressRule, IngressServiceBackend, IngressTLS,
};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
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

/// Everything that shall be in force.
#[derive(Debug, Default)]
pub struct Model {
    /// Rules; no two have the same host and path.
    pub rules: Vec<Rule>,
    /// What answers for a host when no rule does; [`HostPattern::Any`] is the default of all.
    pub defaults: Vec<(HostPattern, ObjectKey, Target)>,
    /// Certificates by server name.
    pub certificates: Certificates,
    /// One for each Ingress of ours, oldest first.
    pub reports: Vec<Report>,
}

/// One rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// For these hosts.
    pub host: HostPattern,
    /// And these paths.
    pub path: PathPattern,
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

struct Builder<'a> {
    view: &'a View,
    model: Model,
    /// Who has a host and path, and where its rule stands in the model.
    claims: HashMap<(HostPattern, PathPattern), (ObjectKey, usize)>,
    defaults: HashMap<HostPattern, ObjectKey>,
    certificates: HashMap<HostPattern, (ObjectKey, ObjectKey)>,
}

/// Builds the model.
pub fn build(view: &View, settings: &Settings, caches: &mut Caches) -> Model {
    let mut builder = Builder {
        view,
        model: Model::default(),
        claims: HashMap::new(),
        defaults: HashMap::new(),
        certificates: HashMap::new(),
    };
    // Canaries last: they are part of other Ingresses' rules.
    let mut canaries = Vec::new();
    for ingress in owned(view, settings) {
        let (asked, mut problems) = caches.asked(view, &ingress);
        match &asked.canary {
            Some(choice) => canaries.push((builder.model.reports.len(), choice.clone(), Arc::clone(&asked))),
            None => builder.ingress(&ingress, &asked, caches, &mut problems),
        }
        builder.model.reports.push(Report { ingress, problems });
    }
    for (at, choice, asked) in canaries {
        let ingress = Arc::clone(&builder.model.reports[at].ingress);
        let mut problems = std::mem::take(&mut builder.model.reports[at].problems);
        builder.canary(&ingress, &choice, &asked, &mut problems);
        builder.model.reports[at].problems = problems;
    }
    caches.sweep();
    builder.model
}

/// The addresses of a backend that may be sent new requests.
pub fn addresses(view: &View, key: &BackendKey) -> Vec<SocketAddr> {
    let BackendKey::Service { service, port, .. } = key else { return Vec::new() };
    let all = endpoints::of_port(view.slices_of(service), port);
    endpoints::near(&all, &view.node, view.zone.as_deref()).into_iter().map(|e| SocketAddr::new(e.ip, e.port)).collect()
}

/// The Ingresses of our class, oldest first.
pub fn owned(view: &View, settings: &Settings) -> Vec<Arc<Ingress>> {
    let ours: Vec<_> = view
        .classes
        .values()
        .filter(|c| c.spec.as_ref().and_then(|s| s.controller.as_deref()) == Some(CONTROLLER))
        .collect();
    let is_default = if ours.is_empty() {
        settings.default_class
    } else {
        ours.iter().any(|c| {
            let annotations = c.metadata.annotations.as_ref();
            annotations.and_then(|a| a.get(DEFAULT_CLASS_ANNOTATION)).is_some_and(|v| v == "true")
        })
    };
    let named = |name: &str| match view.classes.get(&ObjectKey::new("", name)) {
        Some(class) => class.spec.as_ref().and_then(|s| s.controller.as_deref()) == Some(CONTROLLER),
        None => name == settings.class,
    };
    let mut all: Vec<_> = view
        .ingresses
        .values()
        .filter(|i| {
            let annotation = i.metadata.annotations.as_ref().and_then(|a| a.get(CLASS_ANNOTATION));
            match i.spec.as_ref().and_then(|s| s.ingress_class_name.as_ref()).or(annotation) {
                Some(name) => named(name),
                None => is_default,
            }
        })
        .cloned()
        .collect();
    all.sort_by_cached_key(|i| (i.metadata.creation_timestamp.clone().map(|t| t.0), ObjectKey::of(&**i)));
    all
}

impl Builder<'_> {
    fn ingress(&mut self, ingress: &Ingress, asked: &Asked, caches: &mut Caches, problems: &mut Vec<Problem>) {
        let Some(spec) = &ingress.spec else { return };
        let owner = ObjectKey::of(ingress);
        let default = spec.default_backend.as_ref().map(|b| self.target(&owner, b, asked, problems));
        for rule in spec.rules.iter().flatten() {
            self.rule(&owner, rule, default.as_ref(), asked, problems);
        }
        if let Some(target) = default {
            let alone = spec.rules.as_ref().is_none_or(Vec::is_empty);
            match self.defaults.entry(HostPattern::Any) {
                Entry::Vacant(free) => {
                    free.insert(owner.clone());
                    self.model.defaults.push((HostPattern::Any, owner.clone(), target));
                }
                Entry::Occupied(taken) if alone && taken.get() != &owner => problems.push(Problem {
                    reason: "Conflict",
                    message: format!(
                        "the default backend is that of Ingress {}, which is older; remove one of the two",
                        taken.get()
                    ),
                }),
                Entry::Occupied(_) => {}
            }
        }
        for tls in spec.tls.iter().flatten() {
            self.tls(&owner, tls, caches, problems);
        }
    }

    /// Adds an Ingress' backends to the rules of others that have the same hosts and paths.
    fn canary(&mut self, ingress: &Ingress, choice: &CanaryChoice, asked: &Asked, problems: &mut Vec<Problem>) {
        let owner = ObjectKey::of(ingress);
        for rule in ingress.spec.iter().flat_map(|s| s.rules.iter().flatten()) {
            for entry in rule.http.iter().flat_map(|http| &http.paths) {
                let text = entry.path.as_deref().unwrap_or("/");
                let key = (HostPattern::parse(rule.host.as_deref()), pattern(entry, asked));
                let main = match key {
                    // The main Ingress may have it as an expression, or not.
                    (Ok(host), Ok(path)) => [Ok(path), PathPattern::prefix(text), PathPattern::regex(text)]
                        .into_iter()
                        .flatten()
                        .find_map(|path| self.claims.get(&(host.clone(), path)).map(|(_, at)| *at)),
                    _ => None,
                };
                let target = self.target(&owner, &entry.backend, asked, problems);
                match main {
                    Some(at) if self.model.rules[at].owner.namespace != owner.namespace => problems.push(Problem {
                        reason: "CanaryWithoutMain",
                        message: format!("path {text:?} belongs to an Ingress of another namespace"),
                    }),
                    Some(at) if self.model.rules[at].canary.is_none() => {
                        self.model.rules[at].canary = Some((choice.clone(), target));
                    }
                    Some(_) => problems.push(Problem {
                        reason: "Conflict",
                        message: format!("path {text:?} has an older canary already"),
                    }),
                    None => problems.push(Problem {
                        reason: "CanaryWithoutMain",
                        message: format!(
                            "host {:?} path {text:?}: there is no other Ingress with it that this could be the canary of",
                            rule.host.as_deref().unwrap_or("")
                        ),
                    }),
                }
            }
        }
    }

    fn rule(
        &mut self,
        owner: &ObjectKey,
        rule: &IngressRule,
        default: Option<&Target>,
        asked: &Asked,
        problems: &mut Vec<Problem>,
    ) {
        let host = match HostPattern::parse(rule.host.as_deref()) {
            Ok(host) => host,
            Err(error) => {
                let host = rule.host.as_deref().unwrap_or("");
                problems.push(Problem { reason: "InvalidHost", message: format!("host {host:?}: {error}") });
                return;
            }
        };
        if let Some(target) = default
            && host != HostPattern::Any
            && !self.defaults.contains_key(&host)
        {
            self.defaults.insert(host.clone(), owner.clone());
            self.model.defaults.push((host.clone(), owner.clone(), target.clone()));
        }
        for path in rule.http.iter().flat_map(|http| &http.paths) {
            self.path(owner, &host, path, asked, problems);
        }
    }

    fn path(
        &mut self,
        owner: &ObjectKey,
        host: &HostPattern,
        entry: &HTTPIngressPath,
        asked: &Asked,
        problems: &mut Vec<Problem>,
    ) {
        let text = entry.path.as_deref().unwrap_or("/");
        let path = match pattern(entry, asked) {
            Ok(path) => path,
            Err(error) => {
                problems.push(Problem { reason: "InvalidPath", message: format!("path {text:?}: {error}") });
                return;
            }
        };
        match self.claims.entry((host.clone(), path.clone())) {
            Entry::Occupied(winner) => {
                let (winner, _) = winner.get();
                let message = if winner == owner {
                    format!("host {host} path {text} ({}) stands here twice; the first counts", entry.path_type)
                } else {
                    format!(
                        "host {host} path {text} ({}) is served by Ingress {winner}, which is older; change one of the two",
                        entry.path_type
                    )
                };
                problems.push(Problem { reason: "Conflict", message });
                return;
            }
            Entry::Vacant(free) => {
                free.insert((owner.clone(), self.model.rules.len()));
            }
        }
        let target = self.target(owner, &entry.backend, asked, problems);
        let rewrite = asked.rewrite.as_ref().map(|to| Rewrite { from: path.compiled(), to: to.clone() });
        let (host, owner, policy) = (host.clone(), owner.clone(), asked.policy.clone());
        self.model.rules.push(Rule { host, path, owner, target, policy, rewrite, canary: None });
    }

    fn target(
        &self,
        owner: &ObjectKey,
        backend: &IngressBackend,
        asked: &Asked,
        problems: &mut Vec<Problem>,
    ) -> Target {
        let result = match (&backend.service, &backend.resource) {
            (Some(service), _) => self.service(owner, service, asked, problems),
            (None, Some(resource)) => Err(Problem {
                reason: "ResourceBackend",
                message: format!(
                    "backend {} {} is a resource; only Services can be backends here",
                    resource.kind, resource.name
                ),
            }),
            (None, None) => Err(Problem { reason: "NoBackend", message: "the backend names no Service".to_owned() }),
        };
        match result {
            Ok(key) => Target::Backend(key),
            Err(problem) => {
                let why = problem.message.as_str().into();
                note(problems, problem);
                Target::Unavailable(why)
            }
        }
    }

    fn service(
        &self,
        owner: &ObjectKey,
        backend: &IngressServiceBackend,
        asked: &Asked,
        problems: &mut Vec<Problem>,
    ) -> Result<BackendKey, Problem> {
        let key = ObjectKey { namespace: Arc::clone(&owner.namespace), name: backend.name.as_str().into() };
        let Some(service) = self.view.services.get(&key) else {
            return Err(Problem {
                reason: "ServiceNotFound",
                message: format!("Service {key} is not there; create it or change the backend"),
            });
        };
        let port = find_port(service, backend);
        let protocol = match port.and_then(|p| p.app_protocol.as_deref()) {
            Some("kubernetes.io/h2c" | "h2c" | "grpc") => Protocol::H2c,
            Some("https" | "kubernetes.io/wss") => Protocol::Https,
            _ => asked.protocol.unwrap_or_default(),
        };
        let spec = service.spec.as_ref();
        if spec.and_then(|s| s.type_.as_deref()) == Some("ExternalName") {
            let name = spec.and_then(|s| s.external_name.as_deref()).unwrap_or("");
            // Such a Service may do without ports; then the backend's number is the port to connect to.
            let number = port.map(|p| p.port).or_else(|| backend.port.as_ref().and_then(|p| p.number));
            return match number.and_then(|n| u16::try_from(n).ok()) {
                Some(port) if !name.is_empty() => Ok(BackendKey::External { name: name.into(), port, protocol }),
                _ => Err(no_port(&key, backend)),
            };
        }
        let port = port.ok_or_else(|| no_port(&key, backend))?;
        for message in super::balancing::read(service).1 {
            note(problems, Problem { reason: "InvalidAnnotation", message: format!("Service {key}: {message}") });
        }
        Ok(BackendKey::Service { service: key, port: port.name.as_deref().unwrap_or("").into(), protocol, tls: None })
    }

    fn tls(&mut self, owner: &ObjectKey, tls: &IngressTLS, caches: &mut Caches, problems: &mut Vec<Problem>) {
        let Some(name) = tls.secret_name.as_deref().filter(|n| !n.is_empty()) else { return };
        let secret = ObjectKey { namespace: Arc::clone(&owner.namespace), name: name.into() };
        let found = match self.view.secrets.get(&secret) {
            Some(object) => caches.certificates.get(&secret, object).map_err(|error| Problem {
                reason: "InvalidCertificate",
                message: format!("Secret {secret}: {error}; its hosts get the default certificate until it is mended"),
            }),
            None => Err(Problem {
                reason: "SecretNotFound",
                message: format!("Secret {secret} of type kubernetes.io/tls is not there"),
            }),
        };
        let key = match found {
            Ok(key) => key,
            Err(problem) => {
                problems.push(problem);
                return;
            }
        };
        let named: Vec<Option<&str>> = match tls.hosts.as_deref() {
            None | Some([]) => vec![None],
            Some(hosts) => hosts.iter().map(|h| Some(h.as_str())).collect(),
        };
        for text in named {
            let host = match HostPattern::parse(text) {
                Ok(host) => host,
                Err(error) => {
                    let message = format!("tls host {:?}: {error}", text.unwrap_or(""));
                    problems.push(Problem { reason: "InvalidHost", message });
                    continue;
                }
            };
            match self.certificates.entry(host.clone()) {
                Entry::Occupied(taken) if taken.get().1 != secret => problems.push(Problem {
                    reason: "Conflict",
                    message: format!(
                        "the certificate for {host} is that of Ingress {} (Secret {}), which is older",
                        taken.get().0,
                        taken.get().1
                    ),
                }),
                Entry::Occupied(_) => {}
                Entry::Vacant(free) => {
                    free.insert((owner.clone(), secret.clone()));
                    self.model.certificates.insert(&host, Arc::clone(&key));
                }
            }
        }
    }
}

/// What several paths of an Ingress have in common is told once.
fn note(problems: &mut Vec<Problem>, problem: Problem) {
    if !problems.contains(&problem) {
        problems.push(problem);
    }
}

/// What paths an entry is for: nginx' expressions only where its annotations ask for them.
fn pattern(entry: &HTTPIngressPath, asked: &Asked) -> Result<PathPattern, BadPath> {
    let text = entry.path.as_deref().unwrap_or("/");
    match entry.path_type.as_str() {
        "Exact" => PathPattern::exact(text),
        "ImplementationSpecific" if asked.regex => PathPattern::regex(text),
        _ => PathPattern::prefix(text),
    }
}

fn find_port<'a>(service: &'a Service, backend: &IngressServiceBackend) -> Option<&'a ServicePort> {
    let wanted = backend.port.as_ref()?;
    service.spec.as_ref()?.ports.iter().flatten().find(|p| match (&wanted.name, wanted.number) {
        (Some(name), _) if !name.is_empty() => p.name.as_ref() == Some(name),
        (_, number) => Some(p.port) == number,
    })
}

fn no_port(key: &ObjectKey, backend: &IngressServiceBackend) -> Problem {
    let wanted = backend.port.as_ref();
    let name = wanted.and_then(|p| p.name.clone()).or_else(|| Some(wanted?.number?.to_string()));
    Problem {
        reason: "ServicePortNotFound",
        message: format!("Service {key} has no port {}; see its spec.ports", name.as_deref().unwrap_or("(none given)")),
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
