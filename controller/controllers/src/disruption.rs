//! PodDisruptionBudgets: how many pods may be evicted now.
//!
//! In: budgets, the pods they select, the controllers of those pods. Out: the budgets' status, which the API server's
//! eviction asks and counts down. [`status`] and [`expected_scale`] decide; this file finds and writes.

use crate::cache::key_of;
use crate::context::Context;
use crate::error::{Doing, Result, ignore_not_found};
use crate::meta::{controller_of, namespace, scaled};
use crate::queue::{Key, Queue};
use causeway_api::pod;
use causeway_api::selector::Selector;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::PostParams;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// An evicted pod that is still not being deleted after this long counts as healthy again.
const DELETION: SignedDuration = SignedDuration::from_secs(120);
/// A controller of pods that is not found may just not have come in yet.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The controller.
pub struct Disruptions {
    context: Arc<Context>,
}

/// Wires the handlers up; the queue is worked by the caller.
pub fn queue(context: &Arc<Context>) -> Arc<Queue<Key>> {
    let queue = Queue::new();
    let sink = queue.clone();
    context.caches.budgets.on_change(move |_, new| {
        if let Some(budget) = new {
            sink.add(key_of(&**budget));
        }
    });
    let (sink, budgets) = (queue.clone(), context.caches.budgets.clone());
    context.caches.pods.on_change(move |old, new| {
        for pod in [old, new].into_iter().flatten() {
            for budget in budgets.in_namespace(namespace(&pod.metadata)) {
                if selects(&budget, pod) {
                    sink.add(key_of(&*budget));
                }
            }
        }
    });
    queue
}

/// Whether a budget covers a pod. No selector covers none, an empty one all of the namespace.
fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.and_then(|s| Selector::from_object(s).ok()).is_some_and(|s| s.matches_option(pod.metadata.labels.as_ref()))
}

impl Disruptions {
    /// The controller over `context`.
    pub fn new(context: Arc<Context>) -> Arc<Self> {
        Arc::new(Self { context })
    }

    /// One level-triggered step for one budget.
    pub async fn reconcile(self: Arc<Self>, key: Key) -> Result<Option<Duration>> {
        let caches = &self.context.caches;
        let Some(budget) = caches.budgets.get(&key).filter(|b| b.metadata.deletion_timestamp.is_none()) else {
            return Ok(None);
        };
        let pods: Vec<_> =
            caches.pods.in_namespace(&key.namespace).into_iter().filter(|pod| selects(&budget, pod)).collect();
        let scale = expected_scale(&pods, |owner| self.scale(&key.namespace, owner));
        let (wanted, again) = status(&budget, &pods, scale, Timestamp::now());
        if budget.status.as_ref() != Some(&wanted) {
            // With the version that was read: evictions count down here too, and none may be forgotten.
            let new = PodDisruptionBudget { status: Some(wanted), ..(*budget).clone() };
            let api = self.context.api::<PodDisruptionBudget>(&key.namespace);
            let written = api.replace_status(&key.name, &PostParams::default(), &new).await;
            ignore_not_found(written.doing(|| format!("update the status of PodDisruptionBudget {key}")))?;
        }
        Ok(again)
    }

    /// The workload behind a pod's controller (for a ReplicaSet its Deployment) by uid, and how many pods it wants.
    fn scale(&self, namespace: &str, owner: &OwnerReference) -> Option<(String, i32)> {
        let caches = &self.context.caches;
        let key = Key::new(namespace, &owner.name);
        match owner.kind.as_str() {
            "ReplicaSet" => {
                let set = caches.replica_sets.get(&key)?;
                if let Some(above) = controller_of(&set.metadata).filter(|o| o.kind == "Deployment") {
                    return self.scale(namespace, above);
                }
                Some((set.metadata.uid.clone()?, set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)))
            }
            "Deployment" => {
                let deployment = caches.deployments.get(&key)?;
                let replicas = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
                Some((deployment.metadata.uid.clone()?, replicas))
            }
            "StatefulSet" => {
                let set = caches.stateful_sets.get(&key)?;
                Some((set.metadata.uid.clone()?, set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)))
            }
            _ => None,
        }
    }
}

