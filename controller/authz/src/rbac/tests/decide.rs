//! Who may do what, and why.

use super::*;

#[test]
fn rules_allow_what_they_name() {
    let with_names = json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a", "b"] });
    let many: Vec<String> = (0..100).map(|i| format!("name-{i}")).collect();
    let with_many = json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": many });
    let two = rule(&["get", "list"], &["", "apps"], &["pods", "deployments"]);
    for (rule, verb, group, resource, name, expected) in [
        (&rule(&["*"], &["apps"], &["deployments"]), "anything", "apps", "deployments", "", true),
        (&rule(&["*"], &["apps"], &["deployments"]), "get", "", "deployments", "", false),
        (&rule(&["*"], &["apps"], &["deployments"]), "get", "apps", "deployments/scale", "", false),
        (&rule(&["get"], &["*"], &["x"]), "get", "any", "x", "", true),
        (&rule(&["get"], &["g"], &["*"]), "get", "g", "x/y", "n", true),
        (&rule(&["get"], &["g"], &["*"]), "list", "g", "x", "", false),
        (&rule(&["get"], &["g"], &["*/scale"]), "get", "g", "x/scale", "", true),
        (&rule(&["get"], &["g"], &["*/scale"]), "get", "g", "x", "", false),
        (&rule(&["get"], &["g"], &["*/scale"]), "get", "g", "x/status", "", false),
        (&rule(&["get"], &["g"], &["x/status"]), "get", "g", "x/status", "", true),
        (&rule(&["get"], &["g"], &["x/status"]), "get", "g", "x", "", false),
        (&rule(&["get"], &["g"], &["x/*"]), "get", "g", "x/status", "", false),
        (&two, "list", "apps", "pods", "", true),
        (&two, "list", "batch", "pods", "", false),
        (&with_names, "get", "", "pods", "b", true),
        (&with_names, "get", "", "pods", "c", false),
        (&with_names, "get", "", "pods", "", false),
        (&with_many, "get", "", "pods", "name-42", true),
        (&with_many, "get", "", "pods", "name-100", false),
        (&rule(&[], &["*"], &["*"]), "get", "", "pods", "", false),
        (&rule(&["*"], &[], &["*"]), "get", "", "pods", "", false),
        (&rule(&["*"], &["*"], &[]), "get", "", "pods", "", false),
        (&json!({ "verbs": ["*"], "nonResourceURLs": ["*"] }), "get", "", "pods", "", false),
        // What cannot be read allows nothing, also where the rest of it would allow more.
        (
            &json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": "a" }),
            "get",
            "",
            "pods",
            "b",
            false,
        ),
        (&json!({ "verbs": "*", "apiGroups": ["*"], "resources": ["*"] }), "get", "", "pods", "", false),
        (&json!({ "verbs": ["*", 1], "apiGroups": ["*"], "resources": ["*"] }), "get", "", "pods", "", false),
    ] {
        let index = index(&[
            ("clusterroles", role("", "r", std::slice::from_ref(rule))),
            ("clusterrolebindings", binding("", "b", "ClusterRole:r", &["User:u"])),
        ]);
        let found = allowed(&ask(&index, "u", &[], &attributes(verb, "ns", group, resource, name)));
        assert_eq!(found, expected, "{rule}: {verb} {group} {resource} {name}");
    }
}

#[test]
fn paths_are_allowed_by_cluster_role_bindings_only() {
    let rules = [json!({ "verbs": ["get"], "nonResourceURLs": ["/apis", "/healthz/*", "/x**"] })];
    let index = index(&[
        ("clusterroles", role("", "r", &rules)),
        ("clusterroles", role("", "all", &[json!({ "verbs": ["*"], "nonResourceURLs": ["*"] })])),
        ("clusterrolebindings", binding("", "b", "ClusterRole:r", &["User:u"])),
        ("clusterrolebindings", binding("", "all", "ClusterRole:all", &["User:all"])),
        ("rolebindings", binding("ns", "b", "ClusterRole:r", &["User:local"])),
    ]);
    for (verb, url, expected) in [
        ("get", "/apis", true),
        ("post", "/apis", false),
        ("get", "/apis/", false),
        ("get", "/apis/apps", false),
        ("get", "/healthz", false),
        ("get", "/healthz/", true),
        ("get", "/healthz/a/b", true),
        ("get", "/xyz", true),
    ] {
        assert_eq!(allowed(&ask(&index, "u", &[], &path(verb, url))), expected, "{verb} {url}");
        let local = Attributes { namespace: "ns".to_owned(), ..path(verb, url) };
        assert!(!allowed(&ask(&index, "local", &[], &local)), "{verb} {url}");
        assert!(allowed(&ask(&index, "all", &[], &path(verb, url))), "{verb} {url}");
    }
    // A review without a resource asks for all of them.
    assert!(!allowed(&ask(&index, "all", &[], &attributes("get", "", "", "", ""))));
}

