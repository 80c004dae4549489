//! Requests that tests share, and which of them webhooks and policies are for.

use super::*;
use serde_json::{Value, json};
use std::sync::Arc;

/// A change to a deployment in namespace `shop`.
pub(crate) fn facts() -> Facts {
    Facts {
        resource: Gvr::new("apps", "v1", "deployments"),
        kind: Gvk::new("apps", "v1", "Deployment"),
        subresource: String::new(),
        requested: None,
        equivalents: Vec::new(),
        convert: None,
        default: None,
        name: "web".to_owned(),
        namespace: "shop".to_owned(),
        operation: Operation::Create,
        user: User { username: "alice".to_owned(), groups: vec!["dev".to_owned()], ..User::default() },
        dry_run: false,
        options: Value::Null,
        namespace_object: Some(Arc::new(json!({"metadata": {"name": "shop", "labels": {"env": "prod"}}}))),
    }
}

pub(crate) fn deployment() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment",
           "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}}, "spec": {"replicas": 3}})
}

fn rule(groups: &[&str], versions: &[&str], resources: &[&str], operations: &[&str], scope: &str) -> Value {
    json!({"apiGroups": groups, "apiVersions": versions, "resources": resources, "operations": operations, "scope": scope})
}

#[test]
fn rules_name_resources() {
    let all = ["*"];
    let table = [
        (rule(&["apps"], &["v1"], &["deployments"], &["CREATE"], "*"), "", true),
        (rule(&all, &all, &["*"], &["*"], "*"), "", true),
        (rule(&all, &all, &["*"], &["*"], "*"), "status", false),
        (rule(&all, &all, &["*/*"], &["*"], "*"), "status", true),
        (rule(&all, &all, &["*/*"], &["*"], "*"), "", true),
        (rule(&all, &all, &["deployments/*"], &["*"], "*"), "scale", true),
        (rule(&all, &all, &["deployments/status"], &["*"], "*"), "scale", false),
        (rule(&all, &all, &["*/scale"], &["*"], "*"), "scale", true),
        (rule(&[""], &all, &all, &["*"], "*"), "", false),
        (rule(&["apps"], &["v1beta1"], &all, &["*"], "*"), "", false),
        (rule(&["apps"], &all, &all, &["UPDATE", "DELETE"], "*"), "", false),
        (rule(&["apps"], &all, &all, &["*"], "Namespaced"), "", true),
        (rule(&["apps"], &all, &all, &["*"], "Cluster"), "", false),
        (rule(&[], &all, &all, &["*"], "*"), "", false),
    ];
    for (rule, subresource, wanted) in table {
        let matcher = Matcher::of_webhook(&json!({"rules": [rule]})).unwrap();
        let facts = Facts { subresource: subresource.to_owned(), ..facts() };
        assert_eq!(matcher.resource(&facts).is_some(), wanted, "{rule} {subresource}");
        assert!(matcher.mentions("apps", "deployments") || !wanted, "{rule}: the index must find what matches");
    }
}

#[test]
fn a_namespace_is_cluster_wide() {
    let mut facts = facts();
    facts.resource = Gvr::new("", "v1", "namespaces");
    facts.name = "shop".to_owned();
    let of = |scope: &str| {
        let rule = rule(&["*"], &["*"], &["*"], &["*"], scope);
        Matcher::of_webhook(&json!({"rules": [rule], "namespaceSelector": {"matchLabels": {"env": "prod"}}})).unwrap()
    };
    assert!(of("Cluster").resource(&facts).is_some() && of("Namespaced").resource(&facts).is_none());
    let object = |env: &str| json!({"metadata": {"name": "shop", "labels": {"env": env}}});
    assert_eq!(of("*").selects(&facts, &object("prod"), &Value::Null), Ok(true));
    assert_eq!(of("*").selects(&facts, &object("test"), &object("prod")), Ok(false), "its own new labels count");
    assert_eq!(of("*").selects(&facts, &Value::Null, &object("prod")), Ok(true), "on deletion the old ones");
}

