//! What all built-in kinds share: a table of small functions ([`Rules`]) behind [`Strategy`], and the builder
//! ([`Kind`]) with which a kind's file writes itself down in a few lines.
//!
//! In: names, columns and functions of a kind. Out: a [`Resource`].

use crate::field::{self, FieldErrors};
use crate::json::{at, put, remove, same};
use crate::{Column, Resource, ScalePaths, Scope, Strategy};
use serde_json::{Value, json};
use std::sync::Arc;

/// Verbs of an ordinary resource, sorted as discovery lists them.
pub(crate) const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// What happens to `status` when an object is created.
#[derive(Clone, Copy)]
pub(crate) enum Status {
    /// The kind has no `status` subresource.
    None,
    /// Cleared, or replaced by what the function says.
    Cleared(fn(&Value) -> Value),
    /// Kept as the client sent it (nodes register themselves with a status).
    Kept,
}

/// The rules of a kind; every function may be left out.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    pub default: fn(&mut Value),
    pub prepare: fn(&mut Value, Option<&Value>),
    pub status: Status,
    pub status_metadata: bool,
    pub generation: bool,
    pub validate: fn(&Value, &mut FieldErrors),
    /// Only for new objects, after `validate`.
    pub validate_new: fn(&Value, &mut FieldErrors),
    pub validate_update: fn(&Value, &Value, &mut FieldErrors),
    pub validate_status: fn(&Value, &Value, &mut FieldErrors),
    pub warnings: fn(&Value) -> Vec<String>,
    pub cells: fn(&Value, i64) -> Vec<Value>,
    pub fields: &'static [&'static str],
    pub field: fn(&Value, &str) -> Option<String>,
    pub name: fn(&str) -> Result<(), String>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            default: |_| {},
            prepare: |_, _| {},
            status: Status::None,
            status_metadata: false,
            generation: false,
            validate: |_, _| {},
            validate_new: |_, _| {},
            validate_update: |_, _, _| {},
            validate_status: |_, _, _| {},
            warnings: |_| Vec::new(),
            cells: |o, now| vec![crate::cell::name(o), crate::age::age(o, now)],
            fields: &[],
            field: |_, _| None,
            name: field::dns_subdomain,
        }
    }
}

/// Raises `metadata.generation` when the desired state differs from the old one's. `status` belongs to the desired
/// state only where it is no subresource.
pub(crate) fn raise_generation(new: &mut Value, old: &Value, with_status: bool) {
    let generation = at(old, "metadata.generation").as_i64().unwrap_or(1);
    let generation = generation + i64::from(desired_state_differs(new, old, with_status));
    if let Some(metadata) = new.get_mut("metadata") {
        put(metadata, "generation", json!(generation));
    }
}

fn desired_state_differs(new: &Value, old: &Value, with_status: bool) -> bool {
    let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else { return true };
    let counts = |key: &str| match key {
        "metadata" | "apiVersion" | "kind" => false,
        "status" => with_status,
        _ => true,
    };
    let null = Value::Null;
    new.iter().any(|(k, v)| counts(k) && !same(v, old.get(k).unwrap_or(&null)))
        || old.iter().any(|(k, v)| counts(k) && !new.contains_key(k) && !same(v, &null))
}

/// Makes of `new` the old object with the new status. Of the metadata, annotations, finalizers, managed fields and the
/// resource version come from `new`; labels too when `labels` says so.
pub(crate) fn take_status(new: &mut Value, old: &Value, labels: bool) {
    let Some(map) = new.as_object() else { return };
    let mut result = old.clone();
    put(&mut result, "status", map.get("status").cloned().unwrap_or_default());
    let mut metadata = map.get("metadata").cloned().unwrap_or_default();
    let mut kept = vec!["ownerReferences", "generation", "deletionTimestamp", "deletionGracePeriodSeconds"];
    if !labels {
        kept.push("labels");
    }
    for key in kept {
        put(&mut metadata, key, old["metadata"][key].clone());
    }
    put(&mut result, "metadata", metadata);
    *new = result;
}

