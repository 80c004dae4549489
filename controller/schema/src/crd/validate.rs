//! Checks a custom resource against its schema, with the texts of the API server.

use super::{CrdError, CrdErrorKind};
use crate::model::{Constraints, ListKind, Node, Schema};
use serde_json::{Number, Value};
use std::collections::HashSet;
use std::fmt::Write as _;

/// Everything that is wrong with an object; `old` is the live one on an update (for rules with `oldSelf`). CEL rules
/// run only when nothing else is wrong, as upstream.
pub fn validate(object: &Value, old: Option<&Value>, schema: &Schema) -> Vec<CrdError> {
    let mut checker = Checker::new();
    checker.check(object, schema);
    let rules = schema.constraints.as_ref().and_then(|c| c.rules.as_ref());
    if let Some(rules) = rules.filter(|_| checker.errors.is_empty()) {
        let found = rules.check(object, old).unwrap_or_else(|detail| {
            checker.error(CrdErrorKind::Invalid, shown(object), detail);
            Vec::new()
        });
        for error in found {
            let kind = match error.reason.as_deref() {
                Some("FieldValueRequired") => CrdErrorKind::Required,
                Some("FieldValueForbidden") => CrdErrorKind::Forbidden,
                Some("FieldValueDuplicate") => CrdErrorKind::Duplicate,
                _ => CrdErrorKind::Invalid,
            };
            let value = shown(at(object, &error.field_path));
            checker.errors.push(CrdError { path: error.field_path, kind, value, detail: error.message });
        }
    }
    checker.errors
}

/// The value at a path such as `spec.rules[0].name`.
fn at<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.split(['.', '[', ']']).filter(|step| !step.is_empty()).fold(object, |value, step| match value {
        Value::Array(items) => step.parse().ok().and_then(|i: usize| items.get(i)).unwrap_or(&Value::Null),
        _ => value.get(step).unwrap_or(&Value::Null),
    })
}

/// Big values are shown by their type.
fn shown(value: &Value) -> Value {
    match value {
        Value::Object(_) | Value::Array(_) => type_name(value).into(),
        other => other.clone(),
    }
}

/// More errors than these are not listed.
const MAX_ERRORS: usize = 1000;
/// Nor more when they have so long texts already, in bytes: a long key above many values is in all of their paths.
const MAX_TEXT: usize = 1024 * 1024;

struct Checker {
    path: String,
    errors: Vec<CrdError>,
    text: usize,
}

impl Checker {
    fn new() -> Self {
        Self { path: String::new(), errors: Vec::new(), text: 0 }
    }

    fn is_full(&self) -> bool {
        self.errors.len() >= MAX_ERRORS || self.text > MAX_TEXT
    }

    fn error(&mut self, kind: CrdErrorKind, value: Value, detail: String) {
        if self.is_full() {
            return;
        }
        self.text += self.path.len() + detail.len() + value.as_str().map_or(0, str::len);
        self.errors.push(CrdError { path: self.path.clone(), kind, value, detail });
    }

    /// `spec.x in body should …`
    fn invalid(&mut self, value: &Value, text: &str) {
        if self.is_full() {
            return;
        }
        let detail = format!("{} in body {text}", self.path);
        self.error(CrdErrorKind::Invalid, shown(value), detail);
    }

    fn inside(&mut self, value: &Value, schema: &Schema, enter: impl FnOnce(&mut String)) {
        let length = self.path.len();
        enter(&mut self.path);
        self.check(value, schema);
        self.path.truncate(length);
    }

