//! core/v1 PersistentVolumeClaim: a request for storage.

use crate::json::{at, has, object_mut, text};
use crate::rules::{Kind, Rules, Status};
use crate::validate::storage;
use crate::{Resource, age, cell, defaults};
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims")
        .short(&["pvc"])
        .columns(&[
            ("Name", "string", 0),
            ("Status", "string", 0),
            ("Volume", "string", 0),
            ("Capacity", "string", 0),
            ("Access Modes", "string", 0),
            ("StorageClass", "string", 0),
            ("VolumeAttributesClass", "string", 0),
            ("Age", "string", 0),
            ("VolumeMode", "string", 1),
        ])
        .rules(Rules {
            default,
            status: Status::Cleared(|_| json!({"phase": "Pending"})),
            status_metadata: true,
            validate: storage::claim,
            validate_update: storage::claim_update,
            cells,
            ..Rules::default()
        })
}

fn default(o: &mut Value) {
    if let Some(spec) = object_mut(o, "spec") {
        defaults::volume::claim_spec(spec);
    }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    let bound = !text(o, "spec.volumeName").is_empty();
    let phase = if has(o, "metadata.deletionTimestamp") { "Terminating" } else { text(o, "status.phase") };
    vec![
        cell::name(o),
        json!(phase),
        json!(text(o, "spec.volumeName")),
        json!(if bound { text(o, "status.capacity.storage") } else { "" }),
        json!(if bound { cell::access_modes(at(o, "status.accessModes")) } else { String::new() }),
        json!(text(o, "spec.storageClassName")),
        cell::or(o, "spec.volumeAttributesClassName", "<unset>"),
        age::age(o, now),
        cell::or(o, "spec.volumeMode", "<unset>"),
    ]
}
