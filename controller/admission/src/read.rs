//! Reading JSON objects: absent and `null` are one and the same, as for Go's decoder. Nothing here panics on an object
//! of the wrong shape.

use serde_json::Value;

static NULL: Value = Value::Null;

/// The value at a dotted path; `Null` when there is none. Keys with dots are indexed for instead.
pub(crate) fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').filter(|p| !p.is_empty()).fold(value, |v, key| v.get(key).unwrap_or(&NULL))
}

/// The string at a path; empty when there is none.
pub(crate) fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).as_str().unwrap_or("")
}

/// The list at a path; empty when there is none.
pub(crate) fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    at(value, path).as_array().map_or(&[], Vec::as_slice)
}

/// The entries of the map at a path.
pub(crate) fn entries<'a>(value: &'a Value, path: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    at(value, path).as_object().into_iter().flatten()
}

/// There is a value at a path, and it is not `null`.
pub(crate) fn has(value: &Value, path: &str) -> bool {
    !at(value, path).is_null()
}
