//! Expressions in CEL, as custom resources' rules, admission policies and webhooks' match conditions use them.
//!
//! In: the text of an expression and the names it may use; later the values of these names. Out: a value, or an error.
//! Parsing and the library of functions are those of `kube-cel`; the evaluation is ours, since that is where cost must
//! be counted: every step draws on a [`Budget`], and what exceeds it ends in an error that no `||` can hide.

mod evaluate;
mod functions;
mod guard;
mod value;

pub use functions::parsed;
pub use guard::{Budget, EXPRESSION_COST, MAX_EXPRESSION, STACK, TOTAL_COST, TOTAL_TIME, on_a_big_stack};
pub use kube_cel::cel::Value as CelValue;
pub use kube_cel::cel::objects::{Opaque, OptionalValue};
pub use value::{entry_of, from_json, text_of, with_entries};

use kube_cel::cel::common::ast::{CallExpr, EntryExpr, Expr, IdedEntryExpr, IdedExpr, SelectExpr};
use kube_cel::cel::parser::Parser;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CelError {
    /// It costs too much. Not absorbed by `||`, `&&`, `exists` and the like.
    #[error("{0}")]
    Exceeded(String),
    /// It went wrong: a missing key, wrong types, …
    #[error("{0}")]
    Failed(String),
}

/// Longest error of an evaluation, in bytes: it may quote values.
const MAX_MESSAGE: usize = 512;

impl CelError {
    /// An error of an evaluation, its text cut to a bearable length.
    pub fn failed(text: impl std::fmt::Display) -> Self {
        let mut text = text.to_string();
        if text.len() > MAX_MESSAGE {
            let end = (0..=MAX_MESSAGE).rev().find(|i| text.is_char_boundary(*i)).unwrap_or_default();
            text.truncate(end);
            text.push('…');
        }
        Self::Failed(text)
    }
}

/// What an expression may name.
#[derive(Debug, Clone, Copy, Default)]
pub struct Names<'a> {
    /// Variables, for example `object`.
    pub variables: &'a [&'a str],
    /// The fields of the variable `variables`; it exists only with at least one of them.
    pub composed: &'a [String],
    /// Methods beside those of the library, for example `allowed`. [`Scope::method`] answers them.
    pub methods: &'a [&'a str],
}

/// Where the evaluation of an expression finds values.
pub trait Scope: Sync {
    /// The value of a variable of [`Names::variables`]; `None` when it has none, which is an error of the expression.
    fn variable(&self, name: &str) -> Option<CelValue>;

    /// The value of `variables.name`, evaluated now or before.
    fn composed(&self, name: &str, _budget: &mut Budget) -> Result<CelValue, CelError> {
        Err(CelError::failed(format_args!("no such key: {name}")))
    }

    /// Calls one of [`Names::methods`]; `None` when the target is not of a type that has it.
    fn method(
        &self,
        _target: &CelValue,
        _name: &str,
        _args: &[CelValue],
        _budget: &mut Budget,
    ) -> Option<Result<CelValue, CelError>> {
        None
    }
}

/// A compiled expression.
#[derive(Debug)]
pub struct Expression {
    text: String,
    tree: IdedExpr,
    methods: Vec<String>,
}

/// The methods of `authorizer` in admission's expressions; selectors are not supported.
const AUTHORIZER: [&str; 12] = [
    "path",
    "serviceAccount",
    "group",
    "resource",
    "subresource",
    "namespace",
    "name",
    "check",
    "allowed",
    "reason",
    "errored",
    "error",
];

/// What the expressions of webhooks' match conditions and of admission policies may name: always `object`, `oldObject`,
/// `request` and `namespaceObject`; `params` and `authorizer` where these exist; the `composed` fields of `variables`.
pub fn admission_names(params: bool, authorizer: bool, composed: &[String]) -> Names<'_> {
    let variables: &[&str] = match (params, authorizer) {
        (true, true) => {
            &["object", "oldObject", "request", "namespaceObject", "params", "authorizer", "authorizer.requestResource"]
        }
        (false, true) => {
            &["object", "oldObject", "request", "namespaceObject", "authorizer", "authorizer.requestResource"]
        }
        (true, false) => &["object", "oldObject", "request", "namespaceObject", "params"],
        (false, false) => &["object", "oldObject", "request", "namespaceObject"],
    };
    Names { variables, composed, methods: if authorizer { &AUTHORIZER } else { &[] } }
}

