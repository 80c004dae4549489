//! Requests and limits: the QoS class, cgroup values and sums for admission. Pure.

use causeway_api::quantity;
use causeway_runtime::ResourceLimits;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

type List = BTreeMap<String, Quantity>;

/// A request or limit in thousandths (`cpu`), `None` when absent or malformed.
pub fn milli(list: Option<&List>, name: &str) -> Option<i64> {
    quantity::milli(&list?.get(name)?.0).and_then(|v| i64::try_from(v).ok())
}

/// A request or limit in whole units (`memory`), `None` when absent or malformed.
pub fn units(list: Option<&List>, name: &str) -> Option<i64> {
    quantity::units(&list?.get(name)?.0).and_then(|v| i64::try_from(v).ok())
}

/// `limits` of a container.
pub fn limits(container: &Container) -> Option<&List> {
    container.resources.as_ref()?.limits.as_ref()
}

/// `requests` of a container.
pub fn requests(container: &Container) -> Option<&List> {
    container.resources.as_ref()?.requests.as_ref()
}

/// `Guaranteed`, `Burstable` or `BestEffort`, as Kubernetes decides it.
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let all = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let set = |list: Option<&List>, name: &str| milli(list, name).filter(|v| *v > 0);
    let any =
        all().any(|c| ["cpu", "memory"].iter().any(|r| set(limits(c), r).is_some() || set(requests(c), r).is_some()));
    if !any {
        return "BestEffort";
    }
    let guaranteed = all().all(|c| {
        ["cpu", "memory"].iter().all(|r| {
            let limit = set(limits(c), r);
            limit.is_some() && set(requests(c), r).is_none_or(|request| Some(request) == limit)
        })
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

/// cgroup values of a container: shares from the CPU request (or limit), quota from the CPU limit, memory limit.
pub fn cgroup_limits(container: &Container) -> ResourceLimits {
    let cpu_limit = milli(limits(container), "cpu").filter(|v| *v > 0);
    let cpu_request = milli(requests(container), "cpu").or(cpu_limit).unwrap_or(0);
    // cgroup v1: 1024 shares a CPU, at least 2, at most 262144.
    let shares = (cpu_request * 1024 / 1000).clamp(2, 262_144);
    ResourceLimits {
        cpu_shares: u64::try_from(shares).ok(),
        // At least 1 ms each 100 ms, below which the kernel refuses.
        cpu_quota: cpu_limit.map(|m| (m * 100).max(1000)),
        memory_bytes: units(limits(container), "memory").filter(|v| *v > 0),
        pids: None,
    }
}

/// What a pod asks of a node: the sum of its containers (and sidecars), or the largest init container where that is
/// more, plus overhead. (milli-CPU, bytes)
pub fn pod_requests(spec: &PodSpec) -> (i64, i64) {
    let of = |c: &Container| {
        let cpu = milli(requests(c), "cpu").or_else(|| milli(limits(c), "cpu")).unwrap_or(0);
        let memory = units(requests(c), "memory").or_else(|| units(limits(c), "memory")).unwrap_or(0);
        (cpu, memory)
    };
    let mut sum = spec.containers.iter().map(of).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    let (mut sidecars, mut peak) = ((0, 0), (0, 0));
    for c in spec.init_containers.iter().flatten() {
        let r = of(c);
        let with = (sidecars.0 + r.0, sidecars.1 + r.1);
        peak = (peak.0.max(with.0), peak.1.max(with.1));
        if c.restart_policy.as_deref() == Some("Always") {
            sidecars = with;
        }
    }
    sum = ((sum.0 + sidecars.0).max(peak.0), (sum.1 + sidecars.1).max(peak.1));
    let overhead = spec.overhead.as_ref();
    (sum.0 + milli(overhead, "cpu").unwrap_or(0), sum.1 + units(overhead, "memory").unwrap_or(0))
}

/// The cgroup of a pod: Guaranteed ones stand directly below the parent, the others in their class's.
pub fn pod_cgroup(parent: &str, pod: &Pod) -> String {
    let class = pod.spec.as_ref().map_or("BestEffort", qos_class);
    let uid = pod.metadata.uid.as_deref().unwrap_or("");
    match class {
        "Guaranteed" => format!("{parent}/pod{uid}"),
        other => format!("{parent}/{}/pod{uid}", other.to_lowercase()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(value: serde_json::Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn classes() {
        let none = spec(json!({"containers": [{"name": "a"}]}));
        assert_eq!(qos_class(&none), "BestEffort");
        let full = spec(json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]}));
        assert_eq!(qos_class(&full), "Guaranteed");
        let part = spec(json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}, {"name": "b"}]}));
        assert_eq!(qos_class(&part), "Burstable");
    }

    #[test]
    fn cgroup_values() {
        let s = spec(json!({"containers": [{"name": "a", "resources":
            {"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}}]}));
        let l = cgroup_limits(&s.containers[0]);
        assert_eq!((l.cpu_shares, l.cpu_quota, l.memory_bytes), (Some(256), Some(50_000), Some(64 << 20)));
    }

    #[test]
    fn init_containers_count_by_their_peak() {
        let s = spec(json!({
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "big", "resources": {"requests": {"cpu": "2"}}}],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "500m", "memory": "1Mi"}}}]}));
        assert_eq!(pod_requests(&s), (2100, 1 << 20));
    }
}
