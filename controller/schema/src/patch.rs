//! The three patch types of clients: JSON patch (RFC 6902), merge patch (RFC 7386), strategic merge patch.
//!
//! In: the live object, the patch and, for the strategic kind, the schema with its merge marks. Out: the patched object.

mod strategic;

pub use strategic::strategic;

use crate::bounds::{MAX_DEPTH, MAX_SIZE, is_deeper, size_within, too_deep};
use json_patch::PatchOperation;
use serde_json::{Map, Value};
use thiserror::Error;

/// The most operations of a JSON patch, as in Kubernetes.
pub const MAX_OPERATIONS: usize = 10_000;

/// So many items may all operations together move in lists: each one that inserts or removes moves all that follow.
const MAX_SHIFTS: usize = 20_000_000;

/// Why a patch could not be applied.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum PatchError {
    /// The patch itself makes no sense (HTTP 400).
    #[error("{0}")]
    Malformed(String),
    /// It does not fit the object, for example a `test` that fails (HTTP 422).
    #[error("the server rejected our request due to an error in our request: {0}")]
    DoesNotApply(String),
    /// Too many operations (HTTP 413).
    #[error("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {0}")]
    TooManyOperations(usize),
}

/// Applies a JSON patch. Copies add up to at most [`MAX_SIZE`] bytes (each can double the object), and nothing gets
/// more than [`MAX_DEPTH`] levels deep.
pub fn json(doc: &Value, patch: &Value) -> Result<Value, PatchError> {
    let patch: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|e| PatchError::Malformed(format!("error decoding patch: {e}")))?;
    if patch.len() > MAX_OPERATIONS {
        return Err(PatchError::TooManyOperations(patch.len()));
    }
    let mut patched = doc.clone();
    let (mut copied, mut moved) = (0, 0);
    for (index, operation) in patch.iter().enumerate() {
        check_growth(&patched, operation, &mut copied)?;
        moved += shifts(&patched, operation);
        if moved > MAX_SHIFTS {
            let why = format!("operations on the beginnings of long lists move more than {MAX_SHIFTS} items");
            return Err(PatchError::DoesNotApply(why));
        }
        json_patch::patch_unsafe(&mut patched, std::slice::from_ref(operation)).map_err(|mut error| {
            error.operation = index;
            PatchError::DoesNotApply(error.to_string())
        })?;
    }
    Ok(patched)
}

/// How many items of lists an operation moves.
fn shifts(doc: &Value, operation: &PatchOperation) -> usize {
    let after = |path: &str| {
        let (list, item) = path.rsplit_once('/').unwrap_or_default();
        let length = doc.pointer(list).and_then(Value::as_array).map_or(0, Vec::len);
        length.saturating_sub(item.parse().unwrap_or(length))
    };
    match operation {
        PatchOperation::Add(_) | PatchOperation::Copy(_) | PatchOperation::Remove(_) => {
            after(operation.path().as_str())
        }
        PatchOperation::Move(moved) => after(moved.from.as_str()) + after(operation.path().as_str()),
        PatchOperation::Replace(_) | PatchOperation::Test(_) => 0,
    }
}

/// Refuses an operation that makes the object too deep, or copies too much. It is done one by one: afterwards it would
/// be too late.
fn check_growth(doc: &Value, operation: &PatchOperation, copied: &mut usize) -> Result<(), PatchError> {
    let levels = operation.path().count();
    let value = match operation {
        PatchOperation::Add(add) => Some(&add.value),
        PatchOperation::Replace(replace) => Some(&replace.value),
        PatchOperation::Copy(copy) => doc.pointer(copy.from.as_str()),
        // To the same level or a higher one, a move makes nothing deeper.
        PatchOperation::Move(moved) if levels > moved.from.count() => doc.pointer(moved.from.as_str()),
        _ => None,
    };
    // What does not exist is the operation's own error.
    let Some(value) = value else { return Ok(()) };
    if MAX_DEPTH.checked_sub(levels).is_none_or(|left| is_deeper(value, left)) {
        return Err(PatchError::DoesNotApply(too_deep()));
    }
    // A move down counts like a copy: it is looked through as a whole, and there can be thousands.
    if matches!(operation, PatchOperation::Copy(_) | PatchOperation::Move(_)) {
        *copied += size_within(value, usize::MAX).unwrap_or(MAX_SIZE);
        if *copied > MAX_SIZE {
            return Err(PatchError::DoesNotApply(format!(
                "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_SIZE}"
            )));
        }
    }
    Ok(())
}

/// Applies a merge patch: objects merge, `null` deletes, all else replaces.
pub fn merge(doc: &Value, patch: &Value) -> Value {
    let Value::Object(changes) = patch else {
        return patch.clone();
    };
    let mut merged = doc.as_object().cloned().unwrap_or_default();
    merge_into(&mut merged, changes);
    Value::Object(merged)
}

