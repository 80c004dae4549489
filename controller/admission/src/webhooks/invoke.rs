//! One request's way through the webhooks: mutating ones in their order and, where they want it, once more; validating
//! ones all at the same time.

use super::{Environment, Webhook, review};
use crate::admission_request::{Equivalent, Facts, Outcome, Rejection};
use crate::expressions::{Input, conditions_hold};
use causeway_schema::bounds::{MAX_DEPTH, MAX_SIZE, is_deeper, size_within, too_deep};
use causeway_schema::patch;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::Arc;
use tokio::task::JoinSet;

/// Validating webhooks called at the same time for one request.
const MAX_PARALLEL: usize = 16;

/// Why a webhook did not let a request pass.
enum Failure {
    /// It could not be asked: its failure policy decides.
    Call(String),
    /// It said no, or something else is wrong with the request.
    Refused(Rejection),
}

/// A request in the versions that webhooks ask for. Objects are converted when they are first needed.
struct Versions<'a> {
    facts: &'a Facts,
    object: &'a Value,
    old: &'a Value,
}

impl Versions<'_> {
    fn of(&self, matched: &Equivalent) -> Result<(Value, Value), Rejection> {
        let convert = |o: &Value| self.facts.converted(o, &matched.kind).map_err(Rejection::internal);
        Ok((convert(self.object)?, convert(self.old)?))
    }
}

impl Webhook {
    /// As which version the webhook is to be called for a request; `None` when it is not.
    async fn wants(&self, env: &Environment, request: &Versions<'_>) -> Result<Option<Equivalent>, Rejection> {
        let Some(matched) = self.matcher.resource(request.facts) else { return Ok(None) };
        if !self.matcher.selects(request.facts, request.object, request.old)? {
            return Ok(None);
        }
        if self.conditions.is_empty() {
            return Ok(Some(matched));
        }
        let (object, old) = request.of(&matched)?;
        let input = Input::new(request.facts, &matched, &object, &old, &env.authorizer);
        match conditions_hold(&self.conditions, Arc::new(input)).await {
            Ok(holds) => Ok(holds.then_some(matched)),
            Err(why) if self.fails_closed => Err(Rejection::forbidden(request.facts, &why)),
            Err(why) => {
                tracing::warn!(webhook = self.name, why, "match conditions failed, the webhook is not called");
                Ok(None)
            }
        }
    }

    async fn ask(
        &self,
        env: &Environment,
        facts: &Facts,
        matched: &Equivalent,
        objects: (&Value, &Value),
        mutating: bool,
    ) -> Result<review::Answer, Failure> {
        if facts.dry_run && !self.no_side_effects {
            let why = format!("admission webhook {:?} does not support dry run", self.name);
            return Err(Failure::Refused(Rejection::bad_request(why)));
        }
        let target = self.target.as_ref().map_err(|why| Failure::Call(format!("could not get REST client: {why}")))?;
        let uid = uuid::Uuid::new_v4().to_string();
        let question = review::question(&uid, facts, matched, objects.0, objects.1);
        // The caller keeps the time itself; should it not, it is kept here.
        let call = env.caller.call(target, question, self.timeout);
        let late = self.timeout + std::time::Duration::from_secs(1);
        let called = tokio::time::timeout(late, call).await.unwrap_or(Err(super::CallError::Timeout));
        let body = called.map_err(|e| {
            let why = match &e {
                super::CallError::Timeout => {
                    let (host, port, path) = target.address(self.timeout);
                    format!("Post \"https://{host}:{port}{path}\": {e}")
                }
                other => other.to_string(),
            };
            Failure::Call(format!("failed to call webhook: {why}"))
        })?;
        review::answer(&body, &uid, mutating).map_err(Failure::Call)
    }

    /// What a failure means: an error for the request, or nothing but a word in the audit log.
    fn failed(&self, failure: Failure, key: String, outcome: &mut Outcome) -> Result<(), Rejection> {
        match failure {
            Failure::Refused(rejection) => Err(rejection),
            Failure::Call(why) if self.fails_closed => {
                Err(Rejection::internal(format_args!("failed calling webhook {:?}: {why}", self.name)))
            }
            Failure::Call(why) => {
                tracing::warn!(webhook = self.name, why, "failed to call a webhook, failing open");
                outcome.annotate(key, &self.name);
                Ok(())
            }
        }
    }

    fn note(&self, answer: &review::Answer, outcome: &mut Outcome) {
        answer.warnings.iter().for_each(|w| outcome.warn(w));
        for (key, value) in &answer.audit {
            outcome.annotate(format!("{}/{}", self.name, crate::admission_request::cut(key, 128)), value);
        }
    }

