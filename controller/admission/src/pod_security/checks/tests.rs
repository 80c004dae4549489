//! Every check of the Pod Security Standards, level by level and version by version.

use super::super::Version;
use super::*;
use serde_json::json;

fn at_level(level: Level, version: Version, object: &Value) -> Vec<Violation> {
    evaluate(LevelVersion { level, version }, &object["metadata"], &object["spec"])
}

/// What each level says of one container's security context, as of a version; containers are otherwise hardened.
fn said(level: Level, version: Version, object: &Value) -> String {
    summary(&at_level(level, version, object))
}

/// A pod that `restricted` lets pass, changed by a JSON merge.
fn hardened(change: Value) -> Value {
    let mut pod = json!({"metadata": {"name": "p"}, "spec": {
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "initContainers": [],
        "containers": [{"name": "a", "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}
        }}]
    }});
    merge(&mut pod, change);
    pod
}

fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(change)) if into.len() == change.len() => {
            into.iter_mut().zip(change).for_each(|(i, c)| merge(i, c));
        }
        (into, change) => *into = change,
    }
}

fn container(context: Value) -> Value {
    hardened(json!({"spec": {"containers": [{"securityContext": context}]}}))
}

const OLD: Version = Version::V1(24);

#[test]
fn a_hardened_pod_passes_everywhere() {
    for version in [Version::Latest, Version::V1(0), Version::V1(25), Version::V1(34), Version::V1(99)] {
        for level in [Level::Privileged, Level::Baseline, Level::Restricted] {
            assert_eq!(said(level, version, &hardened(json!({}))), "", "{level}:{version}");
        }
    }
}

#[test]
fn a_plain_pod_in_a_restricted_namespace() {
    let plain = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "securityContext": {}}]}});
    assert_eq!(said(Level::Baseline, Version::Latest, &plain), "");
    assert_eq!(
        said(Level::Restricted, Version::Latest, &plain),
        "allowPrivilegeEscalation != false (containers \"a\", \"b\" must set \
         securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (containers \"a\", \"b\" must set \
         securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or containers \"a\", \"b\" must set \
         securityContext.runAsNonRoot=true), seccompProfile (pod or containers \"a\", \"b\" must set \
         securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
    );
}

#[test]
fn baseline_checks() {
    let spec = |spec: Value| hardened(json!({ "spec": spec }));
    let ports = json!([{"hostPort": 9}, {"hostPort": 80}, {"hostPort": 0}, {}]);
    for (pod, want) in [
        (spec(json!({"hostNetwork": true, "hostIPC": true})), "host namespaces (hostNetwork=true, hostIPC=true)"),
        (spec(json!({"hostPID": false})), ""),
        (spec(json!({"volumes": [{"name": "v", "hostPath": {}}]})), "hostPath volumes (volume \"v\")"),
        (spec(json!({"containers": [{"ports": ports}]})), "hostPort (container \"a\" uses hostPorts 80, 9)"),
        (
            container(json!({"privileged": true})),
            "privileged (container \"a\" must not set securityContext.privileged=true)",
        ),
        (
            container(json!({"capabilities": {"add": ["NET_RAW", "CHOWN", "BPF", "BPF"]}})),
            "non-default capabilities (container \"a\" must not include \"BPF\", \"NET_RAW\" in \
             securityContext.capabilities.add)",
        ),
        (
            container(json!({"procMount": "Unmasked"})),
            "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
        ),
        (container(json!({"procMount": "Default"})), ""),
        (
            container(json!({"seccompProfile": {"type": "Unconfined"}})),
            "seccompProfile (container \"a\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
        ),
        (
            spec(json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}})),
            "forbidden AppArmor profile (pod must not set AppArmor profile type to \"Unconfined\")",
        ),
        (
            spec(json!({
                "securityContext": {"seLinuxOptions": {"type": "spc_t", "user": "u"}},
                "containers": [{"securityContext": {"seLinuxOptions": {"role": "r"}}}]
            })),
            "seLinuxOptions (pod and container \"a\" set forbidden securityContext.seLinuxOptions: type \"spc_t\"; \
             user may not be set; role may not be set)",
        ),
        (
            spec(json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_syncookies"}, {"name": "a.b"}]}})),
            "forbidden sysctls (a.b)",
        ),
        (
            spec(json!({"securityContext": {"windowsOptions": {"hostProcess": true}}})),
            "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
        ),
        (
            spec(json!({"containers": [{"livenessProbe": {"httpGet": {"host": "169.254.169.254"}},
                "lifecycle": {"preStop": {"tcpSocket": {"host": "x"}}}}]})),
            "probe or lifecycle host (container \"a\" uses probe or lifecycle hosts \"169.254.169.254\", \"x\")",
        ),
        (spec(json!({"containers": [{"livenessProbe": {"httpGet": {"host": ""}}}]})), ""),
    ] {
        assert_eq!(said(Level::Baseline, Version::Latest, &pod), want);
        assert_eq!(said(Level::Privileged, Version::Latest, &pod), "");
    }
}

