//! RuntimeClass: a pod costs what its runtime costs, and goes where its runtime is.
//!
//! In: a new pod and its class. Out: the pod with overhead, node selector and tolerations; refusals.

use crate::amounts;
use crate::read::{at, entries, has, list, text};
use crate::request::{Facts, Operation};
use serde_json::{Map, Value};

const MISMATCH: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

/// Whether a request is to be decided on: new pods.
pub fn concerns(facts: &Facts<'_>) -> bool {
    (facts.group, facts.resource, facts.subresource, facts.operation) == ("", "pods", "", Operation::Create)
}

/// The class a pod wants; look it up and hand it to [`admit`] and [`validate`].
pub fn wanted(pod: &Value) -> Option<&str> {
    let name = at(pod, "spec.runtimeClassName");
    (!name.is_null()).then(|| name.as_str().unwrap_or(""))
}

/// Merges the class into the pod, before validation. `class` is `None` when the pod wants none, or when there is none
/// of that name.
pub fn admit(pod: &mut Value, class: Option<&Value>) -> Result<(), String> {
    let class = found(pod, class)?;
    if has(class, "overhead") {
        let overhead = at(class, "overhead.podFixed");
        let given = amounts::read(at(pod, "spec.overhead"))?;
        if !given.is_empty() && given != amounts::read(overhead)? {
            return Err(MISMATCH.to_owned());
        }
        set(pod, "overhead", overhead.clone());
    }
    if has(class, "scheduling") {
        let selector = node_selector(at(pod, "spec.nodeSelector"), at(class, "scheduling.nodeSelector"))?;
        set(pod, "nodeSelector", selector);
        let tolerations = merged(list(pod, "spec.tolerations"), list(class, "scheduling.tolerations"));
        set(pod, "tolerations", if tolerations.is_empty() { Value::Null } else { tolerations.into() });
    }
    Ok(())
}

/// Checks the pod after all mutation: its overhead is what the class says and nothing else.
pub fn validate(pod: &Value, class: Option<&Value>) -> Result<(), String> {
    let class = found(pod, class)?;
    let given = at(pod, "spec.overhead");
    if has(class, "overhead") {
        let same = amounts::read(given)? == amounts::read(at(class, "overhead.podFixed"))?;
        return if same { Ok(()) } else { Err(MISMATCH.to_owned()) };
    }
    if given.is_null() {
        return Ok(());
    }
    Err("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead".to_owned())
}

fn found<'a>(pod: &Value, class: Option<&'a Value>) -> Result<&'a Value, String> {
    match (wanted(pod), class) {
        (None, _) => Ok(&Value::Null),
        (Some(_), Some(class)) => Ok(class),
        (Some(name), None) => Err(format!("pod rejected: RuntimeClass {name:?} not found")),
    }
}

fn set(pod: &mut Value, key: &str, value: Value) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if value.is_null() {
        spec.shift_remove(key);
    } else {
        spec.insert(key.to_owned(), value);
    }
}

fn node_selector(of_pod: &Value, of_class: &Value) -> Result<Value, String> {
    let mut merged: Map<String, Value> = of_pod.as_object().cloned().unwrap_or_default();
    for (key, wanted) in entries(of_class, "") {
        if let Some(given) = merged.get(key).filter(|given| *given != wanted) {
            let words = |v: &Value| v.as_str().unwrap_or("").to_owned();
            let (wanted, given) = (words(wanted), words(given));
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {wanted}; pod.spec.nodeSelector[{key}] = {given}"
            ));
        }
        merged.insert(key.clone(), wanted.clone());
    }
    Ok(if merged.is_empty() { Value::Null } else { merged.into() })
}

/// Both lists without those that another makes needless.
fn merged(first: &[Value], second: &[Value]) -> Vec<Value> {
    let all: Vec<&Value> = first.iter().chain(second).collect();
    let mut kept: Vec<&Value> = Vec::new();
    for (i, t) in all.iter().enumerate() {
        let covered = kept.iter().any(|k| covers(k, t));
        let covered_later = all[i + 1..].iter().any(|later| later != t && covers(later, t));
        if !covered && !covered_later {
            kept.push(t);
        }
    }
    kept.into_iter().cloned().collect()
}

