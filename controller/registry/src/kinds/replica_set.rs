//! apps/v1 ReplicaSet: a number of equal pods.

use crate::json::{fill, object_mut};
use crate::rules::{Kind, Rules, Status};
use crate::validate::workload;
use crate::{Resource, age, cell, defaults};
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("apps", "v1", "ReplicaSet", "replicasets")
        .short(&["rs"])
        .in_all()
        .scale()
        .columns(&[
            ("Name", "string", 0),
            ("Desired", "integer", 0),
            ("Current", "integer", 0),
            ("Ready", "integer", 0),
            ("Age", "string", 0),
            ("Containers", "string", 1),
            ("Images", "string", 1),
            ("Selector", "string", 1),
        ])
        .rules(Rules {
            default,
            status: Status::Cleared(|_| json!({"replicas": 0})),
            generation: true,
            validate: workload::replica_set,
            validate_update: workload::selector_is_immutable,
            cells,
            fields: &["status.replicas"],
            ..Rules::default()
        })
}

fn default(o: &mut Value) {
    let Some(spec) = object_mut(o, "spec") else { return };
    fill(spec, "replicas", 1);
    if let Some(template) = object_mut(spec, "template") {
        defaults::pod::template(template);
    }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    vec![
        cell::name(o),
        cell::number(o, "spec.replicas"),
        cell::number(o, "status.replicas"),
        cell::number(o, "status.readyReplicas"),
        age::age(o, now),
        cell::container_names(&o["spec"]["template"]["spec"]),
        cell::container_images(&o["spec"]["template"]["spec"]),
        json!(cell::selector(&o["spec"]["selector"])),
    ]
}
