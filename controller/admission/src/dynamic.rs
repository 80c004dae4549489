//! Admission by configuration: webhooks and policies as the API server's engine calls them.
//!
//! In: the objects of group `admissionregistration.k8s.io`, whenever one changes; requests. Out: changed objects,
//! warnings and annotations, or a refusal. What is configured is compiled once and swapped as a whole, and what is for
//! a resource is found by its name, so that a request nobody asks about costs next to nothing.

use crate::admission_request::{Facts, Matcher, Outcome, Rejection, is_exempt, is_no_object};
use crate::expressions::Authorizer;
use crate::policies::{self, Binding, Parameters, Policy};
use crate::webhooks::{self, Caller, Environment, Webhook};
use arc_swap::ArcSwap;
use causeway_schema::cel::on_a_big_stack;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// Resources for which it is remembered what is for them.
const MAX_INDEX: usize = 4096;

/// A configured object, compiled.
#[derive(Clone)]
enum Compiled {
    Mutating(Vec<Arc<Webhook>>),
    Validating(Vec<Arc<Webhook>>),
    Policy(Arc<Policy>),
    Binding(Arc<Binding>),
}

/// Kind, name, and which state of the object it is.
type Id = (String, String, String);

/// What is for a resource.
#[derive(Default)]
struct Relevant {
    mutating: Vec<Arc<Webhook>>,
    validating: Vec<Arc<Webhook>>,
    policies: Vec<(Arc<Policy>, Vec<Arc<Binding>>)>,
}

#[derive(Default)]
struct Snapshot {
    /// In the order of kinds and names.
    all: BTreeMap<Id, Compiled>,
    index: Mutex<HashMap<(String, String), Arc<Relevant>>>,
}

/// Webhooks and policies in force.
pub struct Dynamic {
    snapshot: ArcSwap<Snapshot>,
    environment: Environment,
    parameters: Arc<dyn Parameters>,
}

impl Dynamic {
    /// With nothing configured.
    pub fn new(caller: Arc<dyn Caller>, parameters: Arc<dyn Parameters>, authorizer: Arc<dyn Authorizer>) -> Self {
        let environment = Environment { caller, authorizer };
        Self { snapshot: ArcSwap::default(), environment, parameters }
    }

    /// Puts into force what these objects say, and nothing else: all MutatingWebhookConfigurations,
    /// ValidatingWebhookConfigurations, ValidatingAdmissionPolicies and ValidatingAdmissionPolicyBindings, with `kind`
    /// and defaults. What has not changed (by `metadata.uid` and `resourceVersion`) is not compiled again. Takes
    /// milliseconds for new expressions: not to be called where that matters.
    ///
    /// # Errors
    ///
    /// When there is no thread for compiling; what was in force stays.
    pub fn configure(&self, objects: &[Value]) -> Result<(), String> {
        let old = self.snapshot.load();
        let compile = || -> BTreeMap<Id, Compiled> {
            let known = objects.iter().filter_map(|object| {
                let id = id(object);
                let state = !id.2.is_empty();
                let compiled = old.all.get(&id).filter(|_| state).cloned().or_else(|| compile(object))?;
                Some((id, compiled))
            });
            known.collect()
        };
        let all = on_a_big_stack(compile)?;
        self.snapshot.store(Arc::new(Snapshot { all, index: Mutex::default() }));
        Ok(())
    }

    /// Asks the mutating webhooks, and has `object` (`null` on deletion and connection) as they want it. `between` is
    /// run once, after something was changed: whatever else changes objects, for the webhooks that are called again.
    ///
    /// # Errors
    ///
    /// Why the request is refused.
    pub async fn mutate(
        &self,
        facts: &Facts,
        object: &mut Value,
        old: &Value,
        between: &mut (dyn FnMut(&mut Value) -> Result<(), Rejection> + Send),
    ) -> Result<Outcome, Rejection> {
        let relevant = self.relevant(facts);
        if relevant.mutating.is_empty() {
            return Ok(Outcome::default());
        }
        webhooks::mutate(&relevant.mutating, &self.environment, facts, object, old, between).await
    }

