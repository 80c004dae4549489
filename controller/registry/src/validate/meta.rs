//! ObjectMeta: what every object must fulfil, and what of it never changes.

use super::names;
use crate::field::{FieldErrorType, FieldErrors, Path};
use crate::json::{at, entries, has, int, list, same, text, truth};
use serde_json::{Value, json};

/// Annotations of an object together.
const ANNOTATIONS_LIMIT: usize = 256 << 10;

/// Checks `metadata` of a new object, or of a changed one against the live one. The form of the name is left to
/// [`Strategy::validate_name`](crate::Strategy::validate_name).
pub fn validate_metadata(new: &Value, old: Option<&Value>, namespaced: bool) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let path = Path::new("metadata");
    let metadata = at(new, "metadata");
    if text(metadata, "name").is_empty() {
        errors.required(&path.child("name"), "name or generateName is required");
    }
    match (namespaced, text(metadata, "namespace")) {
        (true, "") => errors.required(&path.child("namespace"), ""),
        (false, namespace) if !namespace.is_empty() => {
            errors.forbidden(&path.child("namespace"), "not allowed on this type");
        }
        (true, namespace) => {
            if let Err(why) = crate::field::dns_label(namespace) {
                errors.invalid(&path.child("namespace"), namespace, why);
            }
        }
        _ => {}
    }
    if let Some(n) = int(metadata, "generation").filter(|n| *n < 0) {
        errors.invalid(&path.child("generation"), n, "must be greater than or equal to 0");
    }
    labels(at(metadata, "labels"), &path.child("labels"), &mut errors);
    annotations(at(metadata, "annotations"), &path.child("annotations"), &mut errors);
    finalizers(metadata, &path.child("finalizers"), &mut errors);
    owners(metadata, &path.child("ownerReferences"), &mut errors);
    if let Some(old) = old {
        immutable(metadata, at(old, "metadata"), &path, &mut errors);
    }
    errors
}

/// A label map.
pub(crate) fn labels(map: &Value, path: &Path, errors: &mut FieldErrors) {
    for (key, value) in entries(map, "") {
        if let Err(why) = names::qualified_name(key) {
            errors.invalid(path, key.as_str(), why);
        }
        let value = value.as_str().unwrap_or("");
        if let Err(why) = names::label_value(value) {
            errors.invalid(path, value, why);
        }
    }
}

/// An annotation map.
pub(crate) fn annotations(map: &Value, path: &Path, errors: &mut FieldErrors) {
    let mut size = 0;
    for (key, value) in entries(map, "") {
        if let Err(why) = names::qualified_name(&key.to_lowercase()) {
            errors.invalid(path, key.as_str(), why);
        }
        size += key.len() + value.as_str().unwrap_or("").len();
    }
    if size > ANNOTATIONS_LIMIT {
        let detail = format!("may not be more than {ANNOTATIONS_LIMIT} bytes");
        errors.push(FieldErrorType::TooLong, path, None, detail);
    }
}

/// Finalizers without a domain of their own; the last is on every definition of a custom resource.
const STANDARD_FINALIZERS: [&str; 4] =
    ["orphan", "foregroundDeletion", "kubernetes", "customresourcecleanup.apiextensions.k8s.io"];

fn finalizers(metadata: &Value, path: &Path, errors: &mut FieldErrors) {
    let all: Vec<&str> = list(metadata, "finalizers").iter().filter_map(Value::as_str).collect();
    for name in &all {
        if let Err(why) = names::qualified_name(name) {
            errors.invalid(path, *name, why);
        } else if !name.contains('/') && !STANDARD_FINALIZERS.contains(name) {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errors.invalid(path, *name, detail);
        }
    }
    if all.contains(&"orphan") && all.contains(&"foregroundDeletion") {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.invalid(path, json!(all), detail);
    }
}

fn owners(metadata: &Value, path: &Path, errors: &mut FieldErrors) {
    let mut controller: Option<&str> = None;
    for (i, owner) in list(metadata, "ownerReferences").iter().enumerate() {
        let path = path.index(i);
        let needed =
            [("apiVersion", "version must not be empty"), ("kind", ""), ("name", ""), ("uid", "uid must not be empty")];
        for (key, detail) in needed {
            if text(owner, key).is_empty() {
                let detail = if detail.is_empty() { format!("{key} must not be empty") } else { detail.to_owned() };
                errors.invalid(&path.child(key), "", detail);
            }
        }
        if !truth(owner, "controller") {
            continue;
        }
        if let Some(first) = controller {
            let detail = format!(
                "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {}",
                text(owner, "name")
            );
            errors.invalid(&path, owner.clone(), detail);
        }
        controller = Some(text(owner, "name"));
    }
}

fn immutable(new: &Value, old: &Value, path: &Path, errors: &mut FieldErrors) {
    for key in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        if !same(&new[key], &old[key]) {
            errors.invalid(&path.child(key), new[key].clone(), "field is immutable");
        }
    }
    if let (Some(now), Some(before)) = (int(new, "generation"), int(old, "generation"))
        && now < before
    {
        errors.invalid(&path.child("generation"), now, "must not be decremented");
    }
    if has(old, "deletionTimestamp") {
        let before = list(old, "finalizers");
        let added: Vec<String> =
            list(new, "finalizers").iter().filter(|f| !before.contains(f)).map(|f| f.to_string()).collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            );
            errors.forbidden(&path.child("finalizers"), detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(new: Value, old: Option<Value>, namespaced: bool) -> Vec<String> {
        validate_metadata(&new, old.as_ref(), namespaced).0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn new_objects() {
        assert!(words(json!({"metadata": {"name": "a", "namespace": "b"}}), None, true).is_empty());
        assert_eq!(
            words(json!({"metadata": {"namespace": "b"}}), None, false),
            [
                "metadata.name: Required value: name or generateName is required",
                "metadata.namespace: Forbidden: not allowed on this type"
            ]
        );
        let bad = words(json!({"metadata": {"name": "a", "labels": {"-x": "ok", "y": "no!"}}}), None, false);
        assert!(bad[0].starts_with("metadata.labels: Invalid value: \"-x\": name part must consist of"), "{bad:?}");
        assert!(bad[1].starts_with("metadata.labels: Invalid value: \"no!\": a valid label must be"), "{bad:?}");
        let long = json!({"metadata": {"name": "a", "annotations": {"x": "y".repeat(ANNOTATIONS_LIMIT)}}});
        assert_eq!(words(long, None, false), ["metadata.annotations: Too long: may not be more than 262144 bytes"]);
    }

    #[test]
    fn changed_objects() {
        let old = json!({"metadata": {"name": "a", "uid": "1", "deletionTimestamp": "t", "finalizers": ["x.io/a"]}});
        let mut new = old.clone();
        new["metadata"]["uid"] = json!("2");
        new["metadata"]["finalizers"] = json!(["x.io/a", "x.io/b"]);
        assert_eq!(
            words(new, Some(old), false),
            [
                "metadata.uid: Invalid value: \"2\": field is immutable",
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found \
                 new finalizers []string{\"x.io/b\"}"
            ]
        );
    }
}
