//! What a node may write: its pods and itself.

mod own;

use super::*;
use serde_json::json;

/// A cluster with two nodes and a pod on each.
pub struct World;

pub fn pod(node: &str) -> Value {
    json!({"metadata": {"namespace": "ns", "name": format!("p-{node}"), "uid": format!("uid-p-{node}"), "labels": {"app": "a"}},
        "spec": {"nodeName": node, "serviceAccountName": "robot", "containers": [{"name": "c", "image": "i"}],
            "volumes": [
                {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}},
                    {"serviceAccountToken": {"path": "v", "audience": "vault"}}]}},
                {"name": "d", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "e", "ephemeral": {"volumeClaimTemplate": {}}},
                {"name": "i", "csi": {"driver": "inline"}}]}})
}

impl Lookup for World {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let lease = |time: &str| json!({"spec": {"renewTime": time, "leaseDurationSeconds": 40}});
        match (group, resource, namespace, name) {
            ("", "pods", "ns", "p-n1") => Some(pod("n1")),
            ("", "pods", "ns", "p-n2") => Some(pod("n2")),
            ("", "nodes", "", "n1") => {
                Some(json!({"metadata": {"name": "n1", "uid": "uid-n1"}, "status": {"addresses": [
                {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "InternalIP", "address": "fd00::1"},
                {"type": "Hostname", "address": "n1"}]}}))
            }
            ("", "persistentvolumeclaims", "ns", "data") => Some(json!({"spec": {"volumeName": "pv"}})),
            ("", "persistentvolumeclaims", "ns", "p-n1-e") => Some(json!({"spec": {"volumeName": "pe"}})),
            ("", "persistentvolumes", "", "pv") => Some(json!({"spec": {"csi": {"driver": "bound"}}})),
            ("", "persistentvolumes", "", "pe") => Some(json!({"spec": {"csi": {"driver": "made"}}})),
            ("storage.k8s.io", "csidrivers", "", "inline" | "bound" | "made") => {
                Some(json!({"spec": {"tokenRequests": [{"audience": format!("of-{name}")}]}}))
            }
            ("coordination.k8s.io", "leases", "kube-system", "announce-n2") => {
                Some(lease("2026-12-01T00:00:30.000000Z"))
            }
            ("coordination.k8s.io", "leases", "kube-system", "announce-n3") => {
                Some(lease("2026-11-30T23:00:00.000000Z"))
            }
            _ => None,
        }
    }

    fn common_name(&self, request: &str) -> Result<String, String> {
        request.strip_prefix("CN=").map(str::to_owned).ok_or_else(|| "bad PEM".to_owned())
    }

    fn may_request_audience(&self, namespace: &str, account: &str, audience: &str) -> bool {
        (namespace, account, audience) == ("ns", "robot", "given")
    }

    fn now(&self) -> i64 {
        "2026-12-01T00:01:00Z".parse::<jiff::Timestamp>().unwrap().as_second()
    }
}

/// A write of node n1: `operation group/resource/subresource namespace name`.
pub fn write(text: &str, old: Option<&Value>, new: Option<&Value>) -> Result<(), String> {
    let words: Vec<&str> = text.split(' ').map(|w| if w == "-" { "" } else { w }).collect();
    let [operation, path, namespace, name] = words.try_into().unwrap();
    let [group, resource, subresource] = path.split('/').collect::<Vec<_>>().try_into().unwrap();
    let operation = match operation {
        "create" => Operation::Create,
        "update" => Operation::Update,
        _ => Operation::Delete,
    };
    let write = Write { operation, group, resource, subresource, namespace, name, object: new, old };
    restrict("n1", &write, &World)
}

/// Both must be: the refusal has the words.
fn refused(found: Result<(), String>, words: &str) {
    let why = found.expect_err(words);
    assert!(why.contains(words), "{why:?} has not {words:?}");
}

/// An object with some places set.
fn with(object: &Value, changes: &[(&str, Value)]) -> Value {
    let mut object = object.clone();
    for (pointer, value) in changes {
        let mut at = &mut object;
        for key in pointer.trim_start_matches('/').split('/') {
            at = &mut at[key.replace("~1", "/").as_str()];
        }
        *at = value.clone();
    }
    object
}

fn mirror() -> Value {
    json!({"metadata": {"namespace": "ns", "name": "static-n1", "annotations": {"kubernetes.io/config.mirror": "hash"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "uid-n1", "controller": true}]},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "h", "hostPath": {"path": "/"}}]}})
}

