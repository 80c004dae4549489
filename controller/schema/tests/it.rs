//! What this crate knows of Kubernetes, held against the real `kubectl`, and against inputs that nobody would send.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails the test")]

#[path = "it/fuzz.rs"]
mod fuzz;
#[path = "it/kubectl.rs"]
mod kubectl;
#[path = "it/mutate.rs"]
mod mutate;
#[path = "it/stub.rs"]
mod stub;
