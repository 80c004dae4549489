//! `components.schemas` of a document: the built-in types it refers to, custom resources, and all they refer to.

use super::ServedResource;
use crate::builtin::{message_index, type_meta};
use crate::table::{FieldDef, Form, Label, Message, Table, Type};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Collects the schemas of one document.
pub(super) struct Components<'a> {
    group: &'a str,
    version: &'a str,
    wanted: BTreeSet<usize>,
    custom: Map<String, Value>,
}

impl<'a> Components<'a> {
    pub fn new(group: &'a str, version: &'a str) -> Self {
        Self { group, version, wanted: BTreeSet::new(), custom: Map::new() }
    }

    /// A reference to a built-in kind, which the document then contains.
    pub fn builtin(&mut self, group: &str, version: &str, kind: &str) -> Value {
        match message_index(group, version, kind) {
            Some(index) => {
                self.wanted.insert(index);
                reference(&Table::get().messages[index].openapi_name())
            }
            None => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
        }
    }

    /// References to a resource's kind and list.
    pub fn resource(&mut self, resource: &ServedResource) -> (Value, Value) {
        let ServedResource { group, version, kind, .. } = resource;
        let list_kind = format!("{kind}List");
        if resource.schema.is_none() && message_index(group, version, kind).is_some() {
            return (self.builtin(group, version, kind), self.builtin(group, version, &list_kind));
        }
        let mut package: Vec<&str> = group.split('.').rev().collect();
        package.push(version);
        let (name, list) = (format!("{}.{kind}", package.join(".")), format!("{}.{list_kind}", package.join(".")));
        let object = self.custom_kind(resource);
        self.custom.insert(name.clone(), object);
        let list_schema = self.custom_list(resource, &name, &list_kind);
        self.custom.insert(list.clone(), list_schema);
        (reference(&name), reference(&list))
    }

    fn custom_kind(&mut self, resource: &ServedResource) -> Value {
        let unknown = || json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let mut schema = resource.schema.clone().unwrap_or_else(unknown);
        let meta = self.builtin_type("apimachinery.pkg.apis.meta.v1.ObjectMeta");
        let description = "Standard object's metadata. More info: \
                           https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
        if let Some(object) = schema.as_object_mut() {
            object.insert("type".to_owned(), "object".into());
            object.insert("x-kubernetes-group-version-kind".to_owned(), json!([gvk(resource, &resource.kind)]));
            let properties = object.entry("properties").or_insert_with(|| json!({}));
            if let Some(properties) = properties.as_object_mut() {
                add_type_meta(properties);
                properties.insert("metadata".to_owned(), json!({"allOf": [meta], "description": description}));
            }
        }
        schema
    }

    fn custom_list(&mut self, resource: &ServedResource, item: &str, list_kind: &str) -> Value {
        let meta = self.builtin_type("apimachinery.pkg.apis.meta.v1.ListMeta");
        let mut properties = Map::new();
        add_type_meta(&mut properties);
        let items =
            json!({"type": "array", "items": reference(item), "description": format!("List of {}.", resource.plural)});
        properties.insert("items".to_owned(), items);
        properties.insert("metadata".to_owned(), json!({"allOf": [meta], "description": "Standard list metadata."}));
        json!({
            "description": format!("{list_kind} is a list of {}", resource.kind),
            "type": "object",
            "required": ["items"],
            "properties": properties,
            "x-kubernetes-group-version-kind": [gvk(resource, list_kind)],
        })
    }

    fn builtin_type(&mut self, name: &str) -> Value {
        match Table::get().index(name) {
            Some(index) => {
                self.wanted.insert(index);
                reference(&Table::get().messages[index].openapi_name())
            }
            None => json!({"type": "object"}),
        }
    }

    /// All schemas, with those they refer to.
    pub fn finish(mut self) -> Map<String, Value> {
        let messages = &Table::get().messages;
        let mut queue: Vec<usize> = self.wanted.iter().copied().collect();
        while let Some(index) = queue.pop() {
            for field in &messages[index].fields {
                if let Type::Message(inner) = field.kind
                    && self.wanted.insert(inner)
                {
                    queue.push(inner);
                }
            }
        }
        let mut all: Vec<(String, Value)> = std::mem::take(&mut self.custom).into_iter().collect();
        all.extend(self.wanted.iter().map(|i| (messages[*i].openapi_name(), self.message(&messages[*i]))));
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all.into_iter().collect()
    }

