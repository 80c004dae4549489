//! Decisions on pods, workloads and namespaces.

use super::*;
use crate::pod_security::Version;
use serde_json::json;

fn facts<'a>(group: &'a str, resource: &'a str, operation: Operation) -> Facts<'a> {
    Facts { user: "u", namespace: "n", group, resource, subresource: "", operation }
}

fn plugin() -> PodSecurity {
    let exemptions = Exemptions {
        usernames: vec!["root".into()],
        runtime_classes: vec!["vm".into()],
        namespaces: vec!["free".into()],
    };
    PodSecurity::new(Policy::default(), exemptions)
}

fn labels(pairs: &[(&str, &str)]) -> Value {
    pairs.iter().map(|(k, v)| (annotation(k), json!(v))).collect::<serde_json::Map<_, _>>().into()
}

fn note(outcome: &Outcome, key: &str) -> Option<String> {
    outcome.audit.iter().find(|(k, _)| *k == annotation(key)).map(|(_, v)| v.clone())
}

const CREATE: Operation = Operation::Create;
const UPDATE: Operation = Operation::Update;

fn host_pod() -> Value {
    json!({"metadata": {"name": "p"}, "spec": {"hostPID": true, "containers": [{"name": "a", "image": "x"}]}})
}

#[test]
fn policies_from_labels() {
    let level = |level, version| LevelVersion { level, version };
    let privileged = LevelVersion::PRIVILEGED;
    let baseline = level(Level::Baseline, Version::Latest);
    for (pairs, enforce, audit, warn, errors) in [
        (&[][..], privileged, privileged, privileged, 0),
        (&[("enforce", "baseline")], baseline, privileged, baseline, 0),
        (
            &[("enforce", "baseline"), ("enforce-version", "v1.20"), ("warn-version", "v1.30")],
            level(Level::Baseline, Version::V1(20)),
            privileged,
            level(Level::Baseline, Version::V1(30)),
            0,
        ),
        (&[("enforce", "baseline"), ("warn", "privileged")], baseline, privileged, privileged, 0),
        (&[("enforce", "nonsense")], level(Level::Restricted, Version::Latest), privileged, privileged, 1),
        (
            &[("enforce", "baseline"), ("enforce-version", "v2.0"), ("audit", "x"), ("warn", "")],
            baseline,
            privileged,
            privileged,
            3,
        ),
        (
            &[("audit", "restricted"), ("audit-version", "v1.5")],
            privileged,
            level(Level::Restricted, Version::V1(5)),
            privileged,
            0,
        ),
    ] {
        let (policy, found) = Policy::from_labels(&labels(pairs), Policy::default());
        assert_eq!(
            (policy.enforce, policy.audit, policy.warn, found.len()),
            (enforce, audit, warn, errors),
            "{pairs:?}"
        );
    }
    for bad in ["", "v1", "1.1", "v1.", "v1.01", "v1.+1", "v1.-1", "v1.1 ", "v1.99999999999999999999", "LATEST"] {
        assert!(Version::parse(bad).is_err(), "{bad:?}");
    }
    assert_eq!(Version::parse("v1.10000"), Ok(Version::V1(10_000)));
}

#[test]
fn pods_are_enforced() {
    let ns = labels(&[("enforce", "baseline"), ("audit", "restricted")]);
    let outcome = plugin().decide(Some(&ns), &facts("", "pods", CREATE), &host_pod(), None);
    let why = "violates PodSecurity \"baseline:latest\": host namespaces (hostPID=true)";
    assert_eq!(outcome.denied, Some(Denial::Forbidden(why.into())));
    assert!(outcome.warnings.is_empty(), "no warning beside an error");
    assert_eq!(note(&outcome, "enforce-policy").as_deref(), Some("baseline:latest"));
    let audit = note(&outcome, "audit-violations").unwrap();
    assert!(
        audit.starts_with("would violate PodSecurity \"restricted:latest\": host namespaces (hostPID=true), allowPri")
    );

    let free = plugin().decide(Some(&json!({})), &facts("", "pods", CREATE), &host_pod(), None);
    assert_eq!((&free.denied, note(&free, "enforce-policy").as_deref()), (&None, Some("privileged:latest")));
    let lost = plugin().decide(None, &facts("", "pods", CREATE), &host_pod(), None);
    assert_eq!(lost.denied, Some(Denial::Internal("failed to lookup namespace \"n\"".into())));
}

#[test]
fn labels_that_make_no_sense_enforce_the_most() {
    let ns = labels(&[("enforce", "basline")]);
    let pod = json!({"spec": {"containers": [{"name": "a"}]}});
    let outcome = plugin().decide(Some(&ns), &facts("", "pods", CREATE), &pod, None);
    assert!(outcome.denied.unwrap().to_string().starts_with("violates PodSecurity \"restricted:latest\": "));
    let error = outcome.audit.iter().find(|(k, _)| k.ends_with("/error")).unwrap();
    let want = "Failed to parse policy: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"basline\": \
                must be one of privileged, baseline, restricted";
    assert_eq!(error.1, want);
}

#[test]
fn exemptions() {
    let ns = labels(&[("enforce", "restricted")]);
    let create = facts("", "pods", CREATE);
    let vm = json!({"spec": {"hostPID": true, "runtimeClassName": "vm"}});
    for (facts, pod, why) in [
        (Facts { user: "root", ..create }, host_pod(), "user"),
        (Facts { namespace: "free", ..create }, host_pod(), "namespace"),
        (create, vm, "runtimeClass"),
    ] {
        let outcome = plugin().decide(Some(&ns), &facts, &pod, None);
        assert_eq!((&outcome.denied, note(&outcome, "exempt").as_deref()), (&None, Some(why)));
    }
    assert!(plugin().decide(Some(&ns), &create, &host_pod(), None).denied.is_some());
}