impl Expression {
    /// Compiles many expressions (text and names) on one big stack. To be preferred to [`Self::compile`] elsewhere than
    /// on one.
    pub fn compile_all(all: &[(&str, Names<'_>)]) -> Vec<Result<Expression, String>> {
        let work = || all.iter().map(|(text, names)| Self::compile(text, names)).collect();
        on_a_big_stack(work).unwrap_or_else(|why| all.iter().map(|_| Err(why.clone())).collect())
    }

    /// Compiles an expression; to be called on a big stack.
    ///
    /// # Errors
    ///
    /// What is wrong with it: too long, too deep, no CEL, or it names what does not exist or is not supported.
    pub fn compile(text: &str, names: &Names<'_>) -> Result<Expression, String> {
        if text.trim().is_empty() {
            return Err("expression is empty".to_owned());
        }
        if guard::is_complex(text) {
            return Err(format!(
                "expression is too complex: at most {} brackets inside each other and {} operators that hang on each other",
                guard::MAX_NESTING,
                guard::MAX_DEPTH
            ));
        }
        if text.len() > MAX_EXPRESSION {
            return Err(format!("expression is too long: at most {MAX_EXPRESSION} bytes"));
        }
        let parse = || Parser::default().enable_optional_syntax(true).parse(text);
        // The parser is known to panic on some malformed texts.
        let parsed = catch_unwind(AssertUnwindSafe(parse)).map_err(|_| "Syntax error: cannot be parsed".to_owned())?;
        let tree = parsed.map_err(|e| match CelError::failed(e) {
            CelError::Failed(text) | CelError::Exceeded(text) => text,
        })?;
        Checker { names, bound: Vec::new() }.check(&tree)?;
        let methods = names.methods.iter().map(|m| (*m).to_owned()).collect();
        Ok(Expression { text: text.to_owned(), tree, methods })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it names a variable.
    pub fn mentions(&self, variable: &str) -> bool {
        mentions(&self.tree, variable)
    }

    /// Its value; to be called on a big stack.
    ///
    /// # Errors
    ///
    /// [`CelError::Exceeded`] when the budget does not suffice, else what went wrong.
    pub fn evaluate(&self, scope: &dyn Scope, budget: &mut Budget) -> Result<CelValue, CelError> {
        budget.begin();
        let run = || evaluate::run(&self.tree, scope, &self.methods, budget);
        catch_unwind(AssertUnwindSafe(run))
            .unwrap_or_else(|_| Err(CelError::failed("internal error: evaluation panicked")))
    }

    /// Its value, which must be `true` or `false`.
    ///
    /// # Errors
    ///
    /// As [`Self::evaluate`], and when the value is anything else.
    pub fn holds(&self, scope: &dyn Scope, budget: &mut Budget) -> Result<bool, CelError> {
        match self.evaluate(scope, budget)? {
            CelValue::Bool(holds) => Ok(holds),
            _ => Err(CelError::failed("must evaluate to bool")),
        }
    }
}

fn entry_parts(entries: &[IdedEntryExpr]) -> Vec<&IdedExpr> {
    let parts = entries.iter().flat_map(|entry| match &entry.expr {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
    });
    parts.collect()
}

/// Everything below an expression.
fn parts(tree: &IdedExpr) -> Vec<&IdedExpr> {
    match &tree.expr {
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).collect(),
        Expr::Comprehension(c) => vec![&c.iter_range, &c.accu_init, &c.loop_cond, &c.loop_step, &c.result],
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Map(map) => entry_parts(&map.entries),
        Expr::Struct(fields) => entry_parts(&fields.entries),
        Expr::Select(select) => vec![&select.operand],
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => Vec::new(),
    }
}

fn mentions(tree: &IdedExpr, variable: &str) -> bool {
    matches!(&tree.expr, Expr::Ident(name) if name == variable)
        || parts(tree).into_iter().any(|part| mentions(part, variable))
}

/// Variables whose names have a dot, and so look like a field.
const DOTTED: [&str; 1] = ["authorizer.requestResource"];

/// The dotted variable that a selection stands for.
fn qualified(select: &SelectExpr) -> Option<&'static str> {
    let Expr::Ident(base) = &select.operand.expr else { return None };
    DOTTED.into_iter().find(|name| name.split_once('.') == Some((base.as_str(), select.field.as_str())))
}

/// Finds what an expression names that does not exist, before it is ever evaluated.
struct Checker<'a> {
    names: &'a Names<'a>,
    /// The variables of comprehensions around.
    bound: Vec<String>,
}

