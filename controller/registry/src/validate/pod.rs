//! Pods and what stands in their spec.
//!
//! In: a defaulted Pod, or a PodSpec and its path in a template. Out: field errors.

use super::{container, names, scheduling, volume};
use crate::field::{FieldErrors, Path, dns_label, dns_subdomain};
use crate::json::{at, int, list, same, text};
use serde_json::Value;

/// Search paths of `dnsConfig`, and their length together with the spaces between.
const MAX_DNS_SEARCHES: usize = 32;
const MAX_DNS_SEARCH_CHARS: usize = 2048;

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
    let (searches, at_searches) = (list(spec, "dnsConfig.searches"), path.child("searches"));
    if searches.len() > MAX_DNS_SEARCHES {
        let detail = format!("must not have more than {MAX_DNS_SEARCHES} search paths");
        errors.invalid(&at_searches, Value::Array(searches.to_vec()), detail);
    }
    let length: usize = searches.iter().map(|s| s.as_str().unwrap_or("").len() + 1).sum();
    if length > MAX_DNS_SEARCH_CHARS + 1 {
        let detail =
            format!("must not have more than {MAX_DNS_SEARCH_CHARS} characters (including spaces) in the search list");
        errors.invalid(&at_searches, Value::Array(searches.to_vec()), detail);
    }
    for (i, search) in searches.iter().enumerate() {
        // The root alone means: as it is; names of machines may have underscores.
        let text = search.as_str().unwrap_or("");
        let plain = text.strip_suffix('.').unwrap_or(text).replace('_', "a");
        if text != "."
            && let Err(why) = dns_subdomain(&plain)
        {
            errors.invalid(&at_searches.index(i), search.clone(), why);
        }
    }
    for (i, option) in list(spec, "dnsConfig.options").iter().enumerate() {
        if text(option, "name").is_empty() {
            errors.required(&path.child("options").index(i), "must not be empty");
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
    fn name_service_within_its_limits() {
        let spec = |policy: &str, config: Value| json!({"containers": [{"name": "c", "image": "x"}], "dnsPolicy": policy, "dnsConfig": config});
        let searches = |n: usize, length: usize| json!({"searches": vec!["a".repeat(length); n]});
        let good = json!({"nameservers": ["10.0.0.1", "fd00::1", "10.0.0.2"], "searches": ["a.b", "a.b.", ".", "_tcp.x_y.z"],
            "options": [{"name": "ndots", "value": "1"}, {"name": "edns0"}]});
        assert_eq!(words(spec("None", good)), [""; 0]);
        assert_eq!(words(spec("ClusterFirst", searches(32, 63))), [""; 0]);
        for (policy, config, want) in [
            ("None", json!({}), "nameservers: Required value: must provide at least one DNS nameserver"),
            (
                "Default",
                json!({"nameservers": ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]}),
                "must not have more than 3 nameservers",
            ),
            ("Default", json!({"nameservers": ["dns.example"]}), "spec.dnsConfig.nameservers[0]: Invalid value"),
            ("ClusterFirst", searches(33, 5), "must not have more than 32 search paths"),
            ("ClusterFirst", searches(10, 205), "must not have more than 2048 characters (including spaces)"),
            ("ClusterFirst", json!({"searches": ["a b"]}), "spec.dnsConfig.searches[0]: Invalid value: \"a b\""),
            (
                "ClusterFirst",
                json!({"options": [{"value": "1"}]}),
                "spec.dnsConfig.options[0]: Required value: must not be empty",
            ),
            ("Clusterfirst", json!({}), "spec.dnsPolicy: Unsupported value: \"Clusterfirst\""),
        ] {
            let words = words(spec(policy, config));
            assert!(words.iter().any(|w| w.contains(want)), "{want}: {words:?}");
        }
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
