//! DefaultTolerationSeconds: five minutes of patience with a node that is not ready or not reachable.
//!
//! In: new and changed pods. Out: pods with both tolerations.

use crate::read::{list, text};
use crate::request::{Facts, Operation};
use serde_json::{Value, json};

const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// Whether a request is to be changed: creates and updates of pods themselves. An update that drops the tolerations
/// gets them back, as pods may only gain tolerations.
pub fn concerns(facts: &Facts<'_>) -> bool {
    let written = matches!(facts.operation, Operation::Create | Operation::Update);
    (facts.group, facts.resource, facts.subresource) == ("", "pods", "") && written
}

/// Adds what is missing; `seconds` is 300 unless configured otherwise.
pub fn admit(pod: &mut Value, seconds: i64) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let tolerated = |spec: &Value, taint: &str| {
        list(spec, "tolerations").iter().any(|t| {
            matches!(text(t, "effect"), "" | "NoExecute") && (text(t, "key").is_empty() || text(t, "key") == taint)
        })
    };
    let before = Value::Object(spec.clone());
    for taint in TAINTS.into_iter().filter(|taint| !tolerated(&before, taint)) {
        let all = spec.entry("tolerations").or_insert(Value::Null);
        if all.is_null() {
            *all = json!([]);
        }
        if let Some(all) = all.as_array_mut() {
            all.push(json!({"effect": "NoExecute", "key": taint, "operator": "Exists", "tolerationSeconds": seconds}));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_added_once() {
        for (given, added) in [
            (json!(null), 2),
            (json!([]), 2),
            (json!([{"key": TAINTS[0], "effect": "NoExecute", "operator": "Exists"}]), 1),
            (json!([{"key": TAINTS[1], "operator": "Exists"}]), 1),
            (json!([{"key": TAINTS[0], "effect": "NoSchedule", "operator": "Exists"}]), 2),
            (json!([{"operator": "Exists"}]), 0),
        ] {
            let mut pod = json!({"spec": {"tolerations": given}});
            let before = list(&pod, "spec.tolerations").len();
            admit(&mut pod, 300);
            assert_eq!(list(&pod, "spec.tolerations").len() - before, added, "{pod}");
            let once = pod.clone();
            admit(&mut pod, 300);
            assert_eq!(pod, once);
        }
        let mut pod = json!({"spec": {}});
        admit(&mut pod, 60);
        let want = json!({"effect": "NoExecute", "key": TAINTS[0], "operator": "Exists", "tolerationSeconds": 60});
        assert_eq!(pod["spec"]["tolerations"][0], want);
    }
}
