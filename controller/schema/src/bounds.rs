//! How deep an object may be, whatever its wire form was.
//!
//! Everything that walks over a value, down to the code that frees it, calls itself once a level. The parsers of JSON
//! and YAML stop at 128 levels, protobuf and patches can make more. What is stored must be read again, and clients with
//! the parser of JSON above read it inside of lists, tables and events: so the bound is a little lower than theirs.

use serde_json::Value;

/// The most levels of objects and lists in one object.
pub const MAX_DEPTH: usize = 120;

/// Whether a value has more levels of objects and lists than that. It looks no deeper than it must.
pub fn is_deeper(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels == 0 || items.iter().any(|item| is_deeper(item, levels - 1)),
        Value::Object(map) => levels == 0 || map.values().any(|item| is_deeper(item, levels - 1)),
        _ => false,
    }
}

/// What is said about a value that is too deep.
pub fn too_deep() -> String {
    format!("the object is nested more than {MAX_DEPTH} levels deep")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn levels_are_counted() {
        assert!(!is_deeper(&json!(1), 0) && is_deeper(&json!({}), 0) && is_deeper(&json!([]), 0));
        let value = json!({"a": [1, {"b": {}}], "c": {}});
        assert!(is_deeper(&value, 3) && !is_deeper(&value, 4));
    }

    #[test]
    fn what_is_allowed_can_be_read_in_a_table_of_a_list() {
        let deep = (0..MAX_DEPTH).fold(json!(1), |inner, _| json!([inner]));
        assert!(!is_deeper(&deep, MAX_DEPTH));
        let shown = json!({"rows": [{"object": deep}]}).to_string();
        assert!(serde_json::from_str::<Value>(&shown).is_ok());
    }
}
