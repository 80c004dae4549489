//! The controllers against the real API server and store. Scheduler and kubelets are hands of the test's own: they
//! bind pods and report them running, which is all that the controllers see of nodes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "it/addresses.rs"]
mod addresses;
#[path = "it/cluster.rs"]
mod cluster;
#[path = "it/lifecycle.rs"]
mod lifecycle;
#[path = "it/support.rs"]
mod support;
#[path = "it/workloads.rs"]
mod workloads;
