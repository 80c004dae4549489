//! scheduling.k8s.io/v1 PriorityClass: how much a pod matters to the scheduler.

use crate::field::{FieldErrors, Path};
use crate::json::{fill, int, same, text, truth};
use crate::rules::{Kind, Rules};
use crate::{Resource, age, cell};
use serde_json::{Value, json};

/// Users' classes end here; `system-` classes lie above.
const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;

pub(super) fn resource() -> Resource {
    Kind::new("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses")
        .cluster()
        .short(&["pc"])
        .columns(&[
            ("Name", "string", 0),
            ("Value", "integer", 0),
            ("Global-Default", "boolean", 0),
            ("Age", "string", 0),
            ("PreemptionPolicy", "string", 0),
        ])
        .rules(Rules {
            default: |o| fill(o, "preemptionPolicy", "PreemptLowerPriority"),
            generation: true,
            validate,
            validate_update,
            cells,
            ..Rules::default()
        })
}

fn validate(o: &Value, errors: &mut FieldErrors) {
    let name = text(o, "metadata.name");
    let value = int(o, "value").unwrap_or(0);
    let known =
        matches!((name, value), ("system-node-critical", 2_000_001_000) | ("system-cluster-critical", 2_000_000_000));
    if name.starts_with("system-") && !known {
        let detail = "priority class names with 'system-' prefix are reserved for system use only";
        errors.forbidden(&Path::new("metadata").child("name"), detail);
    }
    if value > HIGHEST_USER_PRIORITY && !known {
        let detail = format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}");
        errors.forbidden(&Path::new("value"), detail);
    }
    let policy = text(o, "preemptionPolicy");
    if !matches!(policy, "" | "PreemptLowerPriority" | "Never") {
        errors.not_supported(&Path::new("preemptionPolicy"), policy, &["Never", "PreemptLowerPriority"]);
    }
}

fn validate_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    for key in ["value", "preemptionPolicy"] {
        if !same(&new[key], &old[key]) {
            errors.invalid(&Path::new(key), new[key].clone(), "field is immutable");
        }
    }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    vec![
        cell::name(o),
        cell::number(o, "value"),
        json!(truth(o, "globalDefault")),
        age::age(o, now),
        cell::or(o, "preemptionPolicy", "PreemptLowerPriority"),
    ]
}
