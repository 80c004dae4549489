//! One request's way through the policies: which are for it, what their expressions say, what that means.

use super::parameters::parameters;
use super::{Action, Binding, Content, Parameters, Policy, Validation};
use crate::expressions::{Authorizer, Bindings, Input, on_a_thread, text_or_null, told};
use crate::request::{Equivalent, Facts, MAX_ANNOTATION, Outcome, Rejection, cut};
use causeway_schema::cel::{Budget, CelError, Expression, TOTAL_COST, TOTAL_TIME};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of a message that an expression gives; a longer one is not shown.
const MAX_MESSAGE: usize = 5 * 1024;

/// A policy with those of its bindings that are for a request.
struct Job {
    policy: Arc<Policy>,
    input: Arc<Input>,
    bindings: Vec<(Arc<Binding>, Vec<Option<Value>>)>,
}

/// What a policy does not let pass.
struct Denial {
    policy: String,
    /// Empty when the policy itself is at fault.
    binding: String,
    message: String,
    reason: String,
}

/// The objects of a request, and what policies may ask for.
pub(crate) struct Subject<'a> {
    pub facts: &'a Facts,
    pub object: &'a Value,
    pub old: &'a Value,
    pub parameters: &'a dyn Parameters,
    pub authorizer: &'a Arc<dyn Authorizer>,
}

/// Evaluates the policies that are for a request.
pub(crate) async fn validate(
    policies: &[(Arc<Policy>, Vec<Arc<Binding>>)],
    subject: &Subject<'_>,
) -> Result<Outcome, Rejection> {
    // What each policy comes to, in their order: a failure of its configuration, or a job.
    let (mut denials, mut jobs) = (Vec::new(), Vec::new());
    for (policy, bindings) in policies {
        let Some(matched) = policy.matcher.resource(subject.facts) else { continue };
        if bindings.is_empty() || !policy.matcher.selects(subject.facts, subject.object, subject.old)? {
            continue;
        }
        match prepare(policy, bindings, &matched, subject, &mut denials).await {
            Ok(job) => jobs.extend(job),
            Err(why) => denials.extend(failure(policy, None, &format!("failed to configure policy: {why}"))),
        }
    }
    let mut outcome = Outcome::default();
    if !jobs.is_empty() {
        let evaluated = on_a_thread(move || evaluate_all(&jobs)).await.map_err(Rejection::internal)?;
        denials.extend(evaluated.0);
        outcome = evaluated.1;
    }
    // All are told in the details, the first in the message.
    match denials.first() {
        None => Ok(outcome),
        Some(first) => Err(rejection(subject.facts, first, &denials)),
    }
}

/// A failure of configuration, if it counts.
fn failure(policy: &Policy, binding: Option<&Binding>, message: &str) -> Option<Denial> {
    if !policy.fails_closed {
        tracing::warn!(policy = policy.name, message, "a policy failed, and lets pass");
        return None;
    }
    let binding = binding.map_or_else(String::new, |b| b.name.clone());
    Some(Denial { policy: policy.name.clone(), binding, message: message.to_owned(), reason: String::new() })
}

async fn prepare(
    policy: &Arc<Policy>,
    bindings: &[Arc<Binding>],
    matched: &Equivalent,
    subject: &Subject<'_>,
    denials: &mut Vec<Denial>,
) -> Result<Option<Job>, String> {
    policy.content.as_ref().map_err(String::clone)?;
    let mut chosen = Vec::new();
    for binding in bindings {
        let found = match binding_parameters(policy, binding, subject).await {
            Ok(None) => continue,
            Ok(Some(found)) => found,
            Err(why) => {
                denials.extend(failure(policy, Some(binding), &format!("failed to configure binding: {why}")));
                continue;
            }
        };
        if !found.is_empty() {
            chosen.push((Arc::clone(binding), found));
        }
    }
    if chosen.is_empty() {
        return Ok(None);
    }
    let convert = |o: &Value| {
        let converted = subject.facts.converted(o, &matched.kind);
        converted.map_err(|why| format!("failed to convert object version: {why}"))
    };
    let (object, old) = (convert(subject.object)?, convert(subject.old)?);
    let input = Arc::new(Input::new(subject.facts, matched, &object, &old, subject.authorizer));
    Ok(Some(Job { policy: Arc::clone(policy), input, bindings: chosen }))
}

