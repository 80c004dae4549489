//! Services of type LoadBalancer: addresses out of the configured pools.
//!
//! In: Services without a `loadBalancerClass` or with ours, the pools, and the claims. Out: `status.loadBalancer`.
//! An address is claimed by creating the IPAddress object of its name, which only one can do; whoever fails there looks
//! for another one. A claim comes before the status and goes after it, and a claim without a Service is given back, so
//! that a crash at any point neither doubles nor loses an address. Announcing it is the nodes' work.

pub mod plan;

use crate::cache::key_of;
use crate::context::{Context, Events};
use crate::error::{Doing, Error, Result, ignore_not_found};
use crate::meta::{has_finalizer, label, name, namespace};
use crate::queue::{Key, Queue};
use causeway_api::balancer::{CLAIM_MANAGER, is_ours};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::IPAddress;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// A Service that got nothing is looked at again after this even if no address became free.
const AGAIN: Duration = Duration::from_secs(60);

/// The controller.
pub struct LoadBalancers {
    context: Arc<Context>,
    events: Events,
}

/// Wires the handlers up; the queue is worked by the caller.
pub fn queue(context: &Arc<Context>) -> Arc<Queue<Key>> {
    let queue = Queue::new();
    let (sink, services) = (queue.clone(), context.caches.services.clone());
    context.caches.services.on_change(move |old, new| {
        // An address is free only when nobody is told of it either, and the two are seen in any order.
        let now = new.map(|s| published(s)).unwrap_or_default();
        if old.is_some_and(|s| published(s).iter().any(|ip| !now.contains(ip))) {
            wake(&sink, &services.all());
        }
        if let Some(service) = new.or(old) {
            sink.add(key_of(&**service));
        }
    });
    let (sink, services) = (queue.clone(), context.caches.services.clone());
    context.caches.addresses.on_change(move |old, new| {
        let Some(key) = new.or(old).and_then(|a| claimed_by(a)) else { return };
        sink.add(key);
        if new.is_none() {
            wake(&sink, &services.all());
        }
    });
    queue
}

/// An address has become free: for those who wait for one.
fn wake(queue: &Queue<Key>, services: &[Arc<Service>]) {
    for service in services.iter().filter(|s| is_ours(s) && waits(s)) {
        queue.add(key_of(&**service));
    }
}

/// Has fewer addresses than families, or not those it wishes.
fn waits(service: &Service) -> bool {
    let has = published(service);
    is_short(service) || plan::wish(service).is_ok_and(|wish| wish.addresses.iter().any(|ip| !has.contains(ip)))
}

/// The Service a claim is for.
fn claimed_by(address: &IPAddress) -> Option<Key> {
    let parent = &address.spec.as_ref()?.parent_ref;
    let ours = label(&address.metadata, MANAGED_BY) == Some(CLAIM_MANAGER) && parent.resource == "services";
    ours.then(|| Key::new(parent.namespace.as_deref().unwrap_or(""), &parent.name))
}

/// The addresses in a Service's status.
fn published(service: &Service) -> Vec<IpAddr> {
    let balancer = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let ingress = balancer.and_then(|b| b.ingress.as_ref()).into_iter().flatten();
    ingress.filter_map(|i| i.ip.as_ref()?.parse().ok()).collect()
}

/// Has fewer addresses than families.
fn is_short(service: &Service) -> bool {
    let families = service.spec.as_ref().and_then(|s| s.ip_families.as_ref()).map_or(1, Vec::len);
    published(service).len() < families
}

impl LoadBalancers {
    /// The controller over `context`.
    pub fn new(context: Arc<Context>) -> Arc<Self> {
        let events = context.recorder("service-controller");
        Arc::new(Self { context, events })
    }

    /// One level-triggered step for one Service.
    pub async fn reconcile(self: Arc<Self>, key: Key) -> Result<Option<Duration>> {
        let caches = &self.context.caches;
        let claims: Vec<IpAddr> = self.claims(&key);
        let Some(service) = caches.services.get(&key) else {
            return self.give_back(&key, &claims).await.map(|()| None);
        };
        let going = service.metadata.deletion_timestamp.is_some();
        let pools = self.context.config.cluster.pools();
        let class = service.spec.as_ref().and_then(|s| s.load_balancer_class.as_ref());
        // Without pools of ours, a Service without a class is somebody else's.
        let ours = is_ours(&service) && (!pools.is_empty() || class.is_some() || !claims.is_empty());
        if ours && !going {
            return self.ensure(&key, &service, &claims).await;
        }
        if !claims.is_empty() || ours && has_finalizer(&service.metadata, FINALIZER) {
            self.release(&key, &service, &claims).await?;
        }
        Ok(None)
    }

    fn claims(&self, key: &Key) -> Vec<IpAddr> {
        let all = self.context.caches.addresses.all();
        let own = all.iter().filter(|a| claimed_by(a).as_ref() == Some(key));
        own.filter_map(|a| name(&a.metadata).parse().ok()).collect()
    }

    async fn ensure(&self, key: &Key, service: &Service, claims: &[IpAddr]) -> Result<Option<Duration>> {
        let before = published(service);
        // What the status says counts as the Service's own, also when its claim got lost.
        let mut own: Vec<IpAddr> = before.clone();
        own.extend(claims.iter().filter(|ip| !before.contains(ip)));
        let chosen = match self.choose(key, service, own).await? {
            Ok(chosen) => chosen,
            Err(why) => {
                // What it has, it keeps: a wish that cannot be met takes nothing away.
                let message = format!("Error syncing load balancer: failed to ensure load balancer: {why}");
                self.events.warning(service, "SyncLoadBalancerFailed", message);
                return Ok(Some(AGAIN));
            }
        };
        if !has_finalizer(&service.metadata, FINALIZER) {
            self.set_finalizer(key, service, true).await?;
        }
        if chosen != before {
            self.events.normal(service, "EnsuringLoadBalancer", "Ensuring load balancer");
            self.publish(key, service, &chosen).await?;
            self.events.normal(service, "EnsuredLoadBalancer", "Ensured load balancer");
        }
        let surplus: Vec<IpAddr> = claims.iter().filter(|ip| !chosen.contains(ip)).copied().collect();
        self.give_back(key, &surplus).await?;
        Ok(None)
    }

