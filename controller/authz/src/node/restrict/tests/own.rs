//! What a node may write: leases, slices, volumes, requests for certificates.

use super::*;

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
