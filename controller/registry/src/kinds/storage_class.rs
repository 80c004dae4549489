//! storage.k8s.io/v1 StorageClass: how claims get their volumes.

use crate::field::{FieldErrors, Path};
use crate::json::{fill, same, text, truth};
use crate::rules::{Kind, Rules};
use crate::{Resource, age, cell};
use serde_json::{Value, json};

/// Marks the class that claims without one get.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

pub(super) fn resource() -> Resource {
    Kind::new("storage.k8s.io", "v1", "StorageClass", "storageclasses")
        .cluster()
        .short(&["sc"])
        .columns(&[
            ("Name", "string", 0),
            ("Provisioner", "string", 0),
            ("ReclaimPolicy", "string", 0),
            ("VolumeBindingMode", "string", 0),
            ("AllowVolumeExpansion", "string", 0),
            ("Age", "string", 0),
        ])
        .rules(Rules { default, validate, validate_update, cells, ..Rules::default() })
}

fn default(o: &mut Value) {
    fill(o, "reclaimPolicy", "Delete");
    fill(o, "volumeBindingMode", "Immediate");
}

fn validate(o: &Value, errors: &mut FieldErrors) {
    if text(o, "provisioner").is_empty() {
        errors.required(&Path::new("provisioner"), "");
    }
    let one_of =
        [("reclaimPolicy", ["Delete", "Retain"]), ("volumeBindingMode", ["Immediate", "WaitForFirstConsumer"])];
    for (key, supported) in one_of {
        let value = text(o, key);
        if !value.is_empty() && !supported.contains(&value) {
            errors.not_supported(&Path::new(key), value, &supported);
        }
    }
}

fn validate_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    if !same(&new["parameters"], &old["parameters"]) {
        errors.forbidden(&Path::new("parameters"), "updates to parameters are forbidden.");
    }
    if !same(&new["provisioner"], &old["provisioner"]) {
        errors.forbidden(&Path::new("provisioner"), "updates to provisioner are forbidden.");
    }
    if !same(&new["reclaimPolicy"], &old["reclaimPolicy"]) {
        errors.forbidden(&Path::new("reclaimPolicy"), "updates to reclaimPolicy are forbidden.");
    }
    if !same(&new["volumeBindingMode"], &old["volumeBindingMode"]) {
        errors.invalid(&Path::new("volumeBindingMode"), new["volumeBindingMode"].clone(), "field is immutable");
    }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    let is_default = o["metadata"]["annotations"][DEFAULT_CLASS] == "true";
    let mark = if is_default { " (default)" } else { "" };
    vec![
        json!(format!("{}{mark}", text(o, "metadata.name"))),
        json!(text(o, "provisioner")),
        cell::or(o, "reclaimPolicy", "Delete"),
        cell::or(o, "volumeBindingMode", "<unset>"),
        json!(truth(o, "allowVolumeExpansion")),
        age::age(o, now),
    ]
}
