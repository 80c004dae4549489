//! Addresses and node ports of Services: never the same twice, and kept for the Service's life.
//!
//! Everything handed out is a key of its own in the store, created by compare-and-swap *before* the Service is
//! written: an IPAddress object (networking.k8s.io/v1) for every cluster IP, an internal key for every node port.
//! A crash in between leaves a key without a Service; [`repair`] gives it back after a while. Addresses come out of
//! the ranges of the ServiceCIDR objects ([`ranges`]). Explicit wishes are honoured; others come at random out of the
//! upper band of the range, so that the lower band stays free for explicit ones (KEP-3070, KEP-3668).

mod band;
mod families;
mod fields;
pub mod ranges;
pub mod repair;

pub use fields::{addresses, carry_over, normalize};

use crate::catalog::{Served, prefix};
use crate::engine::{self, Allocation, Call, Engine, NoClaim, now_text, text};
use crate::feed::INTERNAL;
use crate::status::{ApiError, ApiResult};
use async_trait::async_trait;
use band::{Band, address, number};
use causeway_api::config::ClusterConfig;
use causeway_registry::{FieldErrors, Path};
use causeway_store::{Revision, StoreError};
use fields::Wish;
use ipnet::IpNet;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// A claim that is older than this is given up instead of being written: repair may free it soon.
const CLAIM_LIFE: Duration = Duration::from_secs(30);

/// Hands out addresses and ports.
pub struct Allocator {
    /// `IPv4`, `IPv6` or both, the primary one first.
    families: Vec<&'static str>,
    ports: (u16, u16),
}

/// What one write of a Service has taken and will give back.
#[derive(Default)]
pub struct Claim {
    /// Keys and the revisions they were written at: only that very writing is ever undone.
    taken: Vec<(String, Revision)>,
    given_back: Vec<(String, Revision)>,
    /// A dry run: what would be taken is only looked at.
    only_look: bool,
    looked_at: BTreeSet<String>,
}

/// The key of an address.
pub(crate) fn ip_key(ip: IpAddr) -> String {
    format!("{}{ip}", prefix("networking.k8s.io", "ipaddresses"))
}

/// The key of a node port.
pub(crate) fn port_key(port: u16) -> String {
    format!("{INTERNAL}nodeports/{port}")
}

/// The IPAddress object of a Service's address.
pub(crate) fn ip_object(ip: IpAddr, namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IPAddress",
        "metadata": {
            "name": ip.to_string(),
            "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": now_text(),
            "labels": {
                "ipaddress.kubernetes.io/ip-family": if ip.is_ipv4() { "IPv4" } else { "IPv6" },
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": { "parentRef": { "group": "", "resource": "services", "namespace": namespace, "name": name } },
    })
}

/// Who holds a node port.
pub(crate) fn port_object(namespace: &str, name: &str) -> Value {
    json!({ "namespace": namespace, "name": name, "since": now_text() })
}

/// Whether a key's value belongs to the Service.
fn held_by(value: &[u8], namespace: &str, name: &str) -> bool {
    let Ok(value) = serde_json::from_slice::<Value>(value) else { return false };
    let holder = value.pointer("/spec/parentRef").unwrap_or(&value);
    holder["namespace"] == namespace && holder["name"] == name
}

impl Claim {
    async fn will_give_back(&mut self, engine: &Engine, key: String, namespace: &str, name: &str) -> ApiResult<()> {
        if let (Some(kv), _) = engine.store.get(&key, None).await?
            && held_by(&kv.value, namespace, name)
        {
            self.given_back.push((key, kv.mod_revision));
        }
        Ok(())
    }

    async fn give_back_taken(&self, engine: &Engine) {
        for (key, revision) in &self.taken {
            free(engine, key, *revision).await;
        }
    }
}

#[async_trait]
impl engine::Claim for Claim {
    /// What the Service no longer uses becomes free.
    async fn commit(self: Box<Self>, engine: &Engine) {
        for (key, revision) in &self.given_back {
            free(engine, key, *revision).await;
        }
    }

    /// Where nobody knows, what was taken is left to the repair loop, which sees whether it is used.
    async fn not_written(self: Box<Self>, engine: &Engine, why: &StoreError) {
        if !matches!(why, StoreError::OutcomeUnknown { .. }) {
            self.give_back_taken(engine).await;
        }
    }

    async fn roll_back(self: Box<Self>, engine: &Engine) {
        self.give_back_taken(engine).await;
    }
}

pub(crate) async fn free(engine: &Engine, key: &str, revision: Revision) {
    match engine.store.delete(key, Some(revision)).await {
        Ok(_) | Err(StoreError::NotFound { .. } | StoreError::Conflict { .. }) => {}
        Err(error) => tracing::warn!(key, %error, "not given back now; repair will do it"),
    }
}

