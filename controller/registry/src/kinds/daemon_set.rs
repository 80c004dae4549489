//! apps/v1 DaemonSet: one pod on every matching node.

use crate::json::{at, fill, fill_zero, object_mut, text};
use crate::rules::{Kind, Rules, Status};
use crate::validate::workload;
use crate::{Resource, age, cell, defaults};
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("apps", "v1", "DaemonSet", "daemonsets")
        .short(&["ds"])
        .in_all()
        .columns(&[
            ("Name", "string", 0),
            ("Desired", "integer", 0),
            ("Current", "integer", 0),
            ("Ready", "integer", 0),
            ("Up-to-date", "integer", 0),
            ("Available", "integer", 0),
            ("Node Selector", "string", 0),
            ("Age", "string", 0),
            ("Containers", "string", 1),
            ("Images", "string", 1),
            ("Selector", "string", 1),
        ])
        .rules(Rules {
            default,
            status: Status::Cleared(|_| {
                json!({
                    "currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0
                })
            }),
            generation: true,
            validate: workload::daemon_set,
            validate_update: workload::selector_is_immutable,
            cells,
            ..Rules::default()
        })
}

fn default(o: &mut Value) {
    let Some(spec) = object_mut(o, "spec") else { return };
    if let Some(update) = object_mut(spec, "updateStrategy") {
        fill_zero(update, "type", "RollingUpdate");
        if text(update, "type") == "RollingUpdate"
            && let Some(rolling) = object_mut(update, "rollingUpdate")
        {
            fill(rolling, "maxUnavailable", 1);
            fill(rolling, "maxSurge", 0);
        }
    }
    fill(spec, "revisionHistoryLimit", 10);
    if let Some(template) = object_mut(spec, "template") {
        defaults::pod::template(template);
    }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    vec![
        cell::name(o),
        cell::number(o, "status.desiredNumberScheduled"),
        cell::number(o, "status.currentNumberScheduled"),
        cell::number(o, "status.numberReady"),
        cell::number(o, "status.updatedNumberScheduled"),
        cell::number(o, "status.numberAvailable"),
        json!(cell::labels(at(o, "spec.template.spec.nodeSelector"))),
        age::age(o, now),
        cell::container_names(&o["spec"]["template"]["spec"]),
        cell::container_images(&o["spec"]["template"]["spec"]),
        json!(cell::selector(&o["spec"]["selector"])),
    ]
}
