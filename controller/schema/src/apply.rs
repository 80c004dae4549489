//! Server-side apply: who owns which field, and how an applied configuration merges into the live object (KEP-555).
//!
//! In: the live object with its `metadata.managedFields`, what a manager applies, the schema's list and map types.
//! Out: the merged object with its new `managedFields`, or the conflicts. Defaulting, validation and the fields that
//! the server itself sets come after [`apply`] and need no [`track`].

mod managers;
mod set;
mod typed;

use crate::model::Schema;
use managers::Entry;
use serde_json::{Value, json};
use set::Set;
use thiserror::Error;
use typed::Purpose;

/// Fields nobody owns: who an object is, and what the server sets.
const UNOWNED: &[&[&str]] = &[
    &["f:apiVersion"],
    &["f:kind"],
    &["f:metadata", "f:name"],
    &["f:metadata", "f:namespace"],
    &["f:metadata", "f:creationTimestamp"],
    &["f:metadata", "f:selfLink"],
    &["f:metadata", "f:uid"],
    &["f:metadata", "f:generation"],
    &["f:metadata", "f:managedFields"],
    &["f:metadata", "f:resourceVersion"],
];

/// Who writes, how and when.
#[derive(Debug, Clone, Copy)]
pub struct FieldManager<'a> {
    /// The manager's name (`fieldManager`, or derived from the user agent).
    pub name: &'a str,
    /// The version of the object being written, for example `apps/v1`.
    pub api_version: &'a str,
    /// `status`, `scale`, …; empty for the main resource.
    pub subresource: &'a str,
    /// RFC 3339.
    pub now: &'a str,
    /// Takes over fields others own.
    pub force: bool,
}

/// One field that somebody else owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The other manager, as Kubernetes prints it: `"kubectl-client-side-apply" using apps/v1`.
    pub manager: String,
    /// The field: `.spec.replicas`.
    pub field: String,
}

/// Why an apply was refused.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum ApplyError {
    /// Somebody else owns fields with other values (HTTP 409). The text is that of the `Status`; each conflict is a
    /// cause of type `FieldManagerConflict` with message `conflict with {manager}` and its field.
    #[error("{}", conflict_text(.0))]
    Conflicts(Vec<Conflict>),
    /// The applied configuration makes no sense, for example a list with two items of one key (HTTP 400).
    #[error("{0}")]
    Malformed(String),
}

/// Applies a configuration. Without a live object it creates one. The result has its `managedFields` up to date, and is
/// equal to the live object when nothing changed.
///
/// `status` counts only with the subresource `status`, and is all that counts then; custom resources without a status
/// subresource keep theirs.
pub fn apply(
    live: Option<&Value>,
    applied: &Value,
    schema: &Schema,
    manager: &FieldManager<'_>,
) -> Result<Value, ApplyError> {
    let config = prepare(applied, schema, manager)?;
    let mut set = typed::paths(&config, Some(schema), Purpose::Applied);
    forget_unowned(&mut set);
    let Some(live) = live else {
        let mut object = config;
        managers::write(&mut object, vec![Entry::new(manager, true, set)]);
        return Ok(object);
    };
    let mut entries = match managers::read(live) {
        Some(entries) if !entries.is_empty() => entries,
        _ => before_first_apply(live, schema, manager),
    };
    let mut merged = typed::merge(live, &config, Some(schema));
    let last = entries.iter().position(|e| e.belongs_to(manager, true)).map(|at| entries.remove(at));
    if let Some(last) = &last {
        let mut owned = set.clone();
        entries.iter().for_each(|e| owned.union(e.set.clone()));
        typed::remove(&mut merged, Some(schema), &last.set, Some(&owned));
    }
    settle(live, &merged, schema, manager, &mut entries)?;
    let mut entry = Entry::new(manager, true, set);
    if let Some(last) = last.filter(|last| last.set == entry.set && last.api_version == entry.api_version) {
        entry.time = last.time;
    }
    entries.push(entry);
    managers::write(&mut merged, entries);
    Ok(merged)
}

