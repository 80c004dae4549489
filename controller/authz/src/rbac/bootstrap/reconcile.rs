//! What an existing default role or binding lacks.
//!
//! Users may add to defaults, and what they added stays. What a default must have comes back, unless the object says
//! `autoupdate: "false"`.

use super::AUTOUPDATE;
use crate::rbac::cover::uncovered;
use crate::rbac::rule::Rule;
use serde_json::{Map, Value, json};

/// What to write.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// The existing object with what it lacked; its resourceVersion is kept, so that a write in between is a conflict.
    Update(Value),
    /// Its roleRef is another one, and a roleRef cannot be changed: delete the existing object (with its uid as
    /// precondition), then create this one. No subject that somebody put there is carried over to another role.
    Recreate(Value),
}

/// What makes the existing object at least the expected one; `None` when there is nothing to do.
///
/// Both are of the same resource and name.
pub fn reconcile(expected: &Value, existing: &Value) -> Option<Change> {
    let annotation = existing.pointer("/metadata/annotations").and_then(|all| all.get(AUTOUPDATE));
    if annotation.and_then(Value::as_str) == Some("false") {
        return None;
    }
    if role_ref(expected) != role_ref(existing) {
        return Some(Change::Recreate(expected.clone()));
    }
    let mut new = existing.clone();
    let object = new.as_object_mut()?;
    for field in ["annotations", "labels"] {
        merge_metadata(object, field, expected);
    }
    if role_ref(expected).is_some() {
        add_subjects(object, expected);
    } else {
        add_rules(object, expected, existing);
        add_selectors(object, expected);
    }
    (new != *existing).then_some(Change::Update(new))
}

fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Group, kind and name, with the default of the group.
fn role_ref(binding: &Value) -> Option<(&str, &str, &str)> {
    let role = binding.get("roleRef")?;
    let text = |field: &str| role.get(field).and_then(Value::as_str).unwrap_or_default();
    let group = Some(text("apiGroup")).filter(|group| !group.is_empty()).unwrap_or(crate::rbac::GROUP);
    Some((group, text("kind"), text("name")))
}

/// Expected entries that are missing; those with another value stay as they are.
fn merge_metadata(object: &mut Map<String, Value>, field: &str, expected: &Value) {
    let Some(wanted) = expected.pointer(&format!("/metadata/{field}")).and_then(Value::as_object) else { return };
    let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let found = meta.entry(field).or_insert(Value::Null);
    if !found.is_object() {
        *found = json!({});
    }
    let Some(found) = found.as_object_mut() else { return };
    for (key, value) in wanted {
        found.entry(key).or_insert_with(|| value.clone());
    }
}

fn append(object: &mut Map<String, Value>, field: &str, items: Vec<Value>) {
    if items.is_empty() {
        return;
    }
    match object.entry(field).or_insert(Value::Null) {
        Value::Array(found) => found.extend(items),
        other => *other = items.into(),
    }
}

fn add_rules(object: &mut Map<String, Value>, expected: &Value, existing: &Value) {
    let held = Rule::parse_all(existing);
    let missing = uncovered(&held.iter().collect::<Vec<_>>(), list(expected, "/rules"));
    append(object, "rules", missing.iter().map(Rule::to_value).collect());
}

/// A role that is expected to be no aggregated one must not gather what anybody labels.
fn add_selectors(object: &mut Map<String, Value>, expected: &Value) {
    let Some(wanted) = expected.get("aggregationRule").filter(|rule| rule.is_object()) else {
        object.shift_remove("aggregationRule");
        return;
    };
    match object.get_mut("aggregationRule").and_then(Value::as_object_mut) {
        None => drop(object.insert("aggregationRule".into(), wanted.clone())),
        Some(found) => {
            let known = found.get("clusterRoleSelectors").cloned().unwrap_or_default();
            let known = known.as_array().map(Vec::as_slice).unwrap_or_default();
            let missing = list(wanted, "/clusterRoleSelectors").iter().filter(|selector| !known.contains(selector));
            append(found, "clusterRoleSelectors", missing.cloned().collect());
        }
    }
}

fn add_subjects(object: &mut Map<String, Value>, expected: &Value) {
    let known = object.get("subjects").cloned().unwrap_or_default();
    let known: Vec<_> = known.as_array().into_iter().flatten().map(subject).collect();
    let missing = list(expected, "/subjects").iter().filter(|wanted| !known.contains(&subject(wanted)));
    append(object, "subjects", missing.cloned().collect());
}

/// The fields of a subject, with the default of its group.
fn subject(value: &Value) -> [&str; 4] {
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
    let kind = text("kind");
    let group = match text("apiGroup") {
        "" if matches!(kind, "User" | "Group") => crate::rbac::GROUP,
        group => group,
    };
    [group, kind, text("namespace"), text("name")]
}
