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
        refused(update(&[changes.clone()]), why);
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
fn leases_are_its_own() {
    let lease = |name: &str, holder: &str, ip: &str| json!({"metadata": {"name": name, "annotations": {"causeway.dev/address": ip}}, "spec": {"holderIdentity": holder}});
    let n1 = lease("n1", "n1", "");
    assert_eq!(write("create coordination.k8s.io/leases/ kube-node-lease -", None, Some(&n1)), Ok(()));
    assert_eq!(write("update coordination.k8s.io/leases/ kube-node-lease n1", Some(&n1), Some(&n1)), Ok(()));
    let other = lease("n2", "n2", "");
    let same_name = "can only access node lease with the same name as the requesting node";
    refused(write("create coordination.k8s.io/leases/ kube-node-lease -", None, Some(&other)), same_name);
    refused(write("update coordination.k8s.io/leases/ kube-node-lease n2", Some(&other), Some(&other)), same_name);
    refused(write("delete coordination.k8s.io/leases/ kube-node-lease n2", Some(&other), None), same_name);
    for namespace in ["default", "kube-system"] {
        let text = format!("delete coordination.k8s.io/leases/ {namespace} kube-scheduler");
        refused(write(&text, Some(&other), None), "can only access leases in the");
    }
    let announce = |holder: &str| lease("announce-n1", holder, "");
    let text = "update coordination.k8s.io/leases/ kube-system announce-n1";
    assert_eq!(write(text, Some(&announce("n1")), Some(&announce("n1"))), Ok(()));
    refused(write(text, Some(&announce("n1")), Some(&announce("n2"))), "can only hold its own lease itself");
    let text = "delete coordination.k8s.io/leases/ kube-system announce-n2";
    refused(write(text, Some(&announce("n2")), None), "can only access leases in the");
    let address = |holder: &str| lease("load-balancer-10.9.0.1", holder, "10.9.0.1");
    let text = "update coordination.k8s.io/leases/ kube-system load-balancer-10.9.0.1";
    for (before, after, allowed) in [
        ("", "n1", true),
        ("n1", "n1", true),
        ("n1", "", true),
        ("", "", true),
        ("n2", "n1", true),
        ("n2", "", false),
        ("", "n2", false),
        ("n1", "n2", false),
        ("n2", "n2", false),
    ] {
        let found = write(text, Some(&address(before)), Some(&address(after)));
        assert_eq!(found.is_ok(), allowed, "{before:?} -> {after:?}: {found:?}");
    }
    let create = |name: &str, ip: &str| {
        write("create coordination.k8s.io/leases/ kube-system -", None, Some(&lease(name, "n1", ip)))
    };
    assert_eq!(create("load-balancer-fd00-0-0-0-0-0-0-1", "fd00::1"), Ok(()));
    refused(create("load-balancer-10.9.0.1", "10.9.0.2"), "must name it in its annotation");
    refused(create("load-balancer-anything", "anything"), "must name it in its annotation");
    let text = "delete coordination.k8s.io/leases/ kube-system load-balancer-10.9.0.1";
    for (holder, allowed) in [("n1", true), ("", true), ("n2", false), ("n3", true), ("gone", true)] {
        assert_eq!(write(text, Some(&address(holder)), None).is_ok(), allowed, "{holder:?}");
    }
}