#[test]
fn subjects_are_who_they_say() {
    let account = "system:serviceaccount:ns:bot";
    for (namespace, subject, user, groups, expected) in [
        ("", subject("User:u"), "u", &[][..], true),
        ("", subject("User:u"), "v", &["u"], false),
        ("", subject("Group:g"), "v", &["f", "g"], true),
        ("", subject("Group:g"), "g", &[], false),
        ("", subject("ServiceAccount:ns/bot"), account, &[], true),
        ("", subject("ServiceAccount:other/bot"), account, &[], false),
        ("", subject("ServiceAccount:bot"), account, &[], false),
        ("ns", subject("ServiceAccount:bot"), account, &[], true),
        ("other", subject("ServiceAccount:bot"), account, &[], false),
        ("other", subject("ServiceAccount:ns/bot"), account, &[], true),
        ("", subject("ServiceAccount:ns/bot"), "bot", &[], false),
        ("", subject("User:system:serviceaccount:ns:bot"), account, &[], true),
        ("", json!({ "kind": "User", "name": "u" }), "u", &[], true),
        ("", json!({ "kind": "User", "name": "u", "apiGroup": "example.com" }), "u", &[], false),
        ("", json!({ "kind": "Group", "name": "g", "apiGroup": "v1" }), "u", &["g"], false),
        (
            "",
            json!({ "kind": "ServiceAccount", "name": "bot", "namespace": "ns", "apiGroup": GROUP }),
            account,
            &[],
            false,
        ),
        (
            "",
            json!({ "kind": "ServiceAccount", "name": "b:bot", "namespace": "ns" }),
            "system:serviceaccount:ns:b:bot",
            &[],
            false,
        ),
        (
            "",
            json!({ "kind": "ServiceAccount", "name": "bot", "namespace": "ns:b" }),
            "system:serviceaccount:ns:b:bot",
            &[],
            false,
        ),
        ("", json!({ "kind": "Robot", "name": "u" }), "u", &[], false),
        ("", json!({ "kind": "User", "name": "" }), "", &[], false),
        ("", json!({ "name": "u" }), "u", &["u"], false),
    ] {
        let mut b = binding(namespace, "b", "ClusterRole:r", &[]);
        b["subjects"] = json!([subject]);
        let resource = if namespace.is_empty() { "clusterrolebindings" } else { "rolebindings" };
        let index = index(&[("clusterroles", role("", "r", &[rule(&["get"], &[""], &["pods"])])), (resource, b)]);
        let place = if namespace.is_empty() { "any" } else { namespace };
        let found = allowed(&ask(&index, user, groups, &attributes("get", place, "", "pods", "")));
        assert_eq!(found, expected, "{subject} in {namespace:?} is {user} {groups:?}");
    }
}

#[test]
fn namespaces_are_kept_apart() {
    let get = [rule(&["get"], &[""], &["pods"])];
    let index = index(&[
        ("clusterroles", role("", "c", &get)),
        ("roles", role("a", "r", &get)),
        ("rolebindings", binding("a", "b1", "Role:r", &["User:u"])),
        ("rolebindings", binding("b", "b2", "Role:r", &["User:u"])),
        ("rolebindings", binding("c", "b3", "ClusterRole:c", &["User:u"])),
        ("clusterrolebindings", binding("", "b4", "Role:r", &["User:u"])),
    ]);
    for (namespace, expected) in [("a", true), ("b", false), ("c", true), ("d", false), ("", false)] {
        let found = ask(&index, "u", &[], &attributes("get", namespace, "", "pods", "p"));
        assert_eq!(allowed(&found), expected, "{namespace:?}: {found:?}");
    }
}

