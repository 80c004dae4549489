//! Strategic merge patch: a merge patch that knows which lists merge by which key, with its directives `$patch`,
//! `$retainKeys`, `$setElementOrder/…` and `$deleteFromPrimitiveList/…`.

use super::{PatchError, remove_nulls};
use crate::model::{Node, PatchMarks, Schema};
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";

type Result<T> = std::result::Result<T, PatchError>;

/// Applies a strategic merge patch.
pub fn strategic(doc: &Value, patch: &Value, schema: &Schema) -> Result<Value> {
    let Value::Object(changes) = patch else {
        return Err(PatchError::Malformed("a strategic merge patch must be a JSON object".to_owned()));
    };
    let object = doc.as_object().cloned().unwrap_or_default();
    merge_map(object, changes, Some(schema)).map(Value::Object)
}

/// A field's marks, and the schema of its value.
fn lookup<'a>(schema: Option<&'a Schema>, key: &str) -> (PatchMarks, Option<&'a Schema>) {
    match schema.map(|s| &s.node) {
        Some(Node::Object(fields)) => match fields.get(key) {
            Some(field) => (field.patch.clone(), Some(field.schema.get())),
            None => (PatchMarks::default(), None),
        },
        Some(Node::Map(value)) => (PatchMarks::default(), Some(value.get())),
        _ => (PatchMarks::default(), None),
    }
}

fn item_schema(schema: Option<&Schema>) -> Option<&Schema> {
    schema.and_then(Schema::list).map(|list| list.item.get())
}

fn merge_map(
    mut original: Map<String, Value>,
    patch: &Map<String, Value>,
    schema: Option<&Schema>,
) -> Result<Map<String, Value>> {
    match patch.get(PATCH).map(|v| v.as_str().unwrap_or_default()) {
        Some("replace") => return Ok(without_directives(patch)),
        Some("delete") => return Ok(Map::new()),
        Some("merge") | None => {}
        Some(other) => return Err(PatchError::Malformed(format!("unknown patch type found: {other:?}"))),
    }
    retain_keys(&mut original, patch)?;
    remove_nulls(&mut original, patch);
    for (key, order) in patch {
        if let Some(field) = key.strip_prefix(SET_ORDER) {
            ordered_list(&mut original, patch, field, order, schema)?;
        }
    }
    for (key, change) in patch {
        if let Some(field) = key.strip_prefix(DELETE_FROM_LIST) {
            delete_from_list(&mut original, field, change)?;
        } else if !is_directive(key) && !change.is_null() && !patch.contains_key(&format!("{SET_ORDER}{key}")) {
            merge_field(&mut original, key, change, schema)?;
        }
    }
    Ok(original)
}

fn is_directive(key: &str) -> bool {
    key == PATCH || key == RETAIN_KEYS || key.starts_with(SET_ORDER) || key.starts_with(DELETE_FROM_LIST)
}

fn merge_field(original: &mut Map<String, Value>, key: &str, change: &Value, schema: Option<&Schema>) -> Result<()> {
    let (marks, inner) = lookup(schema, key);
    let merged = match (original.get_mut(key), change) {
        (Some(Value::Object(live)), Value::Object(changes)) if !marks.replace => {
            Value::Object(merge_map(std::mem::take(live), changes, inner)?)
        }
        (Some(Value::Array(live)), Value::Array(changes)) if marks.merge => {
            Value::Array(merge_list(std::mem::take(live), changes, &marks, inner)?)
        }
        _ => match added(change) {
            Some(value) => value,
            None => return Ok(()),
        },
    };
    original.insert(key.to_owned(), merged);
    Ok(())
}