    fn check(&mut self, value: &Value, schema: &Schema) {
        if self.is_full() {
            return;
        }
        if !schema.name.is_empty() || value.is_null() && schema.nullable {
            return; // metadata is checked as that of built-in kinds is
        }
        if let Some(wanted) = wrong_type(value, schema) {
            let found = type_name(value);
            let detail = format!("{} in body must be of type {wanted}: {found:?}", self.path);
            self.error(CrdErrorKind::TypeInvalid, found.into(), detail);
            return;
        }
        match value {
            Value::Object(map) => {
                for name in schema.required.iter().filter(|name| !map.contains_key(*name)) {
                    let length = self.path.len();
                    push_key(&mut self.path, name);
                    self.error(CrdErrorKind::Required, Value::from(""), String::new());
                    self.path.truncate(length);
                }
                for (key, inner) in map {
                    if let Some(child) = schema.child(key) {
                        self.inside(inner, child, |path| push_key(path, key));
                    }
                }
            }
            Value::Array(items) => {
                if let Some(list) = schema.list() {
                    for (index, item) in items.iter().enumerate() {
                        self.inside(item, list.item.get(), |path| {
                            let _ = write!(path, "[{index}]");
                        });
                    }
                    self.duplicates(items, &list.kind);
                }
            }
            _ => {}
        }
        if let Some(constraints) = &schema.constraints {
            self.constraints(value, constraints);
        }
    }

    fn duplicates(&mut self, items: &[Value], kind: &ListKind) {
        let mut seen = HashSet::new();
        for (index, item) in items.iter().enumerate() {
            let id = match kind {
                ListKind::Atomic => return,
                ListKind::Set => item.clone(),
                ListKind::Map(keys) => keys.iter().filter_map(|k| Some((k.clone(), item.get(k)?.clone()))).collect(),
            };
            if !seen.insert(id.to_string()) {
                let length = self.path.len();
                let _ = write!(self.path, "[{index}]");
                self.error(CrdErrorKind::Duplicate, id, String::new());
                self.path.truncate(length);
            }
        }
    }

