//! What a write is charged, and why it does not fit.

use super::*;
use serde_json::json;

const NOW: i64 = 1_800_000_000;
const CREATE: Operation = Operation::Create;
const UPDATE: Operation = Operation::Update;

fn facts<'a>(group: &'a str, resource: &'a str, operation: Operation) -> Facts<'a> {
    Facts { user: "u", namespace: "n", group, resource, subresource: "", operation }
}

fn quota(name: &str, hard: Value, used: Value, spec: Value) -> Value {
    json!({
        "metadata": {"name": name, "resourceVersion": "7"}, "spec": spec, "status": {"hard": hard, "used": used}
    })
}

fn pod(requests: Value, limits: Value) -> Value {
    json!({"metadata": {"name": "p"}, "spec": {
        "containers": [{"name": "c", "resources": {"requests": requests, "limits": limits}}]
    }})
}

/// `status.used` of the one quota that is charged; empty when none is.
fn used(quotas: &[&Value], facts: &Facts<'_>, object: &Value, old: Option<&Value>) -> Result<Value, String> {
    let charges = charge(quotas, facts, object, old, NOW)?;
    assert!(charges.len() < 2);
    Ok(charges.first().map_or(json!({}), |c| c.used.clone()))
}

#[test]
fn pods_are_summed_and_refused() {
    let q = quota(
        "q",
        json!({"pods": "2", "requests.cpu": "1", "limits.memory": "2Gi", "services": "0"}),
        json!({"pods": "1", "requests.cpu": "700m", "limits.memory": "1Gi", "services": "0"}),
        json!({}),
    );
    let create = facts("", "pods", CREATE);
    let fits = pod(json!({"cpu": "300m", "memory": "1Gi"}), json!({"memory": "1024Mi"}));
    let charges = charge(&[&q], &create, &fits, None, NOW).unwrap();
    let want = json!({"limits.memory": "2Gi", "pods": "2", "requests.cpu": "1", "services": "0"});
    assert_eq!(charges, [Charge { name: "q".into(), resource_version: "7".into(), used: want }]);

    let mut full = q.clone();
    charges[0].apply(&mut full);
    let small = pod(json!({"cpu": "1m"}), json!({"memory": "0"}));
    assert_eq!(
        used(&[&full], &create, &small, None),
        Err("exceeded quota: q, requested: pods=1,requests.cpu=1m, used: pods=2,requests.cpu=1, limited: \
             pods=2,requests.cpu=1"
            .into())
    );
    let silent = json!({"spec": {"containers": [{"name": "b"}, {"name": "a"}, {"name": "c",
        "resources": {"requests": {"cpu": "1m"}}}]}});
    assert_eq!(
        used(&[&q], &create, &silent, None),
        Err("failed quota: q: must specify limits.memory for: a,b,c; requests.cpu for: a,b".into())
    );
    let mut whole = silent.clone();
    whole["spec"]["resources"] = json!({"requests": {"cpu": "100m"}});
    assert!(used(&[&q], &create, &whole, None).is_ok(), "the pod says it for its containers");
    let negative = pod(json!({"cpu": "-1"}), json!({"memory": "0"}));
    let why = "quota usage is negative for resource(s): cpu,requests.cpu";
    assert_eq!(used(&[&q], &create, &negative, None), Err(why.into()));
}

#[test]
fn uncounted_quotas_let_nothing_pass() {
    let q = quota("q", json!({"pods": "5", "count/pods": "5"}), json!({"pods": "0"}), json!({}));
    let why = used(&[&q], &facts("", "pods", CREATE), &pod(json!({}), json!({})), None);
    assert_eq!(why, Err("status unknown for quota: q, resources: count/pods,pods".into()));
    let broken = quota("q", json!({"pods": "5"}), json!({"pods": "many"}), json!({}));
    assert!(used(&[&broken], &facts("", "pods", CREATE), &pod(json!({}), json!({})), None).is_err());
}

