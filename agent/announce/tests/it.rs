//! Real namespaces, a real API server over TLS: who answers for an address, and what happens when it cannot.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "it/announcing.rs"]
mod announcing;
#[path = "it/counting.rs"]
mod counting;
#[path = "it/lab.rs"]
mod lab;
