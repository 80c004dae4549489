use super::escalation::{Refusal, Verdict, Write, check};
use super::*;
use crate::{Attributes, Decision, Subject};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn rule(verbs: &[&str], groups: &[&str], resources: &[&str]) -> Value {
    json!({ "verbs": verbs, "apiGroups": groups, "resources": resources })
}

fn role(namespace: &str, name: &str, rules: &[Value]) -> Value {
    json!({ "metadata": { "namespace": namespace, "name": name }, "rules": rules })
}

/// `Kind:name`, for a service account `ServiceAccount:namespace/name`.
fn subject(text: &str) -> Value {
    let (kind, name) = text.split_once(':').unwrap();
    match name.split_once('/') {
        Some((namespace, name)) if kind == "ServiceAccount" => {
            json!({ "kind": kind, "name": name, "namespace": namespace })
        }
        None if kind == "ServiceAccount" => json!({ "kind": kind, "name": name }),
        _ => json!({ "kind": kind, "name": name, "apiGroup": GROUP }),
    }
}

fn binding(namespace: &str, name: &str, role: &str, subjects: &[&str]) -> Value {
    let (kind, role) = role.split_once(':').unwrap();
    let subjects: Vec<Value> = subjects.iter().map(|text| subject(text)).collect();
    json!({
        "metadata": { "namespace": namespace, "name": name },
        "roleRef": { "apiGroup": GROUP, "kind": kind, "name": role },
        "subjects": subjects,
    })
}

fn index(objects: &[(&str, Value)]) -> Index {
    let mut index = Index::default();
    for (resource, object) in objects {
        assert!(index.upsert(resource, object), "{resource} {object}");
    }
    index
}

fn ask(index: &Index, user: &str, groups: &[&str], a: &Attributes) -> Decision {
    let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
    index.authorize(Subject { user, groups: &groups }, a)
}

fn attributes(verb: &str, namespace: &str, group: &str, resource: &str, name: &str) -> Attributes {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let [verb, namespace, group, resource, subresource, name] =
        [verb, namespace, group, resource, subresource, name].map(str::to_owned);
    Attributes { verb, namespace, group, resource, subresource, name, ..Attributes::default() }
}

fn path(verb: &str, path: &str) -> Attributes {
    Attributes { verb: verb.to_owned(), path: path.to_owned(), ..Attributes::default() }
}

fn allowed(decision: &Decision) -> bool {
    matches!(decision, Decision::Allow(_))
}

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

