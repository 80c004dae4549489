//! The records of one Service. In: the Service and its EndpointSlices. Out: [`Records`]. Pure; it is what the zone, the
//! tests and the snapshot on disk speak.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Namespace and name of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

/// A named port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Port {
    /// Its name, in lower case.
    pub name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The number clients connect to.
    pub port: u16,
}

/// An endpoint of a headless service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointName {
    /// Addresses under the name.
    pub ips: BTreeSet<IpAddr>,
    /// Named ports of this endpoint.
    pub ports: BTreeSet<Port>,
}

/// What a Service's name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Records {
    /// Stable addresses.
    Cluster {
        /// `spec.clusterIPs`.
        ips: Vec<IpAddr>,
        /// Named ports.
        ports: BTreeSet<Port>,
    },
    /// The endpoints themselves, by label: the hostname, or the dashed address.
    Headless {
        /// By label.
        endpoints: BTreeMap<String, EndpointName>,
    },
    /// Another name.
    External {
        /// `spec.externalName`.
        target: String,
    },
}

/// Works the records of a Service out; `None` when it has none (no address yet).
pub fn records(service: &Service, slices: &[impl AsRef<EndpointSlice>]) -> Option<Records> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        let target = spec.external_name.clone().filter(|t| !t.is_empty())?;
        return Some(Records::External { target: target.to_ascii_lowercase() });
    }
    let ips = spec.cluster_ips.clone().unwrap_or_else(|| spec.cluster_ip.iter().cloned().collect());
    if ips.iter().any(|ip| ip == "None") {
        let all = spec.publish_not_ready_addresses == Some(true);
        return Some(Records::Headless { endpoints: endpoints(slices, all) });
    }
    let ips: Vec<IpAddr> = ips.iter().filter_map(|ip| ip.parse().ok()).collect();
    if ips.is_empty() {
        return None;
    }
    let ports = spec.ports.iter().flatten();
    let ports = ports.filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), p.port)).collect();
    Some(Records::Cluster { ips, ports })
}

/// Only named ports have SRV records.
fn port(name: Option<&str>, protocol: Option<&str>, number: i32) -> Option<Port> {
    let name = name.filter(|n| !n.is_empty())?.to_ascii_lowercase();
    let protocol = protocol.unwrap_or("TCP").to_ascii_lowercase();
    Some(Port { name, protocol, port: u16::try_from(number).ok()? })
}

fn endpoints(slices: &[impl AsRef<EndpointSlice>], all: bool) -> BTreeMap<String, EndpointName> {
    let mut out: BTreeMap<String, EndpointName> = BTreeMap::new();
    for slice in slices.iter().map(AsRef::as_ref) {
        let numbered = slice.ports.iter().flatten();
        let ports: BTreeSet<Port> =
            numbered.filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), p.port?)).collect();
        for endpoint in &slice.endpoints {
            let conditions = endpoint.conditions.as_ref();
            let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            if !ready && !all {
                continue;
            }
            for ip in endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()) {
                let hostname = endpoint.hostname.clone().filter(|h| !h.is_empty());
                let entry = out.entry(hostname.unwrap_or_else(|| dashed(ip)).to_ascii_lowercase()).or_default();
                entry.ips.insert(ip);
                entry.ports.extend(ports.iter().cloned());
            }
        }
    }
    out
}

/// `10-244-0-5`; the fields of an IPv6 address are dashed too, in full, so that the label never starts with a dash.
pub fn dashed(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string().replace('.', "-"),
        IpAddr::V6(ip) => ip.segments().map(|s| format!("{s:x}")).as_slice().join("-"),
    }
}

/// The address a dashed label stands for.
pub fn undashed(label: &str) -> Option<IpAddr> {
    let dots: Option<IpAddr> = label.replace('-', ".").parse::<std::net::Ipv4Addr>().ok().map(IpAddr::V4);
    dots.or_else(|| label.replace('-', ":").parse::<std::net::Ipv6Addr>().ok().map(IpAddr::V6))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn service(spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({ "metadata": { "name": "s", "namespace": "n" }, "spec": spec })).unwrap()
    }

    fn slice(value: serde_json::Value) -> Arc<EndpointSlice> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn a_headless_service_names_ready_endpoints() {
        let slices = [slice(json!({
            "addressType": "IPv4", "metadata": {},
            "ports": [{ "name": "Http", "port": 80, "protocol": "TCP" }, { "port": 9 }],
            "endpoints": [
                { "addresses": ["10.1.0.1"], "hostname": "web-0" },
                { "addresses": ["10.1.0.2"], "conditions": { "ready": true } },
                { "addresses": ["10.1.0.3"], "conditions": { "ready": false } },
            ],
        }))];
        let headless = service(json!({ "clusterIP": "None", "clusterIPs": ["None"] }));
        let Some(Records::Headless { endpoints }) = records(&headless, &slices) else { panic!() };
        assert_eq!(endpoints.keys().collect::<Vec<_>>(), ["10-1-0-2", "web-0"]);
        assert_eq!(endpoints["web-0"].ports.len(), 1);
        let early = service(json!({ "clusterIPs": ["None"], "publishNotReadyAddresses": true }));
        let Some(Records::Headless { endpoints }) = records(&early, &slices) else { panic!() };
        assert_eq!(endpoints.len(), 3);
    }

    #[test]
    fn endpoints_may_list_several_ports_over_several_slices() {
        let slice_of = |name: &str, port: u16| {
            slice(json!({
                "addressType": "IPv4", "metadata": {},
                "ports": [{ "name": name, "port": port }, { "name": "dns", "port": 53, "protocol": "UDP" }],
                "endpoints": [{ "addresses": ["10.1.0.1"], "hostname": "a" }],
            }))
        };
        let headless = service(json!({ "clusterIP": "None" }));
        let slices = [slice_of("http", 80), slice_of("http", 81), slice_of("admin", 90)];
        let Some(Records::Headless { endpoints }) = records(&headless, &slices) else { panic!() };
        let ports: Vec<String> =
            endpoints["a"].ports.iter().map(|p| format!("{}/{}/{}", p.name, p.protocol, p.port)).collect();
        assert_eq!(ports, ["admin/tcp/90", "dns/udp/53", "http/tcp/80", "http/tcp/81"]);
        // Nobody has to have ports, and unnamed ones have no name to be asked by.
        let bare = slice(json!({
            "addressType": "IPv4", "metadata": {}, "ports": [{ "port": 9 }], "endpoints": [{ "addresses": ["10.1.0.1"] }],
        }));
        let Some(Records::Headless { endpoints }) = records(&headless, &[bare]) else { panic!() };
        assert!(endpoints["10-1-0-1"].ports.is_empty());
        let portless = service(json!({ "clusterIPs": ["10.96.0.9"] }));
        let none: [Arc<EndpointSlice>; 0] = [];
        assert!(matches!(records(&portless, &none), Some(Records::Cluster { ports, .. }) if ports.is_empty()));
        assert_eq!(records(&service(json!({ "clusterIP": "" })), &none), None);
    }

    #[test]
    fn dashes_are_read_back() {
        for ip in ["10.1.0.1", "fd00::1", "2001:db8:0:1::", "::1"] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(undashed(&dashed(ip)), Some(ip));
        }
        assert_eq!(undashed("web-0"), None);
    }
}