#[test]
fn every_list_of_containers_counts() {
    for kind in ["initContainers", "ephemeralContainers"] {
        let pod = json!({"spec": {kind: [{"name": "x", "securityContext": {"privileged": true}}]}});
        let want = "privileged (container \"x\" must not set securityContext.privileged=true)";
        assert_eq!(said(Level::Baseline, Version::Latest, &pod), want, "{kind}");
    }
}

#[test]
fn annotations_of_app_armor() {
    let key = "container.apparmor.security.beta.kubernetes.io/a";
    for (value, bad) in [("runtime/default", false), ("", false), ("localhost/x", false), ("unconfined", true)] {
        let pod = hardened(json!({"metadata": {"annotations": {key: value}}}));
        let want = format!(
            "forbidden AppArmor profile (annotation must not set AppArmor profile type to \"{key}=\"unconfined\"\")"
        );
        assert_eq!(said(Level::Baseline, Version::Latest, &pod), if bad { want } else { String::new() }, "{value}");
    }
}

#[test]
fn restricted_checks() {
    let spec = |spec: Value| hardened(json!({ "spec": spec }));
    for (pod, want) in [
        (
            spec(json!({"volumes": [{"name": "h", "hostPath": {}}, {"name": "n", "nfs": {}}, {"name": "u"},
                {"name": "e", "emptyDir": {}}, {"name": "i", "image": {}}]})),
            "restricted volume types (volumes \"h\", \"n\", \"u\" use restricted volume types \"hostPath\", \"nfs\", \
             \"unknown\")",
        ),
        (
            container(json!({"capabilities": {"add": ["NET_BIND_SERVICE", "CHOWN"]}})),
            "unrestricted capabilities (container \"a\" must not include \"CHOWN\" in \
             securityContext.capabilities.add)",
        ),
        (
            container(json!({"capabilities": {"drop": ["NET_RAW"], "add": ["NET_RAW"]}})),
            "unrestricted capabilities (container \"a\" must set securityContext.capabilities.drop=[\"ALL\"]; \
             container \"a\" must not include \"NET_RAW\" in securityContext.capabilities.add)",
        ),
        (
            container(json!({"runAsNonRoot": false})),
            "runAsNonRoot != true (container \"a\" must not set securityContext.runAsNonRoot=false)",
        ),
        (container(json!({"runAsUser": 0})), "runAsUser=0 (container \"a\" must not set runAsUser=0)"),
        (container(json!({"runAsUser": 1000})), ""),
        (
            spec(json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}})),
            "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
        ),
        (
            container(json!({"allowPrivilegeEscalation": null})),
            "allowPrivilegeEscalation != false (container \"a\" must set \
             securityContext.allowPrivilegeEscalation=false)",
        ),
    ] {
        assert_eq!(said(Level::Restricted, Version::Latest, &pod), want);
    }
}

