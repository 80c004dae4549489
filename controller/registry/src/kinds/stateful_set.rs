//! apps/v1 StatefulSet: pods with stable names and claims of their own.

use crate::json::{fill, fill_zero, int, items_mut, object_mut, text};
use crate::rules::{Kind, Rules, Status};
use crate::validate::workload;
use crate::{Resource, age, cell, defaults, field};
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("apps", "v1", "StatefulSet", "statefulsets")
        .short(&["sts"])
        .in_all()
        .scale()
        .columns(&[
            ("Name", "string", 0),
            ("Ready", "string", 0),
            ("Age", "string", 0),
            ("Containers", "string", 1),
            ("Images", "string", 1),
        ])
        .rules(Rules {
            default,
            status: Status::Cleared(|_| json!({"replicas": 0, "availableReplicas": 0})),
            generation: true,
            validate: workload::stateful_set,
            validate_update: workload::stateful_set_update,
            cells,
            name: field::dns_label,
            ..Rules::default()
        })
}

fn default(o: &mut Value) {
    let Some(spec) = object_mut(o, "spec") else { return };
    fill_zero(spec, "podManagementPolicy", "OrderedReady");
    if let Some(update) = object_mut(spec, "updateStrategy") {
        fill_zero(update, "type", "RollingUpdate");
        if text(update, "type") == "RollingUpdate"
            && let Some(rolling) = object_mut(update, "rollingUpdate")
        {
            fill(rolling, "partition", 0);
        }
    }
    if let Some(retention) = object_mut(spec, "persistentVolumeClaimRetentionPolicy") {
        fill_zero(retention, "whenDeleted", "Retain");
        fill_zero(retention, "whenScaled", "Retain");
    }
    fill(spec, "replicas", 1);
    fill(spec, "revisionHistoryLimit", 10);
    if let Some(template) = object_mut(spec, "template") {
        defaults::pod::template(template);
    }
    items_mut(spec, "volumeClaimTemplates").for_each(defaults::volume::claim_template);
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    let ready = int(o, "status.readyReplicas").unwrap_or(0);
    let wanted = int(o, "spec.replicas").unwrap_or(0);
    vec![
        cell::name(o),
        json!(format!("{ready}/{wanted}")),
        age::age(o, now),
        cell::container_names(&o["spec"]["template"]["spec"]),
        cell::container_images(&o["spec"]["template"]["spec"]),
    ]
}
