//! What rules may cost. In: the text of a rule, and the object it is to judge. Out: whether that would take too long.
//!
//! Loops inside each other multiply: three of them over a list of a thousand items are a thousand million steps. What a
//! loop goes over is at most as long as the longest list or map below the value that the rule is about. Kubernetes
//! counts more finely, and stops in the middle; the limits are of its order.

use super::rules::without_strings;
use kube_cel::CompiledSchema;
use serde_json::Value;
use std::collections::HashMap;

/// Steps of loops that one rule may take for one value (as Kubernetes' limit of a call).
const MAX_RULE: u64 = 1_000_000;
/// The same for all rules and values of an object (as Kubernetes' limit of an object).
const MAX_OBJECT: u64 = 10_000_000;
/// Comparisons in functions that go over lists themselves; these are some hundred times faster than steps of loops.
const MAX_COMPARISONS: u64 = 100_000_000;
/// What is said then, as Kubernetes does.
const TOO_COSTLY: &str = "validation failed due to running out of cost budget, no further validation rules will be run";

const LOOPS: &[&str] = &[
    "all",
    "exists",
    "exists_one",
    "existsOne",
    "filter",
    "map",
    "sortBy",
    "transformList",
    "transformMap",
    "transformMapEntry",
];

/// What the text of a rule tells about its cost.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Cost {
    /// Loops inside each other.
    nesting: u32,
    loops: u64,
    /// By how much functions inside of the loops multiply: `in` goes over one list, `distinct` over one for each item.
    functions: u32,
    /// By how much lists become longer by being put together.
    sums: u64,
    /// The longest list that can stand in the rule itself.
    literals: u64,
    /// Lists are made out of texts, or of lists of lists.
    makes_lists: bool,
}

/// The costs of all rules of a schema by their texts.
#[derive(Debug, Default)]
pub(super) struct Costs(HashMap<String, Cost>);

impl Costs {
    /// Looks at every rule.
    pub fn of(schema: &CompiledSchema) -> Self {
        let mut costs = Self::default();
        costs.collect(schema);
        costs
    }

    fn collect(&mut self, schema: &CompiledSchema) {
        for rule in schema.validations.iter().flatten() {
            let text = &rule.rule.rule;
            if !self.0.contains_key(text) {
                self.0.insert(text.clone(), cost(text));
            }
            if let Some(message) = &rule.rule.message_expression {
                self.0.insert(message.clone(), cost(message));
            }
        }
        branches(schema).for_each(|inner| self.collect(inner));
    }

    /// Refuses an object that rules would go over for too long.
    pub fn check(&self, schema: &CompiledSchema, object: &Value, old: Option<&Value>) -> Result<(), String> {
        let before = old.map(Sizes::of).unwrap_or_default();
        let mut left = MAX_OBJECT;
        self.spend(schema, object, before, &mut left).ok_or_else(|| TOO_COSTLY.to_owned())
    }

    fn spend(&self, schema: &CompiledSchema, value: &Value, before: Sizes, left: &mut u64) -> Option<()> {
        if !schema.validations.is_empty() {
            let sizes = Sizes::of(value).max(before);
            for rule in schema.validations.iter().flatten() {
                let texts = [Some(&rule.rule.rule), rule.rule.message_expression.as_ref()];
                for cost in texts.into_iter().flatten().filter_map(|text| self.0.get(text)) {
                    *left = left.checked_sub(cost.steps(sizes)?)?;
                }
            }
        }
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    let free = schema.additional_properties.as_deref();
                    if let Some(inner) = schema.properties.get(key).or(free) {
                        self.spend(inner, value, before, left)?;
                    }
                }
            }
            Value::Array(items) => {
                let Some(inner) = schema.items.as_deref() else { return Some(()) };
                for item in items {
                    self.spend(inner, item, before, left)?;
                }
            }
            _ => {}
        }
        let same = schema.all_of.iter().chain(&schema.any_of).chain(&schema.one_of);
        for inner in same {
            self.spend(inner, value, before, left)?;
        }
        Some(())
    }
}

impl Cost {
    /// Steps over a value of these sizes; `None` when they are too many.
    fn steps(&self, sizes: Sizes) -> Option<u64> {
        let list = if self.makes_lists { sizes.list.max(sizes.text).max(sizes.values) } else { sizes.list };
        let list = list.max(self.literals).max(1).checked_mul(self.sums + 1)?;
        let steps = list.checked_pow(self.nesting)?.checked_mul(self.loops.max(1))?;
        let comparisons = list.checked_pow(self.nesting + self.functions)?.checked_mul(self.loops.max(1))?;
        (steps <= MAX_RULE && comparisons <= MAX_COMPARISONS).then_some(steps)
    }
}

