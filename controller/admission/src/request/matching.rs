//! Which requests a webhook, policy or binding is for: rules, selectors, the equivalence of versions.
//!
//! In: their configuration as JSON, and a request's [`Facts`]. Out: whether it is for the request, and as which of the
//! versions in which the object is served.

use super::facts::{Equivalent, Facts, Rejection};
use serde_json::Value;

/// Resources that no webhook and no policy is ever asked about, lest one that is broken prevent its own repair.
const CONFIGURATION: [&str; 6] = [
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
    "mutatingwebhookconfigurations",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "validatingwebhookconfigurations",
];

/// Whether a request is about the configuration of admission itself.
pub fn is_exempt(facts: &Facts) -> bool {
    facts.resource.group == "admissionregistration.k8s.io" && CONFIGURATION.contains(&facts.resource.resource.as_str())
}

/// Resources that are questions and not objects: policies are not asked about them.
pub(crate) fn is_no_object(facts: &Facts) -> bool {
    matches!(
        (facts.resource.group.as_str(), facts.resource.resource.as_str()),
        ("authentication.k8s.io", "selfsubjectreviews" | "tokenreviews")
            | (
                "authorization.k8s.io",
                "localsubjectaccessreviews"
                    | "selfsubjectaccessreviews"
                    | "selfsubjectrulesreviews"
                    | "subjectaccessreviews"
            )
            | ("", "bindings")
    )
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// `RuleWithOperations`, with `resourceNames` where there are some.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rule {
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    operations: Vec<String>,
    names: Vec<String>,
    scope: String,
}

impl Rule {
    fn read(rule: &Value) -> Self {
        Self {
            groups: texts(&rule["apiGroups"]),
            versions: texts(&rule["apiVersions"]),
            resources: texts(&rule["resources"]),
            operations: texts(&rule["operations"]),
            names: texts(&rule["resourceNames"]),
            scope: rule["scope"].as_str().unwrap_or("*").to_owned(),
        }
    }

    /// Whether the rule names the resource, be it under this version.
    fn resource(&self, group: &str, version: &str, resource: &str, subresource: &str) -> bool {
        let among = |list: &[String], wanted: &str| list.iter().any(|x| x == "*" || x == wanted);
        among(&self.groups, group)
            && among(&self.versions, version)
            && self.resources.iter().any(|rule| {
                let (name, sub) = rule.split_once('/').unwrap_or((rule, ""));
                (name == "*" || name == resource) && (sub == "*" || sub == subresource)
            })
    }

    /// All but the resource.
    fn request(&self, facts: &Facts) -> bool {
        let scope = match self.scope.as_str() {
            "*" => true,
            "Namespaced" => facts.in_namespace(),
            "Cluster" => !facts.in_namespace(),
            _ => false,
        };
        scope
            && self.operations.iter().any(|o| o == "*" || o == facts.operation.name())
            && (self.names.is_empty() || self.names.contains(&facts.name))
    }
}

/// A requirement of a LabelSelector.
#[derive(Debug, Clone)]
struct Requirement {
    key: String,
    operator: String,
    values: Vec<String>,
}

/// A LabelSelector; `null` and `{}` select everything.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selector(Vec<Requirement>);

impl Selector {
    /// # Errors
    ///
    /// When an operator is not known.
    pub(crate) fn read(selector: &Value) -> Result<Self, String> {
        let labels = selector["matchLabels"].as_object().into_iter().flatten().map(|(key, value)| Requirement {
            key: key.clone(),
            operator: "In".to_owned(),
            values: value.as_str().map(str::to_owned).into_iter().collect(),
        });
        let expressions = selector["matchExpressions"].as_array().into_iter().flatten().map(|e| Requirement {
            key: e["key"].as_str().unwrap_or("").to_owned(),
            operator: e["operator"].as_str().unwrap_or("").to_owned(),
            values: texts(&e["values"]),
        });
        let all: Vec<Requirement> = labels.chain(expressions).collect();
        match all.iter().find(|r| !matches!(r.operator.as_str(), "In" | "NotIn" | "Exists" | "DoesNotExist")) {
            Some(bad) => Err(format!("{:?} is not a valid label selector operator", bad.operator)),
            None => Ok(Self(all)),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it selects what has these labels (`null` has none).
    pub(crate) fn selects(&self, labels: &Value) -> bool {
        self.0.iter().all(|r| {
            let value = labels.get(&r.key).and_then(Value::as_str);
            let among = value.is_some_and(|v| r.values.iter().any(|x| x == v));
            match r.operator.as_str() {
                "In" => among,
                "NotIn" => !among,
                "Exists" => value.is_some(),
                _ => value.is_none(),
            }
        })
    }
}

/// What a webhook, policy or binding is for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Matcher {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    /// No rules mean every resource: so it is with bindings.
    any_resource: bool,
    equivalent: bool,
    namespaces: Selector,
    objects: Selector,
}

fn rules(list: &Value) -> Vec<Rule> {
    list.as_array().into_iter().flatten().map(Rule::read).collect()
}

impl Matcher {
    /// From a webhook.
    pub(crate) fn of_webhook(hook: &Value) -> Result<Self, String> {
        Ok(Self { rules: rules(&hook["rules"]), ..Self::common(hook)? })
    }

