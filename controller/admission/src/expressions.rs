//! The expressions of webhooks and policies: what they are evaluated over, and match conditions.
//!
//! In: compiled expressions, a request's objects. Out: values within a budget, evaluated on threads with a big stack.

mod authorizer;

pub use authorizer::{Attributes, Authorizer, Decision};

use crate::admission_request::{Equivalent, Facts, User};
use authorizer::Authority;
use causeway_schema::cel::{
    Budget, CelError, CelValue, Expression, OptionalValue, STACK, Scope, admission_names, from_json,
};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Semaphore, oneshot};

/// Threads that evaluate at the same time; each has a big stack.
const THREADS: usize = 8;
static SLOTS: Semaphore = Semaphore::const_new(THREADS);

/// Runs it on a thread with a big stack. The caller may be gone before it ends.
///
/// # Errors
///
/// When there is no thread to be had, or the work panicked.
pub(crate) async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let slot = SLOTS.acquire().await.map_err(|e| e.to_string())?;
    let (sender, receiver) = oneshot::channel();
    let thread = std::thread::Builder::new().name("cel".to_owned()).stack_size(STACK);
    let run = move || {
        let _slot = slot;
        // Nobody may be waiting any more.
        let _ = sender.send(work());
    };
    thread.spawn(run).map_err(|e| format!("no thread for expressions: {e}"))?;
    receiver.await.map_err(|_| "an expression panicked".to_owned())
}

/// What the expressions about one request are evaluated over. Made once for a request and version.
pub(crate) struct Input {
    object: CelValue,
    old: CelValue,
    request: CelValue,
    namespace: CelValue,
    authority: Authority,
    request_resource: CelValue,
}

impl Input {
    pub(crate) fn new(
        facts: &Facts,
        matched: &Equivalent,
        object: &Value,
        old: &Value,
        authorizer: &Arc<dyn Authorizer>,
    ) -> Self {
        let authority = Authority::new(&facts.user, authorizer);
        Self {
            object: from_json(object),
            old: from_json(old),
            request: from_json(&crate::admission_request::described(facts, matched)),
            namespace: facts
                .namespace_object
                .as_deref()
                .filter(|_| facts.in_namespace())
                .map_or(CelValue::Null, from_json),
            request_resource: authority.of_request(facts, matched),
            authority,
        }
    }
}

/// The variables of a policy, in their order: each may use those before it.
#[derive(Default)]
pub(crate) struct Variables(pub Vec<(String, Expression)>);

/// The scope of one policy's expressions over one input, with one parameter.
pub(crate) struct Bindings<'a> {
    input: &'a Input,
    params: Option<CelValue>,
    variables: &'a Variables,
    /// What variables have come to: each is evaluated at most once, and only if it is needed.
    known: Mutex<HashMap<String, Result<CelValue, CelError>>>,
}

impl<'a> Bindings<'a> {
    pub(crate) fn new(input: &'a Input, params: Option<&Value>, variables: &'a Variables) -> Self {
        Self { input, params: params.map(from_json), variables, known: Mutex::default() }
    }
}

impl Scope for Bindings<'_> {
    fn variable(&self, name: &str) -> Option<CelValue> {
        Some(match name {
            "object" => self.input.object.clone(),
            "oldObject" => self.input.old.clone(),
            "request" => self.input.request.clone(),
            "namespaceObject" => self.input.namespace.clone(),
            "params" => self.params.clone().unwrap_or(CelValue::Null),
            "authorizer" => self.input.authority.root(),
            "authorizer.requestResource" => self.input.request_resource.clone(),
            _ => return None,
        })
    }

    fn composed(&self, name: &str, budget: &mut Budget) -> Result<CelValue, CelError> {
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(name) {
            return known.clone();
        }
        let found = self.variables.0.iter().find(|(n, _)| n == name);
        let Some((_, expression)) = found else { return Err(CelError::failed(format_args!("no such key: {name}"))) };
        let value = expression
            .evaluate(self, budget)
            .map_err(|e| wrap(e, |why| format!("composited variable {name:?} fails to evaluate: {why}")));
        lock().insert(name.to_owned(), value.clone());
        value
    }

    fn method(
        &self,
        target: &CelValue,
        name: &str,
        args: &[CelValue],
        budget: &mut Budget,
    ) -> Option<Result<CelValue, CelError>> {
        self.input.authority.method(target, name, args, budget)
    }
}

