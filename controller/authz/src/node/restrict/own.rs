//! What else a node writes of its own: leases, its CSINode and ResourceSlices, the status of its pods' claims, the slice
//! of its DNS, its finalizer of local volumes, requests for its certificates.

use super::node::addresses;
use super::{Lookup, Operation, Write, refuse, same, without};
use crate::node::authorize::LEASES;
use crate::node::graph::VOLUME_NODE_LABEL;
use crate::node::references::text;
use serde_json::{Value, json};
use std::net::IpAddr;

const SYSTEM: &str = "kube-system";
/// The finalizer of local volumes.
const LOCAL: &str = "causeway.dev/local-path";
/// What the server writes by itself.
const SERVERS: [&str; 3] = ["/metadata/resourceVersion", "/metadata/managedFields", "/metadata/generation"];

/// The API's words for a resize, and nothing else.
pub(super) fn claim_status(node: &str, write: &Write<'_>) -> Result<(), String> {
    if write.operation != Operation::Update {
        return refuse(format!("unexpected operation {:?}", write.operation.word()));
    }
    let fields = [
        "/status/capacity",
        "/status/conditions",
        "/status/allocatedResourceStatuses",
        "/status/allocatedResources",
        SERVERS[0],
        SERVERS[1],
        SERVERS[2],
    ];
    if without(write.old()?, &fields) != without(write.object()?, &fields) {
        return refuse(format!(
            "node {node:?} is not allowed to update fields other than status.capacity and status.conditions"
        ));
    }
    Ok(())
}

/// Takes its finalizer off a local volume of its own that is being deleted.
pub(super) fn volume(node: &str, write: &Write<'_>) -> Result<(), String> {
    let why = || format!("node {node:?} can only remove the finalizer {LOCAL} of its own local volumes");
    if write.operation != Operation::Update || !write.subresource.is_empty() {
        return Err(why());
    }
    let (old, new) = (write.old()?, write.object()?);
    let own = old.pointer("/metadata/labels").is_some_and(|l| l[VOLUME_NODE_LABEL] == node);
    let going = !text(old, "/metadata/deletionTimestamp").is_empty();
    let finalizers = |object: &Value| -> Vec<Value> {
        object.pointer("/metadata/finalizers").and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let left: Vec<Value> = finalizers(old).into_iter().filter(|f| f != LOCAL).collect();
    let rest = ["/metadata/finalizers", SERVERS[0], SERVERS[1], SERVERS[2]];
    let only = finalizers(new) == left || finalizers(new) == finalizers(old);
    if own && going && only && without(old, &rest) == without(new, &rest) { Ok(()) } else { Err(why()) }
}

/// The node's own, those of its announcer, and of load balancer addresses those that it takes, has or that nobody has.
pub(super) fn lease(node: &str, write: &Write<'_>, lookup: &dyn Lookup) -> Result<(), String> {
    let name = write.target();
    match write.namespace {
        LEASES if name == node => Ok(()),
        LEASES => refuse("can only access node lease with the same name as the requesting node"),
        SYSTEM if name.strip_prefix("announce-") == Some(node) => {
            if write.object.is_some_and(|new| text(new, "/spec/holderIdentity") != node) {
                return refuse(format!("node {node:?} can only hold its own lease itself"));
            }
            Ok(())
        }
        SYSTEM if name.starts_with("load-balancer-") => address_lease(node, write, name, lookup),
        _ => refuse(format!("can only access leases in the {LEASES:?} system namespace, and those of its announcer")),
    }
}

/// Who is next to announce an address signs with its own name; an address is given up by who has it. That a node takes
/// an address that a live one has cannot be told here: nodes agree on that by what they have seen of each other.
fn address_lease(node: &str, write: &Write<'_>, name: &str, lookup: &dyn Lookup) -> Result<(), String> {
    let before = write.old.map_or("", |old| text(old, "/spec/holderIdentity"));
    let own = before.is_empty() || before == node;
    let Some(new) = write.object else {
        if own || is_silent(before, lookup) {
            return Ok(());
        }
        return refuse(format!("node {node:?} can only delete the lease of an address that it has or nobody has"));
    };
    let address = new.pointer("/metadata/annotations").map_or("", |a| text(a, "/causeway.dev~1address"));
    if address.parse::<IpAddr>().ok().is_none_or(|ip| lease_of(ip) != name) {
        return refuse("the lease of an address must name it in its annotation");
    }
    let holder = text(new, "/spec/holderIdentity");
    if holder == node || (holder.is_empty() && own) {
        return Ok(());
    }
    refuse(format!("node {node:?} can only put its own name on the lease of an address"))
}

/// As `causeway-announce` names it.
fn lease_of(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => format!("load-balancer-{v4}"),
        IpAddr::V6(v6) => {
            let words: Vec<String> = v6.segments().iter().map(|s| format!("{s:x}")).collect();
            format!("load-balancer-{}", words.join("-"))
        }
    }
}

