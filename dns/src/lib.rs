//! Cluster DNS: names of services and pods, and the way out for all other names.
//!
//! In: Services, EndpointSlices and Namespaces from the API, pods where names depend on them, settings, packets on given
//! sockets. Out: answers by Kubernetes' DNS-based service discovery 1.1.0, forwarded and cached ones for other names, and
//! an EndpointSlice that tells kube-proxy where this node's DNS is.
//!
//! watch ([`watch`]) → model ([`model`]: one Service and its slices → [`model::Records`]) → plan and apply ([`zone`]:
//! records are swapped in service by service) → answers ([`listen`]: packets; [`kept`]: given again; [`server`]: worked
//! out; [`forward`], [`cache`], [`upstream`]: others').

mod admin;
pub mod autopath;
pub mod cache;
pub mod config;
pub mod forward;
pub mod kept;
pub mod listen;
pub mod metrics;
pub mod model;
pub mod pods;
mod publish;
mod reload;
mod run;
pub mod server;
mod snapshot;
pub mod upstream;
mod watch;
pub mod wire;
pub mod zone;

pub use config::DnsConfig;
pub use run::run;

use causeway_api::dns::DnsSettings;
use std::sync::Arc;

/// Says what is wrong with settings, if anything is.
pub fn check(settings: &DnsSettings) -> Result<(), String> {
    let metrics = metrics::Metrics::new("cluster.local").map_err(|e| e.to_string())?;
    forward::Forwarder::new(settings, None, Arc::new(metrics)).map(drop)
}
