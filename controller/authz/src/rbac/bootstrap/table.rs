//! The text form of roles and bindings, and the objects that it stands for.
//!
//! ```text
//! in kube-system                                  from here on Roles and RoleBindings of a namespace
//! role NAME [part-of X]... [sum-of X]             part-of: the label aggregate-to-X; sum-of: selects that label
//! bound system:controller:X                       role, and its binding to the service account X of kube-system
//!   get,list core,apps: pods pods/log [@ names]   verbs, groups, resources, resourceNames
//!   get url: /healthz /api/*                      verbs, nonResourceURLs
//! bind NAME ROLE|= KIND:NAME...                   `=`: the role of the same name; `role-of-cluster:ROLE` in a namespace
//! ```
//!
//! `core` is the empty group; `read`, `write` and `readwrite` stand for their verbs. Deeper indented lines go on
//! with the one before; `#` begins a comment.

use super::{AUTOUPDATE, LABEL};
use crate::rbac::GROUP;
use serde_json::{Map, Value, json};

type Objects = Vec<(&'static str, Value)>;

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
const READ_WRITE: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const SERVICE_ACCOUNTS: &str = "kube-system";
const CONTROLLER: &str = "system:controller:";
const CLUSTER_ROLE: &str = "role-of-cluster:";
const AGGREGATE: &str = "rbac.authorization.k8s.io/aggregate-to-";

/// Err: the line that cannot be read.
pub(super) fn parse(text: &str) -> Result<Objects, String> {
    let mut out = Objects::new();
    let mut namespace = "";
    let lines = joined(text);
    for line in &lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let wrong = || line.clone();
        match words.as_slice() {
            _ if line.starts_with(' ') => {
                let rules = out.iter_mut().rev().find_map(|(_, role)| role.get_mut("rules")?.as_array_mut());
                rules.ok_or_else(wrong)?.push(rule(&words).ok_or_else(wrong)?);
            }
            ["in", name] => namespace = *name,
            ["role", name, labels @ ..] => out.push(role(namespace, name, labels).ok_or_else(wrong)?),
            ["bound", name] => {
                let account = name.strip_prefix(CONTROLLER).ok_or_else(wrong)?;
                let subject = format!("ServiceAccount:{SERVICE_ACCOUNTS}/{account}");
                // Before the role, so that its rules follow.
                out.push(binding("", name, "=", &[&subject]).ok_or_else(wrong)?);
                out.push(role("", name, &[]).ok_or_else(wrong)?);
            }
            ["bind", name, role, subjects @ ..] => {
                out.push(binding(namespace, name, role, subjects).ok_or_else(wrong)?);
            }
            _ => return Err(line.clone()),
        }
    }
    Ok(out)
}

/// Lines without comments, with those that go on.
fn joined(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let deeper = if lines.last().is_some_and(|last| last.starts_with("bind")) { "    " } else { "      " };
        match lines.last_mut() {
            Some(last) if line.starts_with(deeper) => *last += line,
            _ => lines.push(line.to_owned()),
        }
    }
    lines
}

fn metadata(namespace: &str, name: &str) -> Map<String, Value> {
    let mut meta = Map::new();
    meta.insert("name".into(), name.into());
    if !namespace.is_empty() {
        meta.insert("namespace".into(), namespace.into());
    }
    meta.insert("labels".into(), json!({ LABEL: "rbac-defaults" }));
    meta.insert("annotations".into(), json!({ AUTOUPDATE: "true" }));
    meta
}

fn role(namespace: &str, name: &str, labels: &[&str]) -> Option<(&'static str, Value)> {
    let mut meta = metadata(namespace, name);
    let mut sum = None;
    for pair in labels.chunks(2) {
        match pair {
            ["part-of", part] => drop(meta.get_mut("labels")?.as_object_mut()?.insert(label(part), "true".into())),
            ["sum-of", part] => {
                sum = Some(json!({ "clusterRoleSelectors": [{ "matchLabels": { label(part): "true" } }] }))
            }
            _ => return None,
        }
    }
    let (resource, kind) = if namespace.is_empty() { ("clusterroles", "ClusterRole") } else { ("roles", "Role") };
    let mut object = json!({ "apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": meta, "rules": [] });
    if let Some(sum) = sum {
        object.as_object_mut()?.insert("aggregationRule".into(), sum);
    }
    Some((resource, object))
}

fn label(part: &str) -> String {
    format!("{AGGREGATE}{part}")
}

fn rule(words: &[&str]) -> Option<Value> {
    let (verbs, groups, rest) = match words {
        [verbs, groups, rest @ ..] if !rest.is_empty() => (*verbs, groups.strip_suffix(':')?, rest),
        _ => return None,
    };
    let verbs: Vec<&str> = match verbs {
        "read" => READ.to_vec(),
        "write" => WRITE.to_vec(),
        "readwrite" => READ_WRITE.to_vec(),
        listed => listed.split(',').collect(),
    };
    if groups == "url" {
        return Some(json!({ "nonResourceURLs": rest, "verbs": verbs }));
    }
    let groups: Vec<&str> = groups.split(',').map(|group| if group == "core" { "" } else { group }).collect();
    let mut parts = rest.split(|word| *word == "@");
    let resources = parts.next().filter(|resources| !resources.is_empty())?;
    Some(match parts.next() {
        None => json!({ "apiGroups": groups, "resources": resources, "verbs": verbs }),
        Some([]) => return None,
        Some(names) => json!({ "apiGroups": groups, "resourceNames": names, "resources": resources, "verbs": verbs }),
    })
}

fn binding(namespace: &str, name: &str, role: &str, subjects: &[&str]) -> Option<(&'static str, Value)> {
    let mut all = Vec::new();
    for subject in subjects {
        all.push(match subject.split_once(':')? {
            ("ServiceAccount", account) => {
                let (namespace, name) = account.split_once('/')?;
                json!({ "kind": "ServiceAccount", "name": name, "namespace": namespace })
            }
            (kind @ ("User" | "Group"), name) => json!({ "apiGroup": GROUP, "kind": kind, "name": name }),
            _ => return None,
        });
    }
    let cluster = role.strip_prefix(CLUSTER_ROLE);
    let role_kind = if namespace.is_empty() || cluster.is_some() { "ClusterRole" } else { "Role" };
    let role = cluster.unwrap_or(if role == "=" { name } else { role });
    let (resource, kind) = if namespace.is_empty() {
        ("clusterrolebindings", "ClusterRoleBinding")
    } else {
        ("rolebindings", "RoleBinding")
    };
    let mut object = json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": kind,
        "metadata": metadata(namespace, name),
        "roleRef": { "apiGroup": GROUP, "kind": role_kind, "name": role },
    });
    if !all.is_empty() {
        object.as_object_mut()?.insert("subjects".into(), all.into());
    }
    Some((resource, object))
}
