//! What is left out of a copy: large fields that none of its readers looks at. Pure.

use k8s_openapi::api::core::v1::{Container, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// A copy of the whole object, by `kubectl apply`.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What only the kubelet of a Pod's node reads. Resources, ports and volumes stay: scheduler and controllers need them.
pub fn pod(pod: &mut Pod) {
    let Some(spec) = &mut pod.spec else { return };
    spec.containers.iter_mut().for_each(container);
    spec.init_containers.iter_mut().flatten().for_each(container);
    spec.ephemeral_containers = None;
    spec.host_aliases = None;
    spec.dns_config = None;
}

fn container(container: &mut Container) {
    container.args = None;
    container.command = None;
    container.env = None;
    container.env_from = None;
    container.lifecycle = None;
    container.liveness_probe = None;
    container.readiness_probe = None;
    container.security_context = None;
    container.startup_probe = None;
    container.termination_message_path = None;
    container.termination_message_policy = None;
    container.volume_mounts = None;
}

/// What `kubectl apply` was given.
pub fn service(service: &mut Service) {
    meta(&mut service.metadata);
}

/// Which Pod an endpoint belongs to, and room that lists have to grow: of a large cluster it is most of the memory.
pub fn slice(slice: &mut EndpointSlice) {
    meta(&mut slice.metadata);
    for endpoint in &mut slice.endpoints {
        endpoint.target_ref = None;
        endpoint.deprecated_topology = None;
        endpoint.addresses.shrink_to_fit();
    }
    slice.endpoints.shrink_to_fit();
}

fn meta(meta: &mut ObjectMeta) {
    meta.generate_name = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove(LAST_APPLIED);
    }
}

/// The list of images, which can be most of a Node.
pub fn node(node: &mut Node) {
    if let Some(status) = &mut node.status {
        status.images = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_left_is_what_the_control_plane_reads() {
        let whole = json!({
            "metadata": { "name": "a", "labels": { "a": "b" } },
            "spec": {
                "nodeName": "n", "restartPolicy": "Always",
                "containers": [{
                    "name": "c", "image": "i", "command": ["x"], "env": [{ "name": "A", "value": "B" }],
                    "ports": [{ "containerPort": 80, "name": "web" }],
                    "resources": { "requests": { "cpu": "1" } },
                    "readinessProbe": { "httpGet": { "port": 80 } },
                }],
                "initContainers": [{ "name": "i", "args": ["y"], "restartPolicy": "Always" }],
            },
            "status": { "phase": "Running", "podIPs": [{ "ip": "10.0.0.1" }] },
        });
        let mut slimmed: Pod = serde_json::from_value(whole.clone()).unwrap();
        pod(&mut slimmed);
        let mut expected = whole;
        let container = expected.pointer_mut("/spec/containers/0").unwrap().as_object_mut().unwrap();
        for gone in ["command", "env", "readinessProbe"] {
            container.remove(gone).unwrap();
        }
        expected.pointer_mut("/spec/initContainers/0").unwrap().as_object_mut().unwrap().remove("args").unwrap();
        let expected: Pod = serde_json::from_value(expected).unwrap();
        assert_eq!(slimmed, expected);
    }

    #[test]
    fn endpoints_keep_where_they_are_and_not_whose() {
        let mut e: EndpointSlice = serde_json::from_value(json!({
            "metadata": { "name": "s-1", "namespace": "d", "labels": { "kubernetes.io/service-name": "s" },
                "ownerReferences": [{ "apiVersion": "v1", "kind": "Service", "name": "s", "uid": "u" }],
                "annotations": { LAST_APPLIED: "{}", "endpoints.kubernetes.io/last-change-trigger-time": "t" } },
            "addressType": "IPv4", "ports": [{ "port": 8080 }],
            "endpoints": [{ "addresses": ["10.244.1.2"], "nodeName": "one", "targetRef": { "kind": "Pod", "name": "p" } }],
        }))
        .unwrap();
        slice(&mut e);
        assert_eq!(e.endpoints[0].target_ref, None);
        assert_eq!(e.endpoints[0].node_name.as_deref(), Some("one"));
        let annotations = e.metadata.annotations.unwrap();
        assert_eq!(annotations.keys().collect::<Vec<_>>(), ["endpoints.kubernetes.io/last-change-trigger-time"]);
        // The ingress compares those of its own Services.
        assert!(e.metadata.owner_references.is_some());
    }
}