    /// Asks the policies, then the validating webhooks, about an object as it is to be stored (`null` on deletion and
    /// connection).
    ///
    /// # Errors
    ///
    /// Why the request is refused.
    pub async fn validate(&self, facts: &Arc<Facts>, object: &Value, old: &Value) -> Result<Outcome, Rejection> {
        let relevant = self.relevant(facts);
        let mut outcome = Outcome::default();
        if !relevant.policies.is_empty() && !is_no_object(facts) {
            let (parameters, authorizer) = (&*self.parameters, &self.environment.authorizer);
            let subject = policies::Subject { facts, object, old, parameters, authorizer };
            outcome = policies::validate(&relevant.policies, &subject).await?;
        }
        if !relevant.validating.is_empty() {
            let told = webhooks::validate(&relevant.validating, &self.environment, facts, object, old).await?;
            outcome.extend(told);
        }
        Ok(outcome)
    }

    /// Nothing is configured at all.
    pub fn is_empty(&self) -> bool {
        self.snapshot.load().all.is_empty()
    }

    /// Whether anything is configured for a request's resource: if not, there is no need to make ready for it.
    pub fn concerns(&self, facts: &Facts) -> bool {
        let relevant = self.relevant(facts);
        !(relevant.mutating.is_empty() && relevant.validating.is_empty() && relevant.policies.is_empty())
    }

    fn relevant(&self, facts: &Facts) -> Arc<Relevant> {
        let snapshot = self.snapshot.load();
        if snapshot.all.is_empty() || is_exempt(facts) {
            return Arc::default();
        }
        let key = (facts.resource.group.clone(), facts.resource.resource.clone());
        let mut index = snapshot.index.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = index.get(&key) {
            return Arc::clone(known);
        }
        let found = Arc::new(snapshot.find(facts));
        if index.len() < MAX_INDEX {
            index.insert(key, Arc::clone(&found));
        }
        found
    }
}

impl Snapshot {
    fn find(&self, facts: &Facts) -> Relevant {
        let own = (&facts.resource.group, &facts.resource.resource);
        let others = facts.equivalents.iter().map(|e| (&e.resource.group, &e.resource.resource));
        let resources: Vec<_> = std::iter::once(own).chain(others).collect();
        let concerned = |m: &Matcher| resources.iter().any(|(group, resource)| m.mentions(group, resource));
        let mut relevant = Relevant::default();
        let mut bindings: HashMap<&str, Vec<Arc<Binding>>> = HashMap::new();
        for compiled in self.all.values() {
            if let Compiled::Binding(binding) = compiled {
                bindings.entry(&binding.policy).or_default().push(Arc::clone(binding));
            }
        }
        for compiled in self.all.values() {
            match compiled {
                Compiled::Mutating(hooks) => {
                    relevant.mutating.extend(hooks.iter().filter(|h| concerned(&h.matcher)).cloned());
                }
                Compiled::Validating(hooks) => {
                    relevant.validating.extend(hooks.iter().filter(|h| concerned(&h.matcher)).cloned());
                }
                Compiled::Policy(policy) if concerned(&policy.matcher) => {
                    if let Some(bindings) = bindings.remove(policy.name.as_str()) {
                        relevant.policies.push((Arc::clone(policy), bindings));
                    }
                }
                Compiled::Policy(_) | Compiled::Binding(_) => {}
            }
        }
        relevant
    }
}

fn id(object: &Value) -> Id {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or("");
    let (uid, version) = (text("/metadata/uid"), text("/metadata/resourceVersion"));
    let state = if uid.is_empty() || version.is_empty() { String::new() } else { format!("{uid}/{version}") };
    (text("/kind").to_owned(), text("/metadata/name").to_owned(), state)
}

fn compile(object: &Value) -> Option<Compiled> {
    Some(match object["kind"].as_str()? {
        "MutatingWebhookConfiguration" => Compiled::Mutating(Webhook::read_all(object)),
        "ValidatingWebhookConfiguration" => Compiled::Validating(Webhook::read_all(object)),
        "ValidatingAdmissionPolicy" => Compiled::Policy(Arc::new(Policy::read(object))),
        "ValidatingAdmissionPolicyBinding" => Compiled::Binding(Arc::new(Binding::read(object))),
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