#[test]
fn updates_and_subresources_of_pods() {
    let ns = labels(&[("enforce", "baseline")]);
    let old = host_pod();
    let changed = |path: &str, value: Value| {
        let mut new = old.clone();
        *new.pointer_mut(path).unwrap() = value;
        new
    };
    let mut ephemeral = old.clone();
    ephemeral["spec"]["ephemeralContainers"] = json!([{"name": "d", "image": "y"}]);
    let mut labelled = old.clone();
    labelled["metadata"]["labels"] = json!({"a": "b"});
    for (new, subresource, refused) in [
        (labelled, "", false),
        (changed("/spec/containers/0/image", json!("y")), "", true),
        (changed("/spec/containers", json!([])), "", true),
        (ephemeral.clone(), "ephemeralcontainers", true),
        (ephemeral.clone(), "status", false),
        (ephemeral.clone(), "new-subresource", true),
        (old.clone(), "resize", false),
    ] {
        let facts = Facts { subresource, ..facts("", "pods", UPDATE) };
        let outcome = plugin().decide(Some(&ns), &facts, &new, Some(&old));
        assert_eq!(outcome.denied.is_some(), refused, "{subresource} {new}");
    }
    assert!(!significant(&ephemeral, &ephemeral));
    let facts = Facts { subresource: "exec", ..facts("", "pods", Operation::Connect) };
    assert_eq!(plugin().decide(Some(&ns), &facts, &json!({}), None), Outcome::default());
}

#[test]
fn workloads_are_only_warned_of() {
    let ns = labels(&[("enforce", "baseline")]);
    let (template, inner) = (json!({"template": host_pod()}), json!({"spec": {"template": host_pod()}}));
    let want = "would violate PodSecurity \"baseline:latest\": host namespaces (hostPID=true)";
    for (group, resource, object) in [
        ("", "podtemplates", template.clone()),
        ("", "replicationcontrollers", json!({"spec": template})),
        ("apps", "deployments", inner.clone()),
        ("apps", "replicasets", inner.clone()),
        ("apps", "statefulsets", inner.clone()),
        ("apps", "daemonsets", inner.clone()),
        ("batch", "jobs", inner.clone()),
        ("batch", "cronjobs", json!({"spec": {"jobTemplate": inner}})),
    ] {
        assert!(PodSecurity::concerns(group, resource));
        let outcome = plugin().decide(Some(&ns), &facts(group, resource, CREATE), &object, None);
        assert_eq!((outcome.denied, outcome.warnings), (None, vec![want.to_owned()]), "{resource}");
        let scale = Facts { subresource: "scale", ..facts(group, resource, UPDATE) };
        assert_eq!(plugin().decide(Some(&ns), &scale, &object, None), Outcome::default());
        let lost = plugin().decide(None, &facts(group, resource, CREATE), &object, None);
        assert!(lost.denied.is_none() && note(&lost, "error").is_some());
    }
    let empty = plugin().decide(Some(&ns), &facts("", "replicationcontrollers", CREATE), &json!({"spec": {}}), None);
    assert_eq!(empty, Outcome::default());
    assert!(!PodSecurity::concerns("", "services") && !PodSecurity::concerns("other", "pods"));
}

#[test]
fn namespaces() {
    let of = |name: &str, pairs: &[(&str, &str)]| json!({"metadata": {"name": name, "labels": labels(pairs)}});
    let decide = |op, new: &Value, old: Option<&Value>| plugin().decide(None, &facts("", "namespaces", op), new, old);
    let wrong = of("n", &[("enforce", "x")]);
    let refused = decide(CREATE, &wrong, None).denied;
    assert!(matches!(&refused, Some(Denial::Invalid(e)) if e.len() == 1), "{refused:?}");
    assert!(decide(UPDATE, &wrong, Some(&of("n", &[]))).denied.is_some());
    assert_eq!(decide(UPDATE, &wrong, Some(&wrong)), Outcome::default(), "wrong before, wrong still");
    assert!(decide(UPDATE, &wrong, Some(&of("n", &[("enforce", "y")]))).denied.is_some());

    let baseline = of("n", &[("enforce", "baseline")]);
    let older = of("n", &[("enforce", "baseline"), ("enforce-version", "v1.20")]);
    let restricted = of("n", &[("enforce", "restricted")]);
    let none = of("n", &[]);
    for (new, old, checks) in [
        (&baseline, &none, true),
        (&restricted, &baseline, true),
        (&baseline, &restricted, false),
        (&older, &restricted, true),
        (&none, &restricted, false),
        (&baseline, &baseline, false),
    ] {
        let outcome = decide(UPDATE, new, Some(old));
        assert_eq!(outcome.check_existing.is_some(), checks, "{old} -> {new}");
    }
    let free = of("free", &[("enforce", "baseline"), ("audit", "restricted"), ("warn", "privileged")]);
    let want = "namespace \"free\" is exempt from Pod Security, and the policy (enforce=baseline:latest, \
                audit=restricted:latest) will be ignored";
    assert_eq!(decide(CREATE, &free, None).warnings, [want]);
    assert_eq!(decide(UPDATE, &free, Some(&of("free", &[]))).warnings, [want]);
    assert!(decide(CREATE, &of("free", &[]), None).warnings.is_empty());
    let status = Facts { subresource: "status", ..facts("", "namespaces", UPDATE) };
    assert_eq!(plugin().decide(None, &status, &wrong, Some(&none)), Outcome::default());
}
