//! The listeners of a Gateway: its own and those that ListenerSets add, in the order of their precedence, each with
//! what is wrong with it.

use super::refs::{From, Problem, Refs};
use super::types::{
    AllowedRoutes, FromNamespaces, FrontendValidation, GROUP, Gateway, GatewaySpec, Listener, ListenerSet, Reference,
};
use crate::config::certs::CertCache;
use crate::config::certs::Certificates;
use crate::config::view::View;
use crate::route::front::ClientValidation;
use crate::route::{HostPattern, ObjectKey};
use causeway_api::selector::Selector;
use std::sync::Arc;

/// What is spoken at a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP in clear text.
    Http,
    /// HTTP in TLS.
    Https,
    /// TLS that is decrypted here.
    TlsTerminate,
    /// TLS that is sent on as it is.
    TlsPassthrough,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// The object a listener stands in: what routes name as their parent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Parent {
    /// A ListenerSet, not a Gateway.
    pub set: bool,
    /// Which.
    pub key: ObjectKey,
}

/// A listener and what became of it.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Where it stands.
    pub parent: Parent,
    /// As it is written.
    pub spec: &'a Listener,
    /// Its hosts.
    pub host: HostPattern,
    /// What it speaks; none: a protocol we do not know, or a hostname that is none.
    pub speaks: Option<Speaks>,
    /// The kinds of routes that may be attached.
    pub kinds: Vec<&'static str>,
    /// `Accepted: False` with this.
    pub rejected: Option<Problem>,
    /// `Conflicted: True` with this.
    pub conflict: Option<Problem>,
    /// `ResolvedRefs: False` with this.
    pub unresolved: Option<Problem>,
    /// Where TLS is decrypted: its certificates.
    pub certificates: Option<Arc<Certificates>>,
    /// Where TLS is decrypted: what clients must show.
    pub clients: Option<ClientValidation>,
    /// How many routes are attached.
    pub attached: u32,
}

impl Entry<'_> {
    /// Whether traffic is taken here.
    pub fn usable(&self) -> bool {
        let decrypts = matches!(self.speaks, Some(Speaks::Https | Speaks::TlsTerminate));
        self.speaks.is_some()
            && self.rejected.is_none()
            && self.conflict.is_none()
            && (!decrypts || self.certificates.is_some())
    }
}

/// A ListenerSet of a Gateway, and whether it may add listeners.
#[derive(Debug)]
pub struct SetState<'a> {
    /// The object.
    pub object: &'a Arc<ListenerSet>,
    /// Why it may not.
    pub refused: Option<Problem>,
}

/// All listeners of a Gateway.
pub fn merged<'a>(
    refs: &Refs<'_>,
    gateway: &'a Gateway,
    sets: &[SetState<'a>],
    cache: &mut CertCache,
) -> Vec<Entry<'a>> {
    let key = ObjectKey::of(gateway);
    let mut entries: Vec<Entry<'a>> = Vec::new();
    let parent = Parent { set: false, key: key.clone() };
    entries.extend(gateway.spec.listeners.iter().map(|l| read(&parent, l)));
    for set in sets.iter().filter(|s| s.refused.is_none()) {
        let parent = Parent { set: true, key: ObjectKey::of(&**set.object) };
        entries.extend(set.object.spec.listeners.iter().map(|l| read(&parent, l)));
    }
    conflicts(&mut entries);
    for entry in &mut entries {
        resolve(refs, &gateway.spec, &key, entry, cache);
    }
    entries
}

fn mode(spec: &Listener) -> &str {
    spec.tls.as_ref().and_then(|t| t.mode.as_deref()).unwrap_or("Terminate")
}

/// What is spoken at a listener; none: a protocol that we do not know.
pub fn speaks(spec: &Listener) -> Option<Speaks> {
    match (spec.protocol.as_str(), mode(spec)) {
        ("HTTP", _) => Some(Speaks::Http),
        ("HTTPS", "Terminate") => Some(Speaks::Https),
        ("TLS", "Terminate") => Some(Speaks::TlsTerminate),
        ("TLS", "Passthrough") => Some(Speaks::TlsPassthrough),
        ("TCP", _) => Some(Speaks::Tcp),
        ("UDP", _) => Some(Speaks::Udp),
        _ => None,
    }
}

