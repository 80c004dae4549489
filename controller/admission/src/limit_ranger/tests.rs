//! Defaults and bounds, against the words of Kubernetes.

use super::*;

fn facts(resource: &'static str, subresource: &'static str, operation: Operation) -> Facts<'static> {
    Facts { user: "u", namespace: "n", group: "", resource, subresource, operation }
}

const CREATE: Operation = Operation::Create;

fn range(limits: Value) -> Value {
    json!({"metadata": {"name": "r"}, "spec": {"limits": limits}})
}

fn pod(containers: Value) -> Value {
    json!({"metadata": {"name": "p"}, "spec": {"containers": containers}})
}

fn check(limits: Value, resource: &'static str, object: &Value) -> Result<(), String> {
    validate(&[&range(limits)], &facts(resource, "", CREATE), object)
}

#[test]
fn what_is_looked_at() {
    let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    for (resource, subresource, operation, old, want) in [
        ("pods", "", CREATE, None, true),
        ("pods", "", Operation::Update, None, false),
        ("pods", "resize", Operation::Update, None, true),
        ("pods", "resize", Operation::Update, Some(&deleted), false),
        ("pods", "status", Operation::Update, None, false),
        ("persistentvolumeclaims", "", CREATE, None, true),
        ("persistentvolumeclaims", "", Operation::Update, None, true),
        ("persistentvolumeclaims", "", Operation::Delete, None, false),
        ("services", "", CREATE, None, false),
    ] {
        assert_eq!(concerns(&facts(resource, subresource, operation), old), want, "{resource}/{subresource}");
    }
    let other = Facts { group: "x.io", ..facts("pods", "", CREATE) };
    assert!(!concerns(&other, None));
}

#[test]
fn defaults_with_a_note() {
    let range = range(json!([
        {"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "defaultRequest": {"memory": "64Mi", "cpu": "100m"}},
        {"type": "Pod", "default": {"cpu": "9"}}
    ]));
    let mut object = json!({"metadata": {"name": "p"}, "spec": {
        "containers": [{"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "2"}, "requests": {"cpu": "2", "memory": "1Gi"}}}],
        "initContainers": [{"name": "i", "resources": null}]
    }});
    default(&[&range], &facts("pods", "", CREATE), &mut object);
    let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m", "memory": "64Mi"}});
    assert_eq!(object["spec"]["containers"][0]["resources"], full);
    assert_eq!(object["spec"]["initContainers"][0]["resources"], full);
    let kept = json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "2", "memory": "1Gi"}});
    assert_eq!(object["spec"]["containers"][1]["resources"], kept);
    assert_eq!(
        object["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu, memory request for container a; cpu, memory limit for container a; memory limit \
         for container b; cpu, memory request for init container i; cpu, memory limit for init container i"
    );
    let before = object.clone();
    default(&[&range], &facts("pods", "", CREATE), &mut object);
    assert_eq!(object, before, "the second time there is nothing to fill");
}

#[test]
fn bounds_of_containers() {
    let limits = json!([{
        "type": "Container", "min": {"cpu": "100m"}, "max": {"cpu": "1", "memory": "1Gi"},
        "maxLimitRequestRatio": {"cpu": "2.5"}
    }]);
    let with = |requests: Value, limits: Value| {
        pod(json!([{"name": "a", "resources": {"requests": requests, "limits": limits}}]))
    };
    let fine = with(json!({"cpu": "400m"}), json!({"cpu": "1000m", "memory": "1024Mi"}));
    assert_eq!(check(limits.clone(), "pods", &fine), Ok(()));
    for (requests, bounds, want) in [
        (
            json!({"cpu": "50m"}),
            json!({"cpu": "100m", "memory": "1Gi"}),
            "minimum cpu usage per Container is 100m, but request is 50m",
        ),
        (
            json!({"cpu": "1"}),
            json!({"cpu": "2", "memory": "1Gi"}),
            "maximum cpu usage per Container is 1, but limit is 2",
        ),
        (
            json!({"cpu": "390m"}),
            json!({"cpu": "1", "memory": "1Gi"}),
            "cpu max limit to request ratio per Container is 2500m, but provided ratio is 2.564103",
        ),
        (
            json!({}),
            json!({"cpu": "1"}),
            "[minimum cpu usage per Container is 100m.  No request is specified, maximum memory usage per Container is \
             1Gi.  No limit is specified, cpu max limit to request ratio per Container is 2500m, but no request is \
             specified or request is 0]",
        ),
        (
            json!({"cpu": "200m", "memory": "2Gi"}),
            json!({"cpu": "0", "memory": "1Gi"}),
            "[minimum cpu usage per Container is 100m, but limit is 0, maximum memory usage per Container is 1Gi, but \
             request is 2Gi, cpu max limit to request ratio per Container is 2500m, but no limit is specified or limit \
             is 0]",
        ),
    ] {
        assert_eq!(check(limits.clone(), "pods", &with(requests, bounds)), Err(want.to_owned()));
    }
    let two = pod(json!([{"name": "a"}, {"name": "b"}]));
    let said = check(json!([{"type": "Container", "min": {"cpu": "1"}}]), "pods", &two);
    assert_eq!(said, Err("minimum cpu usage per Container is 1.  No request is specified".into()), "said once");
    let init = json!({"spec": {"containers": [], "initContainers": [{"name": "i"}]}});
    assert!(check(json!([{"type": "Container", "min": {"cpu": "1"}}]), "pods", &init).is_err());
}

#[test]
fn bounds_of_pods_and_claims() {
    let asks = |cpu: &str| json!({"requests": {"cpu": cpu}, "limits": {"cpu": cpu}});
    let object = json!({"spec": {
        "containers": [{"name": "a", "resources": asks("1")}, {"name": "b", "resources": asks("500m")}],
        "initContainers": [
            {"name": "side", "restartPolicy": "Always", "resources": asks("250m")},
            {"name": "once", "resources": asks("1600m")}
        ]
    }});
    // Either what runs (1 + 0.5 + 0.25), or what prepares it (1.6 + 0.25): the greater one counts.
    let max = |cpu: &str| json!([{"type": "Pod", "max": {"cpu": cpu}}]);
    assert_eq!(check(max("1850m"), "pods", &object), Ok(()));
    let want = "maximum cpu usage per Pod is 1849m, but limit is 1850m";
    assert_eq!(check(max("1849m"), "pods", &object), Err(want.into()));
    let mut whole = object.clone();
    whole["spec"]["resources"] = asks("3");
    assert!(check(max("2"), "pods", &whole).is_err(), "resources of the pod as a whole count instead");

    let claim = |storage: &str| json!({"spec": {"resources": {"requests": {"storage": storage}}}});
    let bounds = json!([{"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}}]);
    for (storage, want) in [
        ("1Gi", Ok(())),
        ("1Mi", Err("minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi")),
        ("3Gi", Err("maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi")),
    ] {
        assert_eq!(check(bounds.clone(), "persistentvolumeclaims", &claim(storage)), want.map_err(str::to_owned));
    }
    assert!(check(bounds, "persistentvolumeclaims", &claim("lots")).is_err(), "malformed amounts do not pass");
}
