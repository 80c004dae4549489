//! Every built-in kind in one small file each: names, scope, defaults, validation, columns, status rules.
//!
//! In: objects as JSON values. Out: defaulted objects, field errors, table cells. Pure: no I/O, no clock (it is
//! passed in). The API server's engine drives it; run-time kinds (custom resources) implement the same
//! [`Strategy`].

mod age;
mod cell;
mod custom;
mod defaults;
pub mod field;
mod json;
mod jsonpath;
mod kinds;
mod rules;
mod validate;

pub use age::human_duration;
pub use custom::custom_resource;
pub use defaults::pod::{admission_pod_defaults, qos_class};
pub use field::{FieldError, FieldErrorType, FieldErrors, Path};
pub use kinds::builtin;
pub use kinds::event::{core_to_events, events_to_core};
pub use validate::meta::validate_metadata;

use serde_json::Value;
use std::sync::Arc;

/// Whether a resource lives in namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One for the whole cluster.
    Cluster,
    /// In a namespace.
    Namespaced,
}

/// The `scale` subresource: where its numbers live (JSON paths like `.spec.replicas`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalePaths {
    /// Desired replicas.
    pub spec_replicas: String,
    /// Observed replicas.
    pub status_replicas: String,
    /// Where the label selector is: a string, or a LabelSelector object that is rendered as one.
    pub selector: Option<String>,
}

/// A column of the table that `kubectl get` shows (meta/v1 TableColumnDefinition).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Heading, for example `Ready`.
    pub name: String,
    /// OpenAPI type: `string`, `integer`, `date`, …
    pub kind: String,
    /// OpenAPI format; `name` for the first column.
    pub format: String,
    /// Shown by `kubectl explain`-like tools.
    pub description: String,
    /// 0 is always shown, 1 only with `-o wide`.
    pub priority: i32,
}

/// A resource the API serves.
#[derive(Clone)]
pub struct Resource {
    /// API group; empty for core.
    pub group: String,
    /// For example `v1`.
    pub version: String,
    /// For example `Deployment`.
    pub kind: String,
    /// For example `DeploymentList`.
    pub list_kind: String,
    /// For example `deployments`.
    pub plural: String,
    /// For example `deployment`.
    pub singular: String,
    /// For example `deploy`.
    pub short_names: Vec<String>,
    /// For example `all`.
    pub categories: Vec<String>,
    /// Cluster or namespaced.
    pub scope: Scope,
    /// Verbs in discovery.
    pub verbs: Vec<String>,
    /// Has a `status` subresource.
    pub status: bool,
    /// Has a `scale` subresource.
    pub scale: Option<ScalePaths>,
    /// Table columns.
    pub columns: Vec<Column>,
    /// The kind's rules.
    pub strategy: Arc<dyn Strategy>,
}

/// What a kind does to objects on their way in and out (upstream: registry `Strategy`).
/// Objects are complete JSON objects with `apiVersion`, `kind` and `metadata`.
pub trait Strategy: Send + Sync {
    /// Fills the defaults Kubernetes fills. Idempotent; also run on stored objects when they are read back.
    fn default(&self, _object: &mut Value) {}

    /// Before a create is validated: clears `status`, sets `metadata.generation` to 1 (kinds with generation).
    fn prepare_create(&self, object: &mut Value);

    /// Before an update through the main resource is validated: keeps the old `status` where there is a status
    /// subresource, and raises `metadata.generation` when the desired state changed.
    fn prepare_update(&self, new: &mut Value, old: &Value);

    /// Before an update through `/status`: takes only `status` (and managed fields, labels are kept from old).
    fn prepare_status(&self, new: &mut Value, old: &Value);

    /// What is wrong with a new object, beyond metadata (which the engine checks). Not called for `/status`.
    fn validate_create(&self, object: &Value) -> FieldErrors;

    /// What is wrong with a change (also immutable fields).
    fn validate_update(&self, new: &Value, old: &Value) -> FieldErrors;

    /// What is wrong with a status change.
    fn validate_status(&self, _new: &Value, _old: &Value) -> FieldErrors {
        FieldErrors::default()
    }

    /// Warnings for the client (HTTP `Warning` headers), for example deprecated fields.
    fn warnings(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    /// One cell for each of [`Resource::columns`]. `now` is seconds since the epoch, for ages.
    fn cells(&self, object: &Value, now: i64) -> Vec<Value>;

    /// The value of a field for field selectors beyond `metadata.name` and `metadata.namespace`; `None` when the
    /// kind does not support selecting by that field.
    fn select_field(&self, _object: &Value, _field: &str) -> Option<String> {
        None
    }

    /// How names are checked: `dns-subdomain` for most; the kind may be stricter (`dns-label`, `path-segment`).
    fn validate_name(&self, name: &str) -> Result<(), String> {
        field::dns_subdomain(name)
    }
}
