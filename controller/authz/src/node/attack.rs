//! A node that has been taken over, `n1`, tries what would make the cluster its own. A request gets through when
//! authorisation and admission both pass it.

use super::authorize::tests::{ask, graph};
use super::restrict::tests::{pod, write};
use super::{Graph, Selectors, serving};
use crate::Decision;
use serde_json::{Value, json};

/// Asks for `verb group/resource/subresource namespace name`, then whether the write is admitted.
fn tries(graph: &Graph, request: &str, old: Option<&Value>, new: Option<&Value>) -> bool {
    let allowed = matches!(ask(graph, request, &Selectors::default()), Decision::Allow(_));
    let (verb, rest) = request.split_once(' ').unwrap();
    let operation = match verb {
        "create" => "create",
        "update" | "patch" => "update",
        "delete" | "deletecollection" => "delete",
        _ => return allowed,
    };
    allowed && write(&format!("{operation} {rest}"), old, new).is_ok()
}

#[test]
fn a_node_that_was_taken_over_stays_alone() {
    let graph = graph();
    let other = pod("n2");
    let node = |name: &str, labels: Value, taints: Value| json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints}});
    let tainted = node("n1", json!({}), json!([{"key": "quarantine", "effect": "NoExecute"}]));
    let mirror = |account: &str, secret: &str| {
        json!({"metadata": {"namespace": "kube-system", "name": "x-n1", "annotations": {"kubernetes.io/config.mirror": ""},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "uid-n1", "controller": true}]},
            "spec": {"nodeName": "n1", "serviceAccountName": account, "containers": [],
                "volumes": [{"name": "v", "secret": {"secretName": secret}}]}})
    };
    let token = |pod: &str| json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": format!("uid-{pod}")}}});
    let unbound = json!({"spec": {}});
    let dns = |node: &str, address: &str| {
        json!({"metadata": {"name": "kube-dns-n1", "labels": {"kubernetes.io/service-name": "kube-dns"}},
            "addressType": "IPv4", "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}],
            "endpoints": [{"addresses": [address], "nodeName": node}]})
    };
    let lease = json!({"metadata": {"name": "n2"}, "spec": {"holderIdentity": "n1"}});
    let volume = json!({"metadata": {"name": "pv1"}, "spec": {"hostPath": {"path": "/etc"}}});
    let claim = json!({"metadata": {"name": "claim-p1"}, "status": {"phase": "Bound"}});
    let grabbed = json!({"metadata": {"name": "claim-p1", "finalizers": ["mine"]}, "status": {"phase": "Lost"}});
    let csr = json!({"spec": {"signerName": "kubernetes.io/kube-apiserver-client", "request": "CN=admin"}});
    let as_other = json!({"spec": {"signerName": "kubernetes.io/kubelet-serving", "request": "CN=system:node:n2"}});
    for (request, old, new, what) in [
        ("list /secrets/ - -", None, None, "reads all Secrets"),
        ("list /secrets/ kube-system -", None, None, "reads a namespace's Secrets"),
        ("get /secrets/ ns secret-p2", None, None, "reads a Secret of a pod elsewhere"),
        ("get /secrets/ kube-system bootstrap-token-abcdef", None, None, "reads a bootstrap token"),
        ("list /configmaps/ - -", None, None, "reads all ConfigMaps"),
        ("create /pods/ kube-system -", None, Some(&mirror("admin", "")), "a mirror pod with an account"),
        ("create /pods/ kube-system -", None, Some(&mirror("", "ca-key")), "a mirror pod with a Secret"),
        ("create /pods/ ns -", None, Some(&other), "a pod of its own making elsewhere"),
        ("create /serviceaccounts/token ns robot2", None, Some(&token("p-n2")), "a token of an account elsewhere"),
        ("create /serviceaccounts/token ns robot1", None, Some(&token("p-n2")), "a token bound to a pod elsewhere"),
        ("create /serviceaccounts/token ns robot1", None, Some(&unbound), "a token bound to nothing"),
        ("create /serviceaccounts/token kube-system admin", None, Some(&unbound), "the token of an administrator"),
        (
            "patch /nodes/ - n2",
            Some(&node("n2", json!({}), json!([]))),
            Some(&node("n2", json!({"a": "b"}), json!([]))),
            "another node's labels",
        ),
        ("patch /nodes/ - n1", Some(&tainted), Some(&node("n1", json!({}), json!([]))), "takes its taints off"),
        (
            "patch /nodes/ - n1",
            Some(&tainted),
            Some(&node("n1", json!({"node-role.kubernetes.io/control-plane": ""}), tainted["spec"]["taints"].clone())),
            "calls itself the control plane",
        ),
        ("delete /nodes/ - n2", Some(&node("n2", json!({}), json!([]))), None, "deletes another node"),
        ("delete coordination.k8s.io/leases/ kube-node-lease n2", Some(&lease), None, "another node's lease"),
        ("patch coordination.k8s.io/leases/ kube-node-lease n2", Some(&lease), Some(&lease), "another node's lease"),
        ("deletecollection coordination.k8s.io/leases/ kube-node-lease -", Some(&lease), None, "all leases"),
        ("delete coordination.k8s.io/leases/ kube-system kube-scheduler", Some(&lease), None, "the scheduler's lease"),
        ("delete coordination.k8s.io/leases/ kube-system announce-n2", Some(&lease), None, "another announcer's lease"),
        (
            "patch discovery.k8s.io/endpointslices/ kube-system kube-dns-n1",
            None,
            Some(&dns("n2", "10.0.0.1")),
            "answers another node's DNS",
        ),
        (
            "patch discovery.k8s.io/endpointslices/ kube-system kube-dns-n1",
            None,
            Some(&dns("n1", "10.0.0.2")),
            "sends its DNS elsewhere",
        ),
        ("patch discovery.k8s.io/endpointslices/ default kubernetes", None, Some(&dns("n1", "10.0.0.1")), "is the API"),
        ("deletecollection /pods/ ns -", Some(&other), None, "deletes pods elsewhere, all at once"),
        ("delete /pods/ ns p-n2", Some(&other), None, "deletes a pod elsewhere"),
        ("create /pods/eviction ns p-n2", None, Some(&json!({})), "spends a budget elsewhere"),
        ("patch /pods/status ns p-n2", Some(&other), Some(&other), "reports on a pod elsewhere"),
        ("patch /pods/ ns p-n1", Some(&pod("n1")), Some(&pod("n1")), "changes a pod"),
        ("create /pods/exec ns p2", None, Some(&json!({})), "runs a command elsewhere"),
        ("create /pods/binding ns p2", None, Some(&json!({})), "binds pods to itself"),
        ("patch /persistentvolumes/ - pv2", Some(&volume), Some(&volume), "a volume elsewhere"),
        ("patch /persistentvolumes/ - pv1", Some(&volume), Some(&volume), "its own volume's source"),
        ("patch /persistentvolumeclaims/status ns claim-p2", Some(&claim), Some(&claim), "a claim elsewhere"),
        ("patch /persistentvolumeclaims/status ns claim-p1", Some(&claim), Some(&grabbed), "a claim's owners"),
        ("create certificates.k8s.io/certificatesigningrequests/ - -", None, Some(&csr), "a person's certificate"),
        (
            "create certificates.k8s.io/certificatesigningrequests/ - -",
            None,
            Some(&as_other),
            "another node's certificate",
        ),
        ("update certificates.k8s.io/certificatesigningrequests/approval - c", Some(&csr), Some(&csr), "approves it"),
        ("create rbac.authorization.k8s.io/clusterrolebindings/ - -", None, Some(&json!({})), "gives itself a role"),
        ("impersonate /users/ - admin", None, None, "is somebody else"),
    ] {
        assert!(!tries(&graph, request, old, new), "{what}: {request}");
    }
}

