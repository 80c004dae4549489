//! Decisions on requests: pods are enforced, workloads only warned of, namespaces must carry labels that make sense.
//! In: the request, the object, the labels of its namespace. Out: an [`Outcome`].

use super::level::{annotation, labels_of};
use super::{LabelError, Level, LevelVersion, Policy, Violation, evaluate, summary};
use crate::read::{at, list, text};
use crate::request::{Facts, Operation};
use serde_json::Value;
use std::fmt;

/// Subresources of pods that cannot change what a pod may do. Any other is judged as a pod: a subresource nobody
/// thought of must not be a way around.
const HARMLESS: [&str; 8] = ["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];

/// Requests that pod security does not judge.
#[derive(Debug, Clone, Default)]
pub struct Exemptions {
    /// Names of users. A controller's account here exempts all workloads it makes pods for.
    pub usernames: Vec<String>,
    /// Runtime classes of pods.
    pub runtime_classes: Vec<String>,
    /// Namespaces.
    pub namespaces: Vec<String>,
}

/// A refusal, for the engine to put into a Status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denial {
    /// 403; the engine writes `pods "x" is forbidden: ` before it.
    Forbidden(String),
    /// 422 with these causes.
    Invalid(Vec<LabelError>),
    /// 500: the pod's namespace could not be read.
    Internal(String),
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forbidden(why) | Self::Internal(why) => f.write_str(why),
            Self::Invalid(errors) => f.write_str(&aggregate(errors)),
        }
    }
}

/// A namespace now enforces more: its pods are to be checked and what is found is to be warned of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyChange {
    /// The namespace's name.
    pub namespace: String,
    /// What it enforces from now on.
    pub enforce: LevelVersion,
}

/// What becomes of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Why it is refused.
    pub denied: Option<Denial>,
    /// For HTTP `Warning` headers.
    pub warnings: Vec<String>,
    /// Audit annotations: full key and value.
    pub audit: Vec<(String, String)>,
    /// Give the pods of the namespace to [`PodSecurity::check_existing`] and add its warnings.
    pub check_existing: Option<PolicyChange>,
}

impl Outcome {
    fn denied(denial: Denial) -> Self {
        Self { denied: Some(denial), ..Self::default() }
    }

    fn warned(warning: String) -> Self {
        let warnings = if warning.is_empty() { Vec::new() } else { vec![warning] };
        Self { warnings, ..Self::default() }
    }

    fn noted(key: &str, value: impl Into<String>) -> Self {
        Self { audit: vec![(annotation(key), value.into())], ..Self::default() }
    }
}

/// The plugin with its configuration.
#[derive(Debug, Clone, Default)]
pub struct PodSecurity {
    pub(super) defaults: Policy,
    pub(super) exemptions: Exemptions,
}

impl PodSecurity {
    /// The plugin; `defaults` hold for what a namespace's labels leave open.
    pub fn new(defaults: Policy, exemptions: Exemptions) -> Self {
        Self { defaults, exemptions }
    }

    /// Whether requests for a resource are to be decided on at all.
    pub fn concerns(group: &str, resource: &str) -> bool {
        matches!((group, resource), ("", "namespaces" | "pods")) || template_path(group, resource).is_some()
    }

    /// Decides on a create or update (also dry runs) after mutation and validation. `namespace_labels` are those of
    /// the object's namespace, `None` when it could not be read; for Namespace objects they are not looked at. `old`
    /// is the stored object of an update.
    pub fn decide(
        &self,
        namespace_labels: Option<&Value>,
        facts: &Facts<'_>,
        object: &Value,
        old: Option<&Value>,
    ) -> Outcome {
        if !matches!(facts.operation, Operation::Create | Operation::Update) {
            return Outcome::default();
        }
        match (facts.group, facts.resource) {
            ("", "namespaces") => self.namespace(facts, object, old),
            ("", "pods") => self.pod(namespace_labels, facts, object, old),
            (group, resource) => match template_path(group, resource) {
                Some(path) => self.workload(namespace_labels, facts, at(object, path)),
                None => Outcome::default(),
            },
        }
    }

    fn namespace(&self, facts: &Facts<'_>, object: &Value, old: Option<&Value>) -> Outcome {
        if !facts.subresource.is_empty() {
            return Outcome::default();
        }
        let (labels, name) = (labels_of(object), text(object, "metadata.name"));
        let (new, errors) = Policy::from_labels(labels, self.defaults);
        let exempt = || {
            let warning = if self.exempts_namespace(name) { self.ignored(name, &new, labels) } else { String::new() };
            Outcome::warned(warning)
        };
        if facts.operation == Operation::Create {
            return if errors.is_empty() { exempt() } else { Outcome::denied(Denial::Invalid(errors)) };
        }
        let (old, old_errors) = Policy::from_labels(old.map_or(&Value::Null, labels_of), self.defaults);
        // Labels that were wrong before may stay: who changes something else is not to blame.
        if !errors.is_empty() && errors != old_errors {
            return Outcome::denied(Denial::Invalid(errors));
        }
        let relaxed = new.enforce.version == old.enforce.version && new.enforce.level <= old.enforce.level;
        if new.enforce == old.enforce || new.enforce.level == Level::Privileged || relaxed {
            return Outcome::default();
        }
        if self.exempts_namespace(name) {
            return exempt();
        }
        let change = PolicyChange { namespace: name.to_owned(), enforce: new.enforce };
        Outcome { check_existing: Some(change), ..Outcome::default() }
    }

