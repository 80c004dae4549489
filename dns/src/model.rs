//! The records of one Service. In: the parts of a Service and its EndpointSlices that names depend on. Out: [`Records`].
//! Pure; it is what the zone, the tests and the snapshot on disk speak. Kept small: there are as many endpoints as pods.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Namespace and name of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// `metadata.namespace`.
    pub namespace: Box<str>,
    /// `metadata.name`.
    pub name: Box<str>,
}

/// The protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// As names have it, in lower case.
    pub fn of(text: &str) -> Option<Self> {
        let known = [("tcp", Self::Tcp), ("udp", Self::Udp), ("sctp", Self::Sctp)];
        known.into_iter().find(|(word, _)| text.eq_ignore_ascii_case(word)).map(|(_, protocol)| protocol)
    }
}

/// A named port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Port {
    /// Its name, in lower case.
    pub name: Box<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The number clients connect to.
    pub port: u16,
}

/// Named ports, sorted; the endpoints of a slice share them.
pub type Ports = Arc<[Port]>;

/// An endpoint of a headless service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its name below the service's: the hostname, or the dashed address. Lower case.
    pub label: Box<str>,
    /// Addresses under the name, sorted.
    pub ips: Box<[IpAddr]>,
    /// Named ports of this endpoint.
    #[serde(with = "shared")]
    pub ports: Ports,
}

/// What a Service's name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Records {
    /// Stable addresses.
    Cluster {
        /// `spec.clusterIPs`.
        ips: Box<[IpAddr]>,
        /// Named ports.
        #[serde(with = "shared")]
        ports: Ports,
    },
    /// The endpoints themselves, sorted by label.
    Headless {
        /// By label.
        endpoints: Box<[Endpoint]>,
    },
    /// Another name.
    External {
        /// `spec.externalName`.
        target: Box<str>,
    },
}

impl Records {
    /// A headless service of these endpoints; those of one label become one.
    pub fn headless(endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        let mut by_label: BTreeMap<Box<str>, (BTreeSet<IpAddr>, Ports)> = BTreeMap::new();
        for endpoint in endpoints {
            match by_label.get_mut(&endpoint.label) {
                None => {
                    let ips = endpoint.ips.iter().copied().collect();
                    by_label.insert(endpoint.label, (ips, endpoint.ports));
                }
                Some((ips, ports)) => {
                    ips.extend(endpoint.ips);
                    if *ports != endpoint.ports {
                        *ports = sorted(ports.iter().chain(endpoint.ports.iter()).cloned());
                    }
                }
            }
        }
        let each = by_label.into_iter();
        let endpoints = each.map(|(label, (ips, ports))| Endpoint { label, ips: ips.into_iter().collect(), ports });
        Self::Headless { endpoints: endpoints.collect() }
    }
}

/// What names depend on in a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServicePart {
    /// It has no address yet.
    Nothing,
    /// Its addresses and named ports.
    Cluster(Box<[IpAddr]>, Ports),
    /// Its endpoints; those that are not ready too, when true.
    Headless(bool),
    /// Another name.
    External(Box<str>),
}

/// What names depend on in an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePart {
    ports: Ports,
    endpoints: Box<[EndpointPart]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct EndpointPart {
    hostname: Option<Box<str>>,
    ips: Box<[IpAddr]>,
    ready: bool,
}

impl From<&Service> for ServicePart {
    fn from(service: &Service) -> Self {
        let Some(spec) = service.spec.as_ref() else { return Self::Nothing };
        if spec.type_.as_deref() == Some("ExternalName") {
            let target = spec.external_name.as_deref().filter(|t| !t.is_empty());
            return target.map_or(Self::Nothing, |t| Self::External(t.to_ascii_lowercase().into()));
        }
        let ips = spec.cluster_ips.clone().unwrap_or_else(|| spec.cluster_ip.iter().cloned().collect());
        if ips.iter().any(|ip| ip == "None") {
            return Self::Headless(spec.publish_not_ready_addresses == Some(true));
        }
        let ips: Box<[IpAddr]> = ips.iter().filter_map(|ip| ip.parse().ok()).collect();
        if ips.is_empty() {
            return Self::Nothing;
        }
        let ports = spec.ports.iter().flatten();
        let ports = ports.filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), p.port));
        Self::Cluster(ips, sorted(ports))
    }
}

