//! Table cells that several kinds share. In: objects. Out: what `kubectl get` prints.

use crate::json::{at, entries, int, list, text};
use serde_json::{Value, json};

/// The object's name.
pub(crate) fn name(object: &Value) -> Value {
    json!(text(object, "metadata.name"))
}

/// The string at a path, or `<none>`.
pub(crate) fn or_none(object: &Value, path: &str) -> Value {
    or(object, path, "<none>")
}

/// The string at a path, or another word.
pub(crate) fn or(object: &Value, path: &str, other: &str) -> Value {
    match text(object, path) {
        "" => json!(other),
        s => json!(s),
    }
}

/// The integer at a path, or 0.
pub(crate) fn number(object: &Value, path: &str) -> Value {
    json!(int(object, path).unwrap_or(0))
}

/// `k=v,k2=v2` sorted by key, or `<none>`.
pub(crate) fn labels(map: &Value) -> String {
    let mut pairs: Vec<_> = entries(map, "").map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or(""))).collect();
    pairs.sort();
    if pairs.is_empty() { "<none>".to_owned() } else { pairs.join(",") }
}

/// A LabelSelector object in the string form, or `<none>`.
pub(crate) fn selector(selector: &Value) -> String {
    let mut terms: Vec<(String, String)> = entries(selector, "matchLabels")
        .map(|(k, v)| (k.clone(), format!("{k}={}", v.as_str().unwrap_or(""))))
        .collect();
    for e in list(selector, "matchExpressions") {
        let key = text(e, "key");
        let mut values: Vec<&str> = list(e, "values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let term = match text(e, "operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => "<error>".to_owned(),
        };
        terms.push((key.to_owned(), term));
    }
    terms.sort();
    let terms: Vec<String> = terms.into_iter().map(|(_, t)| t).collect();
    if terms.is_empty() { "<none>".to_owned() } else { terms.join(",") }
}

/// At most `max` items joined by commas, then how many are left out.
pub(crate) fn some(items: &[String], max: usize, none: &str) -> String {
    match items.len() {
        0 => none.to_owned(),
        n if n > max => format!("{} + {} more...", items[..max].join(","), n - max),
        _ => items.join(","),
    }
}

/// The names of a pod template's containers.
pub(crate) fn container_names(pod_spec: &Value) -> Value {
    joined(list(pod_spec, "containers"), "name")
}

/// The images of a pod template's containers.
pub(crate) fn container_images(pod_spec: &Value) -> Value {
    joined(list(pod_spec, "containers"), "image")
}

/// One string field of every item, joined by commas.
pub(crate) fn joined(items: &[Value], field: &str) -> Value {
    json!(items.iter().map(|i| text(i, field)).collect::<Vec<_>>().join(","))
}

/// Whether a condition of a type is `True`.
pub(crate) fn condition_true(object: &Value, type_: &str) -> bool {
    list(object, "status.conditions").iter().any(|c| text(c, "type") == type_ && text(c, "status") == "True")
}

/// `True`, `False`, … of a condition; empty when the object has none of this type.
pub(crate) fn condition<'a>(object: &'a Value, type_: &str) -> &'a str {
    list(object, "status.conditions").iter().find(|c| text(c, "type") == type_).map_or("", |c| text(c, "status"))
}

/// Volume access modes in their short form.
pub(crate) fn access_modes(modes: &Value) -> String {
    let short =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let has = |mode: &str| list(modes, "").iter().any(|m| m.as_str() == Some(mode));
    short.iter().filter(|(long, _)| has(long)).map(|(_, s)| *s).collect::<Vec<_>>().join(",")
}

/// The words of a value at a path, whatever its type; used where an int or a string may stand.
pub(crate) fn int_or_string(object: &Value, path: &str, none: &str) -> Value {
    match at(object, path) {
        Value::Null => json!(none),
        Value::String(s) => json!(s),
        other => json!(other.to_string()),
    }
}
