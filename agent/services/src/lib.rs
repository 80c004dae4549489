//! kube-proxy: service addresses in nftables, or in iptables.
//!
//! In: Services, EndpointSlices and the own Node, by watch ([`view`]). Out: the tables `ip causeway` (and `ip6 causeway`) of
//! the node's network namespace. [`model`] says what a Service asks of this node, [`plan`] which elements of which sets
//! that changes; both are pure. [`rules`] has the fixed chains that read those sets, [`kernel`] and [`wire`] talk to the
//! kernel, [`program`] keeps it as planned, and [`conntrack`] ends datagram flows whose endpoint is gone. A change of a
//! Service or an endpoint is a few set elements in one transaction, however many Services there are.

pub mod conntrack;
pub mod family;
pub mod health;
pub mod healthcheck;
pub mod iptables;
pub mod kernel;
pub mod metrics;
pub mod model;
pub mod plan;
pub mod program;
pub mod ranges;
pub mod renderer;
pub mod rules;
mod run;
pub mod switch;
pub mod view;

pub use causeway_nft::wire;
pub use run::{ServicesConfig, run};
