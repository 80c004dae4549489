//! CEL expressions of authentication: compiled and looked through once, evaluated within bounds.
//!
//! In: an expression and the one variable it may use (`claims` or `user`). Out: a program, or what is wrong in the
//! words of Kubernetes' compiler; and values by evaluation. Parser and interpreter call themselves for every bracket
//! and operator, so they run on stacks of their own, and expressions are bounded before.

use kube_cel::KubeCelExt;
use kube_cel::cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};
use kube_cel::cel::parser::Parser;
use kube_cel::cel::{Context, Value as CelValue};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

/// Longest expression, in bytes.
const MAX_LENGTH: usize = 4096;
/// Brackets inside each other.
const MAX_NESTING: u16 = 32;
/// Operators that hang on each other, brackets included.
const MAX_DEPTH: usize = 250;
/// For evaluation: without optimisation it takes forty kilobytes for an operator.
const STACK: usize = 32 * 1024 * 1024;
/// For parsing, whose depth is known only afterwards. Only what is touched takes memory.
const PARSER_STACK: usize = 256 * 1024 * 1024;

/// A compiled expression.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    source: String,
    expression: Arc<IdedExpr>,
    variable: &'static str,
    selects: Vec<String>,
}

/// What functions such as `sets.contains` are called on.
const NAMESPACES: [&str; 9] = ["sets", "math", "base64", "format", "jsonpatch", "optional", "ip", "strings", "lists"];
/// Fields that `user` has.
const USER_FIELDS: [&str; 4] = ["username", "uid", "groups", "extra"];

impl Program {
    /// Compiles an expression over `variable`; `condition` says that it must be a boolean.
    pub(crate) fn compile(source: &str, variable: &'static str, condition: bool) -> Result<Self, String> {
        if source.len() > MAX_LENGTH {
            return Err(format!("compilation failed: the expression is longer than {MAX_LENGTH} bytes"));
        }
        on_a_stack(PARSER_STACK, || {
            let parser = Parser::new().max_recursion_depth(MAX_NESTING).enable_optional_syntax(true);
            let mut expression = parser.parse(source).map_err(|errors| format!("compilation failed: {errors}"))?;
            let mut look = Look { variable, scope: Vec::new(), selects: Vec::new() };
            look.walk(&mut expression, 0).map_err(|problem| format!("compilation failed: {problem}"))?;
            if condition && !may_be_bool(&expression) {
                return Err("must evaluate to bool".to_owned());
            }
            let selects = look.selects;
            Ok(Self { source: source.to_owned(), expression: Arc::new(expression), variable, selects })
        })?
    }

    /// The text it was compiled from.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// Whether it selects a field of its variable, as in `claims.email`.
    pub(crate) fn selects(&self, field: &str) -> bool {
        self.selects.iter().any(|selected| selected == field)
    }
}

/// The variables of an evaluation; all evaluations of a token happen inside one [`evaluate`].
pub(crate) struct Evaluation(());

impl Evaluation {
    /// The value of a program with its variable.
    pub(crate) fn run(&self, program: &Program, variable: &CelValue) -> Result<CelValue, String> {
        let mut context = Context::default().with_all();
        context.add_variable_from_value(program.variable, variable.clone());
        CelValue::resolve(&program.expression, &context).map_err(|error| bounded(&error.to_string()))
    }
}

/// Runs evaluations on a stack that is large enough; waits for them, so not for the threads of a runtime.
pub(crate) fn evaluate<T: Send>(work: impl FnOnce(&Evaluation) -> T + Send) -> Result<T, String> {
    on_a_stack(STACK, || work(&Evaluation(())))
}

/// A JSON value as CEL has it. Whole numbers are `int`, as in Kubernetes.
pub(crate) fn value(json: &Value) -> CelValue {
    match json {
        Value::Null => CelValue::Null,
        Value::Bool(b) => CelValue::Bool(*b),
        Value::Number(n) => n.as_i64().map_or_else(|| CelValue::Float(n.as_f64().unwrap_or(f64::NAN)), CelValue::Int),
        Value::String(s) => CelValue::String(Arc::new(s.clone())),
        Value::Array(items) => CelValue::List(Arc::new(items.iter().map(value).collect())),
        Value::Object(map) => {
            let map: HashMap<String, CelValue> = map.iter().map(|(key, inner)| (key.clone(), value(inner))).collect();
            CelValue::Map(map.into())
        }
    }
}

