//! What `kubectl get pods` says about a pod: ready containers, the status word, restarts.
//!
//! In: a Pod object. Out: [`Shown`]. The order of the rules is upstream's printer's, since scripts grep for the words.

use crate::age;
use crate::cell::{condition, condition_true};
use crate::json::{has, int, list, text, truth};
use serde_json::Value;

/// The figures of a pod's row.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub ready: usize,
    pub total: usize,
    pub restarts: i64,
    /// Seconds since the epoch of the newest termination that led to a restart.
    pub last_restart: Option<i64>,
    pub reason: String,
}

/// Restarts and the time of the last one.
#[derive(Clone, Copy, Default)]
struct Restarts {
    count: i64,
    last: Option<i64>,
}

impl Restarts {
    fn add(&mut self, container_status: &Value) {
        self.count += int(container_status, "restartCount").unwrap_or(0);
        let finished = age::seconds(&container_status["lastState"]["terminated"]["finishedAt"]);
        self.last = self.last.max(finished);
    }
}

/// Reads a pod's row.
pub(super) fn of(pod: &Value) -> Shown {
    let is_sidecar = |name: &str| {
        list(pod, "spec.initContainers").iter().any(|c| text(c, "name") == name && text(c, "restartPolicy") == "Always")
    };
    let sidecars = list(pod, "spec.initContainers").iter().filter(|c| text(c, "restartPolicy") == "Always").count();
    let mut shown = Shown {
        ready: 0,
        total: list(pod, "spec.containers").len() + sidecars,
        restarts: 0,
        last_restart: None,
        reason: match (text(pod, "status.reason"), text(pod, "status.phase")) {
            ("", phase) => phase.to_owned(),
            (reason, _) => reason.to_owned(),
        },
    };
    let scheduled = list(pod, "status.conditions").iter().find(|c| text(c, "type") == "PodScheduled");
    if scheduled.is_some_and(|c| text(c, "reason") == "SchedulingGated") {
        shown.reason = "SchedulingGated".to_owned();
    }

    let (mut all, mut of_sidecars, mut initializing) = (Restarts::default(), Restarts::default(), false);
    for (i, c) in list(pod, "status.initContainerStatuses").iter().enumerate() {
        all.add(c);
        let sidecar = is_sidecar(text(c, "name"));
        if sidecar {
            of_sidecars.add(c);
        }
        if int(c, "state.terminated.exitCode") == Some(0) {
            continue;
        }
        if sidecar && truth(c, "started") {
            shown.ready += usize::from(truth(c, "ready"));
            continue;
        }
        shown.reason = init_reason(c, i, list(pod, "spec.initContainers").len());
        initializing = true;
        break;
    }
    if !initializing || condition_true(pod, "Initialized") {
        all = of_sidecars;
        main_containers(pod, &mut shown, &mut all);
    }
    (shown.restarts, shown.last_restart) = (all.count, all.last);

    if has(pod, "metadata.deletionTimestamp") {
        if text(pod, "status.reason") == "NodeLost" {
            shown.reason = "Unknown".to_owned();
        } else if !matches!(text(pod, "status.phase"), "Succeeded" | "Failed") {
            shown.reason = "Terminating".to_owned();
        }
    }
    shown
}

fn init_reason(c: &Value, index: usize, total: usize) -> String {
    if has(c, "state.terminated") {
        return format!("Init:{}", termination(c));
    }
    match text(c, "state.waiting.reason") {
        "" | "PodInitializing" => format!("Init:{index}/{total}"),
        reason => format!("Init:{reason}"),
    }
}

fn termination(c: &Value) -> String {
    let terminated = &c["state"]["terminated"];
    match (text(terminated, "reason"), int(terminated, "signal").unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", int(terminated, "exitCode").unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn main_containers(pod: &Value, shown: &mut Shown, restarts: &mut Restarts) {
    let mut running = false;
    for c in list(pod, "status.containerStatuses").iter().rev() {
        restarts.add(c);
        let waiting = text(c, "state.waiting.reason");
        if !waiting.is_empty() {
            shown.reason = waiting.to_owned();
        } else if has(c, "state.terminated") {
            shown.reason = termination(c);
        } else if truth(c, "ready") && has(c, "state.running") {
            running = true;
            shown.ready += 1;
        }
    }
    if shown.reason == "Completed" && running {
        let ready = condition(pod, "Ready") == "True";
        shown.reason = if ready { "Running" } else { "NotReady" }.to_owned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(spec: Value, status: Value) -> (String, String, i64) {
        let s = of(&json!({"metadata": {}, "spec": spec, "status": status}));
        (format!("{}/{}", s.ready, s.total), s.reason, s.restarts)
    }

    fn two() -> Value {
        json!({"containers": [{"name": "a"}, {"name": "b"}]})
    }

    #[test]
    fn plain_phases_and_container_states() {
        let pending = row(two(), json!({"phase": "Pending"}));
        assert_eq!(pending, ("0/2".to_owned(), "Pending".to_owned(), 0));
        let running = row(
            two(),
            json!({"phase": "Running", "containerStatuses": [
                {"name": "a", "ready": true, "restartCount": 2, "state": {"running": {}}},
                {"name": "b", "ready": false, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
            ]}),
        );
        assert_eq!(running, ("1/2".to_owned(), "CrashLoopBackOff".to_owned(), 5));
        let killed = row(
            two(),
            json!({"phase": "Failed", "containerStatuses": [
                {"name": "a", "state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}
            ]}),
        );
        assert_eq!(killed.1, "OOMKilled");
        let code = row(
            two(),
            json!({"phase": "Failed", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 3}}}]}),
        );
        assert_eq!(code.1, "ExitCode:3");
        let half = json!([
            {"name": "a", "state": {"terminated": {"reason": "Completed", "exitCode": 0}}},
            {"name": "b", "ready": true, "state": {"running": {}}}
        ]);
        assert_eq!(row(two(), json!({"phase": "Running", "containerStatuses": half})).1, "NotReady");
        let ready = json!({
            "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": half
        });
        assert_eq!(row(two(), ready).1, "Running");
    }

    #[test]
    fn init_containers_and_sidecars() {
        let spec = json!({
            "initContainers": [{"name": "i1"}, {"name": "side", "restartPolicy": "Always"}, {"name": "i2"}],
            "containers": [{"name": "a"}]
        });
        let done = json!({"name": "i1", "state": {"terminated": {"exitCode": 0}}});
        let side = json!({"name": "side", "started": true, "ready": true, "state": {"running": {}}});
        let status = |last: Value| json!({"phase": "Pending", "initContainerStatuses": [done, side, last]});
        let waiting = row(spec.clone(), status(json!({"name": "i2", "state": {"running": {}}})));
        assert_eq!(waiting, ("1/2".to_owned(), "Init:2/3".to_owned(), 0));
        let failed =
            json!({"name": "i2", "restartCount": 1, "state": {"terminated": {"exitCode": 1, "reason": "Error"}}});
        assert_eq!(row(spec.clone(), status(failed)), ("1/2".to_owned(), "Init:Error".to_owned(), 1));
        let back_off = json!({"name": "i2", "state": {"waiting": {"reason": "CrashLoopBackOff"}}});
        assert_eq!(row(spec, status(back_off)).1, "Init:CrashLoopBackOff");
    }

    #[test]
    fn deletion() {
        let o = |phase: &str| json!({"metadata": {"deletionTimestamp": "x"}, "status": {"phase": phase}});
        assert_eq!(of(&o("Running")).reason, "Terminating");
        assert_eq!(of(&o("Succeeded")).reason, "Succeeded");
    }
}
