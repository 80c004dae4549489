//! Usage counted anew.

use super::*;

const NOW: i64 = 1_800_000_000;

fn pod(cpu: &str, phase: &str) -> Value {
    json!({
        "spec": {"overhead": {"cpu": "10m"}, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
        "status": {"phase": phase}
    })
}

#[test]
fn tracked_resources() {
    let quota = json!({"spec": {"hard": {
        "requests.cpu": "1", "count/deployments.apps": "1", "count/things.x.io": "1", "secrets": "1",
        "gold.storageclass.storage.k8s.io/requests.storage": "1", "services.nodeports": "1", "count/events": "1",
        "count/configmaps": "1", "requests.example.com/x": "1"
    }}});
    let want = [
        ("", "configmaps"),
        ("", "persistentvolumeclaims"),
        ("", "pods"),
        ("", "secrets"),
        ("", "services"),
        ("apps", "deployments"),
        ("x.io", "things"),
    ];
    let found: Vec<_> = tracked(&quota).into_iter().collect();
    assert_eq!(found, want.map(|(g, r)| (g.to_owned(), r.to_owned())));
}

#[test]
fn usage_is_counted_anew() {
    let quota = json!({
        "spec": {"hard": {"pods": "9", "count/pods": "9", "requests.cpu": "2000m", "secrets": "3", "count/things.x.io": "1"}},
        "status": {"hard": {"pods": "1"}, "used": {"pods": "77", "secrets": "2", "gone": "1"}}
    });
    let deleted = |at: &str| {
        let mut pod = pod("1", "Running");
        pod["metadata"] = json!({"deletionTimestamp": at, "deletionGracePeriodSeconds": 30});
        pod
    };
    // 1_800_000_000 is 2027-01-15T08:00:00Z.
    let pods = [
        pod("100m", "Running"),
        pod("200m", "Pending"),
        pod("9", "Succeeded"),
        pod("9", "Failed"),
        deleted("2027-01-15T07:59:29Z"),
        deleted("2027-01-15T07:59:30Z"),
    ];
    let status = recalculate(&quota, |_, resource| (resource == "pods").then_some(&pods), NOW).unwrap();
    let want = json!({
        "hard": {"count/pods": "9", "count/things.x.io": "1", "pods": "9", "requests.cpu": "2", "secrets": "3"},
        "used": {"count/pods": "6", "pods": "3", "requests.cpu": "1330m", "secrets": "2"}
    });
    assert_eq!(status, want, "what is not known keeps its count");
    let none: [Value; 0] = [];
    let empty = recalculate(&quota, |_, _| Some(&none), NOW).unwrap();
    assert_eq!(
        empty["used"],
        json!({"count/pods": "0", "count/things.x.io": "0", "pods": "0", "requests.cpu": "0", "secrets": "0"})
    );
}

#[test]
fn pods_in_resize_count_the_greater() {
    let quota = json!({"spec": {"hard": {"requests.cpu": "9", "limits.cpu": "9"}}});
    let mut pod = json!({
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "1"}}}]},
        "status": {"containerStatuses": [{"name": "c", "allocatedResources": {"cpu": "3"},
            "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "2"}}}]}
    });
    let count = |pod: &Value| recalculate(&quota, |_, _| Some([pod]), NOW).unwrap()["used"].clone();
    assert_eq!(count(&pod), json!({"limits.cpu": "2", "requests.cpu": "3"}));
    pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "5"}, "limits": {"cpu": "5"}});
    assert_eq!(count(&pod), json!({"limits.cpu": "5", "requests.cpu": "5"}));
    pod["status"]["conditions"] = json!([{"type": "PodResizePending", "reason": "Infeasible"}]);
    assert_eq!(count(&pod), json!({"limits.cpu": "2", "requests.cpu": "3"}));
}

#[test]
fn scopes_hold_for_counting_too() {
    let quota = json!({"spec": {"hard": {"pods": "9"}, "scopes": ["BestEffort"]}});
    let pods = [pod("0", ""), pod("1", ""), json!({"spec": {"containers": []}})];
    assert_eq!(recalculate(&quota, |_, _| Some(&pods), NOW).unwrap()["used"], json!({"pods": "2"}));
    assert!(recalculate(&json!({"spec": {"hard": {"pods": "x"}}}), |_, _| Some(&pods), NOW).is_err());
}

#[test]
fn statuses_differ_by_amount() {
    let status = |hard: &str, used: &str| json!({"hard": {"cpu": hard}, "used": {"cpu": used}});
    assert!(!differs(&status("1", "500m"), &status("1000m", "0.5")));
    assert!(differs(&status("1", "500m"), &status("1", "501m")));
    assert!(differs(&json!({}), &json!({"hard": {}, "used": {}})));
}
