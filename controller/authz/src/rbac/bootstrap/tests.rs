//! The default roles, compared with those that Kubernetes publishes.

use super::*;
use crate::rbac::{Index, aggregate};
use crate::{Attributes, Decision, Subject};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// Made by `tests/data/digest.py` out of what Kubernetes publishes.
const PUBLISHED: &str = include_str!("../../../tests/data/kubernetes-1.35.txt");

fn texts<'a>(object: &'a Value, pointer: &str) -> Vec<&'a str> {
    let list = object.pointer(pointer).and_then(Value::as_array);
    list.into_iter().flatten().map(|item| item.as_str().unwrap()).collect()
}

fn permissions(rule: &Value) -> Vec<String> {
    let mut out = Vec::new();
    for verb in texts(rule, "/verbs") {
        for group in texts(rule, "/apiGroups") {
            for resource in texts(rule, "/resources") {
                let mut names = texts(rule, "/resourceNames");
                if names.is_empty() {
                    names.push("-");
                }
                out.extend(names.iter().map(|name| format!("allow {verb} {group}/{resource} {name}")));
            }
        }
        out.extend(texts(rule, "/nonResourceURLs").iter().map(|url| format!("allow {verb} {url}")));
    }
    out
}

fn facts(object: &Value) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for field in ["labels", "annotations"] {
        for (key, value) in object["metadata"][field].as_object().unwrap() {
            out.insert(format!("{field} {key}={}", value.as_str().unwrap()));
        }
    }
    for selector in
        object.pointer("/aggregationRule/clusterRoleSelectors").and_then(Value::as_array).into_iter().flatten()
    {
        let labels = selector["matchLabels"].as_object().unwrap();
        let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap())).collect();
        out.insert(format!("select {}", labels.join(",")));
    }
    out.extend(object["rules"].as_array().into_iter().flatten().flat_map(permissions));
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    if let Some(role) = object.get("roleRef") {
        out.insert(format!("role {} {} {}", text(&role["apiGroup"]), text(&role["kind"]), text(&role["name"])));
    }
    for s in object["subjects"].as_array().into_iter().flatten() {
        let [group, kind, namespace, name] = ["apiGroup", "kind", "namespace", "name"].map(|field| text(&s[field]));
        out.insert(format!("subject {group} {kind} {namespace} {name}"));
    }
    out
}

