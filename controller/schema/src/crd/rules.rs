//! CEL rules (`x-kubernetes-validations`) of custom resources: compiled once, and evaluated over every object within
//! one budget.
//!
//! In: a schema; objects of it. Out: what the rules do not let pass.

use crate::cel::{
    Budget, CelError, CelValue, Expression, MAX_EXPRESSION, Names, Opaque, OptionalValue, Scope, entry_of, from_json,
    on_a_big_stack, parsed, text_of, with_entries,
};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Rules of one schema, and bytes of their expressions together: each has to be compiled.
const MAX_RULES: usize = 5000;
const MAX_TEXT: usize = 1 << 20;
/// Errors told of one object.
const MAX_ERRORS: usize = 100;
/// Bytes of a message that an expression gives; a longer one is not shown.
const MAX_MESSAGE: usize = 5 * 1024;

const NAMES: Names<'static> = Names { variables: &["self", "oldSelf"], composed: &[], methods: &[] };

/// What a rule does not let pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Violation {
    pub field_path: String,
    pub message: String,
    pub reason: Option<String>,
}

/// The CEL rules (`x-kubernetes-validations`) of a whole schema, compiled once.
#[derive(Debug)]
pub struct Rules(Place);

/// A place of a schema: its own rules, and what is below it.
#[derive(Debug, Default)]
struct Place {
    rules: Vec<Rule>,
    properties: BTreeMap<String, Place>,
    items: Option<Box<Place>>,
    additional: Option<Box<Place>>,
    branches: Vec<Place>,
    /// The fields that tell the items of a list apart.
    keys: Vec<String>,
    /// Its keys are the user's, and no names of fields.
    is_map: bool,
    format: Format,
    /// There is a rule here or below.
    has_rules: bool,
}

/// What a string becomes in an expression.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Format {
    #[default]
    Plain,
    Timestamp,
    Duration,
    Bytes,
}

#[derive(Debug)]
struct Rule {
    expression: Expression,
    message: Option<String>,
    message_expression: Option<Expression>,
    reason: Option<String>,
    field_path: Option<String>,
    /// It compares with the object as it was.
    is_transition: bool,
    optional_old: bool,
}

impl Rules {
    /// Compiles the rules; `None` when there are none. The error lists those that are not valid.
    pub(super) fn compile(schema: &Value) -> Result<Option<Rules>, Vec<String>> {
        let (mut count, mut bytes) = (0, 0);
        measure(schema, &mut count, &mut bytes);
        if count == 0 {
            return Ok(None);
        }
        if count > MAX_RULES || bytes > MAX_TEXT {
            return Err(vec![format!("must have at most {MAX_RULES} rules of {MAX_TEXT} bytes together")]);
        }
        let compile = || {
            let mut problems = Vec::new();
            let place = Place::compile(schema, true, &mut problems);
            (place, problems)
        };
        let (place, problems) = on_a_big_stack(compile).map_err(|problem| vec![problem])?;
        if problems.is_empty() { Ok(Some(Rules(place))) } else { Err(problems) }
    }

    /// What the rules do not let pass. The error says why that could not be found out.
    pub(super) fn check(&self, object: &Value, old: Option<&Value>) -> Result<Vec<Violation>, String> {
        let check = || {
            let (value, old) = (self.0.value(object), old.map(|old| self.0.value(old)));
            let mut walk = Walk { budget: Budget::default(), violations: Vec::new() };
            walk.place(&self.0, &value, old.as_ref(), String::new());
            walk.violations
        };
        on_a_big_stack(check)
    }
}

/// Counts the rules of a schema and the bytes of their expressions.
fn measure(schema: &Value, count: &mut usize, bytes: &mut usize) {
    match schema {
        Value::Object(map) => {
            for rule in map.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
                *count += 1;
                let texts = ["rule", "messageExpression"].into_iter().filter_map(|key| rule[key].as_str());
                // Longer ones are refused unread.
                *bytes += texts.map(|text| text.len().min(MAX_EXPRESSION)).sum::<usize>();
            }
            map.values().for_each(|inner| measure(inner, count, bytes));
        }
        Value::Array(items) => items.iter().for_each(|inner| measure(inner, count, bytes)),
        _ => {}
    }
}

