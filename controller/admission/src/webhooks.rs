//! Admission webhooks: whom to call about a request, what to make of the answers.
//!
//! In: webhook configurations as JSON; requests. Out: patched objects, warnings and annotations, or a refusal. How the
//! calls are made is a [`Caller`]'s matter.

mod call;
mod http;
mod invoke;
pub(crate) mod review;

pub use call::{CallError, Caller, Place, Target};
pub use http::{HttpCaller, Network};
pub(crate) use invoke::{mutate, validate};
pub use review::MAX_RESPONSE;

use crate::admission_request::Matcher;
use crate::expressions::{Authorizer, Conditions};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// What webhooks are called with.
#[derive(Clone)]
pub(crate) struct Environment {
    pub caller: Arc<dyn Caller>,
    pub authorizer: Arc<dyn Authorizer>,
}

/// A webhook of a configuration, ready to be called.
pub(crate) struct Webhook {
    pub name: String,
    pub configuration: String,
    pub matcher: Matcher,
    /// A failure to call it refuses the request.
    pub fails_closed: bool,
    /// It may be called for a dry run.
    pub no_side_effects: bool,
    pub timeout: Duration,
    /// A mutating one that is called again when others change the object after it.
    pub reinvoked: bool,
    pub conditions: Arc<Conditions>,
    /// Where it is; or why it cannot be called at all, which is a failure like any other.
    pub target: Result<Target, String>,
}

impl Webhook {
    /// Reads the webhooks of a configuration; to be called on a big stack.
    pub(crate) fn read_all(configuration: &Value) -> Vec<Arc<Webhook>> {
        let name = configuration.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("");
        let hooks = configuration["webhooks"].as_array().into_iter().flatten();
        hooks.map(|hook| Arc::new(Self::read(name, hook))).collect()
    }

    fn read(configuration: &str, hook: &Value) -> Self {
        let mut target = Target::read(&hook["clientConfig"]);
        let matcher = Matcher::of_webhook(hook).or_else(|why| {
            target = Err(why);
            // Without its selectors it is for more than it should be; but it cannot be called anyway.
            Matcher::of_webhook(&serde_json::json!({"rules": hook["rules"], "matchPolicy": hook["matchPolicy"]}))
        });
        let conditions = Conditions::compile(&hook["matchConditions"], false).unwrap_or_else(|why| {
            target = Err(why);
            Conditions::default()
        });
        Self {
            name: hook["name"].as_str().unwrap_or("").to_owned(),
            configuration: configuration.to_owned(),
            matcher: matcher.unwrap_or_default(),
            fails_closed: hook["failurePolicy"].as_str() != Some("Ignore"),
            no_side_effects: matches!(hook["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")),
            timeout: Duration::from_secs(hook["timeoutSeconds"].as_u64().unwrap_or(10).clamp(1, 30)),
            reinvoked: hook["reinvocationPolicy"].as_str() == Some("IfNeeded"),
            conditions: Arc::new(conditions),
            target,
        }
    }
}

#[cfg(test)]
mod tests;
