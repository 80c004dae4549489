//! Reading and filling JSON objects without ceremony: absent, `null` and the empty value of Go are one and the same.
//!
//! In: JSON values and dotted paths. Out: borrowed values, or objects with gaps filled. Nothing here panics on an
//! object of the wrong shape; wrong types are reported by the schema before.

use serde_json::{Map, Value};

static NULL: Value = Value::Null;

/// The value at a dotted path; `Null` when there is none. Keys with dots cannot be named this way: index for those.
pub fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').filter(|p| !p.is_empty()).fold(value, |v, key| v.get(key).unwrap_or(&NULL))
}

/// The string at a path; empty when there is none.
pub fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).as_str().unwrap_or("")
}

/// The integer at a path.
pub fn int(value: &Value, path: &str) -> Option<i64> {
    at(value, path).as_i64()
}

/// The boolean at a path; `false` when there is none.
pub fn truth(value: &Value, path: &str) -> bool {
    at(value, path).as_bool().unwrap_or(false)
}

/// The list at a path; empty when there is none.
pub fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    at(value, path).as_array().map_or(&[], Vec::as_slice)
}

/// The entries of the map at a path.
pub fn entries<'a>(value: &'a Value, path: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    at(value, path).as_object().into_iter().flatten()
}

/// How many entries the list or map at a path has.
pub fn count(value: &Value, path: &str) -> usize {
    match at(value, path) {
        Value::Array(a) => a.len(),
        Value::Object(o) => o.len(),
        _ => 0,
    }
}

/// There is a value, and it is not `null`.
pub fn has(value: &Value, path: &str) -> bool {
    !at(value, path).is_null()
}

/// There is an object at a key: a pointer to a struct that is set.
pub fn existing(value: &Value, key: &str) -> bool {
    value.get(key).is_some_and(Value::is_object)
}

/// The object at a key, made when it is missing; `None` when `value` or what stands there is no object.
pub fn object_mut<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let map = value.as_object_mut()?;
    if map.get(key).is_none_or(Value::is_null) {
        map.insert(key.to_owned(), Value::Object(Map::new()));
    }
    map.get_mut(key).filter(|v| v.is_object())
}

/// The object at a key, when there is one.
pub fn existing_mut<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    value.get_mut(key).filter(|v| v.is_object())
}

/// The items of the list at a key.
pub fn items_mut<'a>(value: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    value.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Fills a pointer-like field: only when it is absent or `null`.
pub fn fill(value: &mut Value, key: &str, default: impl Into<Value>) {
    if let Some(map) = value.as_object_mut()
        && map.get(key).is_none_or(Value::is_null)
    {
        map.insert(key.to_owned(), default.into());
    }
}

/// Fills a value-like field: also when it holds Go's zero (`""` or `0`).
pub fn fill_zero(value: &mut Value, key: &str, default: impl Into<Value>) {
    if let Some(map) = value.as_object_mut()
        && map.get(key).is_none_or(is_zero)
    {
        map.insert(key.to_owned(), default.into());
    }
}

/// Removes a field.
pub fn remove(value: &mut Value, key: &str) -> Option<Value> {
    value.as_object_mut()?.shift_remove(key)
}

/// Sets a field, or removes it when the new value is `null`.
pub fn put(value: &mut Value, key: &str, new: Value) {
    if let Some(map) = value.as_object_mut() {
        if new.is_null() {
            map.shift_remove(key);
        } else {
            map.insert(key.to_owned(), new);
        }
    }
}

/// Equal, where absent, `null`, `{}` and `[]` are the same thing (Go's `apiequality.Semantic` on decoded objects).
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.iter().all(|(k, v)| same(v, y.get(k).unwrap_or(&NULL)))
                && y.iter().all(|(k, v)| x.contains_key(k) || same(&NULL, v))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(v, w)| same(v, w)),
        _ => a == b || is_empty(a) && is_empty(b),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(o) => o.values().all(is_empty),
        Value::Array(a) => a.is_empty(),
        _ => false,
    }
}

fn is_zero(value: &Value) -> bool {
    value.is_null() || value.as_str() == Some("") || value.as_i64() == Some(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn absent_null_and_empty_are_the_same() {
        assert!(same(&json!({"a": null, "b": {}, "c": [], "d": 1}), &json!({"d": 1})));
        assert!(same(&json!({"s": {"x": {}}}), &json!({})));
        assert!(!same(&json!({"a": 1}), &json!({})));
        assert!(!same(&json!([1]), &json!([])));
    }

    #[test]
    fn filling_never_panics() {
        let mut v = json!("text");
        fill(&mut v, "a", 1);
        assert!(object_mut(&mut v, "a").is_none());
        let mut v = json!({"a": null, "b": "", "c": 0, "d": 2});
        for key in ["a", "b", "c", "d"] {
            fill_zero(&mut v, key, 7);
        }
        assert_eq!(v, json!({"a": 7, "b": 7, "c": 7, "d": 2}));
    }
}