impl Place {
    /// `correlates`: what is here can be found in the object as it was.
    fn compile(schema: &Value, correlates: bool, problems: &mut Vec<String>) -> Self {
        let text = |key: &str| schema[key].as_str().unwrap_or("");
        let mut place = Self { format: Format::of(schema), ..Self::default() };
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            match Rule::compile(rule) {
                Ok(rule) if rule.is_transition && !correlates => problems.push(format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema: {:?}",
                    rule.expression.text()
                )),
                Ok(rule) => place.rules.push(rule),
                Err(why) => problems.push(why),
            }
        }
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            place.properties.insert(name.clone(), Self::compile(inner, correlates, problems));
        }
        let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
        if text("x-kubernetes-list-type") == "map" {
            place.keys = keys.filter_map(Value::as_str).map(str::to_owned).collect();
        }
        if let Some(items) = schema.get("items") {
            let correlates = correlates && !place.keys.is_empty();
            place.items = Some(Box::new(Self::compile(items, correlates, problems)));
        }
        let additional = &schema["additionalProperties"];
        place.is_map = additional.is_object() || additional == &Value::Bool(true);
        if additional.is_object() {
            place.additional = Some(Box::new(Self::compile(additional, correlates, problems)));
        }
        for key in ["allOf", "anyOf", "oneOf"] {
            for branch in schema[key].as_array().into_iter().flatten() {
                place.branches.push(Self::compile(branch, correlates, problems));
            }
        }
        let below = place.properties.values().chain(&place.branches);
        let mut below = below.chain(place.items.as_deref()).chain(place.additional.as_deref());
        place.has_rules = !place.rules.is_empty() || below.any(|inner| inner.has_rules);
        place
    }

    /// An object of this place as expressions see it.
    fn value(&self, object: &Value) -> CelValue {
        match object {
            Value::String(text) => self.format.value(text),
            Value::Array(items) => match &self.items {
                Some(place) => CelValue::List(Arc::new(items.iter().map(|item| place.value(item)).collect())),
                None => from_json(object),
            },
            Value::Object(map) => with_entries(map.iter().map(|(key, value)| {
                let place = self.properties.get(key).or(self.additional.as_deref());
                let value = place.map_or_else(|| from_json(value), |place| place.value(value));
                (if self.is_map { key.clone() } else { escaped(key) }, value)
            })),
            other => from_json(other),
        }
    }
}

impl Format {
    fn of(schema: &Value) -> Self {
        if schema["x-kubernetes-int-or-string"] == true {
            return Self::Plain;
        }
        match schema["format"].as_str() {
            Some("date-time") => Self::Timestamp,
            Some("duration") => Self::Duration,
            Some("byte") => Self::Bytes,
            _ => Self::Plain,
        }
    }

    /// What is not of the format stays a string: the schema has its own say about it.
    fn value(self, text: &str) -> CelValue {
        let value = match self {
            Self::Plain => None,
            Self::Timestamp => parsed("timestamp", text),
            Self::Duration => parsed("duration", text),
            Self::Bytes => parsed("base64.decode", text),
        };
        value.unwrap_or_else(|| text.into())
    }
}

/// The name of a field as it is written in an expression.
fn escaped(name: &str) -> String {
    const RESERVED: [&str; 21] = [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ];
    if RESERVED.contains(&name) {
        return format!("__{name}__");
    }
    if !name.contains("__") && !name.contains(['.', '-', '/']) {
        return name.to_owned();
    }
    // Underscores first: the others bring some.
    let name = name.replace("__", "__underscores__");
    name.replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__")
}

impl Rule {
    fn compile(rule: &Value) -> Result<Self, String> {
        let text = |key: &str| rule[key].as_str().map(str::to_owned).filter(|t| !t.is_empty());
        let source = text("rule").unwrap_or_default();
        let expression = Expression::compile(&source, &NAMES)
            .map_err(|why| format!("failed to compile rule {source:.256?}: {why}"))?;
        let message_expression = text("messageExpression").map(|source| {
            Expression::compile(&source, &NAMES)
                .map_err(|why| format!("failed to compile messageExpression {source:.256?}: {why}"))
        });
        Ok(Self {
            is_transition: expression.mentions("oldSelf"),
            expression,
            message: text("message"),
            message_expression: message_expression.transpose()?,
            reason: text("reason"),
            field_path: text("fieldPath"),
            optional_old: rule["optionalOldSelf"] == true,
        })
    }

    /// The path of a violation: that of the place, or of the field below that the rule names.
    fn path(&self, place: &str) -> String {
        match self.field_path.as_deref() {
            Some(field) if place.is_empty() => field.trim_start_matches('.').to_owned(),
            Some(field) if field.starts_with(['.', '[']) => format!("{place}{field}"),
            Some(field) => format!("{place}.{field}"),
            None => place.to_owned(),
        }
    }
}

/// `self`, and `oldSelf` where there is one.
struct Selves {
    now: CelValue,
    old: Option<CelValue>,
}