#[test]
fn mirror_pods_and_only_those_are_created() {
    let create = |pod: &Value| write("create /pods/ ns static-n1", None, Some(pod));
    assert_eq!(create(&mirror()), Ok(()));
    let owner = |changes: &[(&str, Value)]| {
        let changed = with(&mirror()["metadata"]["ownerReferences"][0], changes);
        with(&mirror(), &[("/metadata/ownerReferences", json!([changed]))])
    };
    let two = json!([mirror()["metadata"]["ownerReferences"][0], mirror()["metadata"]["ownerReferences"][0]]);
    let volume = |source: Value| with(&mirror(), &[("/spec/volumes", json!([source]))]);
    let container = |field: &str, value: Value| {
        with(&mirror(), &[("/spec/initContainers", json!([{"name": "c", "image": "i", (field): value}]))])
    };
    for (pod, why) in [
        (with(&mirror(), &[("/metadata/annotations", json!({}))]), "node \"n1\" can only create mirror pods"),
        (with(&mirror(), &[("/spec/nodeName", json!("n2"))]), "can only create pods with spec.nodeName set to itself"),
        (with(&mirror(), &[("/spec/nodeName", json!(null))]), "can only create pods with spec.nodeName set to itself"),
        (with(&mirror(), &[("/metadata/ownerReferences", json!(null))]), "with an owner reference set to itself"),
        (with(&mirror(), &[("/metadata/ownerReferences", two)]), "with a single owner reference set to itself"),
        (owner(&[("/name", json!("n2"))]), "with an owner reference set to itself"),
        (owner(&[("/kind", json!("Pod"))]), "with an owner reference set to itself"),
        (owner(&[("/controller", json!(null))]), "with a controller owner reference set to itself"),
        (owner(&[("/blockOwnerDeletion", json!(true))]), "must not set blockOwnerDeletion on an owner reference"),
        (owner(&[("/uid", json!("other"))]), "node n1 UID mismatch: expected other got uid-n1"),
        (with(&mirror(), &[("/spec/serviceAccountName", json!("admin"))]), "that reference a service account"),
        (with(&mirror(), &[("/spec/serviceAccount", json!("admin"))]), "that reference a service account"),
        (with(&mirror(), &[("/spec/imagePullSecrets", json!([{"name": "s"}]))]), "that reference secrets"),
        (container("envFrom", json!([{"secretRef": {"name": "s"}}])), "that reference secrets"),
        (container("env", json!([{"valueFrom": {"configMapKeyRef": {"name": "m"}}}])), "that reference configmaps"),
        (volume(json!({"secret": {"secretName": "s"}})), "that reference secrets"),
        (volume(json!({"csi": {"nodePublishSecretRef": {"name": "s"}}})), "that reference secrets"),
        (volume(json!({"configMap": {"name": "m"}})), "that reference configmaps"),
        (volume(json!({"projected": {"sources": [{"secret": {"name": "s"}}]}})), "that reference secrets"),
        (volume(json!({"projected": {"sources": [{"clusterTrustBundle": {"name": "b"}}]}})), "clustertrustbundles"),
        (volume(json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}})), "service account tokens"),
        (volume(json!({"persistentVolumeClaim": {"claimName": "c"}})), "that reference persistentvolumeclaims"),
        (volume(json!({"name": "v", "ephemeral": {"x": 1}})), "that reference persistentvolumeclaims"),
        (with(&mirror(), &[("/spec/resourceClaims", json!([{"name": "d"}]))]), "that reference resourceclaims"),
    ] {
        refused(create(&pod), why);
    }
}

