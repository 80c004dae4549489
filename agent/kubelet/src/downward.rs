//! The downward API: fields of the pod and resources of its containers as text. Pure.

use crate::resources;
use causeway_api::quantity;
use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What the downward API reads beside the pod itself.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The pod's addresses.
    pub pod_ips: Vec<IpAddr>,
    /// The node's addresses.
    pub host_ips: Vec<IpAddr>,
    /// The node's allocatable CPU in thousandths: the limit of a container without one.
    pub cpu_milli: i64,
    /// The node's allocatable memory in bytes.
    pub memory_bytes: i64,
}

/// The value of a `fieldRef`.
pub fn field(pod: &Pod, selector: &ObjectFieldSelector, facts: &Facts) -> Result<String, String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let path = selector.field_path.as_str();
    let text = |v: Option<&String>| Ok(v.cloned().unwrap_or_default());
    let first = |ips: &[IpAddr]| ips.first().map(IpAddr::to_string).unwrap_or_default();
    let all = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    match path {
        "metadata.name" => text(meta.name.as_ref()),
        "metadata.namespace" => text(meta.namespace.as_ref()),
        "metadata.uid" => text(meta.uid.as_ref()),
        "metadata.labels" => Ok(lines(meta.labels.as_ref())),
        "metadata.annotations" => Ok(lines(meta.annotations.as_ref())),
        "spec.nodeName" => text(spec.and_then(|s| s.node_name.as_ref())),
        "spec.serviceAccountName" => text(spec.and_then(|s| s.service_account_name.as_ref())),
        "status.podIP" => Ok(first(&facts.pod_ips)),
        "status.podIPs" => Ok(all(&facts.pod_ips)),
        "status.hostIP" => Ok(first(&facts.host_ips)),
        "status.hostIPs" => Ok(all(&facts.host_ips)),
        _ => {
            let keyed = |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']");
            if let Some(key) = keyed("metadata.labels") {
                return text(meta.labels.as_ref().and_then(|l| l.get(key)));
            }
            if let Some(key) = keyed("metadata.annotations") {
                return text(meta.annotations.as_ref().and_then(|l| l.get(key)));
            }
            Err(format!("unsupported fieldPath: {path}"))
        }
    }
}

/// `key="value"` lines, values quoted.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let all = map.into_iter().flatten().map(|(k, v)| format!("{k}={}", serde_json::Value::from(v.as_str())));
    all.collect::<Vec<_>>().join("\n")
}

/// The value of a `resourceFieldRef` for `own` (the container it stands in), or another container of the pod.
pub fn resource(
    pod: &Pod,
    own: Option<&Container>,
    r: &ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, String> {
    let spec = pod.spec.as_ref();
    let named = |name: &str| {
        let all = spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
        all.into_iter().find(|c| c.name == name)
    };
    let container = match r.container_name.as_deref().filter(|n| !n.is_empty()) {
        Some(name) => named(name).ok_or_else(|| format!("container {name} not found"))?,
        None => own.ok_or("resourceFieldRef needs a containerName here")?,
    };
    let (limits, requests) = (resources::limits(container), resources::requests(container));
    let milli = match r.resource.as_str() {
        "limits.cpu" => resources::milli(limits, "cpu").unwrap_or(facts.cpu_milli).into(),
        "requests.cpu" => resources::milli(requests, "cpu").or(resources::milli(limits, "cpu")).unwrap_or(0).into(),
        "limits.memory" => i128::from(resources::units(limits, "memory").unwrap_or(facts.memory_bytes)) * 1000,
        "requests.memory" => {
            i128::from(resources::units(requests, "memory").or(resources::units(limits, "memory")).unwrap_or(0)) * 1000
        }
        "limits.ephemeral-storage" => i128::from(resources::units(limits, "ephemeral-storage").unwrap_or(0)) * 1000,
        "requests.ephemeral-storage" => i128::from(resources::units(requests, "ephemeral-storage").unwrap_or(0)) * 1000,
        other => return Err(format!("unsupported container resource: {other}")),
    };
    let divisor = r.divisor.as_ref().and_then(|q| quantity::milli(&q.0)).filter(|d| *d > 0).unwrap_or(1000);
    Ok(((milli + divisor - 1) / divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_and_resources() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "labels": {"a": "x", "b": "q\"q"}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}}}]}}))
        .unwrap();
        let facts =
            Facts { pod_ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()], ..Facts::default() };
        let get = |p: &str| field(&pod, &ObjectFieldSelector { field_path: p.to_owned(), api_version: None }, &facts);
        assert_eq!(get("metadata.labels['a']").unwrap(), "x");
        assert_eq!(get("metadata.labels").unwrap(), "a=\"x\"\nb=\"q\\\"q\"");
        assert_eq!(get("status.podIPs").unwrap(), "10.0.0.1,fd00::1");
        assert!(get("spec.containers").is_err());
        let c = &pod.spec.as_ref().unwrap().containers[0];
        let res = |r: &str, d: Option<&str>| {
            let s = json!({"resource": r, "divisor": d});
            resource(&pod, Some(c), &serde_json::from_value(s).unwrap(), &facts).unwrap()
        };
        assert_eq!(res("limits.cpu", None), "2");
        assert_eq!(res("limits.cpu", Some("1m")), "1500");
        assert_eq!(res("limits.memory", Some("1Mi")), "64");
    }
}
