//! Matching, reading, and what the standard policy may never say.

use super::*;
use crate::auditor::User;
use std::collections::BTreeMap;

static NO_EXTRA: BTreeMap<String, Vec<String>> = BTreeMap::new();

fn facts<'a>(verb: &'a str, path: &'a str, resource: Option<Resource<'a>>) -> RequestFacts<'a> {
    RequestFacts {
        audit_id: "",
        uri: path,
        path,
        verb,
        user: None,
        source_ips: &[],
        user_agent: "",
        resource,
        received: jiff::Timestamp::UNIX_EPOCH,
        long_running: false,
    }
}

/// `group/resource/subresource`, the last may be missing.
fn resource(text: &str) -> Resource<'_> {
    let mut parts = text.split('/');
    let mut next = || parts.next().unwrap_or_default();
    Resource { group: next(), version: "v1", resource: next(), subresource: next(), ..Resource::default() }
}

fn policy(rules: &str) -> Policy {
    Policy::parse(format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n{rules}").as_bytes()).unwrap()
}

#[test]
fn resources_match_as_upstream_has_it() {
    let cases = [
        ("", "pods", "/pods", true),
        ("", "pods", "/pods/log", false),
        ("", "pods/log", "/pods/log", true),
        ("", "pods/log", "/pods", false),
        ("", "pods", "apps/pods", false),
        ("", "*", "/pods/log", true),
        ("", "*", "apps/deployments", false),
        ("apps", "*/scale", "apps/deployments/scale", true),
        ("apps", "*/scale", "apps/deployments", false),
        ("apps", "*/scale", "apps/deployments/status", false),
        ("", "pods/*", "/pods/exec", true),
        ("", "pods/*", "/pods", true),
        ("", "pods/*", "/podtemplates", false),
        ("", "*/*", "/pods/exec", false),
        ("", "*/", "/pods", false),
        ("", "pods/", "/pods", false),
    ];
    for (group, pattern, asked, expected) in cases {
        let policy =
            policy(&format!("- level: Metadata\n  resources: [{{group: {group:?}, resources: [{pattern:?}]}}]"));
        let decided = policy.decide(&facts("get", "/", Some(resource(asked)))).level;
        assert_eq!(decided == Level::Metadata, expected, "{group:?} {pattern:?} {asked:?}");
    }
}

#[test]
fn the_first_rule_that_matches_in_every_respect_decides() {
    let policy = policy(
        r#"
- {level: None, users: [alice], verbs: [get]}
- {level: Request, userGroups: [dev, ops], namespaces: [shop], omitStages: [Panic], omitManagedFields: true}
- {level: RequestResponse, resources: [{group: "", resources: [secrets], resourceNames: [tls]}]}
- {level: Metadata, resources: [{group: batch}]}
- {level: Request, namespaces: [""]}
- {level: Metadata, nonResourceURLs: [/healthz*, /version]}
"#,
    );
    let groups = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    let (dev, other) = (groups(&["a", "dev"]), groups(&["devs"]));
    let core = |resource, namespace, name| Resource { version: "v1", resource, namespace, name, ..Resource::default() };
    let cases = [
        ("alice", &dev, "get", Some(core("pods", "shop", "")), "", Level::None),
        ("alice", &dev, "list", Some(core("pods", "shop", "")), "", Level::Request),
        ("bob", &dev, "get", Some(core("pods", "shop", "")), "", Level::Request),
        ("bob", &other, "get", Some(core("pods", "shop", "")), "", Level::None),
        ("bob", &other, "get", Some(core("secrets", "shop", "tls")), "", Level::RequestResponse),
        ("bob", &other, "list", Some(core("secrets", "shop", "")), "", Level::None),
        ("bob", &other, "get", Some(core("secrets/x", "shop", "tls")), "", Level::None),
        ("bob", &other, "get", Some(Resource { group: "batch", ..core("jobs", "shop", "") }), "", Level::Metadata),
        ("bob", &dev, "get", Some(core("nodes", "", "n")), "", Level::Request),
        ("bob", &dev, "get", None, "/healthz/etcd", Level::Metadata),
        ("bob", &dev, "get", None, "/version", Level::Metadata),
        ("bob", &dev, "get", None, "/version/", Level::None),
        ("bob", &dev, "get", None, "/health", Level::None),
    ];
    for (name, groups, verb, resource, path, level) in cases {
        let user = User { name, uid: "", groups, extra: &NO_EXTRA };
        let decided = policy.decide(&RequestFacts { user: Some(user), ..facts(verb, path, resource) });
        assert_eq!(decided.level, level, "{name} {verb} {resource:?} {path}");
        let from_second = level == Level::Request && groups == &dev && resource.is_some_and(|r| r.namespace == "shop");
        assert_eq!(decided.omit_managed_fields, from_second);
        assert_eq!(decided.omit_stages.contains(Stage::Panic), from_second);
    }
    let nobody = policy.decide(&facts("get", "/", Some(core("pods", "shop", ""))));
    assert_eq!(nobody.level, Level::None, "rules about users do not match where there is none");
}

#[test]
fn a_rules_managed_fields_override_and_stages_add_up() {
    let policy = Policy::parse(
        br#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "metadata": {"name": "x"}, "omitManagedFields": true,
        "omitStages": ["RequestReceived"], "rules": [
        {"level": "Request", "verbs": ["get"], "omitManagedFields": false, "omitStages": ["ResponseStarted"]},
        {"level": "Metadata"}]}"#,
    )
    .unwrap();
    let (first, second) = (policy.decide(&facts("get", "/", None)), policy.decide(&facts("put", "/", None)));
    assert!(!first.omit_managed_fields && second.omit_managed_fields);
    let stages = |d: Decision| Stage::ALL.map(|s| d.omit_stages.contains(s));
    assert_eq!((stages(first), stages(second)), ([true, true, false, false], [true, false, false, false]));
    assert_eq!(policy.highest_level(), Level::Request);
    assert!(policy.omits(Stage::RequestReceived) && !policy.omits(Stage::ResponseStarted));
}

