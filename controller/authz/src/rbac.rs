//! Roles and bindings: role-based access control as in Kubernetes 1.35 (`rbac.authorization.k8s.io/v1`).
//!
//! In: the four kinds as JSON values, one change at a time. Out: decisions and their reasons ([`Index::authorize`]),
//! the rules of a caller ([`Index::rules_for`]), what a caller may not hand on ([`Index::uncovered`],
//! [`escalation`]), the rules of an aggregated role ([`aggregate`]) and the objects that every cluster begins with
//! ([`bootstrap`]). `system:masters` is none of its business: whoever asks decides that before.

mod aggregate;
mod binding;
pub mod bootstrap;
mod causeway;
mod cover;
pub mod escalation;
mod index;
mod rule;
mod text;
mod words;

#[cfg(test)]
mod tests;

pub use aggregate::aggregate;
pub use index::{Index, RulesFor};
pub use rule::Rule;

/// The API group of roles and bindings.
pub const GROUP: &str = "rbac.authorization.k8s.io";
