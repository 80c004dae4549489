//! admissionregistration.k8s.io/v1 MutatingWebhookConfiguration and ValidatingWebhookConfiguration: whom to ask about
//! changes. Two kinds in one file, since they are nearly the same.

use crate::field::{FieldErrors, Path, dns_1035_label, dns_subdomain};
use crate::json::{count, existing_mut, fill, has, int, items_mut, list, text};
use crate::rules::{Kind, Rules};
use crate::validate::admission::{self, Expressions};
use crate::{Resource, age, cell};
use serde_json::{Value, json};
use std::collections::HashSet;

const GROUP: &str = "admissionregistration.k8s.io";
/// Reviews in these versions are known to the API server; only `v1` is ever sent.
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

/// The two kinds.
pub(super) fn resources() -> Vec<Resource> {
    let kind = |kind: &str, plural: &str, default: fn(&mut Value)| {
        Kind::new(GROUP, "v1", kind, plural)
            .cluster()
            .in_api_extensions()
            .columns(&[("Name", "string", 0), ("Webhooks", "integer", 0), ("Age", "string", 0)])
            .rules(Rules { default, generation: true, validate, cells, ..Rules::default() })
    };
    vec![
        kind("MutatingWebhookConfiguration", "mutatingwebhookconfigurations", mutating_defaults),
        kind("ValidatingWebhookConfiguration", "validatingwebhookconfigurations", defaults),
    ]
}

fn defaults(o: &mut Value) {
    for hook in items_mut(o, "webhooks") {
        fill(hook, "failurePolicy", "Fail");
        fill(hook, "matchPolicy", "Equivalent");
        fill(hook, "namespaceSelector", json!({}));
        fill(hook, "objectSelector", json!({}));
        fill(hook, "timeoutSeconds", 10);
        for rule in items_mut(hook, "rules") {
            fill(rule, "scope", "*");
        }
        if let Some(service) = existing_mut(hook, "clientConfig").and_then(|c| existing_mut(c, "service")) {
            fill(service, "port", 443);
        }
    }
}

fn mutating_defaults(o: &mut Value) {
    defaults(o);
    for hook in items_mut(o, "webhooks") {
        fill(hook, "reinvocationPolicy", "Never");
    }
}

fn validate(o: &Value, errors: &mut FieldErrors) {
    let mut expressions = Expressions::default();
    let mut seen = HashSet::new();
    let path = Path::new("webhooks");
    for (i, hook) in list(o, "webhooks").iter().enumerate() {
        let path = path.index(i);
        webhook(hook, &path, &mut expressions, errors);
        let name = text(hook, "name");
        if !name.is_empty() && !seen.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
    }
    expressions.compile(&path, errors);
}

fn webhook<'a>(hook: &'a Value, path: &Path, expressions: &mut Expressions<'a>, errors: &mut FieldErrors) {
    let name = text(hook, "name");
    if name.is_empty() {
        errors.required(&path.child("name"), "");
    } else if let Err(why) = dns_subdomain(name) {
        errors.invalid(&path.child("name"), name, why);
    } else if name.split('.').count() < 3 {
        let detail = "should be a domain with at least three segments separated by dots";
        errors.invalid(&path.child("name"), name, detail);
    }
    for (i, rule) in list(hook, "rules").iter().enumerate() {
        admission::rule(rule, &path.child("rules").index(i), errors);
    }
    admission::one_of(hook, "failurePolicy", &["Fail", "Ignore"], path, errors);
    let effects = ["None", "NoneOnDryRun"];
    if has(hook, "sideEffects") {
        admission::one_of(hook, "sideEffects", &effects, path, errors);
    } else {
        errors.required(&path.child("sideEffects"), format!("must specify one of {}", effects.join(", ")));
    }
    if let Some(seconds) = int(hook, "timeoutSeconds").filter(|s| !(1..=30).contains(s)) {
        let detail = "the timeout value must be between 1 and 30 seconds";
        errors.invalid(&path.child("timeoutSeconds"), seconds, detail);
    }
    admission::selection(hook, path, errors);
    admission::one_of(hook, "reinvocationPolicy", &["IfNeeded", "Never"], path, errors);
    admission::client_config(&hook["clientConfig"], &path.child("clientConfig"), errors);
    admission::conditions(hook, false, path, expressions, errors);
    review_versions(hook, &path.child("admissionReviewVersions"), errors);
}

