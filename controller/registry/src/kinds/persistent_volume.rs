//! core/v1 PersistentVolume: a piece of storage.

use crate::json::{at, existing_mut, fill, fill_zero, has, object_mut, text};
use crate::rules::{Kind, Rules, Status};
use crate::validate::storage;
use crate::{Resource, age, cell};
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("", "v1", "PersistentVolume", "persistentvolumes")
        .cluster()
        .short(&["pv"])
        .columns(&[
            ("Name", "string", 0),
            ("Capacity", "string", 0),
            ("Access Modes", "string", 0),
            ("Reclaim Policy", "string", 0),
            ("Status", "string", 0),
            ("Claim", "string", 0),
            ("StorageClass", "string", 0),
            ("VolumeAttributesClass", "string", 0),
            ("Reason", "string", 0),
            ("Age", "string", 0),
            ("VolumeMode", "string", 1),
        ])
        .rules(Rules {
            default,
            status: Status::Cleared(|_| json!({"phase": "Pending"})),
            validate: storage::volume,
            validate_update: storage::volume_update,
            cells,
            ..Rules::default()
        })
}

fn default(o: &mut Value) {
    let Some(spec) = object_mut(o, "spec") else { return };
    fill_zero(spec, "persistentVolumeReclaimPolicy", "Retain");
    fill_zero(spec, "volumeMode", "Filesystem");
    if let Some(path) = existing_mut(spec, "hostPath") {
        fill(path, "type", "");
    }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    let claim = match has(o, "spec.claimRef") {
        true => format!("{}/{}", text(o, "spec.claimRef.namespace"), text(o, "spec.claimRef.name")),
        false => String::new(),
    };
    let phase = if has(o, "metadata.deletionTimestamp") { "Terminating" } else { text(o, "status.phase") };
    vec![
        cell::name(o),
        json!(text(o, "spec.capacity.storage")),
        json!(cell::access_modes(at(o, "spec.accessModes"))),
        json!(text(o, "spec.persistentVolumeReclaimPolicy")),
        json!(phase),
        json!(claim),
        json!(text(o, "spec.storageClassName")),
        cell::or(o, "spec.volumeAttributesClassName", "<unset>"),
        json!(text(o, "status.reason")),
        age::age(o, now),
        cell::or(o, "spec.volumeMode", "<unset>"),
    ]
}
