//! From `openAPIV3Schema` to [`Schema`], refusing what apiextensions v1 does not call structural.

use super::Rules;
use crate::builtin;
use crate::model::{Constraints, Field, List, ListKind, Node, PatchMarks, Range, Schema, SchemaRef};
use regex::Regex;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Keywords of JSON schema that structural schemas do not have.
const FORBIDDEN: &[&str] = &[
    "$ref",
    "definitions",
    "dependencies",
    "deprecated",
    "discriminator",
    "id",
    "patternProperties",
    "readOnly",
    "writeOnly",
    "xml",
    "additionalItems",
];

/// Keywords that only the structural part may have, not the branches of `allOf`, `anyOf`, `oneOf` and `not`.
const STRUCTURE_ONLY: &[&str] = &[
    "description",
    "default",
    "additionalProperties",
    "nullable",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-int-or-string",
];

/// Checks that an `openAPIV3Schema` is structural and turns it into a schema; else (path below the schema, problem)
/// pairs. The root is a kind: it gets `apiVersion`, `kind` and `metadata`.
pub fn structural(open_api_v3_schema: &Value) -> Result<Arc<Schema>, Vec<(String, String)>> {
    let mut reader = Reader { problems: Vec::new() };
    let mut root = reader.structure(open_api_v3_schema, "");
    if open_api_v3_schema["type"] != "object" {
        reader.problem("type", "must be object at the root");
    }
    complete_resource(&mut root);
    match Rules::compile(open_api_v3_schema) {
        Ok(Some(rules)) => root.constraints.get_or_insert_default().rules = Some(Arc::new(rules)),
        Ok(None) => {}
        Err(problems) => problems.iter().for_each(|p| reader.problem("x-kubernetes-validations", p)),
    }
    if reader.problems.is_empty() { Ok(Arc::new(root)) } else { Err(reader.problems) }
}

/// Adds what every object with a kind of its own has.
fn complete_resource(schema: &mut Schema) {
    schema.resource = true;
    if !matches!(schema.node, Node::Object(_)) {
        schema.node = Node::Object(BTreeMap::new());
    }
    if let Node::Object(fields) = &mut schema.node {
        fields.extend(builtin::type_meta());
        fields.insert("metadata".to_owned(), plain(builtin::object_meta()));
    }
}

fn plain(schema: SchemaRef) -> Field {
    let description = schema.get().description.clone();
    Field { schema, description, patch: PatchMarks::default() }
}

struct Reader {
    problems: Vec<(String, String)>,
}

impl Reader {
    fn problem(&mut self, path: &str, text: &str) {
        self.problems.push((path.to_owned(), text.to_owned()));
    }

    /// The structural part: types, and what hangs on them.
    fn structure(&mut self, raw: &Value, path: &str) -> Schema {
        let Some(map) = raw.as_object() else {
            self.problem(path, "must be a schema object");
            return Schema::default();
        };
        for keyword in FORBIDDEN.iter().filter(|k| map.contains_key(**k)) {
            self.problem(&join(path, keyword), "must not be specified in a structural schema");
        }
        let flag = |key: &str| map.get(key) == Some(&Value::Bool(true));
        let mut schema = Schema {
            description: map.get("description").and_then(Value::as_str).unwrap_or_default().to_owned(),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            nullable: flag("nullable"),
            atomic: map.get("x-kubernetes-map-type").is_some_and(|t| t == "atomic"),
            required: strings(map.get("required")),
            default: map.get("default").cloned(),
            ..Schema::default()
        };
        schema.node = self.node(map, path, &schema);
        if flag("x-kubernetes-embedded-resource") {
            complete_resource(&mut schema);
            if schema.required.is_empty() {
                schema.required = ["apiVersion", "kind"].map(str::to_owned).to_vec();
            }
        }
        schema.constraints = self.constraints(map, path);
        schema
    }