/// How many pods the controllers of these pods want together, each counted once; pods without one do not count.
/// Pure: `scale` looks a controller up.
pub fn expected_scale(
    pods: &[Arc<Pod>],
    scale: impl Fn(&OwnerReference) -> Option<(String, i32)>,
) -> Result<i32, String> {
    let mut workloads = BTreeMap::new();
    for pod in pods {
        let Some(owner) = controller_of(&pod.metadata) else { continue };
        let Some((uid, replicas)) = scale(owner) else {
            let name = crate::meta::name(&pod.metadata);
            return Err(format!("the scale of {} {} of pod {name} cannot be found", owner.kind, owner.name));
        };
        workloads.insert(uid, replicas);
    }
    Ok(workloads.values().fold(0, |sum: i32, replicas| sum.saturating_add(*replicas)))
}

/// Expected pods, and how many of them must stay healthy. Pure.
fn wanted(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], scale: Result<i32, String>) -> Result<(i32, i32), String> {
    let spec = budget.spec.as_ref();
    if let Some(most) = spec.and_then(|s| s.max_unavailable.as_ref()) {
        let expected = scale?;
        return Ok((expected, expected.saturating_sub(scaled(Some(most), expected, true)).max(0)));
    }
    match spec.and_then(|s| s.min_available.as_ref()) {
        Some(IntOrString::Int(least)) => Ok((i32::try_from(pods.len()).unwrap_or(i32::MAX), *least)),
        Some(percent) => {
            let expected = scale?;
            Ok((expected, scaled(Some(percent), expected, true)))
        }
        None => Ok((0, 0)),
    }
}

/// The status a budget should have, and when to look again without a change. Pure.
pub fn status(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    scale: Result<i32, String>,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Option<Duration>) {
    let old = budget.status.clone().unwrap_or_default();
    let generation = budget.metadata.generation;
    let (expected, desired) = match wanted(budget, pods, scale) {
        Ok(numbers) => numbers,
        Err(why) => {
            let conditions = Some(vec![condition(&old, generation, "SyncFailed", &why, now)]);
            let safe = PodDisruptionBudgetStatus {
                disruptions_allowed: 0,
                observed_generation: generation,
                conditions,
                ..old
            };
            return (safe, Some(LOOK_AGAIN));
        }
    };
    // Pods whose eviction was granted, but that are not being deleted yet.
    let granted = old.disrupted_pods.as_ref();
    let leaving: BTreeMap<String, Time> = pods
        .iter()
        .filter(|p| !pod::is_terminating(p))
        .filter_map(|p| granted?.get_key_value(p.metadata.name.as_deref()?))
        .filter(|(_, at)| at.0.saturating_add(DELETION).is_ok_and(|end| end > now))
        .map(|(name, at)| (name.clone(), at.clone()))
        .collect();
    let again = leaving.values().map(|at| at.0.duration_until(now)).max();
    let again = again.map(|age| Duration::try_from(DELETION - age).unwrap_or_default() + Duration::from_secs(1));
    let healthy = pods
        .iter()
        .filter(|p| pod::is_ready(p) && !pod::is_terminating(p))
        .filter(|p| !leaving.contains_key(crate::meta::name(&p.metadata)))
        .count();
    let healthy = i32::try_from(healthy).unwrap_or(i32::MAX);
    let allowed = if expected > 0 { healthy.saturating_sub(desired).max(0) } else { 0 };
    let reason = if allowed > 0 { "SufficientPods" } else { "InsufficientPods" };
    let status = PodDisruptionBudgetStatus {
        conditions: Some(vec![condition(&old, generation, reason, "", now)]),
        current_healthy: healthy,
        desired_healthy: desired,
        disrupted_pods: (!leaving.is_empty()).then_some(leaving),
        disruptions_allowed: allowed,
        expected_pods: expected,
        observed_generation: generation,
    };
    (status, again)
}

