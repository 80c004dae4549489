//! The ingress as a whole: real listeners, real backends, real clients, on loopback only.

#[path = "it/harness.rs"]
mod harness;

#[path = "it/changes.rs"]
mod changes;
#[path = "it/limits.rs"]
mod limits;
#[path = "it/requests.rs"]
mod requests;
#[path = "it/tls.rs"]
mod tls;
