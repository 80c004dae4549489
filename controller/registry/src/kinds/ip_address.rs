//! networking.k8s.io/v1 IPAddress: one object for each cluster IP in use; its name is the address.

use crate::field::{self, FieldErrors, Path};
use crate::json::{at, same, text};
use crate::rules::{Kind, Rules};
use crate::{Resource, age, cell};
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("networking.k8s.io", "v1", "IPAddress", "ipaddresses")
        .cluster()
        .short(&["ip"])
        .columns(&[("Name", "string", 0), ("ParentRef", "string", 0), ("Age", "string", 0)])
        .rules(Rules {
            generation: true,
            validate,
            validate_update,
            cells,
            fields: &[],
            name: field::canonical_ip,
            ..Rules::default()
        })
}

fn validate(o: &Value, errors: &mut FieldErrors) {
    let parent = Path::new("spec").child("parentRef");
    if at(o, "spec.parentRef").is_null() {
        errors.required(&parent, "");
        return;
    }
    for key in ["resource", "name"] {
        if text(at(o, "spec.parentRef"), key).is_empty() {
            errors.required(&parent.child(key), "");
        }
    }
}

fn validate_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    if !same(at(new, "spec.parentRef"), at(old, "spec.parentRef")) {
        let path = Path::new("spec").child("parentRef");
        errors.invalid(&path, at(new, "spec.parentRef").clone(), "field is immutable");
    }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    let parent = at(o, "spec.parentRef");
    let resource = match text(parent, "group") {
        "" => text(parent, "resource").to_owned(),
        group => format!("{}.{group}", text(parent, "resource")),
    };
    let path: Vec<&str> = [resource.as_str(), text(parent, "namespace"), text(parent, "name")]
        .into_iter()
        .filter(|p| !p.is_empty())
        .collect();
    vec![cell::name(o), json!(path.join("/")), age::age(o, now)]
}
