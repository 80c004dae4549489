//! apps/v1 ControllerRevision: an immutable snapshot of a StatefulSet's or DaemonSet's template.

use crate::field::{FieldErrors, Path};
use crate::json::{int, list, same, text, truth};
use crate::rules::{Kind, Rules};
use crate::{Resource, age, cell};
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("apps", "v1", "ControllerRevision", "controllerrevisions")
        .columns(&[("Name", "string", 0), ("Controller", "string", 0), ("Revision", "string", 0), ("Age", "string", 0)])
        .rules(Rules { validate, validate_update, cells, ..Rules::default() })
}

fn validate(o: &Value, errors: &mut FieldErrors) {
    if let Some(n) = int(o, "revision").filter(|n| *n < 0) {
        errors.invalid(&Path::new("revision"), n, "must be greater than or equal to 0");
    }
}

fn validate_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    if !same(&new["data"], &old["data"]) {
        errors.invalid(&Path::new("data"), new["data"].clone(), "field is immutable");
    }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    let owner = list(o, "metadata.ownerReferences").iter().find(|r| truth(r, "controller"));
    let controller = owner.map_or_else(
        || "<none>".to_owned(),
        |r| {
            let kind = text(r, "kind").to_lowercase();
            match text(r, "apiVersion").split_once('/') {
                Some((group, _)) => format!("{kind}.{group}/{}", text(r, "name")),
                None => format!("{kind}/{}", text(r, "name")),
            }
        },
    );
    vec![cell::name(o), json!(controller), cell::number(o, "revision"), age::age(o, now)]
}
