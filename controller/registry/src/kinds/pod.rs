//! core/v1 Pod: the engine adds its verbs (binding, eviction, log, exec, attach, portforward, ephemeralcontainers).

use super::pod_status;
use crate::json::{list, object_mut, put, text, truth};
use crate::rules::{Kind, Rules, Status};
use crate::validate::{pod, pod_update};
use crate::{Resource, age, cell, defaults};
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("", "v1", "Pod", "pods")
        .short(&["po"])
        .in_all()
        .columns(&[
            ("Name", "string", 0),
            ("Ready", "string", 0),
            ("Status", "string", 0),
            ("Restarts", "string", 0),
            ("Age", "string", 0),
            ("IP", "string", 1),
            ("Node", "string", 1),
            ("Nominated Node", "string", 1),
            ("Readiness Gates", "string", 1),
        ])
        .rules(Rules {
            default: defaults::pod::pod,
            prepare,
            status: Status::Cleared(|o| json!({"phase": "Pending", "qosClass": defaults::pod::qos_class(o)})),
            status_metadata: true,
            generation: true,
            validate: pod::pod,
            validate_new: pod::new_pod,
            validate_update: pod_update::pod_update,
            cells,
            fields: &[
                "spec.nodeName",
                "spec.restartPolicy",
                "spec.schedulerName",
                "spec.serviceAccountName",
                "status.phase",
                "status.nominatedNodeName",
            ],
            field,
            ..Rules::default()
        })
}

/// The class of service is computed once, on creation.
fn prepare(new: &mut Value, old: Option<&Value>) {
    if old.is_none()
        && list(new, "spec.schedulingGates").iter().next().is_some()
        && let Some(status) = object_mut(new, "status")
    {
        let gated = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates"
        }]);
        put(status, "conditions", gated);
    }
}

fn field(o: &Value, field: &str) -> Option<String> {
    match field {
        "spec.hostNetwork" => Some(truth(o, "spec.hostNetwork").to_string()),
        "status.podIP" => Some(first_ip(o).to_owned()),
        _ => None,
    }
}

fn first_ip(o: &Value) -> &str {
    list(o, "status.podIPs").first().map_or_else(|| text(o, "status.podIP"), |p| text(p, "ip"))
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    let shown = pod_status::of(o);
    let restarts = match shown.last_restart {
        Some(t) if shown.restarts != 0 => format!("{} ({} ago)", shown.restarts, age::human_duration(now - t)),
        _ => shown.restarts.to_string(),
    };
    let ip = Some(first_ip(o)).filter(|ip| !ip.is_empty()).unwrap_or("<none>");
    vec![
        cell::name(o),
        json!(format!("{}/{}", shown.ready, shown.total)),
        json!(shown.reason),
        json!(restarts),
        age::age(o, now),
        json!(ip),
        cell::or_none(o, "spec.nodeName"),
        cell::or_none(o, "status.nominatedNodeName"),
        json!(readiness_gates(o)),
    ]
}

fn readiness_gates(o: &Value) -> String {
    let gates = list(o, "spec.readinessGates");
    let met = gates.iter().filter(|g| cell::condition_true(o, text(g, "conditionType"))).count();
    if gates.is_empty() { "<none>".to_owned() } else { format!("{met}/{}", gates.len()) }
}
