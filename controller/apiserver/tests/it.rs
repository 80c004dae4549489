//! The API server with real clients: kube-rs in memory and over TLS, and kubectl.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail by panicking")]

#[path = "it/authentication.rs"]
mod authentication;
#[path = "it/crud.rs"]
mod crud;
#[path = "it/custom.rs"]
mod custom;
#[path = "it/health.rs"]
mod health;
#[path = "it/identity.rs"]
mod identity;
#[path = "it/issuer.rs"]
mod issuer;
#[path = "it/join.rs"]
mod join;
#[path = "it/kubectl.rs"]
mod kubectl;
#[path = "it/limits.rs"]
mod limits;
#[path = "it/missing.rs"]
mod missing;
#[path = "it/relay.rs"]
mod relay;
#[path = "it/service_crash.rs"]
mod service_crash;
#[path = "it/service_ranges.rs"]
mod service_ranges;
#[path = "it/services.rs"]
mod services;
#[path = "it/support.rs"]
mod support;
#[path = "it/trust.rs"]
mod trust;
#[path = "it/wire.rs"]
mod wire;