#[test]
fn its_dns_is_announced_at_itself() {
    let slice = |name: &str, family: &str, address: &str| {
        json!({"metadata": {"name": name, "labels": {"kubernetes.io/service-name": "kube-dns"}}, "addressType": family,
            "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}],
            "endpoints": [{"addresses": [address], "nodeName": "n1", "conditions": {"ready": true}}]})
    };
    let own = slice("kube-dns-n1", "IPv4", "10.0.0.1");
    let put = |namespace: &str, name: &str, old: Option<&Value>, new: &Value| {
        let operation = if old.is_some() { "update" } else { "create" };
        write(&format!("{operation} discovery.k8s.io/endpointslices/ {namespace} {name}"), old, Some(new))
    };
    assert_eq!(put("kube-system", "kube-dns-n1", None, &own), Ok(()));
    assert_eq!(put("kube-system", "kube-dns-n1", Some(&own), &own), Ok(()));
    assert_eq!(put("kube-system", "-", None, &slice("kube-dns-n1-v6", "IPv6", "fd00::1")), Ok(()));
    for (changes, why) in [
        (("/endpoints", json!([{"addresses": ["10.0.0.1"], "nodeName": "n2"}])), "with endpoints on itself"),
        (("/endpoints", json!([{"addresses": ["10.0.0.1"]}])), "with endpoints on itself"),
        (("/endpoints", json!([{"addresses": ["10.0.0.2"], "nodeName": "n1"}])), "at the addresses of its Node"),
        (("/endpoints", json!([{"addresses": ["10.0.0.1", "x"], "nodeName": "n1"}])), "at the addresses of its Node"),
        (("/ports", json!([{"name": "dns", "port": 54, "protocol": "UDP"}])), "on port 53"),
        (("/ports", json!([{"name": "web", "port": 53, "protocol": "TCP"}])), "on port 53"),
        (("/metadata/labels/kubernetes.io~1service-name", json!("kubernetes")), "of Service kube-dns"),
        (("/metadata/labels", json!(null)), "of Service kube-dns"),
        (("/metadata/ownerReferences", json!([{"kind": "Service"}])), "without owners"),
        (("/addressType", json!("IPv6")), "with endpoints on itself"),
    ] {
        refused(put("kube-system", "kube-dns-n1", Some(&own), &with(&own, &[changes])), why);
    }
    let named = |name: &str| slice(name, "IPv4", "10.0.0.1");
    for name in ["kube-dns-n2", "kube-dns-", "kube-dns-n1-v7", "kubernetes"] {
        refused(put("kube-system", name, None, &named(name)), "can only write the slice of its own DNS");
    }
    refused(put("default", "kube-dns-n1", None, &own), "can only write the slice of its own DNS");
    // The slice of a node that is called `n1-v6`.
    let others =
        with(&named("kube-dns-n1-v6"), &[("/endpoints", json!([{"addresses": ["10.0.0.6"], "nodeName": "n1-v6"}]))]);
    let mine = slice("kube-dns-n1-v6", "IPv6", "fd00::1");
    refused(put("kube-system", "kube-dns-n1-v6", Some(&others), &mine), "with endpoints on itself");
}

