//! References from one object to another: whether they lead anywhere, and whether they are allowed to (ReferenceGrant).

use super::types::{BackendTlsPolicy, GROUP, GrantTo, Reference};
use crate::config::certs;
use crate::config::certs::CertCache;
use crate::config::references::Which;
use crate::config::view::{TLS, View};
use crate::route::ObjectKey;
use crate::route::upstream::{BackendKey, BackendTls, Protocol, SubjectName};
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServicePort};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::sign::CertifiedKey;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The reason said of what leads to an object that nobody has read yet.
const UNREAD: &str = "Pending";

/// Why a reference, or a whole object, is not as it should be: a condition's reason and message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// CamelCase, from the API's list of reasons.
    pub reason: &'static str,
    /// What, where, and what to do.
    pub message: String,
}

impl Problem {
    /// A problem.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Who refers: a kind of an API group, in a namespace.
#[derive(Debug, Clone, Copy)]
pub struct From<'a> {
    /// API group.
    pub group: &'a str,
    /// Kind.
    pub kind: &'a str,
    /// Namespace.
    pub namespace: &'a str,
}

impl<'a> From<'a> {
    /// Of an object of the Gateway API.
    pub fn of(kind: &'a str, namespace: &'a str) -> Self {
        Self { group: GROUP, kind, namespace }
    }
}

/// Follows references.
pub struct Refs<'a> {
    view: &'a View,
    grants: HashMap<&'a str, Vec<(From<'a>, &'a GrantTo)>>,
    policies: BTreeMap<(ObjectKey, Option<String>), PolicyState<'a>>,
    /// The Secrets and ConfigMaps that were asked for, and may be.
    needed: RefCell<BTreeSet<Which>>,
}

/// What a BackendTLSPolicy comes to for one target.
#[derive(Debug, Clone)]
pub struct PolicyState<'a> {
    /// The policy that counts.
    pub policy: &'a Arc<BackendTlsPolicy>,
    /// Its terms; or why nothing may be sent to the target.
    pub terms: Result<Arc<BackendTls>, Problem>,
}

impl<'a> Refs<'a> {
    /// For what is in the view.
    pub fn new(view: &'a View) -> Self {
        let mut grants: HashMap<&str, Vec<_>> = HashMap::new();
        for grant in view.gateways.grants.values() {
            let to = grants.entry(grant.metadata.namespace.as_deref().unwrap_or_default()).or_default();
            for from in &grant.spec.from {
                let from = From { group: &from.group, kind: &from.kind, namespace: &from.namespace };
                to.extend(grant.spec.to.iter().map(|t| (from, t)));
            }
        }
        let mut refs = Self { view, grants, policies: BTreeMap::new(), needed: RefCell::default() };
        for policy in super::model::by_age(view.gateways.policies.values()) {
            let terms = refs.terms(policy);
            for target in &policy.spec.target_refs {
                if !target.is("", "Service", "", "Service") {
                    continue;
                }
                let service = ObjectKey::new(policy.metadata.namespace.as_deref().unwrap_or_default(), &target.name);
                let state = PolicyState { policy, terms: terms.clone() };
                refs.policies.entry((service, target.section_name.clone())).or_insert(state);
            }
        }
        refs
    }

    /// The Secrets and ConfigMaps that have been asked for until now.
    pub fn needed(self) -> BTreeSet<Which> {
        self.needed.into_inner()
    }

    /// Whether a reference may cross to another namespace.
    pub fn granted(&self, from: From<'_>, group: &str, kind: &str, namespace: &str, name: &str) -> bool {
        if from.namespace == namespace {
            return true;
        }
        self.grants.get(namespace).into_iter().flatten().any(|(who, to)| {
            who.group == from.group
                && who.kind == from.kind
                && who.namespace == from.namespace
                && to.group == group
                && to.kind == kind
                && to.name.as_deref().is_none_or(|n| n.is_empty() || n == name)
        })
    }

