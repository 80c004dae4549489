//! Custom resources: their structural schemas, pruning, defaulting and validation.
//!
//! In: the `openAPIV3Schema` of a CustomResourceDefinition and objects of its kind. Out: a [`Schema`] as built-in kinds
//! have it, with the constraints of the definition; cleaned and defaulted objects; field errors.

mod cost;
mod rules;
mod structure;
mod validate;

pub use rules::Rules;
pub use structure::structural;
pub use validate::validate;

use crate::model::{Node, Schema};
use crate::strict;
use serde_json::Value;

/// The class of an error; the names are those of Kubernetes' field errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrdErrorKind {
    /// A needed value is missing.
    Required,
    /// A malformed or out-of-range value.
    Invalid,
    /// Not one of the supported values.
    NotSupported,
    /// Of the wrong type.
    TypeInvalid,
    /// The same key twice.
    Duplicate,
    /// Not allowed here.
    Forbidden,
    /// Too long.
    TooLong,
    /// Too many items.
    TooMany,
}

/// What is wrong with one field of a custom resource.
#[derive(Debug, Clone, PartialEq)]
pub struct CrdError {
    /// `spec.rules[0].name`
    pub path: String,
    /// The class.
    pub kind: CrdErrorKind,
    /// The offending value.
    pub value: Value,
    /// What to do about it.
    pub detail: String,
}

/// Removes the fields that the schema does not know, except where it preserves them.
pub fn prune(object: &mut Value, schema: &Schema) {
    strict::drop_unknown(object, schema);
}

/// Fills in defaults, after dropping nulls where null is no value. Idempotent.
pub fn default(object: &mut Value, schema: &Schema) {
    match (object, &schema.node) {
        (Value::Object(map), Node::Object(fields)) => {
            map.retain(|key, value| {
                !value.is_null() || fields.get(key).is_none_or(|field| field.schema.get().nullable)
            });
            for (key, field) in fields {
                let inner = field.schema.get();
                if let Some(value) = inner.default.as_ref().filter(|_| !map.contains_key(key)) {
                    map.insert(key.clone(), value.clone());
                }
                // Built-in types in custom resources are metadata, which has no defaults.
                if let Some(value) = map.get_mut(key).filter(|_| inner.name.is_empty()) {
                    default(value, inner);
                }
            }
        }
        (Value::Object(map), Node::Map(value)) => {
            let inner = value.get();
            for value in map.values_mut() {
                if let Some(filler) = inner.default.as_ref().filter(|_| value.is_null() && !inner.nullable) {
                    *value = filler.clone();
                }
                default(value, inner);
            }
        }
        (Value::Array(items), Node::List(list)) => items.iter_mut().for_each(|item| default(item, list.item.get())),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
