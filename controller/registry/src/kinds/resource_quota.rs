//! core/v1 ResourceQuota: how much the objects of a namespace may use together.

use crate::field::{FieldErrors, Path};
use crate::json::{at, entries, has, list, text};
use crate::rules::{Kind, Rules, Status};
use crate::validate::resource_names;
use crate::{Resource, age, cell};
use causeway_api::quantity;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const SCOPES: [&str; 7] = [
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "VolumeAttributesClass",
    "CrossNamespacePodAffinity",
];

const CONFLICTS: [[&str; 2]; 2] = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];

pub(super) fn resource() -> Resource {
    Kind::new("", "v1", "ResourceQuota", "resourcequotas")
        .short(&["quota"])
        .columns(&[("Name", "string", 0), ("Request", "string", 0), ("Limit", "string", 0), ("Age", "string", 0)])
        .rules(Rules {
            status: Status::Cleared(|_| json!({})),
            validate,
            validate_update,
            validate_status,
            warnings,
            cells,
            ..Rules::default()
        })
}

fn validate(o: &Value, errors: &mut FieldErrors) {
    let spec = Path::new("spec");
    amounts(o, "spec.hard", &spec.child("hard"), errors);
    scopes(o, &spec.child("scopes"), errors);
    if has(o, "spec.scopeSelector") {
        scope_selector(o, &spec.child("scopeSelector").child("matchExpressions"), errors);
    }
}

fn amounts(o: &Value, at: &str, path: &Path, errors: &mut FieldErrors) {
    for (name, value) in entries(o, at) {
        let path = path.key(name);
        resource_names::in_quota(name, &path, errors);
        resource_names::amount(name, value, &path, errors);
    }
}

/// The standard names of `spec.hard`, sorted.
fn hard(o: &Value) -> BTreeSet<&str> {
    let names = entries(o, "spec.hard").map(|(name, _)| name.as_str());
    names.filter(|name| resource_names::standard_in_quota(name)).collect()
}

/// Whether a scope can tell objects of a resource apart.
fn scope_fits(scope: &str, resource: &str) -> bool {
    let compute =
        matches!(resource, "cpu" | "memory" | "limits.cpu" | "limits.memory" | "requests.cpu" | "requests.memory");
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        _ if SCOPES.contains(&scope) => resource == "pods" || compute,
        _ => true,
    }
}

fn scopes(o: &Value, path: &Path, errors: &mut FieldErrors) {
    let all = at(o, "spec.scopes");
    for scope in list(o, "spec.scopes").iter().map(|s| s.as_str().unwrap_or("")) {
        if !SCOPES.contains(&scope) {
            errors.invalid(path, all.clone(), "unsupported scope");
        }
        for _ in hard(o).into_iter().filter(|name| !scope_fits(scope, name)) {
            errors.invalid(path, all.clone(), "unsupported scope applied to resource");
        }
    }
    let has = |scope: &str| list(o, "spec.scopes").iter().any(|s| s == scope);
    for _ in CONFLICTS.iter().filter(|pair| pair.iter().all(|scope| has(scope))) {
        errors.invalid(path, all.clone(), "conflicting scopes");
    }
}

fn scope_selector(o: &Value, path: &Path, errors: &mut FieldErrors) {
    let terms = list(o, "spec.scopeSelector.matchExpressions");
    for term in terms {
        let (scope, operator, values) = (text(term, "scopeName"), text(term, "operator"), list(term, "values"));
        if !SCOPES.contains(&scope) {
            errors.invalid(&path.child("scopeName"), scope, "unsupported scope");
        }
        for _ in hard(o).into_iter().filter(|name| !scope_fits(scope, name)) {
            errors.invalid(path, at(o, "spec.scopeSelector").clone(), "unsupported scope applied to resource");
        }
        if SCOPES.contains(&scope) && !scope.ends_with("Class") && operator != "Exists" {
            let detail = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, \
                          ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
                          ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.invalid(&path.child("operator"), operator, detail);
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                let detail = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                errors.required(&path.child("values"), detail);
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                errors.invalid(&path.child("values"), values.to_vec(), detail);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
        }
    }
    let has = |scope: &str| terms.iter().any(|t| text(t, "scopeName") == scope);
    for _ in CONFLICTS.iter().filter(|pair| pair.iter().all(|scope| has(scope))) {
        errors.invalid(path, at(o, "spec.scopes").clone(), "conflicting scopes");
    }
}

fn validate_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let set = |o| list(o, "spec.scopes").iter().filter_map(Value::as_str).map(str::to_owned).collect::<BTreeSet<_>>();
    if set(new) != set(old) {
        errors.invalid(&Path::new("spec").child("scopes"), at(new, "spec.scopes").clone(), "field is immutable");
    }
}

fn validate_status(new: &Value, _: &Value, errors: &mut FieldErrors) {
    for key in ["hard", "used"] {
        amounts(new, &format!("status.{key}"), &Path::new("status").child(key), errors);
    }
}

