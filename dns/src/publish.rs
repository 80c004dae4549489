//! Tells the cluster where this node's DNS is: an EndpointSlice `kube-dns-<node>` of Service `kube-system/kube-dns`,
//! ready while we serve. kube-proxy sends a node's queries to the endpoint on that node.

use causeway_api::endpoints::SERVICE_NAME_LABEL;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Error};
use serde_json::json;
use std::net::IpAddr;

/// The namespace of the DNS service.
pub const NAMESPACE: &str = "kube-system";
/// The name of the DNS service.
pub const SERVICE: &str = "kube-dns";
const MANAGER: &str = "causeway-dns";

/// Writes the slices of this node, one an address family.
pub(crate) async fn endpoint(client: &Client, node: &str, ips: &[IpAddr], ready: bool) -> Result<(), Error> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    for (suffix, family, v6) in [("", "IPv4", false), ("-v6", "IPv6", true)] {
        let addresses: Vec<String> = ips.iter().filter(|ip| ip.is_ipv6() == v6).map(ToString::to_string).collect();
        if addresses.is_empty() {
            continue;
        }
        let name = format!("{SERVICE}-{node}{suffix}");
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": name,
                "labels": { SERVICE_NAME_LABEL: SERVICE, "endpointslice.kubernetes.io/managed-by": MANAGER },
            },
            "addressType": family,
            "ports": [
                { "name": "dns", "port": 53, "protocol": "UDP" },
                { "name": "dns-tcp", "port": 53, "protocol": "TCP" },
            ],
            "endpoints": [{
                "addresses": addresses,
                "nodeName": node,
                "conditions": { "ready": ready, "serving": ready, "terminating": !ready },
            }],
        });
        slices.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&slice)).await?;
    }
    Ok(())
}
