//! The functions of expressions: a few of our own, the others from the library, with bounds on those whose results may
//! be far bigger than what they are given.

use super::value::size;
use super::{Budget, CelError};
use kube_cel::KubeCelExt as _;
use kube_cel::cel::common::ast::{CallExpr, Expr, IdedExpr};
use kube_cel::cel::objects::Opaque;
use kube_cel::cel::{Context, ExecutionError, Value};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};

/// Bytes or items of a result.
const MAX_RESULT: usize = 4 << 20;
/// Digits after the point in a formatted number.
const MAX_PRECISION: usize = 100;
/// What a regular expression costs before it is matched: it is compiled anew every time.
const REGEX_COST: u64 = 1000;

/// Those that are evaluated here and not by the library.
const OWN: [&str; 4] = ["size", "type", "dyn", "has"];

static LIBRARY: LazyLock<Context<'static>> = LazyLock::new(|| Context::default().with_all());

/// The type of a value, as `type(x)` gives it.
#[derive(Debug, PartialEq, Eq)]
struct TypeName(&'static str);

impl Opaque for TypeName {
    fn runtime_type_name(&self) -> &str {
        "type"
    }
}

const TYPES: [&str; 10] = ["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type"];

/// Whether an identifier is the name of a type.
pub(super) fn is_type(name: &str) -> bool {
    TYPES.contains(&name)
}

/// The type of a name.
pub(super) fn named_type(name: &str) -> Option<Value> {
    TYPES.iter().find(|t| **t == name).map(|t| Value::Opaque(Arc::new(TypeName(t))))
}

/// Whether there is a function of this (qualified) name.
pub(super) fn exists(name: &str) -> bool {
    if OWN.contains(&name) || is_operator(name) {
        return true;
    }
    let call = IdedExpr { id: 0, expr: Expr::Call(CallExpr { func_name: name.to_owned(), ..CallExpr::default() }) };
    // Without arguments, every function fails; those that do not exist say so.
    let answer = catch_unwind(AssertUnwindSafe(|| LIBRARY.resolve(&call)));
    !matches!(answer, Ok(Err(ExecutionError::UndeclaredReference(missing))) if *missing == name)
}

/// Operators are calls of names that cannot be written.
fn is_operator(name: &str) -> bool {
    name.starts_with('@') || name.contains('_') && !name.contains(|c: char| c.is_ascii_alphanumeric())
}

/// Calls a function: `name` qualified with its library if it has one, `target` when it is called as a method.
pub(super) fn call(name: &str, target: Option<&Value>, args: &[Value], budget: &mut Budget) -> Result<Value, CelError> {
    let all: Vec<&Value> = target.into_iter().chain(args).collect();
    match (name, all.as_slice()) {
        ("size", [value]) => return length(value, budget),
        ("dyn", [value]) if target.is_none() => return Ok((*value).clone()),
        ("type", [value]) if target.is_none() => return Ok(type_of(value)),
        _ => {}
    }
    for value in &all {
        budget.charge(size(value)?)?;
    }
    expansion(name, &all, budget)?;
    let mut inner = LIBRARY.new_inner_scope();
    let bind = |inner: &mut Context<'_>, place: String, value: &Value| {
        inner.add_variable_from_value(place.clone(), value.clone());
        IdedExpr { id: 0, expr: Expr::Ident(place) }
    };
    let target = target.map(|value| Box::new(bind(&mut inner, "@this".to_owned(), value)));
    let args = args.iter().enumerate().map(|(i, value)| bind(&mut inner, format!("@{i}"), value)).collect();
    let call = CallExpr { func_name: name.to_owned(), target, args };
    let result = inner.resolve(&IdedExpr { id: 0, expr: Expr::Call(call) }).map_err(error)?;
    budget.charge(size(&result)?)?;
    Ok(result)
}

/// What a conversion such as `timestamp` makes of a text; `None` when it refuses it.
pub fn parsed(conversion: &str, text: &str) -> Option<Value> {
    call(conversion, None, &[text.into()], &mut Budget::default()).ok()
}

