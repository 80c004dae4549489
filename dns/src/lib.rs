//! Cluster DNS: names of services and pods, and the way out for all other names.
//!
//! In: Services and EndpointSlices from the API, packets on given sockets. Out: answers by Kubernetes' DNS-based
//! service discovery 1.1.0, forwarded and cached ones for other names, and an EndpointSlice that tells kube-proxy
//! where this node's DNS is.
//!
//! watch ([`watch`]) → model ([`model`]: one Service and its slices → [`model::Records`]) → plan and apply ([`zone`]:
//! records are swapped in service by service) → answers ([`listen`], [`server`], [`forward`]).

pub mod config;
pub mod forward;
pub mod listen;
pub mod metrics;
pub mod model;
mod publish;
mod run;
pub mod server;
mod snapshot;
mod watch;
pub mod zone;

pub use config::DnsConfig;
pub use run::run;
