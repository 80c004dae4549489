//! NetworkPolicy (networking.k8s.io/v1) on a node, in nftables.
//!
//! In: Pods, Namespaces, NetworkPolicies, the own Node, and where cluster DNS is, by watch ([`view`]). Out: the table
//! `causeway-policy` (in `ip`, and in `ip6` where pods have IPv6) of the node's network namespace. [`model`] reads the
//! objects, [`chains`] says what a pod under some policies needs, [`plan`] what that changes; all three are pure.
//! [`render`] has the fixed chains and says when a packet meets them, [`kernel`] talks to the kernel, [`program`] keeps
//! it as planned, and [`gate`] lets a pod start only when its policies are in force.
//!
//! What is where: a chain holds what policies say, and is called by a hash of it. Sets hold what changes with pods: which
//! chain an isolated pod of this node has, which addresses a selector selects, which port a pod calls by which name. So
//! a pod that comes or goes is a few set elements on every node, and only a policy that changes makes and deletes
//! chains, on the nodes that have a pod of it.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod chains;
pub mod gate;
pub mod kernel;
pub mod metrics;
pub mod model;
mod names;
#[cfg(test)]
mod oracle;
mod peers;
pub mod plan;
pub mod program;
pub mod render;
mod run;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trace;
pub mod view;

pub use gate::{Gate, PolicedNetwork};
pub use names::Labels;
pub use run::{PolicyConfig, run};
