//! What pods refer to, and what that costs with many of them.

use super::*;
use serde_json::json;
use std::time::{Duration, Instant};

/// A pod that refers to one object in every way there is, each named after its way.
fn rich(node: &str) -> Value {
    let env = |way: &str| {
        json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": format!("{way}-env"), "key": "k"}}},
            {"name": "B", "valueFrom": {"configMapKeyRef": {"name": format!("{way}-env"), "key": "k"}}},
            {"name": "C", "value": "literal"}])
    };
    let from = |way: &str| json!([{"secretRef": {"name": format!("{way}-from")}}, {"configMapRef": {"name": format!("{way}-from")}}]);
    let container = |way: &str| json!({"name": way, "env": env(way), "envFrom": from(way)});
    json!({
        "metadata": {"namespace": "ns", "name": "web", "uid": "u"},
        "spec": {
            "nodeName": node, "serviceAccountName": "robot", "imagePullSecrets": [{"name": "pull"}],
            "containers": [container("main")], "initContainers": [container("init")],
            "ephemeralContainers": [container("debug")],
            "volumes": [
                {"name": "a", "secret": {"secretName": "volume"}},
                {"name": "b", "configMap": {"name": "volume"}},
                {"name": "c", "projected": {"sources": [{"secret": {"name": "projected"}},
                    {"configMap": {"name": "projected"}}, {"serviceAccountToken": {"path": "token"}}]}},
                {"name": "d", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "e", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}},
                {"name": "f", "csi": {"driver": "x", "nodePublishSecretRef": {"name": "csi"}}},
                {"name": "g", "flexVolume": {"driver": "x", "secretRef": {"name": "flex"}}},
                {"name": "h", "azureFile": {"secretName": "azure", "shareName": "s"}},
                {"name": "i", "rbd": {"secretRef": {"name": "rbd"}}},
                {"name": "j", "iscsi": {"secretRef": {"name": "iscsi"}}},
                {"name": "k", "cephfs": {"secretRef": {"name": "cephfs"}}},
                {"name": "l", "emptyDir": {}},
            ],
            "resourceClaims": [{"name": "gpu", "resourceClaimName": "device"}, {"name": "t", "resourceClaimTemplateName": "x"}],
        },
        "status": {"resourceClaimStatuses": [{"name": "t", "resourceClaimName": "web-t-1"},
            {"name": "unasked", "resourceClaimName": "other"}]},
    })
}

const SECRETS: [&str; 15] = [
    "pull",
    "main-env",
    "main-from",
    "init-env",
    "init-from",
    "debug-env",
    "debug-from",
    "volume",
    "projected",
    "csi",
    "flex",
    "azure",
    "rbd",
    "iscsi",
    "cephfs",
];
const MAPS: [&str; 8] =
    ["main-env", "main-from", "init-env", "init-from", "debug-env", "debug-from", "volume", "projected"];

fn volume(name: &str, claim: &str, secrets: &[(&str, &str)]) -> Value {
    let mut volume = json!({"metadata": {"name": name}, "spec": {"claimRef": {"namespace": "ns", "name": claim}}});
    for (field, secret) in secrets {
        let (source, reference) = field.split_once('/').unwrap();
        volume["spec"][source][reference] = json!({"namespace": "storage", "name": secret});
    }
    volume
}

#[test]
fn a_pods_references_are_its_nodes() {
    let mut graph = Graph::new();
    graph.upsert("pods", &rich("n1"));
    for secret in SECRETS {
        assert!(graph.reaches_secret("n1", "ns", secret), "{secret}");
        assert!(!graph.reaches_secret("n2", "ns", secret) && !graph.reaches_secret("n1", "other", secret), "{secret}");
    }
    for map in MAPS {
        assert!(graph.refers("n1", Kind::ConfigMap, "ns", map), "{map}");
    }
    for (kind, name) in [
        (Kind::Account, "robot"),
        (Kind::Claim, "data"),
        (Kind::Claim, "web-e"),
        (Kind::ResourceClaim, "device"),
        (Kind::ResourceClaim, "web-t-1"),
        (Kind::Pod, "web"),
    ] {
        assert!(graph.refers("n1", kind, "ns", name), "{name}");
        assert!(!graph.refers("n2", kind, "ns", name) && !graph.refers("n1", kind, "", name), "{name}");
    }
    for (kind, name) in [(Kind::Secret, "data"), (Kind::Account, "default"), (Kind::ResourceClaim, "other")] {
        assert!(!graph.refers("n1", kind, "ns", name), "{name}");
    }
    graph.remove("pods", "ns", "web");
    assert!(SECRETS.iter().all(|s| !graph.reaches_secret("n1", "ns", s)));
    assert_eq!((graph.size(), graph.nodes.len()), ((0, 0), 0), "nothing is kept of what is gone");
}