fn digest(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |value, byte| (value ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn id(resource: &str, object: &Value) -> String {
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("-");
    format!("{resource} {namespace} {}", object["metadata"]["name"].as_str().unwrap())
}

#[test]
fn every_table_can_be_read() {
    for text in TABLES.iter().chain([&causeway::TABLE]) {
        assert!(!table::parse(text).unwrap().is_empty());
    }
    for wrong in [
        "rule",
        "  get core: pods",
        "role x\n  get core pods",
        "role x\n  get core:",
        "role x\n  get core: pods @",
        "role x with y",
        "bound x",
        "bind x = Nobody:y",
        "bind x = ServiceAccount:y",
    ] {
        assert!(table::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn the_defaults_are_those_that_kubernetes_publishes() {
    let mut ours = BTreeMap::new();
    for (resource, object) in objects() {
        let facts: Vec<String> = facts(&object).into_iter().collect();
        let line = format!("{} {:016x}", facts.len(), digest(&facts.join("\n")));
        assert!(ours.insert(id(resource, &object), line).is_none(), "{object} comes twice");
    }
    let published = PUBLISHED.lines().map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        (words[..3].join(" "), words[3..].join(" "))
    });
    let published: BTreeMap<String, String> = published.collect();
    assert_eq!(published.len(), 131);
    for (id, line) in &published {
        assert_eq!(ours.get(id), Some(line), "{id}");
    }
    assert_eq!(ours.len(), published.len());
}

#[test]
fn names_are_unique_and_no_binding_lacks_its_role() {
    let all: Vec<_> = objects().into_iter().chain(components()).collect();
    let ids: BTreeSet<String> = all.iter().map(|(resource, object)| id(resource, object)).collect();
    assert_eq!(ids.len(), all.len());
    for (resource, object) in all.iter().filter(|(resource, _)| resource.ends_with("bindings")) {
        let role = &object["roleRef"];
        let (namespace, plural) = match role["kind"].as_str().unwrap() {
            "Role" => (object["metadata"]["namespace"].as_str().unwrap(), "roles"),
            _ => ("-", "clusterroles"),
        };
        let role = format!("{plural} {namespace} {}", role["name"].as_str().unwrap());
        assert!(ids.contains(&role), "{} wants {role}", id(resource, object));
    }
}

/// Everything in force, aggregated roles too.
pub(crate) fn cluster() -> Index {
    let mut all: Vec<_> = objects().into_iter().chain(components()).collect();
    // view is part of edit, and edit of admin.
    for _ in 0..3 {
        let roles: Vec<Value> = all.iter().filter(|(r, _)| *r == "clusterroles").map(|(_, o)| o.clone()).collect();
        for (_, role) in &mut all {
            if let Some(rules) = aggregate(&roles, role).unwrap() {
                role["rules"] = rules.into();
            }
        }
    }
    let mut index = Index::default();
    for (resource, object) in &all {
        assert!(index.upsert(resource, object), "{object}");
    }
    index
}

/// `verb [namespace/]group:resource[/sub][@name]` or `verb /path`.
fn asked(text: &str) -> Attributes {
    let (verb, what) = text.split_once(' ').unwrap();
    let mut a = Attributes { verb: verb.to_owned(), ..Attributes::default() };
    if what.starts_with('/') {
        return Attributes { path: what.to_owned(), ..a };
    }
    let (what, name) = what.split_once('@').unwrap_or((what, ""));
    let (place, full) = what.split_once(':').unwrap();
    let (namespace, group) = place.split_once('/').unwrap_or(("", place));
    let (resource, sub) = full.split_once('/').unwrap_or((full, ""));
    a.name = name.to_owned();
    [a.namespace, a.group, a.resource, a.subresource] = [namespace, group, resource, sub].map(str::to_owned);
    a
}

fn may(index: &Index, user: &str, groups: &[&str], text: &str) -> bool {
    let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
    matches!(index.authorize(Subject { user, groups: &groups }, &asked(text)), Decision::Allow(_))
}

#[test]
fn people_may_do_what_the_names_of_their_roles_say() {
    let mut index = cluster();
    for role in ["admin", "edit", "view"] {
        let binding = json!({
            "metadata": { "namespace": "ns", "name": role },
            "roleRef": { "apiGroup": crate::rbac::GROUP, "kind": "ClusterRole", "name": role },
            "subjects": [{ "apiGroup": crate::rbac::GROUP, "kind": "User", "name": role }],
        });
        assert!(index.upsert("rolebindings", &binding));
    }
    // What, and whether admin, edit and view may.
    for (text, expected) in [
        ("get ns/:pods", [true, true, true]),
        ("get ns/:pods/log", [true, true, true]),
        ("list ns/:secrets", [true, true, false]),
        ("create ns/:pods/exec", [true, true, false]),
        ("create ns/:pods/eviction", [true, true, false]),
        ("delete ns/apps:deployments", [true, true, false]),
        ("update ns/apps:deployments/scale", [true, true, false]),
        ("impersonate ns/:serviceaccounts", [true, true, false]),
        ("create ns/rbac.authorization.k8s.io:rolebindings", [true, false, false]),
        ("create ns/authorization.k8s.io:localsubjectaccessreviews", [true, false, false]),
        ("update ns/:resourcequotas", [false, false, false]),
        ("create ns/discovery.k8s.io:endpointslices", [false, false, false]),
        ("delete ns/:namespaces", [false, false, false]),
        ("get other/:pods", [false, false, false]),
        ("get :pods", [false, false, false]),
        ("get :nodes", [false, false, false]),
    ] {
        assert_eq!(["admin", "edit", "view"].map(|user| may(&index, user, &[], text)), expected, "{text}");
    }
}

#[test]
fn everybody_may_little() {
    let index = cluster();
    let (known, unknown) = (["system:authenticated"], ["system:unauthenticated"]);
    for (text, authenticated, anonymous) in [
        ("get /version", true, true),
        ("get /healthz", true, true),
        ("get /readyz", true, true),
        ("get /livez/etcd", false, false),
        ("get /api", true, false),
        ("get /apis/apps/v1", true, false),
        ("get /openapi/v3", true, false),
        ("post /apis", false, false),
        ("get /metrics", false, false),
        ("create authorization.k8s.io:selfsubjectaccessreviews", true, false),
        ("create authentication.k8s.io:selfsubjectreviews", true, false),
        ("create authorization.k8s.io:subjectaccessreviews", false, false),
        ("get kube-public/:configmaps@cluster-info", false, true),
        ("get kube-public/:configmaps@other", false, false),
        ("list kube-public/:configmaps", false, false),
    ] {
        assert_eq!(may(&index, "jane", &known, text), authenticated, "jane: {text}");
        assert_eq!(may(&index, "system:anonymous", &unknown, text), anonymous, "anonymous: {text}");
    }
    assert!(may(&index, "x", &["system:monitoring"], "get /metrics"));
    assert!(may(&index, "x", &["system:serviceaccounts"], "get /openid/v1/jwks"));
    assert!(may(&index, "x", &["system:bootstrappers"], "create certificates.k8s.io:certificatesigningrequests"));
    assert!(!may(&index, "x", &["system:bootstrappers"], "get :nodes"));
    assert!(may(&index, "x", &["system:nodes"], "get kube-system/:configmaps@causeway-config"));
    assert!(!may(&index, "system:node:n1", &["system:nodes"], "get :nodes"), "the node authoriser says that");
    let account = "system:serviceaccount:kube-system:clusterrole-aggregation-controller";
    assert!(may(&index, account, &[], "escalate rbac.authorization.k8s.io:clusterroles@admin"));
}

#[test]
fn components_have_what_they_use_and_no_more() {
    let index = cluster();
    for (user, yes, no) in [
        (
            "system:kube-scheduler",
            &[
                "create ns/:pods/binding@p",
                "patch ns/:persistentvolumeclaims@c",
                "patch ns/:pods/status@p",
                "create ns/:events",
                "patch ns/:events@e",
            ][..],
            &["create ns/apps:deployments", "list :secrets", "update kube-node-lease/coordination.k8s.io:leases@n1"][..],
        ),
        (
            "system:kube-controller-manager",
            &[
                "create ns/:pods",
                "delete ns/:pods@p",
                "patch ns/:pods/status@p",
                "list kube-system/:secrets",
                "deletecollection ns/example.com:things",
                "patch example.com:things@t",
                "update :namespaces/finalize@ns",
                "update ns/apps:replicasets/status@r",
                "patch certificates.k8s.io:certificatesigningrequests/approval@c",
                "approve certificates.k8s.io:signers@kubernetes.io/kubelet-serving",
                "patch kube-public/:configmaps@cluster-info",
                "create networking.k8s.io:ipaddresses",
                "create ns/:events",
                "get /apis",
            ],
            &[
                "approve certificates.k8s.io:signers@kubernetes.io/kube-apiserver-client",
                "sign certificates.k8s.io:signers@kubernetes.io/kube-apiserver-client",
                "escalate rbac.authorization.k8s.io:clusterroles@admin",
                "bind rbac.authorization.k8s.io:clusterroles@cluster-admin",
                "create rbac.authorization.k8s.io:clusterrolebindings",
                "create ns/:pods/exec@p",
                "impersonate :users@x",
                "get /metrics",
            ],
        ),
        (
            "system:apiserver",
            &["patch certificates.k8s.io:certificatesigningrequests/status@c", "create ns/:events"],
            &["list :secrets", "approve certificates.k8s.io:signers@kubernetes.io/kubelet-serving"],
        ),
        (
            "system:causeway:controllers",
            &["list :pods", "watch :configmaps", "list apps:replicasets"],
            &["list :secrets", "get ns/:pods/log@p", "create ns/:pods/exec@p", "delete ns/:pods@p"],
        ),
        (
            "system:causeway:node",
            &["list :services", "watch discovery.k8s.io:endpointslices", "list :namespaces"],
            &["get ns/:configmaps@c", "list :secrets", "patch ns/:pods@p"],
        ),
        (
            "system:kube-proxy",
            &["watch discovery.k8s.io:endpointslices", "watch networking.k8s.io:servicecidrs", "get :nodes@n"],
            &["get ns/:secrets@s", "list :configmaps"],
        ),
        (
            "system:causeway:dns",
            &[
                "watch kube-system/:configmaps@causeway-dns",
                "create kube-system/discovery.k8s.io:endpointslices@kube-dns-n1",
                "patch kube-system/discovery.k8s.io:endpointslices@kube-dns-n1",
            ],
            &["list kube-system/:configmaps", "patch ns/discovery.k8s.io:endpointslices@x"],
        ),
        (
            "system:causeway:ingress",
            &[
                "watch networking.k8s.io:ingresses",
                "watch gateway.networking.k8s.io:httproutes",
                "patch ns/gateway.networking.k8s.io:gateways/status@g",
                "patch ns/networking.k8s.io:ingresses/status@i",
                "create ns/:secrets",
                "get kube-system/:secrets@causeway-acme-account",
                "delete ns/:services@s",
                "get apiextensions.k8s.io:customresourcedefinitions@x",
            ],
            &[
                "list :secrets",
                "list ns/:secrets",
                "get ns/:secrets@s",
                "delete ns/:secrets@s",
                "patch ns/gateway.networking.k8s.io:gateways@g",
                "delete apiextensions.k8s.io:customresourcedefinitions@x",
            ],
        ),
        (
            "system:causeway:network-policy",
            &["watch :pods", "list networking.k8s.io:networkpolicies"],
            &["list :namespaces", "get ns/:secrets@s", "update ns/:pods@p"],
        ),
        (
            "system:causeway:announce",
            &[
                "update kube-system/coordination.k8s.io:leases@l",
                "delete kube-system/coordination.k8s.io:leases@l",
                "watch kube-system/coordination.k8s.io:leases@l",
            ],
            &["update kube-node-lease/coordination.k8s.io:leases@n1", "watch :nodes", "patch ns/:services/status@s"],
        ),
    ] {
        for text in yes {
            assert!(may(&index, user, &["system:authenticated"], text), "{user} may {text}");
        }
        for text in no {
            assert!(!may(&index, user, &["system:authenticated"], text), "{user} may not {text}");
        }
    }
}

fn role() -> Value {
    let of = |(resource, object): &(&str, Value)| {
        *resource == "clusterroles" && object["metadata"]["name"] == "system:auth-delegator"
    };
    objects().into_iter().find(of).unwrap().1
}

#[test]
fn what_a_role_lacks_comes_back_and_what_was_added_stays() {
    let expected = role();
    assert_eq!(reconcile(&expected, &expected), None);
    let mut existing = expected.clone();
    existing["metadata"]["resourceVersion"] = "7".into();
    existing["metadata"]["labels"] = json!({ "mine": "x" });
    existing["rules"] = json!([
        { "verbs": ["get"], "apiGroups": [""], "resources": ["pods"] },
        { "verbs": ["*"], "apiGroups": ["authentication.k8s.io"], "resources": ["*"] },
    ]);
    existing["aggregationRule"] = json!({ "clusterRoleSelectors": [{}] });
    let Some(Change::Update(new)) = reconcile(&expected, &existing) else { panic!() };
    assert_eq!(new["metadata"]["resourceVersion"], "7");
    assert_eq!(new["metadata"]["labels"], json!({ "mine": "x", LABEL: "rbac-defaults" }));
    let missing =
        json!({ "verbs": ["create"], "apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"] });
    assert_eq!(new["rules"], json!([existing["rules"][0], existing["rules"][1], missing]));
    assert_eq!(new.get("aggregationRule"), None, "it would gather what anybody labels");
    assert_eq!(reconcile(&expected, &new), None, "once is enough");
    existing["metadata"]["annotations"][AUTOUPDATE] = "false".into();
    assert_eq!(reconcile(&expected, &existing), None);
}

#[test]
fn aggregated_roles_keep_their_rules_and_get_their_selector() {
    let expected = objects().into_iter().find(|(_, o)| o["metadata"]["name"] == "admin").unwrap().1;
    let mut existing = expected.clone();
    existing["rules"] = json!([{ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"] }]);
    assert_eq!(reconcile(&expected, &existing), None);
    existing["aggregationRule"]["clusterRoleSelectors"] = json!([{ "matchLabels": { "a": "b" } }]);
    let Some(Change::Update(new)) = reconcile(&expected, &existing) else { panic!() };
    assert_eq!(new["rules"], existing["rules"]);
    assert_eq!(new["aggregationRule"]["clusterRoleSelectors"].as_array().unwrap().len(), 2);
    existing.as_object_mut().unwrap().shift_remove("aggregationRule");
    let Some(Change::Update(new)) = reconcile(&expected, &existing) else { panic!() };
    assert_eq!(new["aggregationRule"], expected["aggregationRule"]);
}

#[test]
fn what_a_binding_lacks_comes_back_but_never_on_another_role() {
    let expected =
        objects().into_iter().find(|(r, o)| *r == "clusterrolebindings" && o["metadata"]["name"] == "cluster-admin");
    let expected = expected.unwrap().1;
    let mut existing = expected.clone();
    // As it may be stored: without the default of the group.
    existing["roleRef"].as_object_mut().unwrap().shift_remove("apiGroup");
    existing["subjects"] = json!([{ "kind": "User", "name": "jane" }]);
    let Some(Change::Update(new)) = reconcile(&expected, &existing) else { panic!() };
    assert_eq!(new["subjects"], json!([existing["subjects"][0], expected["subjects"][0]]));
    assert_eq!(reconcile(&expected, &new), None);
    existing["roleRef"]["name"] = "view".into();
    existing["metadata"]["uid"] = "u".into();
    assert_eq!(reconcile(&expected, &existing), Some(Change::Recreate(expected.clone())));
    existing["metadata"]["annotations"][AUTOUPDATE] = "false".into();
    assert_eq!(reconcile(&expected, &existing), None, "whoever protects it keeps it");
}
