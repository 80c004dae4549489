//! The three patch types of clients: JSON patch (RFC 6902), merge patch (RFC 7386), strategic merge patch.
//!
//! In: the live object, the patch and, for the strategic kind, the schema with its merge marks. Out: the patched object.

mod strategic;

pub use strategic::strategic;

use serde_json::{Map, Value};
use thiserror::Error;

/// Why a patch could not be applied.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum PatchError {
    /// The patch itself makes no sense (HTTP 400).
    #[error("{0}")]
    Malformed(String),
    /// It does not fit the object, for example a `test` that fails (HTTP 422).
    #[error("the server rejected our request due to an error in our request: {0}")]
    DoesNotApply(String),
}

/// Applies a JSON patch.
pub fn json(doc: &Value, patch: &Value) -> Result<Value, PatchError> {
    let patch: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|e| PatchError::Malformed(format!("error decoding patch: {e}")))?;
    let mut patched = doc.clone();
    json_patch::patch(&mut patched, &patch).map_err(|e| PatchError::DoesNotApply(e.to_string()))?;
    Ok(patched)
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
    for (key, change) in changes {
        match (target.get_mut(key), change) {
            (_, Value::Null) => {
                target.shift_remove(key);
            }
            (Some(Value::Object(inner)), Value::Object(changes)) => merge_into(inner, changes),
            _ => {
                target.insert(key.clone(), merge(&Value::Null, change));
            }
        }
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
    }
}