fn wrap(error: CelError, text: impl Fn(&str) -> String) -> CelError {
    match error {
        CelError::Exceeded(why) => CelError::Exceeded(why),
        CelError::Failed(why) => CelError::failed(text(&why)),
    }
}

/// An error of an expression as it is told to users.
pub(crate) fn told(expression: &Expression, error: &CelError) -> String {
    format!("expression '{}' resulted in error: {error}", crate::admission_request::cut(expression.text().trim(), 256))
}

/// `matchConditions`: all must hold.
#[derive(Default)]
pub(crate) struct Conditions(Vec<Expression>);

impl Conditions {
    /// Compiles them; to be called on a big stack.
    ///
    /// # Errors
    ///
    /// The first that cannot be compiled, with the reason.
    pub(crate) fn compile(list: &Value, params: bool) -> Result<Self, String> {
        let conditions = list.as_array().into_iter().flatten().map(|condition| {
            let name = condition["name"].as_str().unwrap_or("");
            Expression::compile(condition["expression"].as_str().unwrap_or(""), &admission_names(params, true, &[]))
                .map_err(|why| format!("matchCondition {name:?}: compilation failed: {why}"))
        });
        conditions.collect::<Result<_, _>>().map(Self)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all hold. One that does not outweighs those that fail.
    pub(crate) fn hold(&self, scope: &dyn Scope, budget: &mut Budget) -> Result<bool, String> {
        let mut failed = None;
        for condition in &self.0 {
            match condition.holds(scope, budget) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) => {
                    failed.get_or_insert_with(|| told(condition, &error));
                    if matches!(error, CelError::Exceeded(_)) {
                        break;
                    }
                }
            }
        }
        failed.map_or(Ok(true), Err)
    }
}

/// Evaluates match conditions of a webhook away from the async workers.
pub(crate) async fn conditions_hold(conditions: &Arc<Conditions>, input: Arc<Input>) -> Result<bool, String> {
    let conditions = Arc::clone(conditions);
    let work = move || {
        let variables = Variables::default();
        // A fifth of what a policy may cost, since every webhook has conditions of its own.
        let mut budget = Budget::new(causeway_schema::cel::TOTAL_COST / 5, causeway_schema::cel::TOTAL_TIME);
        conditions.hold(&Bindings::new(&input, None, &variables), &mut budget)
    };
    on_a_thread(work).await.and_then(|result| result)
}

/// The text that an expression for a message or an annotation gave: `None` for `null`, and for nothing but blanks.
///
/// # Errors
///
/// When it is neither text nor `null`.
pub(crate) fn text_or_null(value: &CelValue) -> Result<Option<String>, ()> {
    match value {
        CelValue::String(text) => Ok(Some(text.trim().to_owned()).filter(|t| !t.is_empty())),
        CelValue::Null => Ok(None),
        CelValue::Opaque(o) => match o.downcast_ref::<OptionalValue>().map(OptionalValue::value) {
            Some(None) => Ok(None),
            Some(Some(inside)) => text_or_null(inside),
            None => Err(()),
        },
        _ => Err(()),
    }
}

/// A user that is a service account.
pub(crate) fn service_account(namespace: &str, name: &str) -> User {
    User {
        username: format!("system:serviceaccount:{namespace}:{name}"),
        groups: vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".to_owned(),
        ],
        ..User::default()
    }
}
