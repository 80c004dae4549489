//! Which FlowSchema a request belongs to.
//!
//! In: the facts of a request, and the schemas in the order of their precedence. Out: the first that matches.

use crate::config::Schema;
use crate::seat::Flow;
use serde_json::Value;
use std::sync::Arc;

/// What is known of a request when it is classified; the words are those of Kubernetes' `RequestInfo`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts<'a> {
    /// The user's name, after impersonation.
    pub user: &'a str,
    /// The user's groups.
    pub groups: &'a [String],
    /// `get`, `list`, `watch`, `create`, …; for other paths than those of resources the method in lower case.
    pub verb: &'a str,
    /// The API group; empty for core.
    pub api_group: &'a str,
    /// For example `pods`.
    pub resource: &'a str,
    /// For example `status`; empty when there is none.
    pub subresource: &'a str,
    /// Empty for cluster-scoped resources, and for lists over all namespaces.
    pub namespace: &'a str,
    /// The URL's path; looked at only where `is_resource` is false.
    pub path: &'a str,
    /// The request is for a resource of the API.
    pub is_resource: bool,
}

/// Where a request belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// FlowSchema and priority level.
    pub flow: Arc<Flow>,
    /// Tells the flows of one schema apart: the user, the namespace, or nothing.
    pub distinguisher: String,
}

/// How the flows of a schema are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Distinguisher {
    None,
    User,
    Namespace,
}

impl Distinguisher {
    pub fn of<'a>(self, facts: &Facts<'a>) -> &'a str {
        match self {
            Self::None => "",
            Self::User => facts.user,
            Self::Namespace => facts.namespace,
        }
    }
}

/// The first schema that matches; the last, `catch-all`, takes what is left.
pub(crate) fn classify<'a>(schemas: &'a [Arc<Schema>], facts: &Facts<'_>) -> Option<&'a Arc<Schema>> {
    let matching = |s: &&Arc<Schema>| s.rules.iter().any(|r| r.matches(facts));
    schemas.iter().find(matching).or_else(|| schemas.iter().rev().find(|s| &*s.flow.schema == "catch-all"))
}

/// A list in a rule: everything, or these words.
#[derive(Debug, Clone, Default)]
pub(crate) struct Words {
    all: bool,
    words: Vec<String>,
}

impl Words {
    pub fn read(list: &Value) -> Self {
        let words: Vec<String> =
            list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        Self { all: matches!(&words[..], [one] if one == "*"), words }
    }

    fn has(&self, word: &str) -> bool {
        self.all || self.words.iter().any(|w| w == word)
    }

    /// `pods`, or `pods/status`.
    fn has_resource(&self, resource: &str, subresource: &str) -> bool {
        let same = |w: &String| match w.split_once('/') {
            None => subresource.is_empty() && w == resource,
            Some((r, s)) => !subresource.is_empty() && r == resource && s == subresource,
        };
        self.all || self.words.iter().any(same)
    }

    /// The path itself, or one below: `/healthz` and `/healthz/*` both match `/healthz/ping`.
    fn has_path(&self, path: &str) -> bool {
        let matches = |w: &String| {
            let stem = w.strip_suffix('*').unwrap_or(w);
            w == path || path.strip_prefix(stem).is_some_and(|rest| stem.ends_with('/') || rest.starts_with('/'))
        };
        self.all || self.words.iter().any(matches)
    }
}

#[derive(Debug)]
enum Subject {
    User(String),
    Group(String),
    ServiceAccount { namespace: String, name: String },
}

impl Subject {
    fn read(subject: &Value) -> Option<Self> {
        let text = |key: &str, field: &str| subject[key][field].as_str().map(str::to_owned);
        match subject["kind"].as_str()? {
            "User" => Some(Self::User(text("user", "name")?)),
            "Group" => Some(Self::Group(text("group", "name")?)),
            "ServiceAccount" => Some(Self::ServiceAccount {
                namespace: text("serviceAccount", "namespace")?,
                name: text("serviceAccount", "name")?,
            }),
            _ => None,
        }
    }