impl Checker<'_> {
    fn is_variable(&self, name: &str) -> bool {
        self.bound.iter().any(|b| b == name) || self.names.variables.contains(&name)
    }

    fn check(&mut self, tree: &IdedExpr) -> Result<(), String> {
        match &tree.expr {
            Expr::Ident(name) if self.is_variable(name) || functions::is_type(name) => Ok(()),
            Expr::Ident(name) => Err(format!("undeclared reference to '{name}' (in container '')")),
            Expr::Select(select) if qualified(select).is_some_and(|name| self.names.variables.contains(&name)) => {
                Ok(())
            }
            Expr::Select(select) => match &select.operand.expr {
                Expr::Ident(base) if base == "variables" && !self.is_variable(base) => {
                    let known = self.names.composed.contains(&select.field);
                    known.then_some(()).ok_or_else(|| format!("undefined field '{}'", select.field))
                }
                _ => self.check(&select.operand),
            },
            Expr::Struct(s) => Err(format!("objects of types ('{}') are not supported", s.type_name)),
            Expr::Unspecified => Err("Syntax error: an expression is missing".to_owned()),
            Expr::Comprehension(c) => {
                self.check(&c.iter_range)?;
                self.check(&c.accu_init)?;
                let before = self.bound.len();
                for name in [Some(&c.iter_var), c.iter_var2.as_ref(), Some(&c.accu_var)].into_iter().flatten() {
                    self.bind(name)?;
                }
                let inside = [&c.loop_cond, &c.loop_step, &c.result].into_iter().try_for_each(|part| self.check(part));
                self.bound.truncate(before);
                inside
            }
            Expr::Call(call) => self.call(call),
            Expr::Literal(_) | Expr::List(_) | Expr::Map(_) => {
                parts(tree).into_iter().try_for_each(|part| self.check(part))
            }
        }
    }

    /// A comprehension's variable must not hide one that stands for the request.
    fn bind(&mut self, name: &str) -> Result<(), String> {
        if self.names.variables.contains(&name) || name == "variables" {
            return Err(format!("overlapping identifier for name '{name}'"));
        }
        self.bound.push(name.to_owned());
        Ok(())
    }

    fn call(&mut self, call: &CallExpr) -> Result<(), String> {
        let name = call.func_name.as_str();
        if matches!(name, "optMap" | "optFlatMap")
            && let (Some(target), [variable, body]) = (&call.target, call.args.as_slice())
        {
            let Expr::Ident(variable) = &variable.expr else { return Err(format!("{name}() variable must be a name")) };
            self.check(target)?;
            self.bind(variable)?;
            let inside = self.check(body);
            self.bound.pop();
            return inside;
        }
        let library = match call.target.as_deref().map(|t| &t.expr) {
            Some(Expr::Ident(library)) if !self.is_variable(library) => Some(library),
            _ => None,
        };
        let qualified = library.map(|library| format!("{library}.{name}"));
        let known = match &qualified {
            Some(qualified) => functions::exists(qualified),
            None if call.target.is_some() => functions::exists(name) || self.names.methods.contains(&name),
            None => functions::exists(name),
        };
        if !known {
            return Err(format!(
                "undeclared reference to '{}' (in container '')",
                qualified.as_deref().unwrap_or(name)
            ));
        }
        if let (None, Some(target)) = (library, &call.target) {
            self.check(target)?;
        }
        call.args.iter().try_for_each(|part| self.check(part))
    }
}

#[cfg(test)]
mod tests;
