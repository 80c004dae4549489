//! What one Ingress asks for, read by itself: the places in the table that it claims and what it wants there. Whether it
//! gets them is for [`super::claims`] to say. A mistake never takes more with it than the rule it is in.

use super::asked::{self, Known};
use super::certs::CertCache;
use super::model::{Problem, Target};
use super::staple;
use super::view::{TLS, View};
use crate::route::path::BadPath;
use crate::route::policy::Rewrite;
use crate::route::upstream::{BackendKey, Protocol};
use crate::route::{HostPattern, ObjectKey, PathPattern, Rank, rank};
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::networking::v1::{HTTPIngressPath, Ingress, IngressBackend, IngressServiceBackend, IngressTLS};
use rustls::sign::CertifiedKey;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A place that only one Ingress can have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    /// The rule for these hosts and paths.
    Path(HostPattern, PathPattern),
    /// What answers for these hosts when no rule does; [`HostPattern::Any`] is the default of all.
    Default(HostPattern),
    /// The certificate of these server names.
    Certificate(HostPattern),
}

/// What an Ingress wants.
#[derive(Debug)]
pub struct Reading {
    /// Its place among the others, and its name.
    pub rank: Rank,
    /// What its annotations ask for.
    pub known: Arc<Known>,
    /// What it claims, in the order of its spec.
    pub claims: Vec<Claim>,
    /// The rules of others whose requests it takes a part of, when it is a canary.
    pub follows: Vec<Follow>,
    /// What is wrong with it whatever others claim.
    pub problems: Vec<Problem>,
    /// It has no rules, only a default backend.
    pub without_rules: bool,
    /// Services on which this depends.
    pub services: BTreeSet<ObjectKey>,
    /// TLS Secrets on which this depends.
    pub secrets: BTreeSet<ObjectKey>,
}

/// A place, and what should be there.
#[derive(Debug)]
pub struct Claim {
    /// Where.
    pub slot: Arc<Slot>,
    /// What.
    pub what: What,
}

/// What is claimed.
#[derive(Debug)]
pub enum What {
    /// A rule leads there, with this path sent on.
    Route(Target, Option<Rewrite>),
    /// A default backend.
    Default(Target),
    /// A certificate, of this Secret.
    Certificate(ObjectKey, Arc<CertifiedKey>),
}

/// A path of a canary.
#[derive(Debug)]
pub struct Follow {
    /// Where the rule may be that it belongs to: the first that exists counts.
    pub slots: Vec<Arc<Slot>>,
    /// Its host, as it was written.
    pub host: Box<str>,
    /// Its path, likewise.
    pub path: Box<str>,
    /// Where its part of the requests goes.
    pub target: Target,
}

struct Reader<'a> {
    view: &'a View,
    reading: Reading,
}

impl Reading {
    /// The Ingress.
    pub fn owner(&self) -> &ObjectKey {
        &self.rank.1
    }
}

/// The Secrets with certificates that an Ingress names.
pub fn tls_secrets(ingress: &Ingress) -> impl Iterator<Item = ObjectKey> {
    let namespace = ingress.metadata.namespace.as_deref().unwrap_or_default();
    let all = ingress.spec.iter().flat_map(|spec| spec.tls.iter().flatten());
    all.filter_map(move |tls| tls_secret(namespace, tls))
}

fn tls_secret(namespace: &str, tls: &IngressTLS) -> Option<ObjectKey> {
    let name = tls.secret_name.as_deref().filter(|name| !name.is_empty())?;
    Some(ObjectKey::new(namespace, name))
}

/// Reads an Ingress. `before` is what came of it the last time.
pub fn read(view: &View, ingress: &Ingress, before: Option<&Reading>, certificates: &mut CertCache) -> Reading {
    let rank = rank(ingress);
    let known = asked::read(view, ingress, before.map(|b| &b.known));
    let reading = Reading {
        rank,
        problems: known.problems.clone(),
        known,
        claims: Vec::new(),
        follows: Vec::new(),
        without_rules: true,
        services: BTreeSet::new(),
        secrets: BTreeSet::new(),
    };
    let mut reader = Reader { view, reading };
    if reader.reading.known.asked.canary.is_some() {
        reader.canary(ingress);
    } else {
        reader.ingress(ingress, certificates);
    }
    reader.reading
}