/// Whether whatever `narrow` tolerates, `wide` tolerates too, at least as long.
fn covers(wide: &Value, narrow: &Value) -> bool {
    if wide == narrow {
        return true;
    }
    let (key, operator, effect) = (text(wide, "key"), text(wide, "operator"), text(wide, "effect"));
    if text(narrow, "key") != key && !(key.is_empty() && operator == "Exists") {
        return false;
    }
    if text(narrow, "effect") != effect && !effect.is_empty() {
        return false;
    }
    let seconds = |t: &Value| at(t, "tolerationSeconds").as_i64();
    if effect == "NoExecute"
        && let Some(patience) = seconds(wide)
        && seconds(narrow).is_none_or(|s| s > patience)
    {
        return false;
    }
    match operator {
        "" | "Equal" => text(narrow, "operator") == "Equal" && text(narrow, "value") == text(wide, "value"),
        other => other == "Exists",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn class() -> Value {
        let toleration = json!({"key": "kata", "operator": "Exists"});
        json!({
            "handler": "kata", "overhead": {"podFixed": {"cpu": "250m"}},
            "scheduling": {"nodeSelector": {"kata": "yes"}, "tolerations": [toleration]}
        })
    }

    #[test]
    fn a_class_is_merged_in() {
        let narrow = json!({"key": "kata", "operator": "Equal", "value": "x", "effect": "NoSchedule"});
        let other = json!({"key": "a", "operator": "Exists"});
        let mut pod = json!({"spec": {
            "runtimeClassName": "kata", "nodeSelector": {"disk": "ssd"}, "tolerations": [narrow, other]
        }});
        admit(&mut pod, Some(&class())).unwrap();
        let want = json!({
            "runtimeClassName": "kata", "nodeSelector": {"disk": "ssd", "kata": "yes"}, "overhead": {"cpu": "250m"},
            "tolerations": [other, {"key": "kata", "operator": "Exists"}]
        });
        assert_eq!(pod["spec"], want);
        assert_eq!(validate(&pod, Some(&class())), Ok(()));
        let before = pod.clone();
        admit(&mut pod, Some(&class())).unwrap();
        assert_eq!(pod, before);
    }

    #[test]
    fn refusals() {
        let spec = |spec: Value| json!({ "spec": spec });
        let plain = json!({"handler": "runc"});
        let alone = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
        for (pod, class, want) in [
            (spec(json!({"runtimeClassName": "no"})), None, "pod rejected: RuntimeClass \"no\" not found"),
            (spec(json!({"runtimeClassName": "kata", "overhead": {"cpu": "1"}})), Some(class()), MISMATCH),
            (spec(json!({"runtimeClassName": "runc", "overhead": {"cpu": "1"}})), Some(plain), alone),
            (spec(json!({"overhead": {"cpu": "1"}})), None, alone),
            (
                spec(json!({"runtimeClassName": "kata", "nodeSelector": {"kata": "no"}})),
                Some(class()),
                "conflict: runtimeClass.scheduling.nodeSelector[kata] = yes; pod.spec.nodeSelector[kata] = no",
            ),
        ] {
            let mut changed = pod.clone();
            let said = admit(&mut changed, class.as_ref()).and_then(|()| validate(&changed, class.as_ref()));
            assert_eq!(said, Err(want.to_owned()));
        }
        let same = spec(json!({"runtimeClassName": "kata", "overhead": {"cpu": "0.25"}}));
        assert_eq!(validate(&same, Some(&class())), Ok(()), "amounts, not spellings");
        assert!(
            validate(&spec(json!({"runtimeClassName": "kata"})), Some(&class())).is_err(),
            "dropped after admission"
        );
        assert_eq!(validate(&spec(json!({})), None), Ok(()));
    }

    #[test]
    fn which_toleration_covers_which() {
        let t = |key: &str, operator: &str, value: &str, effect: &str, seconds: Option<i64>| json!({"key": key, "operator": operator, "value": value, "effect": effect, "tolerationSeconds": seconds});
        let all = t("", "Exists", "", "", None);
        let one = t("a", "Equal", "x", "NoExecute", None);
        for (wide, narrow, want) in [
            (&all, &one, true),
            (&one, &all, false),
            (&t("a", "Exists", "", "NoExecute", Some(5)), &one, false),
            (&t("a", "Exists", "", "NoExecute", Some(5)), &t("a", "Exists", "", "NoExecute", Some(4)), true),
            (&t("a", "Exists", "", "NoExecute", None), &t("a", "Exists", "", "NoExecute", Some(4)), true),
            (&t("a", "Equal", "y", "", None), &one, false),
            (&t("a", "Equal", "x", "", None), &one, true),
            (&t("b", "Exists", "", "", None), &one, false),
        ] {
            assert_eq!(covers(wide, narrow), want, "{wide} {narrow}");
        }
    }
}
