//! The checks that the level `restricted` adds. In: a pod. Out: a violation in upstream's words.

use super::Violation;
use super::baseline::{forbidden_capabilities, seccomp_allowed};
use super::pod::{Pod, containers, plural, quoted, security, setters, violation};
use super::{baseline, pod};
use crate::read::{has, list, text};
use serde_json::Value;
use std::collections::BTreeSet;

const ALLOWED_VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

const OTHER_VOLUMES: [&str; 21] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "gitRepo",
    "nfs",
    "iscsi",
    "glusterfs",
    "rbd",
    "flexVolume",
    "cinder",
    "cephfs",
    "flocker",
    "fc",
    "azureFile",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "portworxVolume",
    "scaleIO",
    "storageos",
];

/// From 1.25 on Windows pods pass what only means something on Linux.
fn linux_only(pod: &Pod, minor: u64) -> bool {
    minor >= 25 && pod.windows()
}

pub(super) fn privilege_escalation(pod: &Pod, minor: u64) -> Option<Violation> {
    if linux_only(pod, minor) {
        return None;
    }
    let names = pod.bad(|c| security(c, "allowPrivilegeEscalation") != &Value::Bool(false));
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&names));
    violation("allowPrivilegeEscalation != false", detail)
}

pub(super) fn capabilities(pod: &Pod, minor: u64) -> Option<Violation> {
    if linux_only(pod, minor) {
        return None;
    }
    let drops_all = |c: &Value| list(security(c, "capabilities"), "drop").iter().any(|d| d == "ALL");
    let keeping = pod.bad(|c| !drops_all(c));
    let mut forbidden = BTreeSet::new();
    let adding = pod.bad(|c| forbidden_capabilities(c, &["NET_BIND_SERVICE"], &mut forbidden));
    let mut details = Vec::new();
    if !keeping.is_empty() {
        details.push(format!(r#"{} must set securityContext.capabilities.drop=["ALL"]"#, containers(&keeping)));
    }
    if !adding.is_empty() {
        let (who, what) = (containers(&adding), quoted(&forbidden));
        details.push(format!("{who} must not include {what} in securityContext.capabilities.add"));
    }
    if details.is_empty() { None } else { violation("unrestricted capabilities", details.join("; ")) }
}

pub(super) fn volumes(pod: &Pod, _: u64) -> Option<Violation> {
    let (mut names, mut types) = (Vec::new(), BTreeSet::new());
    for volume in list(pod.spec, "volumes") {
        if ALLOWED_VOLUMES.iter().any(|kind| has(volume, kind)) {
            continue;
        }
        names.push(text(volume, "name"));
        types.insert(OTHER_VOLUMES.into_iter().find(|kind| has(volume, kind)).unwrap_or("unknown"));
    }
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {} {}",
        plural("volume", "volumes", names.len()),
        quoted(&names),
        plural("uses", "use", names.len()),
        plural("restricted volume type", "restricted volume types", types.len()),
        quoted(&types),
    );
    violation("restricted volume types", detail)
}

/// From 1.35 on root in a user namespace is allowed: it is nobody outside.
fn root_is_nobody(pod: &Pod, minor: u64) -> bool {
    minor >= 35 && pod.in_user_namespace()
}

pub(super) fn run_as_non_root(pod: &Pod, minor: u64) -> Option<Violation> {
    const REASON: &str = "runAsNonRoot != true";
    if root_is_nobody(pod, minor) {
        return None;
    }
    let of_pod = pod.security("runAsNonRoot");
    let no = |v: &Value| !v.is_null() && v != &Value::Bool(true);
    let explicit = pod.bad(|c| no(security(c, "runAsNonRoot")));
    if let Some(who) = setters(no(of_pod), &explicit) {
        return violation(REASON, format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    let implicit = pod.bad(|c| of_pod.is_null() && security(c, "runAsNonRoot").is_null());
    if implicit.is_empty() {
        return None;
    }
    violation(REASON, format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&implicit)))
}

pub(super) fn run_as_user(pod: &Pod, minor: u64) -> Option<Violation> {
    if root_is_nobody(pod, minor) {
        return None;
    }
    let root = |v: &Value| !v.is_null() && v.as_i64().is_none_or(|uid| uid == 0);
    let names = pod.bad(|c| root(security(c, "runAsUser")));
    let who = setters(root(pod.security("runAsUser")), &names)?;
    violation("runAsUser=0", format!("{who} must not set runAsUser=0"))
}

pub(super) fn seccomp(pod: &Pod, minor: u64) -> Option<Violation> {
    if linux_only(pod, minor) {
        return None;
    }
    if let Some(explicit) = baseline::seccomp(pod, minor) {
        return Some(explicit);
    }
    let profile = |context: &Value| seccomp_allowed(text(context, "type"));
    let of_pod = profile(pod.security("seccompProfile"));
    let implicit = pod.bad(|c| !of_pod && pod::security(c, "seccompProfile").is_null());
    if implicit.is_empty() {
        return None;
    }
    let who = containers(&implicit);
    let detail =
        format!(r#"pod or {who} must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost""#);
    violation("seccompProfile", detail)
}