/// The library's errors in CEL's words.
pub(super) fn error(error: ExecutionError) -> CelError {
    match error {
        ExecutionError::NoSuchKey(key) => CelError::failed(format_args!("no such key: {key}")),
        ExecutionError::NoSuchOverload
        | ExecutionError::UnsupportedBinaryOperator(..)
        | ExecutionError::UnsupportedUnaryOperator(..)
        | ExecutionError::UnexpectedType { .. }
        | ExecutionError::UnsupportedTargetType { .. }
        | ExecutionError::InvalidArgumentCount { .. } => CelError::failed("no such overload"),
        ExecutionError::DivisionByZero(_) => CelError::failed("division by zero"),
        ExecutionError::RemainderByZero(_) => CelError::failed("modulus by zero"),
        ExecutionError::Overflow(..) => CelError::failed("integer overflow"),
        ExecutionError::FunctionError { message, .. } => CelError::failed(message),
        other => CelError::failed(other),
    }
}

/// Characters of a string, bytes, items or entries.
fn length(value: &Value, budget: &mut Budget) -> Result<Value, CelError> {
    let length = match value {
        Value::String(s) => {
            budget.charge(s.len() as u64 / 8)?;
            s.chars().count()
        }
        Value::Bytes(b) => b.len(),
        Value::List(items) => items.len(),
        Value::Map(map) => map.map.len(),
        _ => return Err(CelError::failed("no such overload")),
    };
    Ok(Value::Int(i64::try_from(length).unwrap_or(i64::MAX)))
}

fn type_of(value: &Value) -> Value {
    let name = match value {
        Value::Bool(_) => "bool",
        Value::Int(_) => "int",
        Value::UInt(_) => "uint",
        Value::Float(_) => "double",
        Value::String(_) => "string",
        Value::Bytes(_) => "bytes",
        Value::List(_) => "list",
        Value::Map(_) => "map",
        Value::Null => "null_type",
        Value::Opaque(o) if o.downcast_ref::<TypeName>().is_some() => "type",
        _ => "dyn",
    };
    Value::Opaque(Arc::new(TypeName(name)))
}

/// What a call costs beyond its arguments, before it is done: the work of functions that compare everything with
/// everything, and the results of those that multiply.
fn expansion(name: &str, all: &[&Value], budget: &mut Budget) -> Result<(), CelError> {
    let text = |i: usize| all.get(i).and_then(|v| super::text_of(v)).unwrap_or("");
    let items = |i: usize| match all.get(i) {
        Some(Value::List(list)) => list.as_slice(),
        _ => &[],
    };
    let made = match name {
        "sets.contains" | "sets.equivalent" | "sets.intersects" => {
            let (left, right) =
                (size(all.first().unwrap_or(&&Value::Null))?, size(all.get(1).unwrap_or(&&Value::Null))?);
            return budget.charge(left.saturating_mul(right));
        }
        "distinct" => {
            let n = size(all.first().unwrap_or(&&Value::Null))?;
            return budget.charge(n.saturating_mul(n));
        }
        "matches" | "find" | "findAll" => {
            // The pattern's automaton may be far bigger than its text. Of matches, there may be one for each byte.
            let matches = if name == "findAll" { text(0).len() } else { 0 };
            return budget.charge(REGEX_COST + (20 * text(1).len() + matches) as u64);
        }
        "split" => {
            let pieces = if text(1).is_empty() { text(0).len() } else { text(0).matches(text(1)).count() };
            return budget.charge(2 * pieces as u64);
        }
        "replace" => {
            let found = text(0).len() / text(1).len().max(1) + 1;
            text(0).len().saturating_add(found.saturating_mul(text(2).len()))
        }
        "join" => {
            let parts: usize = items(0).iter().map(|v| super::text_of(v).unwrap_or("").len()).sum();
            parts.saturating_add(items(0).len().saturating_mul(text(1).len()))
        }
        "lists.range" => {
            let Some(Value::Int(n)) = all.first() else { return Ok(()) };
            return budget.charge(4 * u64::try_from(*n).unwrap_or(0).min(u64::MAX / 4));
        }
        "format" => {
            let mut digits = text(0).split("%.").skip(1).map(|rest| rest.trim_start_matches('0'));
            let long = digits.any(|rest| {
                let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                end > 3 || rest[..end].parse::<usize>().is_ok_and(|n| n > MAX_PRECISION)
            });
            if long {
                return Err(CelError::failed(format_args!("precision is limited to {MAX_PRECISION}")));
            }
            0
        }
        _ => 0,
    };
    if made > MAX_RESULT {
        return Err(CelError::Exceeded(format!("operation cancelled: {name}() makes more than {MAX_RESULT} bytes")));
    }
    budget.charge(made as u64 / 8)
}
