//! The ingress as a whole: real listeners, real backends, real clients, on loopback only.

// Helpers of tests are tests too, which clippy does not see.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "it/harness.rs"]
mod harness;

#[path = "it/annotations.rs"]
mod annotations;
#[path = "it/api.rs"]
mod api;
#[path = "it/away.rs"]
mod away;
#[path = "it/balancing.rs"]
mod balancing;
#[path = "it/calls.rs"]
mod calls;
#[path = "it/changes.rs"]
mod changes;
#[path = "it/gateways.rs"]
mod gateways;
#[path = "it/hostile.rs"]
mod hostile;
#[path = "it/limits.rs"]
mod limits;
#[path = "it/references.rs"]
mod references;
#[path = "it/requests.rs"]
mod requests;
#[path = "it/tls.rs"]
mod tls;
#[path = "it/upgrades.rs"]
mod upgrades;
#[path = "it/ways.rs"]
mod ways;