fn read<'a>(parent: &Parent, spec: &'a Listener) -> Entry<'a> {
    let (mode, speaks) = (mode(spec), speaks(spec));
    let mut rejected = speaks.is_none().then(|| {
        let message =
            format!("protocol {:?} in mode {mode} is not served; use HTTP, HTTPS, TLS, TCP or UDP", spec.protocol);
        Problem::new("UnsupportedProtocol", message)
    });
    let host = HostPattern::parse(spec.hostname.as_deref()).unwrap_or_else(|error| {
        rejected = Some(Problem::new("UnsupportedValue", format!("hostname {:?}: {error}", spec.hostname)));
        HostPattern::Any
    });
    let (kinds, unresolved) = kinds(speaks, spec.allowed_routes.as_ref());
    Entry {
        parent: parent.clone(),
        spec,
        host,
        speaks,
        kinds,
        rejected,
        conflict: None,
        unresolved,
        certificates: None,
        clients: None,
        attached: 0,
    }
}

fn kinds(speaks: Option<Speaks>, allowed: Option<&AllowedRoutes>) -> (Vec<&'static str>, Option<Problem>) {
    let ours: &[&'static str] = match speaks {
        Some(Speaks::Http | Speaks::Https) => &["HTTPRoute", "GRPCRoute"],
        Some(Speaks::TlsTerminate | Speaks::TlsPassthrough) => &["TLSRoute"],
        Some(Speaks::Tcp) => &["TCPRoute"],
        Some(Speaks::Udp) => &["UDPRoute"],
        None => &[],
    };
    let asked = allowed.map(|a| a.kinds.as_slice()).unwrap_or_default();
    if asked.is_empty() {
        return (ours.to_vec(), None);
    }
    let is = |own: &str, asked: &super::types::RouteKind| {
        asked.kind == own && asked.group.as_deref().unwrap_or(GROUP) == GROUP
    };
    let bad: Vec<&str> = asked.iter().filter(|a| !ours.iter().any(|own| is(own, a))).map(|a| a.kind.as_str()).collect();
    let problem = (!bad.is_empty()).then(|| {
        let message = format!("routes of kind {} cannot be attached to this protocol", bad.join(", "));
        Problem::new("InvalidRouteKinds", message)
    });
    (ours.iter().copied().filter(|own| asked.iter().any(|a| is(own, a))).collect(), problem)
}

/// Which protocols can share a port: those that tell their connections apart by the same means.
fn group(speaks: Speaks) -> u8 {
    match speaks {
        Speaks::Http => 0,
        Speaks::Https | Speaks::TlsTerminate | Speaks::TlsPassthrough => 1,
        Speaks::Tcp => 2,
        Speaks::Udp => 3,
    }
}

