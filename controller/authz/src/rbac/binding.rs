//! A binding: to whom it gives which role.
//!
//! In: the JSON of a RoleBinding or ClusterRoleBinding, once. Out: the callers it is for, and how it is called in
//! reasons.

use super::GROUP;
use super::text::quote;
use crate::Subject;
use serde_json::Value;
use std::fmt::Write;
use std::sync::Arc;

const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// The role that a binding gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RoleRef {
    /// In the namespace of the binding.
    Role(Arc<str>),
    ClusterRole(Arc<str>),
    /// Nothing that could be looked up; its kind.
    Unsupported(String),
}

impl RoleRef {
    pub fn parse(role_ref: Option<&Value>) -> Self {
        let text = |field: &str| role_ref.and_then(|r| r.get(field)).and_then(Value::as_str).unwrap_or_default();
        // Writes default an empty group to this one.
        let ours = matches!(text("apiGroup"), "" | GROUP);
        match text("kind") {
            "Role" if ours => Self::Role(text("name").into()),
            "ClusterRole" if ours => Self::ClusterRole(text("name").into()),
            kind => Self::Unsupported(kind.to_owned()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SubjectKind {
    User,
    Group,
    ServiceAccount,
}

/// One subject, by the name that callers carry: for a service account that is its user name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    pub is_group: bool,
    pub name: Arc<str>,
    /// Its place in the binding.
    place: u32,
    kind: SubjectKind,
}

#[derive(Debug)]
pub(super) struct Binding {
    pub name: Arc<str>,
    /// Empty for a ClusterRoleBinding.
    pub namespace: Arc<str>,
    pub role: RoleRef,
    /// Sorted.
    pub subjects: Box<[Entry]>,
}

impl Binding {
    pub fn parse(namespace: &str, name: &str, object: &Value) -> Self {
        let subjects = object.get("subjects").and_then(Value::as_array);
        let subjects = (0..).zip(subjects.into_iter().flatten());
        let mut subjects: Vec<_> = subjects.filter_map(|(place, s)| entry(s, place, namespace)).collect();
        subjects.sort_unstable();
        // The first of equal ones is the one that is named.
        subjects.dedup_by(|later, first| later.is_group == first.is_group && later.name == first.name);
        Self {
            name: name.into(),
            namespace: namespace.into(),
            role: RoleRef::parse(object.get("roleRef")),
            subjects: subjects.into(),
        }
    }

    fn entry(&self, is_group: bool, name: &str) -> Option<&Entry> {
        let place = self.subjects.binary_search_by(|e| (e.is_group, &*e.name).cmp(&(is_group, name))).ok()?;
        self.subjects.get(place)
    }

    /// `ClusterRoleBinding "a" of ClusterRole "b" to User "c"`: the first subject of the list that the caller is.
    pub fn describe(&self, caller: Subject<'_>) -> String {
        let groups = caller.groups.iter().filter_map(|group| self.entry(true, group));
        let subject = groups.chain(self.entry(false, caller.user)).min_by_key(|entry| entry.place);
        let mut out = if self.namespace.is_empty() {
            format!("ClusterRoleBinding {} of ", quote(&self.name))
        } else {
            format!("RoleBinding {} of ", quote(&format!("{}/{}", self.name, self.namespace)))
        };
        let (kind, role) = match &self.role {
            RoleRef::Role(name) => ("Role", &**name),
            RoleRef::ClusterRole(name) => ("ClusterRole", &**name),
            RoleRef::Unsupported(kind) => (kind.as_str(), ""),
        };
        let _ = write!(out, "{kind} {}", quote(role));
        if let Some(subject) = subject {
            let _ = write!(out, " to {}", subject.describe());
        }
        out
    }
}

impl Entry {
    fn describe(&self) -> String {
        match self.kind {
            SubjectKind::User => format!("User {}", quote(&self.name)),
            SubjectKind::Group => format!("Group {}", quote(&self.name)),
            SubjectKind::ServiceAccount => {
                let account = self.name.strip_prefix(SERVICE_ACCOUNT_PREFIX).and_then(|rest| rest.split_once(':'));
                let (namespace, name) = account.unwrap_or_default();
                format!("ServiceAccount {}", quote(&format!("{name}/{namespace}")))
            }
        }
    }
}

/// `None` for what is nobody: an unknown kind, a foreign API group, no name, a service account without a namespace.
fn entry(subject: &Value, place: u32, namespace: &str) -> Option<Entry> {
    let text = |field: &str| subject.get(field).and_then(Value::as_str).unwrap_or_default();
    let (name, group) = (text("name"), text("apiGroup"));
    if name.is_empty() {
        return None;
    }
    let named = |kind, is_group| Entry { is_group, name: name.into(), place, kind };
    match text("kind") {
        "User" if matches!(group, "" | GROUP) => Some(named(SubjectKind::User, false)),
        "Group" if matches!(group, "" | GROUP) => Some(named(SubjectKind::Group, true)),
        "ServiceAccount" if group.is_empty() => {
            let namespace = Some(text("namespace")).filter(|ns| !ns.is_empty()).unwrap_or(namespace);
            // A colon is in no valid name; with one, `a:b` of `c` would be `a` of `b:c`.
            let valid = !namespace.is_empty() && !namespace.contains(':') && !name.contains(':');
            let name = format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}").into();
            valid.then_some(Entry { is_group: false, name, place, kind: SubjectKind::ServiceAccount })
        }
        _ => None,
    }
}