    fn node(&mut self, map: &Map<String, Value>, path: &str, schema: &Schema) -> Node {
        let int_or_string = map.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true));
        match map.get("type").and_then(Value::as_str).unwrap_or_default() {
            "" if int_or_string => Node::IntOrString,
            "" if schema.preserve_unknown => self.untyped(map, path),
            "" => {
                self.problem(&join(path, "type"), "must not be empty for specified object fields");
                Node::Any
            }
            _ if int_or_string => {
                self.problem(&join(path, "type"), "must be empty if x-kubernetes-int-or-string is true");
                Node::IntOrString
            }
            "object" => self.object(map, path),
            "array" => self.list(map, path),
            "string" => Node::String,
            "boolean" => Node::Boolean,
            "number" => Node::Number,
            "integer" => Node::Integer { bits: if map.get("format").is_some_and(|f| f == "int32") { 32 } else { 64 } },
            other => {
                let text = format!(
                    "Unsupported value: {other:?}: supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\""
                );
                self.problem(&join(path, "type"), &text);
                Node::Any
            }
        }
    }

    fn untyped(&mut self, map: &Map<String, Value>, path: &str) -> Node {
        if map.contains_key("properties") { self.object(map, path) } else { Node::Any }
    }

    fn object(&mut self, map: &Map<String, Value>, path: &str) -> Node {
        let properties = map.get("properties").and_then(Value::as_object);
        match map.get("additionalProperties") {
            Some(_) if properties.is_some_and(|p| !p.is_empty()) => {
                self.problem(&join(path, "additionalProperties"), "is mutual exclusive with properties");
            }
            Some(Value::Bool(true)) => {
                return Node::Map(Schema { preserve_unknown: true, ..Schema::default() }.into());
            }
            Some(Value::Bool(false)) => {
                self.problem(&join(path, "additionalProperties"), "must not be false in a structural schema");
            }
            Some(inner) => return Node::Map(self.structure(inner, &join(path, "additionalProperties")).into()),
            None => {}
        }
        let mut fields = BTreeMap::new();
        for (name, inner) in properties.into_iter().flatten() {
            // At the root these are replaced by what every kind has; they may be left untyped.
            if path.is_empty() && ["apiVersion", "kind", "metadata"].contains(&name.as_str()) {
                continue;
            }
            let schema = self.structure(inner, &format!("{}[{name}]", join(path, "properties")));
            fields.insert(name.clone(), plain(schema.into()));
        }
        Node::Object(fields)
    }

    fn list(&mut self, map: &Map<String, Value>, path: &str) -> Node {
        let item = match map.get("items") {
            Some(items @ Value::Object(_)) => self.structure(items, &join(path, "items")),
            _ => {
                self.problem(&join(path, "items"), "must be specified as one schema");
                Schema::default()
            }
        };
        let keys = strings(map.get("x-kubernetes-list-map-keys"));
        let kind = match map.get("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("map") => {
                if keys.is_empty() {
                    self.problem(
                        &join(path, "x-kubernetes-list-map-keys"),
                        "must not be empty if x-kubernetes-list-type is map",
                    );
                }
                for key in keys.iter().filter(|k| item.field(k).is_none()) {
                    let text = format!("the property {key:?} must be specified in items.properties");
                    self.problem(&join(path, "x-kubernetes-list-map-keys"), &text);
                }
                ListKind::Map(keys)
            }
            Some("set") => ListKind::Set,
            Some("atomic") | None => ListKind::Atomic,
            Some(_) => {
                let text = "Unsupported value: supported values: \"atomic\", \"map\", \"set\"";
                self.problem(&join(path, "x-kubernetes-list-type"), text);
                ListKind::Atomic
            }
        };
        Node::List(List { item: item.into(), kind })
    }

    /// A branch of `allOf` and so on: only constrains what the structural part describes.
    fn branch(&mut self, raw: &Value, path: &str) -> Arc<Schema> {
        let Some(map) = raw.as_object() else {
            self.problem(path, "must be a schema object");
            return Arc::default();
        };
        for keyword in STRUCTURE_ONLY.iter().filter(|k| map.contains_key(**k)) {
            self.problem(&join(path, keyword), "must not be set inside allOf, anyOf, oneOf or not");
        }
        let node = match map.get("type").and_then(Value::as_str) {
            Some("integer") => Node::Integer { bits: 64 },
            Some("string") => Node::String,
            Some("number") => Node::Number,
            Some("boolean") => Node::Boolean,
            _ => match (map.get("properties").and_then(Value::as_object), map.get("items")) {
                (Some(properties), _) => {
                    let read = |(name, inner): (&String, &Value)| {
                        let path = format!("{}[{name}]", join(path, "properties"));
                        (name.clone(), plain(SchemaRef::Owned(self.branch(inner, &path))))
                    };
                    Node::Object(properties.iter().map(read).collect())
                }
                (None, Some(items)) => {
                    let item = SchemaRef::Owned(self.branch(items, &join(path, "items")));
                    Node::List(List { item, kind: ListKind::Atomic })
                }
                (None, None) => Node::Any,
            },
        };
        let required = strings(map.get("required"));
        let constraints = self.constraints(map, path);
        Arc::new(Schema { node, required, preserve_unknown: true, nullable: true, constraints, ..Schema::default() })
    }

    fn branches(&mut self, map: &Map<String, Value>, key: &str, path: &str) -> Vec<Arc<Schema>> {
        let list = map.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        list.iter().enumerate().map(|(i, raw)| self.branch(raw, &format!("{}[{i}]", join(path, key)))).collect()
    }

    fn constraints(&mut self, map: &Map<String, Value>, path: &str) -> Option<Box<Constraints>> {
        let count = |key: &str| map.get(key).and_then(Value::as_u64);
        let range = |min: &str, max: &str| Range { min: count(min), max: count(max) };
        let bound = |key: &str, exclusive: &str| {
            let number = map.get(key).and_then(Value::as_number)?;
            Some((number.clone(), map.get(exclusive) == Some(&Value::Bool(true))))
        };
        let relevant = [
            "enum",
            "pattern",
            "format",
            "minimum",
            "maximum",
            "multipleOf",
            "minLength",
            "maxLength",
            "minItems",
            "maxItems",
            "minProperties",
            "maxProperties",
            "uniqueItems",
            "allOf",
            "anyOf",
            "oneOf",
            "not",
        ];
        if !relevant.iter().any(|key| map.contains_key(*key)) {
            return None;
        }
        if map.get("uniqueItems") == Some(&Value::Bool(true)) {
            self.problem(
                &join(path, "uniqueItems"),
                "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            );
        }
        Some(Box::new(Constraints {
            one_of_values: map.get("enum").and_then(Value::as_array).cloned(),
            pattern: self.pattern(map, path),
            format: map.get("format").and_then(Value::as_str).map(str::to_owned),
            minimum: bound("minimum", "exclusiveMinimum"),
            maximum: bound("maximum", "exclusiveMaximum"),
            multiple_of: map.get("multipleOf").and_then(Value::as_f64),
            length: range("minLength", "maxLength"),
            items: range("minItems", "maxItems"),
            properties: range("minProperties", "maxProperties"),
            unique_items: false,
            all_of: self.branches(map, "allOf", path),
            any_of: self.branches(map, "anyOf", path),
            one_of: self.branches(map, "oneOf", path),
            not: map.get("not").map(|raw| self.branch(raw, &join(path, "not"))),
            rules: None,
        }))
    }

    fn pattern(&mut self, map: &Map<String, Value>, path: &str) -> Option<Regex> {
        let source = map.get("pattern").and_then(Value::as_str).filter(|p| !p.is_empty())?;
        match Regex::new(source) {
            Ok(regex) => Some(regex),
            Err(e) => {
                let text = format!("must be a valid regular expression, but isn't: {e}");
                self.problem(&join(path, "pattern"), &text);
                None
            }
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn strings(list: Option<&Value>) -> Vec<String> {
    let items = list.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}
