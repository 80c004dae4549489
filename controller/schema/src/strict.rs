//! Strict reading: duplicate and unknown fields, and values of the wrong JSON type, worded as the API server does.
//!
//! In: a body or an object with its schema. Out: the texts that become warnings or a `BadRequest`, by `fieldValidation`.

mod read;

pub use read::{parse_json, read};

use crate::model::{Node, Schema};
use base64::Engine as _;
use serde_json::{Map, Value};
use std::fmt::Write as _;

/// More findings than these are not listed.
const MAX_FINDINGS: usize = 100;

/// Fields the schema does not know: `unknown field "spec.containers[0].imagee"`.
pub fn unknown_fields(object: &Value, schema: &Schema) -> Vec<String> {
    let mut found = Vec::new();
    walk_unknown(object, schema, &mut Path::default(), &mut found);
    found
}

/// Removes the fields the schema does not know.
pub fn drop_unknown(object: &mut Value, schema: &Schema) {
    match (object, &schema.node) {
        (Value::Object(map), Node::Object(fields)) => {
            map.retain(|key, value| match fields.get(key) {
                Some(field) => {
                    drop_unknown(value, field.schema.get());
                    true
                }
                None => schema.preserve_unknown,
            });
        }
        (Value::Object(map), Node::Map(inner)) => map.values_mut().for_each(|v| drop_unknown(v, inner.get())),
        (Value::Array(items), Node::List(list)) => items.iter_mut().for_each(|v| drop_unknown(v, list.item.get())),
        _ => {}
    }
}

/// Writes zero values for nulls in maps and lists, as Go's decoder does: `annotations: {note: null}` is an empty string.
/// Clients with types (kube-rs, the Python client) cannot read a null there. A null field means that it is not set, and stays.
pub fn zero_nulls(object: &mut Value, schema: &Schema) {
    zero_nulls_in(object, schema, true);
}

/// The same for items of lists only: in a configuration for server-side apply, a null in a map says nothing.
pub fn zero_null_items(object: &mut Value, schema: &Schema) {
    zero_nulls_in(object, schema, false);
}

fn zero_nulls_in(object: &mut Value, schema: &Schema, maps: bool) {
    let fill = |value: &mut Value, schema: &Schema, zeroed: bool| {
        if zeroed && value.is_null() {
            *value = zero(&schema.node);
        }
        zero_nulls_in(value, schema, maps);
    };
    match (object, &schema.node) {
        (Value::Object(map), Node::Object(fields)) => {
            for (key, value) in map {
                if let Some(field) = fields.get(key) {
                    zero_nulls_in(value, field.schema.get(), maps);
                }
            }
        }
        (Value::Object(map), Node::Map(inner)) => map.values_mut().for_each(|v| fill(v, inner.get(), maps)),
        (Value::Array(items), Node::List(list)) => items.iter_mut().for_each(|v| fill(v, list.item.get(), true)),
        _ => {}
    }
}

fn zero(node: &Node) -> Value {
    match node {
        // Go's zero time is a null in JSON.
        Node::Any | Node::Time { .. } => Value::Null,
        Node::String | Node::Bytes => "".into(),
        Node::Quantity => "0".into(),
        Node::IntOrString | Node::Integer { .. } | Node::Number => 0.into(),
        Node::Boolean => false.into(),
        Node::Object(_) | Node::Map(_) => Map::new().into(),
        Node::List(_) => Vec::<Value>::new().into(),
    }
}

/// Values of the wrong JSON type, as (path, text of Go's JSON decoder). The decoder of Go stops at the first one, so
/// callers usually show the first.
pub fn type_errors(object: &Value, schema: &Schema) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut place = Place { path: Path::default(), stack: Vec::new(), owner: "" };
    walk_types(object, schema, &mut place, &mut found);
    found
}

/// Longer paths are shown cut, in bytes: a long key above many fields is in all of their paths.
const MAX_SHOWN: usize = 4096;

/// A path that grows and shrinks while a tree is walked.
#[derive(Default)]
struct Path(String);

impl Path {
    fn enter(&mut self, key: &str) -> usize {
        let length = self.0.len();
        if length > 0 {
            self.0.push('.');
        }
        self.0.push_str(key);
        length
    }

