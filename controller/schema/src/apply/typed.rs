//! Objects seen through their schema: which paths they have, how two of them differ, merge, and lose fields.

use super::set::Set;
use crate::model::{ListKind, Node, Schema};
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

/// Why a set is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// What an applied configuration mentions.
    Applied,
    /// What appeared or vanished between two versions of an object: containers themselves count too.
    Changed,
}

/// What changed between two objects.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// New fields and new values.
    pub set: Set,
    pub removed: Set,
}

/// How a value takes part in merging.
enum Shape<'a> {
    /// As a whole.
    Leaf,
    Map(&'a Map<String, Value>),
    /// By item identity.
    List(&'a [Value]),
}

fn shape<'a>(value: &'a Value, schema: Option<&Schema>) -> Shape<'a> {
    match value {
        Value::Object(map) if !schema.is_some_and(|s| s.atomic) => Shape::Map(map),
        Value::Array(items) => match schema.and_then(Schema::list) {
            Some(list) if list.kind != ListKind::Atomic => Shape::List(items),
            _ => Shape::Leaf,
        },
        _ => Shape::Leaf,
    }
}

fn is_absent(value: &Value, schema: Option<&Schema>) -> bool {
    value.is_null() && !schema.is_some_and(|s| s.nullable)
}

fn child<'a>(schema: Option<&'a Schema>, key: &str) -> Option<&'a Schema> {
    schema.and_then(|s| s.child(key))
}

fn item_schema(schema: Option<&Schema>) -> Option<&Schema> {
    schema.and_then(Schema::list).map(|list| list.item.get())
}

/// A key of a map (not a declared field of a struct).
fn is_entry(schema: Option<&Schema>, key: &str) -> bool {
    schema.and_then(|s| s.field(key)).is_none()
}

/// The wire name of a list item: `k:{"name":"x"}` or `v:"x"`; an item without its keys goes by position when that is
/// allowed, else the error says what is missing.
fn identity(item: &Value, schema: Option<&Schema>) -> Result<String, String> {
    let list = schema.and_then(Schema::list);
    let Some(ListKind::Map(keys)) = list.map(|l| &l.kind) else {
        return Ok(format!("v:{item}"));
    };
    let item_schema = item_schema(schema);
    let mut parts = Vec::with_capacity(keys.len());
    for key in keys {
        let default = || child(item_schema, key).and_then(|s| s.default.as_ref());
        match item.get(key).filter(|v| !v.is_null()).or_else(default) {
            Some(value) => parts.push((key, value)),
            None if keys.len() > 1 => {}
            None => return Err(format!("associative list with keys has an element that omits key field {key:?}")),
        }
    }
    if parts.is_empty() {
        return Err(format!("associative list has an element without any of the keys {keys:?}"));
    }
    parts.sort_by_key(|(key, _)| *key);
    let parts: Vec<_> = parts.iter().map(|(key, value)| format!("{}:{value}", Value::from(key.as_str()))).collect();
    Ok(format!("k:{{{}}}", parts.join(",")))
}

fn identity_or_index(index: usize, item: &Value, schema: Option<&Schema>) -> String {
    identity(item, schema).unwrap_or_else(|_| format!("i:{index}"))
}

/// The paths a value has.
pub(super) fn paths(value: &Value, schema: Option<&Schema>, purpose: Purpose) -> Set {
    let mut set = Set::default();
    match shape(value, schema) {
        Shape::Leaf => set.member = true,
        Shape::Map(map) => {
            let free = !matches!(schema.map(|s| &s.node), Some(Node::Object(_)));
            set.member = map.is_empty() || free && purpose == Purpose::Changed;
            for (key, value) in map {
                let inner = child(schema, key);
                if is_absent(value, inner) {
                    continue;
                }
                let mut sub = paths(value, inner, purpose);
                sub.member |= is_entry(schema, key);
                set.insert(format!("f:{key}"), sub);
            }
        }
        Shape::List(items) => {
            set.member = items.is_empty() || purpose == Purpose::Changed;
            for (index, item) in items.iter().enumerate() {
                let mut sub = paths(item, item_schema(schema), purpose);
                sub.member = true;
                set.insert(identity_or_index(index, item, schema), sub);
            }
        }
    }
    set
}

