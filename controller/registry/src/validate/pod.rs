//! Pods and what stands in their spec.
//!
//! In: a defaulted Pod, or a PodSpec and its path in a template. Out: field errors.

use super::{container, names, scheduling, volume};
use crate::field::{FieldErrors, Path, dns_label, dns_subdomain};
use crate::json::{at, int, list, same, text};
use serde_json::Value;

/// A new or changed pod.
pub(crate) fn pod(o: &Value, errors: &mut FieldErrors) {
    pod_spec(at(o, "spec"), &Path::new("spec"), errors);
}

/// What only a new pod must not have.
pub(crate) fn new_pod(o: &Value, errors: &mut FieldErrors) {
    let path = Path::new("spec");
    if !list(o, "spec.ephemeralContainers").is_empty() {
        errors.forbidden(&path.child("ephemeralContainers"), "cannot be set on create");
    }
    if !list(o, "spec.schedulingGates").is_empty() && !text(o, "spec.nodeName").is_empty() {
        errors.forbidden(&path.child("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
}

/// The spec of a pod or of a template.
pub(crate) fn pod_spec(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let volumes = volume::volumes(spec, path, errors);
    container::containers(spec, volumes, path, errors);
    restart_policy(spec, path, errors);
    dns(spec, path, errors);
    if let Some(n) = int(spec, "terminationGracePeriodSeconds").filter(|n| *n < 0) {
        errors.invalid(&path.child("terminationGracePeriodSeconds"), n, "must be greater than or equal to 0");
    }
    if let Some(n) = int(spec, "activeDeadlineSeconds").filter(|n| !(1..=i64::from(i32::MAX)).contains(n)) {
        errors.invalid(&path.child("activeDeadlineSeconds"), n, "must be between 1 and 2147483647, inclusive");
    }
    for (key, check) in [
        ("serviceAccountName", dns_subdomain as fn(&str) -> Result<(), String>),
        ("nodeName", dns_subdomain),
        ("priorityClassName", dns_subdomain),
        ("runtimeClassName", dns_subdomain),
        ("hostname", dns_label),
        ("subdomain", dns_label),
    ] {
        let value = text(spec, key);
        if !value.is_empty()
            && let Err(why) = check(value)
        {
            errors.invalid(&path.child(key), value, why);
        }
    }
    super::meta::labels(at(spec, "nodeSelector"), &path.child("nodeSelector"), errors);
    scheduling::tolerations(at(spec, "tolerations"), &path.child("tolerations"), errors);
    scheduling::affinity(at(spec, "affinity"), &path.child("affinity"), errors);
    let spread = path.child("topologySpreadConstraints");
    scheduling::topology_spread(at(spec, "topologySpreadConstraints"), &spread, errors);
    security(at(spec, "securityContext"), &path.child("securityContext"), errors);
    small_lists(spec, path, errors);
}

fn restart_policy(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    match text(spec, "restartPolicy") {
        "Always" | "OnFailure" | "Never" => {}
        "" => errors.required(&path.child("restartPolicy"), ""),
        other => errors.not_supported(&path.child("restartPolicy"), other, &["Always", "Never", "OnFailure"]),
    }
}

fn dns(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let policy = text(spec, "dnsPolicy");
    if !matches!(policy, "ClusterFirst" | "ClusterFirstWithHostNet" | "Default" | "None") {
        let supported = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
        errors.not_supported(&path.child("dnsPolicy"), policy, &supported);
    }
    let (servers, path) = (list(spec, "dnsConfig.nameservers"), path.child("dnsConfig"));
    if policy == "None" && servers.is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is \"None\"";
        errors.required(&path.child("nameservers"), detail);
    }
    if servers.len() > 3 {
        let detail = "must not have more than 3 nameservers";
        errors.invalid(&path.child("nameservers"), Value::Array(servers.to_vec()), detail);
    }
    for (i, server) in servers.iter().enumerate() {
        if let Err(why) = names::ip(server.as_str().unwrap_or("")) {
            errors.invalid(&path.child("nameservers").index(i), server.clone(), why);
        }
    }
}

fn security(context: &Value, path: &Path, errors: &mut FieldErrors) {
    for key in ["runAsUser", "runAsGroup", "fsGroup"] {
        if let Some(id) = int(context, key).filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
            errors.invalid(&path.child(key), id, "must be between 0 and 2147483647, inclusive");
        }
    }
}

fn small_lists(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    for (i, gate) in list(spec, "readinessGates").iter().enumerate() {
        if let Err(why) = names::qualified_name(text(gate, "conditionType")) {
            let path = path.child("readinessGates").index(i).child("conditionType");
            errors.invalid(&path, text(gate, "conditionType"), why);
        }
    }
    for (i, gate) in list(spec, "schedulingGates").iter().enumerate() {
        if let Err(why) = names::qualified_name(text(gate, "name")) {
            errors.invalid(&path.child("schedulingGates").index(i), text(gate, "name"), why);
        }
    }
    for (i, alias) in list(spec, "hostAliases").iter().enumerate() {
        let path = path.child("hostAliases").index(i);
        if let Err(why) = names::ip(text(alias, "ip")) {
            errors.invalid(&path.child("ip"), text(alias, "ip"), why);
        }
        for (j, host) in list(alias, "hostnames").iter().enumerate() {
            if let Err(why) = dns_subdomain(host.as_str().unwrap_or("")) {
                errors.invalid(&path.child("hostnames").index(j), host.clone(), why);
            }
        }
    }
    for (i, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        if same(at(secret, "name"), &Value::Null) {
            errors.required(&path.child("imagePullSecrets").index(i).child("name"), "");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::defaults;
    use serde_json::json;

    fn words(spec: Value) -> Vec<String> {
        let mut o = json!({"metadata": {"name": "p"}, "spec": spec});
        defaults::pod::pod(&mut o);
        let mut errors = FieldErrors::default();
        pod(&o, &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_good_pod_passes() {
        let spec = json!({
            "initContainers": [{"name": "side", "image": "x", "restartPolicy": "Always",
                                "readinessProbe": {"tcpSocket": {"port": "web"}}}],
            "containers": [{
                "name": "c", "image": "nginx",
                "ports": [{"name": "web", "containerPort": 80}],
                "env": [{"name": "A", "value": "b"}, {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                        {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app.io/x']"}}}],
                "envFrom": [{"configMapRef": {"name": "cm"}}],
                "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "a/b"}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}},
                "livenessProbe": {"httpGet": {"port": 80}}, "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}
            }],
            "volumes": [{"name": "v", "configMap": {"name": "cm", "items": [{"key": "k", "path": "k"}]}}],
            "tolerations": [{"operator": "Exists"}]
        });
        assert_eq!(words(spec), Vec::<String>::new());
    }

    #[test]
    fn kubernetes_words() {
        assert_eq!(words(json!({})), ["spec.containers: Required value"]);
        let spec = json!({
            "containers": [
                {"name": "c", "image": "x", "volumeMounts": [{"name": "nope", "mountPath": "/a"}],
                 "ports": [{"containerPort": 70000}],
                 "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}},
                {"name": "c", "livenessProbe": {"exec": {"command": ["a"]}, "tcpSocket": {"port": 1}},
                 "image": "x", "imagePullPolicy": "Sometimes", "readinessProbe": {}, "env": [{"name": ""}]}
            ],
            "restartPolicy": "Maybe"
        });
        assert_eq!(
            words(spec),
            [
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                "spec.containers[0].volumeMounts[0].name: Not found: \"nope\"",
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit \
                 of 1",
                "spec.containers[1].name: Duplicate value: \"c\"",
                "spec.containers[1].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \
                 \"IfNotPresent\", \"Never\"",
                "spec.containers[1].env[0].name: Required value",
                "spec.containers[1].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
                "spec.containers[1].readinessProbe: Required value: must specify a handler type",
                "spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"Never\", \
                 \"OnFailure\""
            ]
        );
    }
}
