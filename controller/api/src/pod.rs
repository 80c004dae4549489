//! When a pod counts as ready, finished, or terminating.

use k8s_openapi::api::core::v1::{Pod, PodCondition};

/// A condition of a pod by type.
pub fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == type_)
}

/// The `Ready` condition is `True`.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// `metadata.deletionTimestamp` is set.
pub fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// `Succeeded` or `Failed`: its containers have stopped for good.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// `status.phase`; `Pending` when unset.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

/// Not finished and not being deleted: counts as a replica.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_terminating(pod)
}

/// Ready for at least `min_ready_seconds` at `now` (seconds since the epoch).
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: i64) -> bool {
    let Some(ready) = condition(pod, "Ready").filter(|c| c.status == "True") else { return false };
    if min_ready_seconds == 0 {
        return true;
    }
    ready.last_transition_time.as_ref().is_some_and(|t| t.0.as_second() + i64::from(min_ready_seconds) <= now)
}
