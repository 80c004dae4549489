//! The runtime on a real containerd of its own: every test runs on Debian's containerd and runc, as root, with images
//! built from the machine's static busybox. Nothing leaves the machine, and nothing stays on it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "it/containers.rs"]
mod containers;
#[path = "it/daemon.rs"]
mod daemon;
#[path = "it/house.rs"]
mod house;
#[path = "it/images.rs"]
mod images;
#[path = "it/registry.rs"]
mod registry;
#[path = "it/streams.rs"]
mod streams;