/// The condition DisruptionAllowed; its time changes only with its truth.
fn condition(
    old: &PodDisruptionBudgetStatus,
    generation: Option<i64>,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Condition {
    let type_ = "DisruptionAllowed";
    let status = if reason == "SufficientPods" { "True" } else { "False" };
    let before = old.conditions.iter().flatten().find(|c| c.type_ == type_ && c.status == status);
    // In seconds, as it is stored: a finer one would never equal what comes back.
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: generation,
        last_transition_time: before.map_or(now, |c| c.last_transition_time.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{meta, pod as make, selector};
    use k8s_openapi::api::policy::v1::PodDisruptionBudgetSpec;

    fn budget(least: Option<&str>, most: Option<&str>) -> PodDisruptionBudget {
        let value = |text: &str| match text.parse() {
            Ok(n) => IntOrString::Int(n),
            Err(_) => IntOrString::String(text.to_owned()),
        };
        PodDisruptionBudget {
            metadata: meta("b"),
            spec: Some(PodDisruptionBudgetSpec {
                min_available: least.map(value),
                max_unavailable: most.map(value),
                selector: Some(selector("web")),
                ..PodDisruptionBudgetSpec::default()
            }),
            status: None,
        }
    }

    fn pods(ready: usize, not_ready: usize) -> Vec<Arc<Pod>> {
        (0..ready + not_ready).map(|i| Arc::new(make(&format!("p{i}"), "n1", i < ready))).collect()
    }

    #[test]
    fn the_budget_is_what_is_healthy_beyond_what_must_be() {
        // minAvailable, maxUnavailable, ready, not ready, scale: expected, desired, allowed.
        for (least, most, ready, not, scale, want) in [
            (Some("2"), None, 3, 0, 9, (3, 2, 1)),
            (Some("2"), None, 2, 1, 9, (3, 2, 0)),
            (Some("4"), None, 3, 0, 9, (3, 4, 0)),
            (Some("0"), None, 0, 0, 0, (0, 0, 0)),
            (Some("50%"), None, 5, 0, 5, (5, 3, 2)),
            (None, Some("1"), 3, 0, 3, (3, 2, 1)),
            (None, Some("1"), 2, 0, 3, (3, 2, 0)),
            (None, Some("30%"), 3, 0, 3, (3, 2, 1)),
            (None, Some("100%"), 3, 0, 3, (3, 0, 3)),
            (None, Some("9"), 3, 0, 3, (3, 0, 3)),
            (None, None, 3, 0, 3, (0, 0, 0)),
        ] {
            let (s, again) = status(&budget(least, most), &pods(ready, not), Ok(scale), Timestamp::UNIX_EPOCH);
            let got = (s.expected_pods, s.desired_healthy, s.disruptions_allowed);
            assert_eq!(got, want, "{least:?} {most:?} {ready}+{not} of {scale}");
            assert_eq!((s.current_healthy, s.observed_generation, again), (ready as i32, Some(1), None));
            let condition = &s.conditions.unwrap()[0];
            assert_eq!(condition.status == "True", want.2 > 0, "{condition:?}");
        }
    }

    #[test]
    fn granted_evictions_count_until_they_are_seen_or_too_old() {
        let mut b = budget(Some("1"), None);
        let now = Timestamp::from_second(1000).unwrap();
        let at = |seconds: i64| Time(Timestamp::from_second(seconds).unwrap());
        let granted = [("p0".to_owned(), at(990)), ("p1".to_owned(), at(800)), ("gone".to_owned(), at(999))];
        b.status = Some(PodDisruptionBudgetStatus { disrupted_pods: Some(granted.into()), ..Default::default() });
        let mut all = pods(3, 0);
        let (s, again) = status(&b, &all, Ok(3), now);
        assert_eq!((s.current_healthy, s.disruptions_allowed), (2, 1));
        assert_eq!(s.disrupted_pods.as_ref().unwrap().keys().collect::<Vec<_>>(), ["p0"]);
        assert_eq!(again, Some(Duration::from_secs(111)));
        // Being deleted, it needs no mark any more.
        Arc::make_mut(&mut all[0]).metadata.deletion_timestamp = Some(at(1001));
        b.status = Some(s);
        let (s, again) = status(&b, &all, Ok(3), now);
        assert_eq!((s.current_healthy, s.disrupted_pods.is_none(), again), (2, true, None));
        b.status = Some(s.clone());
        assert_eq!(status(&b, &all, Ok(3), now + SignedDuration::from_secs(60)).0, s, "nothing to write");
    }

    #[test]
    fn controllers_count_once_and_unknown_ones_allow_nothing() {
        let owned = |name: &str, owner: &str| {
            let mut p = make(name, "n1", true);
            let reference = OwnerReference {
                kind: "ReplicaSet".to_owned(),
                name: owner.to_owned(),
                controller: Some(true),
                ..OwnerReference::default()
            };
            p.metadata.owner_references = Some(vec![reference]);
            Arc::new(p)
        };
        let all = [owned("a", "one"), owned("b", "one"), owned("c", "two"), Arc::new(make("d", "n1", true))];
        let scale = |o: &OwnerReference| Some((o.name.clone(), if o.name == "one" { 3 } else { 4 }));
        assert_eq!(expected_scale(&all, scale), Ok(7));
        let unknown = expected_scale(&all, |_| None);
        let (s, again) = status(&budget(None, Some("1")), &all, unknown, Timestamp::UNIX_EPOCH);
        assert_eq!((s.disruptions_allowed, s.conditions.unwrap()[0].reason.as_str()), (0, "SyncFailed"));
        assert!(again.is_some());
    }
}
