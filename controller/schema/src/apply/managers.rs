//! `metadata.managedFields`: reading it into sets by manager, and writing it back.

use super::set::Set;
use super::{Conflict, FieldManager};
use serde_json::{Map, Value, json};

/// Older `Update` entries than these are put together under one name.
const MAX_UPDATE_MANAGERS: usize = 10;
const ANCIENT: &str = "ancient-changes";

/// Who owns what.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub manager: String,
    /// `Apply`, else `Update`.
    pub applies: bool,
    pub api_version: String,
    pub subresource: String,
    pub time: String,
    pub set: Set,
}

impl Entry {
    pub fn new(manager: &FieldManager<'_>, applies: bool, set: Set) -> Self {
        Self {
            manager: manager.name.to_owned(),
            applies,
            api_version: manager.api_version.to_owned(),
            subresource: manager.subresource.to_owned(),
            time: manager.now.to_owned(),
            set,
        }
    }

    /// The entry this manager writes. Appliers have one for all versions.
    pub fn belongs_to(&self, manager: &FieldManager<'_>, applies: bool) -> bool {
        self.applies == applies
            && self.manager == manager.name
            && self.subresource == manager.subresource
            && (applies || self.api_version == manager.api_version)
    }

    /// The fields of this entry that another one wants to change.
    pub fn conflicts(&self, fields: &Set) -> impl Iterator<Item = Conflict> + use<> {
        let mut manager = Value::from(self.manager.as_str()).to_string();
        if !self.subresource.is_empty() {
            manager.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if !self.applies {
            manager.push_str(&format!(" using {}", self.api_version));
        }
        fields.paths().into_iter().map(move |field| Conflict { manager: manager.clone(), field })
    }
}

/// The entries of an object; `None` when it has no `managedFields` at all.
pub(super) fn read(object: &Value) -> Option<Vec<Entry>> {
    let list = object.get("metadata")?.get("managedFields")?.as_array()?;
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let entries = list.iter().filter(|e| e.as_object().is_some_and(|e| !e.is_empty())).map(|entry| Entry {
        manager: text(entry, "manager"),
        applies: entry["operation"] == "Apply",
        api_version: text(entry, "apiVersion"),
        subresource: text(entry, "subresource"),
        time: text(entry, "time"),
        set: Set::from_fields_v1(&entry["fieldsV1"]),
    });
    Some(entries.collect())
}

/// Writes the entries into an object, in Kubernetes' order: appliers first, then by time and name.
pub(super) fn write(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|e| !e.set.is_empty());
    fold_ancient(&mut entries);
    entries.sort_by(|a, b| {
        let key = |e: &Entry| (!e.applies, e.time.clone(), e.manager.clone(), e.api_version.clone());
        key(a).cmp(&key(b)).then_with(|| a.subresource.cmp(&b.subresource))
    });
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    if entries.is_empty() {
        metadata.shift_remove("managedFields");
    } else {
        let list = entries.iter().map(entry_json).collect();
        metadata.insert("managedFields".to_owned(), Value::Array(list));
    }
}

fn entry_json(entry: &Entry) -> Value {
    let mut map = Map::new();
    map.insert("apiVersion".to_owned(), entry.api_version.as_str().into());
    map.insert("fieldsType".to_owned(), "FieldsV1".into());
    map.insert("fieldsV1".to_owned(), entry.set.to_fields_v1());
    map.insert("manager".to_owned(), entry.manager.as_str().into());
    map.insert("operation".to_owned(), json!(if entry.applies { "Apply" } else { "Update" }));
    if !entry.subresource.is_empty() {
        map.insert("subresource".to_owned(), entry.subresource.as_str().into());
    }
    if !entry.time.is_empty() {
        map.insert("time".to_owned(), entry.time.as_str().into());
    }
    Value::Object(map)
}

/// Keeps the list short when very many managers update one object.
fn fold_ancient(entries: &mut Vec<Entry>) {
    let updates = entries.iter().filter(|e| !e.applies && e.subresource.is_empty()).count();
    if updates <= MAX_UPDATE_MANAGERS {
        return;
    }
    let foldable = |e: &Entry| !e.applies && e.subresource.is_empty();
    entries.sort_by(|a, b| (!foldable(a), &a.time).cmp(&(!foldable(b), &b.time)));
    let mut oldest = entries.drain(..=updates - MAX_UPDATE_MANAGERS);
    let Some(mut ancient) = oldest.next() else { return };
    for entry in oldest {
        ancient.time = entry.time;
        ancient.api_version = entry.api_version;
        ancient.set.union(entry.set);
    }
    ancient.manager = ANCIENT.to_owned();
    entries.push(ancient);
}
