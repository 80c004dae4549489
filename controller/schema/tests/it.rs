//! What this crate knows of Kubernetes, held against the real `kubectl`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails the test")]

#[path = "it/kubectl.rs"]
mod kubectl;
#[path = "it/stub.rs"]
mod stub;
