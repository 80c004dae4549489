//! When a pod has to leave a tainted node. Pure.

use crate::taints::tolerates;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// The node a pod is on.
pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

/// The taints that evict.
pub fn taints(node: &Node) -> impl Iterator<Item = &Taint> {
    node.spec.iter().flat_map(|s| s.taints.iter().flatten()).filter(|t| t.effect == "NoExecute")
}

/// When the pod has to go; `None` when it may stay. `since` says when a taint came.
pub fn due(pod: &Pod, node: &Node, mut since: impl FnMut(&Taint) -> Timestamp) -> Option<Timestamp> {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let mut earliest: Option<Timestamp> = None;
    for taint in taints(node) {
        let matching: Vec<_> = tolerations.iter().filter(|t| tolerates(t, taint)).collect();
        let at = since(taint);
        let until = if matching.is_empty() {
            Some(at)
        } else {
            let shortest = matching.iter().filter_map(|t| t.toleration_seconds).min();
            shortest.map(|s| at.checked_add(SignedDuration::from_secs(s.max(0))).unwrap_or(Timestamp::MAX))
        };
        if let Some(until) = until {
            earliest = Some(earliest.map_or(until, |e| e.min(until)));
        }
    }
    earliest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node as make_node, pod as make};
    use k8s_openapi::api::core::v1::Toleration;

    #[test]
    fn tolerations_set_the_time() {
        let taint = |key: &str| Taint { key: key.into(), effect: "NoExecute".into(), ..Taint::default() };
        let mut node = make_node("n1");
        node.spec.get_or_insert_default().taints = Some(vec![taint("a"), taint("b")]);
        let tolerate = |key: &str, seconds: Option<i64>| Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            toleration_seconds: seconds,
            ..Toleration::default()
        };
        let epoch = Timestamp::UNIX_EPOCH;
        let due_of = |tolerations: Vec<Toleration>| {
            let mut p = make("p", "n1", true);
            p.spec.as_mut().unwrap().tolerations = Some(tolerations);
            due(&p, &node, |_| epoch).map(Timestamp::as_second)
        };
        assert_eq!(due_of(vec![]), Some(0));
        assert_eq!(due_of(vec![tolerate("a", Some(300))]), Some(0), "b is not tolerated");
        assert_eq!(due_of(vec![tolerate("a", Some(300)), tolerate("b", Some(60))]), Some(60));
        assert_eq!(due_of(vec![tolerate("a", None), tolerate("b", Some(60))]), Some(60));
        assert_eq!(due_of(vec![tolerate("a", None), tolerate("b", None)]), None);
    }
}
