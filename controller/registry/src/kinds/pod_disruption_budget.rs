//! policy/v1 PodDisruptionBudget: how many pods may be evicted at a time.

use crate::field::{FieldErrors, Path};
use crate::json::has;
use crate::rules::{Kind, Rules, Status};
use crate::validate::{selector, workload};
use crate::{Resource, age, cell};
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
        .short(&["pdb"])
        .columns(&[
            ("Name", "string", 0),
            ("Min Available", "string", 0),
            ("Max Unavailable", "string", 0),
            ("Allowed Disruptions", "integer", 0),
            ("Age", "string", 0),
        ])
        .rules(Rules {
            status: Status::Cleared(
                |_| json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0}),
            ),
            generation: true,
            validate,
            cells,
            ..Rules::default()
        })
}

fn validate(o: &Value, errors: &mut FieldErrors) {
    let spec = Path::new("spec");
    if has(o, "spec.minAvailable") && has(o, "spec.maxUnavailable") {
        errors.invalid(&spec, o["spec"].clone(), "minAvailable and maxUnavailable cannot be both set");
    }
    for key in ["minAvailable", "maxUnavailable"] {
        workload::int_or_percent(&o["spec"][key], &spec.child(key), errors);
    }
    selector::label_selector(&o["spec"]["selector"], &spec.child("selector"), errors);
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    vec![
        cell::name(o),
        cell::int_or_string(o, "spec.minAvailable", "N/A"),
        cell::int_or_string(o, "spec.maxUnavailable", "N/A"),
        cell::number(o, "status.disruptionsAllowed"),
        age::age(o, now),
    ]
}