/// The parameters of a binding that is for the request; `None` when it is not.
async fn binding_parameters(
    policy: &Policy,
    binding: &Binding,
    subject: &Subject<'_>,
) -> Result<Option<Vec<Option<Value>>>, String> {
    let matcher = binding.matcher.as_ref().map_err(String::clone)?;
    let selects = matcher.selects(subject.facts, subject.object, subject.old).map_err(|r| r.message)?;
    if !selects || matcher.resource(subject.facts).is_none() {
        return Ok(None);
    }
    let (kind, reference) = (policy.param_kind.as_ref(), binding.params.as_ref());
    parameters(kind, reference, subject.facts, subject.parameters).await.map(Some)
}

fn evaluate_all(jobs: &[Job]) -> (Vec<Denial>, Outcome) {
    let (mut denials, mut outcome, mut audited) = (Vec::new(), Outcome::default(), Vec::new());
    for job in jobs {
        let Ok(content) = &job.policy.content else { continue };
        let mut annotations: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (binding, params) in &job.bindings {
            for param in params {
                let mut run = Run {
                    policy: &job.policy,
                    content,
                    scope: Bindings::new(&job.input, param.as_ref(), &content.variables),
                    budget: Budget::new(TOTAL_COST, TOTAL_TIME),
                };
                let Some(decisions) = run.decisions() else { continue };
                for (index, denial) in decisions {
                    act(&job.policy, binding, index, denial, (&mut denials, &mut outcome, &mut audited));
                }
                let (good, bad) = run.annotations();
                for (key, value) in good {
                    let values = annotations.entry(key.to_owned()).or_default();
                    if !values.contains(&value) {
                        values.push(value);
                    }
                }
                denials.extend(bad.into_iter().map(|d| Denial { binding: binding.name.clone(), ..d }));
            }
        }
        for (key, values) in annotations {
            outcome.annotate(format!("{}/{key}", job.policy.name), &values.join(", "));
        }
    }
    if !audited.is_empty() {
        let key = "validation.policy.admission.k8s.io/validation_failure".to_owned();
        outcome.annotate(key, &Value::Array(audited).to_string());
    }
    (denials, outcome)
}

type Told<'a> = (&'a mut Vec<Denial>, &'a mut Outcome, &'a mut Vec<Value>);

/// Does with what is not let pass as the binding wants it.
fn act(policy: &Policy, binding: &Binding, index: usize, denial: Denial, told: Told<'_>) {
    let (denials, outcome, audited) = told;
    for action in &binding.actions {
        match action {
            Action::Deny => denials.push(Denial {
                policy: denial.policy.clone(),
                binding: binding.name.clone(),
                message: denial.message.clone(),
                reason: denial.reason.clone(),
            }),
            Action::Warn => outcome.warn(&format!(
                "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                policy.name, binding.name, denial.message
            )),
            Action::Audit => audited.push(json!({
                "message": cut(&denial.message, 1024),
                "policy": policy.name,
                "binding": binding.name,
                "expressionIndex": index,
                "validationActions": binding.actions.iter().map(|a| format!("{a:?}")).collect::<Vec<_>>(),
            })),
        }
    }
}

/// One policy over one request with one parameter.
struct Run<'a> {
    policy: &'a Policy,
    content: &'a Content,
    scope: Bindings<'a>,
    budget: Budget,
}

