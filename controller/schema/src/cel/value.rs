//! Values: from JSON, their size, their names.

use super::{CelError, EXPRESSION_COST};
use kube_cel::cel::Value;
use kube_cel::cel::objects::{Key, Map, OptionalValue};
use std::collections::HashMap;
use std::sync::Arc;

/// Lists and maps inside each other in a value that an expression made.
const MAX_VALUE_DEPTH: usize = 200;

/// A JSON value as expressions see it where no schema says more: times stay strings.
pub fn from_json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(b) => Value::Bool(*b),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::Int(i),
            (None, Some(u)) => Value::UInt(u),
            (None, None) => Value::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(s) => Value::String(Arc::new(s.clone())),
        serde_json::Value::Array(items) => Value::List(Arc::new(items.iter().map(from_json).collect())),
        serde_json::Value::Object(map) => {
            map_of(map.iter().map(|(k, v)| (Key::String(Arc::new(k.clone())), from_json(v))).collect())
        }
    }
}

/// The text of a string value.
pub fn text_of(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

/// The entry of a map that has a text as its key.
pub fn entry_of<'v>(value: &'v Value, key: &str) -> Option<&'v Value> {
    match value {
        Value::Map(map) => map.map.get(&Key::from(key)),
        _ => None,
    }
}

/// A map of these entries.
pub fn with_entries(entries: impl Iterator<Item = (String, Value)>) -> Value {
    map_of(entries.map(|(key, value)| (Key::String(Arc::new(key)), value)).collect())
}

pub(super) fn map_of(map: HashMap<Key, Value>) -> Value {
    Value::Map(Map { map: Arc::new(map) })
}

/// How much there is to read in a value: one for each part, and one for every eight bytes of text. Values share parts,
/// so that a small one may be endless to read: more than one expression may cost is an error.
pub(super) fn size(value: &Value) -> Result<u64, CelError> {
    let mut left = EXPRESSION_COST;
    count(value, 0, &mut left)?;
    Ok(EXPRESSION_COST - left)
}

fn count(value: &Value, depth: usize, left: &mut u64) -> Result<(), CelError> {
    if depth > MAX_VALUE_DEPTH {
        return Err(CelError::Exceeded("operation cancelled: values are nested too deeply".to_owned()));
    }
    let text = |length: usize| 1 + length as u64 / 8;
    let own = match value {
        Value::String(s) => text(s.len()),
        Value::Bytes(b) => text(b.len()),
        Value::Map(map) => {
            map.map.keys().map(|k| if let Key::String(s) = k { text(s.len()) } else { 1 }).sum::<u64>() + 1
        }
        _ => 1,
    };
    let rest = left.checked_sub(own);
    *left =
        rest.ok_or_else(|| CelError::Exceeded("operation cancelled: actual call cost limit exceeded".to_owned()))?;
    match value {
        Value::List(items) => items.iter().try_for_each(|v| count(v, depth + 1, left)),
        Value::Map(map) => map.map.values().try_for_each(|v| count(v, depth + 1, left)),
        Value::Opaque(o) => match o.downcast_ref::<OptionalValue>().and_then(OptionalValue::value) {
            Some(inside) => count(inside, depth + 1, left),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}