impl From<&EndpointSlice> for SlicePart {
    fn from(slice: &EndpointSlice) -> Self {
        let numbered = slice.ports.iter().flatten();
        let ports = sorted(numbered.filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), p.port?)));
        let endpoints = slice.endpoints.iter().map(|endpoint| EndpointPart {
            hostname: endpoint.hostname.as_deref().filter(|h| !h.is_empty()).map(|h| h.to_ascii_lowercase().into()),
            ips: endpoint.addresses.iter().filter_map(|a| a.parse().ok()).collect(),
            ready: endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true),
        });
        Self { ports, endpoints: endpoints.collect() }
    }
}

/// Works the records of a Service out; `None` when it has none (no address yet).
pub fn records<'a>(service: &ServicePart, slices: impl IntoIterator<Item = &'a SlicePart>) -> Option<Records> {
    match service {
        ServicePart::Nothing => None,
        ServicePart::External(target) => Some(Records::External { target: target.clone() }),
        ServicePart::Cluster(ips, ports) => Some(Records::Cluster { ips: ips.clone(), ports: ports.clone() }),
        ServicePart::Headless(all) => {
            let mut endpoints = Vec::new();
            for slice in slices {
                for part in slice.endpoints.iter().filter(|e| e.ready || *all) {
                    let named = |label: Box<str>, ips| Endpoint { label, ips, ports: slice.ports.clone() };
                    match &part.hostname {
                        Some(hostname) => endpoints.push(named(hostname.clone(), part.ips.clone())),
                        None => endpoints.extend(part.ips.iter().map(|ip| named(dashed(*ip).into(), [*ip].into()))),
                    }
                }
            }
            Some(Records::headless(endpoints))
        }
    }
}

/// Only named ports have SRV records.
fn port(name: Option<&str>, protocol: Option<&str>, number: i32) -> Option<Port> {
    let name = name.filter(|n| !n.is_empty())?.to_ascii_lowercase().into();
    Some(Port { name, protocol: Protocol::of(protocol.unwrap_or("TCP"))?, port: u16::try_from(number).ok()? })
}

fn sorted(ports: impl Iterator<Item = Port>) -> Ports {
    ports.collect::<BTreeSet<_>>().into_iter().collect()
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

/// Shared lists on disk.
mod shared {
    use super::{Port, Ports};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(ports: &Ports, to: S) -> Result<S::Ok, S::Error> {
        ports.as_ref().serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Ports, D::Error> {
        Vec::<Port>::deserialize(from).map(Ports::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(spec: serde_json::Value) -> ServicePart {
        let value = json!({ "metadata": { "name": "s", "namespace": "n" }, "spec": spec });
        ServicePart::from(&serde_json::from_value::<Service>(value).unwrap())
    }

    fn slice(value: serde_json::Value) -> SlicePart {
        SlicePart::from(&serde_json::from_value::<EndpointSlice>(value).unwrap())
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
        assert_eq!(endpoints.iter().map(|e| &*e.label).collect::<Vec<_>>(), ["10-1-0-2", "web-0"]);
        assert_eq!(endpoints[1].ports.len(), 1);
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
            endpoints[0].ports.iter().map(|p| format!("{}/{:?}/{}", p.name, p.protocol, p.port)).collect();
        assert_eq!(ports, ["admin/Tcp/90", "dns/Udp/53", "http/Tcp/80", "http/Tcp/81"]);
        // Nobody has to have ports, and unnamed ones have no name to be asked by.
        let bare = slice(json!({
            "addressType": "IPv4", "metadata": {}, "ports": [{ "port": 9 }], "endpoints": [{ "addresses": ["10.1.0.1"] }],
        }));
        let Some(Records::Headless { endpoints }) = records(&headless, [&bare]) else { panic!() };
        assert!(&*endpoints[0].label == "10-1-0-1" && endpoints[0].ports.is_empty());
        let portless = service(json!({ "clusterIPs": ["10.96.0.9"] }));
        let none: [SlicePart; 0] = [];
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
