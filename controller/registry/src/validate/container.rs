//! Containers of all three lists: names, images, ports, environment, mounts, probes.
//!
//! In: a pod's spec. Out: field errors under `spec.containers[i]` and its neighbours.

use super::{names, probe, resources};
use crate::field::{FieldErrorType, FieldErrors, Path, dns_label};
use crate::json::{at, existing, int, list, text, truth};
use serde_json::{Value, json};
use std::collections::HashSet;

pub(crate) const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const ENV_SOURCES: [&str; 5] = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];

/// What containers of one pod must agree on.
pub(crate) struct Pod<'a> {
    pub host_network: bool,
    pub volumes: HashSet<&'a str>,
    pub names: HashSet<&'a str>,
    pub host_ports: HashSet<String>,
}

/// All containers of a pod spec.
pub(crate) fn containers(spec: &Value, volumes: HashSet<&str>, path: &Path, errors: &mut FieldErrors) {
    let mut pod =
        Pod { host_network: truth(spec, "hostNetwork"), volumes, names: HashSet::new(), host_ports: HashSet::new() };
    let main = path.child("containers");
    if list(spec, "containers").is_empty() {
        errors.required(&main, "");
    }
    for (i, c) in list(spec, "containers").iter().enumerate() {
        let path = main.index(i);
        container(c, &mut pod, &path, errors);
        probes(c, &path, errors);
        if !text(c, "restartPolicy").is_empty() {
            errors.forbidden(&path.child("restartPolicy"), "may not be set for non-init containers");
        }
        host_ports(c, &mut pod, &path, errors);
    }
    for (i, c) in list(spec, "initContainers").iter().enumerate() {
        let path = path.child("initContainers").index(i);
        container(c, &mut pod, &path, errors);
        init(c, &path, errors);
    }
}

fn init(c: &Value, path: &Path, errors: &mut FieldErrors) {
    match text(c, "restartPolicy") {
        "Always" => probes(c, path, errors),
        "" => {
            for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if existing(c, key) {
                    let detail = "may not be set for init containers without restartPolicy=Always";
                    errors.forbidden(&path.child(key), detail);
                }
            }
        }
        other => errors.not_supported(&path.child("restartPolicy"), other, &["Always"]),
    }
}

fn probes(c: &Value, path: &Path, errors: &mut FieldErrors) {
    probe::lifecycle(at(c, "lifecycle"), &path.child("lifecycle"), errors);
    probe::probe(at(c, "livenessProbe"), true, &path.child("livenessProbe"), errors);
    probe::probe(at(c, "readinessProbe"), false, &path.child("readinessProbe"), errors);
    probe::probe(at(c, "startupProbe"), true, &path.child("startupProbe"), errors);
}

fn container<'a>(c: &'a Value, pod: &mut Pod<'a>, path: &Path, errors: &mut FieldErrors) {
    let name = text(c, "name");
    if name.is_empty() {
        errors.required(&path.child("name"), "");
    } else if let Err(why) = dns_label(name) {
        errors.invalid(&path.child("name"), name, why);
    } else if !pod.names.insert(name) {
        errors.duplicate(&path.child("name"), name);
    }
    let image = text(c, "image");
    if image.is_empty() {
        errors.required(&path.child("image"), "");
    } else if image.trim() != image {
        errors.invalid(&path.child("image"), image, "must not have leading or trailing whitespace");
    }
    let policy = text(c, "imagePullPolicy");
    if !matches!(policy, "Always" | "IfNotPresent" | "Never") {
        errors.not_supported(&path.child("imagePullPolicy"), policy, &["Always", "IfNotPresent", "Never"]);
    }
    let policy = text(c, "terminationMessagePolicy");
    if !matches!(policy, "File" | "FallbackToLogsOnError") {
        errors.not_supported(&path.child("terminationMessagePolicy"), policy, &["FallbackToLogsOnError", "File"]);
    }
    ports(c, pod, &path.child("ports"), errors);
    for (i, e) in list(c, "env").iter().enumerate() {
        env(e, &path.child("env").index(i), errors);
    }
    for (i, e) in list(c, "envFrom").iter().enumerate() {
        env_from(e, &path.child("envFrom").index(i), errors);
    }
    mounts(c, pod, &path.child("volumeMounts"), errors);
    resources::requirements(at(c, "resources"), &path.child("resources"), errors);
    security(at(c, "securityContext"), &path.child("securityContext"), errors);
}