    fn enter_index(&mut self, index: usize) -> usize {
        let length = self.0.len();
        let _ = write!(self.0, "[{index}]");
        length
    }

    fn shown(&self) -> String {
        match self.0.get(..self.0.floor_char_boundary(MAX_SHOWN)) {
            Some(start) if start.len() < self.0.len() => format!("{start}..."),
            _ => self.0.clone(),
        }
    }

    fn leave(&mut self, length: usize) {
        self.0.truncate(length);
    }
}

fn walk_unknown(value: &Value, schema: &Schema, path: &mut Path, found: &mut Vec<String>) {
    match (value, &schema.node) {
        (Value::Object(map), Node::Object(fields)) => {
            for (key, inner) in map {
                let length = path.enter(key);
                match fields.get(key) {
                    Some(field) => walk_unknown(inner, field.schema.get(), path, found),
                    None if schema.preserve_unknown || found.len() >= MAX_FINDINGS => {}
                    None => found.push(format!("unknown field \"{}\"", path.shown())),
                }
                path.leave(length);
            }
        }
        (Value::Object(map), Node::Map(inner)) => {
            for (key, value) in map {
                let length = path.enter(key);
                walk_unknown(value, inner.get(), path, found);
                path.leave(length);
            }
        }
        (Value::Array(items), Node::List(list)) => {
            for (index, item) in items.iter().enumerate() {
                let length = path.enter_index(index);
                walk_unknown(item, list.item.get(), path, found);
                path.leave(length);
            }
        }
        _ => {}
    }
}

/// Where Go's decoder is: our path with indices, its path without them, and the struct it is filling.
struct Place<'a> {
    path: Path,
    stack: Vec<&'a str>,
    owner: &'a str,
}

fn walk_types<'a>(value: &'a Value, schema: &'a Schema, place: &mut Place<'a>, found: &mut Vec<(String, String)>) {
    if found.len() >= MAX_FINDINGS {
        return;
    }
    if let Some(problem) = type_error(value, schema, place) {
        found.push((place.path.shown(), problem));
        return;
    }
    match (value, &schema.node) {
        (Value::Object(map), Node::Object(_) | Node::Map(_)) => {
            let owner = place.owner;
            if matches!(schema.node, Node::Object(_)) {
                place.owner = short_name(&schema.name);
            }
            for (key, inner) in map {
                if let Some(child) = schema.child(key) {
                    let length = place.path.enter(key);
                    place.stack.push(key);
                    walk_types(inner, child, place, found);
                    place.stack.pop();
                    place.path.leave(length);
                }
            }
            place.owner = owner;
        }
        (Value::Array(items), Node::List(list)) => {
            for (index, item) in items.iter().enumerate() {
                let length = place.path.enter_index(index);
                walk_types(item, list.item.get(), place, found);
                place.path.leave(length);
            }
        }
        _ => {}
    }
}

fn type_error(value: &Value, schema: &Schema, place: &Place<'_>) -> Option<String> {
    let json_type = match value {
        Value::Null => return None,
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let fits = match (&schema.node, value) {
        (Node::Any, _)
        | (Node::String, Value::String(_))
        | (Node::Number, Value::Number(_))
        | (Node::Boolean, Value::Bool(_))
        | (Node::IntOrString, Value::String(_))
        | (Node::Object(_) | Node::Map(_), Value::Object(_))
        | (Node::List(_), Value::Array(_)) => true,
        (Node::Quantity, Value::Number(_)) => true,
        (Node::Quantity, Value::String(s)) => {
            return (!is_quantity(s)).then(|| {
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'".to_owned()
            });
        }
        (Node::Bytes, Value::String(s)) => return base64_error(s),
        (Node::Time { .. }, Value::String(s)) => return time_error(s),
        (Node::Integer { bits: 32 } | Node::IntOrString, Value::Number(n)) => {
            if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) {
                return None;
            }
            return Some(unmarshal(&format!("number {n}"), schema, place));
        }
        (Node::Integer { .. }, Value::Number(n)) => {
            return n.as_i64().is_none().then(|| unmarshal(&format!("number {n}"), schema, place));
        }
        _ => false,
    };
    (!fits).then(|| unmarshal(json_type, schema, place))
}

