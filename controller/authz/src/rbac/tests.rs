//! Builders of objects and questions.

mod cost;
mod decide;
mod give;
mod naive;

use super::*;
use crate::{Attributes, Decision, Subject};
use serde_json::{Value, json};

fn rule(verbs: &[&str], groups: &[&str], resources: &[&str]) -> Value {
    json!({ "verbs": verbs, "apiGroups": groups, "resources": resources })
}

fn role(namespace: &str, name: &str, rules: &[Value]) -> Value {
    json!({ "metadata": { "namespace": namespace, "name": name }, "rules": rules })
}

/// `Kind:name`, for a service account `ServiceAccount:namespace/name`.
fn subject(text: &str) -> Value {
    let (kind, name) = text.split_once(':').unwrap();
    match name.split_once('/') {
        Some((namespace, name)) if kind == "ServiceAccount" => {
            json!({ "kind": kind, "name": name, "namespace": namespace })
        }
        None if kind == "ServiceAccount" => json!({ "kind": kind, "name": name }),
        _ => json!({ "kind": kind, "name": name, "apiGroup": GROUP }),
    }
}

fn binding(namespace: &str, name: &str, role: &str, subjects: &[&str]) -> Value {
    let (kind, role) = role.split_once(':').unwrap();
    let subjects: Vec<Value> = subjects.iter().map(|text| subject(text)).collect();
    json!({
        "metadata": { "namespace": namespace, "name": name },
        "roleRef": { "apiGroup": GROUP, "kind": kind, "name": role },
        "subjects": subjects,
    })
}

fn index(objects: &[(&str, Value)]) -> Index {
    let mut index = Index::default();
    for (resource, object) in objects {
        assert!(index.upsert(resource, object), "{resource} {object}");
    }
    index
}

fn ask(index: &Index, user: &str, groups: &[&str], a: &Attributes) -> Decision {
    let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
    index.authorize(Subject { user, groups: &groups }, a)
}

fn attributes(verb: &str, namespace: &str, group: &str, resource: &str, name: &str) -> Attributes {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let [verb, namespace, group, resource, subresource, name] =
        [verb, namespace, group, resource, subresource, name].map(str::to_owned);
    Attributes { verb, namespace, group, resource, subresource, name, ..Attributes::default() }
}

fn path(verb: &str, path: &str) -> Attributes {
    Attributes { verb: verb.to_owned(), path: path.to_owned(), ..Attributes::default() }
}

fn allowed(decision: &Decision) -> bool {
    matches!(decision, Decision::Allow(_))
}
