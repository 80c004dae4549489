//! What may be handed on, and aggregation.

use super::*;
use crate::rbac::escalation::{self, Refusal, Verdict, Write, check};

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
        Verdict::Only { permission: Box::new(escalate.clone()), refusal: refusal.clone() }
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
    assert_eq!(found, Verdict::Only { permission: Box::new(permission), refusal });
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
