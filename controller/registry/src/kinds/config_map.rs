//! core/v1 ConfigMap: keys and values for pods.

use crate::json::count;
use crate::rules::{Kind, Rules};
use crate::validate::data;
use crate::{Resource, age, cell};
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("", "v1", "ConfigMap", "configmaps")
        .short(&["cm"])
        .columns(&[("Name", "string", 0), ("Data", "string", 0), ("Age", "string", 0)])
        .rules(Rules { cells, validate: data::config_map, validate_update: data::immutable, ..Rules::default() })
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    vec![cell::name(o), json!(count(o, "data") + count(o, "binaryData")), age::age(o, now)]
}
