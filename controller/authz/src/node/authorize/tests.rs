//! What a node may ask for, request by request.

use super::super::rules::Rule;
use super::*;
use serde_json::json;

pub fn graph() -> Graph {
    let mut graph = Graph::new();
    let pod = |node: &str, name: &str, account: &str| {
        json!({"metadata": {"namespace": "ns", "name": name}, "spec": {
            "nodeName": node, "serviceAccountName": account, "containers": [],
            "imagePullSecrets": [{"name": format!("secret-{name}")}],
            "volumes": [{"name": "a", "configMap": {"name": format!("map-{name}")}},
                {"name": "b", "persistentVolumeClaim": {"claimName": format!("claim-{name}")}}],
            "resourceClaims": [{"name": "d", "resourceClaimName": format!("device-{name}")}]}})
    };
    graph.upsert("pods", &pod("n1", "p1", "robot1"));
    graph.upsert("pods", &pod("n2", "p2", "robot2"));
    for n in ["1", "2"] {
        let volume = json!({
            "metadata": {"name": format!("pv{n}"), "labels": {"causeway.dev/node": format!("n{n}")}},
            "spec": {"claimRef": {"namespace": "ns", "name": format!("claim-p{n}")}}});
        graph.upsert("persistentvolumes", &volume);
        let of_node = json!({"metadata": {"name": format!("x{n}")}, "spec": {"nodeName": format!("n{n}")}});
        graph.upsert("volumeattachments", &of_node);
        graph.upsert("resourceslices", &of_node);
    }
    graph
}

/// `verb group/resource/subresource namespace name`; `-` stands for nothing.
pub fn attributes(text: &str) -> Attributes {
    let words: Vec<String> = text.split(' ').map(|w| if w == "-" { String::new() } else { w.to_owned() }).collect();
    let [verb, path, namespace, name] = words.try_into().unwrap();
    let parts: Vec<&str> = path.split('/').collect();
    let [group, resource, subresource] = parts.try_into().unwrap();
    let path = String::new();
    let [group, resource, subresource] = [group, resource, subresource].map(str::to_owned);
    Attributes { verb, group, resource, subresource, namespace, name, path, ..Attributes::default() }
}

pub fn ask(graph: &Graph, text: &str, selectors: &Selectors<'_>) -> Decision {
    let groups = ["system:nodes".to_owned(), "system:authenticated".to_owned()];
    graph.authorize(&Subject { user: "system:node:n1", groups: &groups }, &attributes(text), selectors)
}

fn none() -> Selectors<'static> {
    Selectors::default()
}

fn field(key: &'static str, equal: bool, value: &'static str) -> Vec<Term<'static>> {
    vec![Term { key, equal, value }]
}

#[test]
fn what_kubernetes_allows_a_node() {
    let graph = graph();
    for allowed in [
        "get /secrets/ ns secret-p1",
        "list /secrets/ ns secret-p1",
        "watch /secrets/ ns secret-p1",
        "get /configmaps/ ns map-p1",
        "watch /configmaps/ ns map-p1",
        "get /persistentvolumeclaims/ ns claim-p1",
        "update /persistentvolumeclaims/status ns claim-p1",
        "patch /persistentvolumeclaims/status ns claim-p1",
        "get /persistentvolumes/ - pv1",
        "get resource.k8s.io/resourceclaims/ ns device-p1",
        "get storage.k8s.io/volumeattachments/ - x1",
        "get resource.k8s.io/resourceslices/ - x1",
        "delete resource.k8s.io/resourceslices/ - x1",
        "create resource.k8s.io/resourceslices/ - -",
        "create /serviceaccounts/token ns robot1",
        "get /serviceaccounts/ ns robot1",
        "create coordination.k8s.io/leases/ kube-node-lease -",
        "patch coordination.k8s.io/leases/ kube-node-lease n1",
        "get coordination.k8s.io/leases/ kube-node-lease n1",
        "create storage.k8s.io/csinodes/ - -",
        "patch storage.k8s.io/csinodes/ - n1",
        "get /nodes/ - n1",
        "watch /nodes/ - n1",
        "create /nodes/ - -",
        "patch /nodes/ - n1",
        "patch /nodes/status - n1",
        "get /pods/ ns p1",
        "watch /pods/ ns p1",
        "create /pods/ ns -",
        "delete /pods/ ns p1",
        "patch /pods/status ns p1",
        "create /pods/eviction ns p1",
        "list /services/ - -",
        "get /endpoints/ ns e",
        "create /events/ ns -",
        "patch events.k8s.io/events/ ns e",
        "create certificates.k8s.io/certificatesigningrequests/ - -",
        "watch certificates.k8s.io/certificatesigningrequests/ - c",
        "create authentication.k8s.io/tokenreviews/ - -",
        "create authorization.k8s.io/subjectaccessreviews/ - -",
        "list node.k8s.io/runtimeclasses/ - -",
        "watch storage.k8s.io/csidrivers/ - -",
    ] {
        assert_eq!(ask(&graph, allowed, &none()), Decision::Allow(String::new()), "{allowed}");
    }
}