fn ports(c: &Value, pod: &Pod<'_>, path: &Path, errors: &mut FieldErrors) {
    let mut seen = HashSet::new();
    for (i, p) in list(c, "ports").iter().enumerate() {
        let path = path.index(i);
        let name = text(p, "name");
        if !name.is_empty() {
            if let Err(why) = names::port_name(name) {
                errors.invalid(&path.child("name"), name, why);
            } else if !seen.insert(name) {
                errors.duplicate(&path.child("name"), name);
            }
        }
        let (port, host) = (int(p, "containerPort").unwrap_or(0), int(p, "hostPort").unwrap_or(0));
        if port == 0 {
            errors.required(&path.child("containerPort"), "");
        } else if let Err(why) = names::port_number(port) {
            errors.invalid(&path.child("containerPort"), port, why);
        }
        if host != 0
            && let Err(why) = names::port_number(host)
        {
            errors.invalid(&path.child("hostPort"), host, why);
        } else if pod.host_network && host != port {
            let detail = "must match `containerPort` when `hostNetwork` is true";
            errors.invalid(&path.child("hostPort"), host, detail);
        }
        protocol(text(p, "protocol"), &path.child("protocol"), errors);
    }
}

/// `TCP`, `UDP` or `SCTP`.
pub(crate) fn protocol(protocol: &str, path: &Path, errors: &mut FieldErrors) {
    if protocol.is_empty() {
        errors.required(path, "");
    } else if !PROTOCOLS.contains(&protocol) {
        errors.not_supported(path, protocol, &PROTOCOLS);
    }
}

fn host_ports(c: &Value, pod: &mut Pod<'_>, path: &Path, errors: &mut FieldErrors) {
    for (i, p) in list(c, "ports").iter().enumerate() {
        let host = int(p, "hostPort").unwrap_or(0);
        if host == 0 {
            continue;
        }
        let key = format!("{}/{}/{host}", text(p, "protocol"), text(p, "hostIP"));
        if !pod.host_ports.insert(key.clone()) {
            errors.duplicate(&path.child("ports").index(i).child("hostPort"), key);
        }
    }
}

fn env(e: &Value, path: &Path, errors: &mut FieldErrors) {
    let name = text(e, "name");
    if name.is_empty() {
        errors.required(&path.child("name"), "");
    } else if let Err(why) = names::env_name(name) {
        errors.invalid(&path.child("name"), name, why);
    }
    if !existing(e, "valueFrom") {
        return;
    }
    let (source, path) = (at(e, "valueFrom"), path.child("valueFrom"));
    if !text(e, "value").is_empty() {
        errors.invalid(&path, "", "may not be specified when `value` is not empty");
    }
    let given: Vec<_> = ENV_SOURCES.iter().filter(|s| existing(source, s)).collect();
    match given.as_slice() {
        [] => {
            let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or \
                          `fileKeyRef`";
            errors.invalid(&path, "", detail);
        }
        [one] => env_source(at(source, one), one, &path.child(one), errors),
        _ => errors.invalid(&path, "", "may not have more than one field specified at a time"),
    }
}

