//! core/v1 Secret: sensitive keys and values. `stringData` is folded into `data` on the way in.

use crate::json::{count, entries, fill_zero, object_mut, put, remove};
use crate::rules::{Kind, Rules};
use crate::validate::data;
use crate::{Resource, age, cell};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("", "v1", "Secret", "secrets")
        .columns(&[("Name", "string", 0), ("Type", "string", 0), ("Data", "string", 0), ("Age", "string", 0)])
        .rules(Rules {
            default,
            cells,
            validate: data::secret,
            validate_update: data::secret_update,
            fields: &["type"],
            ..Rules::default()
        })
}

fn default(o: &mut Value) {
    if let Some(plain) = remove(o, "stringData")
        && let Some(data) = object_mut(o, "data")
    {
        for (key, value) in entries(&plain, "") {
            put(data, key, json!(STANDARD.encode(value.as_str().unwrap_or(""))));
        }
    }
    fill_zero(o, "type", "Opaque");
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    vec![cell::name(o), cell::or(o, "type", "Opaque"), json!(count(o, "data")), age::age(o, now)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_data_is_folded_in() {
        let mut o = json!({"data": {"a": "MQ=="}, "stringData": {"a": "2", "b": "x"}});
        default(&mut o);
        assert_eq!(o, json!({"data": {"a": "Mg==", "b": "eA=="}, "type": "Opaque"}));
    }
}