#[test]
fn reasons_are_those_of_kubernetes() {
    let get = [rule(&["get"], &[""], &["pods"])];
    let index = index(&[
        ("clusterroles", role("", "r", &get)),
        ("roles", role("ns", "local", &get)),
        ("clusterrolebindings", binding("", "all", "ClusterRole:r", &["Group:g", "User:u", "User:v"])),
        ("rolebindings", binding("ns", "one", "Role:local", &["ServiceAccount:bot"])),
        ("rolebindings", binding("ns", "lost", "ClusterRole:gone", &["User:w"])),
        ("rolebindings", binding("ns", "lost2", "Role:gone\n", &["User:w", "Group:h"])),
    ]);
    let get = attributes("get", "ns", "", "pods", "p");
    let allow = |text: &str| Decision::Allow(format!("RBAC: allowed by {text}"));
    for (user, groups, expected) in [
        ("v", &[][..], allow(r#"ClusterRoleBinding "all" of ClusterRole "r" to User "v""#)),
        ("u", &["g"], allow(r#"ClusterRoleBinding "all" of ClusterRole "r" to Group "g""#)),
        (
            "system:serviceaccount:ns:bot",
            &[],
            allow(r#"RoleBinding "one/ns" of Role "local" to ServiceAccount "bot/ns""#),
        ),
        ("x", &[], Decision::NoOpinion(String::new())),
        ("x", &["h"], Decision::NoOpinion(r#"RBAC: role.rbac.authorization.k8s.io "gone\n" not found"#.to_owned())),
        (
            "w",
            &["h"],
            Decision::NoOpinion(
                "RBAC: [clusterrole.rbac.authorization.k8s.io \"gone\" not found, \
                 role.rbac.authorization.k8s.io \"gone\\n\" not found]"
                    .to_owned(),
            ),
        ),
    ] {
        assert_eq!(ask(&index, user, groups, &get), expected, "{user} {groups:?}");
    }
    let mut many = Index::default();
    for i in 0..100 {
        many.upsert(
            "clusterrolebindings",
            &binding("", &format!("b{i}"), &format!("ClusterRole:gone-{i}"), &["User:u"]),
        );
    }
    let Decision::NoOpinion(reason) = ask(&many, "u", &[], &get) else { panic!() };
    assert!(reason.ends_with(", and 92 more]"), "{reason}");
}

#[test]
fn changes_take_effect_and_snapshots_do_not_change() {
    let get = attributes("get", "ns", "", "pods", "p");
    let is = |index: &Index, user: &str| allowed(&ask(index, user, &[], &get));
    let mut index = Index::default();
    assert!(index.upsert("clusterrolebindings", &binding("", "b", "ClusterRole:r", &["User:u", "User:v"])));
    assert!(!is(&index, "u"));
    index.upsert("clusterroles", &role("", "r", &[rule(&["get"], &[""], &["pods"])]));
    assert!(is(&index, "u") && is(&index, "v"));
    let snapshot = index.clone();
    index.upsert("clusterrolebindings", &binding("", "b", "ClusterRole:r", &["User:v", "User:w"]));
    assert!(!is(&index, "u") && is(&index, "v") && is(&index, "w"));
    index.upsert("clusterroles", &role("", "r", &[rule(&["list"], &[""], &["pods"])]));
    assert!(!is(&index, "v"));
    assert!(is(&snapshot, "u") && is(&snapshot, "v") && !is(&snapshot, "w"));
    for resource in ["roles", "rolebindings", "clusterroles", "clusterrolebindings", "pods"] {
        index.remove(resource, "", "b");
        index.remove(resource, "ns", "never there");
    }
    index.upsert("roles", &role("ns", "r", &[rule(&["get"], &[""], &["pods"])]));
    index.upsert("rolebindings", &binding("ns", "b", "Role:r", &["User:u", "User:u"]));
    assert!(is(&index, "u"));
    index.remove("rolebindings", "ns", "b");
    assert!(!is(&index, "u"));
    index.upsert("rolebindings", &binding("ns", "b", "Role:r", &["User:u"]));
    index.remove("roles", "ns", "r");
    assert!(!is(&index, "u"));
    for (resource, object) in [
        ("pods", role("", "r", &[])),
        ("roles", role("", "r", &[])),
        ("clusterroles", role("ns", "r", &[])),
        ("clusterroles", json!({})),
        ("rolebindings", json!([])),
    ] {
        assert!(!index.upsert(resource, &object), "{resource} {object}");
    }
}

#[test]
fn the_rules_of_a_caller() {
    let both = json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "nonResourceURLs": ["/x"] });
    let named = json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"] });
    let index = index(&[
        ("clusterroles", role("", "r", &[both])),
        ("roles", role("ns", "l", std::slice::from_ref(&named))),
        ("clusterrolebindings", binding("", "b", "ClusterRole:r", &["User:u", "Group:g"])),
        ("clusterrolebindings", binding("", "c", "ClusterRole:gone", &["User:u"])),
        ("rolebindings", binding("ns", "b", "Role:l", &["User:u"])),
    ]);
    let groups = ["g".to_owned()];
    let u = Subject { user: "u", groups: &groups };
    let found = index.rules_for(u, "ns");
    let pods = rule(&["get"], &[""], &["pods"]);
    assert_eq!(found.resource, [pods.clone(), named.clone()], "each binding once");
    assert_eq!(found.non_resource, [json!({ "verbs": ["get"], "nonResourceURLs": ["/x"] })]);
    assert_eq!(found.error, r#"clusterrole.rbac.authorization.k8s.io "gone" not found"#);
    assert_eq!(index.rules_for(u, "other").resource, [pods]);
    let local = json!({ "kind": "Role", "name": "l" });
    assert_eq!(index.rules_of(&local, "ns"), Ok(vec![named]));
    assert!(index.rules_of(&local, "").is_err());
    let wrong = json!({ "kind": "Thing", "name": "l" });
    assert_eq!(index.rules_of(&wrong, "ns"), Err("unsupported role reference kind: \"Thing\"".to_owned()));
}