#[test]
fn pods_of_the_node_are_deleted_evicted_and_reported_on() {
    let (own, other) = (pod("n1"), pod("n2"));
    assert_eq!(write("delete /pods/ ns p-n1", Some(&own), None), Ok(()));
    assert_eq!(write("delete /pods/ ns p-n1", None, None), Ok(()));
    refused(
        write("delete /pods/ ns p-n2", Some(&other), None),
        "can only delete pods with spec.nodeName set to itself",
    );
    refused(write("delete /pods/ ns p-n2", None, None), "can only delete pods with spec.nodeName set to itself");
    refused(write("delete /pods/ ns none", None, None), "not found");
    refused(write("update /pods/ ns p-n1", Some(&own), Some(&own)), "unexpected operation \"UPDATE\"");
    let eviction = json!({"kind": "Eviction"});
    assert_eq!(write("create /pods/eviction ns p-n1", None, Some(&eviction)), Ok(()));
    refused(write("create /pods/eviction ns p-n2", None, Some(&eviction)), "node n1 can only evict pods with");
    refused(write("create /pods/eviction ns -", None, Some(&eviction)), "could not determine pod");
    refused(write("create /pods/binding ns p-n1", None, Some(&eviction)), "unexpected pod subresource \"binding\"");
    refused(write("update /pods/ephemeralcontainers ns p-n1", Some(&own), Some(&own)), "unexpected pod subresource");
    let running = with(&own, &[("/status", json!({"phase": "Running"}))]);
    let status = |old: &Value, new: &Value| write("update /pods/status ns p-n1", Some(old), Some(new));
    assert_eq!(status(&own, &running), Ok(()));
    refused(
        status(&other, &with(&other, &[("/status", json!({"phase": "Failed"}))])),
        "can only update pod status for",
    );
    refused(
        status(&own, &with(&own, &[("/metadata/labels/app", json!("b"))])),
        "cannot update labels through pod status",
    );
    refused(status(&own, &with(&own, &[("/metadata/labels", json!(null))])), "cannot update labels through pod status");
    let claims = json!([{"name": "t", "resourceClaimName": "elses"}]);
    refused(status(&own, &with(&own, &[("/status/resourceClaimStatuses", claims)])), "cannot update resource claim");
    let extended = json!({"resourceClaimName": "elses"});
    refused(
        status(&own, &with(&own, &[("/status/extendedResourceClaimStatus", extended)])),
        "cannot update resource claim",
    );
    let unmarked = with(&mirror(), &[("/metadata/annotations", json!({}))]);
    refused(status(&mirror(), &unmarked), "cannot update the annotation");
}

#[test]
fn tokens_are_bound_to_pods_of_the_node() {
    let request = |changes: &[(&str, Value)]| {
        let plain = json!({"spec": {"audiences": [], "boundObjectRef":
            {"apiVersion": "v1", "kind": "Pod", "name": "p-n1", "uid": "uid-p-n1"}}});
        with(&plain, changes)
    };
    let ask = |account: &str, changes: &[(&str, Value)]| {
        write(&format!("create /serviceaccounts/token ns {account}"), None, Some(&request(changes)))
    };
    for audiences in [
        json!([]),
        json!(null),
        json!(["vault"]),
        json!(["of-inline"]),
        json!(["of-bound"]),
        json!(["of-made"]),
        json!(["given"]),
    ] {
        assert_eq!(ask("robot", &[("/spec/audiences", audiences.clone())]), Ok(()), "{audiences}");
    }
    let bound = |field: &str, value: Value| {
        [(Box::leak(format!("/spec/boundObjectRef/{field}").into_boxed_str()) as &str, value)]
    };
    for (found, why) in [
        (ask("robot", &[("/spec/boundObjectRef", json!(null))]), "node requested token not bound to a pod"),
        (ask("robot", &bound("kind", json!("Secret"))), "node requested token not bound to a pod"),
        (ask("robot", &bound("kind", json!("Node"))), "node requested token not bound to a pod"),
        (ask("robot", &bound("apiVersion", json!("v2"))), "node requested token not bound to a pod"),
        (ask("robot", &bound("name", json!(""))), "node requested token not bound to a pod"),
        (ask("robot", &bound("uid", json!(null))), "with a pod binding without a uid"),
        (ask("robot", &bound("uid", json!("old"))), "the UID in the bound object reference (old) does not match"),
        (ask("robot", &bound("name", json!("none"))), "not found"),
        (
            ask(
                "robot",
                &[("/spec/boundObjectRef/name", json!("p-n2")), ("/spec/boundObjectRef/uid", json!("uid-p-n2"))],
            ),
            "node requested token bound to a pod scheduled on a different node",
        ),
        (ask("admin", &[]), "for a pod that does not use it"),
        (ask("robot", &[("/spec/audiences", json!(["elses"]))]), "audience \"elses\" not found in pod spec volume"),
        (ask("robot", &[("/spec/audiences", json!([7]))]), "not found in pod spec volume"),
        (ask("robot", &[("/spec/audiences", json!(["", "vault"]))]), "node may only request 0 or 1 audiences"),
    ] {
        refused(found, why);
    }
}

