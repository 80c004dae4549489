//! The evaluation of an expression's tree: operators, fields, comprehensions. In: a tree, a scope, a budget. Out: its
//! value. Values share what they hold, so that a step costs no more than its unit.

use super::functions::{self, error};
use super::value::{map_of, size};
use super::{Budget, CelError, Scope};
use kube_cel::cel::Value;
use kube_cel::cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, ListExpr, MapExpr, SelectExpr, operators,
};
use kube_cel::cel::objects::{Key, OptionalValue};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

type Result<T = Value> = std::result::Result<T, CelError>;

/// The value of a tree.
pub(super) fn run(tree: &IdedExpr, scope: &dyn Scope, methods: &[String], budget: &mut Budget) -> Result {
    Evaluation { scope, methods, budget, locals: Vec::new() }.value(tree)
}

struct Evaluation<'a> {
    scope: &'a dyn Scope,
    methods: &'a [String],
    budget: &'a mut Budget,
    /// The variables of comprehensions around, the innermost last.
    locals: Vec<(&'a str, Value)>,
}

fn no_overload<T>() -> Result<T> {
    Err(CelError::failed("no such overload"))
}

fn boolean(value: Value) -> Result<bool> {
    match value {
        Value::Bool(b) => Ok(b),
        _ => no_overload(),
    }
}

/// What is inside of an optional value; `None` when the value is no optional.
fn optional(value: &Value) -> Option<Option<&Value>> {
    match value {
        Value::Opaque(o) => o.downcast_ref::<OptionalValue>().map(OptionalValue::value),
        _ => None,
    }
}

fn to_optional(value: Option<Value>) -> Value {
    Value::Opaque(Arc::new(value.map_or_else(OptionalValue::none, OptionalValue::of)))
}

impl<'a> Evaluation<'a> {
    fn value(&mut self, tree: &'a IdedExpr) -> Result {
        if let Expr::Literal(literal) = &tree.expr {
            let value = Value::try_from(literal.to_val().as_ref()).map_err(error)?;
            self.budget.charge(size(&value)? - 1)?;
            return Ok(value);
        }
        self.budget.enter()?;
        let value = match &tree.expr {
            Expr::Ident(name) => self.variable(name),
            Expr::Select(select) => self.select(select),
            Expr::List(list) => self.list(list),
            Expr::Map(map) => self.map(map),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Call(call) => self.call(call),
            Expr::Literal(_) | Expr::Struct(_) | Expr::Unspecified => Err(CelError::failed("unsupported expression")),
        };
        self.budget.leave();
        value
    }

    fn local(&self, name: &str) -> Option<usize> {
        self.locals.iter().rposition(|(n, _)| *n == name)
    }

    fn variable(&mut self, name: &str) -> Result {
        if let Some(at) = self.local(name) {
            return Ok(self.locals[at].1.clone());
        }
        let value = self.scope.variable(name).or_else(|| functions::named_type(name));
        value.ok_or_else(|| CelError::failed(format_args!("no such attribute(s): {name}")))
    }

    fn select(&mut self, select: &'a SelectExpr) -> Result {
        if let Some(value) = super::qualified(select).and_then(|name| self.scope.variable(name)) {
            return Ok(if select.test { Value::Bool(true) } else { value });
        }
        if let Expr::Ident(base) = &select.operand.expr
            && base == "variables"
            && self.local(base).is_none()
            && !select.test
        {
            return self.scope.composed(&select.field, self.budget);
        }
        if select.test && matches!(&select.operand.expr, Expr::Ident(base) if base == "variables") {
            return Ok(Value::Bool(true)); // unknown ones are refused when compiled
        }
        let operand = self.value(&select.operand)?;
        if let Some(inside) = optional(&operand) {
            let found = inside.and_then(|value| field(value, &select.field));
            return Ok(if select.test { Value::Bool(found.is_some()) } else { to_optional(found) });
        }
        let Value::Map(map) = &operand else { return no_overload() };
        let found = map.map.get(&Key::from(select.field.as_str()));
        if select.test {
            return Ok(Value::Bool(found.is_some()));
        }
        found.cloned().ok_or_else(|| CelError::failed(format_args!("no such key: {}", select.field)))
    }