#[test]
fn what_it_is_refused_and_why() {
    let graph = graph();
    let unrelated = "no relationship found between node 'n1' and this object";
    for (refused, why) in [
        ("get /secrets/ ns secret-p2", unrelated),
        ("get /secrets/ other secret-p1", unrelated),
        ("get /secrets/ ns unknown", unrelated),
        ("list /secrets/ ns -", "No Object name found"),
        ("list /secrets/ - -", "can only read namespaced object of this type"),
        ("list /secrets/ - secret-p1", "can only read namespaced object of this type"),
        ("watch /secrets/ ns -", "No Object name found"),
        ("update /secrets/ ns secret-p1", "can only read resources of this type"),
        ("deletecollection /secrets/ ns secret-p1", "can only read resources of this type"),
        ("get /secrets/status ns secret-p1", "cannot read subresource"),
        ("list /configmaps/ ns -", "No Object name found"),
        ("get /configmaps/ ns map-p2", unrelated),
        ("get /persistentvolumeclaims/ ns claim-p2", unrelated),
        ("list /persistentvolumeclaims/ ns -", "can only get individual resources of this type"),
        ("patch /persistentvolumeclaims/ ns claim-p1", "can only get individual resources of this type"),
        ("patch /persistentvolumeclaims/status ns claim-p2", unrelated),
        ("get /persistentvolumeclaims/status ns claim-p1", "can only get/update/patch this type"),
        ("get /persistentvolumes/ - pv2", unrelated),
        ("get resource.k8s.io/resourceclaims/ ns device-p2", unrelated),
        ("get storage.k8s.io/volumeattachments/ - x2", unrelated),
        ("patch resource.k8s.io/resourceslices/ - x2", unrelated),
        (
            "list resource.k8s.io/resourceslices/ - -",
            "can only list/watch/deletecollection resourceslices with nodeName field selector",
        ),
        ("create /serviceaccounts/token ns robot2", unrelated),
        ("create /serviceaccounts/token kube-system robot1", unrelated),
        ("create /serviceaccounts/token ns -", "can only create tokens for individual service accounts"),
        ("create /serviceaccounts/ ns -", "can only create token subresource of serviceaccount"),
        ("get /serviceaccounts/ ns robot2", unrelated),
        (
            "patch coordination.k8s.io/leases/ kube-node-lease n2",
            "can only access node lease with the same name as the requesting node",
        ),
        (
            "patch coordination.k8s.io/leases/ default n1",
            "can only access leases in the \"kube-node-lease\" system namespace",
        ),
        (
            "list coordination.k8s.io/leases/ kube-node-lease -",
            "can only get, create, update, patch, or delete a node lease",
        ),
        ("get storage.k8s.io/csinodes/ - n2", "can only access CSINode with the same name as the requesting node"),
        ("get /nodes/ - n2", "node 'n1' cannot read 'n2', only its own Node object"),
        ("delete /nodes/ - n1", ""),
        ("get /pods/ ns p2", unrelated),
        ("list /pods/ ns -", "can only list/watch pods with spec.nodeName field selector"),
        ("patch /pods/ ns p1", ""),
        ("deletecollection /pods/ ns -", ""),
        ("create /pods/exec ns p1", ""),
        ("create /pods/binding ns p1", ""),
        ("get /pods/log ns p1", ""),
        ("get /nodes/proxy - n1", ""),
    ] {
        assert_eq!(ask(&graph, refused, &none()), Decision::NoOpinion(why.to_owned()), "{refused}");
    }
}