fn merge_into(target: &mut Map<String, Value>, changes: &Map<String, Value>) {
    remove_nulls(target, changes);
    for (key, change) in changes.iter().filter(|(_, change)| !change.is_null()) {
        match (target.get_mut(key), change) {
            (Some(Value::Object(inner)), Value::Object(changes)) => merge_into(inner, changes),
            _ => {
                target.insert(key.clone(), merge(&Value::Null, change));
            }
        }
    }
}

/// Removes what a patch says is null, in one go: each removal for itself moves all that comes after it.
fn remove_nulls(target: &mut Map<String, Value>, changes: &Map<String, Value>) {
    if changes.iter().any(|(key, change)| change.is_null() && target.contains_key(key)) {
        target.retain(|key, _| changes.get(key).is_none_or(|change| !change.is_null()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn merge_patch_follows_the_examples_of_rfc_7386() {
        for (doc, patch, expected) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            assert_eq!(merge(&doc, &patch), expected, "{doc} + {patch}");
        }
    }

    #[test]
    fn json_patch_applies_or_says_why_not() {
        let doc = json!({"spec": {"replicas": 1}});
        let patched = json(&doc, &json!([{"op": "replace", "path": "/spec/replicas", "value": 3}])).unwrap();
        assert_eq!(patched["spec"]["replicas"], 3);
        let failed = json(&doc, &json!([{"op": "test", "path": "/spec/replicas", "value": 2}]));
        assert!(matches!(failed, Err(PatchError::DoesNotApply(_))));
        assert!(matches!(json(&doc, &json!({"op": "add"})), Err(PatchError::Malformed(_))));
        let second = json!([{"op": "add", "path": "/a", "value": 1}, {"op": "remove", "path": "/b"}]);
        let error = json(&doc, &second).unwrap_err().to_string();
        assert!(error.ends_with("operation '/1' failed at path '/b': path is invalid"), "{error}");
    }

    #[test]
    fn copies_that_double_the_object_are_refused() {
        let doc = json!({"data": {"x": "0123456789".repeat(10)}});
        let copies = |times: usize| {
            Value::from(
                (0..times)
                    .map(|n| json!({"op": "copy", "from": "/data", "path": format!("/data/{n}")}))
                    .collect::<Vec<_>>(),
            )
        };
        assert!(json(&doc, &copies(10)).is_ok());
        for times in [20, 40, 1_000] {
            let error = json(&doc, &copies(times)).unwrap_err();
            assert!(
                matches!(&error, PatchError::DoesNotApply(why) if why.contains("accumulated size increase")),
                "{error}"
            );
        }
    }

    #[test]
    fn the_beginnings_of_long_lists_are_not_removed_for_ever() {
        let doc = |items: usize| json!({"a": vec![0; items]});
        let removals = Value::from(vec![json!({"op": "remove", "path": "/a/0"}); 5_000]);
        assert_eq!(json(&doc(5_000), &removals).unwrap(), json!({"a": []}));
        let error = json(&doc(100_000), &removals).unwrap_err();
        assert!(matches!(&error, PatchError::DoesNotApply(why) if why.contains("move more than")), "{error}");
        let last = Value::from(vec![json!({"op": "add", "path": "/a/-", "value": 1}); 5_000]);
        assert!(json(&doc(100_000), &last).is_ok());
    }

    #[test]
    fn operations_are_counted() {
        let tests = |times: usize| Value::from(vec![json!({"op": "test", "path": "/a", "value": 1}); times]);
        assert!(json(&json!({"a": 1}), &tests(MAX_OPERATIONS)).is_ok());
        let error = json(&json!({"a": 1}), &tests(MAX_OPERATIONS + 1)).unwrap_err();
        assert_eq!(error, PatchError::TooManyOperations(10_001));
        assert_eq!(error.to_string(), "The allowed maximum operations in a JSON patch is 10000, got 10001");
    }

    #[test]
    fn patches_make_nothing_too_deep() {
        let path = |levels: usize| "/a".repeat(levels);
        let add = |levels: usize| json!({"op": "add", "path": path(levels), "value": {}});
        let deeper = |levels: usize| Value::from((1..=levels).map(add).collect::<Vec<_>>());
        // The object itself is a level, and the value.
        assert!(json(&json!({}), &deeper(MAX_DEPTH - 1)).is_ok());
        let other = json(&json!({}), &deeper(MAX_DEPTH - 1)).unwrap();
        let patches = [
            deeper(MAX_DEPTH),
            deeper(3_000),
            json!([{"op": "add", "path": "/b", "value": other["a"]}, {"op": "copy", "from": "/b", "path": "/b/c"}]),
            json!([{"op": "add", "path": "/b", "value": other["a"]}, {"op": "add", "path": "/d", "value": {}},
                {"op": "move", "from": "/b", "path": "/d/b"}]),
        ];
        for patch in patches {
            let error = json(&json!({}), &patch).unwrap_err();
            assert_eq!(error, PatchError::DoesNotApply(too_deep()));
        }
        let moved = json!([{"op": "move", "from": "/a", "path": "/b"}]);
        assert!(json(&other, &moved).is_ok());
    }
}
