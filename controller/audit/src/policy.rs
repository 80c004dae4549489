//! Which requests are recorded, and in how much detail. In: a policy file and the facts of a request. Out: a
//! [`Decision`].

mod read;
mod standard;
#[cfg(test)]
mod tests;

pub use read::PolicyError;

use crate::auditor::{RequestFacts, Resource};
use crate::event::{Stage, Stages};
use serde::{Deserialize, Serialize};

/// How much is recorded of a request. Ordered: each level has all of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Level {
    /// Nothing.
    None,
    /// Who did what, when, and with what outcome.
    Metadata,
    /// Also the request's object.
    Request,
    /// Also the response's object.
    RequestResponse,
}

impl Level {
    pub(crate) const ALL: [Self; 4] = [Self::None, Self::Metadata, Self::Request, Self::RequestResponse];

    /// The name in policies and events, for example `Metadata`.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// What the policy says of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// In how much detail it is recorded.
    pub level: Level,
    /// Stages of which no events are made: the policy's and the rule's.
    pub omit_stages: Stages,
    /// Objects are recorded without `metadata.managedFields`.
    pub omit_managed_fields: bool,
}

/// An audit policy (`audit.k8s.io/v1`): rules, of which the first that matches a request decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
    omit_stages: Stages,
    omit_managed_fields: bool,
}

/// One rule; an empty list leaves its question open.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    level: Level,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    non_resource_urls: Vec<String>,
    /// With the policy's own.
    omit_stages: Stages,
    omit_managed_fields: bool,
}

/// Resources of one API group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

impl Policy {
    /// The level, and what is left out, of a request. Requests that no rule matches are not recorded.
    pub fn decide(&self, facts: &RequestFacts<'_>) -> Decision {
        match self.rules.iter().find(|rule| rule.matches(facts)) {
            Some(rule) => Decision {
                level: rule.level,
                omit_stages: rule.omit_stages,
                omit_managed_fields: rule.omit_managed_fields,
            },
            None => Decision {
                level: Level::None,
                omit_stages: self.omit_stages,
                omit_managed_fields: self.omit_managed_fields,
            },
        }
    }

    /// The most detailed level of any rule.
    pub fn highest_level(&self) -> Level {
        self.rules.iter().map(|r| r.level).max().unwrap_or(Level::None)
    }

    /// Whether no request at all has events of this stage.
    pub fn omits(&self, stage: Stage) -> bool {
        self.rules.iter().all(|r| r.level == Level::None || r.omit_stages.contains(stage))
    }
}

impl Rule {
    fn matches(&self, facts: &RequestFacts<'_>) -> bool {
        if !self.users.is_empty() && !facts.user.is_some_and(|u| has(&self.users, u.name)) {
            return false;
        }
        let in_group = |group: &String| has(&self.user_groups, group);
        if !self.user_groups.is_empty() && !facts.user.is_some_and(|u| u.groups.iter().any(in_group)) {
            return false;
        }
        if !self.verbs.is_empty() && !has(&self.verbs, facts.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return facts.resource.is_some_and(|r| self.matches_resource(&r));
        }
        if !self.non_resource_urls.is_empty() {
            return facts.resource.is_none()
                && self.non_resource_urls.iter().any(|spec| path_matches(spec, facts.path));
        }
        true
    }

    fn matches_resource(&self, resource: &Resource<'_>) -> bool {
        if !self.namespaces.is_empty() && !has(&self.namespaces, resource.namespace) {
            return false;
        }
        self.resources.is_empty() || self.resources.iter().any(|g| g.matches(resource))
    }
}

impl GroupResources {
    fn matches(&self, resource: &Resource<'_>) -> bool {
        self.group == resource.group
            && (self.resources.is_empty()
                || (self.resource_names.is_empty() || has(&self.resource_names, resource.name))
                    && self.resources.iter().any(|pattern| resource_matches(pattern, resource)))
    }
}

/// `pods`, `pods/log`, `*` (all with their subresources), `*/scale` and `pods/*` (which matches `pods` too, as
/// upstream's does).
fn resource_matches(pattern: &str, resource: &Resource<'_>) -> bool {
    if pattern == "*" {
        return true;
    }
    match pattern.split_once('/') {
        None => resource.subresource.is_empty() && pattern == resource.resource,
        Some(("*", sub)) if !resource.subresource.is_empty() && sub == resource.subresource => true,
        Some((name, "*")) => name == resource.resource,
        Some((name, sub)) => {
            !resource.subresource.is_empty() && name == resource.resource && sub == resource.subresource
        }
    }
}

fn path_matches(spec: &str, path: &str) -> bool {
    spec == "*" || spec == path || spec.ends_with('*') && path.starts_with(spec.trim_end_matches('*'))
}

fn has(list: &[String], value: &str) -> bool {
    list.iter().any(|entry| entry == value)
}