    /// From `MatchResources`.
    pub(crate) fn of_policy(resources: &Value, is_binding: bool) -> Result<Self, String> {
        let rules_ = rules(&resources["resourceRules"]);
        let any_resource = is_binding && rules_.is_empty();
        let excluded = rules(&resources["excludeResourceRules"]);
        Ok(Self { rules: rules_, excluded, any_resource, ..Self::common(resources)? })
    }

    fn common(value: &Value) -> Result<Self, String> {
        Ok(Self {
            equivalent: value["matchPolicy"].as_str() != Some("Exact"),
            namespaces: Selector::read(&value["namespaceSelector"])?,
            objects: Selector::read(&value["objectSelector"])?,
            ..Self::default()
        })
    }

    /// As which version the request is matched by the rules, selectors apart; `None` when it is not.
    pub(crate) fn resource(&self, facts: &Facts) -> Option<Equivalent> {
        let own = Equivalent { resource: facts.resource.clone(), kind: facts.kind.clone() };
        let all = || std::iter::once(&own).chain(facts.equivalents.iter().filter(|_| self.equivalent));
        let names = |rule: &Rule, e: &Equivalent| {
            let r = &e.resource;
            rule.resource(&r.group, &r.version, &r.resource, &facts.subresource)
        };
        let relevant = |rule: &&Rule| rule.request(facts);
        if self.excluded.iter().filter(relevant).any(|rule| all().any(|e| names(rule, e))) {
            return None;
        }
        if self.any_resource {
            return Some(own);
        }
        // A rule for the very version that is here goes before one for an equivalent version.
        all().find(|e| self.rules.iter().filter(relevant).any(|rule| names(rule, e))).cloned()
    }

    /// Whether the selectors select the request.
    ///
    /// # Errors
    ///
    /// When the namespace is not known, and so neither are its labels.
    pub(crate) fn selects(&self, facts: &Facts, object: &Value, old: &Value) -> Result<bool, Rejection> {
        let labels = |object: &Value| object.pointer("/metadata/labels").cloned().unwrap_or_default();
        if !self.namespaces.is_empty() {
            let selected = if facts.is_namespace() {
                let known = facts.namespace_object.as_deref().unwrap_or(&Value::Null);
                let first = [object, old, known].into_iter().find(|o| o.is_object()).unwrap_or(&Value::Null);
                self.namespaces.selects(&labels(first))
            } else if facts.in_namespace() {
                let Some(namespace) = facts.namespace_object.as_deref() else {
                    let message = format!("namespaces {:?} not found", facts.namespace);
                    let details = serde_json::json!({"kind": "namespaces", "name": facts.namespace});
                    return Err(Rejection {
                        code: 404,
                        reason: "NotFound".to_owned(),
                        message,
                        details: Some(Box::new(details)),
                    });
                };
                self.namespaces.selects(&labels(namespace))
            } else {
                true
            };
            if !selected {
                return Ok(false);
            }
        }
        Ok(self.objects.is_empty()
            || [object, old].into_iter().any(|o| o.is_object() && self.objects.selects(&labels(o))))
    }

    /// Whether it could be for anything of a resource: what the index is made of.
    pub(crate) fn mentions(&self, group: &str, resource: &str) -> bool {
        let named = |rule: &Rule| {
            rule.groups.iter().any(|g| g == "*" || g == group)
                && rule.resources.iter().any(|r| {
                    let name = r.split('/').next().unwrap_or("");
                    name == "*" || name == resource
                })
        };
        self.any_resource || self.rules.iter().any(named)
    }
}