impl Allocator {
    /// For the cluster's families and ports; the ranges are those of the ServiceCIDR objects at each time.
    pub fn new(cluster: &ClusterConfig) -> Self {
        let mut families = Vec::new();
        for range in &cluster.service_cidrs {
            let family = if range.addr().is_ipv4() { "IPv4" } else { "IPv6" };
            if !families.contains(&family) {
                families.push(family);
            }
        }
        Self { families, ports: cluster.node_ports }
    }

    async fn fill(&self, engine: &Engine, claim: &mut Claim, new: &mut Value, old: Option<&Value>) -> ApiResult<()> {
        let (namespace, name) = (text(new, "/metadata/namespace").to_owned(), text(new, "/metadata/name").to_owned());
        let mut errors = FieldErrors::default();
        families::fill(new, old, &self.families, &mut errors);
        let wishes = if errors.is_empty() { fields::address_wishes(new) } else { Vec::new() };
        if !errors.is_empty() {
            return Err(ApiError::invalid_kind("", "Service", &name, &errors));
        }
        let held = old.map(fields::addresses).unwrap_or_default();
        let mut ips = Vec::new();
        for wish in &wishes {
            let ip = match wish {
                Wish::Ip(ip) if held.contains(ip) => Ok(*ip),
                Wish::Ip(ip) => self.take_ip(engine, claim, *ip, &namespace, &name).await?,
                Wish::Any(family) => Ok(self.take_any_ip(engine, claim, family, &namespace, &name).await?),
            };
            match ip {
                Ok(ip) => ips.push(ip),
                Err(why) => {
                    let path = Path::new("spec").child("clusterIPs");
                    let shown = new.pointer("/spec/clusterIPs").cloned().unwrap_or_default();
                    errors.invalid(&path, shown, why);
                    return Err(ApiError::invalid_kind("", "Service", &name, &errors));
                }
            }
        }
        if !ips.is_empty() {
            let texts: Vec<String> = ips.iter().map(ToString::to_string).collect();
            new["spec"]["clusterIP"] = texts[0].as_str().into();
            new["spec"]["clusterIPs"] = json!(texts);
        }
        for ip in held.iter().filter(|ip| !ips.contains(ip)) {
            claim.will_give_back(engine, ip_key(*ip), &namespace, &name).await?;
        }
        self.fill_ports(engine, claim, new, old, (&namespace, &name)).await
    }

    async fn fill_ports(
        &self,
        engine: &Engine,
        claim: &mut Claim,
        new: &mut Value,
        old: Option<&Value>,
        (namespace, name): (&str, &str),
    ) -> ApiResult<()> {
        let held: BTreeSet<u16> = old.map(fields::node_ports).unwrap_or_default();
        // TCP and UDP of one Service may share a number: it is one key.
        let mut own: BTreeSet<u16> = BTreeSet::new();
        let wishes = fields::node_port_wishes(new);
        let mut errors = FieldErrors::default();
        for wish in wishes.iter().filter(|w| w.port != 0) {
            if held.contains(&wish.port) || own.contains(&wish.port) {
                own.insert(wish.port);
                continue;
            }
            let path = wish.path();
            if !(self.ports.0..=self.ports.1).contains(&wish.port) {
                let range = format!("{}-{}", self.ports.0, self.ports.1);
                let why = format!("provided port is not in the valid range. The range of valid ports is {range}");
                errors.invalid(&path, wish.port, why);
            } else if self.take(engine, claim, port_key(wish.port), &port_object(namespace, name)).await? {
                own.insert(wish.port);
            } else {
                errors.invalid(&path, wish.port, "provided port is already allocated");
            }
        }
        if !errors.is_empty() {
            return Err(ApiError::invalid_kind("", "Service", name, &errors));
        }
        for wish in wishes.iter().filter(|w| w.port == 0) {
            // TCP and UDP on one port of the Service get one number.
            let port = match fields::sibling_node_port(new, wish) {
                Some(port) if own.contains(&port) => port,
                _ => self.take_any_port(engine, claim, namespace, name).await?,
            };
            own.insert(port);
            wish.set(new, port);
        }
        for port in held.difference(&own) {
            claim.will_give_back(engine, port_key(*port), namespace, name).await?;
        }
        Ok(())
    }