#[test]
fn lists_are_narrowed_by_their_selectors() {
    let graph = graph();
    let ok = |text: &str, fields: &[Term<'_>], labels: &[Term<'_>]| {
        ask(&graph, text, &Selectors { fields, labels }) == Decision::Allow(String::new())
    };
    let own = field("spec.nodeName", true, "n1");
    for (text, selector, expected) in [
        ("list /pods/ ns -", &own, true),
        ("watch /pods/ - -", &own, true),
        ("list /pods/ ns -", &field("spec.nodeName", true, "n2"), false),
        ("list /pods/ ns -", &field("spec.nodeName", false, "n1"), false),
        ("list /pods/ ns -", &field("metadata.name", true, "n1"), false),
        ("deletecollection /pods/ ns -", &own, false),
        ("list /secrets/ ns -", &own, false),
        ("list resource.k8s.io/resourceslices/ - -", &own, true),
        ("deletecollection resource.k8s.io/resourceslices/ - -", &own, true),
        ("list resource.k8s.io/resourceslices/ - -", &field("spec.nodeName", true, "n2"), false),
    ] {
        assert_eq!(ok(text, selector, &[]), expected, "{text} {selector:?}");
    }
    let local = field("causeway.dev/node", true, "n1");
    assert!(ok("watch /persistentvolumes/ - -", &[], &local) && !ok("delete /persistentvolumes/ - pv1", &[], &local));
    assert!(!ok("watch /persistentvolumes/ - -", &[], &field("causeway.dev/node", true, "n2")));
    assert!(!ok("watch /persistentvolumes/ - -", &[], &field("causeway.dev/node", false, "n1")));
    assert!(!ok("watch /persistentvolumes/ - -", &local, &[]), "a field is no label");
    let address = field("causeway.dev/announce", true, "address");
    assert!(ok("watch coordination.k8s.io/leases/ kube-system -", &[], &address));
    assert!(!ok("watch coordination.k8s.io/leases/ - -", &[], &address));
    assert!(!ok("watch coordination.k8s.io/leases/ kube-system -", &[], &[]));
}

