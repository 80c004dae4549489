//! A node may write what is its own: its Node, its lease, the pods that are bound to it, the slice of its DNS. What kinds
//! it may write at all is authorisation's; which objects of them, can be told only with the object at hand.

use crate::engine::{Call, Engine, text};
use crate::status::{ApiError, ApiResult};
use causeway_api::certificates::NODE_USER_PREFIX;
use causeway_api::identity::{GROUP_NODES, UserInfo};
use serde_json::Value;

/// Labels that say something about a node's trustworthiness; it must not give them to itself.
const RESTRICTED_LABELS: &str = "node-restriction.kubernetes.io/";

/// The node that asks, if it is one.
fn node_of(user: &UserInfo) -> Option<&str> {
    let member = user.groups.iter().any(|g| g == GROUP_NODES);
    user.username.strip_prefix(NODE_USER_PREFIX).filter(|_| member)
}

/// Whether a node may create `new` (without `old`), or change or delete `old`.
pub fn restrict(call: &Call, old: Option<&Value>, new: &Value) -> ApiResult<()> {
    let Some(node) = node_of(&call.user) else { return Ok(()) };
    let name = text(old.unwrap_or(new), "/metadata/name");
    let resource = &call.served.resource;
    let refuse = |why: String| Err(ApiError::forbidden(&resource.group, &resource.plural, name, &why));
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "nodes") if name != node => refuse(format!("node {node:?} is not allowed to modify node {name:?}")),
        ("", "nodes") => match restricted_label(old, new) {
            Some(label) => refuse(format!("is not allowed to modify labels: {label}")),
            None => Ok(()),
        },
        ("", "pods")
            if old.is_none() && new["metadata"]["annotations"].get("kubernetes.io/config.mirror").is_none() =>
        {
            refuse(format!("node {node:?} can only create mirror pods"))
        }
        ("", "pods") if text(old.unwrap_or(new), "/spec/nodeName") != node => {
            refuse(format!("node {node:?} can only write pods with spec.nodeName set to itself"))
        }
        ("coordination.k8s.io", "leases") if !is_own_lease(&call.namespace, name, node) => {
            refuse(format!("node {node:?} can only write its own leases"))
        }
        ("discovery.k8s.io", "endpointslices") if call.namespace != "kube-system" || !is_dns_slice(name, node) => {
            refuse(format!("node {node:?} can only write the slice of its own DNS"))
        }
        _ => Ok(()),
    }
}

/// A node's lease, that of its announcer, and those by which announcers agree who has a load balancer's address.
fn is_own_lease(namespace: &str, name: &str, node: &str) -> bool {
    match namespace {
        "kube-node-lease" => name == node,
        "kube-system" => name.strip_prefix("announce-") == Some(node) || name.starts_with("load-balancer-"),
        _ => false,
    }
}

fn is_dns_slice(name: &str, node: &str) -> bool {
    name.strip_prefix("kube-dns-").is_some_and(|n| n == node || n.strip_suffix("-v6") == Some(node))
}

fn restricted_label(old: Option<&Value>, new: &Value) -> Option<String> {
    let labels = |o: &Value| o["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let (old, new) = (old.map(labels).unwrap_or_default(), labels(new));
    let changed = new.keys().chain(old.keys()).find(|k| k.starts_with(RESTRICTED_LABELS) && old.get(*k) != new.get(*k));
    changed.cloned()
}

/// A node gets tokens for the pods that run on it, and for no others.
pub async fn restrict_token(engine: &Engine, call: &Call, bound: Option<&(String, String, String)>) -> ApiResult<()> {
    let Some(node) = node_of(&call.user) else { return Ok(()) };
    let refuse = |why: &str| Err(ApiError::forbidden("", "serviceaccounts/token", "", why));
    let Some((_, pod, _)) = bound.filter(|(kind, ..)| kind == "Pod") else {
        return refuse("node requested token not bound to a pod");
    };
    let pods = engine.served("", "v1", "pods")?;
    let pod = engine.get(&pods, &call.namespace, pod, None).await?.value();
    if text(&pod, "/spec/nodeName") != node {
        return refuse("node requested token bound to a pod scheduled on a different node");
    }
    Ok(())
}
