//! core/v1 ServiceAccount: an identity for pods; the engine adds `token`.

use crate::json::count;
use crate::rules::{Kind, Rules};
use crate::{Resource, age, cell};
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("", "v1", "ServiceAccount", "serviceaccounts")
        .short(&["sa"])
        .columns(&[("Name", "string", 0), ("Secrets", "string", 0), ("Age", "string", 0)])
        .rules(Rules { cells, ..Rules::default() })
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    vec![cell::name(o), json!(count(o, "secrets")), age::age(o, now)]
}
