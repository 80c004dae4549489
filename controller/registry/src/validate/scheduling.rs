//! What steers pods to nodes: taints, tolerations, affinity, topology spread.

use super::{names, selector};
use crate::field::{FieldErrors, Path};
use crate::json::{at, has, int, list, text};
use serde_json::{Value, json};
use std::collections::HashSet;

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Taints of a node.
pub(crate) fn taints(taints: &Value, path: &Path, errors: &mut FieldErrors) {
    let mut seen = HashSet::new();
    for (i, taint) in list(taints, "").iter().enumerate() {
        let path = path.index(i);
        let (key, effect) = (text(taint, "key"), text(taint, "effect"));
        if let Err(why) = names::qualified_name(key) {
            errors.invalid(&path.child("key"), key, why);
        }
        if let Err(why) = names::label_value(text(taint, "value")) {
            errors.invalid(&path.child("value"), text(taint, "value"), why);
        }
        if !EFFECTS.contains(&effect) {
            errors.not_supported(&path.child("effect"), effect, &EFFECTS);
        }
        if !seen.insert((key, effect)) {
            errors.duplicate(&path, taint.clone());
        }
    }
}

/// Tolerations of a pod.
pub(crate) fn tolerations(tolerations: &Value, path: &Path, errors: &mut FieldErrors) {
    for (i, t) in list(tolerations, "").iter().enumerate() {
        let path = path.index(i);
        let (key, operator, effect) = (text(t, "key"), text(t, "operator"), text(t, "effect"));
        if !key.is_empty()
            && let Err(why) = names::qualified_name(key)
        {
            errors.invalid(&path.child("key"), key, why);
        }
        if key.is_empty() && operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid(&path.child("operator"), operator, detail);
        }
        match operator {
            "" | "Equal" => {
                if let Err(why) = names::label_value(text(t, "value")) {
                    errors.invalid(&path.child("operator"), text(t, "value"), why);
                }
            }
            "Exists" if !text(t, "value").is_empty() => {
                errors.invalid(&path.child("operator"), t.clone(), "value must be empty when `operator` is 'Exists'");
            }
            "Exists" => {}
            other => errors.not_supported(&path.child("operator"), other, &["Equal", "Exists"]),
        }
        if has(t, "tolerationSeconds") && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.invalid(&path.child("effect"), effect, detail);
        }
        if !effect.is_empty() && !EFFECTS.contains(&effect) {
            errors.not_supported(&path.child("effect"), effect, &EFFECTS);
        }
    }
}

/// Affinity of a pod.
pub(crate) fn affinity(affinity: &Value, path: &Path, errors: &mut FieldErrors) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let node = path.child("nodeAffinity");
    if has(affinity, &format!("nodeAffinity.{REQUIRED}")) {
        selector::node_selector(&affinity["nodeAffinity"][REQUIRED], &node.child(REQUIRED), errors);
    }
    for (i, term) in list(&affinity["nodeAffinity"], PREFERRED).iter().enumerate() {
        let path = node.child(PREFERRED).index(i);
        weight(term, &path, errors);
        selector::node_selector_term(at(term, "preference"), &path.child("preference"), errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let path = path.child(kind);
        for (i, term) in list(&affinity[kind], REQUIRED).iter().enumerate() {
            pod_affinity_term(term, &path.child(REQUIRED).index(i), errors);
        }
        for (i, term) in list(&affinity[kind], PREFERRED).iter().enumerate() {
            let path = path.child(PREFERRED).index(i);
            weight(term, &path, errors);
            pod_affinity_term(at(term, "podAffinityTerm"), &path.child("podAffinityTerm"), errors);
        }
    }
}

fn weight(term: &Value, path: &Path, errors: &mut FieldErrors) {
    let weight = int(term, "weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.invalid(&path.child("weight"), weight, "must be in the range 1-100");
    }
}

fn pod_affinity_term(term: &Value, path: &Path, errors: &mut FieldErrors) {
    selector::label_selector(at(term, "labelSelector"), &path.child("labelSelector"), errors);
    selector::label_selector(at(term, "namespaceSelector"), &path.child("namespaceSelector"), errors);
    let key = text(term, "topologyKey");
    if key.is_empty() {
        errors.required(&path.child("topologyKey"), "can not be empty");
    } else if let Err(why) = names::qualified_name(key) {
        errors.invalid(&path.child("topologyKey"), key, why);
    }
}

/// Topology spread constraints of a pod.
pub(crate) fn topology_spread(constraints: &Value, path: &Path, errors: &mut FieldErrors) {
    let mut seen = HashSet::new();
    for (i, c) in list(constraints, "").iter().enumerate() {
        let path = path.index(i);
        let skew = int(c, "maxSkew").unwrap_or(0);
        if skew <= 0 {
            errors.invalid(&path.child("maxSkew"), skew, "must be greater than zero");
        }
        let (key, when) = (text(c, "topologyKey"), text(c, "whenUnsatisfiable"));
        if key.is_empty() {
            errors.required(&path.child("topologyKey"), "can not be empty");
        }
        if !matches!(when, "DoNotSchedule" | "ScheduleAnyway") {
            let path = path.child("whenUnsatisfiable");
            errors.not_supported(&path, when, &["DoNotSchedule", "ScheduleAnyway"]);
        }
        if !seen.insert((key, when)) {
            errors.duplicate(&path.child("{topologyKey, whenUnsatisfiable}"), json!(format!("{{{key}, {when}}}")));
        }
        selector::label_selector(at(c, "labelSelector"), &path.child("labelSelector"), errors);
    }
}