impl Strategy for Rules {
    fn default(&self, object: &mut Value) {
        (self.default)(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        if let Status::Cleared(initial) = self.status {
            remove(object, "status");
            let status = initial(object);
            put(object, "status", status);
        }
        if let Some(metadata) = object.get_mut("metadata") {
            put(metadata, "generation", if self.generation { json!(1) } else { Value::Null });
        }
        (self.prepare)(object, None);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        if !matches!(self.status, Status::None) {
            put(new, "status", old["status"].clone());
        }
        (self.prepare)(new, Some(old));
        if self.generation {
            raise_generation(new, old, false);
        }
    }

    fn prepare_status(&self, new: &mut Value, old: &Value) {
        take_status(new, old, self.status_metadata);
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        (self.validate)(object, &mut errors);
        (self.validate_new)(object, &mut errors);
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        (self.validate)(new, &mut errors);
        (self.validate_update)(new, old, &mut errors);
        errors
    }

    fn validate_status(&self, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        (self.validate_status)(new, old, &mut errors);
        errors
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        (self.warnings)(object)
    }

    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        (self.cells)(object, now)
    }

    fn select_field(&self, object: &Value, field: &str) -> Option<String> {
        if !self.fields.contains(&field) {
            return (self.field)(object, field);
        }
        Some(match at(object, field) {
            Value::String(s) => s.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        })
    }

    fn validate_name(&self, name: &str) -> Result<(), String> {
        (self.name)(name)
    }
}

/// A kind under construction.
pub(crate) struct Kind {
    resource: Resource,
}

impl Kind {
    /// A namespaced kind with the ordinary verbs.
    pub fn new(group: &str, version: &str, kind: &str, plural: &str) -> Self {
        let resource = Resource {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
            list_kind: format!("{kind}List"),
            plural: plural.to_owned(),
            singular: kind.to_lowercase(),
            short_names: Vec::new(),
            categories: Vec::new(),
            scope: Scope::Namespaced,
            verbs: VERBS.map(str::to_owned).to_vec(),
            status: false,
            scale: None,
            columns: Vec::new(),
            strategy: Arc::new(<Rules as Default>::default()),
        };
        Self { resource }
    }

    /// One for the whole cluster.
    pub fn cluster(mut self) -> Self {
        self.resource.scope = Scope::Cluster;
        self
    }

    /// Short names.
    pub fn short(mut self, names: &[&str]) -> Self {
        self.resource.short_names = names.iter().map(|n| (*n).to_owned()).collect();
        self
    }

    /// In `kubectl get all`.
    pub fn in_all(mut self) -> Self {
        self.resource.categories = vec!["all".to_owned()];
        self
    }

    /// In the category `api-extensions`.
    pub fn in_api_extensions(mut self) -> Self {
        self.resource.categories = vec!["api-extensions".to_owned()];
        self
    }

    /// Without a verb.
    pub fn without(mut self, verb: &str) -> Self {
        self.resource.verbs.retain(|v| v != verb);
        self
    }

    /// With a `scale` subresource over `spec.replicas` and `status.replicas`.
    pub fn scale(mut self) -> Self {
        self.resource.scale = Some(ScalePaths {
            spec_replicas: ".spec.replicas".to_owned(),
            status_replicas: ".status.replicas".to_owned(),
            selector: Some(".spec.selector".to_owned()),
        });
        self
    }

    /// Table columns: heading, type, priority.
    pub fn columns(mut self, columns: &[(&str, &str, i32)]) -> Self {
        let kind = &self.resource.kind;
        let column = |&(name, type_, priority): &(&str, &str, i32)| Column {
            name: name.to_owned(),
            kind: type_.to_owned(),
            format: if name == "Name" { "name".to_owned() } else { String::new() },
            description: format!("{name} of the {kind}."),
            priority,
        };
        self.resource.columns = columns.iter().map(column).collect();
        self
    }

    /// The kind's rules end the description.
    pub fn rules(mut self, rules: Rules) -> Resource {
        self.resource.status = !matches!(rules.status, Status::None);
        self.resource.strategy = Arc::new(rules);
        self.resource
    }
}