/// Of two listeners that cannot be told apart, the one of the object that comes first is served; of two in one object
/// neither, since there is no telling which one is meant.
fn conflicts(entries: &mut [Entry<'_>]) {
    let mut start = 0;
    while start < entries.len() {
        let same = entries[start..].iter().take_while(|e| e.parent == entries[start].parent).count();
        let (earlier, rest) = entries.split_at_mut(start);
        let own = &mut rest[..same];
        for this in own.iter_mut() {
            // One that is not served itself takes no other with it.
            let served = earlier.iter().filter(|o| o.conflict.is_none() && o.rejected.is_none());
            this.conflict = served.filter_map(|other| conflict(this, other)).next();
        }
        let among_own: Vec<Option<Problem>> = (0..own.len())
            .map(|i| {
                let free = own.iter().enumerate().filter(|(j, e)| *j != i && e.conflict.is_none());
                free.filter_map(|(_, other)| conflict(&own[i], other)).next()
            })
            .collect();
        for (this, problem) in own.iter_mut().zip(among_own) {
            this.conflict = this.conflict.take().or(problem);
        }
        start += same;
    }
}

/// Why two listeners cannot both be served, if so; said to the first of them.
fn conflict(this: &Entry<'_>, other: &Entry<'_>) -> Option<Problem> {
    let (speaks, others) = (this.speaks?, other.speaks?);
    let both_udp = (speaks == Speaks::Udp) == (others == Speaks::Udp);
    if other.spec.port != this.spec.port || !both_udp {
        return None;
    }
    let reason = if group(speaks) != group(others) {
        "ProtocolConflict"
    } else if other.host == this.host {
        "HostnameConflict"
    } else {
        return None;
    };
    Some(Problem::new(reason, format!("port {} is listener {}'s too", this.spec.port, other.spec.name)))
}

fn resolve(refs: &Refs<'_>, gateway: &GatewaySpec, key: &ObjectKey, entry: &mut Entry<'_>, cache: &mut CertCache) {
    if !matches!(entry.speaks, Some(Speaks::Https | Speaks::TlsTerminate)) {
        return;
    }
    let from = From::of(if entry.parent.set { "ListenerSet" } else { "Gateway" }, &entry.parent.key.namespace);
    let named = entry.spec.tls.as_ref().map(|t| t.certificate_refs.as_slice()).unwrap_or_default();
    let mut certificates = Certificates::default();
    if named.is_empty() {
        entry.unresolved = Some(Problem::new("InvalidCertificateRef", "tls.certificateRefs names no certificate"));
    }
    for to in named {
        match refs.certificate(from, to, "InvalidCertificateRef", cache) {
            Ok((pair, _)) => {
                for name in dns_names(&pair) {
                    if let Ok(host) = HostPattern::parse(Some(&name))
                        && host != HostPattern::Any
                    {
                        certificates.add(&host, Arc::clone(&pair));
                    }
                }
                // The listener's first one answers where no name fits.
                certificates.add(&HostPattern::Any, pair);
            }
            Err(problem) => entry.unresolved = Some(problem),
        }
    }
    entry.certificates = (!certificates.is_empty()).then(|| Arc::new(certificates));
    let Some(validation) = validation_for(gateway, entry.spec.port) else { return };
    let from = From::of("Gateway", &key.namespace);
    let mut roots = Vec::new();
    for to in &validation.ca_certificate_refs {
        match refs.authorities(from, to, "InvalidCACertificateKind", "InvalidCACertificateRef") {
            Ok(found) => roots.extend(found),
            Err(problem) => entry.unresolved = Some(problem),
        }
    }
    let optional = validation.mode.as_deref() == Some("AllowInsecureFallback");
    if roots.is_empty() {
        let message = "none of the certificate authorities for clients can be used; no client could be believed";
        entry.rejected.get_or_insert(Problem::new("NoValidCACertificate", message));
    }
    entry.clients = Some(ClientValidation { roots, optional });
}

/// How clients of a port are validated: by the port's own terms, else by the Gateway's.
pub fn validation_for(gateway: &GatewaySpec, port: u16) -> Option<&FrontendValidation> {
    let frontend = gateway.tls.as_ref()?.frontend.as_ref()?;
    let own = frontend.per_port.iter().find(|p| p.port == port);
    own.map_or(&frontend.default, |p| &p.tls).validation.as_ref()
}

/// The DNS names a certificate is for.
fn dns_names(pair: &rustls::sign::CertifiedKey) -> Vec<String> {
    let Some(leaf) = pair.cert.first() else { return Vec::new() };
    match webpki::EndEntityCert::try_from(leaf) {
        Ok(certificate) => certificate.valid_dns_names().map(str::to_owned).collect(),
        Err(_) => Vec::new(),
    }
}

/// Whether an object of a namespace is let in by `from` and `selector`; `Same` means the namespace `own`.
pub fn lets_in(view: &View, rule: Option<&FromNamespaces>, default: &str, own: &str, namespace: &str) -> bool {
    match rule.and_then(|r| r.from.as_deref()).unwrap_or(default) {
        "All" => true,
        "Same" => own == namespace,
        "Selector" => {
            let selector = rule.and_then(|r| r.selector.as_ref()).and_then(|s| Selector::from_object(s).ok());
            let found = view.gateways.namespaces.get(&ObjectKey::new("", namespace));
            match (selector, found) {
                (Some(selector), Some(found)) => selector.matches_option(found.metadata.labels.as_ref()),
                _ => false,
            }
        }
        _ => false,
    }
}

/// The ListenerSets that name a Gateway, in the order of their precedence (age, then name).
pub fn sets_of<'a>(view: &'a View, gateway: &Gateway) -> Vec<SetState<'a>> {
    let key = ObjectKey::of(gateway);
    let named = |to: &Reference, own: &str| {
        to.is(GROUP, "Gateway", GROUP, "Gateway") && to.name == *key.name && to.namespace_or(own) == &*key.namespace
    };
    let all = super::model::by_age(view.gateways.listener_sets.values());
    let rule = gateway.spec.allowed_listeners.as_ref().and_then(|a| a.namespaces.as_ref());
    let mut sets = Vec::new();
    for object in all {
        let own = object.metadata.namespace.as_deref().unwrap_or_default();
        if !named(&object.spec.parent_ref, own) {
            continue;
        }
        let refused = (!lets_in(view, rule, "None", &key.namespace, own)).then(|| {
            let message =
                format!("Gateway {key} allows no listeners from namespace {own}; see its spec.allowedListeners");
            Problem::new("NotAllowed", message)
        });
        sets.push(SetState { object, refused });
    }
    sets
}
