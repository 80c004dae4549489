//! flowcontrol.apiserver.k8s.io/v1 FlowSchema: which requests belong to which priority level, and who shares a queue.

use super::priority_level_configuration::{GROUP, conditions, equals_fixed};
use crate::field::{self, FieldErrors, Path};
use crate::json::{at, existing, fill_zero, has, int, list, object_mut, text, truth};
use crate::rules::{Kind, Rules, Status};
use crate::{Resource, age, cell};
use serde_json::{Value, json};

const HIGHEST_PRECEDENCE: i64 = 10_000;
const DEFAULT_PRECEDENCE: i64 = 1000;
const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

pub(super) fn resource() -> Resource {
    Kind::new(GROUP, "v1", "FlowSchema", "flowschemas")
        .cluster()
        .columns(&[
            ("Name", "string", 0),
            ("PriorityLevel", "string", 0),
            ("MatchingPrecedence", "string", 0),
            ("DistinguisherMethod", "string", 0),
            ("Age", "string", 0),
            ("MissingPL", "string", 0),
        ])
        .rules(Rules {
            default: |o| {
                if let Some(spec) = object_mut(o, "spec") {
                    fill_zero(spec, "matchingPrecedence", DEFAULT_PRECEDENCE);
                }
            },
            status: Status::Cleared(|_| json!({})),
            generation: true,
            validate,
            validate_status: |new, _, errors| conditions(new, errors),
            cells,
            ..Rules::default()
        })
}

fn validate(o: &Value, errors: &mut FieldErrors) {
    let (name, spec) = (text(o, "metadata.name"), Path::new("spec"));
    precedence(name, int(o, "spec.matchingPrecedence").unwrap_or(0), &spec.child("matchingPrecedence"), errors);
    let method = at(o, "spec.distinguisherMethod");
    if method.is_object() && !matches!(text(method, "type"), "ByNamespace" | "ByUser") {
        let path = spec.child("distinguisherMethod").child("type");
        errors.not_supported(&path, method.clone(), &["ByNamespace", "ByUser"]);
    }
    let (level, path) =
        (text(o, "spec.priorityLevelConfiguration.name"), spec.child("priorityLevelConfiguration").child("name"));
    if level.is_empty() {
        errors.required(&path, "must reference a priority level");
    } else if let Err(why) = field::dns_subdomain(level) {
        errors.invalid(&path, level, why);
    }
    for (i, rule) in list(o, "spec.rules").iter().enumerate() {
        policy_rule(rule, &spec.child("rules").index(i), errors);
    }
    if let Some(fixed) = fixed(name) {
        equals_fixed(o, name, &fixed, errors);
    }
}

/// The spec of the two schemas nobody may change.
fn fixed(name: &str) -> Option<Value> {
    let (precedence, groups, method): (i64, &[&str], Value) = match name {
        "exempt" => (1, &["system:masters"], Value::Null),
        "catch-all" => {
            (HIGHEST_PRECEDENCE, &["system:unauthenticated", "system:authenticated"], json!({"type": "ByUser"}))
        }
        _ => return None,
    };
    let subjects: Vec<_> = groups.iter().map(|g| json!({"kind": "Group", "group": {"name": g}})).collect();
    Some(json!({
        "priorityLevelConfiguration": {"name": name},
        "matchingPrecedence": precedence,
        "distinguisherMethod": method,
        "rules": [{
            "subjects": subjects,
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true,
                "namespaces": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        }],
    }))
}

fn precedence(name: &str, value: i64, path: &Path, errors: &mut FieldErrors) {
    if value <= 0 {
        errors.invalid(path, value, "must be a positive value");
    }
    if value > HIGHEST_PRECEDENCE {
        errors.invalid(path, value, format!("must not be greater than {HIGHEST_PRECEDENCE}"));
    }
    if value == 1 && name != "exempt" {
        errors.invalid(path, value, "only the schema named 'exempt' may have matchingPrecedence 1");
    }
}