/// Keeps `managedFields` true when a manager that does not apply creates, updates or patches: what `new` changed
/// against `old` becomes the manager's. Call it after defaulting and validation, just before the object is stored.
///
/// `managedFields` in `new` are honoured as Kubernetes does: absent means those of `old`, an empty list resets them.
pub fn track(old: Option<&Value>, new: &mut Value, schema: &Schema, manager: &FieldManager<'_>) {
    let mut entries = managers::read(new).or_else(|| old.and_then(managers::read)).unwrap_or_default();
    let nothing = json!({});
    let mut changes = typed::compare(old.unwrap_or(&nothing), new, Some(schema));
    forget_unowned(&mut changes.set);
    forget_unowned(&mut changes.removed);
    let mine = entries.iter().position(|e| e.belongs_to(manager, false)).map(|at| entries.remove(at));
    for entry in &mut entries {
        entry.set.subtract(&changes.set);
        entry.set.subtract(&changes.removed);
    }
    let mut entry = Entry::new(manager, false, Set::default());
    let (before, time) = mine.map_or_else(Default::default, |mine| (mine.set, mine.time));
    entry.set = before.clone();
    entry.set.subtract(&changes.removed);
    entry.set.union(changes.set);
    if entry.set == before && !time.is_empty() {
        entry.time = time;
    }
    entries.push(entry);
    managers::write(new, entries);
}

/// The configuration without nulls and without what this endpoint ignores.
fn prepare(applied: &Value, schema: &Schema, manager: &FieldManager<'_>) -> Result<Value, ApplyError> {
    let mut config = applied.clone();
    let Some(object) = config.as_object_mut() else {
        return Err(ApplyError::Malformed("the applied configuration must be an object".to_owned()));
    };
    let meta = object.get("metadata");
    if meta.and_then(|m| m.get("managedFields")).and_then(Value::as_array).is_some_and(|l| !l.is_empty()) {
        return Err(ApplyError::Malformed("metadata.managedFields must be nil".to_owned()));
    }
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.shift_remove("managedFields");
    }
    if manager.subresource == "status" {
        object.retain(|key, _| ["apiVersion", "kind", "metadata", "status"].contains(&key.as_str()));
        if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.retain(|key, _| ["name", "namespace", "uid", "resourceVersion"].contains(&key.as_str()));
        }
    } else if schema.name.starts_with("io.k8s.") {
        object.shift_remove("status");
    }
    typed::check(&mut config, Some(schema), "")
        .map_err(|e| ApplyError::Malformed(format!("failed to create typed patch object: {e}")))?;
    Ok(config)
}

/// An object that nobody tracked: all it has belongs to a manager of that name.
fn before_first_apply(live: &Value, schema: &Schema, manager: &FieldManager<'_>) -> Vec<Entry> {
    let mut set = typed::paths(live, Some(schema), Purpose::Changed);
    forget_unowned(&mut set);
    let first = FieldManager { name: "before-first-apply", subresource: "", ..*manager };
    vec![Entry::new(&first, false, set)]
}

/// Takes from the other managers what this change takes from them, or says that it may not.
fn settle(
    live: &Value,
    merged: &Value,
    schema: &Schema,
    manager: &FieldManager<'_>,
    entries: &mut [Entry],
) -> Result<(), ApplyError> {
    let mut changes = typed::compare(live, merged, Some(schema));
    forget_unowned(&mut changes.set);
    let mut conflicts = Vec::new();
    for entry in entries.iter_mut() {
        let taken = entry.set.intersection(&changes.set);
        conflicts.extend(entry.conflicts(&taken));
        entry.set.subtract(&taken);
        entry.set.subtract(&changes.removed);
    }
    if conflicts.is_empty() || manager.force { Ok(()) } else { Err(ApplyError::Conflicts(conflicts)) }
}

fn forget_unowned(set: &mut Set) {
    set.member = false;
    UNOWNED.iter().for_each(|path| set.forget(path));
    if let Some(metadata) = set.children.get_mut("f:metadata") {
        metadata.member = false;
        if metadata.is_empty() {
            set.children.remove("f:metadata");
        }
    }
}

fn conflict_text(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", only.manager, only.field);
    }
    let mut managers: Vec<&str> = conflicts.iter().map(|c| c.manager.as_str()).collect();
    managers.sort_unstable();
    managers.dedup();
    let mut lines = Vec::new();
    for manager in managers {
        lines.push(format!("conflicts with {manager}:"));
        lines.extend(conflicts.iter().filter(|c| c.manager == manager).map(|c| format!("- {}", c.field)));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

#[cfg(test)]
mod tests;