/// What changed from `old` to `new`. Linear in the size of both.
pub(super) fn compare(old: &Value, new: &Value, schema: Option<&Schema>) -> Changes {
    let mut changes = Changes::default();
    match (shape(old, schema), shape(new, schema)) {
        (Shape::Map(old), Shape::Map(new)) => {
            for (key, value) in new {
                let inner = child(schema, key);
                let before = old.get(key).filter(|v| !is_absent(v, inner));
                step(&mut changes, format!("f:{key}"), before, Some(value), inner);
            }
            for (key, value) in old.iter().filter(|(key, _)| !new.contains_key(*key)) {
                step(&mut changes, format!("f:{key}"), Some(value), None, child(schema, key));
            }
        }
        (Shape::List(old), Shape::List(new)) => {
            let index = |items| index_items(items, schema);
            let (before, inner) = (index(old), item_schema(schema));
            let mut kept = HashSet::new();
            for (i, item) in new.iter().enumerate() {
                let id = identity_or_index(i, item, schema);
                kept.insert(id.clone());
                step(&mut changes, id.clone(), before.get(&id).copied(), Some(item), inner);
            }
            for (id, item) in before.into_iter().filter(|(id, _)| !kept.contains(id)) {
                step(&mut changes, id, Some(item), None, inner);
            }
        }
        (Shape::Leaf, Shape::Leaf) => changes.set.member = old != new,
        _ => {
            changes.set = paths(new, schema, Purpose::Changed);
            changes.removed = paths(old, schema, Purpose::Changed);
        }
    }
    changes
}

/// Compares one field or item of two objects.
fn step(changes: &mut Changes, element: String, old: Option<&Value>, new: Option<&Value>, schema: Option<&Schema>) {
    let present = |value: Option<&'_ Value>| value.is_some_and(|v| !is_absent(v, schema));
    let whole = |value: &Value| {
        let mut set = paths(value, schema, Purpose::Changed);
        // A struct with fields is not a member of its own; list items and map entries are.
        set.member |= !matches!(schema.map(|s| &s.node), Some(Node::Object(_))) || element.starts_with("k:");
        set
    };
    match (old.filter(|_| present(old)), new.filter(|_| present(new))) {
        (Some(old), Some(new)) => {
            let below = compare(old, new, schema);
            changes.set.insert(element.clone(), below.set);
            changes.removed.insert(element, below.removed);
        }
        (None, Some(new)) => changes.set.insert(element.clone(), whole(new)),
        (Some(old), None) => {
            let mut gone = whole(old);
            gone.member = true;
            changes.removed.insert(element, gone);
        }
        (None, None) => {}
    }
}

/// Items by identity; of several with one identity the first counts.
fn index_items<'a>(items: &'a [Value], schema: Option<&Schema>) -> HashMap<String, &'a Value> {
    let mut index = HashMap::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        index.entry(identity_or_index(i, item, schema)).or_insert(item);
    }
    index
}

/// The live value with the applied one laid over it.
pub(super) fn merge(live: &Value, applied: &Value, schema: Option<&Schema>) -> Value {
    match (shape(live, schema), shape(applied, schema)) {
        (Shape::Map(live), Shape::Map(applied)) => {
            let mut merged = live.clone();
            for (key, value) in applied {
                let inner = child(schema, key);
                let value = match live.get(key) {
                    Some(before) => merge(before, value, inner),
                    None => value.clone(),
                };
                merged.insert(key.clone(), value);
            }
            Value::Object(merged)
        }
        (Shape::List(live), Shape::List(applied)) => Value::Array(merge_lists(live, applied, schema)),
        _ => applied.clone(),
    }
}

