//! networking.k8s.io/v1 NetworkPolicy: which traffic pods may take and send.

use crate::json::{fill, fill_zero, items_mut, list, object_mut};
use crate::rules::{Kind, Rules};
use crate::validate::network_policy;
use crate::{Resource, age, cell};
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies")
        .short(&["netpol"])
        .columns(&[("Name", "string", 0), ("Pod-Selector", "string", 0), ("Age", "string", 0)])
        .rules(Rules { default, generation: true, validate: network_policy::policy, cells, ..Rules::default() })
}

fn default(o: &mut Value) {
    let Some(spec) = object_mut(o, "spec") else { return };
    object_mut(spec, "podSelector");
    let types = if list(spec, "egress").is_empty() { json!(["Ingress"]) } else { json!(["Ingress", "Egress"]) };
    if list(spec, "policyTypes").is_empty() {
        spec.as_object_mut().map(|s| s.shift_remove("policyTypes"));
        fill(spec, "policyTypes", types);
    }
    for direction in ["ingress", "egress"] {
        for rule in items_mut(spec, direction) {
            items_mut(rule, "ports").for_each(|p| fill_zero(p, "protocol", "TCP"));
        }
    }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    vec![cell::name(o), json!(cell::selector(&o["spec"]["podSelector"])), age::age(o, now)]
}
