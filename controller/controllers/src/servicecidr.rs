//! ServiceCIDRs (KEP-1880): says when a range is ready, and keeps one from going while addresses would be left outside
//! of every range.
//!
//! In: ServiceCIDRs, IPAddresses. Out: the condition `Ready`, and the finalizer that holds a range. Giving out
//! addresses is the API server's work; it looks only at ranges that are ready and not going away.

use crate::cache::key_of;
use crate::context::Context;
use crate::error::{Doing, Result, ignore_not_found};
use crate::meta::{has_finalizer, label, name};
use crate::queue::{Key, Queue};
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Keeps a range as long as an address needs it.
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
/// Who gives out cluster IPs.
const ALLOCATOR: &str = "ipallocator.k8s.io";
/// An allocation that saw the range before its deletion was marked has ended by then.
const GRACE: Duration = Duration::from_secs(10);
const HELD: &str =
    "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";

/// The controller.
pub struct ServiceCidrs {
    context: Arc<Context>,
}

/// Wires the handlers up; the queue is worked by the caller.
pub fn queue(context: &Arc<Context>) -> Arc<Queue<Key>> {
    let queue = Queue::new();
    let (sink, all) = (queue.clone(), context.caches.cidrs.clone());
    context.caches.cidrs.on_change(move |old, new| {
        if let Some(range) = new.or(old) {
            sink.add(key_of(&**range));
        }
        // A range that comes may free one that goes, and the other way round.
        waiting(&all.all()).for_each(|key| sink.add(key));
    });
    let (sink, all) = (queue.clone(), context.caches.cidrs.clone());
    context.caches.addresses.on_change(move |_, new| {
        if new.is_none() {
            waiting(&all.all()).for_each(|key| sink.add(key));
        }
    });
    queue
}

/// Ranges that wait for their end.
fn waiting(all: &[Arc<ServiceCIDR>]) -> impl Iterator<Item = Key> {
    all.iter().filter(|r| r.metadata.deletion_timestamp.is_some()).map(|r| key_of(&**r))
}

fn nets(range: &ServiceCIDR) -> impl Iterator<Item = IpNet> {
    range.spec.iter().filter_map(|s| s.cidrs.as_ref()).flatten().filter_map(|c| c.parse().ok())
}

/// Whether addresses would lie outside of every range that stays, if this one went.
fn is_needed(range: &ServiceCIDR, all: &[Arc<ServiceCIDR>], addresses: &[IpAddr]) -> bool {
    let stays: Vec<IpNet> = all
        .iter()
        .filter(|r| r.metadata.deletion_timestamp.is_none() && r.metadata.name != range.metadata.name)
        .flat_map(|r| nets(r))
        .collect();
    let own: Vec<IpNet> = nets(range).collect();
    addresses.iter().any(|ip| own.iter().any(|n| n.contains(ip)) && !stays.iter().any(|n| n.contains(ip)))
}

/// The addresses that were given to Services.
fn given(addresses: &[Arc<IPAddress>]) -> Vec<IpAddr> {
    let ours = addresses.iter().filter(|a| label(&a.metadata, MANAGED_BY) == Some(ALLOCATOR));
    ours.filter_map(|a| name(&a.metadata).parse().ok()).collect()
}

impl ServiceCidrs {
    /// The controller over `context`.
    pub fn new(context: Arc<Context>) -> Arc<Self> {
        Arc::new(Self { context })
    }

    /// One level-triggered step for one range.
    pub async fn reconcile(self: Arc<Self>, key: Key) -> Result<Option<Duration>> {
        let caches = &self.context.caches;
        let Some(range) = caches.cidrs.get(&key) else { return Ok(None) };
        let Some(deleted) = &range.metadata.deletion_timestamp else {
            if !has_finalizer(&range.metadata, FINALIZER) {
                self.set_finalizer(&range, true).await?;
            }
            self.set_ready(&range, "True", "", "Kubernetes Service CIDR is ready").await?;
            return Ok(None);
        };
        if !has_finalizer(&range.metadata, FINALIZER) {
            return Ok(None);
        }
        if is_needed(&range, &caches.cidrs.all(), &given(&caches.addresses.all())) {
            self.set_ready(&range, "False", "Terminating", HELD).await?;
            return Ok(None);
        }
        let age = Duration::try_from(Timestamp::now().duration_since(deleted.0)).unwrap_or_default();
        if age < GRACE {
            return Ok(Some(GRACE - age));
        }
        self.set_finalizer(&range, false).await?;
        Ok(None)
    }

    async fn set_finalizer(&self, range: &ServiceCIDR, wanted: bool) -> Result<()> {
        let mut all: Vec<String> = range.metadata.finalizers.clone().unwrap_or_default();
        all.retain(|f| f != FINALIZER);
        if wanted {
            all.push(FINALIZER.to_owned());
        }
        // With the version: nobody else's finalizer may be lost.
        let patch = json!({ "metadata": { "finalizers": all, "resourceVersion": range.metadata.resource_version } });
        let name = name(&range.metadata);
        let api = self.context.cluster::<ServiceCIDR>();
        let done = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        ignore_not_found(done.doing(|| format!("set the finalizer of ServiceCIDR {name}"))).map(drop)
    }

    async fn set_ready(&self, range: &ServiceCIDR, status: &str, reason: &str, message: &str) -> Result<()> {
        let mut conditions = range.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        if conditions.iter().any(|c| c.type_ == "Ready" && c.status == status && c.message == message) {
            return Ok(());
        }
        conditions.retain(|c| c.type_ != "Ready");
        let mut all: Vec<Value> = conditions.iter().map(|c| json!(c)).collect();
        all.push(json!({ "type": "Ready", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string() }));
        let patch = json!({ "status": { "conditions": all } });
        let name = name(&range.metadata);
        let api = self.context.cluster::<ServiceCIDR>();
        let done = api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        ignore_not_found(done.doing(|| format!("set the condition Ready of ServiceCIDR {name}"))).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(name: &str, cidrs: &[&str], going: bool) -> Arc<ServiceCIDR> {
        let mut object = json!({ "metadata": { "name": name }, "spec": { "cidrs": cidrs } });
        if going {
            object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn a_range_is_needed_for_addresses_that_nobody_else_covers() {
        let going = range("a", &["10.1.0.0/24", "fd00::/64"], true);
        let inside: Vec<IpAddr> = vec!["10.1.0.7".parse().unwrap()];
        let six: Vec<IpAddr> = vec!["fd00::7".parse().unwrap()];
        let outside: Vec<IpAddr> = vec!["10.2.0.7".parse().unwrap()];
        let alone = [going.clone()];
        assert!(is_needed(&going, &alone, &inside) && is_needed(&going, &alone, &six));
        assert!(!is_needed(&going, &alone, &outside) && !is_needed(&going, &alone, &[]));
        assert!(!is_needed(&going, &[going.clone(), range("b", &["10.1.0.0/16"], false)], &inside));
        assert!(is_needed(
            &going,
            &[going.clone(), range("b", &["10.1.0.0/28"], false)],
            &["10.1.0.99".parse().unwrap()]
        ));
        // Two that go at once do not hold each other's addresses.
        assert!(is_needed(&going, &[going.clone(), range("b", &["10.1.0.0/16"], true)], &inside));
    }
}
