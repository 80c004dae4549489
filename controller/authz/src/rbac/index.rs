//! Roles and bindings, ready to be asked.
//!
//! Bindings lie under the names of their subjects, for the whole cluster and for each namespace, so that a decision
//! looks at the caller's own bindings only. All maps are persistent: a clone is a snapshot for the price of a few
//! counters, and a change copies the path to one entry.

use super::binding::{Binding, RoleRef};
use super::rule::{Asked, Rule};
use super::text::quote;
use crate::{Attributes, Decision, Subject};
use rpds::{HashTrieMapSync, RedBlackTreeMapSync};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// So many errors are named in a reason.
const MAX_ERRORS: usize = 8;

type Map<V> = HashTrieMapSync<Arc<str>, V>;
type Roles = Map<Arc<[Rule]>>;
/// Bindings of one subject, by name.
type Posts = RedBlackTreeMapSync<Arc<str>, Arc<Binding>>;

/// The bindings of one namespace, or those for the whole cluster.
#[derive(Debug, Clone, Default)]
struct Scope {
    bindings: Map<Arc<Binding>>,
    users: Map<Posts>,
    groups: Map<Posts>,
}

/// All roles and bindings of a cluster. A clone is cheap and does not change any more.
#[derive(Debug, Clone, Default)]
pub struct Index {
    cluster_roles: Roles,
    /// By namespace.
    roles: Map<Roles>,
    cluster: Scope,
    /// By namespace.
    namespaces: Map<Scope>,
}

/// What a caller may do in a namespace, as in the status of a SelfSubjectRulesReview.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RulesFor {
    /// ResourceRules.
    pub resource: Vec<Value>,
    /// NonResourceRules.
    pub non_resource: Vec<Value>,
    /// Bindings to roles that are not there; empty if there are none. For `evaluationError`.
    pub error: String,
}

impl Scope {
    fn remove(&mut self, name: &str) {
        let Some(binding) = self.bindings.get(name).cloned() else { return };
        self.bindings.remove_mut(name);
        for subject in &binding.subjects {
            let map = if subject.is_group { &mut self.groups } else { &mut self.users };
            let Some(posts) = map.get_mut(&subject.name) else { continue };
            posts.remove_mut(name);
            if posts.is_empty() {
                map.remove_mut(&subject.name);
            }
        }
    }

    fn insert(&mut self, binding: Binding) {
        self.remove(&binding.name);
        let binding = Arc::new(binding);
        for subject in &binding.subjects {
            let map = if subject.is_group { &mut self.groups } else { &mut self.users };
            match map.get_mut(&subject.name) {
                Some(posts) => posts.insert_mut(binding.name.clone(), binding.clone()),
                None => {
                    let posts = Posts::new_sync().insert(binding.name.clone(), binding.clone());
                    map.insert_mut(subject.name.clone(), posts);
                }
            }
        }
        self.bindings.insert_mut(binding.name.clone(), binding);
    }

    /// The bindings of a caller; one that applies for two reasons comes twice.
    fn of<'a>(&'a self, caller: Subject<'a>) -> impl Iterator<Item = &'a Arc<Binding>> {
        let groups = caller.groups.iter().filter_map(|group| self.groups.get(group.as_str()));
        self.users.get(caller.user).into_iter().chain(groups).flat_map(|posts| posts.values())
    }
}

/// Takes one entry out of a map of maps, and the inner map with its last one.
fn remove_inner(outer: &mut Map<Roles>, namespace: &str, name: &str) {
    let Some(inner) = outer.get_mut(namespace) else { return };
    inner.remove_mut(name);
    if inner.is_empty() {
        outer.remove_mut(namespace);
    }
}

fn inner_of<'a, V: Clone + Default>(outer: &'a mut Map<V>, namespace: &str) -> Option<&'a mut V> {
    if !outer.contains_key(namespace) {
        outer.insert_mut(namespace.into(), V::default());
    }
    outer.get_mut(namespace)
}

impl Index {
    /// Takes in a new or changed object of `roles`, `clusterroles`, `rolebindings` or `clusterrolebindings`.
    ///
    /// False for any other resource, and for an object without the name or namespace that it must have: nothing
    /// changes then.
    pub fn upsert(&mut self, resource: &str, object: &Value) -> bool {
        let text = |field: &str| object.pointer(field).and_then(Value::as_str).unwrap_or_default();
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        let namespaced = matches!(resource, "roles" | "rolebindings");
        if name.is_empty() || namespaced == namespace.is_empty() {
            return false;
        }
        match resource {
            "clusterroles" => self.cluster_roles.insert_mut(name.into(), Rule::parse_all(object).into()),
            "clusterrolebindings" => self.cluster.insert(Binding::parse("", name, object)),
            "roles" => {
                if let Some(roles) = inner_of(&mut self.roles, namespace) {
                    roles.insert_mut(name.into(), Rule::parse_all(object).into());
                }
            }
            "rolebindings" => {
                if let Some(scope) = inner_of(&mut self.namespaces, namespace) {
                    scope.insert(Binding::parse(namespace, name, object));
                }
            }
            _ => return false,
        }
        true
    }

    /// Forgets an object. `namespace` is empty for cluster-wide ones.
    pub fn remove(&mut self, resource: &str, namespace: &str, name: &str) {
        match resource {
            "clusterroles" => drop(self.cluster_roles.remove_mut(name)),
            "clusterrolebindings" => self.cluster.remove(name),
            "roles" => remove_inner(&mut self.roles, namespace, name),
            "rolebindings" => {
                if let Some(scope) = self.namespaces.get_mut(namespace) {
                    scope.remove(name);
                    if scope.bindings.is_empty() {
                        self.namespaces.remove_mut(namespace);
                    }
                }
            }
            _ => {}
        }
    }