#[test]
fn volumes_and_claims_change_only_where_a_kubelet_changes_them() {
    let claim = json!({"metadata": {"name": "data", "labels": {"a": "b"}, "resourceVersion": "5"},
        "spec": {"resources": {"requests": {"storage": "1Gi"}}}, "status": {"phase": "Bound"}});
    let status = |changes: &[(&str, Value)]| {
        write("update /persistentvolumeclaims/status ns data", Some(&claim), Some(&with(&claim, changes)))
    };
    let resized = [
        ("/status/capacity", json!({"storage": "2Gi"})),
        ("/status/conditions", json!([{"type": "FileSystemResizePending"}])),
        ("/status/allocatedResources", json!({"storage": "2Gi"})),
        ("/status/allocatedResourceStatuses", json!({"storage": "NodeResizePending"})),
        ("/metadata/resourceVersion", json!(null)),
        ("/metadata/managedFields", json!([{"manager": "kubelet"}])),
    ];
    assert_eq!(status(&resized), Ok(()));
    for change in [
        ("/status/phase", json!("Lost")),
        ("/status/accessModes", json!(["ReadWriteMany"])),
        ("/metadata/labels/a", json!("c")),
        ("/metadata/finalizers", json!(["x"])),
        ("/metadata/ownerReferences", json!([{"kind": "Pod"}])),
        ("/spec/volumeName", json!("elses")),
    ] {
        refused(status(&[change]), "is not allowed to update fields other than status.capacity and status.conditions");
    }
    refused(write("update /persistentvolumeclaims/ ns data", Some(&claim), Some(&claim)), "may only update PVC status");
    refused(write("delete /persistentvolumeclaims/ ns data", Some(&claim), None), "may only update PVC status");
    let volume = json!({"metadata": {"name": "pv", "labels": {"causeway.dev/node": "n1"},
            "deletionTimestamp": "2026-12-01T00:00:00Z", "finalizers": ["a", "causeway.dev/local-path"]},
        "spec": {"hostPath": {"path": "/var/x/y"}}});
    let patch = |old: &Value, changes: &[(&str, Value)]| {
        write("update /persistentvolumes/ - pv", Some(old), Some(&with(old, changes)))
    };
    let done = [("/metadata/finalizers", json!(["a"]))];
    assert_eq!(patch(&volume, &done), Ok(()));
    let alone = with(&volume, &[("/metadata/finalizers", json!(["causeway.dev/local-path"]))]);
    assert_eq!(patch(&alone, &[("/metadata/finalizers", json!(null))]), Ok(()));
    let why = "can only remove the finalizer causeway.dev/local-path of its own local volumes";
    for (old, changes) in [
        (&volume, ("/metadata/finalizers", json!([]))),
        (&volume, ("/metadata/finalizers", json!(["causeway.dev/local-path"]))),
        (&volume, ("/metadata/finalizers", json!(["a", "b"]))),
        (&volume, ("/spec/hostPath/path", json!("/etc"))),
        (&volume, ("/spec/claimRef", json!({"name": "x"}))),
        (&volume, ("/metadata/labels/causeway.dev~1node", json!("n2"))),
        (&with(&volume, &[("/metadata/labels/causeway.dev~1node", json!("n2"))]), done[0].clone()),
        (&with(&volume, &[("/metadata/deletionTimestamp", json!(null))]), done[0].clone()),
    ] {
        refused(patch(old, &[changes]), why);
    }
    refused(write("update /persistentvolumes/status - pv", Some(&volume), Some(&volume)), why);
    refused(write("delete /persistentvolumes/ - pv", Some(&volume), None), why);
    refused(write("create /persistentvolumes/ - pv", None, Some(&volume)), why);
}

#[test]
fn certificates_csinodes_and_slices_are_its_own() {
    let request = |signer: &str, cn: &str| json!({"spec": {"signerName": signer, "request": cn}});
    let text = "create certificates.k8s.io/certificatesigningrequests/ - csr-1";
    for signer in ["kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client-kubelet"] {
        assert_eq!(write(text, None, Some(&request(signer, "CN=system:node:n1"))), Ok(()));
        for cn in ["CN=system:node:n2", "CN=admin", "CN=system:node:", "CN=n1"] {
            refused(write(text, None, Some(&request(signer, cn))), "can only create a node CSR with CN=system:node:n1");
        }
        refused(write(text, None, Some(&request(signer, "rubbish"))), "unable to parse csr: bad PEM");
    }
    let client = request("kubernetes.io/kube-apiserver-client", "CN=system:node:n1");
    refused(write(text, None, Some(&client)), "can only request certificates of kubelets");
    let approval = "update certificates.k8s.io/certificatesigningrequests/approval - csr-1";
    refused(write(approval, Some(&client), Some(&client)), "can only create certificate signing requests");
    for (group, why) in [("storage.k8s.io/csinodes/", "CSINode"), ("resource.k8s.io/resourceslices/", "ResourceSlice")]
    {
        let of = |name: &str| json!({"metadata": {"name": name}, "spec": {"nodeName": name}});
        let (own, other) = (of("n1"), of("n2"));
        assert_eq!(write(&format!("create {group} - -"), None, Some(&own)), Ok(()));
        assert_eq!(write(&format!("update {group} - n1"), Some(&own), Some(&own)), Ok(()));
        refused(write(&format!("create {group} - -"), None, Some(&other)), why);
        refused(write(&format!("update {group} - n2"), Some(&other), Some(&other)), why);
        refused(write(&format!("delete {group} - n2"), Some(&other), None), why);
    }
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
