//! The frame every object has: its kind, its name, and the fields that belong to the server. Pure.

use super::{Call, has_finalizers, text};
use crate::status::{ApiError, ApiResult};
use rand::Rng;
use serde_json::{Map, Value};

/// Letters of generated names: no vowels, nothing that reads as another sign.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A random suffix for generated names.
pub fn name_suffix() -> String {
    let mut rng = rand::rng();
    (0..5).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

/// The metadata of an object; made when there is none.
pub(super) fn metadata(object: &mut Value) -> ApiResult<&mut Map<String, Value>> {
    let map = object.as_object_mut().ok_or_else(|| ApiError::bad_request("the object must be a JSON object"))?;
    let entry = map.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if entry.is_null() {
        *entry = Value::Object(Map::new());
    }
    entry.as_object_mut().ok_or_else(|| ApiError::bad_request("metadata must be a JSON object"))
}

/// `apiVersion` and `kind` must be those of the path; they are filled in where they are missing.
pub(super) fn check_kind(call: &Call, object: &mut Value) -> ApiResult<()> {
    let served = &call.served;
    let (version, kind) = (text(object, "/apiVersion"), text(object, "/kind"));
    if !version.is_empty() && version != served.api_version {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({})",
            served.api_version
        )));
    }
    if !kind.is_empty() && kind != served.resource.kind {
        return Err(ApiError::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {}: converting ({kind}) to ({}): unknown conversion",
            served.resource.version, served.resource.kind, served.resource.kind
        )));
    }
    let map = object.as_object_mut().ok_or_else(|| ApiError::bad_request("the object must be a JSON object"))?;
    let mut ordered = Map::new();
    ordered.insert("apiVersion".to_owned(), served.api_version.as_str().into());
    ordered.insert("kind".to_owned(), served.resource.kind.as_str().into());
    let meta = map.remove("metadata").filter(|m| !m.is_null()).unwrap_or_else(|| Value::Object(Map::new()));
    ordered.insert("metadata".to_owned(), meta);
    map.remove("apiVersion");
    map.remove("kind");
    ordered.append(map);
    *map = ordered;
    Ok(())
}

/// Identity and life-cycle fields belong to the server.
pub(super) fn keep_system_fields(
    resource: &causeway_registry::Resource,
    old: &Value,
    new: &mut Value,
) -> ApiResult<()> {
    let name = text(old, "/metadata/name").to_owned();
    let (given, actual) = (text(new, "/metadata/uid").to_owned(), text(old, "/metadata/uid").to_owned());
    if !given.is_empty() && given != actual {
        let why = format!("Precondition failed: UID in precondition: {given}, UID in object meta: {actual}");
        return Err(ApiError::conflict_because(resource, &name, &why));
    }
    let old_meta = old.get("metadata").and_then(Value::as_object);
    let meta = metadata(new)?;
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
    ] {
        match old_meta.and_then(|m| m.get(field)) {
            Some(value) => meta.insert(field.to_owned(), value.clone()),
            None => meta.remove(field),
        };
    }
    meta.remove("selfLink");
    if let Some(version) = old_meta.and_then(|m| m.get("resourceVersion")) {
        meta.insert("resourceVersion".to_owned(), version.clone());
    }
    if !meta.contains_key("managedFields")
        && let Some(fields) = old_meta.and_then(|m| m.get("managedFields"))
    {
        meta.insert("managedFields".to_owned(), fields.clone());
    }
    Ok(())
}

/// Nothing changed but the times of managed fields.
pub(super) fn is_same(old: &Value, new: &Value) -> bool {
    let strip = |object: &Value| {
        let mut object = object.clone();
        for entry in object.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(entry) = entry.as_object_mut() {
                entry.remove("time");
            }
        }
        object
    };
    // The cheap part first: most updates change something outside the metadata.
    let (Some(a), Some(b)) = (old.as_object(), new.as_object()) else { return old == new };
    let rest_differs = a.len() != b.len() || a.iter().any(|(k, v)| k != "metadata" && b.get(k) != Some(v));
    !rest_differs && strip(old) == strip(new)
}

/// Whether an object that is being deleted has nothing to wait for any more.
pub(super) fn deletes_now(object: &Value) -> bool {
    let deleting = object.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null());
    if !deleting || has_finalizers(object) {
        return false;
    }
    if object["kind"] == "Namespace" && object["apiVersion"] == "v1" {
        return object.pointer("/spec/finalizers").and_then(Value::as_array).is_none_or(Vec::is_empty);
    }
    object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0) == 0
}