    fn matches(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::User(name) => name == "*" || name == facts.user,
            Self::Group(name) => name == "*" || facts.groups.iter().any(|g| g == name),
            Self::ServiceAccount { namespace, name } => {
                let account = facts.user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
                account.is_some_and(|(ns, n)| ns == namespace && (name == "*" || n == name))
            }
        }
    }
}

#[derive(Debug)]
struct ResourceRule {
    verbs: Words,
    api_groups: Words,
    resources: Words,
    namespaces: Words,
    cluster_scope: bool,
}

impl ResourceRule {
    fn matches(&self, facts: &Facts<'_>) -> bool {
        self.verbs.has(facts.verb)
            && self.resources.has_resource(facts.resource, facts.subresource)
            && self.api_groups.has(facts.api_group)
            && if facts.namespace.is_empty() { self.cluster_scope } else { self.namespaces.has(facts.namespace) }
    }
}

/// One of a schema's rules: some subjects, and what they ask for.
#[derive(Debug)]
pub(crate) struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    /// Verbs and paths.
    others: Vec<(Words, Words)>,
}

impl Rule {
    pub fn read(rule: &Value) -> Self {
        let list = |key: &str| rule[key].as_array().map_or(&[][..], Vec::as_slice);
        let resource = |r: &Value| ResourceRule {
            verbs: Words::read(&r["verbs"]),
            api_groups: Words::read(&r["apiGroups"]),
            resources: Words::read(&r["resources"]),
            namespaces: Words::read(&r["namespaces"]),
            cluster_scope: r["clusterScope"].as_bool().unwrap_or(false),
        };
        let other = |r: &Value| (Words::read(&r["verbs"]), Words::read(&r["nonResourceURLs"]));
        Self {
            subjects: list("subjects").iter().filter_map(Subject::read).collect(),
            resources: list("resourceRules").iter().map(resource).collect(),
            others: list("nonResourceRules").iter().map(other).collect(),
        }
    }

    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        self.subjects.iter().any(|s| s.matches(facts))
            && if facts.is_resource {
                self.resources.iter().any(|r| r.matches(facts))
            } else {
                self.others.iter().any(|(verbs, paths)| verbs.has(facts.verb) && paths.has_path(facts.path))
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_and_resources_match_as_upstream_has_it() {
        let paths = Words::read(&json!(["/healthz", "/metrics/*"]));
        for (path, expected) in [
            ("/healthz", true),
            ("/healthz/ping", true),
            ("/healthzz", false),
            ("/metrics/cadvisor", true),
            ("/metrics", false),
            ("/", false),
        ] {
            assert_eq!(paths.has_path(path), expected, "{path}");
        }
        let resources = Words::read(&json!(["nodes", "nodes/status"]));
        for (resource, sub, expected) in
            [("nodes", "", true), ("nodes", "status", true), ("nodes", "proxy", false), ("node", "", false)]
        {
            assert_eq!(resources.has_resource(resource, sub), expected, "{resource}/{sub}");
        }
        assert!(!Words::read(&json!(["*", "x"])).has("y"), "the wildcard counts only where it stands alone");
    }

    #[test]
    fn accounts_match_by_namespace_and_name() {
        let subject = |namespace: &str, name: &str| {
            let s = json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": namespace, "name": name}});
            Subject::read(&s).unwrap()
        };
        let user = |user| Facts { user, ..Facts::default() };
        let all = subject("kube-system", "*");
        assert!(all.matches(&user("system:serviceaccount:kube-system:a")));
        assert!(!all.matches(&user("system:serviceaccount:kube-system-2:a")));
        assert!(!all.matches(&user("system:serviceaccount:kube-system")));
        assert!(subject("a", "b").matches(&user("system:serviceaccount:a:b")));
        assert!(!subject("a", "b").matches(&user("system:serviceaccount:a:bc")));
        assert!(Subject::read(&json!({"kind": "User"})).is_none());
    }
}