/// Errors of the interpreter print whole values.
fn bounded(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(256).collect()
}

fn on_a_stack<T: Send>(size: usize, work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("authn-cel".to_owned()).stack_size(size);
        let thread = thread.spawn_scoped(scope, work).map_err(|e| format!("no thread for an expression: {e}"))?;
        thread.join().map_err(|_| "an expression panicked".to_owned())
    })
}

/// Whether an expression can be a boolean as far as its outermost operation tells. What claims hold is known only
/// when they come, and Kubernetes wants conditions to be boolean before.
fn may_be_bool(expression: &IdedExpr) -> bool {
    match &expression.expr {
        Expr::Literal(literal) => matches!(literal, LiteralValue::Boolean(_)),
        Expr::Select(select) => select.test,
        Expr::Ident(_) | Expr::List(_) | Expr::Map(_) | Expr::Struct(_) => false,
        Expr::Call(call) => match call.func_name.as_str() {
            operators::CONDITIONAL => call.args.iter().skip(1).all(may_be_bool),
            operators::ADD
            | operators::SUBSTRACT
            | operators::MULTIPLY
            | operators::DIVIDE
            | operators::MODULO
            | operators::NEGATE
            | operators::INDEX
            | operators::OPT_INDEX
            | operators::OPT_SELECT => false,
            "size" | "string" | "int" | "uint" | "double" => false,
            _ => true,
        },
        _ => true,
    }
}

/// Looks an expression through: what it is about, and how deep it is.
struct Look {
    variable: &'static str,
    scope: Vec<String>,
    selects: Vec<String>,
}

