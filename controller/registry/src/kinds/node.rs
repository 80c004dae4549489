//! core/v1 Node: a machine. Kubelets register theirs with a status, so a create keeps it.

use crate::field::{FieldErrors, Path};
use crate::json::{entries, existing_mut, fill, fill_zero, list, same, text, truth};
use crate::rules::{Kind, Rules, Status};
use crate::validate::scheduling;
use crate::{Resource, age, cell};
use serde_json::{Value, json};

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";

pub(super) fn resource() -> Resource {
    Kind::new("", "v1", "Node", "nodes")
        .cluster()
        .short(&["no"])
        .columns(&[
            ("Name", "string", 0),
            ("Status", "string", 0),
            ("Roles", "string", 0),
            ("Age", "string", 0),
            ("Version", "string", 0),
            ("Internal-IP", "string", 1),
            ("External-IP", "string", 1),
            ("OS-Image", "string", 1),
            ("Kernel-Version", "string", 1),
            ("Container-Runtime", "string", 1),
        ])
        .rules(Rules {
            default,
            status: Status::Kept,
            status_metadata: true,
            validate,
            validate_update,
            cells,
            fields: &[],
            field: |o, f| (f == "spec.unschedulable").then(|| truth(o, "spec.unschedulable").to_string()),
            ..Rules::default()
        })
}

fn default(o: &mut Value) {
    if let Some(spec) = existing_mut(o, "spec") {
        match (text(spec, "podCIDR").to_owned(), list(spec, "podCIDRs").first().cloned()) {
            (one, None) if !one.is_empty() => fill(spec, "podCIDRs", json!([one])),
            (one, Some(first)) if one.is_empty() => fill_zero(spec, "podCIDR", first),
            _ => {}
        }
    }
    let capacity = o["status"]["capacity"].clone();
    if let Some(status) = o.get_mut("status").filter(|_| capacity.is_object()) {
        fill(status, "allocatable", capacity);
    }
}

fn validate(o: &Value, errors: &mut FieldErrors) {
    scheduling::taints(&o["spec"]["taints"], &Path::new("spec").child("taints"), errors);
}

fn validate_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let spec = Path::new("spec");
    let old_id = text(old, "spec.providerID");
    if !old_id.is_empty() && old_id != text(new, "spec.providerID") {
        errors.forbidden(&spec.child("providerID"), "node updates may not change providerID except from \"\" to valid");
    }
    if !list(old, "spec.podCIDRs").is_empty() && !same(&old["spec"]["podCIDRs"], &new["spec"]["podCIDRs"]) {
        errors.forbidden(&spec.child("podCIDRs"), "node updates may not change podCIDR except from \"\" to valid");
    }
}

fn status(o: &Value) -> String {
    let ready = match cell::condition(o, "Ready") {
        "" => "Unknown",
        "True" => "Ready",
        _ => "NotReady",
    };
    let closed = if truth(o, "spec.unschedulable") { ",SchedulingDisabled" } else { "" };
    format!("{ready}{closed}")
}

fn roles(o: &Value) -> String {
    let mut roles: Vec<&str> = entries(o, "metadata.labels")
        .filter_map(|(k, v)| match k.strip_prefix(ROLE_PREFIX) {
            Some(role) => Some(role),
            None if k == "kubernetes.io/role" => v.as_str(),
            None => None,
        })
        .filter(|r| !r.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") }
}

fn address<'a>(o: &'a Value, type_: &str) -> &'a str {
    list(o, "status.addresses").iter().find(|a| text(a, "type") == type_).map_or("<none>", |a| text(a, "address"))
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    vec![
        cell::name(o),
        json!(status(o)),
        json!(roles(o)),
        age::age(o, now),
        json!(text(o, "status.nodeInfo.kubeletVersion")),
        json!(address(o, "InternalIP")),
        json!(address(o, "ExternalIP")),
        cell::or(o, "status.nodeInfo.osImage", "<unknown>"),
        cell::or(o, "status.nodeInfo.kernelVersion", "<unknown>"),
        cell::or(o, "status.nodeInfo.containerRuntimeVersion", "<unknown>"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        let o = json!({
            "metadata": {"name": "n1", "creationTimestamp": "1970-01-01T00:00:00Z",
                         "labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": ""}},
            "spec": {"unschedulable": true},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "10.90.0.11"}],
                "nodeInfo": {"kubeletVersion": "v1.35.0", "osImage": "Debian", "kernelVersion": "6.1",
                             "containerRuntimeVersion": "containerd://1.6.20"}
            }
        });
        let want = json!([
            "n1",
            "Ready,SchedulingDisabled",
            "control-plane,worker",
            "90s",
            "v1.35.0",
            "10.90.0.11",
            "<none>",
            "Debian",
            "6.1",
            "containerd://1.6.20"
        ]);
        assert_eq!(json!(cells(&o, 90)), want);
    }
}
