//! Defaults of pods and pod templates (upstream: `SetDefaults_Pod`, `_PodSpec`, `_Container`, `_Probe`, …).

use super::volume;
use crate::json::{at, existing_mut, fill, fill_zero, has, items_mut, list, object_mut, put, text, truth};
use causeway_api::quantity;
use serde_json::{Map, Value, json};

const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Defaults of a Pod: those of its spec, and what only pods get (not templates).
pub(crate) fn pod(object: &mut Value) {
    let Some(spec) = object_mut(object, "spec") else { return };
    pod_spec(spec);
    fill(spec, "enableServiceLinks", true);
    for list in CONTAINER_LISTS {
        for resources in items_mut(spec, list).filter_map(|c| existing_mut(c, "resources")) {
            requests_from_limits(resources);
        }
    }
}

/// Defaults of a pod template.
pub(crate) fn template(template: &mut Value) {
    if let Some(metadata) = object_mut(template, "metadata")
        && at(metadata, "creationTimestamp").is_null()
    {
        // Clients written in Go say `creationTimestamp: null`; a template has none.
        put(metadata, "creationTimestamp", Value::Null);
    }
    if let Some(spec) = object_mut(template, "spec") {
        pod_spec(spec);
    }
}

/// Defaults of a PodSpec, wherever it stands.
pub(crate) fn pod_spec(spec: &mut Value) {
    fill_zero(spec, "restartPolicy", "Always");
    fill(spec, "terminationGracePeriodSeconds", 30);
    fill_zero(spec, "dnsPolicy", "ClusterFirst");
    mirror_service_account(spec);
    object_mut(spec, "securityContext");
    fill_zero(spec, "schedulerName", "default-scheduler");
    let host_network = truth(spec, "hostNetwork");
    for list in CONTAINER_LISTS {
        for c in items_mut(spec, list) {
            container(c);
            if host_network {
                host_ports(c);
            }
        }
    }
    for v in items_mut(spec, "volumes") {
        volume::volume(v);
    }
}

/// What admission adds to a new pod: the account `default`, and five minutes of patience with a node that is not
/// ready or not reachable (upstream plugins ServiceAccount and DefaultTolerationSeconds).
pub fn admission_pod_defaults(pod: &mut Value) {
    let Some(spec) = object_mut(pod, "spec") else { return };
    fill_zero(spec, "serviceAccountName", "default");
    mirror_service_account(spec);
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        if list(spec, "tolerations").iter().any(|t| tolerates_no_execute(t, key)) {
            continue;
        }
        let toleration = json!({"effect": "NoExecute", "key": key, "operator": "Exists", "tolerationSeconds": 300});
        fill(spec, "tolerations", json!([]));
        if let Some(all) = spec.get_mut("tolerations").and_then(Value::as_array_mut) {
            all.push(toleration);
        }
    }
}

/// `status.qosClass` (upstream: `qos.ComputePodQOS`).
pub fn qos_class(pod: &Value) -> &'static str {
    let containers = || list(pod, "spec.containers").iter().chain(list(pod, "spec.initContainers"));
    let amount = |c: &Value, kind: &str, resource: &str| {
        quantity::milli(c["resources"][kind][resource].as_str().unwrap_or("")).filter(|m| *m > 0)
    };
    let asks =
        |c: &Value| ["requests", "limits"].iter().any(|k| ["cpu", "memory"].iter().any(|r| amount(c, k, r).is_some()));
    if !containers().any(asks) {
        return "BestEffort";
    }
    let fixed = |c: &Value| {
        ["cpu", "memory"].iter().all(|r| {
            let limit = amount(c, "limits", r);
            limit.is_some() && amount(c, "requests", r).or(limit) == limit
        })
    };
    if containers().all(fixed) { "Guaranteed" } else { "Burstable" }
}

/// `Always` for the tag `latest` and for no tag; `IfNotPresent` for every other tag and for digests.
pub(crate) fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    match name.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn mirror_service_account(spec: &mut Value) {
    let (old, new) = (text(spec, "serviceAccount").to_owned(), text(spec, "serviceAccountName").to_owned());
    let name = if new.is_empty() { old } else { new };
    if !name.is_empty() {
        put(spec, "serviceAccountName", json!(name));
        put(spec, "serviceAccount", json!(name));
    }
}

fn tolerates_no_execute(toleration: &Value, key: &str) -> bool {
    let key_matches = match text(toleration, "key") {
        "" => text(toleration, "operator") == "Exists",
        k => k == key,
    };
    key_matches && matches!(text(toleration, "effect"), "" | "NoExecute")
}

