//! `authorizer` in expressions: who may do what, asked of the API server's own authorization.
//!
//! In: calls such as `authorizer.group('').resource('pods').namespace('x').check('create').allowed()`. Out: decisions.

use super::service_account;
use crate::admission_request::{Equivalent, Facts, User};
use causeway_schema::cel::{Budget, CelError, CelValue, Opaque, text_of};
use std::sync::Arc;

/// What a check costs, as upstream: two or three in one expression.
const CHECK_COST: u64 = 350_000;

/// What is to be done with what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `create`, …
    pub verb: String,
    /// Set for a path that is no resource; all below is empty then.
    pub path: Option<String>,
    /// Empty for core.
    pub group: String,
    /// Plural, lower-case.
    pub resource: String,
    /// Or empty.
    pub subresource: String,
    /// Or empty.
    pub namespace: String,
    /// Or empty.
    pub name: String,
}

/// A decision of the authorizer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// It is allowed.
    pub allowed: bool,
    /// Why, or why not.
    pub reason: String,
}

/// Decides who may do what. Called from threads that may wait.
pub trait Authorizer: Send + Sync {
    /// Whether a user may do it; the error says why that is not known, which counts as no.
    fn authorize(&self, user: &User, attributes: &Attributes) -> Result<Decision, String>;
}

/// How far a question has come.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Root,
    Path,
    Group,
    Resource,
    Decided(Result<Decision, String>),
}

/// A question in the making, or its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Question {
    user: Arc<User>,
    attributes: Attributes,
    step: Step,
}

impl Opaque for Question {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.authorization.Authorizer"
    }
}

fn value(question: Question) -> CelValue {
    CelValue::Opaque(Arc::new(question))
}

/// The authorizer as one user's request has it.
pub(super) struct Authority {
    user: Arc<User>,
    authorizer: Arc<dyn Authorizer>,
}

impl Authority {
    pub(super) fn new(user: &User, authorizer: &Arc<dyn Authorizer>) -> Self {
        Self { user: Arc::new(user.clone()), authorizer: Arc::clone(authorizer) }
    }

    pub(super) fn root(&self) -> CelValue {
        value(Question { user: Arc::clone(&self.user), attributes: Attributes::default(), step: Step::Root })
    }

    /// `authorizer.requestResource`: the resource that the request is about.
    pub(super) fn of_request(&self, facts: &Facts, matched: &Equivalent) -> CelValue {
        let attributes = Attributes {
            group: matched.resource.group.clone(),
            resource: matched.resource.resource.clone(),
            subresource: facts.subresource.clone(),
            namespace: facts.namespace.clone(),
            name: facts.name.clone(),
            ..Attributes::default()
        };
        value(Question { user: Arc::clone(&self.user), attributes, step: Step::Resource })
    }

    pub(super) fn method(
        &self,
        target: &CelValue,
        name: &str,
        args: &[CelValue],
        budget: &mut Budget,
    ) -> Option<Result<CelValue, CelError>> {
        let CelValue::Opaque(target) = target else { return None };
        let question = target.downcast_ref::<Question>()?;
        Some(self.answer(question.clone(), name, args, budget))
    }

    fn answer(
        &self,
        mut question: Question,
        name: &str,
        args: &[CelValue],
        budget: &mut Budget,
    ) -> Result<CelValue, CelError> {
        let texts: Option<Vec<&str>> = args.iter().map(text_of).collect();
        let no_overload = || CelError::failed("no such overload");
        let texts = texts.ok_or_else(no_overload)?;
        match (&question.step, name, texts.as_slice()) {
            (Step::Root, "serviceAccount", [namespace, name]) => {
                question.user = Arc::new(service_account(namespace, name));
            }
            (Step::Root, "path", [path]) if !path.is_empty() => {
                question.attributes.path = Some((*path).to_owned());
                question.step = Step::Path;
            }
            (Step::Root, "group", [group]) => {
                question.attributes.group = (*group).to_owned();
                question.step = Step::Group;
            }
            (Step::Group, "resource", [resource]) if !resource.is_empty() => {
                question.attributes.resource = (*resource).to_owned();
                question.step = Step::Resource;
            }
            (Step::Resource, "subresource", [x]) => question.attributes.subresource = (*x).to_owned(),
            (Step::Resource, "namespace", [x]) => question.attributes.namespace = (*x).to_owned(),
            (Step::Resource, "name", [x]) => question.attributes.name = (*x).to_owned(),
            (Step::Resource | Step::Path, "check", [verb]) => {
                budget.charge(CHECK_COST)?;
                question.attributes.verb = (*verb).to_owned();
                question.step = Step::Decided(self.authorizer.authorize(&question.user, &question.attributes));
            }
            (Step::Decided(decided), _, []) => {
                let decision = decided.as_ref().ok();
                return Ok(match name {
                    "allowed" => CelValue::Bool(decision.is_some_and(|d| d.allowed)),
                    "errored" => CelValue::Bool(decided.is_err()),
                    "error" => decided.as_ref().err().map_or("", String::as_str).into(),
                    "reason" => decision.map_or("", |d| d.reason.as_str()).into(),
                    _ => return Err(no_overload()),
                });
            }
            _ => return Err(no_overload()),
        }
        Ok(value(question))
    }
}
