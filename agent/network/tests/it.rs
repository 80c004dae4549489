//! The pod network and the local segment in real namespaces. Needs root.
#![allow(clippy::unwrap_used)]

#[path = "it/nodes.rs"]
mod nodes;
#[path = "it/pods.rs"]
mod pods;
#[path = "it/segment.rs"]
mod segment;
#[path = "it/support.rs"]
mod support;