impl Run<'_> {
    fn denial(&self, message: String, reason: &str) -> Denial {
        Denial { policy: self.policy.name.clone(), binding: String::new(), message, reason: reason.to_owned() }
    }

    /// What does not pass, with the index of the expression; `None` when the conditions do not hold.
    fn decisions(&mut self) -> Option<Vec<(usize, Denial)>> {
        match self.content.conditions.hold(&self.scope, &mut self.budget) {
            Ok(true) => {}
            Ok(false) => return None,
            // When they fail and that is to be ignored, nothing else of the policy counts either.
            Err(why) => return self.policy.fails_closed.then(|| vec![(0, self.denial(why, ""))]),
        }
        let mut decisions = Vec::new();
        for (index, validation) in self.content.validations.iter().enumerate() {
            let denial = match validation.expression.holds(&self.scope, &mut self.budget) {
                Ok(true) => continue,
                Ok(false) => match self.message(validation) {
                    Ok(message) => Some(self.denial(message, or_invalid(&validation.reason))),
                    Err(why) => self.error(format!("failed messageExpression: {why}")),
                },
                Err(error) => self.error(told(&validation.expression, &error)),
            };
            decisions.extend(denial.map(|denial| (index, denial)));
        }
        Some(decisions)
    }

    /// An error denies unless failures are to be ignored.
    fn error(&self, message: String) -> Option<Denial> {
        self.policy.fails_closed.then(|| self.denial(message, ""))
    }

    /// Why it does not pass: the expression's text if that is a good one, the message, or the expression itself.
    fn message(&mut self, validation: &Validation) -> Result<String, String> {
        if let Some(expression) = &validation.message_expression {
            match expression.evaluate(&self.scope, &mut self.budget) {
                Ok(value) => {
                    let text = text_or_null(&value).ok().flatten();
                    if let Some(text) = text.filter(|t| t.len() <= MAX_MESSAGE && !t.contains('\n')) {
                        return Ok(text);
                    }
                }
                Err(CelError::Exceeded(why)) => return Err(why),
                Err(error) => tracing::debug!(policy = self.policy.name, %error, "messageExpression failed"),
            }
        }
        Ok(match validation.message.as_str() {
            "" => format!("failed expression: {}", validation.expression.text().trim()),
            message => message.to_owned(),
        })
    }

    /// The policy's annotations; gives those that went wrong as denials.
    fn annotations(&mut self) -> (Vec<(&str, String)>, Vec<Denial>) {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for (key, expression) in &self.content.annotations {
            match evaluate_annotation(expression, &self.scope, &mut self.budget) {
                Ok(Some(value)) => good.push((key.as_str(), cut(&value, MAX_ANNOTATION).to_owned())),
                Ok(None) => {}
                Err(why) => bad.extend(self.error(why)),
            }
        }
        (good, bad)
    }
}

fn or_invalid(reason: &str) -> &str {
    if reason.is_empty() { "Invalid" } else { reason }
}

fn evaluate_annotation(
    expression: &Expression,
    scope: &Bindings<'_>,
    budget: &mut Budget,
) -> Result<Option<String>, String> {
    let value = expression.evaluate(scope, budget).map_err(|e| told(expression, &e))?;
    text_or_null(&value).map_err(|()| {
        let text = cut(expression.text(), 256);
        format!(
            "valueExpression '{text}' resulted in unsupported return type. Return type must be either string or null."
        )
    })
}

fn rejection(facts: &Facts, first: &Denial, all: &[Denial]) -> Rejection {
    let told = |d: &Denial| match d.binding.as_str() {
        "" => format!("ValidatingAdmissionPolicy '{}' denied request: {}", d.policy, d.message),
        binding => {
            format!("ValidatingAdmissionPolicy '{}' with binding '{binding}' denied request: {}", d.policy, d.message)
        }
    };
    let mut rejection = Rejection::forbidden(facts, &told(first));
    rejection.reason = or_invalid(&first.reason).to_owned();
    rejection.code = match rejection.reason.as_str() {
        "Unauthorized" => 401,
        "Forbidden" => 403,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    };
    let causes: Value = all.iter().take(32).map(|d| json!({"message": told(d)})).collect();
    if let Some(details) = &mut rejection.details {
        details["causes"] = causes;
    }
    rejection
}