fn policy_rule(rule: &Value, path: &Path, errors: &mut FieldErrors) {
    let subjects = list(rule, "subjects");
    if subjects.is_empty() {
        errors.required(&path.child("subjects"), "subjects must contain at least one value");
    }
    for (i, s) in subjects.iter().enumerate() {
        subject(s, &path.child("subjects").index(i), errors);
    }
    let (resource, other) = (list(rule, "resourceRules"), list(rule, "nonResourceRules"));
    if resource.is_empty() && other.is_empty() {
        errors.required(path, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    for (i, r) in resource.iter().enumerate() {
        resource_rule(r, &path.child("resourceRules").index(i), errors);
    }
    for (i, r) in other.iter().enumerate() {
        non_resource_rule(r, &path.child("nonResourceRules").index(i), errors);
    }
}

/// The three kinds of a subject with the field each of them fills, in the order upstream checks them.
const SUBJECTS: [(&str, &str); 3] = [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];

fn subject(s: &Value, path: &Path, errors: &mut FieldErrors) {
    let kind = text(s, "kind");
    let Some((_, own)) = SUBJECTS.iter().find(|(k, _)| *k == kind) else {
        return errors.not_supported(&path.child("kind"), kind, &["Group", "ServiceAccount", "User"]);
    };
    let at_own = path.child(own);
    if !existing(s, own) {
        errors.required(&at_own, format!("{own} is required when subject kind is '{kind}'"));
    } else if kind == "ServiceAccount" {
        service_account(at(s, own), &at_own, errors);
    } else if text(at(s, own), "name").is_empty() {
        errors.required(&at_own.child("name"), "");
    }
    for (other_kind, other) in SUBJECTS.iter().filter(|(k, field)| *k != kind && has(s, field)) {
        let detail = format!("{other} is forbidden when subject kind is not '{other_kind}'");
        errors.forbidden(&path.child(other), detail);
    }
}

fn service_account(account: &Value, path: &Path, errors: &mut FieldErrors) {
    match text(account, "name") {
        "" => errors.required(&path.child("name"), ""),
        "*" => {}
        name => {
            if let Err(why) = field::dns_subdomain(name) {
                errors.invalid(&path.child("name"), name, why);
            }
        }
    }
    match text(account, "namespace") {
        "" => errors.required(&path.child("namespace"), "must specify namespace for service account"),
        namespace => {
            if let Err(why) = field::dns_label(namespace) {
                errors.invalid(&path.child("namespace"), namespace, why);
            }
        }
    }
}

fn wild(all: &[Value]) -> bool {
    all.iter().any(|v| v.as_str() == Some("*"))
}

/// `*` stands alone; `what` names the others in the error.
fn lone_wildcard(all: &[Value], path: &Path, what: &str, errors: &mut FieldErrors) {
    if all.len() > 1 && wild(all) {
        errors.invalid(path, all.to_vec(), format!("if '*' is present, must not specify other {what}"));
    }
}

fn verbs(rule: &Value, path: &Path, errors: &mut FieldErrors) {
    let (verbs, path) = (list(rule, "verbs"), path.child("verbs"));
    let known = |v: &Value| v.as_str().is_some_and(|v| VERBS.contains(&v));
    if verbs.is_empty() {
        errors.required(&path, "verbs must contain at least one value");
    } else if wild(verbs) {
        lone_wildcard(verbs, &path, "verbs", errors);
    } else if !verbs.iter().all(known) {
        errors.not_supported(&path, verbs.to_vec(), VERBS);
    }
}

fn resource_rule(rule: &Value, path: &Path, errors: &mut FieldErrors) {
    verbs(rule, path, errors);
    for (key, one, many) in [("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")] {
        let all = list(rule, key);
        if all.is_empty() {
            errors.required(&path.child(key), format!("resource rules must supply at least one {one}"));
        }
        lone_wildcard(all, &path.child(key), many, errors);
    }
    let (namespaces, path) = (list(rule, "namespaces"), path.child("namespaces"));
    if namespaces.is_empty() && !truth(rule, "clusterScope") {
        errors.required(&path, "resource rules that are not cluster scoped must supply at least one namespace");
    } else if wild(namespaces) {
        lone_wildcard(namespaces, &path, "namespaces", errors);
    } else {
        for (i, namespace) in namespaces.iter().enumerate() {
            if let Err(why) = field::dns_label(namespace.as_str().unwrap_or("")) {
                let detail = format!("each member of this list must be '*' or a DNS-1123 label; {why}");
                errors.invalid(&path.index(i), namespace.clone(), detail);
            }
        }
    }
}

fn non_resource_rule(rule: &Value, path: &Path, errors: &mut FieldErrors) {
    verbs(rule, path, errors);
    let (urls, path) = (list(rule, "nonResourceURLs"), path.child("nonResourceURLs"));
    if urls.is_empty() {
        errors.required(&path, "nonResourceURLs must contain at least one value");
    } else if wild(urls) {
        lone_wildcard(urls, &path, "non-resource URLs", errors);
    } else {
        for (i, url) in urls.iter().enumerate() {
            let url = url.as_str().unwrap_or("");
            if let Some(why) = bad_url(url) {
                errors.invalid(&path.index(i), url, why);
            }
        }
    }
}

fn bad_url(url: &str) -> Option<&'static str> {
    let stars = url.matches('*').count();
    match url {
        "" => Some("must not be empty"),
        "/" => None,
        _ if !url.starts_with('/') => Some("must start with slash"),
        _ if url.contains(' ') => Some("must not contain white-space"),
        _ if url.contains("//") => Some("must not contain double slash"),
        _ if stars > 1 || stars == 1 && !url.ends_with("/*") => Some("wildcard can only do suffix matching"),
        _ => None,
    }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    let method = match at(o, "spec.distinguisherMethod") {
        Value::Object(_) => text(o, "spec.distinguisherMethod.type"),
        _ => "<none>",
    };
    let dangling = list(o, "status.conditions").iter().find(|c| text(c, "type") == "Dangling");
    vec![
        cell::name(o),
        json!(text(o, "spec.priorityLevelConfiguration.name")),
        cell::number(o, "spec.matchingPrecedence"),
        json!(method),
        age::age(o, now),
        json!(dangling.map_or("?", |c| text(c, "status"))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(name: &str, spec: &Value) -> Vec<String> {
        let mut errors = FieldErrors::default();
        validate(&json!({"metadata": {"name": name}, "spec": spec}), &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    fn with(key: &str, value: Value) -> Value {
        let mut spec = json!({"matchingPrecedence": 7, "priorityLevelConfiguration": {"name": "x"}});
        spec[key] = value;
        spec
    }

    #[test]
    fn every_wrong_field_is_named_in_upstreams_words() {
        let precedence = |n: i64| with("matchingPrecedence", json!(n));
        let rules = |rule: Value| with("rules", json!([rule]));
        let everyone = json!([{"kind": "Group", "group": {"name": "*"}}]);
        let subject = |s: Value| {
            rules(json!({"subjects": [s], "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/"]}]}))
        };
        let resource = |r: Value| rules(json!({"subjects": everyone, "resourceRules": [r]}));
        let url = |u: &str| {
            rules(json!({"subjects": everyone, "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": [u]}]}))
        };
        let table: Vec<(Value, &[&str])> = vec![
            (with("rules", json!([])), &[]),
            (precedence(-1), &["spec.matchingPrecedence: Invalid value: -1: must be a positive value"]),
            (precedence(10001), &["spec.matchingPrecedence: Invalid value: 10001: must not be greater than 10000"]),
            (
                precedence(1),
                &["spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have \
                   matchingPrecedence 1"],
            ),
            (
                with("distinguisherMethod", json!({"type": "ByMoon"})),
                &["spec.distinguisherMethod.type: Unsupported value: {\"type\":\"ByMoon\"}: supported values: \
                   \"ByNamespace\", \"ByUser\""],
            ),
            (
                with("priorityLevelConfiguration", json!({})),
                &["spec.priorityLevelConfiguration.name: Required value: must reference a priority level"],
            ),
            (
                rules(json!({})),
                &[
                    "spec.rules[0].subjects: Required value: subjects must contain at least one value",
                    "spec.rules[0]: Required value: at least one of resourceRules and nonResourceRules has to be \
                     non-empty",
                ],
            ),
            (
                subject(json!({"kind": "User", "group": {"name": "g"}})),
                &[
                    "spec.rules[0].subjects[0].user: Required value: user is required when subject kind is 'User'",
                    "spec.rules[0].subjects[0].group: Forbidden: group is forbidden when subject kind is not 'Group'",
                ],
            ),
            (
                subject(json!({"kind": "Robot"})),
                &["spec.rules[0].subjects[0].kind: Unsupported value: \"Robot\": supported values: \"Group\", \
                   \"ServiceAccount\", \"User\""],
            ),
            (
                subject(json!({"kind": "ServiceAccount", "serviceAccount": {"name": "*"}})),
                &["spec.rules[0].subjects[0].serviceAccount.namespace: Required value: must specify namespace for \
                   service account"],
            ),
            (
                resource(json!({"verbs": ["*", "get"], "apiGroups": ["*", ""], "resources": ["*", "pods"],
                    "namespaces": ["*", "a"]})),
                &[
                    "spec.rules[0].resourceRules[0].verbs: Invalid value: [\"*\",\"get\"]: if '*' is present, must not \
                     specify other verbs",
                    "spec.rules[0].resourceRules[0].apiGroups: Invalid value: [\"*\",\"\"]: if '*' is present, must \
                     not specify other api groups",
                    "spec.rules[0].resourceRules[0].resources: Invalid value: [\"*\",\"pods\"]: if '*' is present, \
                     must not specify other resources",
                    "spec.rules[0].resourceRules[0].namespaces: Invalid value: [\"*\",\"a\"]: if '*' is present, must \
                     not specify other namespaces",
                ],
            ),
            (
                resource(json!({})),
                &[
                    "spec.rules[0].resourceRules[0].verbs: Required value: verbs must contain at least one value",
                    "spec.rules[0].resourceRules[0].apiGroups: Required value: resource rules must supply at least \
                     one api group",
                    "spec.rules[0].resourceRules[0].resources: Required value: resource rules must supply at least \
                     one resource",
                    "spec.rules[0].resourceRules[0].namespaces: Required value: resource rules that are not cluster \
                     scoped must supply at least one namespace",
                ],
            ),
            (url("/healthz"), &[]),
            (url("/healthz/*"), &[]),
            (
                url("healthz"),
                &["spec.rules[0].nonResourceRules[0].nonResourceURLs[0]: Invalid value: \"healthz\": must start with \
                   slash"],
            ),
            (
                url("/he*"),
                &["spec.rules[0].nonResourceRules[0].nonResourceURLs[0]: Invalid value: \"/he*\": wildcard can only \
                   do suffix matching"],
            ),
        ];
        for (spec, expected) in table {
            assert_eq!(errors("mine", &spec), expected, "{spec}");
        }
    }

    #[test]
    fn the_mandatory_schemas_stay_as_they_are() {
        for name in ["exempt", "catch-all"] {
            let mut spec = fixed(name).unwrap();
            assert_eq!(errors(name, &spec), Vec::<String>::new());
            spec["rules"][0]["subjects"][0]["group"]["name"] = json!("system:serviceaccounts");
            let all = errors(name, &spec);
            assert!(
                matches!(&all[..], [one] if one.ends_with(&format!("spec of '{name}' must equal the fixed value"))),
                "{all:?}"
            );
        }
    }

    #[test]
    fn defaults_and_columns() {
        let rules = resource();
        let mut o = json!({"metadata": {"name": "a"}, "spec": {"priorityLevelConfiguration": {"name": "x"}}});
        rules.strategy.default(&mut o);
        assert_eq!(o["spec"]["matchingPrecedence"], 1000);
        assert_eq!(rules.strategy.cells(&o, 0)[1..4], [json!("x"), json!(1000), json!("<none>")]);
        assert_eq!(rules.strategy.cells(&o, 0)[5], "?");
        o["status"] = json!({"conditions": [{"type": "Dangling", "status": "False"}]});
        assert_eq!(rules.strategy.cells(&o, 0)[5], "False");
    }
}
