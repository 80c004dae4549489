//! One rule of a role: what it allows.
//!
//! In: the JSON of a PolicyRule, once. Out: whether it allows a request, and the JSON again.

use super::text::quote_list;
use super::words::Words;
use crate::Attributes;
use serde_json::{Map, Value};

/// A PolicyRule (`rbac.authorization.k8s.io/v1`), parsed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    pub(super) verbs: Words,
    pub(super) groups: Words,
    pub(super) resources: Words,
    pub(super) names: Words,
    pub(super) urls: Words,
}

impl Rule {
    /// `None` for what is no PolicyRule: a field that is no list of strings. A rule that cannot be read allows
    /// nothing; read halfway, it might allow more than was meant.
    pub fn parse(value: &Value) -> Option<Self> {
        let value = value.as_object()?;
        let words = |field: &str| Words::parse(value.get(field));
        Some(Self {
            verbs: words("verbs")?,
            groups: words("apiGroups")?,
            resources: words("resources")?,
            names: words("resourceNames")?,
            urls: words("nonResourceURLs")?,
        })
    }

    /// The rules of a role; those that cannot be read are left out.
    pub fn parse_all(role: &Value) -> Vec<Self> {
        let rules = role.get("rules").and_then(Value::as_array);
        rules.into_iter().flatten().filter_map(Self::parse).collect()
    }

    /// As JSON, without empty lists (`verbs` is always there).
    pub fn to_value(&self) -> Value {
        let mut out = Map::new();
        let lists = [
            ("apiGroups", &self.groups),
            ("resources", &self.resources),
            ("resourceNames", &self.names),
            ("nonResourceURLs", &self.urls),
        ];
        out.insert("verbs".into(), self.verbs.to_value());
        for (field, words) in lists {
            if !words.is_empty() {
                out.insert(field.into(), words.to_value());
            }
        }
        out.into()
    }

    /// In one line, as Kubernetes lists missing rules: `{APIGroups:["apps"], Resources:["deployments"], Verbs:["get"]}`.
    pub fn compact(&self) -> String {
        let parts = [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.urls),
            ("ResourceNames", &self.names),
            ("Verbs", &self.verbs),
        ];
        let parts = parts.iter().filter(|(_, words)| !words.is_empty());
        let parts: Vec<_> = parts.map(|(name, words)| format!("{name}:{}", quote_list(words.iter()))).collect();
        format!("{{{}}}", parts.join(", "))
    }

    pub(super) fn allows(&self, asked: &Asked<'_>) -> bool {
        let a = asked.attributes;
        if !self.verbs.allows(&a.verb) {
            return false;
        }
        if !asked.is_resource {
            return self.urls.allows(&a.path) || self.urls.iter().any(|url| prefix_of(url, &a.path));
        }
        self.groups.allows(&a.group)
            && (self.resources.allows(&asked.resource)
                || asked.any_resource.as_deref().is_some_and(|word| self.resources.contains(word)))
            && (self.names.is_empty() || self.names.contains(&a.name))
    }
}

/// Whether a URL of a rule ends in `*` and what is before it begins the path.
pub(super) fn prefix_of(url: &str, path: &str) -> bool {
    url.ends_with('*') && path.starts_with(url.trim_end_matches('*'))
}

/// A question, with what every rule compares made once.
pub(super) struct Asked<'a> {
    attributes: &'a Attributes,
    is_resource: bool,
    /// `pods/log`.
    resource: String,
    /// `*/log`.
    any_resource: Option<String>,
}

impl<'a> Asked<'a> {
    pub fn new(attributes: &'a Attributes) -> Self {
        // With neither resource nor path it is the review of a resource without a name, which only `*` allows.
        let is_resource = !attributes.resource.is_empty() || attributes.path.is_empty();
        let sub = Some(&attributes.subresource).filter(|sub| !sub.is_empty());
        let any_resource = sub.map(|sub| format!("*/{sub}"));
        Self { attributes, is_resource, resource: attributes.full_resource(), any_resource }
    }

    pub fn is_resource(&self) -> bool {
        self.is_resource
    }
}
