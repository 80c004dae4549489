//! Ownership as Lease objects in `kube-system`: one for every address (whose name is on it), one for every node (that
//! it is alive). Only a node's own Lease is renewed, so the writes do not grow with the number of addresses. The label
//! keeps the two apart: all nodes watch the Leases of addresses, which change with their holders only.
//!
//! In: what to write, and the version it was read at. Out: the Lease as stored; a refusal when somebody was faster.

use crate::plan::LEASE;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, Error};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::Duration;

/// Where they are.
pub const NAMESPACE: &str = "kube-system";
/// The label all of them bear; its value says which of the two it is.
pub const LABEL: &str = "causeway.dev/announce";
const NODE: &str = "node";
const ADDRESS: &str = "address";
/// Selects the Leases of addresses.
pub const ADDRESSES: &str = "causeway.dev/announce=address";
/// An answer that takes longer comes too late.
const PATIENCE: Duration = Duration::from_millis(1500);

/// The Leases.
#[derive(Clone)]
pub struct Leases {
    api: Api<Lease>,
    node: String,
}

/// What became of a write.
pub type Outcome<T> = Result<T, Error>;

/// The name of a node's Lease.
pub fn node_lease(node: &str) -> String {
    format!("announce-{node}")
}

/// The name of an address' Lease.
pub fn address_lease(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => format!("load-balancer-{v4}"),
        IpAddr::V6(v6) => {
            let words: Vec<String> = v6.segments().iter().map(|s| format!("{s:x}")).collect();
            format!("load-balancer-{}", words.join("-"))
        }
    }
}

/// What a Lease says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A node is alive.
    Node(String),
    /// An address has this name on it; empty for none.
    Address(IpAddr, String),
}

/// The name on a Lease; empty for none.
pub fn holder(lease: &Lease) -> String {
    lease.spec.as_ref().and_then(|s| s.holder_identity.clone()).unwrap_or_default()
}

/// Reads a Lease; `None` when it is none of ours.
pub fn read(lease: &Lease) -> Option<Said> {
    let holder = holder(lease);
    match lease.metadata.labels.as_ref()?.get(LABEL)?.as_str() {
        NODE => Some(Said::Node(holder)),
        ADDRESS => {
            let ip = lease.metadata.annotations.as_ref()?.get("causeway.dev/address")?.parse().ok()?;
            Some(Said::Address(ip, holder))
        }
        _ => None,
    }
}

/// The version of a Lease, by which a later write proves that nothing came between.
pub fn version(lease: &Lease) -> String {
    lease.metadata.resource_version.clone().unwrap_or_default()
}

async fn in_time<T>(call: impl Future<Output = Result<T, Error>>) -> Outcome<T> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(done) => done,
        Err(_) => Err(Error::Service("the API server did not answer in time".into())),
    }
}

/// Somebody else was faster, or it is gone: a new look settles it.
pub fn is_race(error: &Error) -> bool {
    matches!(error, Error::Api(status) if matches!(status.code, 404 | 409))
}

impl Leases {
    /// Written as `node`.
    pub fn new(client: Client, node: &str) -> Self {
        Self { api: Api::namespaced(client, NAMESPACE), node: node.to_owned() }
    }

    /// For watching.
    pub fn api(&self) -> Api<Lease> {
        self.api.clone()
    }

    /// Says that this node is alive. Out: the version of its Lease.
    pub async fn renew(&self) -> Outcome<String> {
        let name = node_lease(&self.node);
        let now = micro_now();
        let spec = json!({ "holderIdentity": self.node, "leaseDurationSeconds": LEASE.as_secs(), "renewTime": now });
        let patch = json!({ "metadata": { "labels": { LABEL: NODE } }, "spec": spec });
        let patched = in_time(self.api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch))).await;
        let stored = match patched {
            Err(Error::Api(status)) if status.code == 404 => {
                let lease = object(json!({ "metadata": { "name": name, "labels": { LABEL: NODE } }, "spec": spec }))?;
                in_time(self.api.create(&PostParams::default(), &lease)).await
            }
            other => other,
        };
        stored.map(|lease| version(&lease))
    }

    /// Takes this node's Lease away, if it is still at the version that its last renewal gave it (`None`: at the one it
    /// has now): should the request arrive late, it must not take away what was renewed meanwhile.
    pub async fn leave(&self, renewed: Option<String>) -> Outcome<()> {
        let name = node_lease(&self.node);
        let seen = match renewed {
            None => self.look(&self.node).await?,
            known => known,
        };
        let Some(seen) = seen else { return Ok(()) };
        in_time(self.api.delete(&name, &only_at(seen))).await.map(drop)
    }

    /// The version of a node's Lease, read from the API server now; `None` when it is not there.
    pub async fn look(&self, node: &str) -> Outcome<Option<String>> {
        let there = in_time(self.api.get_opt(&node_lease(node))).await?;
        Ok(there.as_ref().map(version))
    }

    /// Puts a name (empty: none) on an address' Lease, which must still be as `read`.
    pub async fn sign(&self, ip: IpAddr, read: Option<&Lease>, holder: &str) -> Outcome<Lease> {
        let before = read.and_then(|l| l.spec.as_ref());
        let moved = before.is_none_or(|s| s.holder_identity.as_deref() != Some(holder));
        let moves = before.and_then(|s| s.lease_transitions).unwrap_or(0) + i32::from(moved && read.is_some());
        let lease = object(json!({
            "metadata": {
                "name": address_lease(ip),
                "labels": { LABEL: ADDRESS },
                "annotations": { "causeway.dev/address": ip.to_string() },
                "resourceVersion": read.map(version),
            },
            "spec": {
                "holderIdentity": holder, "leaseDurationSeconds": LEASE.as_secs(), "leaseTransitions": moves,
                "acquireTime": micro_now(), "renewTime": micro_now(),
            },
        }))?;
        match read {
            Some(_) => in_time(self.api.replace(&address_lease(ip), &PostParams::default(), &lease)).await,
            None => in_time(self.api.create(&PostParams::default(), &lease)).await,
        }
    }

    /// Removes the Lease of an address that is no more, unless it was written meanwhile.
    pub async fn forget(&self, ip: IpAddr, read: &Lease) -> Outcome<()> {
        in_time(self.api.delete(&address_lease(ip), &only_at(version(read)))).await.map(drop)
    }
}

fn only_at(version: String) -> DeleteParams {
    let same = Preconditions { uid: None, resource_version: Some(version) };
    DeleteParams { preconditions: Some(same), ..DeleteParams::default() }
}

fn micro_now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

fn object(value: Value) -> Outcome<Lease> {
    serde_json::from_value(value).map_err(Error::SerdeError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_readings() {
        assert_eq!(address_lease("10.0.0.1".parse().unwrap()), "load-balancer-10.0.0.1");
        assert_eq!(address_lease("fd00::1".parse().unwrap()), "load-balancer-fd00-0-0-0-0-0-0-1");
        let lease = |kind: &str| {
            object(json!({
                "metadata": { "name": "x", "labels": { LABEL: kind }, "annotations": { "causeway.dev/address": "fd00::1" } },
                "spec": { "holderIdentity": "a" },
            }))
            .unwrap()
        };
        assert_eq!(read(&lease("node")), Some(Said::Node("a".into())));
        assert_eq!(read(&lease("address")), Some(Said::Address("fd00::1".parse().unwrap(), "a".into())));
        assert_eq!(read(&lease("other")), None);
        assert_eq!(ADDRESSES, format!("{LABEL}={ADDRESS}"));
    }
}
