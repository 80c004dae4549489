//! rbac.authorization.k8s.io/v1: Role, ClusterRole, RoleBinding, ClusterRoleBinding. Four kinds in one file, since they
//! are two alike pairs.

use crate::field::{self, FieldErrors, Path};
use crate::json::{at, fill_zero, has, items_mut, list, object_mut, same, text};
use crate::rules::{Kind, Rules};
use crate::{Resource, age, cell};
use serde_json::{Value, json};

const GROUP: &str = "rbac.authorization.k8s.io";

/// The four kinds.
pub(super) fn resources() -> Vec<Resource> {
    let role_columns = [("Name", "string", 0), ("Created At", "date", 0)];
    let role = Rules { validate: role, cells: role_cells, name: field::path_segment, ..Rules::default() };
    let binding_columns = [
        ("Name", "string", 0),
        ("Role", "string", 0),
        ("Age", "string", 0),
        ("Users", "string", 1),
        ("Groups", "string", 1),
        ("ServiceAccounts", "string", 1),
    ];
    let binding = Rules {
        default: binding_defaults,
        validate: binding,
        validate_update: binding_update,
        cells: binding_cells,
        name: field::path_segment,
        ..Rules::default()
    };
    vec![
        Kind::new(GROUP, "v1", "ClusterRole", "clusterroles")
            .cluster()
            .columns(&role_columns)
            .rules(Rules { validate: cluster_role, ..role }),
        Kind::new(GROUP, "v1", "ClusterRoleBinding", "clusterrolebindings")
            .cluster()
            .columns(&binding_columns)
            .rules(Rules { validate: cluster_binding, ..binding }),
        Kind::new(GROUP, "v1", "Role", "roles").columns(&role_columns).rules(role),
        Kind::new(GROUP, "v1", "RoleBinding", "rolebindings").columns(&binding_columns).rules(binding),
    ]
}

fn role(o: &Value, errors: &mut FieldErrors) {
    rules(o, true, errors);
}

fn cluster_role(o: &Value, errors: &mut FieldErrors) {
    rules(o, false, errors);
}

fn rules(o: &Value, namespaced: bool, errors: &mut FieldErrors) {
    for (i, rule) in list(o, "rules").iter().enumerate() {
        let path = Path::new("rules").index(i);
        if list(rule, "verbs").is_empty() {
            errors.required(&path.child("verbs"), "verbs must contain at least one value");
        }
        let urls = list(rule, "nonResourceURLs");
        if !urls.is_empty() {
            let path = path.child("nonResourceURLs");
            if namespaced {
                let detail = "namespaced rules cannot apply to non-resource URLs";
                errors.invalid(&path, Value::Array(urls.to_vec()), detail);
            }
            if has(rule, "resources") || has(rule, "apiGroups") || has(rule, "resourceNames") {
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                errors.invalid(&path, Value::Array(urls.to_vec()), detail);
            }
            continue;
        }
        if list(rule, "apiGroups").is_empty() {
            errors.required(&path.child("apiGroups"), "resource rules must supply at least one api group");
        }
        if list(rule, "resources").is_empty() {
            errors.required(&path.child("resources"), "resource rules must supply at least one resource");
        }
    }
}

fn binding_defaults(o: &mut Value) {
    if let Some(role) = object_mut(o, "roleRef") {
        fill_zero(role, "apiGroup", GROUP);
    }
    for subject in items_mut(o, "subjects").filter(|s| matches!(text(s, "kind"), "User" | "Group")) {
        fill_zero(subject, "apiGroup", GROUP);
    }
}

fn binding(o: &Value, errors: &mut FieldErrors) {
    subjects(o, &["Role", "ClusterRole"], errors);
}

fn cluster_binding(o: &Value, errors: &mut FieldErrors) {
    subjects(o, &["ClusterRole"], errors);
}

fn subjects(o: &Value, role_kinds: &[&str], errors: &mut FieldErrors) {
    let role = Path::new("roleRef");
    if text(o, "roleRef.apiGroup") != GROUP {
        errors.not_supported(&role.child("apiGroup"), text(o, "roleRef.apiGroup"), &[GROUP]);
    }
    if !role_kinds.contains(&text(o, "roleRef.kind")) {
        errors.not_supported(&role.child("kind"), text(o, "roleRef.kind"), role_kinds);
    }
    if text(o, "roleRef.name").is_empty() {
        errors.required(&role.child("name"), "");
    }
    for (i, subject) in list(o, "subjects").iter().enumerate() {
        let path = Path::new("subjects").index(i);
        if text(subject, "name").is_empty() {
            errors.required(&path.child("name"), "");
        }
        match text(subject, "kind") {
            "User" | "Group" => {}
            "ServiceAccount" if text(subject, "namespace").is_empty() => errors.required(&path.child("namespace"), ""),
            "ServiceAccount" => {}
            other => errors.not_supported(&path.child("kind"), other, &["Group", "ServiceAccount", "User"]),
        }
    }
}

fn binding_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    if !same(&new["roleRef"], &old["roleRef"]) {
        errors.invalid(&Path::new("roleRef"), new["roleRef"].clone(), "cannot change roleRef");
    }
}

fn role_cells(o: &Value, _now: i64) -> Vec<Value> {
    vec![cell::name(o), json!(text(o, "metadata.creationTimestamp"))]
}

fn binding_cells(o: &Value, now: i64) -> Vec<Value> {
    let of = |kind: &str| {
        let name = |s: &Value| match (kind, text(s, "namespace")) {
            ("ServiceAccount", namespace) => format!("{namespace}/{}", text(s, "name")),
            _ => text(s, "name").to_owned(),
        };
        let all: Vec<String> = list(o, "subjects").iter().filter(|s| text(s, "kind") == kind).map(name).collect();
        json!(all.join(", "))
    };
    let role = at(o, "roleRef");
    vec![
        cell::name(o),
        json!(format!("{}/{}", text(role, "kind"), text(role, "name"))),
        age::age(o, now),
        of("User"),
        of("Group"),
        of("ServiceAccount"),
    ]
}
