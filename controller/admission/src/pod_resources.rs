//! What a pod asks for and is limited to, over all its containers (upstream: `component-helpers/resource`).
//!
//! In: a pod. Out: amounts. Init containers run one after another, so the greatest of them counts; sidecars run beside
//! everything that starts after them.

use crate::amounts::{Amounts, add, raise, read};
use crate::read::{at, entries, list, text};
use serde_json::Value;
use std::collections::HashMap;

/// Which half of `resources` is summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Requests,
    Limits,
}

impl Kind {
    fn key(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Limits => "limits",
        }
    }
}

/// What the spec says, without the overhead of the runtime class.
pub(crate) fn of_spec(pod: &Value, kind: Kind) -> Result<Amounts, String> {
    let mut total = of_containers(pod, kind, &HashMap::new())?;
    override_by_pod_level(pod, kind, &["cpu", "memory"], &mut total)?;
    Ok(total)
}

/// What the pod holds now: while it is resized the greater of what is wanted and what it has, and the overhead.
pub(crate) fn held(pod: &Value, kind: Kind) -> Result<Amounts, String> {
    let statuses = ["status.containerStatuses", "status.initContainerStatuses"].into_iter();
    let statuses = statuses.flat_map(|path| list(pod, path)).map(|s| (text(s, "name"), s)).collect();
    let mut total = of_containers(pod, kind, &statuses)?;
    override_by_pod_level(pod, kind, &["cpu", "memory", "hugepages-"], &mut total)?;
    let mut overhead = read(at(pod, "spec.overhead"))?;
    if kind == Kind::Limits {
        // No limit stays no limit.
        overhead.retain(|name, _| total.get(name).is_some_and(|limit| !limit.is_zero()));
    }
    add(&mut total, &overhead);
    Ok(total)
}

/// Whether resources are set for the pod as a whole (KEP-2837).
pub(crate) fn pod_level_set(pod: &Value) -> bool {
    let supported = |name: &str| matches!(name, "cpu" | "memory") || name.starts_with("hugepages-");
    ["requests", "limits"].iter().any(|kind| entries(at(pod, "spec.resources"), kind).any(|(name, _)| supported(name)))
}

fn override_by_pod_level(pod: &Value, kind: Kind, supported: &[&str], total: &mut Amounts) -> Result<(), String> {
    let of_pod = read(at(at(pod, "spec.resources"), kind.key()))?;
    let counts = |name: &str| supported.iter().any(|s| name == *s || s.ends_with('-') && name.starts_with(s));
    total.extend(of_pod.into_iter().filter(|(name, _)| counts(name)));
    Ok(())
}

fn of_containers(pod: &Value, kind: Kind, statuses: &HashMap<&str, &Value>) -> Result<Amounts, String> {
    let infeasible = resize_infeasible(pod);
    let of = |container: &Value, resizable: bool| {
        let spec = read(at(at(container, "resources"), kind.key()))?;
        let status = statuses.get(text(container, "name")).filter(|s| resizable && !at(s, "resources").is_null());
        match status {
            None => Ok(spec),
            Some(status) => effective(spec, status, kind, infeasible),
        }
    };
    let mut total = Amounts::new();
    for container in list(pod, "spec.containers") {
        add(&mut total, &of(container, true)?);
    }
    let (mut sidecars, mut greatest) = (Amounts::new(), Amounts::new());
    for container in list(pod, "spec.initContainers") {
        let sidecar = text(container, "restartPolicy") == "Always";
        let mut amounts = of(container, sidecar)?;
        if sidecar {
            add(&mut total, &amounts);
            add(&mut sidecars, &amounts);
            amounts.clone_from(&sidecars);
        } else {
            add(&mut amounts, &sidecars);
        }
        raise(&mut greatest, &amounts);
    }
    raise(&mut total, &greatest);
    Ok(total)
}

fn effective(spec: Amounts, status: &Value, kind: Kind, infeasible: bool) -> Result<Amounts, String> {
    let mut amounts = if infeasible { Amounts::new() } else { spec };
    raise(&mut amounts, &read(at(at(status, "resources"), kind.key()))?);
    if kind == Kind::Requests {
        raise(&mut amounts, &read(at(status, "allocatedResources"))?);
    }
    Ok(amounts)
}

/// A resize that will never happen claims nothing.
fn resize_infeasible(pod: &Value) -> bool {
    let mut conditions = list(pod, "status.conditions").iter();
    conditions.find(|c| text(c, "type") == "PodResizePending").is_some_and(|c| text(c, "reason") == "Infeasible")
}
