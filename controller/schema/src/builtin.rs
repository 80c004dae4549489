//! Schemas of the built-in kinds, made from the message table when they are first asked for.

use crate::model::{Field, List, ListKind, Node, PatchMarks, Schema, SchemaRef};
use crate::table::{FieldDef, Form, Label, Message, Table, Type};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

const OBJECT_META: &str = "apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The schema of a built-in kind, also of those that are only sent and answered: `Status`, `DeleteOptions` (in any
/// group), lists, `Scale`, `Eviction`, `Binding`, `TokenRequest`, the access reviews, …
pub fn builtin(group: &str, version: &str, kind: &str) -> Option<Arc<Schema>> {
    message_index(group, version, kind).map(|index| Arc::clone(slot(index)))
}

/// An object of a kind nobody described: `apiVersion`, `kind`, `metadata`, and anything else.
pub fn anything() -> Arc<Schema> {
    static ANYTHING: OnceLock<Arc<Schema>> = OnceLock::new();
    let make = || {
        let mut fields = type_meta();
        if let Some(meta) = Table::get().index(OBJECT_META) {
            fields.insert("metadata".to_owned(), plain_field(SchemaRef::Builtin(meta), String::new()));
        }
        let node = Node::Object(fields);
        Arc::new(Schema { node, preserve_unknown: true, resource: true, ..Schema::default() })
    };
    Arc::clone(ANYTHING.get_or_init(make))
}

/// The schema of `metadata`.
pub(crate) fn object_meta() -> SchemaRef {
    Table::get().index(OBJECT_META).map_or_else(|| Schema::default().into(), SchemaRef::Builtin)
}

/// `apiVersion` and `kind`.
pub(crate) fn type_meta() -> BTreeMap<String, Field> {
    let text = [
        (
            "apiVersion",
            "APIVersion defines the versioned schema of this representation of an object. Servers should convert \
             recognized schemas to the latest internal value, and may reject unrecognized values. More info: \
             https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources",
        ),
        (
            "kind",
            "Kind is a string value representing the REST resource this object represents. Servers may infer this from \
             the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: \
             https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds",
        ),
    ];
    text.into_iter()
        .map(|(name, text)| (name.to_owned(), plain_field(Schema::of(Node::String).into(), text.to_owned())))
        .collect()
}

/// Where the message of a kind is in the table.
pub(crate) fn message_index(group: &str, version: &str, kind: &str) -> Option<usize> {
    static KINDS: OnceLock<HashMap<(&str, &str, &str), usize>> = OnceLock::new();
    let kinds = KINDS.get_or_init(|| {
        let all = Table::get().messages.iter().enumerate().filter(|(_, m)| m.kind);
        all.filter_map(|(i, m)| m.group_version().map(|(g, v)| ((g, v, m.short_name()), i))).collect()
    });
    let index = kinds.get(&(group, version, kind)).or_else(|| kinds.get(&("meta.k8s.io", "v1", kind)));
    index.copied()
}

/// The schema of a message of the table.
pub(crate) fn by_index(index: usize) -> &'static Schema {
    slot(index)
}

fn slot(index: usize) -> &'static Arc<Schema> {
    static SLOTS: OnceLock<Vec<OnceLock<Arc<Schema>>>> = OnceLock::new();
    let messages = &Table::get().messages;
    let slots = SLOTS.get_or_init(|| messages.iter().map(|_| OnceLock::new()).collect());
    slots[index].get_or_init(|| Arc::new(message_schema(&messages[index])))
}

fn message_schema(message: &Message) -> Schema {
    let mut schema = Schema { name: message.openapi_name(), description: message.doc(), ..Schema::default() };
    schema.node = match message.form {
        Form::Plain => {
            let mut fields = if message.kind { type_meta() } else { BTreeMap::new() };
            add_fields(message, &mut fields, &mut schema.required);
            Node::Object(fields)
        }
        Form::Time => Node::Time { micro: false },
        Form::MicroTime => Node::Time { micro: true },
        Form::Duration => Node::String,
        Form::Quantity => Node::Quantity,
        Form::IntOrString => Node::IntOrString,
        Form::Items => Node::List(List { item: Schema::of(Node::String).into(), kind: ListKind::Atomic }),
        Form::Raw | Form::SchemaOrArray | Form::SchemaOrBool | Form::SchemaOrStrings => Node::Any,
    };
    schema.preserve_unknown = matches!(schema.node, Node::Any);
    // What Kubernetes does not look into, it does not merge either.
    schema.atomic = message.atomic || schema.preserve_unknown;
    schema.resource = message.kind;
    schema
}

/// The fields of a message, and of those that are inlined into it.
fn add_fields(message: &Message, fields: &mut BTreeMap<String, Field>, required: &mut Vec<String>) {
    for def in &message.fields {
        match def.kind {
            Type::Message(index) if def.inline => add_fields(&Table::get().messages[index], fields, required),
            _ => {
                if def.required {
                    required.push(def.name.to_owned());
                }
                let field = Field { schema: field_schema(def), description: def.doc(), patch: patch_marks(def) };
                fields.insert(def.name.to_owned(), field);
            }
        }
    }
}