fn env_source(source: &Value, kind: &str, path: &Path, errors: &mut FieldErrors) {
    match kind {
        "fieldRef" => field_ref(source, &ENV_FIELDS, path, errors),
        "resourceFieldRef" if text(source, "resource").is_empty() => errors.required(&path.child("resource"), ""),
        "configMapKeyRef" | "secretKeyRef" => {
            let key = text(source, "key");
            if text(source, "name").is_empty() {
                errors.required(&path.child("name"), "");
            }
            if key.is_empty() {
                errors.required(&path.child("key"), "");
            } else if let Err(why) = names::config_map_key(key) {
                errors.invalid(&path.child("key"), key, why);
            }
        }
        _ => {}
    }
}

/// A downward API reference: one of the given fields, or one label or annotation by its key.
pub(crate) fn field_ref(source: &Value, allowed: &[&str], path: &Path, errors: &mut FieldErrors) {
    let (field, path) = (text(source, "fieldPath"), path.child("fieldPath"));
    if field.is_empty() {
        errors.required(&path, "");
        return;
    }
    let subscript = ["metadata.labels['", "metadata.annotations['"].iter().find_map(|p| field.strip_prefix(p));
    match subscript {
        Some(rest) => {
            let key = rest.strip_suffix("']").unwrap_or("");
            if let Err(why) = names::qualified_name(&key.to_lowercase()) {
                errors.invalid(&path, key, why);
            }
        }
        None if allowed.contains(&field) => {}
        None => errors.not_supported(&path, field, allowed),
    }
}

fn env_from(e: &Value, path: &Path, errors: &mut FieldErrors) {
    let prefix = text(e, "prefix");
    if !prefix.is_empty()
        && let Err(why) = names::env_name(prefix)
    {
        errors.invalid(&path.child("prefix"), prefix, why);
    }
    let given: Vec<_> = ["configMapRef", "secretRef"].into_iter().filter(|s| existing(e, s)).collect();
    match given.as_slice() {
        [] => errors.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"),
        [one] if text(at(e, one), "name").is_empty() => errors.required(&path.child(one).child("name"), ""),
        [_] => {}
        _ => errors.invalid(path, "", "may not have more than one field specified at a time"),
    }
}

fn mounts(c: &Value, pod: &Pod<'_>, path: &Path, errors: &mut FieldErrors) {
    let mut seen = HashSet::new();
    for (i, m) in list(c, "volumeMounts").iter().enumerate() {
        let path = path.index(i);
        let (name, target) = (text(m, "name"), text(m, "mountPath"));
        if name.is_empty() {
            errors.required(&path.child("name"), "");
        }
        if !pod.volumes.contains(name) {
            errors.push(FieldErrorType::NotFound, &path.child("name"), Some(json!(name)), "");
        }
        if target.is_empty() {
            errors.required(&path.child("mountPath"), "");
        } else if !seen.insert(target) {
            errors.invalid(&path.child("mountPath"), target, "must be unique");
        }
        for key in ["subPath", "subPathExpr"] {
            relative_path(text(m, key), &path.child(key), errors);
        }
        if !text(m, "subPath").is_empty() && !text(m, "subPathExpr").is_empty() {
            let detail = "subPathExpr and subPath are mutually exclusive";
            errors.invalid(&path.child("subPathExpr"), text(m, "subPathExpr"), detail);
        }
    }
}

/// A path below something: relative, and never up.
pub(crate) fn relative_path(target: &str, path: &Path, errors: &mut FieldErrors) {
    if target.starts_with('/') {
        errors.invalid(path, target, "must be a relative path");
    }
    if target.split('/').any(|part| part == "..") {
        errors.invalid(path, target, "must not contain '..'");
    }
}

fn security(context: &Value, path: &Path, errors: &mut FieldErrors) {
    for key in ["runAsUser", "runAsGroup"] {
        if let Some(id) = int(context, key).filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
            errors.invalid(&path.child(key), id, "must be between 0 and 2147483647, inclusive");
        }
    }
    if truth(context, "privileged") && at(context, "allowPrivilegeEscalation") == &json!(false) {
        let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        errors.invalid(path, context.clone(), detail);
    }
}