    fn message(&self, message: &Message) -> Value {
        let mut schema = Map::new();
        let description = message.doc();
        if !description.is_empty() {
            schema.insert("description".to_owned(), description.into());
        }
        let mut set = |pairs: Value| {
            if let Value::Object(pairs) = pairs {
                schema.extend(pairs);
            }
        };
        match message.form {
            Form::Plain => {
                let (mut properties, mut required) = (Map::new(), Vec::new());
                if message.kind {
                    add_type_meta(&mut properties);
                }
                add_fields(message, &mut properties, &mut required);
                set(json!({"type": "object"}));
                if !required.is_empty() {
                    set(json!({"required": required}));
                }
                if !properties.is_empty() {
                    set(json!({"properties": properties}));
                }
            }
            Form::Time | Form::MicroTime => set(json!({"type": "string", "format": "date-time"})),
            Form::Duration => set(json!({"type": "string"})),
            Form::Quantity => set(json!({"oneOf": [{"type": "string"}, {"type": "number"}]})),
            Form::IntOrString => {
                set(json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"}));
            }
            Form::Items => set(json!({"type": "array", "items": {"type": "string"}})),
            Form::Raw if !message.name.ends_with(".JSON") => set(json!({"type": "object"})),
            Form::Raw | Form::SchemaOrArray | Form::SchemaOrBool | Form::SchemaOrStrings => {}
        }
        if message.atomic {
            set(json!({"x-kubernetes-map-type": "atomic"}));
        }
        if let Some((group, version)) = message.group_version().filter(|_| message.kind) {
            // The options and answers of the API machinery exist in every group.
            let (group, version) = if group == "meta.k8s.io" { (self.group, self.version) } else { (group, version) };
            let gvk = json!({"group": group, "kind": message.short_name(), "version": version});
            set(json!({"x-kubernetes-group-version-kind": [gvk]}));
        }
        Value::Object(schema)
    }
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn gvk(resource: &ServedResource, kind: &str) -> Value {
    json!({"group": resource.group, "kind": kind, "version": resource.version})
}

fn add_type_meta(properties: &mut Map<String, Value>) {
    for (name, field) in type_meta() {
        properties.insert(name, json!({"type": "string", "description": field.description}));
    }
}

fn add_fields(message: &Message, properties: &mut Map<String, Value>, required: &mut Vec<&'static str>) {
    let messages = &Table::get().messages;
    let mut fields: Vec<&FieldDef> = message.fields.iter().collect();
    fields.sort_by_key(|f| f.name);
    for field in fields {
        match field.kind {
            Type::Message(inner) if field.inline => add_fields(&messages[inner], properties, required),
            _ => {
                if field.required {
                    required.push(field.name);
                }
                properties.insert(field.name.to_owned(), property(field));
            }
        }
    }
    required.sort_unstable();
}

fn property(field: &FieldDef) -> Value {
    let value = match field.kind {
        Type::String => json!({"type": "string"}),
        Type::Bytes => json!({"type": "string", "format": "byte"}),
        Type::Bool => json!({"type": "boolean"}),
        Type::Int32 => json!({"type": "integer", "format": "int32"}),
        Type::Int64 => json!({"type": "integer", "format": "int64"}),
        Type::Double => json!({"type": "number", "format": "double"}),
        Type::Message(index) => reference(&Table::get().messages[index].openapi_name()),
    };
    let mut schema = match field.label {
        // A `$ref` tolerates no neighbours, so it is wrapped.
        Label::Optional if value.get("$ref").is_some() => json!({"allOf": [value]}),
        Label::Optional => value,
        Label::Repeated => json!({"type": "array", "items": value}),
        Label::Map => json!({"type": "object", "additionalProperties": value}),
    };
    let description = field.doc();
    if !description.is_empty() {
        schema["description"] = description.into();
    }
    if let Some(default) = field.mark("default").next().and_then(|text| serde_json::from_str::<Value>(text).ok()) {
        schema["default"] = default;
    }
    for (mark, extension) in [
        ("listType", "x-kubernetes-list-type"),
        ("mapType", "x-kubernetes-map-type"),
        ("structType", "x-kubernetes-map-type"),
        ("patchStrategy", "x-kubernetes-patch-strategy"),
        ("patchMergeKey", "x-kubernetes-patch-merge-key"),
    ] {
        if let Some(value) = field.mark(mark).next() {
            schema[extension] = value.into();
        }
    }
    let keys: Vec<_> = field.mark("listMapKey").collect();
    if !keys.is_empty() {
        schema["x-kubernetes-list-map-keys"] = keys.into();
    }
    schema
}