    /// Asks a mutating webhook and applies its patch. Says whether the object changed.
    async fn change(
        &self,
        env: &Environment,
        facts: &Facts,
        matched: &Equivalent,
        object: &mut Value,
        old: &Value,
        outcome: &mut Outcome,
    ) -> Result<bool, Failure> {
        let (now, before) = Versions { facts, object, old }.of(matched).map_err(Failure::Refused)?;
        let answer = self.ask(env, facts, matched, (&now, &before), true).await?;
        self.note(&answer, outcome);
        if !answer.allowed {
            return Err(Failure::Refused(review::refusal(&self.name, &answer.status)));
        }
        if answer.patch.is_null() {
            return Ok(false);
        }
        let refused = |why: String| Failure::Refused(Rejection::internal(why));
        if now.is_null() {
            let why = "attempted to modify the object, which is not supported for this operation";
            return Err(refused(format!("admission webhook {:?} {why}", self.name)));
        }
        let patched = patch::json(&now, &answer.patch).map_err(|e| refused(e.to_string()))?;
        check(&now, &patched).map_err(refused)?;
        let mut patched = facts.converted(&patched, &facts.kind).map_err(refused)?;
        if let Some(default) = &facts.default {
            default(&mut patched);
        }
        let changed = patched != *object;
        *object = patched;
        Ok(changed)
    }
}

/// A patched object is still what it was, and no bigger than may be.
fn check(before: &Value, after: &Value) -> Result<(), String> {
    if !after.is_object() || before["apiVersion"] != after["apiVersion"] || before["kind"] != after["kind"] {
        return Err("a webhook's patch must not change apiVersion and kind".to_owned());
    }
    if is_deeper(after, MAX_DEPTH) {
        return Err(too_deep());
    }
    match size_within(after, MAX_SIZE) {
        Some(_) => Ok(()),
        None => Err(format!("a webhook's patch makes the object bigger than {MAX_SIZE} bytes")),
    }
}

/// What stands between the two rounds of mutating webhooks: whatever else changes objects, once more.
pub(crate) type Between<'a> = dyn FnMut(&mut Value) -> Result<(), Rejection> + Send + 'a;

/// Mutating webhooks, in two rounds: the second for those that want it, when the object changed after their call.
pub(crate) async fn mutate(
    hooks: &[Arc<Webhook>],
    env: &Environment,
    facts: &Facts,
    object: &mut Value,
    old: &Value,
    between: &mut Between<'_>,
) -> Result<Outcome, Rejection> {
    let mut outcome = Outcome::default();
    // Those of the first round that may be called again, and those of them after which something changed.
    let (mut called, mut due) = (HashSet::new(), HashSet::new());
    for round in 0..2 {
        for (index, hook) in hooks.iter().enumerate() {
            // One that did not want the object as it was is not called now, though it may want it as it has become.
            if round == 1 && !due.contains(&index) {
                continue;
            }
            let request = Versions { facts, object, old };
            let Some(matched) = hook.wants(env, &request).await? else { continue };
            let place = format!("mutation.webhook.admission.k8s.io/round_{round}_index_{index}");
            let changed = match hook.change(env, facts, &matched, object, old, &mut outcome).await {
                Ok(changed) => changed,
                Err(failure) => {
                    hook.failed(failure, format!("failed-open.{place}"), &mut outcome)?;
                    false
                }
            };
            let what = json!({"configuration": hook.configuration, "webhook": hook.name, "mutated": changed});
            outcome.annotate(place, &what.to_string());
            if changed {
                outcome.changed = true;
                due.extend(called.drain());
            }
            if hook.reinvoked {
                called.insert(index);
            }
        }
        if round == 1 || !outcome.changed {
            break;
        }
        let before = object.clone();
        between(object)?;
        if *object != before {
            due.extend(called.drain());
        }
    }
    Ok(outcome)
}

/// Validating webhooks, at the same time. Of several refusals, that of the first in order is told.
pub(crate) async fn validate(
    hooks: &[Arc<Webhook>],
    env: &Environment,
    facts: &Arc<Facts>,
    object: &Value,
    old: &Value,
) -> Result<Outcome, Rejection> {
    let mut wanted = Vec::new();
    for (index, hook) in hooks.iter().enumerate() {
        let request = Versions { facts, object, old };
        if let Some(matched) = hook.wants(env, &request).await? {
            let objects = request.of(&matched)?;
            wanted.push((index, Arc::clone(hook), matched, objects));
        }
    }
    let mut running = JoinSet::new();
    let mut results = Vec::with_capacity(wanted.len());
    for (index, hook, matched, (object, old)) in wanted {
        if running.len() >= MAX_PARALLEL {
            results.extend(running.join_next().await);
        }
        let (env, facts) = (env.clone(), Arc::clone(facts));
        running.spawn(async move {
            let answer = hook.ask(&env, &facts, &matched, (&object, &old), false).await;
            (index, hook, answer)
        });
    }
    while let Some(result) = running.join_next().await {
        results.push(result);
    }
    let results: Result<Vec<_>, _> = results.into_iter().collect();
    let mut results = results.map_err(|_| Rejection::internal("a call of a webhook panicked"))?;
    results.sort_by_key(|(index, ..)| *index);
    let mut outcome = Outcome::default();
    for (index, hook, answer) in results {
        let key = format!("failed-open.validating.webhook.admission.k8s.io/round_0_index_{index}");
        match answer {
            Ok(answer) => {
                hook.note(&answer, &mut outcome);
                if !answer.allowed {
                    return Err(review::refusal(&hook.name, &answer.status));
                }
            }
            Err(failure) => hook.failed(failure, key, &mut outcome)?,
        }
    }
    Ok(outcome)
}