    /// Chooses and claims; tried again with what turned out to be taken.
    async fn choose(&self, key: &Key, service: &Service, mut own: Vec<IpAddr>) -> Result<Result<Vec<IpAddr>, String>> {
        let caches = &self.context.caches;
        let wish = match plan::wish(service) {
            Ok(wish) => wish,
            Err(why) => return Ok(Err(why)),
        };
        let addresses = caches.addresses.all();
        let mut taken: BTreeSet<IpAddr> = addresses.iter().filter_map(|a| name(&a.metadata).parse().ok()).collect();
        for other in caches.services.all().iter().filter(|s| key_of(&***s) != *key) {
            taken.extend(published(other));
        }
        loop {
            let pools = self.context.config.cluster.pools();
            let chosen = match plan::choose(&wish, pools, &own, |ip| taken.contains(&ip)) {
                Ok(chosen) => chosen,
                Err(why) => return Ok(Err(why)),
            };
            let mut refused = None;
            for ip in &chosen {
                if !self.claim(key, *ip).await? {
                    refused = Some(*ip);
                    break;
                }
            }
            // A claim of another Service, or of a controller beside us.
            let Some(ip) = refused else { return Ok(Ok(chosen)) };
            taken.insert(ip);
            own.retain(|o| *o != ip);
        }
    }

    /// Whether the address is this Service's.
    async fn claim(&self, key: &Key, ip: IpAddr) -> Result<bool> {
        let api = self.context.cluster::<IPAddress>();
        let known = self.context.caches.addresses.get(&Key::new("", &ip.to_string()));
        if known.is_some_and(|a| claimed_by(&a).as_ref() == Some(key)) {
            return Ok(true);
        }
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        let object = json!({
            "metadata": {
                "name": ip.to_string(),
                "labels": { MANAGED_BY: CLAIM_MANAGER, "ipaddress.kubernetes.io/ip-family": family },
            },
            "spec": { "parentRef": { "resource": "services", "namespace": key.namespace, "name": key.name } },
        });
        let object: IPAddress =
            serde_json::from_value(object).map_err(|e| Error::Object(format!("the claim of {ip}: {e}")))?;
        let created = api.create(&PostParams::default(), &object).await;
        match created.doing(|| format!("claim the address {ip} for Service {key}")) {
            Ok(_) => Ok(true),
            Err(error) if error.is_already_exists() => {
                let there = api.get_opt(&ip.to_string()).await.doing(|| format!("read the claim of {ip}"))?;
                Ok(there.is_some_and(|a| claimed_by(&a).as_ref() == Some(key)))
            }
            Err(error) => Err(error),
        }
    }

    /// Status first, then claims: an address is free when nobody is told of it any more.
    async fn release(&self, key: &Key, service: &Service, claims: &[IpAddr]) -> Result<()> {
        self.events.normal(service, "DeletingLoadBalancer", "Deleting load balancer");
        if !published(service).is_empty() {
            self.publish(key, service, &[]).await?;
        }
        self.give_back(key, claims).await?;
        if has_finalizer(&service.metadata, FINALIZER) {
            self.set_finalizer(key, service, false).await?;
        }
        self.events.normal(service, "DeletedLoadBalancer", "Deleted load balancer");
        Ok(())
    }

    async fn give_back(&self, key: &Key, claims: &[IpAddr]) -> Result<()> {
        let api = self.context.cluster::<IPAddress>();
        for ip in claims {
            let done = api.delete(&ip.to_string(), &DeleteParams::default()).await;
            ignore_not_found(done.doing(|| format!("give back the address {ip} of Service {key}")))?;
        }
        Ok(())
    }

    async fn publish(&self, key: &Key, service: &Service, addresses: &[IpAddr]) -> Result<()> {
        let ingress: Vec<_> = addresses.iter().map(|ip| json!({ "ip": ip.to_string(), "ipMode": "VIP" })).collect();
        let balancer = if ingress.is_empty() { json!({ "ingress": null }) } else { json!({ "ingress": ingress }) };
        // The uid: a namesake that came later must not get it.
        let patch = json!({ "metadata": { "uid": service.metadata.uid }, "status": { "loadBalancer": balancer } });
        let api = self.context.api::<Service>(namespace(&service.metadata));
        let done = api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        ignore_not_found(done.doing(|| format!("set the load balancer addresses of Service {key}"))).map(drop)
    }

    async fn set_finalizer(&self, key: &Key, service: &Service, wanted: bool) -> Result<()> {
        let mut all: Vec<String> = service.metadata.finalizers.clone().unwrap_or_default();
        all.retain(|f| f != FINALIZER);
        if wanted {
            all.push(FINALIZER.to_owned());
        }
        let api = self.context.api::<Service>(&key.namespace);
        // With the version: nobody else's finalizer may be lost.
        let patch = json!({ "metadata": { "finalizers": all, "resourceVersion": service.metadata.resource_version } });
        let done = api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        ignore_not_found(done.doing(|| format!("set the finalizer of Service {key}"))).map(drop)
    }
}
