//! Node objects: a node writes its own, and of that not what others decide by: taints, owners, the ranges of its pods,
//! labels that say something about it.

use super::{Operation, SERVING_ANNOTATION, Write, refuse, same};
use crate::node::references::text;
use serde_json::Value;
use std::collections::BTreeSet;

pub(super) fn node(node: &str, write: &Write<'_>) -> Result<(), String> {
    let name = write.target();
    if name != node {
        return refuse(format!("node {node:?} is not allowed to modify node {name:?}"));
    }
    match write.operation {
        Operation::Create => create(node, write.object()?),
        Operation::Update => update(node, write.old()?, write.object()?),
        // Authorisation has it not; whoever gives it has also this.
        Operation::Delete => Ok(()),
    }
}

fn create(node: &str, new: &Value) -> Result<(), String> {
    if new.pointer("/spec/configSource").is_some_and(|s| !s.is_null()) {
        return refuse(format!("node {node:?} is not allowed to create pods with a non-nil configSource"));
    }
    let forbidden = forbidden_labels(new, &Value::Null);
    if !forbidden.is_empty() {
        let labels = forbidden.join(", ");
        return refuse(format!("node {node:?} is not allowed to set the following labels: {labels}"));
    }
    if !same(new, &Value::Null, "/metadata/ownerReferences") {
        return refuse(format!("node {node:?} is not allowed to modify ownerReferences"));
    }
    cluster_fields(node, new, &Value::Null)
}

fn update(node: &str, old: &Value, new: &Value) -> Result<(), String> {
    let source = new.pointer("/spec/configSource").filter(|s| !s.is_null());
    if source.is_some() && source != old.pointer("/spec/configSource") {
        return refuse(format!("node {node:?} is not allowed to update configSource to a new non-nil configSource"));
    }
    if !same(old, new, "/spec/taints") {
        return refuse(format!("node {node:?} is not allowed to modify taints"));
    }
    if !same(old, new, "/metadata/ownerReferences") {
        return refuse(format!("node {node:?} is not allowed to modify ownerReferences"));
    }
    let forbidden = forbidden_labels(new, old);
    if !forbidden.is_empty() {
        return refuse(format!("is not allowed to modify labels: {}", forbidden.join(", ")));
    }
    cluster_fields(node, new, old)
}

/// Beyond upstream: the ranges of its pods are given by a controller (routes lead to whoever has them), and for which
/// addresses it gets certificates is not its own to say.
fn cluster_fields(node: &str, new: &Value, old: &Value) -> Result<(), String> {
    for field in ["/spec/podCIDR", "/spec/podCIDRs"] {
        if !same(old, new, field) {
            return refuse(format!("node {node:?} is not allowed to modify {}", field.trim_start_matches("/spec/")));
        }
    }
    let serving = |object: &Value| annotation(object, SERVING_ANNOTATION).map(str::to_owned);
    if serving(old) != serving(new) {
        return refuse(format!("node {node:?} is not allowed to modify the annotation {SERVING_ANNOTATION}"));
    }
    Ok(())
}

fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.pointer("/metadata/annotations")?.get(key)?.as_str()
}

/// Labels that kubelets may set although they are Kubernetes' own.
const KUBELET_LABELS: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

/// And all in these domains.
const KUBELET_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

/// The changed labels that a node may not change, sorted.
fn forbidden_labels(new: &Value, old: &Value) -> Vec<String> {
    let labels = |object: &Value| object.pointer("/metadata/labels").and_then(Value::as_object).cloned();
    let (new, old) = (labels(new).unwrap_or_default(), labels(old).unwrap_or_default());
    let changed: BTreeSet<&String> = new.keys().chain(old.keys()).filter(|k| new.get(*k) != old.get(*k)).collect();
    changed.into_iter().filter(|key| is_forbidden(key)).cloned().collect()
}

fn is_forbidden(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let within = |of: &str| domain == of || domain.strip_suffix(of).is_some_and(|rest| rest.ends_with('.'));
    if within("node-restriction.kubernetes.io") {
        return true;
    }
    let kubernetes = within("kubernetes.io") || within("k8s.io");
    kubernetes && !KUBELET_LABELS.contains(&label) && !KUBELET_DOMAINS.iter().any(|d| within(d))
}

/// The addresses that a Node's status has.
pub(super) fn addresses(node: &Value) -> impl Iterator<Item = &str> {
    let all = node.pointer("/status/addresses").and_then(Value::as_array);
    all.into_iter().flatten().map(|a| text(a, "/address"))
}