/// Items only the live list has keep their place in front of what follows them; the others take the applied order.
fn merge_lists(live: &[Value], applied: &[Value], schema: Option<&Schema>) -> Vec<Value> {
    let (before, inner) = (index_items(live, schema), item_schema(schema));
    let wanted = index_items(applied, schema);
    let mut merged = Vec::with_capacity(live.len() + applied.len());
    let mut done = HashSet::new();
    let mut rest = live.iter().enumerate().peekable();
    for (index, item) in applied.iter().enumerate() {
        while let Some((i, next)) = rest.peek() {
            let id = identity_or_index(*i, next, schema);
            if !wanted.contains_key(&id) {
                merged.push((*next).clone());
            } else if !done.contains(&id) {
                break;
            }
            rest.next();
        }
        let id = identity_or_index(index, item, schema);
        merged.push(before.get(&id).map_or_else(|| item.clone(), |live| merge(live, item, inner)));
        done.insert(id);
    }
    for (i, item) in rest {
        if !wanted.contains_key(&identity_or_index(i, item, schema)) {
            merged.push(item.clone());
        }
    }
    merged
}

/// Takes away what `gone` names and nobody owns any more; containers that become empty go with it.
pub(super) fn remove(value: &mut Value, schema: Option<&Schema>, gone: &Set, owned: Option<&Set>) {
    let by_items = matches!(shape(value, schema), Shape::List(_));
    match value {
        Value::Object(map) if !schema.is_some_and(|s| s.atomic) => {
            let mut vanished = HashSet::new();
            for (element, sub) in &gone.children {
                let Some(key) = element.strip_prefix("f:") else { continue };
                let owned = owned.and_then(|o| o.children.get(element));
                if let Some(value) = map.get_mut(key)
                    && vanishes(value, child(schema, key), sub, owned)
                {
                    vanished.insert(key);
                }
            }
            // In one go: each removal for itself moves all that comes after it.
            if !vanished.is_empty() {
                map.retain(|key, _| !vanished.contains(key.as_str()));
            }
        }
        Value::Array(items) if by_items => {
            let mut index = 0;
            items.retain_mut(|item| {
                let element = identity_or_index(index, item, schema);
                index += 1;
                let sub = gone.children.get(&element);
                let owned = owned.and_then(|o| o.children.get(&element));
                !sub.is_some_and(|sub| vanishes(item, item_schema(schema), sub, owned))
            });
        }
        _ => {}
    }
}

fn vanishes(value: &mut Value, schema: Option<&Schema>, gone: &Set, owned: Option<&Set>) -> bool {
    let unowned = owned.is_none_or(Set::is_empty);
    if gone.member && unowned {
        return true;
    }
    let is_empty = |value: &Value| match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    if gone.children.is_empty() || is_empty(value) {
        return false;
    }
    remove(value, schema, gone, owned);
    is_empty(value) && !owned.is_some_and(|o| o.member)
}

/// Checks that list items can be told apart, and drops nulls, which say nothing in an applied configuration.
pub(super) fn check(value: &mut Value, schema: Option<&Schema>, path: &str) -> Result<(), String> {
    let by_items = matches!(shape(value, schema), Shape::List(_));
    match value {
        Value::Object(map) => {
            map.retain(|key, value| !is_absent(value, child(schema, key)));
            for (key, value) in map {
                check(value, child(schema, key), &format!("{path}.{key}"))?;
            }
        }
        Value::Array(items) => {
            let mut seen = HashSet::new();
            for item in items {
                check(item, item_schema(schema), path)?;
                if by_items {
                    let id = identity(item, schema).map_err(|e| format!("{path}: {e}"))?;
                    let duplicate = Set { member: true, ..Set::default() };
                    if !seen.insert(id.clone()) {
                        let mut set = Set::default();
                        set.insert(id, duplicate);
                        return Err(format!("{path}: duplicate entries for key {}", set.paths().join("")));
                    }
                }
            }
        }
        _ => {}
    }
    Ok(())
}
