//! What a stricter namespace finds among the pods it already has. In: pods. Out: warnings in upstream's words.

use super::checks::{evaluate, reasons};
use super::{PodSecurity, PolicyChange};
use crate::read::{at, list, text};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};

/// Pods looked at for one change.
const MOST_PODS: usize = 3000;

impl PodSecurity {
    /// Warnings for the pods that violate the level a namespace enforces from now on. One pod of each controller is
    /// looked at before the others of the same controller. `in_time` is asked after each pod; upstream gives up after
    /// a second, or half of what is left of the request's time.
    pub fn check_existing(
        &self,
        change: &PolicyChange,
        pods: &[&Value],
        mut in_time: impl FnMut() -> bool,
    ) -> Vec<String> {
        let pods = self.prioritized(pods);
        let mut checked = pods.len().min(MOST_PODS);
        let mut found: BTreeMap<String, (&str, usize)> = BTreeMap::new();
        for (i, pod) in pods.iter().take(MOST_PODS).enumerate() {
            let violations = evaluate(change.enforce, at(pod, "metadata"), at(pod, "spec"));
            if !violations.is_empty() {
                let name = text(pod, "metadata.name");
                let (first, count) = found.entry(reasons(&violations)).or_insert((name, 0));
                *first = name.min(*first);
                *count += 1;
            }
            if !in_time() {
                checked = i + 1;
                break;
            }
        }
        let mut warnings = Vec::new();
        if checked < pods.len() {
            let total = pods.len();
            warnings.push(format!(
                "new PodSecurity enforce level only checked against the first {checked} of {total} existing pods"
            ));
        }
        if !found.is_empty() {
            let PolicyChange { namespace, enforce } = change;
            warnings.push(format!(
                "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{enforce}\""
            ));
        }
        let mut of_pods: Vec<String> = found.iter().map(|(why, (name, count))| of_pods(name, *count, why)).collect();
        of_pods.sort();
        warnings.extend(of_pods);
        warnings
    }

    fn prioritized<'a>(&self, pods: &[&'a Value]) -> Vec<&'a Value> {
        let (mut first, mut rest, mut controllers) = (Vec::new(), Vec::new(), HashSet::new());
        for &pod in pods.iter().filter(|p| !self.exempts_runtime_class(at(p, "spec"))) {
            let owners = list(pod, "metadata.ownerReferences").iter();
            let controller =
                owners.filter(|o| at(o, "controller") == &Value::Bool(true)).map(|o| text(o, "uid")).next();
            if controller.is_none_or(|uid| controllers.insert(uid)) {
                first.push(pod);
            } else {
                rest.push(pod);
            }
        }
        first.extend(rest);
        first
    }
}

fn of_pods(first: &str, count: usize, why: &str) -> String {
    match count {
        1 => format!("{first}: {why}"),
        2 => format!("{first} (and 1 other pod): {why}"),
        more => format!("{first} (and {} other pods): {why}", more - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod_security::{Exemptions, Level, LevelVersion, Policy, Version};
    use serde_json::json;

    fn pod(name: &str, owner: &str, spec: Value) -> Value {
        let owners = if owner.is_empty() { json!([]) } else { json!([{"uid": owner, "controller": true}]) };
        json!({"metadata": {"name": name, "ownerReferences": owners}, "spec": spec})
    }

    #[test]
    fn like_violations_are_told_once() {
        let exemptions = Exemptions { runtime_classes: vec!["vm".into()], ..Exemptions::default() };
        let plugin = PodSecurity::new(Policy::default(), exemptions);
        let enforce = LevelVersion { level: Level::Baseline, version: Version::Latest };
        let change = PolicyChange { namespace: "n".into(), enforce };
        let host = json!({"hostPID": true});
        let pods = [
            pod("z", "s", host.clone()),
            pod("b", "s", host.clone()),
            pod("a", "", host.clone()),
            pod("p", "", json!({"containers": [{"name": "c", "securityContext": {"privileged": true}}]})),
            pod("fine", "", json!({"containers": [{"name": "c"}]})),
            pod("exempt", "", json!({"hostPID": true, "runtimeClassName": "vm"})),
        ];
        let pods: Vec<&Value> = pods.iter().collect();
        let head = r#"existing pods in namespace "n" violate the new PodSecurity enforce level "baseline:latest""#;
        let all = plugin.check_existing(&change, &pods, || true);
        assert_eq!(all, [head, "a (and 2 other pods): host namespaces", "p: privileged"]);

        let mut left = 2;
        let some = plugin.check_existing(&change, &pods, || {
            left -= 1;
            left > 0
        });
        // `b` comes after the pods of other owners, so `a` and `z` were seen.
        let cut = "new PodSecurity enforce level only checked against the first 2 of 5 existing pods";
        assert_eq!(some, [cut, head, "a (and 1 other pod): host namespaces"]);
        assert!(plugin.check_existing(&change, &pods[4..], || true).is_empty());
    }
}