/// Whether the announcer of a node has not been heard of for longer than its lease.
fn is_silent(node: &str, lookup: &dyn Lookup) -> bool {
    let Some(lease) = lookup.get("coordination.k8s.io", "leases", SYSTEM, &format!("announce-{node}")) else {
        return true;
    };
    let renewed: Option<jiff::Timestamp> = text(&lease, "/spec/renewTime").parse().ok();
    let seconds = lease.pointer("/spec/leaseDurationSeconds").and_then(Value::as_i64).unwrap_or(0).clamp(0, 3600);
    renewed.is_none_or(|at| at.as_second().saturating_add(seconds) < lookup.now())
}

pub(super) fn csi_node(node: &str, write: &Write<'_>) -> Result<(), String> {
    if write.target() != node {
        return refuse("can only access CSINode with the same name as the requesting node");
    }
    Ok(())
}

pub(super) fn resource_slice(node: &str, write: &Write<'_>) -> Result<(), String> {
    let (object, verb) = match write.operation {
        Operation::Create => (write.object()?, "create"),
        Operation::Update => (write.old()?, "update"),
        Operation::Delete => (write.old()?, "delete"),
    };
    let own = |slice: &Value| text(slice, "/spec/nodeName") == node;
    if !own(object) || !write.object.is_none_or(own) {
        return refuse(format!("can only {verb} ResourceSlice with the same NodeName as the requesting node"));
    }
    Ok(())
}

/// Where its DNS is: one slice an address family of Service `kube-system/kube-dns`, with endpoints on itself only. kube-proxy
/// sends each node's questions to the endpoint with that node's name.
pub(super) fn dns_slice(node: &str, write: &Write<'_>, lookup: &dyn Lookup) -> Result<(), String> {
    let name = write.target();
    let family = match name.strip_prefix("kube-dns-") {
        _ if write.namespace != SYSTEM => None,
        Some(rest) if rest == node => Some("IPv4"),
        Some(rest) if rest.strip_suffix("-v6") == Some(node) => Some("IPv6"),
        _ => None,
    };
    let why = |what: &str| format!("node {node:?} can only write the slice of its own DNS{what}");
    let Some(family) = family else { return Err(why("")) };
    // A node whose name ends in `-v6` has the other's name: the family and the endpoints tell them apart.
    for slice in write.old.iter().chain(&write.object) {
        if text(slice, "/addressType") != family || !endpoints(slice).all(|e| text(e, "/nodeName") == node) {
            return Err(why(", with endpoints on itself"));
        }
    }
    let Some(new) = write.object else { return Ok(()) };
    let labels = new.pointer("/metadata/labels").cloned().unwrap_or(Value::Null);
    if labels["kubernetes.io/service-name"] != "kube-dns" {
        return Err(why(", of Service kube-dns"));
    }
    if !same(new, &Value::Null, "/metadata/ownerReferences") {
        return Err(why(", without owners"));
    }
    let ports =
        json!([{ "name": "dns", "port": 53, "protocol": "UDP" }, { "name": "dns-tcp", "port": 53, "protocol": "TCP" }]);
    let found = new.pointer("/ports").and_then(Value::as_array).cloned().unwrap_or_default();
    let known = |port: &Value| ports.as_array().is_some_and(|all| all.contains(&without(port, &[])));
    if !found.iter().all(known) || found.len() > 2 {
        return Err(why(", on port 53"));
    }
    let object = lookup.get("", "nodes", "", node).unwrap_or(Value::Null);
    let own: Vec<IpAddr> = addresses(&object).filter_map(|a| a.parse().ok()).collect();
    let said = endpoints(new).flat_map(|e| e.get("addresses").and_then(Value::as_array).into_iter().flatten());
    for address in said {
        let ip = address.as_str().and_then(|a| a.parse::<IpAddr>().ok());
        if ip.is_none_or(|ip| ip.is_loopback() || !own.contains(&ip)) {
            return Err(why(", at the addresses of its Node"));
        }
    }
    Ok(())
}

fn endpoints(slice: &Value) -> impl Iterator<Item = &Value> {
    slice.get("endpoints").and_then(Value::as_array).into_iter().flatten()
}

/// Requests for its own certificates only; the rest of them the signer checks.
pub(super) fn certificate(node: &str, write: &Write<'_>, lookup: &dyn Lookup) -> Result<(), String> {
    if write.operation != Operation::Create || !write.subresource.is_empty() {
        return refuse(format!("node {node:?} can only create certificate signing requests"));
    }
    let request = write.object()?;
    let signer = text(request, "/spec/signerName");
    if !matches!(signer, "kubernetes.io/kubelet-serving" | "kubernetes.io/kube-apiserver-client-kubelet") {
        return refuse(format!("node {node:?} can only request certificates of kubelets, not of signer {signer:?}"));
    }
    let name = lookup.common_name(text(request, "/spec/request")).map_err(|e| format!("unable to parse csr: {e}"))?;
    if name.strip_prefix("system:node:") != Some(node) {
        return refuse(format!("can only create a node CSR with CN=system:node:{node}"));
    }
    Ok(())
}
