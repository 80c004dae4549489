//! kube-proxy with real packets: nodes and pods in network namespaces. Needs root.
#![allow(clippy::unwrap_used)]

#[path = "it/changes.rs"]
mod changes;
#[path = "it/features.rs"]
mod features;
#[path = "it/histories.rs"]
mod histories;
#[path = "it/iptables.rs"]
mod iptables;
#[path = "it/packets.rs"]
mod packets;
#[path = "it/sctp.rs"]
mod sctp;
#[path = "it/support.rs"]
mod support;
#[path = "it/trace.rs"]
mod trace;
#[path = "it/watch.rs"]
mod watch;
