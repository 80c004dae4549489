//! The next pods to create and delete, in order, and the status. Pure.

use super::pod::{identified, ordinal, ordinals};
use crate::meta::label;
use crate::revision::HASH_LABEL;
use causeway_api::pod;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Create the pod of an ordinal, from the update revision or else the current one.
    Create {
        /// Which.
        ordinal: i32,
        /// From the newest template.
        updated: bool,
    },
    /// Delete a pod; with the event's reason and word when it is to be made again because it ended.
    Delete {
        /// Which.
        pod: Arc<Pod>,
        /// Reason and word.
        reason: Option<(&'static str, &'static str)>,
    },
    /// Label a pod with its ordinal.
    Identify {
        /// Which.
        pod: Arc<Pod>,
    },
}

/// Names of the two revisions in play.
#[derive(Debug, Clone, Copy)]
pub struct Revisions<'a> {
    /// What pods below the partition run.
    pub current: &'a str,
    /// What the set's template says.
    pub update: &'a str,
}

/// One step.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// In this order.
    pub actions: Vec<Action>,
    /// The status to show.
    pub status: StatefulSetStatus,
}

struct Step<'a> {
    set: &'a StatefulSet,
    slots: BTreeMap<i32, Arc<Pod>>,
    /// Beyond the wanted ordinals, highest first.
    condemned: Vec<Arc<Pod>>,
    ordered: bool,
    min_ready: i32,
    partition: i32,
    rolling: bool,
    revisions: Revisions<'a>,
    now: i64,
    actions: Vec<Action>,
}

/// Plans one step.
pub fn plan(set: &StatefulSet, pods: &[Arc<Pod>], revisions: &Revisions, now: i64) -> Plan {
    let spec = set.spec.as_ref();
    let strategy = spec.and_then(|s| s.update_strategy.as_ref());
    let range = ordinals(set);
    let (mut slots, mut condemned) = (BTreeMap::new(), Vec::new());
    for pod in pods {
        match ordinal(set, pod) {
            Some(o) if range.contains(&o) => drop(slots.insert(o, pod.clone())),
            Some(_) => condemned.push(pod.clone()),
            None => {}
        }
    }
    condemned.sort_by_key(|p| Reverse(ordinal(set, p)));
    let mut step = Step {
        set,
        slots,
        condemned,
        ordered: spec.and_then(|s| s.pod_management_policy.as_deref()) != Some("Parallel"),
        min_ready: spec.and_then(|s| s.min_ready_seconds).unwrap_or(0),
        partition: strategy.and_then(|s| s.rolling_update.as_ref()).and_then(|r| r.partition).unwrap_or(0),
        rolling: strategy.and_then(|s| s.type_.as_deref()) != Some("OnDelete"),
        revisions: *revisions,
        now,
        actions: Vec::new(),
    };
    if set.metadata.deletion_timestamp.is_none() && step.fill() && step.shrink() && step.rolling {
        step.update();
    }
    let status = status(set, pods, revisions, step.rolling, now);
    Plan { actions: step.actions, status }
}

fn running_and_ready(p: &Pod) -> bool {
    pod::phase(p) == "Running" && pod::is_ready(p)
}

impl Step<'_> {
    fn healthy(&self, p: &Pod) -> bool {
        running_and_ready(p) && !pod::is_terminating(p) && pod::is_available(p, self.min_ready, self.now)
    }

    /// Fills the ordinals from the lowest. Whether the next phase may begin.
    fn fill(&mut self) -> bool {
        for o in ordinals(self.set) {
            let Some(p) = self.slots.get(&o).cloned() else {
                let start = ordinals(self.set).start;
                let updated = !self.rolling || o >= start + self.partition;
                self.actions.push(Action::Create { ordinal: o, updated });
                if self.ordered {
                    return false;
                }
                continue;
            };
            if pod::is_finished(&p) {
                if !pod::is_terminating(&p) {
                    let reason = match pod::phase(&p) {
                        "Failed" => ("RecreatingFailedPod", "failed"),
                        _ => ("RecreatingTerminatedPod", "terminated"),
                    };
                    self.actions.push(Action::Delete { pod: p, reason: Some(reason) });
                }
                if self.ordered {
                    return false;
                }
                continue;
            }
            if self.ordered && !self.healthy(&p) {
                return false;
            }
            if !identified(self.set, &p) && !pod::is_terminating(&p) {
                self.actions.push(Action::Identify { pod: p });
            }
        }
        true
    }

    /// Takes the pods beyond the size from the highest.
    fn shrink(&mut self) -> bool {
        let sick = self.condemned.iter().rev().find(|p| !self.healthy(p)).cloned();
        for p in self.condemned.clone() {
            if pod::is_terminating(&p) {
                if self.ordered {
                    return false;
                }
                continue;
            }
            // An unhealthy lower one is waited for, unless it is this one.
            if self.ordered && !running_and_ready(&p) && sick.as_ref() != Some(&p) {
                return false;
            }
            self.actions.push(Action::Delete { pod: p, reason: None });
            if self.ordered {
                return false;
            }
        }
        true
    }

    /// Replaces pods of older revisions from the highest ordinal, one at a time.
    fn update(&mut self) {
        let range = ordinals(self.set);
        for o in (range.start + self.partition..range.end).rev() {
            let Some(p) = self.slots.get(&o) else { return };
            let outdated = label(&p.metadata, HASH_LABEL) != Some(self.revisions.update);
            if outdated && !pod::is_terminating(p) {
                if !self.actions.iter().any(|a| matches!(a, Action::Delete { pod, .. } if pod == p)) {
                    self.actions.push(Action::Delete { pod: p.clone(), reason: None });
                }
                return;
            }
            if !self.healthy(p) {
                return;
            }
        }
    }
}

fn status(set: &StatefulSet, pods: &[Arc<Pod>], revisions: &Revisions, rolling: bool, now: i64) -> StatefulSetStatus {
    let min_ready = set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let count = |f: &dyn Fn(&Pod) -> bool| pods.iter().filter(|p| f(p)).count() as i32;
    let of = |revision: &str| count(&|p| !pod::is_terminating(p) && label(&p.metadata, HASH_LABEL) == Some(revision));
    let replicas = pods.len() as i32;
    let ready = count(&running_and_ready);
    let (mut current, updated) = (of(revisions.current), of(revisions.update));
    let wanted = ordinals(set).len() as i32;
    let mut current_revision = revisions.current;
    if rolling && updated == wanted && ready == wanted && replicas == wanted {
        (current, current_revision) = (updated, revisions.update);
    }
    let old = set.status.clone().unwrap_or_default();
    let some = |n: i32| (n != 0).then_some(n);
    StatefulSetStatus {
        replicas,
        ready_replicas: some(ready),
        // Always shown, also when it is 0.
        available_replicas: Some(count(&|p| running_and_ready(p) && pod::is_available(p, min_ready, now))),
        current_replicas: some(current),
        updated_replicas: some(updated),
        current_revision: Some(current_revision.to_owned()),
        update_revision: Some(revisions.update.to_owned()),
        observed_generation: set.metadata.generation,
        collision_count: old.collision_count,
        conditions: old.conditions,
    }
}

#[cfg(test)]
mod tests;
