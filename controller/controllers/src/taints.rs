//! Taints, tolerations and node affinity, as far as controllers judge them. Pure.

use crate::meta::name;
use causeway_api::selector::{Requirement, Selector};
use k8s_openapi::api::core::v1::{Node, NodeSelectorTerm, PodSpec, Taint, Toleration};
use std::collections::BTreeMap;

/// Keys that Kubernetes itself puts on nodes.
pub mod keys {
    /// Ready is False.
    pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
    /// Ready is Unknown.
    pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
    /// `spec.unschedulable`.
    pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
    /// MemoryPressure.
    pub const MEMORY: &str = "node.kubernetes.io/memory-pressure";
    /// DiskPressure.
    pub const DISK: &str = "node.kubernetes.io/disk-pressure";
    /// PIDPressure.
    pub const PID: &str = "node.kubernetes.io/pid-pressure";
    /// NetworkUnavailable.
    pub const NETWORK: &str = "node.kubernetes.io/network-unavailable";
}

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let some = |t: &Option<String>| t.as_deref().filter(|s| !s.is_empty()).map(str::to_owned);
    let effect = some(&toleration.effect).is_none_or(|e| e == taint.effect);
    let key = some(&toleration.key);
    if !effect || key.as_ref().is_some_and(|k| *k != taint.key) {
        return false;
    }
    match toleration.operator.as_deref().filter(|o| !o.is_empty()).unwrap_or("Equal") {
        "Exists" => true,
        "Equal" => key.is_some() && toleration.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or(""),
        _ => false,
    }
}

/// Whether any of a pod's tolerations covers a taint.
pub fn tolerated(spec: Option<&PodSpec>, taint: &Taint) -> bool {
    spec.is_some_and(|s| s.tolerations.iter().flatten().any(|t| tolerates(t, taint)))
}

/// Whether a node satisfies `nodeSelector` and the required node affinity.
pub fn node_matches(spec: &PodSpec, node: &Node) -> bool {
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    if spec.node_selector.as_ref().is_some_and(|s| !Selector::from_map(s).matches(labels)) {
        return false;
    }
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|r| r.node_selector_terms.iter().any(|t| term_matches(t, labels, name(&node.metadata))))
}

/// An empty term matches nothing.
fn term_matches(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, node: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let names = BTreeMap::from([("metadata.name".to_owned(), node.to_owned())]);
    let holds = |e: &k8s_openapi::api::core::v1::NodeSelectorRequirement, map: &BTreeMap<String, String>| {
        Requirement::new(&e.key, &e.operator, e.values.as_deref().unwrap_or_default()).is_ok_and(|r| r.matches(map))
    };
    expressions.iter().all(|e| holds(e, labels)) && fields.iter().all(|e| holds(e, &names))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations() {
        let taint = |key: &str, value: &str| Taint {
            key: key.to_owned(),
            value: Some(value.to_owned()),
            effect: "NoExecute".to_owned(),
            time_added: None,
        };
        let toleration = |key: &str, operator: &str, value: &str, effect: &str| Toleration {
            key: Some(key.to_owned()),
            operator: Some(operator.to_owned()),
            value: Some(value.to_owned()),
            effect: Some(effect.to_owned()),
            toleration_seconds: None,
        };
        for (t, want) in [
            (toleration("a", "Equal", "1", "NoExecute"), true),
            (toleration("a", "", "1", ""), true),
            (toleration("a", "Equal", "2", ""), false),
            (toleration("a", "Exists", "", ""), true),
            (toleration("", "Exists", "", ""), true),
            (toleration("", "Equal", "1", ""), false),
            (toleration("a", "Exists", "", "NoSchedule"), false),
            (toleration("b", "Exists", "", ""), false),
        ] {
            assert_eq!(tolerates(&t, &taint("a", "1")), want, "{t:?}");
        }
    }
}
