//! When a workload is ready. In: an object as the API has it. Out: ready, waiting and for what, or failed for good; by the
//! rules of `kubectl rollout status` and `kubectl wait`. Pure.

use kube::api::DynamicObject;
use serde_json::Value;

/// How far a workload is.
#[derive(Debug, PartialEq)]
pub enum State {
    /// It does what it is there for.
    Ready,
    /// Not yet; what is missing.
    Waiting(String),
    /// It will not become ready by itself; why.
    Failed(String),
}

/// Whether an object becomes ready at all; others are as soon as they are stored.
pub fn is_waited_for(object: &DynamicObject) -> bool {
    !kind(object).is_empty()
}

/// Whether being ready once says little: containers of a bare Pod may end a moment later.
pub fn is_to_be_seen_twice(object: &DynamicObject) -> bool {
    kind(object) == "Pod"
}

/// The kinds of Kubernetes itself; empty for another group's kind of the same name, and for all others.
fn kind(object: &DynamicObject) -> &str {
    let Some(types) = &object.types else { return "" };
    match (types.api_version.split_once('/').map_or("", |(group, _)| group), types.kind.as_str()) {
        ("apps", kind @ ("Deployment" | "StatefulSet" | "DaemonSet"))
        | ("batch", kind @ "Job")
        | ("", kind @ "Pod") => kind,
        _ => "",
    }
}

/// How far an object is.
pub fn state(object: &DynamicObject) -> State {
    let (spec, status) = (&object.data["spec"], &object.data["status"]);
    match kind(object) {
        "Pod" => return pod(status),
        "Job" => return job(status),
        "" => return State::Ready,
        _ => {}
    }
    if number(status, "observedGeneration") < object.metadata.generation.unwrap_or_default() {
        return State::Waiting("its change has not been seen yet".to_owned());
    }
    if let Some(condition) = condition(status, "Progressing").filter(|c| c["reason"] == "ProgressDeadlineExceeded") {
        return State::Failed(condition["message"].as_str().unwrap_or("it makes no progress").to_owned());
    }
    let (wanted, updated, ready) = match kind(object) {
        "DaemonSet" => (
            number(status, "desiredNumberScheduled"),
            number(status, "updatedNumberScheduled"),
            number(status, "numberAvailable"),
        ),
        kind => (
            spec["replicas"].as_i64().unwrap_or(1),
            number(status, "updatedReplicas"),
            number(status, if kind == "Deployment" { "availableReplicas" } else { "readyReplicas" }),
        ),
    };
    // Pods that are replaced by hand, or below the partition, stay as they are.
    let strategy = &spec["updateStrategy"];
    let partition = strategy["rollingUpdate"]["partition"].as_i64().unwrap_or(0);
    let to_update = if strategy["type"] == "OnDelete" { 0 } else { (wanted - partition).max(0) };
    if updated < to_update {
        let paused = if spec["paused"] == true { "; it is paused" } else { "" };
        return State::Waiting(format!("{updated} of {to_update} pods are updated{paused}"));
    }
    if ready < wanted {
        return State::Waiting(format!("{ready} of {wanted} pods are ready"));
    }
    let old = number(status, "replicas") - updated;
    if kind(object) == "Deployment" && old > 0 {
        return State::Waiting(format!("{old} old pods are ending"));
    }
    State::Ready
}

fn pod(status: &Value) -> State {
    match status["phase"].as_str() {
        Some("Succeeded") => State::Ready,
        Some("Failed") => State::Failed(status["message"].as_str().unwrap_or("its containers failed").to_owned()),
        _ if condition(status, "Ready").is_some_and(|c| c["status"] == "True") => State::Ready,
        phase => State::Waiting(format!("it is {}, not ready", phase.unwrap_or("Pending"))),
    }
}

fn job(status: &Value) -> State {
    let is = |kind: &str| condition(status, kind).filter(|c| c["status"] == "True");
    if is("Complete").is_some() {
        return State::Ready;
    }
    match is("Failed") {
        Some(failed) => State::Failed(failed["message"].as_str().unwrap_or("its pods failed").to_owned()),
        None => State::Waiting(format!("{} pods have succeeded", number(status, "succeeded"))),
    }
}

fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    status["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

fn number(status: &Value, field: &str) -> i64 {
    status[field].as_i64().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(kind: &str, spec: Value, status: Value) -> State {
        let group = match kind {
            "Pod" | "ConfigMap" => "v1",
            "Job" => "batch/v1",
            _ => "apps/v1",
        };
        let object = json!({"apiVersion": group, "kind": kind, "metadata": {"name": "x", "generation": 2},
            "spec": spec, "status": status});
        state(&serde_json::from_value(object).unwrap())
    }

    fn waits(state: State, word: &str) {
        assert!(matches!(&state, State::Waiting(why) if why.contains(word)), "{state:?} should wait for {word}");
    }

    #[test]
    fn deployments() {
        let spec = || json!({"replicas": 2});
        waits(of("Deployment", spec(), json!({"observedGeneration": 1, "updatedReplicas": 2})), "seen");
        waits(of("Deployment", spec(), json!({"observedGeneration": 2, "updatedReplicas": 1})), "1 of 2");
        let full = json!({"observedGeneration": 2, "updatedReplicas": 2, "availableReplicas": 1, "replicas": 2});
        waits(of("Deployment", spec(), full), "ready");
        let old = json!({"observedGeneration": 2, "updatedReplicas": 2, "availableReplicas": 2, "replicas": 3});
        waits(of("Deployment", spec(), old), "1 old");
        let done = json!({"observedGeneration": 2, "updatedReplicas": 2, "availableReplicas": 2, "replicas": 2});
        assert_eq!(of("Deployment", spec(), done), State::Ready);
        let stuck = json!({"observedGeneration": 2, "conditions": [
            {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "stuck"}]});
        assert_eq!(of("Deployment", spec(), stuck), State::Failed("stuck".to_owned()));
        assert_eq!(of("Deployment", json!({"replicas": 0}), json!({"observedGeneration": 2})), State::Ready);
    }

    #[test]
    fn other_sets() {
        let ready = json!({"observedGeneration": 2, "updatedReplicas": 1, "readyReplicas": 1, "replicas": 1});
        assert_eq!(of("StatefulSet", json!({}), ready), State::Ready);
        let daemons = |n| json!({"observedGeneration": 2, "desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberAvailable": n});
        waits(of("DaemonSet", json!({}), daemons(2)), "2 of 3");
        assert_eq!(of("DaemonSet", json!({}), daemons(3)), State::Ready);
    }

    #[test]
    fn updates_by_hand_and_in_part() {
        let full = || json!({"observedGeneration": 2, "updatedReplicas": 1, "readyReplicas": 3, "replicas": 3});
        let part =
            |p| json!({"replicas": 3, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": p}}});
        assert_eq!(of("StatefulSet", part(2), full()), State::Ready);
        waits(of("StatefulSet", part(1), full()), "1 of 2 pods are updated");
        let daemons = json!({"observedGeneration": 2, "desiredNumberScheduled": 3, "updatedNumberScheduled": 0, "numberAvailable": 3});
        assert_eq!(of("DaemonSet", json!({"updateStrategy": {"type": "OnDelete"}}), daemons), State::Ready);
        let stays = json!({"observedGeneration": 2, "updatedReplicas": 0, "availableReplicas": 2, "replicas": 2});
        waits(of("Deployment", json!({"replicas": 2, "paused": true}), stays), "paused");
    }

    #[test]
    fn another_groups_kind_of_the_same_name_is_not_waited_for() {
        let own: DynamicObject =
            serde_json::from_value(json!({"apiVersion": "vol.io/v1", "kind": "Job", "metadata": {"name": "x"}}))
                .unwrap();
        assert!(!is_waited_for(&own));
        assert_eq!(state(&own), State::Ready);
    }

    #[test]
    fn pods_and_jobs() {
        waits(of("Pod", json!({}), json!({})), "Pending");
        waits(of("Pod", json!({}), json!({"phase": "Running"})), "Running");
        let ready = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        assert_eq!(of("Pod", json!({}), ready), State::Ready);
        assert_eq!(of("Pod", json!({}), json!({"phase": "Succeeded"})), State::Ready);
        assert!(matches!(of("Pod", json!({}), json!({"phase": "Failed"})), State::Failed(_)));
        waits(of("Job", json!({}), json!({"succeeded": 1})), "1 pods");
        let over = |kind: &str| json!({"conditions": [{"type": kind, "status": "True", "message": "over"}]});
        assert_eq!(of("Job", json!({}), over("Complete")), State::Ready);
        assert_eq!(of("Job", json!({}), over("Failed")), State::Failed("over".to_owned()));
        assert_eq!(of("ConfigMap", json!({}), json!({})), State::Ready);
    }
}
