//! A stored object as reads and watches need it: encoded once, with what selectors ask for at hand.

use crate::request::FieldTerm;
use bytes::Bytes;
use causeway_api::selector::Selector;
use causeway_store::{KeyValue, Revision};
use serde_json::Value;
use std::collections::BTreeMap;

/// An object at one revision.
#[derive(Debug)]
pub struct Object {
    /// Storage key.
    pub key: String,
    /// JSON with `metadata.resourceVersion`.
    pub json: Bytes,
    /// The revision it was written at.
    pub revision: Revision,
    /// `apiVersion` inside [`Self::json`].
    pub api_version: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    fields: Vec<(&'static str, String)>,
}

/// Fields that are looked up often, by storage prefix.
fn indexed(key: &str) -> &'static [(&'static str, &'static str)] {
    if key.starts_with("/registry/core/pods/") {
        &[
            ("spec.nodeName", "/spec/nodeName"),
            ("status.phase", "/status/phase"),
            ("spec.schedulerName", "/spec/schedulerName"),
        ]
    } else if key.starts_with("/registry/core/events/") {
        &[
            ("involvedObject.name", "/involvedObject/name"),
            ("involvedObject.namespace", "/involvedObject/namespace"),
            ("involvedObject.kind", "/involvedObject/kind"),
            ("involvedObject.uid", "/involvedObject/uid"),
            ("reason", "/reason"),
            ("type", "/type"),
        ]
    } else {
        &[]
    }
}

impl Object {
    /// From the store's value.
    pub fn decode(kv: &KeyValue) -> Result<Self, serde_json::Error> {
        Self::at(&kv.key, &kv.value, kv.mod_revision)
    }

    /// From stored JSON, to be shown at a revision.
    pub fn at(key: &str, stored: &[u8], revision: Revision) -> Result<Self, serde_json::Error> {
        let mut value: Value = serde_json::from_slice(stored)?;
        stamp(&mut value, revision);
        Self::from_value(key, &value, revision)
    }

    /// From a value that bears its resource version.
    pub fn from_value(key: &str, value: &Value, revision: Revision) -> Result<Self, serde_json::Error> {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or("").to_owned();
        Ok(Self {
            key: key.to_owned(),
            revision,
            api_version: text("/apiVersion"),
            labels: labels(value),
            fields: indexed(key).iter().map(|(field, pointer)| (*field, text(pointer))).collect(),
            json: serde_json::to_vec(value)?.into(),
        })
    }

    /// Namespace and name, from the key.
    pub fn names(&self) -> (&str, &str) {
        // `/registry/<group>/<plural>/[<namespace>/]<name>`
        let rest = self.key.splitn(5, '/').nth(4).unwrap_or("");
        rest.split_once('/').unwrap_or(("", rest))
    }

    /// A field that is at hand.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value.as_str())
    }

    /// Parsed.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json).unwrap_or(Value::Null)
    }
}

/// Labels of an object.
pub fn labels(value: &Value) -> BTreeMap<String, String> {
    value
        .pointer("/metadata/labels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
        .collect()
}

/// Writes the resource version into the metadata.
pub fn stamp(value: &mut Value, revision: Revision) {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".to_owned(), revision.to_string().into());
    }
}

/// What a list or watch selects.
#[derive(Clone)]
pub struct Filter {
    /// By labels.
    pub labels: Selector,
    /// By fields.
    pub fields: Vec<FieldTerm>,
    /// Reads a field of an object that is not indexed.
    pub strategy: std::sync::Arc<dyn causeway_registry::Strategy>,
}

impl Filter {
    /// Nothing is filtered out.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether the object is selected.
    pub fn matches(&self, object: &Object) -> bool {
        if !self.labels.is_empty() && !self.labels.matches(&object.labels) {
            return false;
        }
        let mut parsed = None;
        self.fields.iter().all(|term| {
            let (namespace, name) = object.names();
            let actual = match term.field.as_str() {
                "metadata.name" => name.to_owned(),
                "metadata.namespace" => namespace.to_owned(),
                field => match object.fields.iter().find(|(f, _)| *f == field) {
                    Some((_, value)) => value.clone(),
                    None => {
                        let value = parsed.get_or_insert_with(|| object.value());
                        self.strategy.select_field(value, field).unwrap_or_default()
                    }
                },
            };
            (actual == term.value) == term.equal
        })
    }

    /// The one node whose Pods are asked for, if so.
    pub fn single_node(&self) -> Option<&str> {
        let term = self.fields.iter().find(|t| t.equal && t.field == "spec.nodeName" && !t.value.is_empty());
        term.map(|t| t.value.as_str())
    }

    /// The one name that is asked for, if so.
    pub fn single_name(&self) -> Option<&str> {
        self.fields.iter().find(|t| t.equal && t.field == "metadata.name").map(|t| t.value.as_str())
    }
}
