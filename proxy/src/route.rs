//! The routing table and its lookup: (host, path) in, one [`Route`] out, at a cost that depends on the length of the
//! two strings and not on the number of routes.
//!
//! [`host`] and [`path`] bring what a client wrote into the one form that is compared; [`table`] finds the route;
//! [`upstream`] holds the endpoints a route forwards to, [`balance`] picks one. Everything here is free of I/O.

pub mod auth;
pub mod balance;
pub mod endpoint;
pub mod filter;
pub mod front;
pub mod host;
pub mod path;
pub mod policy;
pub mod rate;
pub mod rule;
pub mod table;
pub mod upstream;

use k8s_openapi::jiff::Timestamp;
use std::fmt;
use std::sync::Arc;

pub use host::HostPattern;
pub use path::PathPattern;
pub use table::Table;
pub use upstream::{Endpoint, Registry, Upstream};

/// An object's namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Namespace; empty for objects of the cluster.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// From a namespace and a name.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Of an object.
    pub fn of<K: kube::Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""))
    }
}

/// An object's place among others of its kind that want the same: older ones come first, those of the same age by
/// namespace and name.
pub type Rank = (Option<Timestamp>, ObjectKey);

/// Of an object.
pub fn rank<K: kube::Resource>(object: &K) -> Rank {
    (object.meta().creation_timestamp.as_ref().map(|t| t.0), ObjectKey::of(object))
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// Where a request goes that a route matches.
#[derive(Debug, Clone)]
pub enum Action {
    /// Send it to one of the upstream's endpoints.
    Forward(Arc<Upstream>),
    /// Share the requests between several upstreams by weight (Gateway API).
    Split(rule::Split),
    /// Answer 503 with this reason: the route exists, what it points at does not.
    Unavailable(Arc<str>),
}

/// One row of the table.
#[derive(Debug)]
pub struct Route {
    /// The Ingress or route object it comes from.
    pub owner: ObjectKey,
    /// Where to send it.
    pub action: Action,
    /// What else to do; none: nothing.
    pub policy: Option<Arc<policy::Policy>>,
    /// The path that is sent on, where it is not the one that came.
    pub rewrite: Option<policy::Rewrite>,
    /// Another backend for some of the requests.
    pub canary: Option<policy::Canary>,
    /// What is done to requests and answers on their way (Gateway API).
    pub filters: Option<Arc<filter::Filters>>,
    /// How long things may take (Gateway API).
    pub timeouts: rule::Timeouts,
    /// When a request is sent again (Gateway API).
    pub retry: Option<rule::Retry>,
    /// A client stays with its backend (Gateway API).
    pub session: Option<rule::Session>,
}

impl Route {
    /// A route that only forwards.
    pub fn plain(owner: ObjectKey, action: Action) -> Self {
        Self {
            owner,
            action,
            policy: None,
            rewrite: None,
            canary: None,
            filters: None,
            timeouts: rule::Timeouts::default(),
            retry: None,
            session: None,
        }
    }
}