    fn list(&mut self, list: &'a ListExpr) -> Result {
        let mut items = Vec::with_capacity(list.elements.len());
        for (i, element) in list.elements.iter().enumerate() {
            let value = self.value(element)?;
            match optional(&value) {
                Some(inside) if list.optional_indices.contains(&i) => items.extend(inside.cloned()),
                _ => items.push(value),
            }
        }
        Ok(Value::List(Arc::new(items)))
    }

    fn map(&mut self, map: &'a MapExpr) -> Result {
        let mut made = HashMap::with_capacity(map.entries.len());
        for entry in &map.entries {
            let EntryExpr::MapEntry(entry) = &entry.expr else { return no_overload() };
            let key = self.value(&entry.key)?;
            let key: Key = key.try_into().map_err(|_| CelError::failed("unsupported key type"))?;
            let value = self.value(&entry.value)?;
            let value = match optional(&value) {
                Some(inside) if entry.optional => inside.cloned(),
                _ => Some(value),
            };
            if let Some(value) = value
                && made.insert(key.clone(), value).is_some()
            {
                return Err(CelError::failed(format_args!("Failed with repeated key: {key}")));
            }
        }
        Ok(map_of(made))
    }

    fn comprehension(&mut self, c: &'a ComprehensionExpr) -> Result {
        let items = match self.value(&c.iter_range)? {
            Value::List(items) => items,
            Value::Map(map) => {
                self.budget.charge(map.map.len() as u64)?;
                let mut keys: Vec<&Key> = map.map.keys().collect();
                keys.sort();
                Arc::new(keys.into_iter().map(Value::from).collect())
            }
            _ => return no_overload(),
        };
        let start = self.value(&c.accu_init)?;
        let accumulator = self.locals.len();
        self.locals.push((&c.accu_var, start));
        let result = self.iterate(c, &items, accumulator);
        self.locals.truncate(accumulator);
        result
    }

    fn iterate(&mut self, c: &'a ComprehensionExpr, items: &[Value], accumulator: usize) -> Result {
        self.locals.push((&c.iter_var, Value::Null));
        for item in items {
            if !boolean(self.value(&c.loop_cond)?)? {
                break;
            }
            self.locals[accumulator + 1].1 = item.clone();
            let next = self.value(&c.loop_step);
            // An error in one step may yet be outweighed by another (`exists`, `all`): it goes on as a value would.
            match next {
                Err(CelError::Failed(why)) if absorbs(c) => {
                    self.locals[accumulator].1 = Value::Function(Arc::new(why), None);
                }
                other => self.locals[accumulator].1 = other?,
            }
        }
        self.checked(&c.result)
    }

    fn call(&mut self, call: &'a CallExpr) -> Result {
        let name = call.func_name.as_str();
        if let Some(target) = call.target.as_deref() {
            return self.method(name, target, &call.args);
        }
        match (name, call.args.as_slice()) {
            (operators::LOGICAL_AND, [a, b]) => self.logical(a, b, false),
            (operators::LOGICAL_OR, [a, b]) => self.logical(a, b, true),
            (operators::CONDITIONAL, [test, then, otherwise]) => {
                let holds = boolean(self.value(test)?)?;
                self.value(if holds { then } else { otherwise })
            }
            (operators::NOT_STRICTLY_FALSE, [a]) => match self.value(a) {
                Ok(value) => Ok(Value::Bool(!matches!(value, Value::Bool(false)))),
                Err(CelError::Failed(_)) => Ok(Value::Bool(true)),
                Err(exceeded) => Err(exceeded),
            },
            (operators::ADD, [a, b]) => self.add(a, b),
            (operators::LOGICAL_NOT, [a]) => {
                let value = self.checked(a)?;
                boolean(value).map(|b| Value::Bool(!b))
            }
            (operators::NEGATE, [a]) => match self.value(a)? {
                Value::Int(i) => i.checked_neg().map(Value::Int).ok_or_else(|| CelError::failed("integer overflow")),
                Value::Float(f) => Ok(Value::Float(-f)),
                _ => no_overload(),
            },
            (_, [a, b]) if name.starts_with(['_', '@']) => {
                let (left, right) = (self.value(a)?, self.value(b)?);
                self.binary(name, left, right)
            }
            _ => {
                let args = self.values(&call.args)?;
                functions::call(name, None, &args, self.budget)
            }
        }
    }

    /// A value that stands for an error of a former step is that error again.
    fn checked(&mut self, tree: &'a IdedExpr) -> Result {
        match self.value(tree)? {
            Value::Function(why, None) => Err(CelError::Failed((*why).clone())),
            value => Ok(value),
        }
    }

