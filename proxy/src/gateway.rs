//! Gateway API: from its objects to what the data plane serves and what the objects are told.
//!
//! [`types`] and [`view`] are the objects as last seen, [`model`] is the pure function from them to fronts, exposures
//! and reports ([`listeners`], [`attach`], [`rules`], [`filters`] and [`refs`] are its parts, [`report`] its words);
//! [`expose`] gives each Gateway a Service with an address, [`status`] writes reports, [`install`] sees to the kinds and
//! the class being there.

pub mod attach;
pub mod expose;
pub mod features;
pub mod filters;
pub mod install;
pub mod kept;
pub mod listeners;
pub mod model;
pub mod refs;
pub mod report;
pub mod rules;
pub mod status;
pub mod types;
pub mod view;

use std::net::IpAddr;

/// The controller that GatewayClasses name to mean us.
pub const CONTROLLER: &str = "causeway.dev/gateway";

/// On a Gateway, `"true"`: its ports 80 and 443 are served at the ingress' own sockets too, after all Ingresses. So a
/// user of a local cluster reaches it at 127.0.0.1.
pub const LOCAL_ANNOTATION: &str = "causeway.dev/localhost";

/// How Gateways are served.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The node we run on: its name in EndpointSlices.
    pub node: String,
    /// The address of that node on which the sockets of Gateways are opened.
    pub address: IpAddr,
}
