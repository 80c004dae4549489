//! node.k8s.io/v1 RuntimeClass: which container runtime runs a pod, what it costs, where it is.

use crate::field::{self, FieldErrors, Path};
use crate::json::{at, has, list, same, text};
use crate::rules::{Kind, Rules};
use crate::validate::{meta, resources, scheduling};
use crate::{Resource, age, cell};
use serde_json::{Value, json};
use std::collections::HashSet;

pub(super) fn resource() -> Resource {
    Kind::new("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses")
        .cluster()
        .columns(&[("Name", "string", 0), ("Handler", "string", 0), ("Age", "string", 0)])
        .rules(Rules { validate, validate_update, cells, ..Rules::default() })
}

fn validate(o: &Value, errors: &mut FieldErrors) {
    let handler = text(o, "handler");
    if let Err(why) = field::dns_label(handler) {
        errors.invalid(&Path::new("handler"), handler, why);
    }
    if has(o, "overhead") {
        let limits = json!({"limits": at(o, "overhead.podFixed")});
        resources::requirements(&limits, &Path::new("overhead"), errors);
    }
    let path = Path::new("scheduling");
    meta::labels(at(o, "scheduling.nodeSelector"), &path.child("nodeSelector"), errors);
    let path = path.child("tolerations");
    scheduling::tolerations(at(o, "scheduling.tolerations"), &path, errors);
    let mut seen = HashSet::new();
    for (i, t) in list(o, "scheduling.tolerations").iter().enumerate() {
        if !seen.insert(["key", "operator", "value", "effect"].map(|key| text(t, key))) {
            errors.duplicate(&path.index(i), t.clone());
        }
    }
}

fn validate_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    if !same(&new["handler"], &old["handler"]) {
        errors.invalid(&Path::new("handler"), new["handler"].clone(), "field is immutable");
    }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    vec![cell::name(o), json!(text(o, "handler")), age::age(o, now)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong() {
        let fields = |o: &Value| {
            let mut errors = FieldErrors::default();
            validate(o, &mut errors);
            errors.0.into_iter().map(|e| e.field).collect::<Vec<_>>()
        };
        let t = json!({"key": "a", "operator": "Exists", "effect": "NoSchedule"});
        let fine = json!({
            "handler": "kata-fc", "overhead": {"podFixed": {"cpu": "250m", "memory": "120Mi"}},
            "scheduling": {"nodeSelector": {"kata": "yes"}, "tolerations": [t]}
        });
        assert_eq!(fields(&fine), [""; 0]);
        for (wrong, want) in [
            (json!({}), "handler"),
            (json!({"handler": "A_b"}), "handler"),
            (json!({"handler": "a", "overhead": {"podFixed": {"pods": "1"}}}), "overhead.limits[pods]"),
            (json!({"handler": "a", "overhead": {"podFixed": {"cpu": "-1"}}}), "overhead.limits[cpu]"),
            (json!({"handler": "a", "scheduling": {"nodeSelector": {"a b": ""}}}), "scheduling.nodeSelector"),
            (json!({"handler": "a", "scheduling": {"tolerations": [t, t]}}), "scheduling.tolerations[1]"),
        ] {
            assert_eq!(fields(&wrong), [want], "{wrong}");
        }
        let mut errors = FieldErrors::default();
        validate_update(&json!({"handler": "b"}), &json!({"handler": "a"}), &mut errors);
        assert_eq!(errors.0[0].to_string(), "handler: Invalid value: \"b\": field is immutable");
    }
}