fn field_schema(def: &FieldDef) -> SchemaRef {
    let value = match def.kind {
        Type::Message(index) => SchemaRef::Builtin(index),
        scalar => Schema { default: default_mark(def), ..Schema::of(scalar_node(scalar)) }.into(),
    };
    let atomic_mark = |name| def.mark(name).any(|kind| kind == "atomic");
    match def.label {
        Label::Optional if atomic_mark("structType") => Schema { atomic: true, ..value.get().clone() }.into(),
        Label::Optional => value,
        Label::Map => Schema { atomic: atomic_mark("mapType"), ..Schema::of(Node::Map(value)) }.into(),
        Label::Repeated => {
            let kind = match def.mark("listType").next() {
                Some("map") => ListKind::Map(def.mark("listMapKey").map(str::to_owned).collect()),
                Some("set") => ListKind::Set,
                _ => ListKind::Atomic,
            };
            Schema::of(Node::List(List { item: value, kind })).into()
        }
    }
}

fn scalar_node(kind: Type) -> Node {
    match kind {
        Type::String => Node::String,
        Type::Bytes => Node::Bytes,
        Type::Bool => Node::Boolean,
        Type::Int32 => Node::Integer { bits: 32 },
        Type::Int64 => Node::Integer { bits: 64 },
        Type::Double => Node::Number,
        Type::Message(_) => Node::Any,
    }
}

/// `+default="TCP"`; references to Go constants are not values and are left out.
fn default_mark(def: &FieldDef) -> Option<serde_json::Value> {
    def.mark("default").next().and_then(|text| serde_json::from_str(text).ok())
}

fn patch_marks(def: &FieldDef) -> PatchMarks {
    let strategies: Vec<&str> = def.mark("patchStrategy").flat_map(|s| s.split(',')).collect();
    PatchMarks {
        merge: strategies.contains(&"merge"),
        replace: strategies.contains(&"replace"),
        retain_keys: strategies.contains(&"retainKeys"),
        merge_key: def.mark("patchMergeKey").next().map(str::to_owned),
    }
}

fn plain_field(schema: SchemaRef, description: String) -> Field {
    Field { schema, description, patch: PatchMarks::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_in_their_groups() {
        for (group, version, kind) in [
            ("", "v1", "Pod"),
            ("", "v1", "List"),
            ("", "v1", "Binding"),
            ("apps", "v1", "Deployment"),
            ("apps", "v1", "DeploymentList"),
            ("apps", "v1", "DeleteOptions"),
            ("", "v1", "Status"),
            ("autoscaling", "v1", "Scale"),
            ("policy", "v1", "Eviction"),
            ("authentication.k8s.io", "v1", "TokenRequest"),
            ("authorization.k8s.io", "v1", "SelfSubjectAccessReview"),
            ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
            ("rbac.authorization.k8s.io", "v1", "Role"),
            ("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema"),
            ("flowcontrol.apiserver.k8s.io", "v1", "PriorityLevelConfiguration"),
        ] {
            let schema = builtin(group, version, kind);
            assert!(schema.is_some_and(|s| s.field("kind").is_some()), "{group}/{version} {kind}");
        }
        assert!(builtin("", "v1", "Nonsense").is_none());
        assert!(builtin("apps", "v9", "Deployment").is_none());
        assert!(builtin("", "v1", "Container").is_none(), "a type that is no kind");
    }

    #[test]
    fn marks_survive() {
        let pod = builtin("", "v1", "Pod").unwrap();
        let spec = pod.child("spec").unwrap();
        let containers = spec.field("containers").unwrap();
        assert!(containers.patch.merge);
        assert_eq!(containers.patch.merge_key.as_deref(), Some("name"));
        let item = containers.schema.get().list().unwrap().item.get();
        let ports = item.field("ports").unwrap();
        assert_eq!(ports.patch.merge_key.as_deref(), Some("containerPort"));
        let list = ports.schema.get().list().unwrap();
        assert_eq!(list.kind, ListKind::Map(vec!["containerPort".into(), "protocol".into()]));
        assert_eq!(list.item.get().child("protocol").unwrap().default, Some("TCP".into()));
        assert!(spec.child("nodeSelector").unwrap().atomic);
        let volumes = spec.child("volumes").unwrap().list().unwrap();
        assert!(volumes.item.get().field("emptyDir").is_some(), "inlined");
        assert!(builtin("apps", "v1", "Deployment").unwrap().child("spec").unwrap().child("selector").unwrap().atomic);
    }

    #[test]
    fn recursive_types_do_not_loop() {
        let crd = builtin("apiextensions.k8s.io", "v1", "CustomResourceDefinition").unwrap();
        let versions = crd.child("spec").unwrap().child("versions").unwrap().list().unwrap();
        let root = versions.item.get().child("schema").unwrap().child("openAPIV3Schema").unwrap();
        let nested = root.child("properties").unwrap().child("x").unwrap().child("properties").unwrap();
        assert!(nested.child("y").unwrap().field("x-kubernetes-list-type").is_some());
        assert!(root.field("$ref").is_some());
    }
}
