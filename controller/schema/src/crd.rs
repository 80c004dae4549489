//! Custom resources: their structural schemas, pruning, defaulting and validation.
//!
//! In: the `openAPIV3Schema` of a CustomResourceDefinition and objects of its kind. Out: a [`Schema`] as built-in kinds
//! have it, with the constraints of the definition; cleaned and defaulted objects; field errors.

mod structure;
mod validate;

pub use structure::structural;
pub use validate::validate;

use crate::model::{Node, Schema};
use crate::strict;
use kube_cel::{CompiledSchema, ValidationError, compile_schema, validate_compiled};
use serde_json::Value;

/// The CEL rules (`x-kubernetes-validations`) of a whole schema, compiled once.
#[derive(Debug)]
pub struct Rules(CompiledSchema);

impl Rules {
    /// Compiles the rules; `None` when there are none. The error lists those that are not valid CEL.
    fn compile(schema: &Value) -> Result<Option<Rules>, Vec<String>> {
        if !has_rules(schema) {
            return Ok(None);
        }
        let compiled = compile_schema(schema);
        let mut problems = Vec::new();
        collect_problems(&compiled, &mut problems);
        if problems.is_empty() { Ok(Some(Rules(compiled))) } else { Err(problems) }
    }

    fn check(&self, object: &Value, old: Option<&Value>) -> Vec<ValidationError> {
        validate_compiled(&self.0, object, old).err().map(kube_cel::ValidationErrors::into_vec).unwrap_or_default()
    }
}

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

fn has_rules(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => map.contains_key("x-kubernetes-validations") || map.values().any(has_rules),
        Value::Array(items) => items.iter().any(has_rules),
        _ => false,
    }
}

fn collect_problems(schema: &CompiledSchema, problems: &mut Vec<String>) {
    problems.extend(schema.compilation_errors().into_iter().map(ToString::to_string));
    let boxed = schema.items.iter().chain(&schema.additional_properties).map(Box::as_ref);
    let branches = schema.all_of.iter().chain(&schema.any_of).chain(&schema.one_of);
    schema.properties.values().chain(boxed).chain(branches).for_each(|inner| collect_problems(inner, problems));
}

#[cfg(test)]
mod tests;