#[test]
fn versions() {
    let sysctl = |name: &str| hardened(json!({"spec": {"securityContext": {"sysctls": [{"name": name}]}}}));
    let spec = |spec: Value| hardened(json!({ "spec": spec }));
    let user_namespace = |mut pod: Value| {
        pod["spec"]["hostUsers"] = json!(false);
        pod
    };
    let windows = json!({"spec": {"os": {"name": "windows"}, "securityContext": {"runAsNonRoot": true},
        "containers": [{"name": "a"}]}});
    let engine = spec(json!({"securityContext": {"seLinuxOptions": {"type": "container_engine_t"}}}));
    let host = spec(json!({"containers": [{"readinessProbe": {"tcpSocket": {"host": "x"}}}]}));
    let unmasked = user_namespace(container(json!({"procMount": "Unmasked"})));
    let root = user_namespace(container(json!({"runAsUser": 0, "runAsNonRoot": false})));
    let annotated = hardened(json!({"metadata": {"annotations": {
        "seccomp.security.alpha.kubernetes.io/pod": "unconfined",
        "container.seccomp.security.alpha.kubernetes.io/other": "unconfined"
    }}}));
    use Level::{Baseline, Restricted};
    // A pod that is refused up to a release, or from one on.
    for (pod, level, minor, allowed_before, allowed_from) in [
        (sysctl("net.ipv4.ip_local_reserved_ports"), Baseline, 27, false, true),
        (sysctl("net.ipv4.tcp_keepalive_time"), Baseline, 29, false, true),
        (sysctl("net.ipv4.tcp_rmem"), Baseline, 32, false, true),
        (engine, Baseline, 31, false, true),
        (host, Baseline, 34, true, false),
        (unmasked.clone(), Baseline, 35, false, true),
        (unmasked, Restricted, 35, false, false),
        (root, Restricted, 35, false, true),
        (windows, Restricted, 25, false, true),
        (annotated, Baseline, 19, false, true),
        (container(json!({"runAsUser": 0})), Restricted, 23, true, false),
        (container(json!({"capabilities": {"drop": []}})), Restricted, 22, true, false),
        (container(json!({"allowPrivilegeEscalation": true})), Restricted, 8, true, false),
        (container(json!({"seccompProfile": {"type": "Unconfined"}})), Baseline, 19, true, false),
    ] {
        let allowed = |minor| at_level(level, Version::V1(minor), &pod).is_empty();
        let seen = (allowed(minor - 1), allowed(minor), allowed(400));
        assert_eq!(seen, (allowed_before, allowed_from, allowed_from), "{level} 1.{minor} {pod}");
        assert_eq!(at_level(level, Version::Latest, &pod).is_empty(), allowed_from);
    }
    let add = container(json!({"capabilities": {"add": ["BPF"]}}));
    assert!(said(Level::Restricted, Version::V1(21), &add).starts_with("non-default capabilities"));
    assert!(said(Level::Restricted, OLD, &add).starts_with("unrestricted capabilities"));
}

/// Strings, numbers and lists where a boolean should stand never loosen a check.
#[test]
fn wrong_types_are_violations() {
    for odd in [json!("true"), json!(1), json!([]), json!({})] {
        for (level, field) in [
            (Level::Baseline, "privileged"),
            (Level::Restricted, "allowPrivilegeEscalation"),
            (Level::Restricted, "runAsNonRoot"),
            (Level::Restricted, "runAsUser"),
            (Level::Baseline, "procMount"),
        ] {
            let odd = if field == "runAsUser" && odd == json!(1) { json!(0.5) } else { odd.clone() };
            let pod = container(json!({ field: odd }));
            assert!(!at_level(level, Version::Latest, &pod).is_empty(), "{field}: {odd}");
        }
    }
}

#[test]
fn details_are_bounded() {
    let containers: Vec<Value> = (0..5000)
        .map(|i| json!({"name": format!("c{i}"), "securityContext": {"procMount": format!("{i}{}", "ü".repeat(500))}}))
        .collect();
    for v in at_level(Level::Restricted, Version::Latest, &json!({"spec": {"containers": containers}})) {
        assert!(v.detail.len() < 9000, "{}", v.detail.len());
    }
}