fn container(c: &mut Value) {
    let policy = pull_policy(text(c, "image"));
    fill_zero(c, "imagePullPolicy", policy);
    object_mut(c, "resources");
    fill_zero(c, "terminationMessagePath", "/dev/termination-log");
    fill_zero(c, "terminationMessagePolicy", "File");
    for port in items_mut(c, "ports") {
        fill_zero(port, "protocol", "TCP");
    }
    for env in items_mut(c, "env") {
        if let Some(from) = existing_mut(env, "valueFrom") {
            field_refs(from);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(p) = existing_mut(c, name) {
            probe(p);
        }
    }
    if let Some(lifecycle) = existing_mut(c, "lifecycle") {
        for name in ["postStart", "preStop"] {
            if let Some(handler) = existing_mut(lifecycle, name) {
                http_get(handler);
            }
        }
    }
}

/// `fieldRef.apiVersion` and `resourceFieldRef.divisor`.
pub(crate) fn field_refs(source: &mut Value) {
    if let Some(field) = existing_mut(source, "fieldRef") {
        fill_zero(field, "apiVersion", "v1");
    }
    if let Some(resource) = existing_mut(source, "resourceFieldRef") {
        fill(resource, "divisor", "0");
    }
}

fn probe(p: &mut Value) {
    fill_zero(p, "timeoutSeconds", 1);
    fill_zero(p, "periodSeconds", 10);
    fill_zero(p, "successThreshold", 1);
    fill_zero(p, "failureThreshold", 3);
    http_get(p);
    if let Some(grpc) = existing_mut(p, "grpc") {
        fill(grpc, "service", "");
    }
}

fn http_get(handler: &mut Value) {
    if let Some(get) = existing_mut(handler, "httpGet") {
        fill_zero(get, "path", "/");
        fill_zero(get, "scheme", "HTTP");
    }
}

fn host_ports(c: &mut Value) {
    for port in items_mut(c, "ports") {
        if let Some(number) = at(port, "containerPort").as_i64() {
            fill_zero(port, "hostPort", number);
        }
    }
}

fn requests_from_limits(resources: &mut Value) {
    if !has(resources, "limits") {
        return;
    }
    let mut requests = at(resources, "requests").as_object().cloned().unwrap_or_else(Map::new);
    let limits = at(resources, "limits").as_object().cloned().unwrap_or_default();
    for (resource, amount) in limits {
        requests.entry(resource).or_insert(amount);
    }
    put(resources, "requests", Value::Object(requests));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_pod_gets_what_kubernetes_gives_it() {
        let mut object = json!({"spec": {
            "hostNetwork": true,
            "initContainers": [{"name": "i", "image": "busybox@sha256:0"}],
            "containers": [{
                "name": "c", "image": "localhost:5000/web",
                "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}},
                "readinessProbe": {"httpGet": {"port": 80}, "periodSeconds": 2},
                "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
            }],
            "volumes": [
                {"name": "e"}, {"name": "s", "secret": {"secretName": "x"}}, {"name": "h", "hostPath": {"path": "/"}},
                {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}
            ]
        }});
        pod(&mut object);
        let want = json!({"spec": {
            "hostNetwork": true,
            "initContainers": [{
                "name": "i", "image": "busybox@sha256:0", "imagePullPolicy": "IfNotPresent", "resources": {},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"
            }],
            "containers": [{
                "name": "c", "image": "localhost:5000/web", "imagePullPolicy": "Always",
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}],
                "resources": {
                    "limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}
                },
                "readinessProbe": {
                    "httpGet": {"path": "/", "port": 80, "scheme": "HTTP"},
                    "periodSeconds": 2, "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3
                },
                "env": [{"name": "IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}}]
            }],
            "volumes": [
                {"name": "e", "emptyDir": {}},
                {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}},
                {"name": "h", "hostPath": {"path": "/", "type": ""}},
                {"name": "p", "projected": {
                    "defaultMode": 420,
                    "sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}}]
                }}
            ],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "securityContext": {}, "schedulerName": "default-scheduler", "enableServiceLinks": true
        }});
        assert_eq!(object, want);
        let again = object.clone();
        pod(&mut object);
        assert_eq!(object, again, "defaulting is idempotent");
    }

    #[test]
    fn admission_adds_account_and_tolerations_once() {
        let mut object = json!({"spec": {"tolerations": [
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}
        ]}});
        admission_pod_defaults(&mut object);
        admission_pod_defaults(&mut object);
        assert_eq!(object["spec"]["serviceAccountName"], "default");
        assert_eq!(list(&object, "spec.tolerations").len(), 2);
    }

    #[test]
    fn qos_classes() {
        let class = |containers: Value| qos_class(&json!({"spec": {"containers": containers}}));
        assert_eq!(class(json!([{"name": "a"}])), "BestEffort");
        assert_eq!(class(json!([{"resources": {"requests": {"cpu": "1"}}}])), "Burstable");
        let full = json!({"resources": {
            "limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}
        }});
        assert_eq!(class(json!([full])), "Guaranteed");
        assert_eq!(class(json!([full, {"name": "b"}])), "Burstable");
    }
}
