//! The roles and bindings that every cluster begins with, and how they are kept.
//!
//! Out: the objects as JSON ([`objects`]: Kubernetes' own; [`components`]: ours) and what an existing one lacks
//! ([`reconcile`]). The tables are in `bootstrap/*.txt` and [`super::causeway`].

mod reconcile;
mod table;

use super::causeway;
use serde_json::Value;

pub use reconcile::{Change, reconcile};

/// Label of all of them, with the value `rbac-defaults`.
pub const LABEL: &str = "kubernetes.io/bootstrapping";
/// Annotation: whoever sets it to `false` keeps an object as it is.
pub const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

const TABLES: &[&str] = &[
    include_str!("bootstrap/users.txt"),
    include_str!("bootstrap/system.txt"),
    include_str!("bootstrap/controllers.txt"),
    include_str!("bootstrap/namespaces.txt"),
];

/// The defaults of Kubernetes 1.35 with its default feature gates, each with the plural of its resource. Roles come
/// before what binds them.
///
/// The rules of aggregated roles (admin, edit, view) are empty: [`super::aggregate`] fills them.
pub fn objects() -> Vec<(&'static str, Value)> {
    expand(TABLES)
}

/// Roles and bindings of Causeway's own components, and those that `kubeadm` would make: what a node needs to join.
pub fn components() -> Vec<(&'static str, Value)> {
    expand(&[causeway::TABLE])
}

fn expand(tables: &[&str]) -> Vec<(&'static str, Value)> {
    // A test reads every table, so there is nothing to lose here.
    let mut all: Vec<_> = tables.iter().flat_map(|text| table::parse(text).unwrap_or_default()).collect();
    all.sort_by_key(|(resource, _)| resource.ends_with("bindings"));
    all
}

#[cfg(test)]
pub(crate) mod tests;
