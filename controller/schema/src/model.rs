//! The one form in which built-in kinds and custom resources describe themselves.

use crate::builtin;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a value may be, and how it merges.
#[derive(Debug, Clone, Default)]
pub struct Schema {
    /// OpenAPI name (`io.k8s.api.core.v1.Container`); empty when it has none.
    pub name: String,
    /// For people.
    pub description: String,
    /// The shape.
    pub node: Node,
    /// Fields that are not listed are kept and are no error.
    pub preserve_unknown: bool,
    /// `null` is a value of its own (custom resources only).
    pub nullable: bool,
    /// An object or map that is owned and replaced as a whole.
    pub atomic: bool,
    /// Fields that must be there.
    pub required: Vec<String>,
    /// What a missing value becomes.
    pub default: Option<Value>,
    /// An object with `apiVersion`, `kind` and `metadata` of its own: a kind, or an embedded resource.
    pub resource: bool,
    /// What custom resources demand of values beyond their type.
    pub constraints: Option<Box<Constraints>>,
}

/// The shape of a value.
#[derive(Debug, Clone, Default)]
pub enum Node {
    /// Anything at all.
    #[default]
    Any,
    /// A string.
    String,
    /// A string with base64.
    Bytes,
    /// An RFC 3339 string; microseconds when `micro`.
    Time {
        /// With microseconds.
        micro: bool,
    },
    /// A string or number such as `100m` or `1Gi`.
    Quantity,
    /// A number or a string.
    IntOrString,
    /// A whole number of so many bits.
    Integer {
        /// 32 or 64.
        bits: u8,
    },
    /// Any number.
    Number,
    /// A truth value.
    Boolean,
    /// An object with known fields.
    Object(BTreeMap<String, Field>),
    /// An object with free keys.
    Map(SchemaRef),
    /// A list.
    List(List),
}

/// A list's items and how it merges.
#[derive(Debug, Clone)]
pub struct List {
    /// What each item is.
    pub item: SchemaRef,
    /// How two lists become one.
    pub kind: ListKind,
}

/// How a list merges in server-side apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListKind {
    /// As a whole.
    Atomic,
    /// By value.
    Set,
    /// By the values of these keys.
    Map(Vec<String>),
}

/// A field of an object.
#[derive(Debug, Clone)]
pub struct Field {
    /// What it holds.
    pub schema: SchemaRef,
    /// For people; the field's own text, which differs from the text of its type.
    pub description: String,
    /// How strategic merge patch treats it.
    pub patch: PatchMarks,
}

/// The marks of strategic merge patch (`patchStrategy`, `patchMergeKey`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PatchMarks {
    /// A list whose items merge.
    pub merge: bool,
    /// An object that is replaced, not merged.
    pub replace: bool,
    /// Keys that the patch does not name may be cleared by `$retainKeys`.
    pub retain_keys: bool,
    /// Which field tells list items apart; `None` for lists of scalars.
    pub merge_key: Option<String>,
}

/// What custom resources demand beyond types (a subset of JSON schema validations).
#[derive(Debug, Clone, Default)]
pub struct Constraints {
    /// Allowed values.
    pub one_of_values: Option<Vec<Value>>,
    /// Regular expression, with its source.
    pub pattern: Option<regex::Regex>,
    /// Known format, such as `date-time`.
    pub format: Option<String>,
    /// Lower bound, exclusive when the flag is set.
    pub minimum: Option<(serde_json::Number, bool)>,
    /// Upper bound, exclusive when the flag is set.
    pub maximum: Option<(serde_json::Number, bool)>,
    /// The number is a multiple of it.
    pub multiple_of: Option<f64>,
    /// Characters (Unicode code points).
    pub length: Range,
    /// Items.
    pub items: Range,
    /// Properties.
    pub properties: Range,
    /// All items differ.
    pub unique_items: bool,
    /// Further schemas: all must hold.
    pub all_of: Vec<Arc<Schema>>,
    /// Further schemas: at least one must hold.
    pub any_of: Vec<Arc<Schema>>,
    /// Further schemas: exactly one must hold.
    pub one_of: Vec<Arc<Schema>>,
    /// A schema that must not hold.
    pub not: Option<Arc<Schema>>,
    /// CEL rules of the whole tree, compiled once; only at the root.
    pub rules: Option<Arc<crate::crd::Rules>>,
}

/// An inclusive range of counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Range {
    /// At least.
    pub min: Option<u64>,
    /// At most.
    pub max: Option<u64>,
}

/// A schema, owned or by name: the types of Kubernetes refer to themselves (JSONSchemaProps does).
#[derive(Debug, Clone)]
pub enum SchemaRef {
    /// Owned by the referrer.
    Owned(Arc<Schema>),
    /// A built-in type, made when it is first looked at.
    Builtin(usize),
}

impl SchemaRef {
    /// The schema itself.
    pub fn get(&self) -> &Schema {
        match self {
            Self::Owned(schema) => schema,
            Self::Builtin(index) => builtin::by_index(*index),
        }
    }
}

impl From<Schema> for SchemaRef {
    fn from(schema: Schema) -> Self {
        Self::Owned(Arc::new(schema))
    }
}

impl Schema {
    /// A schema of this shape and nothing else.
    pub fn of(node: Node) -> Self {
        Self { node, ..Self::default() }
    }

    /// What a field or map key holds; `None` when the schema does not know it.
    pub fn child(&self, name: &str) -> Option<&Schema> {
        match &self.node {
            Node::Object(fields) => fields.get(name).map(|f| f.schema.get()),
            Node::Map(value) => Some(value.get()),
            _ => None,
        }
    }

    /// The field's marks and schema.
    pub fn field(&self, name: &str) -> Option<&Field> {
        match &self.node {
            Node::Object(fields) => fields.get(name),
            _ => None,
        }
    }

    /// The list's description when it is one.
    pub fn list(&self) -> Option<&List> {
        match &self.node {
            Node::List(list) => Some(list),
            _ => None,
        }
    }
}
