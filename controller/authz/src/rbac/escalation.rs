//! Nobody gives away more than they hold: what is asked before a role or binding is written.
//!
//! In: who writes what over what. Out: [`Verdict`]. Members of `system:masters` are not asked at all.

use super::cover::{everything, uncovered};
use super::index::Index;
use super::rule::Rule;
use super::text::{quote, quote_list};
use crate::{Attributes, Subject};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// So many missing rules are listed.
const MAX_LISTED: usize = 200;

/// A write of a role or binding.
#[derive(Debug, Clone, Copy)]
pub struct Write<'a> {
    /// `roles`, `clusterroles`, `rolebindings` or `clusterrolebindings`.
    pub resource: &'a str,
    /// Of the request; empty for cluster-wide kinds.
    pub namespace: &'a str,
    /// Of the request; empty for a create.
    pub name: &'a str,
    /// What is to be stored.
    pub new: &'a Value,
    /// What is stored, for an update.
    pub old: Option<&'a Value>,
}

/// Whether a write may happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The writer holds all of it.
    Fine,
    /// Only if all authorisers together allow `permission` (the verb `escalate` or `bind`); otherwise `refusal`.
    Only {
        /// What to ask.
        permission: Box<Attributes>,
        /// What to answer if it is not allowed.
        refusal: Refusal,
    },
    /// In no case.
    No(Refusal),
}

/// Why a write is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// 403: goes behind `… is forbidden: `.
    Forbidden(String),
    /// 404: the role of the binding is not there; the whole message.
    NotFound(String),
}

/// Asks for one write.
pub fn check(index: &Index, writer: Subject<'_>, write: Write<'_>) -> Verdict {
    if write.old.is_some_and(|old| only_for_garbage_collection(write.new, old)) {
        return Verdict::Fine;
    }
    let (permission, refusal) = match write.resource {
        "roles" | "clusterroles" => (Some(escalate(write)), refuse_role(index, writer, write)),
        "rolebindings" | "clusterrolebindings" => (bind(write), refuse_binding(index, writer, write)),
        _ => return Verdict::Fine,
    };
    match (refusal, permission) {
        (None, _) => Verdict::Fine,
        (Some(refusal), Some(permission)) => Verdict::Only { permission: Box::new(permission), refusal },
        (Some(refusal), None) => Verdict::No(refusal),
    }
}

fn refuse_role(index: &Index, writer: Subject<'_>, write: Write<'_>) -> Option<Refusal> {
    let rules = write.new.get("rules").unwrap_or(&Value::Null);
    let unreadable = [rules.clone()];
    let rules = match rules {
        Value::Null => &[],
        Value::Array(rules) => rules.as_slice(),
        _ => &unreadable,
    };
    if let Some(refusal) = refuse_rules(index, writer, write.namespace, rules) {
        return Some(refusal);
    }
    // An aggregation can gather anything.
    let aggregates = write.resource == "clusterroles" && (aggregates(write.new) || write.old.is_some_and(aggregates));
    let all: Vec<Value> = everything().iter().map(Rule::to_value).collect();
    (aggregates && !index.uncovered(writer, write.namespace, &all).is_empty())
        .then(|| Refusal::Forbidden("must have cluster-admin privileges to use the aggregationRule".to_owned()))
}

fn refuse_binding(index: &Index, writer: Subject<'_>, write: Write<'_>) -> Option<Refusal> {
    match index.rules_of(write.new.get("roleRef").unwrap_or(&Value::Null), write.namespace) {
        Ok(rules) => refuse_rules(index, writer, write.namespace, &rules),
        Err(missing) => Some(Refusal::NotFound(missing)),
    }
}

fn refuse_rules(index: &Index, writer: Subject<'_>, namespace: &str, rules: &[Value]) -> Option<Refusal> {
    let (held, errors) = index.held(writer, namespace);
    let missing = uncovered(&held, rules);
    (!missing.is_empty()).then(|| Refusal::Forbidden(message(writer, &missing, &errors)))
}

/// The words of Kubernetes: who tries it, and the missing rules, one a line.
pub fn message(writer: Subject<'_>, missing: &[Rule], errors: &str) -> String {
    let lines: BTreeSet<String> = missing.iter().map(Rule::compact).collect();
    let mut listed: Vec<&str> = lines.iter().map(String::as_str).take(MAX_LISTED).collect();
    let more = format!("and {} more", lines.len() - listed.len());
    if listed.len() < lines.len() {
        listed.push(&more);
    }
    let groups = quote_list(writer.groups.iter().map(String::as_str));
    let mut text = format!(
        "user {} (groups={groups}) is attempting to grant RBAC permissions not currently held:\n{}",
        quote(writer.user),
        listed.join("\n")
    );
    if !errors.is_empty() {
        text += &format!("; resolution errors: [{errors}]");
    }
    text
}

fn aggregates(role: &Value) -> bool {
    let selectors = role.pointer("/aggregationRule/clusterRoleSelectors");
    selectors.is_some_and(|s| s.as_array().is_none_or(|s| !s.is_empty()) && !s.is_null())
}

fn escalate(write: Write<'_>) -> Attributes {
    Attributes {
        verb: "escalate".to_owned(),
        group: super::GROUP.to_owned(),
        resource: write.resource.to_owned(),
        namespace: write.namespace.to_owned(),
        name: write.name.to_owned(),
        ..Attributes::default()
    }
}

/// In the namespace of the binding, so that one may be allowed to bind a ClusterRole in some namespaces only.
fn bind(write: Write<'_>) -> Option<Attributes> {
    let text = |field: &str| write.new.pointer(field).and_then(Value::as_str).unwrap_or_default();
    let resource = match text("/roleRef/kind") {
        "ClusterRole" => "clusterroles",
        "Role" => "roles",
        _ => return None,
    };
    Some(Attributes {
        verb: "bind".to_owned(),
        group: Some(text("/roleRef/apiGroup")).filter(|group| !group.is_empty()).unwrap_or(super::GROUP).to_owned(),
        resource: resource.to_owned(),
        namespace: write.namespace.to_owned(),
        name: text("/roleRef/name").to_owned(),
        ..Attributes::default()
    })
}

/// Whether nothing differs but what the garbage collector writes.
fn only_for_garbage_collection(new: &Value, old: &Value) -> bool {
    let rest = |object: &Value| -> Option<Map<String, Value>> {
        let mut object = object.as_object()?.clone();
        let meta = object.get_mut("metadata").and_then(Value::as_object_mut)?;
        for field in ["ownerReferences", "finalizers", "managedFields", "selfLink"] {
            meta.shift_remove(field);
        }
        Some(object)
    };
    rest(new).is_some_and(|new| Some(new) == rest(old))
}