fn unmarshal(what: &str, schema: &Schema, place: &Place<'_>) -> String {
    let kind = go_type(schema);
    if place.stack.is_empty() {
        return format!("json: cannot unmarshal {what} into Go value of type {kind}");
    }
    let stack = Path(place.stack.join(".")).shown();
    format!("json: cannot unmarshal {what} into Go struct field {}.{stack} of type {kind}", place.owner)
}

fn go_type(schema: &Schema) -> String {
    match &schema.node {
        Node::Any => "interface {}".to_owned(),
        Node::String | Node::Time { .. } | Node::Quantity => "string".to_owned(),
        Node::Bytes => "[]uint8".to_owned(),
        Node::IntOrString => "intstr.IntOrString".to_owned(),
        Node::Integer { bits } => format!("int{bits}"),
        Node::Number => "float64".to_owned(),
        Node::Boolean => "bool".to_owned(),
        Node::Object(_) => {
            let mut parts = schema.name.rsplit('.');
            let (name, package) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            format!("{package}.{name}")
        }
        Node::Map(value) => format!("map[string]{}", go_type(value.get())),
        Node::List(list) => format!("[]{}", go_type(list.item.get())),
    }
}

fn short_name(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or_default()
}

/// A number with an optional SI, binary or exponent suffix.
pub(crate) fn is_quantity(text: &str) -> bool {
    let body = text.strip_prefix(['+', '-']).unwrap_or(text);
    let digits = body.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(body.len());
    let (number, suffix) = body.split_at(digits);
    let number_ok = number.bytes().any(|b| b.is_ascii_digit()) && number.matches('.').count() <= 1;
    let exponent = || suffix.strip_prefix(['e', 'E']).is_some_and(|e| e.parse::<i32>().is_ok());
    let suffixes =
        ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].contains(&suffix);
    number_ok && (suffixes || exponent())
}

fn base64_error(text: &str) -> Option<String> {
    // Go's decoder skips line breaks.
    let clean: Vec<u8> = text.bytes().filter(|b| !matches!(b, b'\r' | b'\n')).collect();
    let error = base64::engine::general_purpose::STANDARD.decode(clean).err()?;
    let at = match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
        base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => text.len() / 4 * 4,
    };
    Some(format!("illegal base64 data at input byte {at}"))
}

