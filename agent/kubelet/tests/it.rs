//! The kubelet on the real things: containerd and runc, network namespaces, and an API server in memory. Nothing
//! leaves the machine, and nothing stays on it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "it/failures.rs"]
mod failures;
#[path = "it/house.rs"]
mod house;
#[path = "it/lifecycle.rs"]
mod lifecycle;
#[path = "it/objects.rs"]
mod objects;
#[path = "it/restart.rs"]
mod restart;
#[path = "it/volumes.rs"]
mod volumes;