/// How big a value is.
#[derive(Debug, Default, Clone, Copy)]
struct Sizes {
    /// The most items of a list or map.
    list: u64,
    /// The most bytes of a text.
    text: u64,
    /// All values.
    values: u64,
}

impl Sizes {
    fn of(value: &Value) -> Self {
        let mut sizes = Self::default();
        sizes.add(value);
        sizes
    }

    fn add(&mut self, value: &Value) {
        self.values += 1;
        match value {
            Value::Array(items) => {
                self.list = self.list.max(items.len() as u64);
                items.iter().for_each(|item| self.add(item));
            }
            Value::Object(map) => {
                self.list = self.list.max(map.len() as u64);
                map.values().for_each(|value| self.add(value));
            }
            Value::String(text) => self.text = self.text.max(text.len() as u64),
            _ => {}
        }
    }

    fn max(self, other: Self) -> Self {
        Self { list: self.list.max(other.list), text: self.text.max(other.text), values: self.values.max(other.values) }
    }
}

fn branches(schema: &CompiledSchema) -> impl Iterator<Item = &CompiledSchema> {
    let boxed = schema.items.iter().chain(&schema.additional_properties).map(Box::as_ref);
    let same = schema.all_of.iter().chain(&schema.any_of).chain(&schema.one_of);
    schema.properties.values().chain(boxed).chain(same)
}

fn cost(rule: &str) -> Cost {
    let mut cost = Cost::default();
    // For every open bracket, whether it is a loop's.
    let (mut open, mut nesting) = (Vec::new(), 0);
    let code = without_strings(rule);
    let mut last = "";
    for piece in code.split_inclusive(|c: char| !c.is_alphanumeric() && c != '_') {
        let word = piece.trim_end_matches(|c: char| !c.is_alphanumeric() && c != '_');
        // Between a name and its bracket there may be blanks.
        let name = if word.is_empty() { last } else { word };
        match name {
            "in" | "indexOf" | "lastIndexOf" | "sum" | "min" | "max" | "isSorted" | "contains" if !word.is_empty() => {
                cost.functions = cost.functions.max(1);
            }
            "distinct" | "sets" if !word.is_empty() => cost.functions = 2,
            "split" | "findAll" | "flatten" => cost.makes_lists = true,
            _ => {}
        }
        match piece.chars().next_back() {
            Some(bracket @ ('(' | '[' | '{')) => {
                let is_loop = bracket == '(' && LOOPS.contains(&name);
                open.push(is_loop);
                nesting += u32::from(is_loop);
                cost.loops += u64::from(is_loop);
                cost.nesting = cost.nesting.max(nesting);
            }
            Some(')' | ']' | '}') => nesting -= u32::from(open.pop().unwrap_or_default()),
            Some('+') => cost.sums += 1,
            Some(',') => cost.literals += 1,
            _ => {}
        }
        if !word.is_empty() || piece.ends_with(|c: char| !c.is_whitespace()) {
            last = if piece.ends_with(|c: char| c.is_whitespace() || c.is_alphanumeric()) { word } else { "" };
        }
    }
    cost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_inside_each_other_are_counted() {
        let of = |rule: &str| (cost(rule).nesting, cost(rule).loops);
        let cases = [
            ("self.size < 5", (0, 0)),
            ("self.all(x, x > 1)", (1, 1)),
            ("self.all (x, x > 1)", (1, 1)),
            ("self.a.filter(x, x > 1).all(y, y > 2)", (1, 2)),
            ("self.a.all(x, self.b.exists(y, x == y && self.c.map(z, z)[0] == 1))", (3, 3)),
            ("self.all(x, (x + (1)) > 2) && self.all(y, y)", (1, 2)),
            ("self.name == '.all(.all(.all('", (0, 0)),
            ("all(1) || self.overall(x)", (1, 1)),
        ];
        for (rule, expected) in cases {
            assert_eq!(of(rule), expected, "{rule}");
        }
        assert!(cost("self.x.split(',').all(p, p in self.y)").makes_lists);
        assert_eq!(cost("self.x.all(p, p in self.y)").functions, 1);
    }
}