    /// The policy that counts for a Service and the port's name, or for the Service as a whole.
    pub fn policy_for(&self, service: &ObjectKey, port: &str) -> Option<&PolicyState<'a>> {
        let named = self.policies.get(&(service.clone(), Some(port.to_owned())));
        named.or_else(|| self.policies.get(&(service.clone(), None)))
    }

    /// The policy that counts for a target as it is written in a policy.
    pub fn winner(&self, service: &ObjectKey, section: Option<&str>) -> Option<&Arc<BackendTlsPolicy>> {
        self.policies.get(&(service.clone(), section.map(str::to_owned))).map(|s| s.policy)
    }

    /// The Service port a route's backend stands for. `h2` where the route's own protocol is HTTP/2 (gRPC), `raw`
    /// where it is none.
    ///
    /// # Errors
    /// The condition `ResolvedRefs` of the route, or a policy that cannot be kept (then without a reason of its own).
    pub fn backend(
        &self,
        from: From<'_>,
        to: &Reference,
        speaks: Protocol,
        client: Option<&(String, String)>,
    ) -> Result<BackendKey, Problem> {
        let (group, kind) = (to.group.as_deref().unwrap_or(""), to.kind.as_deref().unwrap_or("Service"));
        if (group, kind) != ("", "Service") {
            let message = format!("backend {} is a {kind} of group {group:?}; only Services can be backends", to.name);
            return Err(Problem::new("InvalidKind", message));
        }
        let key = ObjectKey::new(to.namespace_or(from.namespace), &to.name);
        if !self.granted(from, "", "Service", &key.namespace, &key.name) {
            let message = format!(
                "Service {key} is in another namespace and no ReferenceGrant there allows {} of namespace {} to refer to it",
                from.kind, from.namespace
            );
            return Err(Problem::new("RefNotPermitted", message));
        }
        let Some(service) = self.view.services.get(&key) else {
            return Err(Problem::new("BackendNotFound", format!("Service {key} is not there")));
        };
        let Some(number) = to.port else {
            return Err(Problem::new("BackendNotFound", format!("backend {key}: a port of the Service must be given")));
        };
        let Some(port) = find_port(service, number, from.kind == "UDPRoute") else {
            let message = format!("Service {key} has no port {number}; see its spec.ports");
            return Err(Problem::new("BackendNotFound", message));
        };
        let mut protocol = match (speaks, port.app_protocol.as_deref()) {
            (Protocol::Raw, _) => Protocol::Raw,
            (_, Some("kubernetes.io/h2c" | "h2c" | "grpc")) => Protocol::H2c,
            (_, Some("https" | "kubernetes.io/wss")) => Protocol::Https,
            (speaks, _) => speaks,
        };
        let port_name = port.name.as_deref().unwrap_or("");
        let mut tls = None;
        if let Some(state) = self.policy_for(&key, port_name) {
            let terms = state.terms.as_ref().map_err(|p| Problem::new("", p.message.clone()))?;
            let with_client = BackendTls { client: client.cloned(), ..BackendTls::clone(terms) };
            tls = Some(Arc::new(with_client));
            protocol = match protocol {
                Protocol::Http1 | Protocol::Https => Protocol::Https,
                Protocol::H2c | Protocol::H2 => Protocol::H2,
                Protocol::Raw => Protocol::Raw,
            };
        }
        let spec = service.spec.as_ref();
        if spec.and_then(|s| s.type_.as_deref()) == Some("ExternalName") {
            let name = spec.and_then(|s| s.external_name.as_deref()).unwrap_or("");
            return Ok(BackendKey::External { name: name.into(), port: number, protocol });
        }
        Ok(BackendKey::Service { service: key, port: port_name.into(), protocol, tls })
    }

    /// A certificate with its key, from a Secret.
    ///
    /// # Errors
    /// The condition `ResolvedRefs` of the listener or Gateway; `invalid` is its reason where the Secret is no good.
    pub fn certificate(
        &self,
        from: From<'_>,
        to: &Reference,
        invalid: &'static str,
        cache: &mut CertCache,
    ) -> Result<(Arc<CertifiedKey>, ObjectKey), Problem> {
        if !to.is("", "Secret", "", "Secret") {
            return Err(Problem::new(invalid, format!("{} is no Secret; certificates are in Secrets", to.name)));
        }
        let key = ObjectKey::new(to.namespace_or(from.namespace), &to.name);
        if !self.granted(from, "", "Secret", &key.namespace, &key.name) {
            let message =
                format!("Secret {key} is in another namespace and no ReferenceGrant there allows the reference");
            return Err(Problem::new("RefNotPermitted", message));
        }
        self.needed.borrow_mut().insert(Which::Secret(key.clone()));
        let found = self.view.secret(&key, TLS).map_err(|why| Problem::new(UNREAD, format!("Secret {key}: {why}")))?;
        let Some(secret) = found else {
            return Err(Problem::new(invalid, format!("Secret {key} of type {TLS} is not there")));
        };
        let read = cache.get(&key, secret);
        read.map(|pair| (pair, key.clone())).map_err(|error| Problem::new(invalid, format!("Secret {key}: {error}")))
    }

    /// Certificate and key of a Secret as PEM.
    pub fn pem(&self, key: &ObjectKey) -> Option<(String, String)> {
        let data = self.view.secret(key, TLS).ok()??.data.as_ref()?;
        let text = |name: &str| String::from_utf8(data.get(name)?.0.clone()).ok();
        Some((text(certs::CERTIFICATE)?, text(certs::KEY)?))
    }

    /// The authorities in the key `ca.crt` of a ConfigMap.
    ///
    /// # Errors
    /// With these reasons for the wrong kind, and for what is not there or holds no certificate.
    pub fn authorities(
        &self,
        from: From<'_>,
        to: &Reference,
        bad_kind: &'static str,
        invalid: &'static str,
    ) -> Result<Vec<CertificateDer<'static>>, Problem> {
        if !to.is("", "ConfigMap", "", "ConfigMap") {
            let message = format!("{} is no ConfigMap; authorities are in the key ca.crt of a ConfigMap", to.name);
            return Err(Problem::new(bad_kind, message));
        }
        let key = ObjectKey::new(to.namespace_or(from.namespace), &to.name);
        if !self.granted(from, "", "ConfigMap", &key.namespace, &key.name) {
            let message =
                format!("ConfigMap {key} is in another namespace and no ReferenceGrant there allows the reference");
            return Err(Problem::new("RefNotPermitted", message));
        }
        self.needed.borrow_mut().insert(Which::ConfigMap(key.clone()));
        let found = self.view.gateways.config_maps.get(&key);
        let found = found.map_err(|why| Problem::new(UNREAD, format!("ConfigMap {key}: {why}")))?;
        let Some(map) = found else {
            return Err(Problem::new(invalid, format!("ConfigMap {key} is not there")));
        };
        read_authorities(map).map_err(|why| Problem::new(invalid, format!("ConfigMap {key}: {why}")))
    }

    /// What a policy asks of the backends it is for.
    fn terms(&self, policy: &BackendTlsPolicy) -> Result<Arc<BackendTls>, Problem> {
        let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
        let validation = &policy.spec.validation;
        let roots = match validation.well_known_ca_certificates.as_deref() {
            Some("System") => None,
            Some(other) if validation.ca_certificate_refs.is_empty() => {
                return Err(Problem::new(
                    "Invalid",
                    format!("wellKnownCACertificates {other:?} is not known; use System"),
                ));
            }
            _ => {
                let from = From::of("BackendTLSPolicy", namespace);
                let refs = validation.ca_certificate_refs.iter();
                let found = refs.map(|to| self.authorities(from, to, "InvalidKind", "InvalidCACertificateRef"));
                // All of them are asked for, so that all are followed, before the first that is no good counts.
                let found: Vec<_> = found.collect();
                let found = found.into_iter().collect::<Result<Vec<_>, _>>()?;
                Some(found.iter().flatten().map(|c| c.to_vec()).collect())
            }
        };
        let names = validation.subject_alt_names.iter().map(|name| match (&name.uri, &name.hostname) {
            (Some(uri), _) if name.kind == "URI" => SubjectName::Uri(uri.as_str().into()),
            (_, host) => SubjectName::Dns(host.as_deref().unwrap_or_default().into()),
        });
        let sni = validation.hostname.as_str().into();
        Ok(Arc::new(BackendTls { sni, names: names.collect(), roots, client: None }))
    }

    /// What is wrong with a policy, if anything is.
    pub fn policy_problem(&self, policy: &BackendTlsPolicy) -> Option<Problem> {
        self.terms(policy).err()
    }
}

fn find_port(service: &Service, number: u16, udp: bool) -> Option<&ServicePort> {
    let ports = service.spec.as_ref()?.ports.as_deref()?;
    ports.iter().find(|p| p.port == i32::from(number) && (p.protocol.as_deref() == Some("UDP")) == udp)
}

fn read_authorities(map: &ConfigMap) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = map.data.as_ref().and_then(|d| d.get(CA_KEY)).ok_or("it has no key ca.crt")?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let found = found.map_err(|error| format!("ca.crt cannot be read: {error}"))?;
    if found.is_empty() {
        return Err("ca.crt holds no PEM certificate".to_owned());
    }
    // PEM armour around something else is no certificate.
    let mut store = rustls::RootCertStore::empty();
    for certificate in &found {
        store.add(certificate.clone()).map_err(|error| format!("ca.crt holds what is no authority: {error}"))?;
    }
    Ok(found)
}

/// The key of a ConfigMap in which authorities are.
pub const CA_KEY: &str = "ca.crt";
