//! Upstream's defaults and ours, user by request.

use super::*;

const NONE: &str = "";

fn facts<'a>(user: &'a str, groups: &'a [String], request: &'a str) -> Facts<'a> {
    // `verb path`, or `verb group/resource[:subresource] [namespace]`.
    let words: Vec<&str> = request.split(' ').collect();
    let verb = words[0];
    if words[1].starts_with('/') {
        return Facts { user, groups, verb, path: words[1], ..Facts::default() };
    }
    let (api_group, resource) = words[1].split_once('/').unwrap();
    let api_group = if api_group == "core" { NONE } else { api_group };
    let (resource, subresource) = resource.split_once(':').unwrap_or((resource, NONE));
    let namespace = words.get(2).copied().unwrap_or(NONE);
    Facts { user, groups, verb, api_group, resource, subresource, namespace, is_resource: true, ..Facts::default() }
}

#[test]
fn the_default_objects_classify_as_upstream_and_ours_beside() {
    let dispatcher = Dispatcher::new(600);
    let (node, sa) = (&["system:nodes"][..], &["system:serviceaccounts"][..]);
    let lease = "update coordination.k8s.io/leases kube-node-lease";
    let account = "system:serviceaccount:shop:web";
    for (user, groups, request, schema, level, distinguisher) in [
        ("kubernetes-admin", &["system:masters"][..], "delete core/pods a", "exempt", "exempt", ""),
        ("kubernetes-admin", &["system:masters"], "get /metrics", "exempt", "exempt", ""),
        ("anybody", &[], "get /healthz", "probes", "exempt", ""),
        ("anybody", &[], "get /readyz/ping", "probes", "exempt", ""),
        ("anybody", &[], "post /healthz", "global-default", "global-default", "anybody"),
        ("anybody", &[], "get /version", "global-default", "global-default", "anybody"),
        (
            "system:kube-scheduler",
            &[],
            "update coordination.k8s.io/leases kube-system",
            "system-leader-election",
            "leader-election",
            "system:kube-scheduler",
        ),
        (
            "system:kube-controller-manager",
            &[],
            "get coordination.k8s.io/leases kube-system",
            "system-leader-election",
            "leader-election",
            "system:kube-controller-manager",
        ),
        (
            "system:kube-controller-manager",
            &[],
            "list coordination.k8s.io/leases",
            "kube-controller-manager",
            "workload-high",
            "",
        ),
        (
            "system:serviceaccount:kube-system:x",
            sa,
            "update coordination.k8s.io/leases a",
            "system-leader-election",
            "leader-election",
            "system:serviceaccount:kube-system:x",
        ),
        ("system:node:n1", node, lease, "system-node-high", "node-high", "system:node:n1"),
        ("system:node:n1", node, "get core/nodes", "system-node-high", "node-high", "system:node:n1"),
        ("system:node:n1", node, "patch core/nodes:status", "system-node-high", "node-high", "system:node:n1"),
        ("system:node:n1", node, "patch core/pods:status a", "system-nodes", "system", "system:node:n1"),
        ("system:node:n1", node, "create core/nodes:proxy", "system-nodes", "system", "system:node:n1"),
        ("system:node:n1", node, "get core/secrets a", "system-nodes", "system", "system:node:n1"),
        ("system:node:n1", node, "get /openapi/v3", "system-nodes", "system", "system:node:n1"),
        ("system:kube-controller-manager", &[], "create core/pods a", "kube-controller-manager", "workload-high", "a"),
        ("system:kube-scheduler", &[], "create core/pods:binding b", "kube-scheduler", "workload-high", "b"),
        (
            "system:serviceaccount:kube-system:coredns",
            sa,
            "list core/endpoints",
            "kube-system-service-accounts",
            "workload-high",
            "",
        ),
        (
            "system:serviceaccount:kube-system2:x",
            sa,
            "list core/pods a",
            "service-accounts",
            "workload-low",
            "system:serviceaccount:kube-system2:x",
        ),
        (account, sa, "list core/pods shop", "service-accounts", "workload-low", account),
        (account, sa, lease, "service-accounts", "workload-low", account),
        ("alice", &[], "list core/pods shop", "global-default", "global-default", "alice"),
        // Names are not enough for a group's rights.
        ("system:node:n1", &[], lease, "global-default", "global-default", "system:node:n1"),
        (
            "system:causeway:controllers",
            &[],
            "list core/pods",
            "causeway-components",
            "workload-high",
            "system:causeway:controllers",
        ),
        (
            "system:causeway:ingress",
            &[],
            "get core/secrets a",
            "causeway-components",
            "workload-high",
            "system:causeway:ingress",
        ),
        (
            "system:causeway:dns",
            &[],
            "watch core/services",
            "causeway-components",
            "workload-high",
            "system:causeway:dns",
        ),
        ("system:apiserver", &[], "get core/nodes", "causeway-components", "workload-high", "system:apiserver"),
        (
            "system:causeway:node",
            &[],
            "watch core/services",
            "causeway-node-components",
            "node-high",
            "system:causeway:node",
        ),
        ("system:causeway:announce", &[], lease, "causeway-node-components", "node-high", "system:causeway:announce"),
        (
            "system:causeway:network-policy",
            &[],
            "list core/pods",
            "causeway-node-components",
            "node-high",
            "system:causeway:network-policy",
        ),
        ("system:kube-proxy", &[], "watch core/services", "causeway-node-components", "node-high", "system:kube-proxy"),
    ] {
        let mut all: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        all.push("system:authenticated".to_owned());
        let class = dispatcher.classify(&facts(user, &all, request));
        let got = (&*class.flow.schema, &*class.flow.level, &*class.distinguisher);
        assert_eq!(got, (schema, level, distinguisher), "{user}: {request}");
    }
    let anonymous = ["system:unauthenticated".to_owned()];
    let class = dispatcher.classify(&facts("system:anonymous", &anonymous, "list core/pods"));
    assert_eq!(&*class.flow.schema, "global-default");
    // No group at all: nothing matches, and the last takes it.
    assert_eq!(&*dispatcher.classify(&facts("x", &[], "list core/pods")).flow.schema, "catch-all");
}

#[test]
fn the_default_levels_have_upstreams_seats() {
    let snapshot = Dispatcher::new(600).snapshot();
    // Shares sum up to 245: ceil(600 * shares / 245), and that less what is lent.
    for (name, nominal, lower) in [
        ("catch-all", 13, 13),
        ("exempt", 0, 0),
        ("global-default", 49, 24),
        ("leader-election", 25, 25),
        ("node-high", 98, 73),
        ("system", 74, 50),
        ("workload-high", 98, 49),
        ("workload-low", 245, 24),
    ] {
        let l = level(&snapshot, name);
        assert_eq!((l.nominal, l.lower), (nominal, lower), "{name}");
    }
    assert_eq!(snapshot.levels.len(), 8);
}
