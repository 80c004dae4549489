//! How a Deployment stands: counts, Available, Progressing. Pure.

use super::sets::{Entry, Limits, Sets};
use crate::meta::name;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

/// A condition as of now.
pub fn condition(type_: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(Time(now)),
        last_update_time: Some(Time(now)),
    }
}

/// A condition by type.
pub fn get<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == type_)
}

/// Whether there is such a condition.
pub fn has(status: &DeploymentStatus, type_: &str) -> bool {
    get(status, type_).is_some()
}

/// Writes a condition unless it says the same already; the transition time stays while the status does.
pub fn set(status: &mut DeploymentStatus, condition: DeploymentCondition) {
    if let Some(old) = get(status, &condition.type_)
        && old.status == condition.status
        && old.reason == condition.reason
    {
        return;
    }
    refresh(status, condition);
}

/// Writes a condition with a new update time in any case.
fn refresh(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    if let Some(old) = get(status, &condition.type_)
        && old.status == condition.status
    {
        condition.last_transition_time = old.last_transition_time.clone();
    }
    let all = status.conditions.get_or_insert_default();
    match all.iter_mut().find(|c| c.type_ == condition.type_) {
        Some(old) => *old = condition,
        None => all.push(condition),
    }
}

/// Notes that a roll-out was paused or resumed; time stands still for its deadline meanwhile.
pub fn pause(status: &mut DeploymentStatus, paused: bool, now: Timestamp) {
    let reason = get(status, "Progressing").and_then(|c| c.reason.clone());
    if reason.as_deref() == Some("ProgressDeadlineExceeded") {
        return;
    }
    let was_paused = reason.as_deref() == Some("DeploymentPaused");
    if paused && !was_paused {
        set(status, condition("Progressing", "Unknown", "DeploymentPaused", "Deployment is paused", now));
    } else if !paused && was_paused {
        set(status, condition("Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed", now));
    }
}

/// The counts and Available.
pub fn counts(
    deployment: &Deployment,
    sets: &Sets,
    limits: &Limits,
    old: &DeploymentStatus,
    now: Timestamp,
) -> DeploymentStatus {
    let some = |n: i32| (n != 0).then_some(n);
    let available = sets.available();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(sets.all().map(Entry::actual).sum()),
        updated_replicas: some(sets.new.as_ref().map_or(0, Entry::actual)),
        ready_replicas: some(sets.all().filter_map(|e| e.set.status.as_ref()?.ready_replicas).sum()),
        available_replicas: some(available),
        unavailable_replicas: some((sets.total() - available).max(0)),
        terminating_replicas: old.terminating_replicas,
        collision_count: old.collision_count,
        conditions: old.conditions.clone(),
    };
    let (state, reason, text) = if available >= limits.min_available() {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set(&mut status, condition("Available", state, reason, text, now));
    status
}

/// Every pod is new and available.
pub fn complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    [status.updated_replicas, status.replicas, status.available_replicas].iter().all(|n| n.unwrap_or(0) == wanted)
        && status.observed_generation >= deployment.metadata.generation
}

/// Something moved since the last status.
fn advanced(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = Option::unwrap_or_default;
    let stale = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || stale(new) < stale(old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

/// Adds Progressing and ReplicaFailure; also when to look at the deadline again.
pub fn progress(
    deployment: &Deployment,
    sets: &Sets,
    mut status: DeploymentStatus,
    created: Option<&ReplicaSet>,
    now: Timestamp,
) -> (DeploymentStatus, Option<Duration>) {
    replica_failure(sets, &mut status, now);
    // The API stands for "no deadline" by the largest number.
    let deadline = deployment.spec.as_ref().and_then(|s| s.progress_deadline_seconds).filter(|d| *d != i32::MAX);
    let Some(deadline) = deadline.map(i64::from) else {
        status.conditions.iter_mut().for_each(|c| c.retain(|c| c.type_ != "Progressing"));
        return (status, None);
    };
    let subject = match (&sets.new, created) {
        (Some(new), _) => format!("ReplicaSet {:?}", name(&new.set.metadata)),
        (None, Some(set)) => format!("ReplicaSet {:?}", name(&set.metadata)),
        (None, None) => format!("Deployment {:?}", name(&deployment.metadata)),
    };
    let current = get(&status, "Progressing").cloned();
    let reason = current.as_ref().and_then(|c| c.reason.as_deref()).unwrap_or("");
    let settled = status.replicas == status.updated_replicas && reason == "NewReplicaSetAvailable";
    let before = deployment.status.clone().unwrap_or_default();
    // A finished roll-out stays finished until its template changes: pods that come and go do not reopen it.
    if !settled {
        if complete(deployment, &status) {
            let text = format!("{subject} has successfully progressed.");
            set(&mut status, condition("Progressing", "True", "NewReplicaSetAvailable", &text, now));
        } else if advanced(&before, &status) {
            let text = format!("{subject} is progressing.");
            refresh(&mut status, condition("Progressing", "True", "ReplicaSetUpdated", &text, now));
        } else if timed_out(current.as_ref(), deadline, now) {
            let text = format!("{subject} has timed out progressing.");
            set(&mut status, condition("Progressing", "False", "ProgressDeadlineExceeded", &text, now));
        }
    }
    let recheck = recheck(&status, deployment, deadline, now);
    (status, recheck)
}

fn timed_out(current: Option<&DeploymentCondition>, deadline: i64, now: Timestamp) -> bool {
    let Some(current) = current else { return false };
    match current.reason.as_deref() {
        Some("ProgressDeadlineExceeded") => true,
        Some("NewReplicaSetAvailable") => false,
        _ => current.last_update_time.as_ref().is_some_and(|t| t.0.as_second() + deadline < now.as_second()),
    }
}

fn recheck(status: &DeploymentStatus, deployment: &Deployment, deadline: i64, now: Timestamp) -> Option<Duration> {
    let current = get(status, "Progressing")?;
    if complete(deployment, status)
        || matches!(current.reason.as_deref(), Some("ProgressDeadlineExceeded" | "NewReplicaSetAvailable"))
    {
        return None;
    }
    let updated = current.last_update_time.as_ref()?.0.as_second();
    let left = (updated + deadline - now.as_second()).max(0) + 1;
    u64::try_from(left).ok().map(Duration::from_secs)
}

fn replica_failure(sets: &Sets, status: &mut DeploymentStatus, now: Timestamp) {
    let failure = sets.new.iter().chain(&sets.old).find_map(|e| {
        e.set.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == "ReplicaFailure" && c.status == "True")
    });
    match failure {
        Some(c) => {
            let text = c.message.as_deref().unwrap_or("");
            let reason = c.reason.as_deref().unwrap_or("FailedCreate");
            set(status, condition("ReplicaFailure", "True", reason, text, now));
        }
        None => status.conditions.iter_mut().for_each(|c| c.retain(|c| c.type_ != "ReplicaFailure")),
    }
}