    fn values(&mut self, trees: &'a [IdedExpr]) -> Result<Vec<Value>> {
        trees.iter().map(|tree| self.value(tree)).collect()
    }

    /// `&&` and `||`: whichever side decides, decides, whatever the other says or fails at.
    fn logical(&mut self, a: &'a IdedExpr, b: &'a IdedExpr, decisive: bool) -> Result {
        let mut failed = None;
        for side in [a, b] {
            match self.checked(side) {
                Ok(Value::Bool(value)) if value == decisive => return Ok(Value::Bool(decisive)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => failed = failed.or(Some(CelError::failed("no such overload"))),
                Err(exceeded @ CelError::Exceeded(_)) => return Err(exceeded),
                Err(why) => failed = failed.or(Some(why)),
            }
        }
        failed.map_or(Ok(Value::Bool(!decisive)), Err)
    }

    fn add(&mut self, a: &'a IdedExpr, b: &'a IdedExpr) -> Result {
        // `map` and `filter` append to their result: it is taken from its place, so that it need not be copied.
        if let (Expr::Ident(name), Expr::List(_)) = (&a.expr, &b.expr)
            && name.starts_with('@')
            && let Some(at) = self.local(name)
        {
            let right = self.value(b)?;
            self.budget.charge(1)?;
            let left = std::mem::replace(&mut self.locals[at].1, Value::Null);
            return (left + right).map_err(error);
        }
        let (left, right) = (self.value(a)?, self.value(b)?);
        let cost = match (&left, &right) {
            (Value::String(l), Value::String(r)) => l.len() + r.len(),
            (Value::Bytes(l), Value::Bytes(r)) => l.len() + r.len(),
            (Value::List(l), Value::List(r)) => 8 * (l.len() + r.len()),
            _ => 0,
        };
        self.budget.charge(cost as u64 / 8)?;
        if let (Value::Bytes(l), Value::Bytes(r)) = (&left, &right) {
            return Ok(Value::Bytes(Arc::new([l.as_slice(), r.as_slice()].concat())));
        }
        (left + right).map_err(error)
    }

    fn binary(&mut self, name: &str, left: Value, right: Value) -> Result {
        match name {
            operators::EQUALS | operators::NOT_EQUALS => {
                self.budget.charge(size(&left)?.min(size(&right)?))?;
                Ok(Value::Bool((left == right) == (name == operators::EQUALS)))
            }
            operators::SUBSTRACT => (left - right).map_err(error),
            operators::MULTIPLY => (left * right).map_err(error),
            operators::DIVIDE => (left / right).map_err(error),
            operators::MODULO => (left % right).map_err(error),
            operators::INDEX | operators::OPT_INDEX => index(&left, &right, name == operators::OPT_INDEX),
            operators::OPT_SELECT => {
                let Some(key) = super::text_of(&right) else { return no_overload() };
                match optional(&left) {
                    Some(inside) => Ok(to_optional(inside.and_then(|value| field(value, key)))),
                    None if matches!(left, Value::Map(_)) => Ok(to_optional(field(&left, key))),
                    None => no_overload(),
                }
            }
            operators::IN => {
                self.budget.charge(size(&left)?)?;
                match &right {
                    Value::List(items) => {
                        for item in items.iter() {
                            self.budget.charge(size(item)?.min(size(&left)?))?;
                            if *item == left {
                                return Ok(Value::Bool(true));
                            }
                        }
                        Ok(Value::Bool(false))
                    }
                    Value::Map(_) => Ok(Value::Bool(entry(&right, &left).is_some())),
                    _ => no_overload(),
                }
            }
            _ => self.compare(name, &left, &right),
        }
    }

    fn compare(&mut self, name: &str, left: &Value, right: &Value) -> Result {
        self.budget.charge(size(left)?.min(size(right)?))?;
        let not_a_number = |v: &Value| matches!(v, Value::Float(f) if f.is_nan());
        if not_a_number(left) || not_a_number(right) {
            return Ok(Value::Bool(false));
        }
        let order = match (left, right) {
            (Value::Null, _) | (_, Value::Null) => None,
            _ => left.partial_cmp(right),
        };
        let Some(order) = order else { return no_overload() };
        let holds = match name {
            operators::LESS => order == Ordering::Less,
            operators::LESS_EQUALS => order != Ordering::Greater,
            operators::GREATER => order == Ordering::Greater,
            operators::GREATER_EQUALS => order != Ordering::Less,
            _ => return no_overload(),
        };
        Ok(Value::Bool(holds))
    }

    fn method(&mut self, name: &str, target: &'a IdedExpr, args: &'a [IdedExpr]) -> Result {
        if matches!(name, "optMap" | "optFlatMap")
            && let [variable, body] = args
            && let Expr::Ident(variable) = &variable.expr
        {
            return self.inside_optional(target, variable, body, name == "optFlatMap");
        }
        if let Expr::Ident(library) = &target.expr
            && self.local(library).is_none()
        {
            let qualified = format!("{library}.{name}");
            if self.scope.variable(library).is_none() && functions::exists(&qualified) {
                let args = self.values(args)?;
                return functions::call(&qualified, None, &args, self.budget);
            }
        }
        let target = self.value(target)?;
        let args = self.values(args)?;
        if self.methods.iter().any(|m| m == name)
            && let Some(answer) = self.scope.method(&target, name, &args, self.budget)
        {
            return answer;
        }
        functions::call(name, Some(&target), &args, self.budget)
    }

    /// `x.optMap(v, body)`: the body over what is inside, if there is anything.
    fn inside_optional(&mut self, target: &'a IdedExpr, variable: &'a str, body: &'a IdedExpr, flat: bool) -> Result {
        let target = self.value(target)?;
        let Some(inside) = optional(&target) else { return no_overload() };
        let Some(inside) = inside.cloned() else { return Ok(target) };
        self.locals.push((variable, inside));
        let value = self.value(body);
        self.locals.pop();
        let value = value?;
        match (flat, optional(&value)) {
            (true, None) => no_overload(),
            (true, Some(_)) => Ok(value),
            (false, _) => Ok(to_optional(Some(value))),
        }
    }
}

/// Whether a step of a comprehension may fail and the next decide: `all` and `exists`, which begin with a truth value.
fn absorbs(c: &ComprehensionExpr) -> bool {
    let Expr::Call(step) = &c.loop_step.expr else { return false };
    matches!(step.func_name.as_str(), operators::LOGICAL_AND | operators::LOGICAL_OR) && c.accu_var.starts_with('@')
}

fn field(value: &Value, name: &str) -> Option<Value> {
    match value {
        Value::Map(map) => map.map.get(&Key::from(name)).cloned(),
        _ => None,
    }
}

/// The entry of a map; numbers of all types that are the same are the same key.
fn entry<'v>(map: &'v Value, key: &Value) -> Option<&'v Value> {
    let Value::Map(map) = map else { return None };
    let keys = match key {
        Value::Int(i) => [Some(Key::Int(*i)), u64::try_from(*i).ok().map(Key::Uint)],
        Value::UInt(u) => [Some(Key::Uint(*u)), i64::try_from(*u).ok().map(Key::Int)],
        other => [other.clone().try_into().ok(), None],
    };
    keys.into_iter().flatten().find_map(|key| map.map.get(&key))
}

