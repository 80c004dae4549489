//! When a node counts as gone silent, and which taints its state asks for. Pure.

use crate::taints::keys;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeStatus, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

/// What was last heard of a node; it is alive when this changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    renewed: Option<MicroTime>,
    heartbeat: Option<Time>,
    ready: Option<String>,
}

impl Heard {
    /// From the node and its lease.
    pub fn of(node: &Node, lease: Option<&Lease>) -> Self {
        let condition = condition(node, "Ready");
        Self {
            renewed: lease.and_then(|l| l.spec.as_ref()?.renew_time.clone()),
            heartbeat: condition.and_then(|c| c.last_heartbeat_time.clone()),
            // That we ourselves wrote Unknown is no sign of life.
            ready: condition.map(|c| c.status.clone()).filter(|s| s != "Unknown"),
        }
    }
}

fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == type_)
}

/// The status of condition Ready.
pub fn ready(node: &Node) -> Option<&str> {
    condition(node, "Ready").map(|c| c.status.as_str())
}

/// The status a silent node gets; `None` while there is nothing to change.
pub fn status(node: &Node, silent: Duration, grace: Duration, now: Timestamp) -> Option<NodeStatus> {
    if silent <= grace {
        return None;
    }
    let mut status = node.status.clone().unwrap_or_default();
    let conditions = status.conditions.get_or_insert_default();
    let mut changed = false;
    for type_ in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        match conditions.iter_mut().find(|c| c.type_ == type_) {
            Some(c) if c.status == "Unknown" => {}
            Some(c) => {
                c.status = "Unknown".to_owned();
                c.reason = Some("NodeStatusUnknown".to_owned());
                c.message = Some("Kubelet stopped posting node status.".to_owned());
                c.last_transition_time = Some(Time(now));
                changed = true;
            }
            None => {
                conditions.push(NodeCondition {
                    type_: type_.to_owned(),
                    status: "Unknown".to_owned(),
                    reason: Some("NodeStatusNeverUpdated".to_owned()),
                    message: Some("Kubelet never posted node status.".to_owned()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(Time(now)),
                });
                changed = true;
            }
        }
    }
    changed.then_some(status)
}

/// The taints the node should have, when they differ from those it has. When no node at all is ready, the fault is
/// more likely ours than theirs, and nothing is evicted.
pub fn taints(node: &Node, all: &[Arc<Node>], now: Timestamp) -> Option<Vec<Taint>> {
    let has: Vec<Taint> = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let evict = all.iter().any(|n| ready(n) == Some("True"));
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match ready(node) {
        Some("True") => {}
        Some("Unknown") => wanted.push((keys::UNREACHABLE, "NoSchedule")),
        _ => wanted.push((keys::NOT_READY, "NoSchedule")),
    }
    match ready(node) {
        Some("False") if evict => wanted.push((keys::NOT_READY, "NoExecute")),
        Some("Unknown") if evict => wanted.push((keys::UNREACHABLE, "NoExecute")),
        _ => {}
    }
    for (type_, key) in [
        ("MemoryPressure", keys::MEMORY),
        ("DiskPressure", keys::DISK),
        ("PIDPressure", keys::PID),
        ("NetworkUnavailable", keys::NETWORK),
    ] {
        if condition(node, type_).is_some_and(|c| c.status == "True") {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        wanted.push((keys::UNSCHEDULABLE, "NoSchedule"));
    }
    let ours =
        [keys::NOT_READY, keys::UNREACHABLE, keys::MEMORY, keys::DISK, keys::PID, keys::NETWORK, keys::UNSCHEDULABLE];
    let is = |t: &Taint, (key, effect): (&str, &str)| t.key == key && t.effect == effect;
    let mut taints: Vec<Taint> =
        has.iter().filter(|t| !ours.contains(&t.key.as_str()) || wanted.iter().any(|w| is(t, *w))).cloned().collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|t| is(t, (key, effect))) {
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    (taints != has).then_some(taints)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::node as make;

    fn node(name: &str, ready: &str) -> Node {
        let mut n = make(name);
        n.status = Some(NodeStatus {
            conditions: Some(vec![NodeCondition {
                type_: "Ready".to_owned(),
                status: ready.to_owned(),
                ..NodeCondition::default()
            }]),
            ..NodeStatus::default()
        });
        n
    }

    const GRACE: Duration = Duration::from_secs(40);

    #[test]
    fn silence_beyond_the_grace_is_unknown() {
        let n = node("n1", "True");
        assert_eq!(status(&n, GRACE, GRACE, Timestamp::UNIX_EPOCH), None);
        let s = status(&n, GRACE * 2, GRACE, Timestamp::UNIX_EPOCH).unwrap();
        let silent = Node { status: Some(s), ..n };
        assert_eq!(ready(&silent), Some("Unknown"));
        assert_eq!(status(&silent, GRACE * 3, GRACE, Timestamp::UNIX_EPOCH), None, "once");
        assert_eq!(Heard::of(&silent, None).ready, None);
    }

    #[test]
    fn taints_follow_the_state_and_leave_others_alone() {
        let healthy = Arc::new(node("n2", "True"));
        let keys_of = |taints: Option<Vec<Taint>>| {
            taints.map(|t| {
                t.into_iter().map(|t| format!("{}:{}", t.key.rsplit('/').next().unwrap(), t.effect)).collect::<Vec<_>>()
            })
        };
        let mut lost = node("n1", "Unknown");
        let own = Taint { key: "own".into(), effect: "NoSchedule".into(), ..Taint::default() };
        lost.spec.get_or_insert_default().taints = Some(vec![own]);
        let now = Timestamp::UNIX_EPOCH;
        let with_peer = taints(&lost, &[healthy.clone(), Arc::new(lost.clone())], now);
        assert_eq!(
            keys_of(with_peer.clone()).unwrap(),
            ["own:NoSchedule", "unreachable:NoSchedule", "unreachable:NoExecute"]
        );
        let alone = taints(&lost, &[Arc::new(lost.clone())], now);
        assert_eq!(keys_of(alone).unwrap(), ["own:NoSchedule", "unreachable:NoSchedule"]);
        let mut back = node("n1", "True");
        back.spec.get_or_insert_default().taints = with_peer;
        assert_eq!(keys_of(taints(&back, &[healthy], now)).unwrap(), ["own:NoSchedule"]);
        back.spec.as_mut().unwrap().unschedulable = Some(true);
        assert!(keys_of(taints(&back, &[], now)).unwrap().contains(&"unschedulable:NoSchedule".to_owned()));
    }
}
