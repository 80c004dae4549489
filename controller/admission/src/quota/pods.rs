//! Pods under quotas. In: pods. Out: what they use, what they must say, what they are by scope.

use crate::amounts::Amounts;
use crate::pod_resources::{self, Kind};
use crate::quantity::Quantity;
use crate::read::{at, entries, has, list, text};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const COUNT: &str = "count/pods";
const DEVICE_CLASS: &str = "deviceclass.resource.kubernetes.io/";

/// A quota for one of these demands that every container says its amount. A mistake of old, kept for compatibility.
const DEMANDED: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

/// Whether a name in a quota is for pods.
pub(super) fn covers(name: &str) -> bool {
    matches!(
        name,
        COUNT
            | "pods"
            | "cpu"
            | "memory"
            | "ephemeral-storage"
            | "requests.cpu"
            | "requests.memory"
            | "requests.ephemeral-storage"
            | "limits.cpu"
            | "limits.memory"
            | "limits.ephemeral-storage"
    ) || name.starts_with("hugepages-")
        || name.starts_with("requests.hugepages-")
        || name.strip_prefix("requests.").is_some_and(|rest| !native(name) || rest.starts_with(DEVICE_CLASS))
}

/// Of Kubernetes' own names, which need no prefix.
fn native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn extended(name: &str) -> bool {
    !native(name) && !name.starts_with("requests.") || name.starts_with(DEVICE_CLASS)
}

/// What a pod uses. One that has ended, or should have, is only counted as an object.
pub(super) fn usage(pod: &Value, now: i64) -> Result<Amounts, String> {
    let mut used = Amounts::from([(COUNT.to_owned(), Quantity::count(1))]);
    if holds(pod, now) {
        let requests = pod_resources::held(pod, Kind::Requests)?;
        used.extend(compute(&requests, &pod_resources::held(pod, Kind::Limits)?));
    }
    Ok(used)
}

/// Whether a pod holds what it asked for.
fn holds(pod: &Value, now: i64) -> bool {
    if matches!(text(pod, "status.phase"), "Failed" | "Succeeded") {
        return false;
    }
    let deleted = text(pod, "metadata.deletionTimestamp").parse::<jiff::Timestamp>().map(jiff::Timestamp::as_second);
    match (deleted, at(pod, "metadata.deletionGracePeriodSeconds").as_i64()) {
        (Ok(deleted), Some(grace)) => now <= deleted.saturating_add(grace),
        _ => true,
    }
}

/// The names of a quota for requests and limits.
fn compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut used = Amounts::from([("pods".to_owned(), Quantity::count(1))]);
    for (name, amount) in requests {
        let standard = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
        if standard || name.starts_with("hugepages-") {
            used.insert(name.clone(), *amount);
        }
        if standard || name.starts_with("hugepages-") || extended(name) {
            used.insert(format!("requests.{name}"), *amount);
        }
    }
    for (name, amount) in limits {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            used.insert(format!("limits.{name}"), *amount);
        }
    }
    used
}

/// Containers that do not say what a quota demands.
pub(super) fn constraints(names: &BTreeSet<&str>, pod: &Value) -> Result<(), String> {
    if pod_resources::pod_level_set(pod) {
        return Ok(());
    }
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in ["spec.containers", "spec.initContainers"].into_iter().flat_map(|path| list(pod, path)) {
        let said = |demanded: &str| {
            let (kind, name) = demanded.split_once('.').unwrap_or(("requests", demanded));
            entries(at(container, "resources"), kind).any(|(said, amount)| said == name && !amount.is_null())
        };
        for demanded in DEMANDED.into_iter().filter(|d| names.contains(d) && !said(d)) {
            missing.entry(demanded).or_default().insert(text(container, "name"));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let one = |(what, who): (&&str, &BTreeSet<&str>)| {
        format!("{what} for: {}", who.iter().copied().collect::<Vec<_>>().join(","))
    };
    Err(format!("must specify {}", missing.iter().map(one).collect::<Vec<_>>().join("; ")))
}

/// A pod that ends by itself: it has a deadline.
pub(super) fn terminating(pod: &Value) -> bool {
    at(pod, "spec.activeDeadlineSeconds").as_i64().is_some_and(|seconds| seconds >= 0)
}

/// A pod that asks for no CPU and no memory.
pub(super) fn best_effort(pod: &Value) -> bool {
    let asks = |resources: &Value| {
        ["requests", "limits"].iter().any(|kind| {
            entries(resources, kind).any(|(name, amount)| {
                // What cannot be read asks for something.
                matches!(name.as_str(), "cpu" | "memory") && Quantity::of(amount).is_none_or(|a| a > Quantity::ZERO)
            })
        })
    };
    if pod_resources::pod_level_set(pod) {
        return !asks(at(pod, "spec.resources"));
    }
    let mut containers = ["spec.containers", "spec.initContainers"].into_iter().flat_map(|path| list(pod, path));
    !containers.any(|c| asks(at(c, "resources")))
}

/// A pod whose affinity looks into other namespaces, and so can keep their pods from nodes.
pub(super) fn cross_namespace_affinity(pod: &Value) -> bool {
    let crosses = |term: &Value| !list(term, "namespaces").is_empty() || has(term, "namespaceSelector");
    ["podAffinity", "podAntiAffinity"].into_iter().any(|kind| {
        let affinity = at(at(pod, "spec.affinity"), kind);
        list(affinity, "requiredDuringSchedulingIgnoredDuringExecution").iter().any(crosses)
            || list(affinity, "preferredDuringSchedulingIgnoredDuringExecution")
                .iter()
                .any(|t| crosses(at(t, "podAffinityTerm")))
    })
}
