//! The controllers against the real API server and store. Scheduler and kubelets are hands of the test's own: they
//! bind pods and report them running, which is all that the controllers see of nodes.

#[path = "it/cluster.rs"]
mod cluster;
#[path = "it/lifecycle.rs"]
mod lifecycle;
#[path = "it/support.rs"]
mod support;
#[path = "it/workloads.rs"]
mod workloads;