#[test]
fn what_it_must_do_it_may() {
    let graph = graph();
    let own = pod("n1");
    let running = {
        let mut running = own.clone();
        running["status"] = json!({"phase": "Running"});
        running
    };
    for (request, old, new) in [
        ("get /secrets/ ns secret-p1", None, None),
        ("patch /pods/status ns p-n1", Some(&own), Some(&running)),
        ("delete /pods/ ns p-n1", Some(&own), None),
        ("create /pods/eviction ns p-n1", None, Some(&own)),
    ] {
        assert!(tries(&graph, request, old, new), "{request}");
    }
}

/// It writes what it likes into its own status and asks for certificates as a server.
#[test]
fn no_certificate_makes_it_somebody_else() {
    let nets = |all: &[&str]| all.iter().map(|n| n.parse().unwrap()).collect::<Vec<ipnet::IpNet>>();
    let (services, pods) = (nets(&["10.96.0.0/12"]), nets(&["10.244.0.0/16"]));
    let others = ["10.0.0.2".parse().unwrap()].into();
    for (names, ips) in [
        (&["n1"][..], &["10.96.0.1"][..]),
        (&["n1"], &["10.0.0.1", "10.96.0.10"]),
        (&["n1"], &["10.0.0.2"]),
        (&["n1"], &["10.0.0.100"]),
        (&["n1"], &["10.244.7.7"]),
        (&["n1"], &["127.0.0.1"]),
        (&["n1"], &["10.0.0.3"]),
        (&["n1", "kubernetes.default.svc"], &["10.0.0.1"]),
        (&["n2"], &["10.0.0.1"]),
    ] {
        let request = serving::Request {
            node: "n1",
            dns_names: &names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>(),
            ips: &ips.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<_>>(),
            peer: "10.0.0.1".parse().ok(),
        };
        let cluster = serving::Cluster {
            services: &services,
            pods: &pods,
            domain: "cluster.local",
            api: &["10.0.0.100".parse().unwrap()],
            api_names: &[],
            own: &["10.0.0.1".parse().unwrap()],
            others: &others,
        };
        assert!(serving::decide(&request, &cluster).is_err(), "{names:?} {ips:?}");
    }
}