    fn constraints(&mut self, value: &Value, c: &Constraints) {
        if let Some(allowed) = c.one_of_values.as_ref().filter(|allowed| !allowed.contains(value)) {
            let list: Vec<_> = allowed.iter().map(Value::to_string).collect();
            self.error(CrdErrorKind::NotSupported, value.clone(), format!("supported values: {}", list.join(", ")));
        }
        match value {
            Value::String(text) => self.string(value, text, c),
            Value::Number(number) => self.number(value, number, c),
            Value::Array(items) => {
                if c.items.max.is_some_and(|max| items.len() as u64 > max) {
                    let detail = format!("must have at most {} items", c.items.max.unwrap_or_default());
                    self.error(CrdErrorKind::TooMany, items.len().into(), detail);
                }
                if let Some(min) = c.items.min.filter(|min| (items.len() as u64) < *min) {
                    self.invalid(value, &format!("should have at least {min} items"));
                }
            }
            Value::Object(map) => {
                if let Some(max) = c.properties.max.filter(|max| map.len() as u64 > *max) {
                    let detail = format!("must have at most {max} items");
                    self.error(CrdErrorKind::TooMany, map.len().into(), detail);
                }
                if let Some(min) = c.properties.min.filter(|min| (map.len() as u64) < *min) {
                    self.invalid(value, &format!("should have at least {min} properties"));
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
        self.branches(value, c);
    }

    fn string(&mut self, value: &Value, text: &str, c: &Constraints) {
        let length = text.chars().count() as u64;
        if let Some(max) = c.length.max.filter(|max| length > *max) {
            self.error(CrdErrorKind::TooLong, value.clone(), format!("may not be more than {max} bytes"));
        }
        if let Some(min) = c.length.min.filter(|min| length < *min) {
            self.invalid(value, &format!("should be at least {min} chars long"));
        }
        if let Some(pattern) = c.pattern.as_ref().filter(|p| !p.is_match(text)) {
            self.invalid(value, &format!("should match '{pattern}'"));
        }
        if let Some(format) = c.format.as_deref().filter(|format| !has_format(text, format)) {
            self.invalid(value, &format!("must be of type {format}: {text:?}"));
        }
    }

    fn number(&mut self, value: &Value, number: &Number, c: &Constraints) {
        let exact = |n: &Number| n.as_f64().unwrap_or_default();
        let cmp = |bound: &Number| match (number.as_i64(), bound.as_i64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => exact(number).total_cmp(&exact(bound)),
        };
        if let Some((max, exclusive)) = &c.maximum
            && (cmp(max).is_gt() || *exclusive && cmp(max).is_eq())
        {
            let words = if *exclusive { "less than" } else { "less than or equal to" };
            self.invalid(value, &format!("should be {words} {max}"));
        }
        if let Some((min, exclusive)) = &c.minimum
            && (cmp(min).is_lt() || *exclusive && cmp(min).is_eq())
        {
            let words = if *exclusive { "greater than" } else { "greater than or equal to" };
            self.invalid(value, &format!("should be {words} {min}"));
        }
        if let Some(unit) = c.multiple_of.filter(|unit| *unit > 0.0) {
            let quotient = exact(number) / unit;
            if (quotient - quotient.round()).abs() > 1e-9 {
                self.invalid(value, &format!("should be a multiple of {unit}"));
            }
        }
    }

    fn branches(&mut self, value: &Value, c: &Constraints) {
        let holds = |schema: &Schema| {
            let mut inner = Checker::new();
            inner.check(value, schema);
            inner.errors.is_empty()
        };
        for schema in &c.all_of {
            self.check(value, schema);
        }
        if !c.any_of.is_empty() && !c.any_of.iter().any(|s| holds(s)) {
            self.invalid(value, "must validate at least one schema (anyOf)");
        }
        if !c.one_of.is_empty() {
            match c.one_of.iter().filter(|s| holds(s)).count() {
                1 => {}
                0 => self.invalid(value, "must validate one and only one schema (oneOf). Found none valid"),
                n => {
                    let text = format!("must validate one and only one schema (oneOf). Found {n} valid alternatives");
                    self.invalid(value, &text);
                }
            }
        }
        if c.not.as_ref().is_some_and(|s| holds(s)) {
            self.invalid(value, "must not validate the schema (not)");
        }
    }
}

fn push_key(path: &mut String, key: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(key);
}

/// The type a value should have had; `None` when it fits. Objects and lists in branches (which preserve what they do
/// not know) only speak about values of their type.
fn wrong_type(value: &Value, schema: &Schema) -> Option<&'static str> {
    let whole = |n: &Number| n.is_i64() || n.is_u64() || n.as_f64().is_some_and(|f| f.fract() == 0.0);
    let lenient = schema.preserve_unknown && !schema.resource;
    let (fits, name) = match &schema.node {
        Node::Any => (true, ""),
        Node::String | Node::Bytes | Node::Time { .. } => (value.is_string(), "string"),
        Node::Quantity => (value.is_string() || value.is_number(), "string"),
        Node::IntOrString => (value.is_string() || value.as_number().is_some_and(whole), "integer,string"),
        Node::Integer { .. } => (value.as_number().is_some_and(whole), "integer"),
        Node::Number => (value.is_number(), "number"),
        Node::Boolean => (value.is_boolean(), "boolean"),
        Node::Object(_) | Node::Map(_) => (value.is_object() || lenient && schema.nullable, "object"),
        Node::List(_) => (value.is_array() || lenient && schema.nullable, "array"),
    };
    (!fits).then_some(name)
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The formats that Kubernetes checks and that have one clear meaning; others are not checked.
fn has_format(text: &str, format: &str) -> bool {
    use base64::Engine as _;
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    match format {
        "date-time" | "datetime" => text.contains(['T', 't']) && text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.len() == 10 && text.get(..4).is_some_and(digits) && text.parse::<jiff::civil::Date>().is_ok(),
        "byte" => base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "cidr" => text.split_once('/').is_some_and(|(address, length)| {
            let most = match address.parse::<std::net::IpAddr>() {
                Ok(std::net::IpAddr::V4(_)) => 32,
                Ok(std::net::IpAddr::V6(_)) => 128,
                Err(_) => return false,
            };
            length.parse::<u8>().is_ok_and(|l| l <= most)
        }),
        "uuid" => {
            let groups: Vec<_> = text.split('-').map(str::len).collect();
            (groups == [8, 4, 4, 4, 12] || text.len() == 32) && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
        }
        _ => true,
    }
}