fn time_error(text: &str) -> Option<String> {
    let shape = text.len() >= 20 && text.as_bytes()[10] == b'T';
    (!shape || text.parse::<jiff::Timestamp>().is_err()).then(|| {
        format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as an RFC 3339 time")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin;
    use serde_json::json;

    #[test]
    fn duplicates_are_reported_with_their_path() {
        let body = br#"{"spec":{"x":1,"x":2,"list":[{"a":1},{"b":1,"b":2}]},"spec2":null}"#;
        let (value, duplicates) = parse_json(body).unwrap();
        assert_eq!(value["spec"]["x"], 2);
        assert_eq!(duplicates, ["duplicate field \"spec.x\"", "duplicate field \"spec.list[1].b\""]);
        assert!(parse_json(b"{\"a\":1} x").is_err());
        assert!(parse_json(b"{\"a\":").is_err());
    }

    #[test]
    fn long_keys_are_cut_where_they_are_shown() {
        let pod = builtin("", "v1", "Pod").unwrap();
        let long = "é".repeat(100_000);
        let fields: Map<String, Value> = (0..1000).map(|i| (format!("f{i}"), 1.into())).collect();
        let object = json!({"spec": {"nodeSelector": {&long: fields}, &long: 1}, &long: 1});
        let told = |texts: Vec<String>| texts.iter().map(String::len).sum::<usize>();
        let unknown = unknown_fields(&object, &pod);
        assert!(unknown.len() == 2 && told(unknown) < 10_000);
        let wrong = type_errors(&object, &pod);
        assert!(wrong.len() == 1 && told(wrong.into_iter().map(|(path, text)| path + &text).collect()) < 20_000);
        let twice = format!("{{\"{long}\":{{{}}}}}", vec!["\"a\":1"; 1000].join(","));
        let (_, duplicates) = parse_json(twice.as_bytes()).unwrap();
        assert!(duplicates.len() == MAX_FINDINGS && told(duplicates) < 500_000);
    }

    #[test]
    fn unknown_fields_are_worded_as_upstream() {
        let pod = builtin("", "v1", "Pod").unwrap();
        let mut object = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "labels": {"any": "thing"}, "naem": 1,
                "managedFields": [{"fieldsV1": {"f:spec": {}}}], "creationTimestamp": null},
            "spec": {"foo": 1, "containers": [{"name": "a", "imagee": "b", "livenessProbe": {"httpGet": {"port": 1}}}],
                "volumes": [{"name": "v", "emptyDir": {}}, {"name": "v", "volumeSource": {}}]},
        });
        let found = unknown_fields(&object, &pod);
        let expected = ["metadata.naem", "spec.foo", "spec.containers[0].imagee", "spec.volumes[1].volumeSource"];
        assert_eq!(found, expected.map(|p| format!("unknown field \"{p}\"")));
        drop_unknown(&mut object, &pod);
        assert!(unknown_fields(&object, &pod).is_empty());
        assert_eq!(object["spec"]["containers"][0], json!({"name": "a", "livenessProbe": {"httpGet": {"port": 1}}}));
    }

    #[test]
    fn nulls_in_maps_and_lists_are_zero_as_in_go() {
        let pod = builtin("", "v1", "Pod").unwrap();
        let mut object = json!({
            "metadata": {"name": "x", "creationTimestamp": null, "annotations": {"note": null, "kept": "yes"},
                "finalizers": [null]},
            "spec": {"nodeSelector": {"disktype": null}, "hostname": null, "containers": [
                {"name": "a", "command": ["x", null], "resources": {"limits": {"cpu": null}}, "env": [null]}]},
        });
        zero_nulls(&mut object, &pod);
        let expected = json!({
            "metadata": {"name": "x", "creationTimestamp": null, "annotations": {"note": "", "kept": "yes"},
                "finalizers": [""]},
            "spec": {"nodeSelector": {"disktype": ""}, "hostname": null, "containers": [
                {"name": "a", "command": ["x", ""], "resources": {"limits": {"cpu": "0"}}, "env": [{}]}]},
        });
        assert_eq!(object, expected);
        let mut applied =
            json!({"metadata": {"annotations": {"note": null}}, "spec": {"containers": [{"args": ["-x", null]}]}});
        zero_null_items(&mut applied, &pod);
        let expected =
            json!({"metadata": {"annotations": {"note": null}}, "spec": {"containers": [{"args": ["-x", ""]}]}});
        assert_eq!(applied, expected);
        let definition = builtin("apiextensions.k8s.io", "v1", "CustomResourceDefinition").unwrap();
        let mut object =
            json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": {"default": null, "enum": [null]}}}]}});
        let before = object.clone();
        zero_nulls(&mut object, &definition);
        assert_eq!(object, before, "where anything may be, null is a value");
    }

    #[test]
    fn wrong_types_are_worded_as_go_does() {
        let deployment = builtin("apps", "v1", "Deployment").unwrap();
        let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": 5}, "spec": {
            "replicas": "three", "template": {"spec": {"containers": {}, "hostname": null,
                "terminationGracePeriodSeconds": 1.5}}, "strategy": {"rollingUpdate": {"maxSurge": "25%"}}}});
        let found: Vec<_> = type_errors(&object, &deployment).into_iter().map(|(_, text)| text).collect();
        assert_eq!(
            found,
            [
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.name of type string",
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
                "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
                "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.template.spec.terminationGracePeriodSeconds of type int64",
            ]
        );
        let secret = builtin("", "v1", "Secret").unwrap();
        let object = json!({"data": {"ok": "YQ==", "bad": "%%"}});
        assert_eq!(type_errors(&object, &secret), [("data.bad".into(), "illegal base64 data at input byte 0".into())]);
    }

    #[test]
    fn quantities() {
        for good in ["1", "100m", "1.5Gi", "-2", "1e3", "1E3", "12E", ".5", "0"] {
            assert!(is_quantity(good), "{good}");
        }
        for bad in ["", "x", "1 Gi", "1gb", "1.2.3", "Mi", "1ee3"] {
            assert!(!is_quantity(bad), "{bad}");
        }
    }
}
