//! CEL rules (`x-kubernetes-validations`): compiled once, and bounded before.
//!
//! The parser and what evaluates its trees call themselves for every bracket and every operator in a row, so a rule of
//! a kilobyte could take the stack, and with it the process.

use super::cost::Costs;
use kube_cel::{CompiledSchema, ValidationError, compile_schema, validate_compiled};
use serde_json::Value;

/// Brackets inside each other in a rule.
const MAX_NESTING: usize = 32;
/// Operators that hang on each other, all brackets around counted. (The depth at which Kubernetes' parser stops.)
const MAX_DEPTH: usize = 250;
/// Without optimisation, parsing takes up to a hundred kilobytes for a bracket, and evaluation forty for an operator.
const STACK: usize = 32 * 1024 * 1024;

/// The CEL rules (`x-kubernetes-validations`) of a whole schema, compiled once.
#[derive(Debug)]
pub struct Rules {
    schema: CompiledSchema,
    costs: Costs,
}

impl Rules {
    /// Compiles the rules; `None` when there are none. The error lists those that are not valid CEL.
    pub(super) fn compile(schema: &Value) -> Result<Option<Rules>, Vec<String>> {
        if !has_rules(schema) {
            return Ok(None);
        }
        let mut problems = Vec::new();
        collect_complex(schema, &mut problems);
        if !problems.is_empty() {
            return Err(problems);
        }
        let compiled = on_a_big_stack(|| compile_schema(schema)).map_err(|problem| vec![problem])?;
        collect_problems(&compiled, &mut problems);
        if !problems.is_empty() {
            return Err(problems);
        }
        let costs = Costs::of(&compiled);
        Ok(Some(Rules { schema: compiled, costs }))
    }

    /// What is wrong with an object. The error says why that could not be found out.
    pub(super) fn check(&self, object: &Value, old: Option<&Value>) -> Result<Vec<ValidationError>, String> {
        self.costs.check(&self.schema, object, old)?;
        let checked = on_a_big_stack(|| validate_compiled(&self.schema, object, old))?;
        Ok(checked.err().map(kube_cel::ValidationErrors::into_vec).unwrap_or_default())
    }
}

/// Runs it on a thread of its own: the stacks of workers are too small.
fn on_a_big_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("cel".to_owned()).stack_size(STACK);
        let thread = thread.spawn_scoped(scope, work).map_err(|e| format!("no thread for rules: {e}"))?;
        thread.join().map_err(|_| "a rule panicked".to_owned())
    })
}

fn has_rules(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => map.contains_key("x-kubernetes-validations") || map.values().any(has_rules),
        Value::Array(items) => items.iter().any(has_rules),
        _ => false,
    }
}

/// The rules that are too complex to be compiled or evaluated on a stack.
fn collect_complex(schema: &Value, problems: &mut Vec<String>) {
    match schema {
        Value::Object(map) => {
            for rule in map.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
                let texts = ["rule", "messageExpression"].into_iter().filter_map(|key| rule[key].as_str());
                problems.extend(texts.clone().filter(|text| has_range(text)).map(|_| {
                    // Kubernetes has no such function, and a short rule would fill the memory with it.
                    "undeclared reference to 'lists.range'".to_owned()
                }));
                problems.extend(texts.filter(|text| is_complex(text)).map(|_| {
                    format!("a rule is too complex: at most {MAX_NESTING} brackets inside each other and {MAX_DEPTH} operators that hang on each other")
                }));
            }
            map.values().for_each(|inner| collect_complex(inner, problems));
        }
        Value::Array(items) => items.iter().for_each(|inner| collect_complex(inner, problems)),
        _ => {}
    }
}

fn has_range(rule: &str) -> bool {
    let code: String = without_strings(rule).chars().filter(|c| !c.is_whitespace()).collect();
    code.contains("lists.range(") || code.contains(".range(")
}

/// Too many brackets inside each other, or too many operators that hang on each other from left to right. (What `&&`
/// and `||` combine is balanced; conditions are counted by the parser.)
fn is_complex(rule: &str) -> bool {
    // For every open bracket, how long the chain is that it is in.
    let (mut outer, mut chain, mut depth) = (Vec::new(), 0usize, 0usize);
    let code = without_strings(rule);
    for piece in code.split_inclusive(|c: char| !c.is_alphanumeric() && c != '_') {
        let word = piece.trim_end_matches(|c: char| !c.is_alphanumeric() && c != '_');
        chain += usize::from(word == "in");
        match piece.chars().next_back() {
            Some('(' | '[' | '{') => {
                outer.push(chain + 1);
                depth += chain + 1;
                chain = 0;
            }
            Some(')' | ']' | '}') => {
                chain = outer.pop().unwrap_or_default();
                depth = depth.saturating_sub(chain);
            }
            Some('&' | '|' | ',' | '?' | ':') => chain = 0,
            Some('.' | '+' | '-' | '*' | '/' | '%' | '<' | '>' | '=' | '!') => chain += 1,
            _ => {}
        }
        if outer.len() > MAX_NESTING || depth + chain > MAX_DEPTH {
            return true;
        }
    }
    false
}

/// The text of a rule with nothing between its quotes, and without comments.
pub(super) fn without_strings(rule: &str) -> String {
    let (mut code, mut rest) = (String::with_capacity(rule.len()), rule);
    while let Some(at) = rest.find(['\'', '"', '/']) {
        let (before, from) = rest.split_at(at);
        code.push_str(before);
        let quote = &from[..1];
        if quote == "/" {
            let end = if from.starts_with("//") { from.find('\n').unwrap_or(from.len()) } else { 1 };
            code.push('/');
            rest = &from[end..];
            continue;
        }
        let prefix = code.chars().rev().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        let raw = matches!(prefix.to_ascii_lowercase().as_str(), "r" | "rb" | "br");
        let triple = quote.repeat(3);
        let quote = if from.starts_with(&triple) { &triple } else { quote };
        rest = after_string(&from[quote.len()..], quote, raw);
        code.push('"');
    }
    code + rest
}

/// What comes after a string whose opening quote is gone.
fn after_string<'a>(text: &'a str, quote: &str, raw: bool) -> &'a str {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if !escaped && text[at..].starts_with(quote) {
            return &text[at + quote.len()..];
        }
        escaped = c == '\\' && !escaped && !raw;
    }
    ""
}

fn collect_problems(schema: &CompiledSchema, problems: &mut Vec<String>) {
    problems.extend(schema.compilation_errors().into_iter().map(ToString::to_string));
    let boxed = schema.items.iter().chain(&schema.additional_properties).map(Box::as_ref);
    let branches = schema.all_of.iter().chain(&schema.any_of).chain(&schema.one_of);
    schema.properties.values().chain(boxed).chain(branches).for_each(|inner| collect_problems(inner, problems));
}