/// `$setElementOrder/field`: merges the list of that name and puts its items into the given order.
fn ordered_list(
    original: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    field: &str,
    order: &Value,
    schema: Option<&Schema>,
) -> Result<()> {
    let Value::Array(order) = order else {
        return Err(PatchError::Malformed(format!("{SET_ORDER}{field} must be a list")));
    };
    let (marks, inner) = lookup(schema, field);
    let live = original.get(field).and_then(Value::as_array).cloned();
    let merged = match (live.clone(), patch.get(field)) {
        (None, None) | (_, Some(Value::Null)) => return Ok(()),
        (Some(live), None) => live,
        (Some(live), Some(Value::Array(changes))) if marks.merge => merge_list(live, changes, &marks, inner)?,
        (_, Some(change)) => match added(change) {
            Some(Value::Array(list)) => list,
            _ => return Err(PatchError::Malformed(format!("field {field:?} has an order but is no list"))),
        },
    };
    let key = marks.merge_key.as_deref();
    let live = live.unwrap_or_default();
    let sorted = sort_items(merged, order, &live, key)?;
    original.insert(field.to_owned(), Value::Array(sorted));
    Ok(())
}

fn delete_from_list(original: &mut Map<String, Value>, field: &str, gone: &Value) -> Result<()> {
    let Value::Array(gone) = gone else {
        return Err(PatchError::Malformed(format!("{DELETE_FROM_LIST}{field} must be a list")));
    };
    if let Some(Value::Array(list)) = original.get_mut(field) {
        let gone: HashSet<&Value> = gone.iter().collect();
        list.retain(|item| !gone.contains(item));
    }
    Ok(())
}

/// `$retainKeys`: what it does not name is cleared (a union changes its member).
fn retain_keys(original: &mut Map<String, Value>, patch: &Map<String, Value>) -> Result<()> {
    let Some(retain) = patch.get(RETAIN_KEYS) else {
        return Ok(());
    };
    let Value::Array(retain) = retain else {
        return Err(PatchError::Malformed(format!("{RETAIN_KEYS} must be a list")));
    };
    let retain: HashSet<&str> = retain.iter().filter_map(Value::as_str).collect();
    let named = |key: &str| retain.contains(key);
    let stray = patch.iter().find(|(k, v)| !is_directive(k) && !v.is_null() && !named(k));
    if let Some((key, _)) = stray {
        let text = format!("the {RETAIN_KEYS} list must contain all fields of the patch, but lacks {key:?}");
        return Err(PatchError::Malformed(text));
    }
    original.retain(|key, _| named(key));
    Ok(())
}

/// Merges two lists: of objects by their merge key, of scalars as sets.
fn merge_list(
    original: Vec<Value>,
    patch: &[Value],
    marks: &PatchMarks,
    schema: Option<&Schema>,
) -> Result<Vec<Value>> {
    if !patch.iter().chain(&original).any(Value::is_object) {
        let mut seen = HashSet::with_capacity(original.len() + patch.len());
        let merged = original.iter().chain(patch).filter(|item| seen.insert(*item)).cloned().collect();
        return sort_items(merged, patch, &original, None);
    }
    let Some(key) = marks.merge_key.as_deref() else {
        return Err(PatchError::Malformed("cannot merge lists of objects without a merge key".to_owned()));
    };
    if patch.iter().any(|item| directive(item) == Some("replace")) {
        let kept = patch.iter().filter(|item| directive(item).is_none());
        return Ok(kept.filter_map(added).collect());
    }
    let live_order = original.clone();
    let mut merged = Keyed::new(original, key);
    let mut order = Vec::with_capacity(patch.len());
    for item in patch {
        let Value::Object(changes) = item else {
            return Err(PatchError::Malformed("a list mixes objects with other values".to_owned()));
        };
        let Some(id) = changes.get(key) else {
            return Err(PatchError::Malformed(format!("map: {item} does not contain declared merge key: {key}")));
        };
        match directive(item) {
            Some("delete") => merged.delete(id),
            Some("merge") | None => {
                order.push(item.clone());
                match merged.find(id) {
                    Some(Value::Object(live)) => *live = merge_map(std::mem::take(live), changes, item_schema(schema))?,
                    _ => added(item).into_iter().for_each(|item| merged.push(item)),
                }
            }
            Some(other) => return Err(PatchError::Malformed(format!("unknown patch type found: {other:?}"))),
        }
    }
    sort_items(merged.into_items(), &order, &live_order, Some(key))
}