    fn pod(&self, labels: Option<&Value>, facts: &Facts<'_>, pod: &Value, old: Option<&Value>) -> Outcome {
        if HARMLESS.contains(&facts.subresource) {
            return Outcome::default();
        }
        if let Some(exempt) = self.exempt(facts) {
            return exempt;
        }
        let Some(labels) = labels else {
            let why = format!("failed to lookup namespace {:?}", facts.namespace);
            let audit = vec![(annotation("error"), format!("Internal error occurred: {why}"))];
            return Outcome { denied: Some(Denial::Internal(why)), audit, ..Outcome::default() };
        };
        let (policy, errors) = Policy::from_labels(labels, self.defaults);
        if errors.is_empty() && policy.fully_privileged() {
            return Outcome::noted("enforce-policy", LevelVersion::PRIVILEGED.to_string());
        }
        if facts.operation == Operation::Update && old.is_some_and(|old| !significant(pod, old)) {
            return Outcome::default();
        }
        self.judge(&policy, &errors, at(pod, "metadata"), at(pod, "spec"), true)
    }

    fn workload(&self, labels: Option<&Value>, facts: &Facts<'_>, template: &Value) -> Outcome {
        if !facts.subresource.is_empty() {
            return Outcome::default();
        }
        if let Some(exempt) = self.exempt(facts) {
            return exempt;
        }
        let Some(labels) = labels else {
            return Outcome::noted("error", format!("failed to lookup namespace {:?}", facts.namespace));
        };
        let (policy, errors) = Policy::from_labels(labels, self.defaults);
        let silent = [policy.warn, policy.audit].iter().all(|l| l.level == Level::Privileged);
        if errors.is_empty() && silent || template.is_null() {
            return Outcome::default();
        }
        self.judge(&policy, &errors, at(template, "metadata"), at(template, "spec"), false)
    }

    fn judge(&self, policy: &Policy, errors: &[LabelError], metadata: &Value, spec: &Value, enforce: bool) -> Outcome {
        if self.exempts_runtime_class(spec) {
            return Outcome::noted("exempt", "runtimeClass");
        }
        let mut outcome = Outcome::default();
        if !errors.is_empty() {
            let why = format!("Failed to parse policy: {}", aggregate(errors));
            outcome.audit.push((annotation("error"), why));
        }
        let mut judged: Vec<(LevelVersion, Vec<Violation>)> = Vec::new();
        let mut complaint = |level: LevelVersion, verb: &str| {
            let known = judged.iter().position(|(l, _)| *l == level).unwrap_or_else(|| {
                judged.push((level, evaluate(level, metadata, spec)));
                judged.len() - 1
            });
            let found = &judged[known].1;
            let text = || format!("{verb} PodSecurity \"{level}\": {}", summary(found));
            (!found.is_empty()).then(text)
        };
        if enforce {
            outcome.audit.push((annotation("enforce-policy"), policy.enforce.to_string()));
            outcome.denied = complaint(policy.enforce, "violates").map(Denial::Forbidden);
        }
        if let Some(text) = complaint(policy.audit, "would violate") {
            outcome.audit.push((annotation("audit-violations"), text));
        }
        if outcome.denied.is_none() {
            outcome.warnings.extend(complaint(policy.warn, "would violate"));
        }
        outcome
    }

    fn exempt(&self, facts: &Facts<'_>) -> Option<Outcome> {
        if self.exempts_namespace(facts.namespace) {
            return Some(Outcome::noted("exempt", "namespace"));
        }
        let user = facts.user;
        let exempt = !user.is_empty() && self.exemptions.usernames.iter().any(|u| u == user);
        exempt.then(|| Outcome::noted("exempt", "user"))
    }

    fn exempts_namespace(&self, name: &str) -> bool {
        !name.is_empty() && self.exemptions.namespaces.iter().any(|n| n == name)
    }

    pub(super) fn exempts_runtime_class(&self, spec: &Value) -> bool {
        let class = text(spec, "runtimeClassName");
        !class.is_empty() && self.exemptions.runtime_classes.iter().any(|c| c == class)
    }

    /// The warning that labels of an exempt namespace have no effect; empty when there is nothing to say.
    fn ignored(&self, name: &str, policy: &Policy, labels: &Value) -> String {
        if policy.fully_privileged() || policy.equivalent(&self.defaults) {
            return String::new();
        }
        let modes = policy.set_modes(labels);
        format!("namespace {name:?} is exempt from Pod Security, and the policy ({modes}) will be ignored")
    }
}

/// Where the pod template of a workload stands.
fn template_path(group: &str, resource: &str) -> Option<&'static str> {
    match (group, resource) {
        ("", "podtemplates") => Some("template"),
        ("", "replicationcontrollers")
        | ("apps", "replicasets" | "deployments" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => Some("spec.template"),
        ("batch", "cronjobs") => Some("spec.jobTemplate.spec.template"),
        _ => None,
    }
}

/// Whether an update may make a pod violate its level: another image, another container.
fn significant(new: &Value, old: &Value) -> bool {
    for kind in ["spec.containers", "spec.initContainers"] {
        let (new, old) = (list(new, kind), list(old, kind));
        if new.len() != old.len() || new.iter().zip(old).any(|(n, o)| text(n, "image") != text(o, "image")) {
            return true;
        }
    }
    let ephemeral = "spec.ephemeralContainers";
    list(new, ephemeral).iter().any(|c| {
        let before = list(old, ephemeral).iter().find(|o| text(o, "name") == text(c, "name"));
        before.is_none_or(|o| text(o, "image") != text(c, "image"))
    })
}

/// As Go writes a list of errors.
fn aggregate(errors: &[LabelError]) -> String {
    match errors {
        [one] => one.to_string(),
        many => format!("[{}]", many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests;