    /// Whether a role or binding allows it. Never [`Decision::Deny`]: rules only add.
    ///
    /// A request for a path (no resource) sees ClusterRoleBindings only.
    pub fn authorize(&self, subject: Subject<'_>, a: &Attributes) -> Decision {
        let asked = Asked::new(a);
        let namespace = if asked.is_resource() { a.namespace.as_str() } else { "" };
        let mut errors = Errors::default();
        for scope in self.scopes(namespace) {
            for binding in scope.of(subject) {
                match self.resolve(&binding.role, namespace_of(binding)) {
                    Ok(rules) if rules.iter().any(|rule| rule.allows(&asked)) => {
                        return Decision::Allow(format!("RBAC: allowed by {}", binding.describe(subject)));
                    }
                    Ok(_) => {}
                    Err(error) => errors.push(error),
                }
            }
        }
        let errors = errors.to_text();
        Decision::NoOpinion(if errors.is_empty() { errors } else { format!("RBAC: {errors}") })
    }

    /// What the caller may do in the namespace, or cluster-wide where that is empty.
    pub fn rules_for(&self, subject: Subject<'_>, namespace: &str) -> RulesFor {
        let (rules, error) = self.held(subject, namespace);
        let mut found = RulesFor { error, ..RulesFor::default() };
        for rule in rules {
            if !rule.resources.is_empty() {
                let resource = Rule { urls: Default::default(), ..rule.clone() };
                found.resource.push(resource.to_value());
            }
            if !rule.urls.is_empty() {
                let url = json!({ "verbs": rule.verbs.to_value(), "nonResourceURLs": rule.urls.to_value() });
                found.non_resource.push(url);
            }
        }
        found
    }

    /// What of `wanted` (PolicyRules) the caller does not hold in the namespace (empty: cluster-wide), as short as
    /// it can be said. Empty if it may hand all of it on.
    ///
    /// A rule that cannot be read counts as one that allows everything. Rules that break down into more than 20,000
    /// single permissions are held only where one rule of the caller covers each as a whole.
    pub fn uncovered(&self, subject: Subject<'_>, namespace: &str, wanted: &[Value]) -> Vec<Rule> {
        let (held, _) = self.held(subject, namespace);
        super::cover::uncovered(&held, wanted)
    }

    /// The rules of a `roleRef` of a binding in `namespace` (empty for a ClusterRoleBinding).
    ///
    /// Err: it is not there, as Kubernetes says it.
    pub fn rules_of(&self, role_ref: &Value, namespace: &str) -> Result<Vec<Value>, String> {
        let rules = self.resolve(&RoleRef::parse(Some(role_ref)), namespace)?;
        Ok(rules.iter().map(Rule::to_value).collect())
    }

    /// All rules of a caller, each binding once, and what could not be found.
    pub(super) fn held(&self, subject: Subject<'_>, namespace: &str) -> (Vec<&Rule>, String) {
        let mut rules = Vec::new();
        let mut errors = Errors::default();
        for scope in self.scopes(namespace) {
            let bindings: BTreeMap<&str, _> = scope.of(subject).map(|binding| (&*binding.name, binding)).collect();
            for binding in bindings.values() {
                match self.resolve(&binding.role, namespace_of(binding)) {
                    Ok(found) => rules.extend(found),
                    Err(error) => errors.push(error),
                }
            }
        }
        (rules, errors.to_text())
    }

    fn scopes(&self, namespace: &str) -> impl Iterator<Item = &Scope> {
        let own = if namespace.is_empty() { None } else { self.namespaces.get(namespace) };
        std::iter::once(&self.cluster).chain(own)
    }

    fn resolve(&self, role: &RoleRef, namespace: &str) -> Result<&[Rule], String> {
        let not_found = |kind: &str, name: &str| format!("{kind}.{} {} not found", super::GROUP, quote(name));
        match role {
            RoleRef::ClusterRole(name) => {
                self.cluster_roles.get(name).map(|rules| &**rules).ok_or_else(|| not_found("clusterrole", name))
            }
            RoleRef::Role(name) => {
                let rules = self.roles.get(namespace).and_then(|roles| roles.get(name));
                rules.map(|rules| &**rules).ok_or_else(|| not_found("role", name))
            }
            RoleRef::Unsupported(kind) => Err(format!("unsupported role reference kind: {}", quote(kind))),
        }
    }
}

fn namespace_of(binding: &Binding) -> &str {
    &binding.namespace
}

/// Different errors, the first of them by name.
#[derive(Default)]
struct Errors {
    named: Vec<String>,
    more: usize,
}

impl Errors {
    fn push(&mut self, error: String) {
        if self.named.contains(&error) {
        } else if self.named.len() < MAX_ERRORS {
            self.named.push(error);
        } else {
            self.more += 1;
        }
    }

    /// One as it is, more of them as `[a, b]`.
    fn to_text(&self) -> String {
        match (self.named.as_slice(), self.more) {
            ([], _) => String::new(),
            ([one], 0) => one.clone(),
            (named, 0) => format!("[{}]", named.join(", ")),
            (named, more) => format!("[{}, and {more} more]", named.join(", ")),
        }
    }
}