    /// Creates a key; `false` when it is somebody else's already.
    async fn take(&self, engine: &Engine, claim: &mut Claim, key: String, value: &Value) -> ApiResult<bool> {
        if claim.only_look {
            return Ok(engine.store.get(&key, None).await?.0.is_none() && claim.looked_at.insert(key));
        }
        let bytes = serde_json::to_vec(value).map_err(ApiError::internal)?;
        match engine.store.create(&key, bytes.into()).await {
            Ok(kv) => {
                claim.taken.push((key, kv.mod_revision));
                Ok(true)
            }
            Err(StoreError::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn take_ip(
        &self,
        engine: &Engine,
        claim: &mut Claim,
        ip: IpAddr,
        namespace: &str,
        name: &str,
    ) -> ApiResult<Result<IpAddr, String>> {
        let mut open = open_ranges(engine);
        if !open.iter().any(|r| r.contains(&ip)) {
            // A range may have been added just now.
            engine.feed.catch_up().await?;
            open = open_ranges(engine);
        }
        let containing: Vec<IpNet> = open.iter().filter(|r| r.contains(&ip)).copied().collect();
        if containing.is_empty() {
            let ranges: Vec<String> = open.iter().map(ToString::to_string).collect();
            return Ok(Err(format!(
                "failed to allocate IP {ip}: the provided network does not match the current range: the valid range is {}",
                ranges.join(", ")
            )));
        }
        let usable = |range: &IpNet| {
            let band = Band::of_range(*range);
            (band.first..=band.last).contains(&number(ip))
        };
        if !containing.iter().any(usable) {
            let range = containing[0];
            return Ok(Err(format!("failed to allocate IP {ip}: the provided IP is reserved in range {range}")));
        }
        if self.take(engine, claim, ip_key(ip), &ip_object(ip, namespace, name)).await? {
            Ok(Ok(ip))
        } else {
            Ok(Err(format!("failed to allocate IP {ip}: provided IP is already allocated")))
        }
    }

    async fn take_any_ip(
        &self,
        engine: &Engine,
        claim: &mut Claim,
        family: &str,
        namespace: &str,
        name: &str,
    ) -> ApiResult<IpAddr> {
        let v4 = family == "IPv4";
        for fresh in [false, true] {
            if fresh {
                // All are full, or a range was added just now.
                engine.feed.catch_up().await?;
            }
            let taken = engine.feed.cache(&prefix("networking.k8s.io", "ipaddresses"));
            for range in open_ranges(engine).into_iter().filter(|r| r.addr().is_ipv4() == v4) {
                for n in Band::of_range(range).candidates() {
                    let ip = address(n, v4);
                    let kept = ip == engine.cluster.dns_ip || ip == engine.cluster.kubernetes_ip();
                    if kept || taken.get(&ip_key(ip)).is_some() {
                        continue;
                    }
                    if self.take(engine, claim, ip_key(ip), &ip_object(ip, namespace, name)).await? {
                        return Ok(ip);
                    }
                }
            }
        }
        Err(ApiError::internal(format!("failed to allocate a serviceIP: range is full ({family})")))
    }

    async fn take_any_port(&self, engine: &Engine, claim: &mut Claim, namespace: &str, name: &str) -> ApiResult<u16> {
        for n in Band::of_ports(self.ports.0, self.ports.1).candidates() {
            let port = u16::try_from(n).unwrap_or(u16::MAX);
            if self.take(engine, claim, port_key(port), &port_object(namespace, name)).await? {
                return Ok(port);
            }
        }
        Err(ApiError::internal("failed to allocate a nodePort: range is full"))
    }
}

#[async_trait]
impl Allocation for Allocator {
    /// For Services. Nothing happens for other kinds.
    async fn claim(
        &self,
        engine: &Engine,
        call: &Call,
        new: &mut Value,
        old: Option<&Value>,
    ) -> ApiResult<Box<dyn engine::Claim>> {
        if !call.served.is("", "services") {
            return Ok(Box::new(NoClaim));
        }
        let since = Instant::now();
        let mut claim = Claim { only_look: call.options.dry_run, ..Claim::default() };
        let outcome = self.fill(engine, &mut claim, new, old).await;
        match outcome {
            Ok(()) if since.elapsed() <= CLAIM_LIFE => Ok(Box::new(claim)),
            Ok(()) => {
                claim.give_back_taken(engine).await;
                Err(ApiError::unavailable("allocating addresses took too long; try again"))
            }
            Err(error) => {
                claim.give_back_taken(engine).await;
                Err(error)
            }
        }
    }

    /// A namesake that came later keeps what it took.
    async fn released(&self, engine: &Engine, served: &Served, object: &Value, revision: Revision) {
        if !served.is("", "services") {
            return;
        }
        let (namespace, name) = (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
        let mut keys: Vec<String> = fields::addresses(object).into_iter().map(ip_key).collect();
        keys.extend(fields::node_ports(object).into_iter().map(port_key));
        for key in keys {
            if let Ok((Some(kv), _)) = engine.store.get(&key, None).await
                && kv.mod_revision < revision
                && held_by(&kv.value, namespace, name)
            {
                free(engine, &key, kv.mod_revision).await;
            }
        }
    }
}

/// The ranges that give out addresses, in the order in which they are tried.
fn open_ranges(engine: &Engine) -> Vec<IpNet> {
    ranges::all(engine).into_iter().filter(|r| r.open).map(|r| r.net).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_knows_its_field() {
        let wish = fields::NodePortWish { pointer: "/spec/ports/0/nodePort".to_owned(), port: 0 };
        assert_eq!(wish.path().to_string(), "spec.ports[0].nodePort");
    }
}