/// A list of objects, found by their merge key. (Looking through the list for each entry of a patch would take minutes
/// for a patch of a megabyte.)
struct Keyed<'a> {
    key: &'a str,
    /// Deleted items leave a gap, so that the places of the others stay.
    items: Vec<Option<Value>>,
    /// Where the items of each identity are, in their order.
    places: HashMap<Value, Vec<usize>>,
}

impl<'a> Keyed<'a> {
    fn new(items: Vec<Value>, key: &'a str) -> Self {
        let room = items.len();
        let empty = Self { key, items: Vec::with_capacity(room), places: HashMap::with_capacity(room) };
        items.into_iter().fold(empty, |mut list, item| {
            list.push(item);
            list
        })
    }

    fn push(&mut self, item: Value) {
        if let Some(id) = item.get(self.key) {
            self.places.entry(id.clone()).or_default().push(self.items.len());
        }
        self.items.push(Some(item));
    }

    /// The first item of an identity. Merging an item with a change of the same identity does not change that.
    fn find(&mut self, id: &Value) -> Option<&mut Value> {
        let place = *self.places.get(id)?.first()?;
        self.items.get_mut(place)?.as_mut()
    }

    fn delete(&mut self, id: &Value) {
        for place in self.places.remove(id).unwrap_or_default() {
            self.items[place] = None;
        }
    }

    fn into_items(self) -> Vec<Value> {
        self.items.into_iter().flatten().collect()
    }
}

fn directive(item: &Value) -> Option<&str> {
    item.get(PATCH)?.as_str()
}

/// Items that `order` names go in its order; the others stay in the order of the live list, between those they were
/// between. (An item that is new to the live list comes before the ones that only the server has.)
fn sort_items(items: Vec<Value>, order: &[Value], live: &[Value], key: Option<&str>) -> Result<Vec<Value>> {
    let id = |item: &Value| -> Result<String> {
        let id = match key {
            Some(key) => item.get(key),
            None => Some(item),
        };
        let missing =
            || PatchError::Malformed(format!("{item} does not contain declared merge key: {}", key.unwrap_or("")));
        id.map(Value::to_string).ok_or_else(missing)
    };
    let index = |list: &[Value]| -> Result<HashMap<String, usize>> {
        list.iter().enumerate().map(|(i, item)| Ok((id(item)?, i))).collect()
    };
    let (wanted, served) = (index(order)?, index(live)?);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for item in items {
        let id = id(&item)?;
        match wanted.get(&id) {
            Some(at) => ours.push((*at, served.get(&id).copied(), item)),
            None => theirs.push((served.get(&id).copied().unwrap_or(usize::MAX), item)),
        }
    }
    ours.sort_by_key(|(at, ..)| *at);
    theirs.sort_by_key(|(at, _)| *at);
    let mut sorted = Vec::with_capacity(ours.len() + theirs.len());
    let mut ours = ours.into_iter().peekable();
    for (position, item) in theirs {
        while let Some((_, _, earlier)) = ours.next_if(|(_, live, _)| live.is_none_or(|at| at <= position)) {
            sorted.push(earlier);
        }
        sorted.push(item);
    }
    sorted.extend(ours.map(|(_, _, item)| item));
    Ok(sorted)
}

/// A patch's value where the live object has none: without directives and without nulls; `None` when it only deletes.
fn added(change: &Value) -> Option<Value> {
    match change {
        Value::Object(map) if map.get(PATCH).is_some_and(|d| d == "delete") => None,
        Value::Object(map) => Some(Value::Object(without_directives(map))),
        Value::Array(items) => Some(Value::Array(items.iter().filter_map(added).collect())),
        other => Some(other.clone()),
    }
}

fn without_directives(map: &Map<String, Value>) -> Map<String, Value> {
    let kept = map.iter().filter(|(key, value)| !is_directive(key) && !value.is_null());
    kept.filter_map(|(key, value)| Some((key.clone(), added(value)?))).collect()
}

#[cfg(test)]
mod tests;