#[test]
fn equivalent_versions() {
    let mut facts = facts();
    facts.equivalents = vec![Equivalent {
        resource: Gvr::new("apps", "v1beta1", "deployments"),
        kind: Gvk::new("apps", "v1beta1", "Deployment"),
    }];
    let matcher = |policy: &str, versions: &[&str]| {
        let rule = rule(&["apps"], versions, &["deployments"], &["*"], "*");
        Matcher::of_webhook(&json!({"rules": [rule], "matchPolicy": policy})).unwrap()
    };
    let version = |m: Matcher| m.resource(&facts).map(|e| e.kind.version);
    assert_eq!(version(matcher("Equivalent", &["v1beta1"])).as_deref(), Some("v1beta1"));
    assert_eq!(version(matcher("Equivalent", &["v1beta1", "v1"])).as_deref(), Some("v1"), "its own version first");
    assert_eq!(version(matcher("Exact", &["v1beta1"])), None);
    let exclude = json!({"resourceRules": [rule(&["*"], &["*"], &["*"], &["*"], "*")],
                         "excludeResourceRules": [rule(&["apps"], &["v1beta1"], &["*"], &["*"], "*")]});
    assert_eq!(Matcher::of_policy(&exclude, false).unwrap().resource(&facts), None, "excluded as an equivalent");

    let converted = facts.converted(&deployment(), &facts.equivalents[0].kind).unwrap();
    assert_eq!(converted["apiVersion"], "apps/v1beta1");
    assert!(facts.converted(&deployment(), &Gvk::new("other.io", "v1", "Deployment")).is_err());
    assert!(facts.converted(&deployment(), &Gvk::new("apps", "v1", "StatefulSet")).is_err());
}

#[test]
fn selectors() {
    let facts = facts();
    let labels = |labels: Value| json!({"metadata": {"labels": labels}});
    let table = [
        (json!({}), Value::Null, true),
        (json!({"objectSelector": {"matchLabels": {"app": "web"}}}), labels(json!({"app": "web"})), true),
        (json!({"objectSelector": {"matchLabels": {"app": "web"}}}), labels(json!({"app": "db"})), false),
        (json!({"objectSelector": {"matchLabels": {"app": "web"}}}), Value::Null, false),
        (json!({"namespaceSelector": {"matchLabels": {"env": "prod"}}}), Value::Null, true),
        (
            json!({"namespaceSelector": {"matchExpressions": [{"key": "env", "operator": "NotIn", "values": ["prod"]}]}}),
            Value::Null,
            false,
        ),
        (
            json!({"objectSelector": {"matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}]}}),
            labels(json!({})),
            true,
        ),
        (
            json!({"objectSelector": {"matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}]}}),
            labels(json!({"skip": "1"})),
            false,
        ),
        (
            json!({"objectSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}}),
            labels(json!({"app": ""})),
            true,
        ),
    ];
    for (hook, object, wanted) in table {
        let matcher = Matcher::of_webhook(&hook).unwrap();
        assert_eq!(matcher.selects(&facts, &object, &Value::Null), Ok(wanted), "{hook} {object}");
    }
    let by_old = Matcher::of_webhook(&json!({"objectSelector": {"matchLabels": {"app": "web"}}})).unwrap();
    assert_eq!(by_old.selects(&facts, &labels(json!({})), &labels(json!({"app": "web"}))), Ok(true));
    let by_namespace = Matcher::of_webhook(&json!({"namespaceSelector": {"matchLabels": {"env": "prod"}}})).unwrap();
    let unknown = Facts { namespace_object: None, ..facts.clone() };
    assert_eq!(by_namespace.selects(&unknown, &Value::Null, &Value::Null).unwrap_err().code, 404);
    let cluster = Facts { namespace: String::new(), namespace_object: None, ..facts };
    assert_eq!(by_namespace.selects(&cluster, &Value::Null, &Value::Null), Ok(true));
    assert!(
        Matcher::of_webhook(&json!({"objectSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}))
            .is_err()
    );
}

#[test]
fn admission_is_not_asked_about_itself() {
    for resource in ["validatingwebhookconfigurations", "mutatingwebhookconfigurations", "validatingadmissionpolicies"]
    {
        let facts = Facts { resource: Gvr::new("admissionregistration.k8s.io", "v1", resource), ..facts() };
        assert!(is_exempt(&facts), "{resource}");
    }
    assert!(!is_exempt(&facts()));
}

#[test]
fn outcomes_are_bounded() {
    let mut outcome = Outcome::default();
    for i in 0..1000 {
        outcome.warn(&format!("{i} {}", "ä".repeat(2000)));
        outcome.annotate(format!("k{i}"), &"ö".repeat(20_000));
    }
    outcome.warn("a\r\nb");
    assert!(outcome.warnings.len() <= 64 && outcome.warnings.iter().all(|w| w.len() <= 1024));
    assert!(outcome.audit.len() <= 256 && outcome.audit.iter().all(|(_, v)| v.len() <= MAX_ANNOTATION));
    let mut other = Outcome::default();
    other.warn("a\r\nb");
    assert_eq!(other.warnings, ["a  b"]);
}