#[test]
fn a_node_writes_its_own_object_and_not_what_others_decide_by() {
    let node = json!({"metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1", "team": "a"},
        "annotations": {"causeway.dev/serving-addresses": "10.0.0.1"}},
        "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}], "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]}});
    let update = |changes: &[(&str, Value)]| write("update /nodes/ - n1", Some(&node), Some(&with(&node, changes)));
    let label = |key: &str, value: Value| update(&[(&format!("/metadata/labels/{}", key.replace('/', "~1")), value)]);
    for key in [
        "team",
        "example.com/x",
        "kubernetes.io/hostname",
        "kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "topology.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
        "node.kubernetes.io/instance-type",
        "node.kubernetes.io/anything",
        "kubelet.kubernetes.io/x",
        "x.kubelet.kubernetes.io/x",
        "notkubernetes.io/x",
    ] {
        assert_eq!(label(key, json!("v")), Ok(()), "{key}");
    }
    for key in [
        "node-restriction.kubernetes.io/fips",
        "x.node-restriction.kubernetes.io/fips",
        "node-role.kubernetes.io/control-plane",
        "kubernetes.io/role",
        "topology.kubernetes.io/rack",
        "x.k8s.io/y",
        "k8s.io/y",
        "beta.kubernetes.io/other",
    ] {
        refused(label(key, json!("")), &format!("is not allowed to modify labels: {key}"));
        let created = json!({"metadata": {"name": "n1", "labels": {(key): "v"}}});
        let words = format!("node \"n1\" is not allowed to set the following labels: {key}");
        refused(write("create /nodes/ - n1", None, Some(&created)), &words);
    }
    for (changes, why) in [
        (("/spec/taints", json!([])), "node \"n1\" is not allowed to modify taints"),
        (("/spec/taints", json!(null)), "node \"n1\" is not allowed to modify taints"),
        (("/spec/configSource", json!({"configMap": {}})), "update configSource to a new non-nil configSource"),
        (("/metadata/ownerReferences", json!([{"kind": "Pod"}])), "is not allowed to modify ownerReferences"),
        (("/spec/podCIDR", json!("10.96.0.0/12")), "is not allowed to modify podCIDR"),
        (("/spec/podCIDRs", json!(["10.96.0.0/12"])), "is not allowed to modify podCIDRs"),
        (("/metadata/annotations/causeway.dev~1serving-addresses", json!("10.96.0.1")), "serving-addresses"),
        (("/metadata/annotations", json!(null)), "serving-addresses"),
    ] {
        refused(update(std::slice::from_ref(&changes)), why);
        let status = with(&node, &[changes]);
        refused(write("update /nodes/status - n1", Some(&node), Some(&status)), why);
    }
    assert_eq!(update(&[("/spec/unschedulable", json!(true)), ("/status", json!({"phase": "x"}))]), Ok(()));
    let other = json!({"metadata": {"name": "n2"}});
    for text in ["create /nodes/ - n2", "update /nodes/ - n2", "update /nodes/status - n2"] {
        refused(write(text, Some(&other), Some(&other)), "node \"n1\" is not allowed to modify node \"n2\"");
    }
    refused(write("delete /nodes/ - n2", Some(&other), None), "is not allowed to modify node \"n2\"");
    let new = json!({"metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1"}},
        "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
    assert_eq!(write("create /nodes/ - n1", None, Some(&new)), Ok(()), "with taints that keep pods away");
    let create = |changes: &[(&str, Value)]| write("create /nodes/ - n1", None, Some(&with(&new, changes)));
    refused(create(&[("/spec/configSource", json!({}))]), "with a non-nil configSource");
    refused(create(&[("/spec/podCIDR", json!("10.96.0.0/12"))]), "is not allowed to modify podCIDR");
    refused(create(&[("/metadata/ownerReferences", json!([{"kind": "Pod"}]))]), "ownerReferences");
    let claimed = json!({"causeway.dev/serving-addresses": "10.96.0.1"});
    refused(create(&[("/metadata/annotations", claimed)]), "serving-addresses");
    // A create whose body names another than the path: the object is what is stored.
    refused(write("create /nodes/ - n1", None, Some(&other)), "is not allowed to modify node \"n2\"");
}

#[test]
fn what_a_node_is_not_restricted_in_is_left_to_authorisation() {
    let object = json!({"metadata": {"name": "x"}});
    assert_eq!(write("create /events/ ns x", None, Some(&object)), Ok(()));
    assert_eq!(write("create authentication.k8s.io/tokenreviews/ - -", None, Some(&object)), Ok(()));
    let write = Write {
        operation: Operation::Create,
        group: "",
        resource: "events",
        subresource: "",
        namespace: "ns",
        name: "x",
        object: Some(&object),
        old: None,
    };
    refused(restrict("", &write, &World), "could not determine node");
    // A caller that forgets the object is refused, not passed.
    for text in
        ["create /pods/ ns x", "update /pods/status ns x", "update /nodes/ - n1", "update /persistentvolumes/ - x"]
    {
        refused(self::write(text, None, None), "unexpected type <nil>");
    }
}