impl Look {
    fn walk(&mut self, node: &mut IdedExpr, depth: usize) -> Result<(), String> {
        let depth = depth + 1;
        if depth > MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} operators that hang on each other"));
        }
        match &mut node.expr {
            Expr::Unspecified | Expr::Literal(_) => Ok(()),
            Expr::Ident(name) if name == self.variable || self.scope.contains(name) => Ok(()),
            Expr::Ident(name) => Err(format!("undeclared reference to '{name}' (in container '')")),
            Expr::Select(select) => {
                self.select(&select.operand, &select.field)?;
                self.walk(&mut select.operand, depth)
            }
            Expr::Call(call) => self.call(call, depth),
            Expr::List(list) => list.elements.iter_mut().try_for_each(|element| self.walk(element, depth)),
            Expr::Map(map) => map.entries.iter_mut().try_for_each(|entry| self.entry(&mut entry.expr, depth)),
            Expr::Struct(s) => Err(format!("undeclared reference to '{}' (in container '')", s.type_name)),
            Expr::Comprehension(all) => {
                self.walk(&mut all.iter_range, depth)?;
                self.walk(&mut all.accu_init, depth)?;
                let outer = self.scope.len();
                self.scope.extend([all.iter_var.clone(), all.accu_var.clone()]);
                self.scope.extend(all.iter_var2.clone());
                for inner in [&mut all.loop_cond, &mut all.loop_step, &mut all.result] {
                    self.walk(inner, depth)?;
                }
                self.scope.truncate(outer);
                Ok(())
            }
        }
    }

    fn call(&mut self, call: &mut CallExpr, depth: usize) -> Result<(), String> {
        if call.func_name == operators::OPT_SELECT {
            if let [operand, field] = call.args.as_slice()
                && let Expr::Literal(LiteralValue::String(field)) = &field.expr
            {
                self.select(operand, field.inner())?;
            }
            // The interpreter answers `a.?b` with an error when `a` has no `b`, and `a[?'b']` as it should.
            operators::OPT_INDEX.clone_into(&mut call.func_name);
        }
        let is_namespace =
            |target: &IdedExpr| matches!(&target.expr, Expr::Ident(name) if NAMESPACES.contains(&name.as_str()));
        if let Some(target) = call.target.as_mut().filter(|target| !is_namespace(target)) {
            self.walk(target, depth)?;
        }
        call.args.iter_mut().try_for_each(|argument| self.walk(argument, depth))
    }

    fn entry(&mut self, entry: &mut EntryExpr, depth: usize) -> Result<(), String> {
        match entry {
            EntryExpr::StructField(field) => self.walk(&mut field.value, depth),
            EntryExpr::MapEntry(entry) => {
                self.walk(&mut entry.key, depth)?;
                self.walk(&mut entry.value, depth)
            }
        }
    }

    fn select(&mut self, operand: &IdedExpr, field: &str) -> Result<(), String> {
        if !matches!(&operand.expr, Expr::Ident(name) if name == self.variable && !self.scope.contains(name)) {
            return Ok(());
        }
        if self.variable == "user" && !USER_FIELDS.contains(&field) {
            return Err(format!("undefined field '{field}'"));
        }
        self.selects.push(field.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(source: &str, claims: &Value) -> Result<CelValue, String> {
        let program = Program::compile(source, "claims", false)?;
        evaluate(|evaluation| evaluation.run(&program, &value(claims)))?
    }

    #[test]
    fn expressions_of_the_documentation_evaluate() {
        let claims =
            json!({ "sub": "ann", "exp": 10, "nbf": 4, "roles": ["a", "b"], "roleText": "x,y", "deep": { "k": true } });
        let text = |s: &str| CelValue::String(Arc::new(s.to_owned()));
        let table = [
            ("claims.sub + ':x'", text("ann:x")),
            ("'oidc:' + claims.sub", text("oidc:ann")),
            ("claims.exp - claims.nbf <= 6", CelValue::Bool(true)),
            ("claims.roles.all(r, r != 'c')", CelValue::Bool(true)),
            ("claims.roles.map(r, 'g:' + r)[1]", text("g:b")),
            ("has(claims.none) ? 'y' : 'n'", text("n")),
            ("claims.deep.k", CelValue::Bool(true)),
            ("claims.?none.orValue('d')", text("d")),
            ("claims.?deep.?k.orValue(false)", CelValue::Bool(true)),
            ("claims.?deep.?none.orValue(false)", CelValue::Bool(false)),
            ("claims.?none.?k.orValue(5)", CelValue::Int(5)),
            ("claims.roleText.split(',')[1]", text("y")),
            ("claims['sub']", text("ann")),
            ("sets.contains(claims.roles, ['a'])", CelValue::Bool(true)),
        ];
        for (source, want) in table {
            assert_eq!(run(source, &claims), Ok(want), "{source}");
        }
        assert!(run("claims.none", &claims).is_err());
    }

    #[test]
    fn what_does_not_compile() {
        let words = |source: &str, variable, condition| Program::compile(source, variable, condition).unwrap_err();
        assert!(words("claims.", "claims", false).starts_with("compilation failed: "));
        let unknown = "compilation failed: undeclared reference to 'user' (in container '')";
        assert_eq!(words("user.username == 'x'", "claims", true), unknown);
        assert_eq!(words("[1].all(x, user.y == x)", "claims", true), unknown);
        assert_eq!(words("user.name == 'x'", "user", true), "compilation failed: undefined field 'name'");
        for source in ["claims.x", "'text'", "claims.a + claims.b", "[true]", "claims", "true ? claims.a : false"] {
            assert_eq!(words(source, "claims", true), "must evaluate to bool", "{source}");
        }
        for source in
            ["claims.x == 1", "has(claims.x)", "true", "!claims.x", "'a' in claims.b", "claims.a.exists(x, x == 'b')"]
        {
            assert!(Program::compile(source, "claims", true).is_ok(), "{source}");
        }
    }

    #[test]
    fn bounded_in_length_and_depth() {
        let nested = |n: usize| format!("{}1{}", "(".repeat(n), ")".repeat(n));
        let chain = |n: usize| format!("claims{}", ".a".repeat(n));
        assert!(Program::compile(&nested(20), "claims", false).is_ok());
        assert!(Program::compile(&nested(500), "claims", false).is_err());
        assert!(Program::compile(&chain(200), "claims", false).is_ok());
        assert!(Program::compile(&chain(2000), "claims", false).is_err());
        assert!(Program::compile(&format!("'{}'", "x".repeat(MAX_LENGTH)), "claims", false).is_err());
    }

    #[test]
    fn selections_are_known() {
        let selects = |source: &str, field| Program::compile(source, "claims", false).unwrap().selects(field);
        for source in [
            "claims.email",
            "'a' + claims.email",
            "claims.?email.orValue('')",
            "[claims.email]",
            "{'k': claims.email}",
            "has(claims.email)",
        ] {
            assert!(selects(source, "email"), "{source}");
        }
        assert!(!selects("claims.sub", "email") && !selects("claims.a.email", "email"));
    }
}