fn index(value: &Value, key: &Value, wants_optional: bool) -> Result {
    let (value, wants_optional) = match optional(value) {
        Some(None) => return Ok(to_optional(None)),
        Some(Some(inside)) => (inside, true),
        None => (value, wants_optional),
    };
    let found = match (value, key) {
        (Value::List(items), Value::Int(i)) => usize::try_from(*i).ok().and_then(|i| items.get(i)),
        (Value::List(items), Value::UInt(i)) => usize::try_from(*i).ok().and_then(|i| items.get(i)),
        (Value::Map(_), key) => entry(value, key),
        _ => return no_overload(),
    };
    match (found, value) {
        (found, _) if wants_optional => Ok(to_optional(found.cloned())),
        (Some(found), _) => Ok(found.clone()),
        (None, Value::List(_)) => Err(CelError::failed(format_args!("index out of bounds: {}", shown(key)))),
        (None, _) => Err(CelError::failed(format_args!("no such key: {}", shown(key)))),
    }
}

fn shown(key: &Value) -> String {
    match key {
        Value::Int(i) => i.to_string(),
        Value::UInt(u) => u.to_string(),
        Value::Bool(b) => b.to_string(),
        Value::String(s) => s.chars().take(128).collect(),
        _ => "?".to_owned(),
    }
}
