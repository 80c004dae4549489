//! The words all rooms share. Pure values and functions, plus the event recorder; nothing here knows the store.
//!
//! What two rooms must agree on lives here once: who is who ([`identity`]), the cluster's ranges and names
//! ([`config`]), which endpoint may be sent traffic ([`endpoints`]), how quantities and selectors read
//! ([`quantity`], [`selector`]), when a pod is ready ([`pod`]), and how events are written ([`events`]).

pub mod balancer;
pub mod bootstrap_token;
pub mod certificates;
pub mod config;
pub mod dns;
pub mod endpoints;
pub mod events;
pub mod identity;
pub mod ingress;
pub mod pod;
pub mod pod_network;
pub mod quantity;
pub mod selector;
pub mod version;
pub mod watch;
