//! ValidatingAdmissionPolicies: rules in CEL about what may be stored.
//!
//! In: policies and bindings as JSON; requests. Out: warnings and annotations, or a refusal. Parameters are looked up
//! through [`Parameters`].

mod evaluate;
mod parameters;

pub(crate) use evaluate::{Subject, validate};
pub(crate) use parameters::ParamRef;
pub use parameters::Parameters;

use crate::admission_request::Matcher;
use crate::expressions::{Conditions, Variables};
use causeway_schema::cel::{Expression, admission_names};
use serde_json::Value;

/// One rule of a policy.
pub(crate) struct Validation {
    pub expression: Expression,
    pub message: String,
    pub message_expression: Option<Expression>,
    pub reason: String,
}

/// A policy, ready to be evaluated.
pub(crate) struct Policy {
    pub name: String,
    pub fails_closed: bool,
    pub matcher: Matcher,
    /// `apiVersion` and `kind` of its parameters.
    pub param_kind: Option<(String, String)>,
    /// What it says; or why that cannot be evaluated at all, which is a failure like any other.
    pub content: Result<Content, String>,
}

/// The expressions of a policy.
pub(crate) struct Content {
    pub conditions: Conditions,
    pub variables: Variables,
    pub validations: Vec<Validation>,
    /// Key and expression.
    pub annotations: Vec<(String, Expression)>,
}

/// What becomes of what a policy does not let pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Deny,
    Warn,
    Audit,
}

/// Where and how a policy is enforced.
pub(crate) struct Binding {
    pub name: String,
    pub policy: String,
    pub matcher: Result<Matcher, String>,
    pub actions: Vec<Action>,
    pub params: Option<ParamRef>,
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("")
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub(crate) fn name_of(object: &Value) -> String {
    object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("").to_owned()
}

impl Policy {
    /// Reads and compiles a policy; to be called on a big stack.
    pub(crate) fn read(object: &Value) -> Self {
        let spec = &object["spec"];
        let kind = &spec["paramKind"];
        let mut content = Content::compile(spec);
        let matcher = Matcher::of_policy(&spec["matchConstraints"], false).or_else(|why| {
            content = Err(why);
            // Without its selectors it is for more than it should be; but it only fails.
            Matcher::of_policy(&serde_json::json!({"resourceRules": spec["matchConstraints"]["resourceRules"]}), false)
        });
        Self {
            name: name_of(object),
            fails_closed: spec["failurePolicy"].as_str() != Some("Ignore"),
            matcher: matcher.unwrap_or_default(),
            param_kind: kind.is_object().then(|| (text(kind, "apiVersion").to_owned(), text(kind, "kind").to_owned())),
            content,
        }
    }
}

impl Content {
    fn compile(spec: &Value) -> Result<Self, String> {
        let params = spec["paramKind"].is_object();
        let conditions = Conditions::compile(&spec["matchConditions"], params)?;
        let compile = |what: &str, expression: &str, authorizer: bool, known: &[String]| {
            Expression::compile(expression, &admission_names(params, authorizer, known))
                .map_err(|why| format!("{what}: compilation failed: {why}"))
        };
        let (mut variables, mut known) = (Vec::new(), Vec::new());
        for variable in items(&spec["variables"]) {
            let name = text(variable, "name").to_owned();
            let what = format!("variable {name:?}");
            variables.push((name.clone(), compile(&what, text(variable, "expression"), true, &known)?));
            known.push(name);
        }
        let mut validations = Vec::new();
        for (i, validation) in items(&spec["validations"]).enumerate() {
            let message = text(validation, "messageExpression").trim();
            let message_expression = match message {
                "" => None,
                message => Some(compile(&format!("validations[{i}].messageExpression"), message, false, &known)?),
            };
            validations.push(Validation {
                expression: compile(&format!("validations[{i}]"), text(validation, "expression"), true, &known)?,
                message: text(validation, "message").trim().to_owned(),
                message_expression,
                reason: text(validation, "reason").to_owned(),
            });
        }
        let mut annotations = Vec::new();
        for annotation in items(&spec["auditAnnotations"]) {
            let key = text(annotation, "key").to_owned();
            let what = format!("auditAnnotation {key:?}");
            annotations.push((key, compile(&what, text(annotation, "valueExpression"), true, &known)?));
        }
        Ok(Self { conditions, variables: Variables(variables), validations, annotations })
    }
}

impl Binding {
    /// Reads a binding.
    pub(crate) fn read(object: &Value) -> Self {
        let spec = &object["spec"];
        let actions = items(&spec["validationActions"]).filter_map(|action| match action.as_str() {
            Some("Deny") => Some(Action::Deny),
            Some("Warn") => Some(Action::Warn),
            Some("Audit") => Some(Action::Audit),
            _ => None,
        });
        let params = spec["paramRef"].is_object().then(|| ParamRef::read(&spec["paramRef"]));
        let (params, wrong) = match params {
            Some(Err(why)) => (None, Some(why)),
            Some(Ok(params)) => (Some(params), None),
            None => (None, None),
        };
        let matcher = wrong.map_or_else(|| Matcher::of_policy(&spec["matchResources"], true), Err);
        let actions = actions.collect();
        Self { name: name_of(object), policy: text(spec, "policyName").to_owned(), matcher, actions, params }
    }
}

#[cfg(test)]
mod tests;
