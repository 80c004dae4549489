//! The checks of the level `baseline`. In: a pod. Out: a violation in upstream's words.

use super::Violation;
use super::pod::{
    Pod, containers, handler_hosts, joined, plural, profiles, quoted, security, setters, switched_on, violation, words,
};
use crate::read::{at, entries, has, list, text};
use serde_json::Value;
use std::collections::BTreeSet;

const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";

const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Sysctls that stay within the pod, with the first release that allows them.
const SAFE_SYSCTLS: [(&str, u64); 12] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];

pub(super) fn app_armor(pod: &Pod, _: u64) -> Option<Violation> {
    let allowed = |type_: &str| matches!(type_, "RuntimeDefault" | "Localhost");
    let (pod_bad, names, types) = profiles(pod, "appArmorProfile", allowed);
    let allowed_annotation =
        |v: &Value| v.as_str().is_some_and(|v| v.is_empty() || v == "runtime/default" || v.starts_with("localhost/"));
    let annotations: BTreeSet<String> = entries(pod.metadata, "annotations")
        .filter(|(k, v)| k.starts_with(APP_ARMOR) && !allowed_annotation(v))
        .map(|(k, v)| format!("{k}={:?}", words(v)))
        .collect();
    let mut who: Vec<String> = setters(pod_bad, &names).into_iter().collect();
    if !annotations.is_empty() {
        who.push(plural("annotation", "annotations", annotations.len()).to_owned());
    }
    if who.is_empty() {
        return None;
    }
    let values: Vec<String> = types.into_iter().chain(annotations).collect();
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len());
    violation(reason, format!("{} must not set AppArmor profile type to {}", who.join(" and "), quoted(&values)))
}

pub(super) fn capabilities(pod: &Pod, _: u64) -> Option<Violation> {
    let mut forbidden = BTreeSet::new();
    let names = pod.bad(|c| forbidden_capabilities(c, &DEFAULT_CAPABILITIES, &mut forbidden));
    if names.is_empty() {
        return None;
    }
    let detail =
        format!("{} must not include {} in securityContext.capabilities.add", containers(&names), quoted(&forbidden));
    violation("non-default capabilities", detail)
}

/// Collects what a container adds beyond the allowed capabilities; `true` when there is any.
pub(super) fn forbidden_capabilities(container: &Value, allowed: &[&str], found: &mut BTreeSet<String>) -> bool {
    let added = list(security(container, "capabilities"), "add").iter().map(words);
    let bad: Vec<String> = added.filter(|c| !allowed.contains(&c.as_str())).collect();
    let any = !bad.is_empty();
    found.extend(bad);
    any
}

pub(super) fn host_namespaces(pod: &Pod, _: u64) -> Option<Violation> {
    let on = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|key| switched_on(at(pod.spec, key)));
    let on: Vec<String> = on.map(|key| format!("{key}=true")).collect();
    if on.is_empty() { None } else { violation("host namespaces", on.join(", ")) }
}

pub(super) fn host_paths(pod: &Pod, _: u64) -> Option<Violation> {
    let volumes = list(pod.spec, "volumes").iter().filter(|v| has(v, "hostPath"));
    let names: Vec<&str> = volumes.map(|v| text(v, "name")).collect();
    if names.is_empty() {
        return None;
    }
    violation("hostPath volumes", format!("{} {}", plural("volume", "volumes", names.len()), quoted(&names)))
}

pub(super) fn host_ports(pod: &Pod, _: u64) -> Option<Violation> {
    let mut ports = BTreeSet::new();
    let names = pod.bad(|c| {
        let used = list(c, "ports").iter().map(|p| at(p, "hostPort"));
        let used: Vec<String> = used.filter(|p| !p.is_null() && p.as_i64() != Some(0)).map(words).collect();
        let any = !used.is_empty();
        ports.extend(used);
        any
    });
    if names.is_empty() {
        return None;
    }
    let (uses, port) = (plural("uses", "use", names.len()), plural("hostPort", "hostPorts", ports.len()));
    violation("hostPort", format!("{} {uses} {port} {}", containers(&names), joined(&ports)))
}

pub(super) fn handler_host(pod: &Pod, _: u64) -> Option<Violation> {
    let mut hosts = BTreeSet::new();
    let mut names = pod.bad(|c| {
        let named = handler_hosts(c);
        let any = !named.is_empty();
        hosts.extend(named);
        any
    });
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return None;
    }
    let uses = plural("uses", "use", names.len());
    let what = plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len());
    violation("probe or lifecycle host", format!("{} {uses} {what} {}", containers(&names), quoted(&hosts)))
}