#[test]
fn what_is_not_held_is_not_covered() {
    let urls = |urls: &[&str]| json!({ "verbs": ["get"], "nonResourceURLs": urls });
    let named =
        |names: &[&str]| json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": names });
    let star = rule(&["*"], &["*"], &["*"]);
    for (held, wanted, expected) in [
        (vec![star.clone()], star.clone(), &[][..]),
        (vec![star.clone()], urls(&["/x"]), &[r#"{NonResourceURLs:["/x"], Verbs:["get"]}"#]),
        (vec![urls(&["/x*"])], urls(&["/x", "/xy", "/x/*"]), &[]),
        (vec![urls(&["/x/*"])], urls(&["*"]), &[r#"{NonResourceURLs:["*"], Verbs:["get"]}"#]),
        (vec![rule(&["get", "list"], &[""], &["pods"])], rule(&["get"], &[""], &["pods"]), &[]),
        (
            vec![rule(&["get"], &[""], &["pods"])],
            rule(&["get", "list", "watch"], &[""], &["pods"]),
            &[r#"{APIGroups:[""], Resources:["pods"], Verbs:["list" "watch"]}"#],
        ),
        // Put together from several rules.
        (
            vec![rule(&["get"], &[""], &["a", "b"]), rule(&["list"], &[""], &["a"]), rule(&["list"], &["*"], &["b"])],
            rule(&["get", "list"], &[""], &["a", "b"]),
            &[],
        ),
        (
            vec![rule(&["get"], &[""], &["pods"])],
            rule(&["get"], &[""], &["*"]),
            &[r#"{APIGroups:[""], Resources:["*"], Verbs:["get"]}"#],
        ),
        (
            vec![rule(&["get"], &[""], &["pods"])],
            rule(&["*"], &[""], &["pods"]),
            &[r#"{APIGroups:[""], Resources:["pods"], Verbs:["*"]}"#],
        ),
        (
            vec![rule(&["get"], &[""], &["pods"])],
            rule(&["get"], &[""], &["pods/exec"]),
            &[r#"{APIGroups:[""], Resources:["pods/exec"], Verbs:["get"]}"#],
        ),
        (vec![rule(&["get"], &[""], &["*/scale"])], rule(&["get"], &[""], &["x/scale"]), &[]),
        (vec![rule(&["get"], &[""], &["pods"])], named(&["a"]), &[]),
        (vec![named(&["a", "b"])], named(&["a"]), &[]),
        (
            vec![named(&["a"])],
            named(&["a", "b"]),
            &[r#"{APIGroups:[""], Resources:["pods"], ResourceNames:["b"], Verbs:["get"]}"#],
        ),
        (
            vec![named(&["a"])],
            rule(&["get"], &[""], &["pods"]),
            &[r#"{APIGroups:[""], Resources:["pods"], Verbs:["get"]}"#],
        ),
        (vec![], rule(&[], &["*"], &["*"]), &[]),
        // What cannot be read could be anything.
        (vec![star], json!({ "verbs": "*" }), &[r#"{NonResourceURLs:["*"], Verbs:["*"]}"#]),
    ] {
        let index = index(&[
            ("clusterroles", role("", "r", &held)),
            ("clusterrolebindings", binding("", "b", "ClusterRole:r", &["User:u"])),
        ]);
        let missing = index.uncovered(Subject { user: "u", groups: &[] }, "", std::slice::from_ref(&wanted));
        let missing: Vec<String> = missing.iter().map(Rule::compact).collect();
        assert_eq!(missing, expected, "{held:?} covers {wanted}");
    }
}

#[test]
fn a_rule_that_breaks_down_into_millions_is_no_work() {
    let words: Vec<String> = (0..1000).map(|i| format!("w{i}")).collect();
    let huge = json!({ "verbs": words, "apiGroups": words, "resources": words, "resourceNames": words });
    let index = index(&[
        ("clusterroles", role("", "r", &[rule(&["*"], &["*"], &["pods"])])),
        ("clusterrolebindings", binding("", "b", "ClusterRole:r", &["User:u"])),
    ]);
    let start = Instant::now();
    let missing = index.uncovered(Subject { user: "u", groups: &[] }, "", std::slice::from_ref(&huge));
    assert_eq!(missing.len(), 1, "as a whole");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

fn writers() -> Index {
    index(&[
        ("clusterroles", role("", "reader", &[rule(&["get"], &[""], &["pods"])])),
        ("clusterroles", role("", "writer", &[rule(&["update"], &[""], &["pods"])])),
        (
            "clusterroles",
            role("", "root", &[rule(&["*"], &["*"], &["*"]), json!({ "verbs": ["*"], "nonResourceURLs": ["*"] })]),
        ),
        ("roles", role("ns", "local", &[rule(&["get"], &[""], &["pods"])])),
        ("rolebindings", binding("ns", "b", "ClusterRole:reader", &["User:u"])),
        ("clusterrolebindings", binding("", "root", "ClusterRole:root", &["User:root"])),
    ])
}

#[test]
fn nobody_gives_more_than_they_have() {
    let index = writers();
    let groups = ["g".to_owned()];
    let u = Subject { user: "u", groups: &groups };
    let (get, update) = (rule(&["get"], &[""], &["pods"]), rule(&["update"], &[""], &["pods"]));
    let write = |resource, namespace, name, new: &Value, old: Option<&Value>| {
        check(&index, u, Write { resource, namespace, name, new, old })
    };
    let message = "user \"u\" (groups=[\"g\"]) is attempting to grant RBAC permissions not currently held:\n\
                   {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"update\"]}";
    assert_eq!(write("roles", "ns", "", &role("ns", "x", std::slice::from_ref(&get)), None), Verdict::Fine);
    assert_eq!(write("roles", "ns", "", &role("ns", "x", &[]), None), Verdict::Fine);
    let more = role("ns", "x", &[get.clone(), update.clone()]);
    let escalate = attributes("escalate", "ns", GROUP, "roles", "x");
    let refusal = Refusal::Forbidden(message.to_owned());
    assert_eq!(
        write("roles", "ns", "x", &more, None),
        Verdict::Only { permission: escalate, refusal: refusal.clone() }
    );
    // Elsewhere nothing is held.
    assert_ne!(write("roles", "other", "", &role("other", "x", std::slice::from_ref(&get)), None), Verdict::Fine);
    // Whoever may only look after the object may leave as it is what they could not write.
    let mut kept = more.clone();
    kept["metadata"]["finalizers"] = json!(["x"]);
    assert_eq!(write("roles", "ns", "x", &kept, Some(&more)), Verdict::Fine);
    kept["rules"][0]["verbs"] = json!(["*"]);
    assert_ne!(write("roles", "ns", "x", &kept, Some(&more)), Verdict::Fine);
    let unreadable = json!({ "metadata": { "name": "x" }, "rules": "all" });
    assert_ne!(write("roles", "ns", "x", &unreadable, None), Verdict::Fine);

    for (name, expected) in [("ClusterRole:reader", true), ("Role:local", true), ("ClusterRole:writer", false)] {
        let found = write("rolebindings", "ns", "", &binding("ns", "x", name, &["User:v"]), None);
        assert_eq!(found == Verdict::Fine, expected, "{name}: {found:?}");
    }
    let permission = attributes("bind", "ns", GROUP, "clusterroles", "writer");
    let found = write("rolebindings", "ns", "x", &binding("ns", "x", "ClusterRole:writer", &["User:v"]), None);
    assert_eq!(found, Verdict::Only { permission, refusal });
    let lost = write("rolebindings", "ns", "x", &binding("ns", "x", "Role:gone", &["User:v"]), None);
    let text = r#"role.rbac.authorization.k8s.io "gone" not found"#;
    assert!(matches!(lost, Verdict::Only { refusal: Refusal::NotFound(t), .. } if t == text));
    let nothing = json!({ "metadata": { "name": "x" } });
    assert!(matches!(write("clusterrolebindings", "", "x", &nothing, None), Verdict::No(Refusal::NotFound(_))));
    assert_ne!(
        write("clusterrolebindings", "", "x", &binding("", "x", "ClusterRole:reader", &["User:v"]), None),
        Verdict::Fine,
        "what is held in one namespace is not held everywhere"
    );
}

#[test]
fn aggregation_is_for_those_who_hold_everything() {
    let index = writers();
    let mut new = role("", "x", &[]);
    new["aggregationRule"] = json!({ "clusterRoleSelectors": [{ "matchLabels": { "a": "b" } }] });
    let old = role("", "x", &[]);
    for (user, expected) in [("u", false), ("root", true)] {
        for (new, old) in [(&new, None), (&new, Some(&old)), (&old, Some(&new))] {
            let write = Write { resource: "clusterroles", namespace: "", name: "x", new, old };
            let found = check(&index, Subject { user, groups: &[] }, write);
            assert_eq!(found == Verdict::Fine, expected, "{user}: {found:?}");
        }
    }
}

#[test]
fn messages_are_bounded_and_forge_no_line() {
    let rules: Vec<Rule> =
        (0..1000).map(|i| Rule::parse(&rule(&["get"], &[""], &[&format!("r{i}")])).unwrap()).collect();
    let groups = ["g\nuser \"root\"".to_owned()];
    let text = escalation::message(Subject { user: "u\"\r\u{1b}[0m\u{202e}", groups: &groups }, &rules, "");
    assert_eq!(text.lines().count(), 202);
    assert!(text.ends_with("\nand 800 more"));
    assert!(text.starts_with("user \"u\\\"\\r\\x1b[0m\\u202e\" (groups=[\"g\\nuser \\\"root\\\"\"]) is"), "{text}");
}

#[test]
fn aggregated_roles_are_the_sum_of_what_they_select() {
    let labelled = |name: &str, labels: Value, rules: &[Value]| {
        let mut role = role("", name, rules);
        role["metadata"]["labels"] = labels;
        role
    };
    let [a, b, c] = ["a", "b", "c"].map(|resource| rule(&["get"], &[""], &[resource]));
    let roles = [
        labelled("r2", json!({ "x": "1" }), &[b.clone(), a.clone()]),
        labelled("r1", json!({ "x": "1", "y": "2" }), std::slice::from_ref(&a)),
        labelled("r3", json!({ "z": "3" }), std::slice::from_ref(&c)),
        labelled("sum", json!({ "x": "1" }), &[rule(&["*"], &["*"], &["*"])]),
    ];
    for (selectors, expected) in [
        (json!([{ "matchLabels": { "x": "1" } }]), vec![&a, &b]),
        (json!([{ "matchLabels": { "z": "3" } }, { "matchLabels": { "x": "1" } }]), vec![&c, &a, &b]),
        (json!([{ "matchLabels": { "x": "1", "y": "2" } }]), vec![&a]),
        (json!([{ "matchLabels": { "x": "2" } }]), vec![]),
        (json!([{}]), vec![&a, &b, &c]),
        (json!([{ "matchExpressions": [{ "key": "x", "operator": "In", "values": ["0", "1"] }] }]), vec![&a, &b]),
        (json!([{ "matchExpressions": [{ "key": "x", "operator": "NotIn", "values": ["1"] }] }]), vec![&c]),
        (json!([{ "matchExpressions": [{ "key": "y", "operator": "Exists" }] }]), vec![&a]),
        (
            json!([{ "matchLabels": { "x": "1" }, "matchExpressions": [{ "key": "y", "operator": "DoesNotExist" }] }]),
            vec![&b, &a],
        ),
    ] {
        let mut sum = role("", "sum", &[c.clone(), c.clone()]);
        sum["aggregationRule"] = json!({ "clusterRoleSelectors": selectors });
        let found = aggregate(&roles, &sum).unwrap().unwrap();
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{selectors}");
        sum["rules"] = found.into();
        assert_eq!(aggregate(&roles, &sum), Ok(None), "{selectors}");
    }
    assert_eq!(aggregate(&roles, &roles[0]), Ok(None), "no aggregated role");
    for wrong in [
        json!([{ "matchExpressions": [{ "key": "x", "operator": "Near", "values": ["1"] }] }]),
        json!([{ "matchExpressions": [{ "key": "x", "operator": "In" }] }]),
        json!([{ "matchExpressions": [{ "key": "x", "operator": "Exists", "values": ["1"] }] }]),
        json!([{ "matchName": "x" }]),
        json!(["x"]),
    ] {
        let mut sum = role("", "sum", &[]);
        sum["aggregationRule"] = json!({ "clusterRoleSelectors": wrong });
        assert!(aggregate(&roles, &sum).is_err(), "{wrong}");
    }
}

/// The time of a decision, the best of several rounds.
fn cost(index: &Index, a: &Attributes) -> Duration {
    let groups: Vec<String> = ["system:authenticated", "devs"].map(str::to_owned).into();
    let me = Subject { user: "me", groups: &groups };
    let round = || {
        let start = Instant::now();
        for _ in 0..2000 {
            std::hint::black_box(index.authorize(me, std::hint::black_box(a)));
        }
        start.elapsed() / 2000
    };
    (0..7).map(|_| round()).min().unwrap()
}

#[test]
fn bindings_of_others_cost_nothing() {
    let of = |others: usize| {
        let mut index = bootstrap::tests::cluster();
        index.upsert("rolebindings", &binding("ns", "mine", "ClusterRole:edit", &["User:me"]));
        for i in 0..others {
            index.upsert(
                "clusterrolebindings",
                &binding("", &format!("c{i}"), "ClusterRole:view", &[&format!("User:u{i}")]),
            );
            index.upsert(
                "rolebindings",
                &binding("ns", &format!("r{i}"), "ClusterRole:admin", &[&format!("Group:g{i}")]),
            );
        }
        index
    };
    let (few, many) = (of(10), of(10_000));
    for a in [attributes("update", "ns", "", "secrets", "s"), attributes("get", "ns", "example.com", "nothing", "x")] {
        let (few, many) = (cost(&few, &a), cost(&many, &a));
        println!("{} {}: {few:?} beside 10 bindings, {many:?} beside 10,000", a.verb, a.resource);
        assert!(many < few * 3, "{few:?} beside 10 bindings, {many:?} beside 10,000");
    }
    let mut index = many;
    let start = Instant::now();
    for i in 0..1000 {
        let snapshot = index.clone();
        index.upsert("clusterrolebindings", &binding("", &format!("c{i}"), "ClusterRole:view", &["User:me"]));
        std::hint::black_box(snapshot);
    }
    let each = start.elapsed() / 1000;
    println!("a change among 20,000 bindings, with a snapshot: {each:?}");
    assert!(each < Duration::from_millis(1), "{each:?}");
}
