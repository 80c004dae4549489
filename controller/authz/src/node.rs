//! What a node may reach and what it may write.
//!
//! - [`Graph`]: what the pods of each node refer to, kept from objects one change at a time; it answers what a node may
//!   ask for ([`Graph::authorize`]: the node authoriser of Kubernetes 1.35, and [`EXTRA`], what nodes of this cluster
//!   need beyond it).
//! - [`restrict`]: admission (`NodeRestriction`): what a node may write, told with the object at hand.
//! - [`serving`]: for which names and addresses a kubelet gets a certificate as a server.
//!
//! In: objects as JSON values, requests. Out: decisions. No I/O, no clock.

mod authorize;
mod graph;
mod references;
mod restrict;
mod rules;
pub mod serving;

pub use authorize::{Selectors, Term, node_of};
pub use graph::{Graph, WATCHED};
pub use restrict::{Lookup, Operation, SERVING_ANNOTATION, Write, restrict};
pub use rules::{EXTRA, Rule};

#[cfg(test)]
mod attack;