#[test]
fn reach_follows_changes() {
    let mut graph = Graph::new();
    let mut pod = rich("");
    graph.upsert("pods", &pod);
    assert_eq!(graph.size(), (0, 0), "not bound yet");
    pod["spec"]["nodeName"] = "n1".into();
    graph.upsert("pods", &pod);
    graph.upsert("pods", &pod);
    assert!(graph.reaches_secret("n1", "ns", "pull"));
    // The same name again on another node: an old one was deleted.
    pod["spec"]["nodeName"] = "n2".into();
    pod["spec"]["imagePullSecrets"] = json!([{"name": "other"}]);
    graph.upsert("pods", &pod);
    assert!(!graph.reaches_secret("n1", "ns", "pull") && !graph.reaches_secret("n2", "ns", "pull"));
    assert!(graph.reaches_secret("n2", "ns", "other") && graph.reaches_secret("n2", "ns", "csi"));
    // A second pod keeps what both name.
    let mut second = rich("n2");
    second["metadata"]["name"] = "second".into();
    graph.upsert("pods", &second);
    graph.remove("pods", "ns", "web");
    assert!(graph.reaches_secret("n2", "ns", "csi") && !graph.reaches_secret("n2", "ns", "other"));
    graph.remove("pods", "ns", "unknown");
    graph.remove("pods", "ns", "second");
    assert_eq!(graph.size(), (0, 0));
}

#[test]
fn mirror_pods_lead_nowhere() {
    let mut graph = Graph::new();
    let mut pod = rich("n1");
    pod["metadata"]["annotations"] = json!({ references::MIRROR: "" });
    graph.upsert("pods", &pod);
    assert!(graph.refers("n1", Kind::Pod, "ns", "web"), "itself only");
    assert!(SECRETS.iter().all(|s| !graph.reaches_secret("n1", "ns", s)));
    assert!(!graph.refers("n1", Kind::Account, "ns", "robot") && !graph.refers("n1", Kind::Claim, "ns", "data"));
}

#[test]
fn volumes_are_reached_through_their_claim() {
    let sources = [
        ("csi/nodePublishSecretRef", "publish"),
        ("csi/nodeStageSecretRef", "stage"),
        ("csi/nodeExpandSecretRef", "expand"),
        ("csi/controllerPublishSecretRef", "attach"),
        ("csi/controllerExpandSecretRef", "grow"),
        ("flexVolume/secretRef", "bend"),
    ];
    for pod_first in [true, false] {
        let mut graph = Graph::new();
        if pod_first {
            graph.upsert("pods", &rich("n1"));
        }
        graph.upsert("persistentvolumes", &volume("pv", "data", &sources));
        graph.upsert("persistentvolumes", &volume("other", "elses", &[("csi/nodeStageSecretRef", "elses")]));
        if !pod_first {
            graph.upsert("pods", &rich("n1"));
        }
        assert!(graph.reaches_volume("n1", "pv") && !graph.reaches_volume("n2", "pv"));
        assert!(!graph.reaches_volume("n1", "other") && !graph.reaches_volume("n1", "unknown"));
        for secret in ["publish", "stage", "expand", "bend"] {
            assert!(graph.reaches_secret("n1", "storage", secret), "{secret}");
            assert!(!graph.reaches_secret("n2", "storage", secret) && !graph.reaches_secret("n1", "ns", secret));
        }
        for secret in ["attach", "grow", "elses"] {
            assert!(!graph.reaches_secret("n1", "storage", secret), "{secret} is not a kubelet's");
        }
        // Released: the claim is another's now.
        graph.upsert("persistentvolumes", &volume("pv", "elses", &sources));
        assert!(!graph.reaches_volume("n1", "pv") && !graph.reaches_secret("n1", "storage", "stage"));
        graph.upsert("persistentvolumes", &json!({"metadata": {"name": "pv"}, "spec": {"csi": {}}}));
        graph.remove("persistentvolumes", "", "pv");
        graph.remove("persistentvolumes", "", "other");
        assert!(graph.by_claim.is_empty() && graph.by_secret.is_empty() && graph.volumes.is_empty());
    }
}

#[test]
fn a_claim_that_names_a_volume_is_not_enough() {
    // `spec.volumeName` is the tenant's to write, `claimRef` the cluster's.
    let mut graph = Graph::new();
    graph.upsert("pods", &rich("n1"));
    let claim = json!({"metadata": {"namespace": "ns", "name": "data"}, "spec": {"volumeName": "pv"}});
    graph.upsert("persistentvolumeclaims", &claim);
    graph.upsert("persistentvolumes", &json!({"metadata": {"name": "pv"}, "spec": {}}));
    assert!(!graph.reaches_volume("n1", "pv"));
}

