//! Upstreams: the endpoints of one Service port, and the choice of one of them for a request.
//!
//! [`super::balance`] chooses, by default the less busy of two picked at random, away from endpoints that this request has
//! already tried and from those that lately refused connections. Endpoints are swapped whole; an endpoint that stays keeps
//! its counters, one that goes and comes back starts anew (and shares no pooled connection with its former self).

use super::ObjectKey;
use super::balance::{Budget, Tuned};
pub use super::endpoint::{Endpoint, InFlight};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};

/// What an upstream speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// HTTP/1.1 in clear text.
    #[default]
    Http1,
    /// HTTP/2 in clear text with prior knowledge (`appProtocol: kubernetes.io/h2c`).
    H2c,
    /// HTTP/1.1 in TLS, whoever the endpoint says it is.
    Https,
    /// HTTP/2 in TLS, likewise.
    H2,
    /// No HTTP: bytes or datagrams as they come (TCPRoute, TLSRoute, UDPRoute).
    Raw,
}

/// How a backend must prove itself in TLS (BackendTLSPolicy), and how we do. Part of the backend's key: other terms,
/// other connections.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendTls {
    /// The server name that is sent.
    pub sni: Box<str>,
    /// Names of which its certificate must have one; empty: the server name.
    pub names: Vec<SubjectName>,
    /// Who may sign its certificate, in DER; none: the well-known authorities of this machine.
    pub roots: Option<Vec<Vec<u8>>>,
    /// What we show when it asks: certificate chain and private key, in PEM.
    pub client: Option<(String, String)>,
}

/// A subject alternative name of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SubjectName {
    /// A DNS name, perhaps with a wildcard as its first label.
    Dns(Box<str>),
    /// A URI, such as a SPIFFE ID.
    Uri(Box<str>),
}

impl Protocol {
    /// Whether it is spoken in TLS.
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::H2)
    }

    /// Whether it is HTTP/2.
    pub fn is_h2(self) -> bool {
        matches!(self, Self::H2c | Self::H2)
    }
}

/// What names an upstream: endpoints are shared by all routes that have the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackendKey {
    /// A port of a Service, by the port's name (empty for an unnamed one); its endpoints come from EndpointSlices.
    Service {
        /// The Service.
        service: ObjectKey,
        /// The Service port's name.
        port: Arc<str>,
        /// What it speaks.
        protocol: Protocol,
        /// How it must prove itself; none: in TLS, whoever it says it is.
        tls: Option<Arc<BackendTls>>,
    },
    /// A Service of type ExternalName: a DNS name and a port.
    External {
        /// The name.
        name: Arc<str>,
        /// The port.
        port: u16,
        /// What it speaks.
        protocol: Protocol,
    },
}

/// The endpoints of a backend.
#[derive(Debug)]
pub struct Upstream {
    /// What it is.
    pub key: BackendKey,
    pub(super) endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    pub(super) tuned: ArcSwap<Tuned>,
    pub(super) turn: AtomicUsize,
    pub(super) budget: Budget,
}

/// All upstreams in use. What no table refers to any more is forgotten sooner or later, and not found meanwhile.
#[derive(Debug, Default)]
pub struct Registry {
    upstreams: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    all: BTreeMap<BackendKey, Weak<Upstream>>,
    /// With so many it is time to look for those that are not used any more.
    full: usize,
}

impl BackendKey {
    /// How it must prove itself.
    pub fn tls(&self) -> Option<&Arc<BackendTls>> {
        match self {
            Self::Service { tls, .. } => tls.as_ref(),
            Self::External { .. } => None,
        }
    }

    /// What it speaks.
    pub fn protocol(&self) -> Protocol {
        match self {
            Self::Service { protocol, .. } | Self::External { protocol, .. } => *protocol,
        }
    }
}

impl fmt::Display for BackendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { service, port, .. } if port.is_empty() => write!(f, "service {service}"),
            Self::Service { service, port, .. } => write!(f, "service {service} port {port}"),
            Self::External { name, port, .. } => write!(f, "external {name}:{port}"),
        }
    }
}

impl Upstream {
    /// An upstream without endpoints.
    pub fn new(key: BackendKey) -> Self {
        Self {
            key,
            endpoints: ArcSwap::default(),
            tuned: ArcSwap::default(),
            turn: AtomicUsize::new(0),
            budget: Budget::default(),
        }
    }

    /// Its endpoints at the moment.
    pub fn endpoints(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.endpoints.load_full()
    }

    /// Replaces the endpoints; those that stay keep their state. Says whether anything changed.
    pub fn set(&self, addresses: &[SocketAddr]) -> bool {
        let old = self.endpoints.load();
        if old.len() == addresses.len() && old.iter().zip(addresses).all(|(e, a)| e.address == *a) {
            return false;
        }
        let by_address: HashMap<SocketAddr, &Arc<Endpoint>> = old.iter().map(|e| (e.address, e)).collect();
        let fresh = if old.is_empty() { Endpoint::new } else { Endpoint::late };
        let new = addresses
            .iter()
            .map(|a| by_address.get(a).map_or_else(|| Arc::new(fresh(*a)), |e| Arc::clone(e)))
            .collect::<Vec<_>>();
        let tuned = self.tuned.load();
        self.tuned.store(Arc::new(Tuned::new(Arc::clone(&tuned.balance), &new)));
        self.endpoints.store(Arc::new(new));
        true
    }