#[test]
fn every_covering_quota_is_charged_or_none() {
    let a = quota("a", json!({"pods": "5"}), json!({"pods": "0"}), json!({}));
    let b = quota("b", json!({"pods": "0"}), json!({"pods": "0"}), json!({}));
    let other = quota("c", json!({"services": "0"}), json!({"services": "0"}), json!({}));
    let create = facts("", "pods", CREATE);
    let object = pod(json!({}), json!({}));
    let why = charge(&[&b, &a, &other], &create, &object, None, NOW);
    assert_eq!(why, Err("exceeded quota: b, requested: pods=1, used: pods=0, limited: pods=0".into()));
    let names: Vec<String> =
        charge(&[&other, &a], &create, &object, None, NOW).unwrap().into_iter().map(|c| c.name).collect();
    assert_eq!(names, ["a"]);
}

#[test]
fn scopes() {
    let deadline = json!({"spec": {"activeDeadlineSeconds": 5, "containers": [{"name": "c"}]}});
    let steady = pod(json!({"cpu": "1"}), json!({}));
    let zero = pod(json!({"cpu": "0"}), json!({}));
    let class = |name: &str| json!({"spec": {"priorityClassName": name, "containers": []}});
    let crossing = json!({"spec": {"affinity": {"podAntiAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [{"podAffinityTerm": {"namespaceSelector": {}}}]}}}});
    let scopes = |names: &[&str]| json!({ "scopes": names });
    let term = |scope: &str, operator: &str, values: &[&str]| json!({"scopeSelector": {"matchExpressions": [{"scopeName": scope, "operator": operator, "values": values}]}});
    for (spec, object, covered) in [
        (scopes(&["Terminating"]), &deadline, true),
        (scopes(&["Terminating"]), &steady, false),
        (scopes(&["NotTerminating"]), &steady, true),
        (scopes(&["BestEffort"]), &deadline, true),
        (scopes(&["BestEffort"]), &zero, true),
        (scopes(&["BestEffort"]), &steady, false),
        (scopes(&["NotBestEffort", "NotTerminating"]), &steady, true),
        (scopes(&["NotBestEffort", "Terminating"]), &steady, false),
        (scopes(&["PriorityClass"]), &class("high"), true),
        (scopes(&["PriorityClass"]), &steady, false),
        (scopes(&["CrossNamespacePodAffinity"]), &crossing, true),
        (scopes(&["CrossNamespacePodAffinity"]), &steady, false),
        (scopes(&["VolumeAttributesClass"]), &steady, false),
        (term("PriorityClass", "In", &["high", "low"]), &class("low"), true),
        (term("PriorityClass", "In", &["high"]), &steady, false),
        (term("PriorityClass", "NotIn", &["high"]), &class("high"), false),
        (term("PriorityClass", "NotIn", &["high"]), &steady, true),
        (term("PriorityClass", "DoesNotExist", &[]), &steady, true),
        (term("Terminating", "Exists", &[]), &deadline, true),
    ] {
        let q = quota("q", json!({"pods": "0"}), json!({"pods": "0"}), spec.clone());
        let refused = used(&[&q], &facts("", "pods", CREATE), object, None).is_err();
        assert_eq!(refused, covered, "{spec} {object}");
    }
    let odd = quota("q", json!({"pods": "9"}), json!({"pods": "0"}), term("PriorityClass", "Like", &[]));
    assert!(used(&[&odd], &facts("", "pods", CREATE), &steady, None).is_err());
}

#[test]
fn services_claims_and_counts() {
    let zero = |hard: &Value| hard.as_object().unwrap().keys().map(|k| (k.clone(), json!("0"))).collect::<Value>();
    let claim = json!({
        "metadata": {"annotations": {"volume.beta.kubernetes.io/storage-class": "gold"}},
        "spec": {"storageClassName": "tin", "resources": {"requests": {"storage": "1.5"}}},
        "status": {"allocatedResources": {"storage": "2500m"}}
    });
    let balancer = |allocate: bool| {
        json!({"spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": allocate,
        "ports": [{"port": 1, "nodePort": 30000}, {"port": 2}]}})
    };
    let services =
        json!({"services": "9", "services.loadbalancers": "9", "services.nodeports": "9", "count/services": "9"});
    let claims = json!({
        "requests.storage": "9", "persistentvolumeclaims": "9", "gold.storageclass.storage.k8s.io/requests.storage": "9",
        "tin.storageclass.storage.k8s.io/persistentvolumeclaims": "9", "count/persistentvolumeclaims": "9"
    });
    for (group, resource, hard, object, want) in [
        (
            "",
            "services",
            &services,
            &balancer(true),
            &[("count/services", "1"), ("services", "1"), ("services.loadbalancers", "1"), ("services.nodeports", "2")]
                [..],
        ),
        ("", "services", &services, &balancer(false), &[("services.nodeports", "1")]),
        (
            "",
            "services",
            &services,
            &json!({"spec": {"type": "NodePort", "ports": [{}]}}),
            &[("services.nodeports", "1"), ("services.loadbalancers", "0")],
        ),
        (
            "",
            "services",
            &services,
            &json!({"spec": {"type": "ClusterIP", "ports": [{}]}}),
            &[("services.nodeports", "0")],
        ),
        (
            "",
            "persistentvolumeclaims",
            &claims,
            &claim,
            &[
                ("requests.storage", "3"),
                ("persistentvolumeclaims", "1"),
                ("count/persistentvolumeclaims", "1"),
                ("gold.storageclass.storage.k8s.io/requests.storage", "3"),
                ("tin.storageclass.storage.k8s.io/persistentvolumeclaims", "0"),
            ],
        ),
        (
            "",
            "configmaps",
            &json!({"configmaps": "2", "count/configmaps": "2"}),
            &json!({}),
            &[("configmaps", "1"), ("count/configmaps", "1")],
        ),
        (
            "apps",
            "deployments",
            &json!({"count/deployments.apps": "2"}),
            &json!({}),
            &[("count/deployments.apps", "1")],
        ),
        ("x.io", "things", &json!({"count/things.x.io": "2"}), &json!({}), &[("count/things.x.io", "1")]),
    ] {
        let q = quota("q", hard.clone(), zero(hard), json!({}));
        let used = used(&[&q], &facts(group, resource, CREATE), object, None).unwrap();
        for (name, amount) in want {
            assert_eq!(used[*name], *amount, "{resource} {name} {object}");
        }
    }
    let events = quota("q", json!({"count/events": "0"}), json!({"count/events": "0"}), json!({}));
    assert_eq!(used(&[&events], &facts("", "events", CREATE), &json!({}), None), Ok(json!({})));
}

#[test]
fn extended_resources_and_huge_pages() {
    let hard = json!({"requests.nvidia.com/gpu": "2", "hugepages-2Mi": "4Mi", "requests.hugepages-2Mi": "4Mi",
        "requests.ephemeral-storage": "1Gi", "limits.ephemeral-storage": "1Gi"});
    let none = json!({"requests.nvidia.com/gpu": "0", "hugepages-2Mi": "0", "requests.hugepages-2Mi": "0",
        "requests.ephemeral-storage": "0", "limits.ephemeral-storage": "0"});
    let q = quota("q", hard.clone(), none, json!({}));
    let asks = json!({"nvidia.com/gpu": "2", "hugepages-2Mi": "4Mi", "ephemeral-storage": "1Gi"});
    let create = facts("", "pods", CREATE);
    assert_eq!(
        used(&[&q], &create, &pod(asks.clone(), asks.clone()), None).map(|u| u["requests.nvidia.com/gpu"].clone()),
        Ok(json!("2"))
    );
    let more = json!({"nvidia.com/gpu": "3"});
    let why = "exceeded quota: q, requested: requests.nvidia.com/gpu=3, used: requests.nvidia.com/gpu=0, limited: \
               requests.nvidia.com/gpu=2";
    assert_eq!(used(&[&q], &create, &pod(more.clone(), more), None), Err(why.into()));
}

#[test]
fn updates_are_charged_by_what_they_add() {
    let stored = |mut object: Value| {
        object["metadata"]["resourceVersion"] = json!("1");
        object
    };
    let service = |type_: &str| json!({"spec": {"type": type_, "ports": [{"port": 1}]}});
    let q = quota(
        "q",
        json!({"services": "1", "services.nodeports": "1"}),
        json!({"services": "1", "services.nodeports": "0"}),
        json!({}),
    );
    let update = facts("", "services", UPDATE);
    let plain = stored(service("ClusterIP"));
    assert_eq!(
        used(&[&q], &update, &service("NodePort"), Some(&plain)),
        Ok(json!({"services": "1", "services.nodeports": "1"}))
    );
    assert_eq!(
        used(&[&q], &update, &plain, Some(&stored(service("NodePort")))),
        Ok(json!({})),
        "less is not given back here"
    );
    assert!(used(&[&q], &update, &plain, Some(&service("ClusterIP"))).is_err(), "created by an update");
    assert!(used(&[&q], &update, &plain, None).is_err());

    let claims = quota("q", json!({"requests.storage": "5"}), json!({"requests.storage": "5"}), json!({}));
    let claim = |spec: &str, allocated: &str| {
        stored(json!({"spec": {"resources": {"requests": {"storage": spec}}},
            "status": {"allocatedResources": {"storage": allocated}}}))
    };
    let update = facts("", "persistentvolumeclaims", UPDATE);
    assert!(used(&[&claims], &update, &claim("6", "5"), Some(&claim("5", "5"))).is_err());
    let status = Facts { subresource: "status", ..update };
    let grown = used(&[&claims], &status, &claim("5", "9"), Some(&claim("5", "5")));
    assert_eq!(grown, Ok(json!({"requests.storage": "9"})), "what has happened is counted, not refused");

    let pods = facts("", "pods", UPDATE);
    let q = quota("q", json!({"pods": "1"}), json!({"pods": "1"}), json!({"scopes": ["Terminating"]}));
    let steady = stored(pod(json!({}), json!({})));
    let mut ending = steady.clone();
    ending["spec"]["activeDeadlineSeconds"] = json!(1);
    assert!(used(&[&q], &pods, &ending, Some(&steady)).is_err(), "enters the scope");
    assert_eq!(used(&[&q], &pods, &ending, Some(&ending)), Ok(json!({})));
    let cpu = quota("q", json!({"requests.cpu": "2"}), json!({"requests.cpu": "1"}), json!({}));
    let resize = Facts { subresource: "resize", ..pods };
    let one = stored(pod(json!({"cpu": "1"}), json!({})));
    assert_eq!(
        used(&[&cpu], &resize, &pod(json!({"cpu": "2"}), json!({})), Some(&one)),
        Ok(json!({"requests.cpu": "2"}))
    );
    assert!(used(&[&cpu], &resize, &pod(json!({"cpu": "2001m"}), json!({})), Some(&one)).is_err());
    let label = Facts { subresource: "", ..pods };
    assert_eq!(used(&[&cpu], &label, &pod(json!({"cpu": "9"}), json!({})), Some(&one)), Ok(json!({})));
}

#[test]
fn resources_without_a_namespace_are_not_counted() {
    let q = quota("q", json!({"count/nodes": "0"}), json!({"count/nodes": "0"}), json!({}));
    let cluster = Facts { namespace: "", ..facts("", "nodes", CREATE) };
    assert_eq!(charge(&[&q], &cluster, &json!({}), None, NOW), Ok(vec![]));
}