#[test]
fn refuses_with_upstreams_words() {
    let urls = "rules cannot apply to both regular resources and non-resource URLs";
    let cases = [
        ("- {users: [a]}", "rules[0].level: Required value".to_owned()),
        (
            "- {level: All}",
            r#"rules[0].level: Unsupported value: "All": supported values: "None", "Metadata", "Request", "RequestResponse""#
                .to_owned(),
        ),
        (
            "- {level: None}\n- {level: None, nonResourceURLs: [healthz]}",
            r#"rules[1].nonResourceURLs[0]: Invalid value: "healthz": non-resource URL rules must begin with a '/' character"#
                .to_owned(),
        ),
        (
            "- {level: None, nonResourceURLs: ['/a*b', '*']}",
            r#"rules[0].nonResourceURLs[0]: Invalid value: "/a*b": non-resource URL wildcards '*' must be the final character of the rule"#
                .to_owned(),
        ),
        (
            "- {level: None, nonResourceURLs: [/a], namespaces: [b]}",
            format!(r#"rules[0].nonResourceURLs: Invalid value: ["/a"]: {urls}"#),
        ),
        (
            "- {level: None, resources: [{resourceNames: [a]}]}",
            r#"rules[0].resources.resourceNames: Invalid value: ["a"]: using resourceNames requires at least one resource"#
                .to_owned(),
        ),
        (
            "- {level: x, omitStages: [Done]}",
            r#"[rules[0].level: Unsupported value: "x": supported values: "None", "Metadata", "Request", "RequestResponse", rules[0].omitStages[0]: Invalid value: "Done": allowed stages are RequestReceived,ResponseStarted,ResponseComplete,Panic]"#
                .to_owned(),
        ),
        ("  []", "loaded illegal policy with 0 rules".to_owned()),
    ];
    for (rules, expected) in cases {
        let text = format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n{rules}");
        assert_eq!(Policy::parse(text.as_bytes()).unwrap_err().to_string(), expected, "{rules}");
    }
    let group = "- {level: None, resources: [{group: rbac.authorization.k8s.io/v1}]}";
    let error = Policy::parse(format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n{group}").as_bytes());
    let error = error.unwrap_err().to_string();
    assert!(
        error.starts_with(r#"rules[0].resources.group: Invalid value: "rbac.authorization.k8s.io/v1": a lowercase"#),
        "{error}"
    );
}

#[test]
fn refuses_what_is_no_policy() {
    let head = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";
    let many = "- {level: None}\n".repeat(1001);
    let wide = format!("- {{level: None, users: [{}]}}", "a,".repeat(20_001));
    let cases = [
        ("rules: [{level: None}]".to_owned(), "unknown group version field , Kind= in policy"),
        (
            "apiVersion: audit.k8s.io/v1beta1\nkind: Policy\nrules: []".to_owned(),
            "unknown group version field audit.k8s.io/v1beta1, Kind=Policy in policy",
        ),
        (
            "apiVersion: audit.k8s.io/v1\nkind: Event\nrules: []".to_owned(),
            "unknown group version field audit.k8s.io/v1, Kind=Event in policy",
        ),
        (format!("{head}rules: [{{level: None, user: [a]}}]"), "unknown field `user`"),
        (format!("{head}rule: []"), "unknown field `rule`"),
        (format!("{head}rules: [{{level: None, resources: [{{groups: a}}]}}]"), "unknown field `groups`"),
        (format!("{head}rules: [{{level: None, level: None}}]"), "duplicate entry"),
        (format!("{head}rules: [{{level: None, users: [1]}}]"), "invalid type"),
        (format!("{head}rules:\n{many}"), "the number of rules is 1001"),
        (format!("{head}rules:\n{wide}"), "the number of rules' entries is 20001"),
        (format!("{head}#{}", "x".repeat(1 << 20)), "the size in bytes"),
        (head.to_owned(), "loaded illegal policy with 0 rules"),
        ("".to_owned(), "unknown group version field"),
        (format!("{head}rules: [{{level: None}}]\n---\n{head}"), "failed decoding"),
    ];
    for (text, expected) in cases {
        let error = Policy::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(error.len() < 4096);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.yaml");
    assert!(matches!(Policy::from_file(&path), Err(PolicyError::Read { .. })));
    std::fs::write(&path, head).unwrap();
    let error = Policy::from_file(&path).unwrap_err().to_string();
    assert_eq!(error, format!("loaded illegal policy with 0 rules: from file {}", path.display()));
    std::fs::write(&path, format!("{head}rules: [{{level: Metadata}}]")).unwrap();
    assert_eq!(Policy::from_file(&path).unwrap(), policy("- level: Metadata"));
}

#[test]
fn the_standard_policy_records_writes_and_what_is_confidential() {
    let standard = Policy::standard();
    assert_eq!(standard.highest_level(), Level::Metadata, "bodies are never written");
    assert!(standard.omits(Stage::RequestReceived));
    let system = |group: &str| vec!["system:authenticated".to_owned(), group.to_owned()];
    let (nobody, node) = (system("x"), system("system:nodes"));
    let cases = [
        (&nobody, "get", "/secrets", true),
        (&nobody, "list", "/secrets", true),
        (&nobody, "watch", "/configmaps", true),
        (&nobody, "create", "authentication.k8s.io/tokenreviews", true),
        (&nobody, "create", "/serviceaccounts/token", true),
        (&nobody, "get", "/pods/exec", true),
        (&nobody, "get", "/pods/log", true),
        (&nobody, "get", "/nodes/proxy", true),
        (&nobody, "get", "/pods", false),
        (&nobody, "list", "apps/deployments", false),
        (&nobody, "watch", "discovery.k8s.io/endpointslices", false),
        (&nobody, "patch", "apps/deployments", true),
        (&nobody, "deletecollection", "/pods", true),
        (&nobody, "create", "rbac.authorization.k8s.io/clusterrolebindings", true),
        (&nobody, "create", "/events", false),
        (&nobody, "patch", "events.k8s.io/events", false),
        (&nobody, "update", "coordination.k8s.io/leases", true),
        (&node, "update", "coordination.k8s.io/leases", false),
        (&node, "get", "/secrets", true),
        (&node, "patch", "/nodes/status", true),
    ];
    for (groups, verb, asked, recorded) in cases {
        let user = User { name: "u", uid: "", groups, extra: &NO_EXTRA };
        let decided = standard.decide(&RequestFacts { user: Some(user), ..facts(verb, "/x", Some(resource(asked))) });
        assert_eq!(decided.level == Level::Metadata, recorded, "{groups:?} {verb} {asked}");
    }
    for (verb, path, recorded) in [
        ("get", "/healthz", false),
        ("get", "/readyz/etcd", false),
        ("get", "/apis/apps/v1", false),
        ("post", "/api", true),
        ("get", "/logs/", true),
        ("post", "/x", true),
    ] {
        assert_eq!(standard.decide(&facts(verb, path, None)).level == Level::Metadata, recorded, "{verb} {path}");
    }
}