    /// The endpoint of a client that has been here before, unless it is gone or refuses connections.
    pub fn find(&self, tag: &str, tried: &[u64]) -> Option<Arc<Endpoint>> {
        let tag = u64::from_str_radix(tag, 16).ok()?;
        let endpoints = self.endpoints.load();
        endpoints.iter().find(|e| e.tag == tag && !tried.contains(&e.id) && !e.ejected()).cloned()
    }
}

impl Registry {
    /// The upstream of a key, made when there is none, and whether it was.
    pub fn get(&self, key: &BackendKey) -> (Arc<Upstream>, bool) {
        let mut known = self.upstreams.lock();
        if let Some(found) = known.all.get(key).and_then(Weak::upgrade) {
            return (found, false);
        }
        let new = Arc::new(Upstream::new(key.clone()));
        known.all.insert(key.clone(), Arc::downgrade(&new));
        // Each look at all of them is paid for by as many new ones.
        if known.all.len() >= known.full {
            known.all.retain(|_, u| u.strong_count() > 0);
            known.full = 2 * known.all.len() + 64;
        }
        (new, true)
    }

    /// The upstreams in use.
    pub fn live(&self) -> Vec<Arc<Upstream>> {
        self.upstreams.lock().all.values().filter_map(Weak::upgrade).collect()
    }

    /// The upstreams of one Service.
    pub fn of_service(&self, service: &ObjectKey) -> Vec<Arc<Upstream>> {
        let from =
            BackendKey::Service { service: service.clone(), port: "".into(), protocol: Protocol::Http1, tls: None };
        let known = self.upstreams.lock();
        known
            .all
            .range(from..)
            .take_while(|(k, _)| matches!(k, BackendKey::Service { service: s, .. } if s == service))
            .filter_map(|(_, u)| u.upgrade())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(n: u8) -> Upstream {
        let u = Upstream::new(BackendKey::External { name: "x".into(), port: 1, protocol: Protocol::Http1 });
        u.set(&(0..n).map(|i| SocketAddr::from(([10, 0, 0, i], 80))).collect::<Vec<_>>());
        u
    }

    #[test]
    fn prefers_the_less_busy_and_avoids_the_ejected() {
        let u = upstream(2);
        let busy = InFlight::start(u.endpoints()[0].clone());
        for _ in 0..32 {
            assert_eq!(u.pick(&[], None).unwrap().id, u.endpoints()[1].id);
        }
        u.endpoints()[1].failed();
        assert!(u.endpoints()[1].ejected());
        for _ in 0..32 {
            assert_eq!(u.pick(&[], None).unwrap().id, u.endpoints()[0].id);
        }
        // All ejected: better one that may refuse than none.
        u.endpoints()[0].failed();
        assert!(u.pick(&[], None).is_some());
        u.endpoints()[0].succeeded();
        assert!(!u.endpoints()[0].ejected());
        drop(busy);
        assert_eq!(u.endpoints()[0].active(), 0);
    }

    #[test]
    fn tries_each_endpoint_once() {
        let u = upstream(5);
        let mut tried = Vec::new();
        while let Some(e) = u.pick(&tried, None) {
            assert!(!tried.contains(&e.id));
            tried.push(e.id);
        }
        assert_eq!(tried.len(), 5);
        assert!(upstream(0).pick(&[], None).is_none());
    }

    #[test]
    fn endpoints_that_stay_keep_their_state() {
        let u = upstream(3);
        let before = u.endpoints();
        let addresses: Vec<_> = before.iter().map(|e| e.address).collect();
        assert!(!u.set(&addresses));
        assert!(u.set(&addresses[1..]));
        assert_eq!(u.endpoints()[0].id, before[1].id);
        assert!(u.set(&addresses));
        assert_ne!(u.endpoints()[0].id, before[0].id, "one that came back is a new one");
        assert_eq!(u.endpoints()[2].id, before[2].id);
    }

    #[test]
    fn the_registry_shares_and_forgets() {
        let r = Registry::default();
        let key = |svc: &str, port: &str| BackendKey::Service {
            service: ObjectKey::new("ns", svc),
            port: port.into(),
            protocol: Protocol::Http1,
            tls: None,
        };
        let (a, b, other) = (r.get(&key("a", "")).0, r.get(&key("a", "web")).0, r.get(&key("ab", "")).0);
        let (again, new) = r.get(&key("a", ""));
        assert!(Arc::ptr_eq(&a, &again) && !new);
        assert_eq!(r.of_service(&ObjectKey::new("ns", "a")).len(), 2);
        drop((a, b, other, again));
        assert!(r.live().is_empty());
        assert!(r.get(&key("a", "")).1);
        for n in 0..1000 {
            r.get(&key(&n.to_string(), ""));
        }
        assert!(r.upstreams.lock().all.len() < 100);
    }
}