impl Scope for Selves {
    fn variable(&self, name: &str) -> Option<CelValue> {
        match name {
            "self" => Some(self.now.clone()),
            "oldSelf" => self.old.clone(),
            _ => None,
        }
    }
}

/// One object's way through the rules.
struct Walk {
    budget: Budget,
    violations: Vec<Violation>,
}

impl Walk {
    fn place(&mut self, place: &Place, value: &CelValue, old: Option<&CelValue>, path: String) {
        if !place.has_rules || self.violations.len() >= MAX_ERRORS {
            return;
        }
        for rule in &place.rules {
            self.rule(rule, value, old, &path);
        }
        for (name, inner) in &place.properties {
            let key = if place.is_map { name.clone() } else { escaped(name) };
            if let Some(value) = entry_of(value, &key).filter(|_| inner.has_rules) {
                let old = old.and_then(|old| entry_of(old, &key));
                self.place(inner, value, old, join(&path, name));
            }
        }
        if let (Some(inner), CelValue::List(items)) = (place.items.as_deref().filter(|p| p.has_rules), value) {
            let known = old.map(|old| correlated(old, &place.keys)).unwrap_or_default();
            for (i, item) in items.iter().enumerate() {
                let old = identity(item, &place.keys).and_then(|id| known.get(&id).copied());
                self.place(inner, item, old, format!("{path}[{i}]"));
            }
        }
        if let (Some(inner), CelValue::Map(map)) = (place.additional.as_deref().filter(|p| p.has_rules), value) {
            let mut keys: Vec<String> = map.map.keys().map(ToString::to_string).collect();
            keys.sort();
            for key in keys.into_iter().filter(|key| !place.properties.contains_key(key)) {
                if let Some(value) = entry_of(value, &key) {
                    let old = old.and_then(|old| entry_of(old, &key));
                    self.place(inner, value, old, join(&path, &key));
                }
            }
        }
        for branch in &place.branches {
            self.place(branch, value, old, path.clone());
        }
    }

    fn rule(&mut self, rule: &Rule, value: &CelValue, old: Option<&CelValue>, path: &str) {
        // The first that found the budget spent has said so.
        if self.budget.is_spent() && !self.violations.is_empty() {
            return;
        }
        let old = match (rule.optional_old, old) {
            (true, old) => Some(optional(old.cloned())),
            (false, None) if rule.is_transition => return,
            (false, old) => old.cloned(),
        };
        let scope = Selves { now: value.clone(), old };
        let violation = match rule.expression.holds(&scope, &mut self.budget) {
            Ok(true) => return,
            Ok(false) => {
                let message = self.message(rule, &scope);
                Violation { field_path: rule.path(path), message, reason: rule.reason.clone() }
            }
            Err(error) => {
                let message = format!("rule evaluation error: {error}");
                Violation { field_path: rule.path(path), message, reason: None }
            }
        };
        if self.violations.len() < MAX_ERRORS {
            self.violations.push(violation);
        }
    }

    fn message(&mut self, rule: &Rule, scope: &Selves) -> String {
        let told = rule.message_expression.as_ref().and_then(|expression| {
            let value: Result<CelValue, CelError> = expression.evaluate(scope, &mut self.budget);
            let text = text_of(&value.ok()?)?.trim().to_owned();
            Some(text).filter(|t| !t.is_empty() && t.len() <= MAX_MESSAGE && !t.contains('\n'))
        });
        let otherwise =
            || rule.message.clone().unwrap_or_else(|| format!("failed rule: {}", rule.expression.text().trim()));
        told.unwrap_or_else(otherwise)
    }
}

fn optional(value: Option<CelValue>) -> CelValue {
    let value: Arc<dyn Opaque> = Arc::new(value.map_or_else(OptionalValue::none, OptionalValue::of));
    CelValue::Opaque(value)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// What tells an item of a list from others: the values of its keys. `None` when it has none of its own.
fn identity(item: &CelValue, keys: &[String]) -> Option<String> {
    let value = |key: &String| entry_of(item, &escaped(key)).map(|v| format!("{v:?}"));
    (!keys.is_empty()).then(|| keys.iter().map(|key| value(key).unwrap_or_default()).collect::<Vec<_>>().join("\u{0}"))
}

/// The items of a list as it was, by their identity.
fn correlated<'v>(old: &'v CelValue, keys: &[String]) -> HashMap<String, &'v CelValue> {
    let CelValue::List(items) = old else { return HashMap::new() };
    items.iter().filter_map(|item| identity(item, keys).map(|id| (id, item))).collect()
}

#[cfg(test)]
mod tests;