fn review_versions(hook: &Value, path: &Path, errors: &mut FieldErrors) {
    let all = list(hook, "admissionReviewVersions");
    if all.is_empty() {
        errors.required(path, format!("must specify one of {}", REVIEWS.join(", ")));
        return;
    }
    let mut seen = HashSet::new();
    for (i, version) in all.iter().enumerate() {
        let version = version.as_str().unwrap_or("");
        if !seen.insert(version) {
            errors.invalid(&path.index(i), version, "duplicate version");
        } else if let Err(why) = dns_1035_label(version) {
            errors.invalid(&path.index(i), version, why);
        }
    }
    // Upstream can also talk to webhooks that only know the old version; we cannot.
    if !seen.contains("v1") {
        errors.invalid(path, hook["admissionReviewVersions"].clone(), "must include at least one of v1");
    }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    vec![cell::name(o), json!(count(o, "webhooks")), age::age(o, now)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Value {
        json!({"metadata": {"name": "a"}, "webhooks": [{
            "name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"name": "a", "namespace": "b", "path": "/x/y"}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}],
            "matchConditions": [{"name": "c", "expression": "request.userInfo.username != 'x'"}]
        }]})
    }

    fn words(o: &Value) -> Vec<String> {
        let mut errors = FieldErrors::default();
        validate(o, &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_are_those_of_v1() {
        let mut o = good();
        mutating_defaults(&mut o);
        let hook = &o["webhooks"][0];
        let wanted = json!({"failurePolicy": "Fail", "matchPolicy": "Equivalent", "namespaceSelector": {},
                            "objectSelector": {}, "timeoutSeconds": 10, "reinvocationPolicy": "Never"});
        for (key, value) in wanted.as_object().unwrap() {
            assert_eq!(&hook[key], value, "{key}");
        }
        assert_eq!((&hook["clientConfig"]["service"]["port"], &hook["rules"][0]["scope"]), (&json!(443), &json!("*")));
        assert!(words(&o).is_empty(), "{:?}", words(&o));
    }

    #[test]
    fn what_is_refused() {
        let table = [
            ("name", json!("a.b"), "webhooks[0].name: Invalid value: \"a.b\": should be a domain with at least three"),
            ("name", json!(""), "webhooks[0].name: Required value"),
            (
                "sideEffects",
                json!("Some"),
                "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
            ),
            (
                "sideEffects",
                Value::Null,
                "webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun",
            ),
            ("failurePolicy", json!("Maybe"), "webhooks[0].failurePolicy: Unsupported value"),
            ("matchPolicy", json!("Maybe"), "webhooks[0].matchPolicy: Unsupported value"),
            ("timeoutSeconds", json!(31), "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value"),
            ("admissionReviewVersions", json!([]), "webhooks[0].admissionReviewVersions: Required value"),
            ("admissionReviewVersions", json!(["v1beta1"]), "webhooks[0].admissionReviewVersions: Invalid value"),
            (
                "admissionReviewVersions",
                json!(["v1", "v1"]),
                "webhooks[0].admissionReviewVersions[1]: Invalid value: \"v1\": duplicate",
            ),
            (
                "clientConfig",
                json!({}),
                "webhooks[0].clientConfig: Required value: exactly one of url or service is required",
            ),
            (
                "clientConfig",
                json!({"url": "http://a.io"}),
                "webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only",
            ),
            (
                "clientConfig",
                json!({"url": "https://u@a.io"}),
                "webhooks[0].clientConfig.url: Invalid value: \"u\": user information",
            ),
            (
                "clientConfig",
                json!({"url": "https://a.io/?x"}),
                "webhooks[0].clientConfig.url: Invalid value: \"x\": query parameters",
            ),
            (
                "clientConfig",
                json!({"service": {"name": "a"}}),
                "webhooks[0].clientConfig.service.namespace: Required value",
            ),
            (
                "clientConfig",
                json!({"service": {"name": "a", "namespace": "b", "path": "x"}}),
                "webhooks[0].clientConfig.service.path: Invalid value: \"x\": must start with a '/'",
            ),
            ("rules", json!([{}]), "webhooks[0].rules[0].operations: Required value"),
            (
                "rules",
                json!([{"apiGroups": ["*", "a"], "apiVersions": ["v1"], "resources": ["*"], "operations": ["*"]}]),
                "webhooks[0].rules[0].apiGroups: Invalid value",
            ),
            (
                "rules",
                json!([{"apiGroups": ["a"], "apiVersions": ["v1"], "resources": ["*", "pods"], "operations": ["*"]}]),
                "webhooks[0].rules[0].resources: Invalid value",
            ),
            (
                "rules",
                json!([{"apiGroups": ["a"], "apiVersions": ["v1"], "resources": ["pods/*", "pods/status"], "operations": ["READ"]}]),
                "webhooks[0].rules[0].operations[0]: Unsupported value: \"READ\"",
            ),
            (
                "matchConditions",
                json!([{"name": "a", "expression": "objekt.x"}]),
                "webhooks[0].matchConditions[0].expression: Invalid value: \"objekt.x\": compilation failed: undeclared reference to 'objekt'",
            ),
            (
                "matchConditions",
                json!([{"name": "a", "expression": "params.x"}]),
                "webhooks[0].matchConditions[0].expression: Invalid value",
            ),
            (
                "matchConditions",
                json!([{"name": "a", "expression": "true"}, {"name": "a", "expression": "true"}]),
                "webhooks[0].matchConditions[1].name: Duplicate value",
            ),
            (
                "matchConditions",
                json!(vec![json!({"name": "a", "expression": "true"}); 65]),
                "webhooks[0].matchConditions: Too many: 65: must have at most 64 items",
            ),
            (
                "objectSelector",
                json!({"matchExpressions": [{"key": "a", "operator": "Like"}]}),
                "webhooks[0].objectSelector.matchExpressions[0].operator: Invalid value",
            ),
        ];
        for (key, value, wanted) in table {
            let mut o = good();
            o["webhooks"][0][key] = value.clone();
            let words = words(&o);
            assert!(words.iter().any(|w| w.starts_with(wanted)), "{key} {value}: {words:?}");
        }
    }
}
