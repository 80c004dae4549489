//! Who may do what: the question ([`Attributes`]), who asks ([`Subject`]), the answer ([`Decision`]) and the two
//! authorisers that answer it from the cluster's objects: [`rbac`] (roles and bindings) and [`node`] (what the pods of
//! a node refer to).
//!
//! In: objects as JSON values, one change at a time. Out: decisions. No I/O, no clock.

mod attributes;
pub mod node;
pub mod rbac;

pub use attributes::{Attributes, Decision, Requirement, Subject};
