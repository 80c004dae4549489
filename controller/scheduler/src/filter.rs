//! Whether a node can take a pod. In: a pod, a node, the picture. Out: nothing, or the reason in kube-scheduler's
//! words (they are counted into `0/3 nodes are available: …`). Pure.

use crate::pod::{PodInfo, Term};
use crate::snapshot::{NodeInfo, Snapshot, TAINT_UNSCHEDULABLE};
use causeway_api::selector::Requirement;
use k8s_openapi::api::core::v1::{NodeSelectorTerm, Taint, Toleration};
use std::collections::{BTreeMap, HashMap};

/// Checks everything that one node alone decides, and pod affinity by the [`Affinity`] worked out before.
pub fn check(pod: &PodInfo, node: &NodeInfo, affinity: &Affinity) -> Result<(), Vec<String>> {
    unschedulable(pod, node)?;
    taints(pod, node)?;
    node_affinity(pod, node)?;
    host_ports(pod, node)?;
    resources(pod, node)?;
    affinity.check(pod, node)
}

fn one(reason: impl Into<String>) -> Result<(), Vec<String>> {
    Err(vec![reason.into()])
}

fn unschedulable(pod: &PodInfo, node: &NodeInfo) -> Result<(), Vec<String>> {
    if !node.unschedulable {
        return Ok(());
    }
    let taint = Taint { key: TAINT_UNSCHEDULABLE.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
    if !tolerates(&pod.tolerations, &taint) {
        return one("node(s) were unschedulable");
    }
    Ok(())
}

pub(crate) fn taints(pod: &PodInfo, node: &NodeInfo) -> Result<(), Vec<String>> {
    let hard = node.taints.iter().filter(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute"));
    match hard.into_iter().find(|t| !tolerates(&pod.tolerations, t)) {
        None => Ok(()),
        Some(t) => one(format!("node(s) had untolerated taint {{{}: {}}}", t.key, t.value.as_deref().unwrap_or(""))),
    }
}

/// Whether any toleration covers a taint.
pub fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|t| {
        let effect = t.effect.as_deref().unwrap_or("");
        let key = t.key.as_deref().unwrap_or("");
        let value = || t.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or("");
        (effect.is_empty() || effect == taint.effect)
            && match t.operator.as_deref().unwrap_or("Equal") {
                "Exists" => key.is_empty() || key == taint.key,
                _ => key == taint.key && value(),
            }
    })
}

pub(crate) fn node_affinity(pod: &PodInfo, node: &NodeInfo) -> Result<(), Vec<String>> {
    let required =
        pod.node_affinity.as_ref().and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let fits = required.is_none_or(|r| r.node_selector_terms.iter().any(|t| node_term(t, node)));
    if pod.node_selector.matches(&node.labels) && fits {
        return Ok(());
    }
    one("node(s) didn't match Pod's node affinity/selector")
}

/// Whether a node satisfies a term of a node selector; an empty term matches nothing.
pub fn node_term(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let name = BTreeMap::from([("metadata.name".to_owned(), node.name.clone())]);
    let expressions = term.match_expressions.iter().flatten().map(|e| (e, &node.labels));
    let fields = term.match_fields.iter().flatten().map(|e| (e, &name));
    let mut any = false;
    expressions.chain(fields).all(|(e, labels)| {
        any = true;
        let values = e.values.as_deref().unwrap_or_default();
        Requirement::new(&e.key, &e.operator, values).is_ok_and(|r| r.matches(labels))
    }) && any
}

fn host_ports(pod: &PodInfo, node: &NodeInfo) -> Result<(), Vec<String>> {
    let clash = |(protocol, ip, port): &(String, String, i32)| {
        node.ports.iter().any(|(p, i, n)| {
            p == protocol && n == port && (i == ip || i.as_str() == "0.0.0.0" || ip.as_str() == "0.0.0.0")
        })
    };
    if pod.host_ports.iter().any(clash) {
        return one("node(s) didn't have free ports for the requested pod ports");
    }
    Ok(())
}

fn resources(pod: &PodInfo, node: &NodeInfo) -> Result<(), Vec<String>> {
    let mut short = Vec::new();
    let slots = node.allocatable.get("pods");
    if node.pods.len() as i128 + 1 > slots {
        short.push("Too many pods".to_owned());
    }
    for (name, amount) in pod.requests.0.iter().filter(|(_, amount)| **amount > 0) {
        if amount + node.requested.get(name) > node.allocatable.get(name) {
            short.push(format!("Insufficient {name}"));
        }
    }
    if short.is_empty() { Ok(()) } else { Err(short) }
}

/// Required pod affinity, worked out over all nodes once per pod: which values of which topology keys hold a match.
pub struct Affinity {
    /// For each required affinity term: the values where a selected pod runs.
    wanted: Vec<HashMap<String, usize>>,
    /// For each required anti-affinity term: the values to avoid.
    avoided: Vec<HashMap<String, usize>>,
    /// Key and value pairs that pods already placed refuse to share with this pod.
    refused: HashMap<(String, String), usize>,
}

impl Affinity {
    /// Looks at every placed pod once, if any of them or the pod itself has such terms.
    pub fn new(pod: &PodInfo, snapshot: &Snapshot) -> Self {
        let mut all = Self {
            wanted: vec![HashMap::new(); pod.affinity.len()],
            avoided: vec![HashMap::new(); pod.anti_affinity.len()],
            refused: HashMap::new(),
        };
        if pod.affinity.is_empty() && pod.anti_affinity.is_empty() && snapshot.avoiding() == 0 {
            return all;
        }
        for node in &snapshot.nodes {
            for other in &node.pods {
                count(&pod.affinity, &mut all.wanted, other, node);
                count(&pod.anti_affinity, &mut all.avoided, other, node);
                for term in other.anti_affinity.iter().filter(|t| t.selects(pod)) {
                    if let Some(value) = node.labels.get(&term.topology_key) {
                        *all.refused.entry((term.topology_key.clone(), value.clone())).or_default() += 1;
                    }
                }
            }
        }
        all
    }

    fn check(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Vec<String>> {
        // The first pod of a group that wants to be together may go anywhere.
        let first = self.wanted.iter().all(HashMap::is_empty) && pod.affinity.iter().all(|t| t.selects(pod));
        let satisfied = pod.affinity.iter().zip(&self.wanted).all(|(term, values)| {
            let value = node.labels.get(&term.topology_key);
            value.is_some_and(|v| first || values.contains_key(v))
        });
        if !satisfied {
            return one("node(s) didn't match pod affinity rules");
        }
        let clash = pod
            .anti_affinity
            .iter()
            .zip(&self.avoided)
            .any(|(term, values)| node.labels.get(&term.topology_key).is_some_and(|v| values.contains_key(v)));
        if clash {
            return one("node(s) didn't match pod anti-affinity rules");
        }
        let refused = self.refused.keys().any(|(key, value)| node.labels.get(key) == Some(value));
        if refused {
            return one("node(s) didn't satisfy existing pods anti-affinity rules");
        }
        Ok(())
    }
}

fn count(terms: &[Term], values: &mut [HashMap<String, usize>], other: &PodInfo, node: &NodeInfo) {
    for (term, values) in terms.iter().zip(values) {
        if term.selects(other)
            && let Some(value) = node.labels.get(&term.topology_key)
        {
            *values.entry(value.clone()).or_default() += 1;
        }
    }
}
