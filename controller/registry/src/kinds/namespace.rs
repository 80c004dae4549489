//! core/v1 Namespace: a scope for names. It goes only after the namespace controller has emptied it: the engine
//! keeps it while `spec.finalizers` has entries, and moves `status.phase` to `Terminating`.

use crate::field::{self, FieldErrors};
use crate::json::{object_mut, put};
use crate::rules::{Kind, Rules, Status};
use crate::{Resource, age, cell};
use serde_json::{Value, json};

/// The label that carries the namespace's own name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub(super) fn resource() -> Resource {
    Kind::new("", "v1", "Namespace", "namespaces")
        .cluster()
        .short(&["ns"])
        .without("deletecollection")
        .columns(&[("Name", "string", 0), ("Status", "string", 0), ("Age", "string", 0)])
        .rules(Rules {
            default,
            prepare,
            status: Status::Cleared(|_| json!({"phase": "Active"})),
            status_metadata: true,
            validate_status,
            cells,
            fields: &["status.phase"],
            name: field::dns_label,
            ..Rules::default()
        })
}

fn default(o: &mut Value) {
    let Some(name) = o["metadata"]["name"].as_str().map(str::to_owned).filter(|n| !n.is_empty()) else { return };
    if let Some(labels) = object_mut(o, "metadata").and_then(|m| object_mut(m, "labels")) {
        put(labels, NAME_LABEL, json!(name));
    }
}

/// Finalizers in the spec are the server's: set on create, and changed only through `/finalize`.
fn prepare(new: &mut Value, old: Option<&Value>) {
    let finalizers = old.map_or_else(|| json!(["kubernetes"]), |o| o["spec"]["finalizers"].clone());
    if let Some(spec) = object_mut(new, "spec") {
        put(spec, "finalizers", finalizers);
    }
}

fn validate_status(new: &Value, _old: &Value, errors: &mut FieldErrors) {
    let phase = new["status"]["phase"].as_str().unwrap_or("");
    let deleting = !new["metadata"]["deletionTimestamp"].is_null();
    let path = field::Path::new("status").child("phase");
    if deleting && phase != "Terminating" && !phase.is_empty() {
        errors.invalid(&path, phase, "may only be 'Terminating' if `deletionTimestamp` is not empty");
    } else if !deleting && phase != "Active" && !phase.is_empty() {
        errors.invalid(&path, phase, "may only be 'Active' if `deletionTimestamp` is empty");
    }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    vec![cell::name(o), cell::or(o, "status.phase", ""), age::age(o, now)]
}