/// Requests that may be more than limits make no sense.
fn warnings(o: &Value) -> Vec<String> {
    let hard = &o["spec"]["hard"];
    let mut warnings = Vec::new();
    for name in ["cpu", "memory", "storage", "ephemeral-storage"] {
        let mut request = format!("requests.{name}");
        if hard[request.as_str()].is_null() && matches!(name, "cpu" | "memory") {
            name.clone_into(&mut request);
        }
        let limit = format!("limits.{name}");
        let words = |key: &str| hard[key].as_str().unwrap_or("").to_owned();
        let (asked, allowed) = (words(&request), words(&limit));
        if let (Some(a), Some(b)) = (quantity::milli(&asked), quantity::milli(&allowed))
            && a > b
        {
            warnings.push(format!("ResourceQuota {request} ({asked}) should be less than {limit} ({allowed})"));
        }
    }
    warnings
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    let names: BTreeSet<&String> = entries(o, "status.hard").map(|(name, _)| name).collect();
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for name in names {
        let amount = |key: &str| o["status"][key][name.as_str()].as_str().unwrap_or("0").to_owned();
        let into = if name.starts_with("limits.") { &mut limits } else { &mut requests };
        into.push(format!("{name}: {}/{}", amount("used"), amount("hard")));
    }
    vec![cell::name(o), json!(requests.join(", ")), json!(limits.join(", ")), age::age(o, now)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(o: &Value) -> Vec<String> {
        let mut errors = FieldErrors::default();
        validate(o, &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_and_amounts() {
        let hard = json!({
            "pods": "10", "requests.cpu": "500m", "limits.memory": "1Gi", "count/deployments.apps": "3",
            "gold.storageclass.storage.k8s.io/requests.storage": "1Gi", "requests.nvidia.com/gpu": "4",
            "hugepages-2Mi": "4Mi", "requests.hugepages-2Mi": "4Mi", "services.nodeports": "0"
        });
        assert_eq!(said(&json!({"spec": {"hard": hard}})), [""; 0]);
        for (name, amount, want) in [
            ("pods", "1.5", "spec.hard[pods]: Invalid value: \"1.5\": must be an integer"),
            ("pods", "-1", "spec.hard[pods]: Invalid value: \"-1\": must be greater than or equal to 0"),
            ("storage", "1", "spec.hard[storage]: Invalid value: \"storage\": must be a standard resource for quota"),
            ("example.com/gpu", "1.5", "spec.hard[example.com/gpu]: Invalid value: \"1.5\": must be an integer"),
        ] {
            assert_eq!(said(&json!({"spec": {"hard": {name: amount}}})), [want]);
        }
        assert_eq!(said(&json!({"spec": {"hard": {"things": "1"}}})).len(), 2);
        assert_eq!(said(&json!({"spec": {"hard": {"a b": "1"}}})).len(), 2);
    }

    #[test]
    fn scopes_and_selectors() {
        let scoped = |hard: &str, scopes: Value| said(&json!({"spec": {"hard": {hard: "1"}, "scopes": scopes}}));
        assert_eq!(scoped("pods", json!(["BestEffort", "NotTerminating"])), [""; 0]);
        assert_eq!(scoped("count/x.io", json!(["BestEffort"])), [""; 0]);
        for (hard, scopes, want) in [
            ("pods", json!(["Best"]), "unsupported scope"),
            ("cpu", json!(["BestEffort"]), "unsupported scope applied to resource"),
            ("secrets", json!(["Terminating"]), "unsupported scope applied to resource"),
            ("pods", json!(["VolumeAttributesClass"]), "unsupported scope applied to resource"),
            ("pods", json!(["Terminating", "NotTerminating"]), "conflicting scopes"),
        ] {
            assert_eq!(scoped(hard, scopes.clone()), [format!("spec.scopes: Invalid value: {scopes}: {want}")]);
        }
        let selected = |scope: &str, operator: &str, values: Value| {
            let term = json!({"scopeName": scope, "operator": operator, "values": values});
            said(&json!({"spec": {"hard": {"pods": "1"}, "scopeSelector": {"matchExpressions": [term]}}}))
        };
        assert_eq!(selected("PriorityClass", "In", json!(["high"])), [""; 0]);
        assert_eq!(selected("Terminating", "Exists", json!([])), [""; 0]);
        for (scope, operator, values, count) in [
            ("PriorityClass", "In", json!([]), 1),
            ("PriorityClass", "Exists", json!(["x"]), 1),
            ("PriorityClass", "Like", json!([]), 1),
            ("Terminating", "In", json!(["x"]), 1),
            ("Best", "Exists", json!([]), 1),
        ] {
            assert_eq!(selected(scope, operator, values).len(), count, "{scope} {operator}");
        }
    }

    #[test]
    fn updates_columns_and_warnings() {
        let of = |scopes: Value| json!({"spec": {"scopes": scopes}});
        for (new, old, wrong) in [
            (json!(["BestEffort", "Terminating"]), json!(["Terminating", "BestEffort"]), false),
            (json!(["BestEffort"]), json!([]), true),
            (json!(null), json!(["BestEffort"]), true),
        ] {
            let mut errors = FieldErrors::default();
            validate_update(&of(new), &of(old), &mut errors);
            assert_eq!(!errors.is_empty(), wrong);
        }
        let mut errors = FieldErrors::default();
        let status = json!({"hard": {"pods": "-1"}, "used": {"things": "1"}});
        validate_status(&json!({"status": status}), &json!({}), &mut errors);
        assert_eq!(errors.0.len(), 3);
        let o = json!({
            "metadata": {"name": "q"},
            "spec": {"hard": {"cpu": "2", "limits.cpu": "1", "requests.memory": "1Gi", "limits.memory": "2Gi"}},
            "status": {"hard": {"pods": "9", "limits.cpu": "1", "cpu": "2"}, "used": {"pods": "3", "limits.cpu": "500m"}}
        });
        assert_eq!(cells(&o, 0)[1..3], [json!("cpu: 0/2, pods: 3/9"), json!("limits.cpu: 500m/1")]);
        assert_eq!(warnings(&o), ["ResourceQuota cpu (2) should be less than limits.cpu (1)"]);
    }
}