impl Reader<'_> {
    fn claim(&mut self, slot: Slot, what: What) {
        self.reading.claims.push(Claim { slot: Arc::new(slot), what });
    }

    fn problem(&mut self, reason: &'static str, message: String) {
        // What several paths of an Ingress have in common is told once.
        let problem = Problem { reason, message };
        if !self.reading.problems.contains(&problem) {
            self.reading.problems.push(problem);
        }
    }

    fn ingress(&mut self, ingress: &Ingress, certificates: &mut CertCache) {
        let Some(spec) = &ingress.spec else { return };
        let default = spec.default_backend.as_ref().map(|b| self.target(b));
        for rule in spec.rules.iter().flatten() {
            self.reading.without_rules = false;
            let host = match HostPattern::parse(rule.host.as_deref()) {
                Ok(host) => host,
                Err(error) => {
                    self.problem("InvalidHost", format!("host {:?}: {error}", rule.host.as_deref().unwrap_or("")));
                    continue;
                }
            };
            if let Some(target) = default.as_ref().filter(|_| host != HostPattern::Any) {
                self.claim(Slot::Default(host.clone()), What::Default(target.clone()));
            }
            for path in rule.http.iter().flat_map(|http| &http.paths) {
                self.path(&host, path);
            }
        }
        if let Some(target) = default {
            self.claim(Slot::Default(HostPattern::Any), What::Default(target));
        }
        for tls in spec.tls.iter().flatten() {
            self.tls(tls, certificates);
        }
    }

    /// An Ingress whose backends take a part of the requests of others' rules with the same hosts and paths.
    fn canary(&mut self, ingress: &Ingress) {
        for rule in ingress.spec.iter().flat_map(|s| s.rules.iter().flatten()) {
            for entry in rule.http.iter().flat_map(|http| &http.paths) {
                let text = entry.path.as_deref().unwrap_or("/");
                let mut slots: Vec<Arc<Slot>> = Vec::new();
                if let (Ok(host), Ok(path)) = (HostPattern::parse(rule.host.as_deref()), self.pattern(entry)) {
                    // The main Ingress may have it as an expression, or not.
                    for path in [Ok(path), PathPattern::prefix(text), PathPattern::regex(text)].into_iter().flatten() {
                        let slot = Slot::Path(host.clone(), path);
                        if slots.iter().all(|s| **s != slot) {
                            slots.push(Arc::new(slot));
                        }
                    }
                }
                let target = self.target(&entry.backend);
                let host = rule.host.as_deref().unwrap_or("").into();
                self.reading.follows.push(Follow { slots, host, path: text.into(), target });
            }
        }
    }

    fn path(&mut self, host: &HostPattern, entry: &HTTPIngressPath) {
        let path = match self.pattern(entry) {
            Ok(path) => path,
            Err(error) => {
                self.problem("InvalidPath", format!("path {:?}: {error}", entry.path.as_deref().unwrap_or("/")));
                return;
            }
        };
        let target = self.target(&entry.backend);
        let to = self.reading.known.asked.rewrite.as_ref();
        let rewrite = to.map(|to| Rewrite { from: path.compiled(), to: to.clone() });
        self.claim(Slot::Path(host.clone(), path), What::Route(target, rewrite));
    }

    /// What paths an entry is for: nginx' expressions only where its annotations ask for them.
    fn pattern(&self, entry: &HTTPIngressPath) -> Result<PathPattern, BadPath> {
        let text = entry.path.as_deref().unwrap_or("/");
        match entry.path_type.as_str() {
            "Exact" => PathPattern::exact(text),
            "ImplementationSpecific" if self.reading.known.asked.regex => PathPattern::regex(text),
            _ => PathPattern::prefix(text),
        }
    }

    fn target(&mut self, backend: &IngressBackend) -> Target {
        let result = match (&backend.service, &backend.resource) {
            (Some(service), _) => self.service(service),
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
                self.problem(problem.reason, problem.message);
                Target::Unavailable(why)
            }
        }
    }

    fn service(&mut self, backend: &IngressServiceBackend) -> Result<BackendKey, Problem> {
        let key =
            ObjectKey { namespace: Arc::clone(&self.reading.owner().namespace), name: backend.name.as_str().into() };
        self.reading.services.insert(key.clone());
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
            _ => self.reading.known.asked.protocol.unwrap_or_default(),
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
            self.problem("InvalidAnnotation", format!("Service {key}: {message}"));
        }
        Ok(BackendKey::Service { service: key, port: port.name.as_deref().unwrap_or("").into(), protocol, tls: None })
    }

    fn tls(&mut self, tls: &IngressTLS, certificates: &mut CertCache) {
        let Some(secret) = tls_secret(&self.reading.owner().namespace, tls) else { return };
        self.reading.secrets.insert(secret.clone());
        let key = match self.view.secret(&secret, TLS) {
            Ok(Some(object)) => match certificates.get(&secret, object) {
                Ok(key) => {
                    let given = object.data.as_ref().is_some_and(|d| d.contains_key(staple::STAPLE));
                    if given && key.ocsp.is_none() {
                        let message =
                            format!("Secret {secret}: its {} is no successful OCSP response in DER", staple::STAPLE);
                        self.problem("InvalidStaple", message);
                    }
                    key
                }
                Err(error) => {
                    let message =
                        format!("Secret {secret}: {error}; its hosts get the default certificate until it is mended");
                    return self.problem("InvalidCertificate", message);
                }
            },
            Ok(None) => {
                let message = format!("Secret {secret} of type {TLS} is not there");
                return self.problem("SecretNotFound", message);
            }
            Err(why) => {
                let message = format!("Secret {secret}: {why}; its hosts get the default certificate until then");
                return self.problem("SecretNotRead", message);
            }
        };
        let named: Vec<Option<&str>> = match tls.hosts.as_deref() {
            None | Some([]) => vec![None],
            Some(hosts) => hosts.iter().map(|h| Some(h.as_str())).collect(),
        };
        for text in named {
            match HostPattern::parse(text) {
                Ok(host) => {
                    self.claim(Slot::Certificate(host), What::Certificate(secret.clone(), Arc::clone(&key)));
                }
                Err(error) => self.problem("InvalidHost", format!("tls host {:?}: {error}", text.unwrap_or(""))),
            }
        }
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
