//! Whether a pod bound to this node can be taken: a last look, with the node's own eyes. Pure.

use crate::model::Failure;
use crate::resources;
use causeway_api::selector::Selector;
use k8s_openapi::api::core::v1::{Node, Pod};
use std::collections::BTreeSet;

/// What the node offers to pods.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Thousandths of a CPU.
    pub cpu_milli: i64,
    /// Bytes.
    pub memory_bytes: i64,
    /// Number of pods.
    pub pods: usize,
}

/// Refuses a pod that does not fit beside `others` (the pods that were taken), or does not belong here.
pub fn admit(pod: &Pod, others: &[&Pod], room: Room, node: Option<&Node>) -> Result<(), Failure> {
    let Some(spec) = pod.spec.as_ref() else { return Ok(()) };
    let labels = node.and_then(|n| n.metadata.labels.as_ref());
    if let (Some(selector), Some(_)) = (&spec.node_selector, node)
        && !Selector::from_map(selector).matches_option(labels)
    {
        return Err(refused(
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        ));
    }
    if others.len() >= room.pods {
        let text =
            shortage("pods", 1, i64::try_from(others.len()).unwrap_or(i64::MAX), i64::try_from(room.pods).unwrap_or(0));
        return Err(refused("OutOfpods", &text));
    }
    let used = others.iter().filter_map(|p| p.spec.as_ref()).map(resources::pod_requests);
    let used = used.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    let wants = resources::pod_requests(spec);
    if wants.0 > 0 && used.0 + wants.0 > room.cpu_milli {
        return Err(refused("OutOfcpu", &shortage("cpu", wants.0, used.0, room.cpu_milli)));
    }
    if wants.1 > 0 && used.1 + wants.1 > room.memory_bytes {
        return Err(refused("OutOfmemory", &shortage("memory", wants.1, used.1, room.memory_bytes)));
    }
    let taken: BTreeSet<_> = others.iter().flat_map(|p| host_ports(p)).collect();
    if host_ports(pod).iter().any(|port| taken.contains(port)) {
        return Err(refused(
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
        ));
    }
    Ok(())
}

fn shortage(what: &str, requested: i64, used: i64, capacity: i64) -> String {
    format!("Node didn't have enough resource: {what}, requested: {requested}, used: {used}, capacity: {capacity}")
}

fn refused(reason: &str, message: &str) -> Failure {
    Failure { reason: reason.to_owned(), message: format!("Pod was rejected: {message}") }
}

/// (protocol, port) pairs a pod wants of the node itself.
fn host_ports(pod: &Pod) -> BTreeSet<(String, i32)> {
    let spec = pod.spec.as_ref();
    let host_network = spec.is_some_and(|s| s.host_network == Some(true));
    let ports = spec.iter().flat_map(|s| &s.containers).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| {
            let port = p.host_port.filter(|p| *p > 0).or_else(|| host_network.then_some(p.container_port))?;
            Some((p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), port))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(cpu: &str, port: Option<i32>) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c",
            "resources": {"requests": {"cpu": cpu}}, "ports": [{"containerPort": 80, "hostPort": port}]}]}}))
        .unwrap()
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let room = Room { cpu_milli: 1000, memory_bytes: 1 << 30, pods: 2 };
        let a = pod("600m", Some(8080));
        let reason = |p: &Pod, others: &[&Pod]| admit(p, others, room, None).err().map(|f| f.reason);
        assert_eq!(reason(&a, &[]), None);
        assert_eq!(reason(&pod("600m", None), &[&a]).as_deref(), Some("OutOfcpu"));
        assert_eq!(reason(&pod("100m", Some(8080)), &[&a]).as_deref(), Some("NodePorts"));
        assert_eq!(reason(&pod("0", None), &[&a, &a]).as_deref(), Some("OutOfpods"));
        let mut picky = pod("0", None);
        picky.spec.as_mut().unwrap().node_selector = Some([("disk".to_owned(), "ssd".to_owned())].into());
        assert_eq!(admit(&picky, &[], room, Some(&Node::default())).unwrap_err().reason, "NodeAffinity");
    }
}