#[test]
fn a_secret_of_many_volumes_is_found_either_way() {
    let mut graph = Graph::new();
    for i in 0..50 {
        graph.upsert(
            "persistentvolumes",
            &volume(&format!("pv{i}"), &format!("c{i}"), &[("csi/nodeStageSecretRef", "s")]),
        );
    }
    graph.upsert("pods", &rich("n1"));
    assert!(!graph.reaches_secret("n1", "storage", "s"));
    graph.upsert("persistentvolumes", &volume("pv50", "web-e", &[("csi/nodeStageSecretRef", "s")]));
    assert!(graph.reaches_secret("n1", "storage", "s"));
}

#[test]
fn attachments_and_slices_are_of_one_node() {
    let mut graph = Graph::new();
    let of = |node: &str| json!({"metadata": {"name": "x"}, "spec": {"nodeName": node}});
    graph.upsert("volumeattachments", &of("n1"));
    graph.upsert("resourceslices", &of("n1"));
    assert!(graph.is_attachment_of("n1", "x") && graph.is_slice_of("n1", "x") && !graph.is_slice_of("n2", "x"));
    graph.upsert("volumeattachments", &of("n2"));
    graph.upsert("resourceslices", &of(""));
    assert!(!graph.is_attachment_of("n1", "x") && graph.is_attachment_of("n2", "x") && !graph.is_slice_of("n1", "x"));
    graph.remove("volumeattachments", "", "x");
    assert!(!graph.is_attachment_of("n2", "x"));
}

#[test]
fn objects_of_strange_shapes_give_no_reach() {
    let mut graph = Graph::new();
    for spec in [
        json!(null),
        json!([]),
        json!("x"),
        json!({"nodeName": 7}),
        json!({"nodeName": "n1", "volumes": {"secret": 1}, "containers": [7, null, {"env": "x", "envFrom": {}}]}),
        json!({"nodeName": "n1", "volumes": [{"secret": {"secretName": ["a"]}}, {"ephemeral": {}}, null]}),
    ] {
        graph.upsert("pods", &json!({"metadata": {"namespace": "ns", "name": "web"}, "spec": spec}));
        assert!(graph.size().1 <= 1, "{spec}: at most the pod itself");
    }
    graph.upsert("pods", &json!(null));
    graph.upsert("persistentvolumes", &json!({"metadata": {"name": 7}, "spec": {"claimRef": "x"}}));
}

/// The shortest of several runs: a busy machine makes some of them long.
fn shortest(mut work: impl FnMut()) -> Duration {
    let runs = (0..7).map(|_| {
        let begun = Instant::now();
        work();
        begun.elapsed()
    });
    runs.min().unwrap_or_default()
}

#[test]
fn costs_do_not_grow_with_the_cluster() {
    let plain = |i: usize, node: usize| {
        json!({"metadata": {"namespace": format!("ns-{}", i % 50), "name": format!("web-{i}")},
            "spec": {"nodeName": format!("n{node}"), "serviceAccountName": "robot", "volumes": [
                {"configMap": {"name": "ca"}}, {"secret": {"secretName": "shared"}},
                {"persistentVolumeClaim": {"claimName": format!("data-{i}")}}]}})
    };
    // A hundred pods a node, and all volumes with the Secret of one driver.
    let fill = |pods: usize| {
        let mut graph = Graph::new();
        for i in 0..pods {
            graph.upsert("pods", &plain(i, i / 100));
            let mut volume = volume(&format!("pv-{i}"), &format!("data-{i}"), &[("csi/nodeStageSecretRef", "driver")]);
            volume["spec"]["claimRef"]["namespace"] = format!("ns-{}", i % 50).into();
            graph.upsert("persistentvolumes", &volume);
        }
        graph
    };
    let (mut small, mut large) = (fill(100), fill(10_000));
    // Of its own, a pod has its claim and itself; what pods share is kept once a namespace.
    assert_eq!(large.size(), (10_000, 10_000 * 2 + 50 * 3));
    assert!(large.reaches_secret("n0", "storage", "driver") && !large.reaches_secret("other", "storage", "driver"));
    let questions = |graph: &Graph| {
        shortest(|| {
            for i in 0..200 {
                assert!(graph.refers("n0", Kind::Secret, &format!("ns-{}", i % 50), "shared"));
                assert!(graph.reaches_secret("n0", "storage", "driver"));
                assert!(!graph.reaches_secret("n0", "storage", "elses"));
            }
        })
    };
    let changes = |graph: &mut Graph| {
        let pod = plain(1_000_000, 0);
        shortest(|| {
            for _ in 0..200 {
                graph.upsert("pods", &pod);
                graph.remove("pods", "ns-0", "web-1000000");
            }
        })
    };
    // A hundred times the pods: whatever scans them would be a hundred times as slow.
    let (few, many) = (questions(&small), questions(&large));
    assert!(many < few * 10, "questions: {few:?}, {many:?}");
    let (few, many) = (changes(&mut small), changes(&mut large));
    assert!(many < few * 10, "changes: {few:?}, {many:?}");
}
