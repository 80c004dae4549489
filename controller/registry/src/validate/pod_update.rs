//! What may change in a running pod: images, tolerations (more of them), a shorter deadline; little else.

use crate::field::{FieldErrors, Path};
use crate::json::{int, items_mut, list, put, same, text};
use serde_json::{Value, json};

const SENTENCE: &str = "pod updates may not change fields other than \
    `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only \
    additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
    previously negative)";

/// Compares a pod with the live one.
pub(crate) fn pod_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let path = Path::new("spec");
    for key in ["containers", "initContainers"] {
        if list(&new["spec"], key).len() != list(&old["spec"], key).len() {
            errors.forbidden(&path.child(key), "pod updates may not add or remove containers");
            return;
        }
    }
    deadline(new, old, &path, errors);
    tolerations(new, old, &path, errors);
    gates(new, old, &path, errors);
    let gated = !list(old, "spec.schedulingGates").is_empty();
    let (new, old) = (comparable(&new["spec"], gated), comparable(&old["spec"], gated));
    if !same(&new, &old) {
        errors.forbidden(&path, format!("{SENTENCE}\n{}", difference(&new, &old)));
    }
}

/// The spec without what may change.
fn comparable(spec: &Value, gated: bool) -> Value {
    let mut spec = spec.clone();
    for key in ["activeDeadlineSeconds", "tolerations", "schedulingGates", "ephemeralContainers"] {
        put(&mut spec, key, Value::Null);
    }
    if int(&spec, "terminationGracePeriodSeconds").is_some_and(|n| n < 0) {
        put(&mut spec, "terminationGracePeriodSeconds", json!(1));
    }
    if gated {
        // A pod that waits at a gate has not been placed: where it may go can still be narrowed.
        put(&mut spec, "nodeSelector", Value::Null);
        put(&mut spec, "affinity", Value::Null);
    }
    for key in ["containers", "initContainers"] {
        for container in items_mut(&mut spec, key) {
            put(container, "image", json!(""));
        }
    }
    spec
}

fn difference(new: &Value, old: &Value) -> String {
    let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else { return String::new() };
    let mut keys: Vec<&String> = new.keys().chain(old.keys()).collect();
    keys.sort();
    keys.dedup();
    let null = Value::Null;
    let (before, after) = (|k: &str| old.get(k).unwrap_or(&null), |k: &str| new.get(k).unwrap_or(&null));
    keys.into_iter()
        .filter(|k| !same(before(k), after(k)))
        .map(|k| format!("- {k}: {}\n+ {k}: {}\n", before(k), after(k)))
        .collect()
}

fn deadline(new: &Value, old: &Value, path: &Path, errors: &mut FieldErrors) {
    let path = path.child("activeDeadlineSeconds");
    match (int(new, "spec.activeDeadlineSeconds"), int(old, "spec.activeDeadlineSeconds")) {
        (Some(new), Some(old)) if new > old => {
            errors.invalid(&path, new, "must be less than or equal to previous value");
        }
        (None, Some(_)) => errors.invalid(&path, Value::Null, "must not update from a positive integer to nil value"),
        _ => {}
    }
}

fn tolerations(new: &Value, old: &Value, path: &Path, errors: &mut FieldErrors) {
    let without_seconds = |t: &Value| {
        let mut t = t.clone();
        put(&mut t, "tolerationSeconds", Value::Null);
        t
    };
    let new = list(new, "spec.tolerations");
    let kept = |t: &Value| {
        let bare = without_seconds(t);
        new.iter().any(|n| same(n, t) || text(n, "effect") == "NoExecute" && same(&without_seconds(n), &bare))
    };
    if !list(old, "spec.tolerations").iter().all(kept) {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.forbidden(&path.child("tolerations"), detail);
    }
}

fn gates(new: &Value, old: &Value, path: &Path, errors: &mut FieldErrors) {
    let old = list(old, "spec.schedulingGates");
    let added: Vec<&str> =
        list(new, "spec.schedulingGates").iter().filter(|g| !old.contains(g)).map(|g| text(g, "name")).collect();
    if !added.is_empty() {
        let detail = format!("only deletion is allowed, but found new scheduling gates '{}'", added.join(", "));
        errors.forbidden(&path.child("schedulingGates"), detail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(old: Value, change: impl Fn(&mut Value)) -> Vec<String> {
        let mut new = old.clone();
        change(&mut new);
        let mut errors = FieldErrors::default();
        pod_update(&new, &old, &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn images_and_tolerations_only() {
        let old = json!({"spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "a"}],
                                  "tolerations": [{"key": "k", "operator": "Exists"}]}});
        assert!(words(old.clone(), |p| p["spec"]["containers"][0]["image"] = json!("b")).is_empty());
        let more = |p: &mut Value| p["spec"]["tolerations"] = json!([{"key": "x"}, {"key": "k", "operator": "Exists"}]);
        assert!(words(old.clone(), more).is_empty());
        let fewer = words(old.clone(), |p| p["spec"]["tolerations"] = json!([]));
        assert_eq!(fewer.len(), 1);
        let moved = words(old.clone(), |p| p["spec"]["nodeName"] = json!("n2"));
        assert!(moved[0].starts_with("spec: Forbidden: pod updates may not change fields other than `spec.containers"));
        assert!(moved[0].ends_with("- nodeName: \"n1\"\n+ nodeName: \"n2\"\n"), "{moved:?}");
        let grown = words(old, |p| p["spec"]["containers"] = json!([{"name": "c"}, {"name": "d"}]));
        assert_eq!(grown, ["spec.containers: Forbidden: pod updates may not add or remove containers"]);
    }
}