pub(super) fn privileged(pod: &Pod, _: u64) -> Option<Violation> {
    let names = pod.bad(|c| switched_on(security(c, "privileged")));
    if names.is_empty() {
        return None;
    }
    violation("privileged", format!("{} must not set securityContext.privileged=true", containers(&names)))
}

/// From 1.35 on a pod in a user namespace may see all of `/proc` under `baseline`.
pub(super) fn proc_mount_relaxed(pod: &Pod, minor: u64) -> Option<Violation> {
    if pod.in_user_namespace() { None } else { proc_mount(pod, minor) }
}

pub(super) fn proc_mount(pod: &Pod, _: u64) -> Option<Violation> {
    let mut types = BTreeSet::new();
    let names = pod.bad(|c| {
        let mount = security(c, "procMount");
        let bad = !mount.is_null() && mount != "Default";
        if bad {
            types.insert(words(mount));
        }
        bad
    });
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} must not set securityContext.procMount to {}", containers(&names), quoted(&types));
    violation("procMount", detail)
}

pub(super) fn se_linux(pod: &Pod, minor: u64) -> Option<Violation> {
    let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
    let mut bad = |options: &Value| {
        let type_ = at(options, "type");
        let allowed = match type_.as_str() {
            Some("" | "container_t" | "container_init_t" | "container_kvm_t") => true,
            Some("container_engine_t") => minor >= 31,
            Some(_) => false,
            None => type_.is_null(),
        };
        if !allowed {
            types.insert(words(type_));
        }
        let set = |key: &str| has(options, key) && at(options, key) != "";
        user |= set("user");
        role |= set("role");
        !allowed || set("user") || set("role")
    };
    let pod_bad = bad(pod.security("seLinuxOptions"));
    let names = pod.bad(|c| bad(security(c, "seLinuxOptions")));
    let who = setters(pod_bad, &names)?;
    let mut data = Vec::new();
    if !types.is_empty() {
        data.push(format!("{} {}", plural("type", "types", types.len()), quoted(&types)));
    }
    if user {
        data.push("user may not be set".to_owned());
    }
    if role {
        data.push("role may not be set".to_owned());
    }
    violation("seLinuxOptions", format!("{who} set forbidden securityContext.seLinuxOptions: {}", data.join("; ")))
}

/// Before 1.19 seccomp was an annotation.
pub(super) fn seccomp_annotations(pod: &Pod, _: u64) -> Option<Violation> {
    let annotations = at(pod.metadata, "annotations");
    let allowed = |v: &str| matches!(v, "runtime/default" | "docker/default") || v.starts_with("localhost/");
    let of_containers = pod.containers().map(|c| format!("{SECCOMP_CONTAINER}{}", text(c, "name")));
    let mut forbidden = BTreeSet::new();
    for key in std::iter::once(SECCOMP_POD.to_owned()).chain(of_containers) {
        let value = &annotations[key.as_str()];
        if !value.is_null() && !value.as_str().is_some_and(allowed) {
            forbidden.insert(format!("{key}={:?}", words(value)));
        }
    }
    if forbidden.is_empty() {
        return None;
    }
    let what = plural("annotation", "annotations", forbidden.len());
    violation("seccompProfile", format!("forbidden {what} {}", joined(&forbidden)))
}

pub(super) fn seccomp(pod: &Pod, _: u64) -> Option<Violation> {
    let (pod_bad, names, types) = profiles(pod, "seccompProfile", seccomp_allowed);
    let who = setters(pod_bad, &names)?;
    let detail = format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(&types));
    violation("seccompProfile", detail)
}

pub(super) fn seccomp_allowed(type_: &str) -> bool {
    matches!(type_, "Localhost" | "RuntimeDefault")
}

pub(super) fn sysctls(pod: &Pod, minor: u64) -> Option<Violation> {
    let safe = |name: &str| SAFE_SYSCTLS.iter().any(|(safe, since)| *safe == name && minor >= *since);
    let all = pod.security("sysctls").as_array().into_iter().flatten();
    let forbidden: Vec<&str> = all.map(|s| text(s, "name")).filter(|name| !safe(name)).collect();
    if forbidden.is_empty() { None } else { violation("forbidden sysctls", joined(&forbidden)) }
}

pub(super) fn windows_host_process(pod: &Pod, _: u64) -> Option<Violation> {
    let field = "windowsOptions.hostProcess";
    let names = pod.bad(|c| switched_on(security(c, field)));
    let who = setters(switched_on(pod.security(field)), &names)?;
    violation("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
}
