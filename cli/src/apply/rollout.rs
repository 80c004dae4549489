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
    matches!(kind(object), "Deployment" | "StatefulSet" | "DaemonSet" | "Job" | "Pod")
}

fn kind(object: &DynamicObject) -> &str {
    object.types.as_ref().map(|t| t.kind.as_str()).unwrap_or_default()
}

/// How far an object is.
pub fn state(object: &DynamicObject) -> State {
    let (spec, status) = (&object.data["spec"], &object.data["status"]);
    match kind(object) {
        "Pod" => return pod(status),
        "Job" => return job(status),
        "Deployment" | "StatefulSet" | "DaemonSet" => {}
        _ => return State::Ready,
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
    if updated < wanted {
        return State::Waiting(format!("{updated} of {wanted} pods are of the new kind"));
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
        let object = json!({"apiVersion": "x/v1", "kind": kind, "metadata": {"name": "x", "generation": 2},
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
