//! How deep and how big an object may be, whatever its wire form was.
//!
//! Everything that walks over a value, down to the code that frees it, calls itself once a level. The parsers of JSON
//! and YAML stop at 128 levels, protobuf and patches can make more. What is stored must be read again, and clients with
//! the parser of JSON above read it inside of lists, tables and events: so the bound is a little lower than theirs.

use serde_json::Value;

/// The most levels of objects and lists in one object.
pub const MAX_DEPTH: usize = 120;

/// The most bytes of one object as JSON, and of a request's body: Kubernetes' limit of a body.
pub const MAX_SIZE: usize = 3 * 1024 * 1024;

/// The length of a value as JSON; `None` when that is more than `limit`.
pub fn size_within(value: &Value, limit: usize) -> Option<usize> {
    let mut left = Left(limit);
    serde_json::to_writer(&mut left, value).ok()?;
    Some(limit - left.0)
}

/// Counts what is written to it, as long as there is room.
struct Left(usize);

impl std::io::Write for Left {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::FileTooLarge)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

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
    fn sizes_are_those_of_json() {
        let value = json!({"a": [1, "two\n", null], "b": {}});
        let length = value.to_string().len();
        assert_eq!(size_within(&value, length), Some(length));
        assert_eq!(size_within(&value, length - 1), None);
    }

    #[test]
    fn what_is_allowed_can_be_read_in_a_table_of_a_list() {
        let deep = (0..MAX_DEPTH).fold(json!(1), |inner, _| json!([inner]));
        assert!(!is_deeper(&deep, MAX_DEPTH));
        let shown = json!({"rows": [{"object": deep}]}).to_string();
        assert!(serde_json::from_str::<Value>(&shown).is_ok());
    }
}