/// Every request that the components of a joined node send beyond a kubelet's, as their code makes them.
#[test]
fn what_the_components_of_a_joined_node_need() {
    let graph = graph();
    for allowed in [
        "list /pods/ - -",
        "watch /pods/ - -",
        "list /nodes/ - -",
        "watch /namespaces/ - -",
        "list discovery.k8s.io/endpointslices/ - -",
        "watch networking.k8s.io/networkpolicies/ - -",
        "list networking.k8s.io/servicecidrs/ - -",
        "get /configmaps/ kube-system causeway-config",
        "watch /configmaps/ kube-system causeway-dns",
        "get /events/ ns e",
        "patch discovery.k8s.io/endpointslices/ kube-system kube-dns-n1",
        "create discovery.k8s.io/endpointslices/ kube-system kube-dns-n1-v6",
        "create discovery.k8s.io/endpointslices/ kube-system -",
        "patch coordination.k8s.io/leases/ kube-system announce-n1",
        "create coordination.k8s.io/leases/ kube-system -",
        "delete coordination.k8s.io/leases/ kube-system announce-n1",
        "get coordination.k8s.io/leases/ kube-system announce-n2",
        "watch coordination.k8s.io/leases/ kube-system announce-n2",
        "update coordination.k8s.io/leases/ kube-system load-balancer-10.0.0.9",
        "delete coordination.k8s.io/leases/ kube-system load-balancer-10.0.0.9",
        "watch /persistentvolumeclaims/ ns claim-p1",
        "watch /persistentvolumes/ - pv1",
        "patch /persistentvolumes/ - pv1",
    ] {
        assert_eq!(ask(&graph, allowed, &none()), Decision::Allow(String::new()), "{allowed}");
    }
    for refused in [
        "get /configmaps/ kube-system other",
        "watch /configmaps/ kube-system causeway-config",
        "get /configmaps/ ns causeway-config",
        "list /configmaps/ kube-system -",
        "patch discovery.k8s.io/endpointslices/ kube-system kube-dns-n2",
        "patch discovery.k8s.io/endpointslices/ ns kube-dns-n1",
        "delete discovery.k8s.io/endpointslices/ kube-system kube-dns-n1",
        "patch coordination.k8s.io/leases/ kube-system announce-n2",
        "delete coordination.k8s.io/leases/ kube-system announce-n2",
        "deletecollection coordination.k8s.io/leases/ kube-system -",
        "update coordination.k8s.io/leases/ kube-system kube-scheduler",
        "get coordination.k8s.io/leases/ kube-system kube-scheduler",
        "watch /persistentvolumeclaims/ ns claim-p2",
        "watch /persistentvolumes/ - pv2",
        "patch /persistentvolumes/ - pv2",
        "list /persistentvolumes/ - -",
        "list /events/ ns -",
        "update /namespaces/ - ns",
        "get networking.k8s.io/ingresses/ ns i",
    ] {
        assert!(matches!(ask(&graph, refused, &none()), Decision::NoOpinion(_)), "{refused}");
    }
}

/// No rule without a name reads what may be secret, and none has `*`.
#[test]
fn rules_are_narrow() {
    for rule in UPSTREAM.iter().chain(EXTRA) {
        assert!(!rule.resources.iter().any(|r| r.starts_with("secrets")), "{rule:?}");
        assert!(!rule.resources.contains(&"configmaps") || !rule.names.is_empty(), "{rule:?}");
        assert!(!rule.verbs.contains(&"*") && !rule.resources.contains(&"*") && rule.group != "*", "{rule:?}");
        assert!(!rule.verbs.contains(&"deletecollection") && !rule.why.is_empty(), "{rule:?}");
    }
    let changes = |r: &&Rule| r.verbs.iter().any(|v| matches!(*v, "update" | "patch" | "delete"));
    assert!(EXTRA.iter().filter(changes).all(|r| !r.names.is_empty()), "what is changed is named");
}

#[test]
fn others_are_not_answered() {
    let graph = graph();
    let a = attributes("get /secrets/ ns secret-p1");
    let nodes = ["system:nodes".to_owned()];
    for (user, groups, why) in [
        ("system:node:n1", &[][..], ""),
        ("system:node:n1", &["system:masters".to_owned()], ""),
        ("n1", &nodes, ""),
        ("system:nodes:n1", &nodes, ""),
        ("system:node:", &nodes, "unknown node for user \"system:node:\""),
    ] {
        let found = graph.authorize(&Subject { user, groups }, &a, &none());
        assert_eq!(found, Decision::NoOpinion(why.to_owned()), "{user} {groups:?}");
    }
    let path = Attributes { verb: "get".into(), path: "/metrics".into(), ..Attributes::default() };
    let subject = Subject { user: "system:node:n1", groups: &nodes };
    assert_eq!(graph.authorize(&subject, &path, &none()), Decision::NoOpinion(String::new()));
    // A review may ask for anything.
    for text in ["* /secrets/ ns secret-p1", "get */secrets/ ns secret-p1", "get /*/ ns secret-p1", "* /*/ - -"] {
        assert!(matches!(graph.authorize(&subject, &attributes(text), &none()), Decision::NoOpinion(_)), "{text}");
    }
}
