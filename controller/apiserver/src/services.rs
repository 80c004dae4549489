//! Addresses and node ports of Services: never the same twice, and kept for the Service's life.
//!
//! Everything handed out is a key of its own in the store, created by compare-and-swap *before* the Service is
//! written: an IPAddress object (networking.k8s.io/v1) for every cluster IP, an internal key for every node port.
//! A crash in between leaves a key without a Service; [`repair`] gives it back after a while. Explicit wishes are
//! honoured; others come at random out of the upper band of the range, so that the lower band stays free for
//! explicit ones (KEP-3070, KEP-3668).

mod fields;
pub mod repair;

pub use fields::{addresses, carry_over};

use crate::catalog::{Served, prefix};
use crate::engine::{Call, Engine, now_text, text};
use crate::feed::INTERNAL;
use crate::status::{ApiError, ApiResult};
use causeway_api::config::ClusterConfig;
use causeway_registry::{FieldErrors, Path};
use causeway_store::{Revision, StoreError};
use fields::Wish;
use ipnet::IpNet;
use rand::Rng;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Random picks before the range is searched in order.
const RANDOM_TRIES: usize = 64;
/// A claim that is older than this is given up instead of being written: repair may free it soon.
const CLAIM_LIFE: Duration = Duration::from_secs(30);

/// Hands out addresses and ports.
pub struct Allocator {
    ranges: Vec<IpNet>,
    ports: (u16, u16),
}

/// What one write of a Service has taken and will give back.
#[derive(Default)]
pub struct Claim {
    /// Keys and the revisions they were written at: only that very writing is ever undone.
    taken: Vec<(String, Revision)>,
    given_back: Vec<(String, Revision)>,
    since: Option<Instant>,
}

/// A band of numbers: first of all, first of the dynamic part, last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Band {
    first: u128,
    dynamic: u128,
    last: u128,
}

impl Band {
    /// The addresses of a range that may be given to Services.
    pub fn of_range(range: IpNet) -> Self {
        let (network, last) = (number(range.network()), number(range.broadcast()));
        // Neither the network's own address nor (IPv4) the broadcast address.
        let last = if range.addr().is_ipv4() { last.saturating_sub(1) } else { last };
        let first = (network + 1).min(last);
        let size = last - first + 1;
        let offset = if size < 16 { 0 } else { (size / 16).clamp(16, 256) };
        Self { first, dynamic: (first + offset).min(last), last }
    }

    /// Node ports.
    pub fn of_ports(first: u16, last: u16) -> Self {
        let (first, last) = (u128::from(first), u128::from(last.max(first)));
        let size = last - first + 1;
        let offset = if size < 16 { 0 } else { (size / 32).clamp(16, 128) };
        Self { first, dynamic: (first + offset).min(last), last }
    }

    /// The order in which numbers are tried: at random in the dynamic band, then all of it, then the static band.
    fn candidates(self) -> impl Iterator<Item = u128> {
        let mut rng = rand::rng();
        let random: Vec<u128> = (0..RANDOM_TRIES).map(|_| rng.random_range(self.dynamic..=self.last)).collect();
        random.into_iter().chain(self.dynamic..=self.last).chain(self.first..self.dynamic)
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn address(n: u128, v4: bool) -> IpAddr {
    if v4 { IpAddr::V4(u32::try_from(n).unwrap_or(u32::MAX).into()) } else { IpAddr::V6(n.into()) }
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
    /// The Service is written: what it no longer uses becomes free.
    pub async fn commit(self, engine: &Engine) {
        for (key, revision) in &self.given_back {
            free(engine, key, *revision).await;
        }
    }

    async fn will_give_back(&mut self, engine: &Engine, key: String, namespace: &str, name: &str) -> ApiResult<()> {
        if let (Some(kv), _) = engine.store.get(&key, None).await?
            && held_by(&kv.value, namespace, name)
        {
            self.given_back.push((key, kv.mod_revision));
        }
        Ok(())
    }

    /// The Service was not written: what was taken for it becomes free.
    pub async fn roll_back(self, engine: &Engine) {
        for (key, revision) in &self.taken {
            free(engine, key, *revision).await;
        }
    }
}

pub(crate) async fn free(engine: &Engine, key: &str, revision: Revision) {
    match engine.store.delete(key, Some(revision)).await {
        Ok(_) | Err(StoreError::NotFound { .. } | StoreError::Conflict { .. }) => {}
        Err(error) => tracing::warn!(key, %error, "not given back now; repair will do it"),
    }
}

impl Allocator {
    /// Over the cluster's ranges.
    pub fn new(cluster: &ClusterConfig) -> Self {
        Self { ranges: cluster.service_cidrs.clone(), ports: cluster.node_ports }
    }

    /// Fills in and takes what a Service needs. Nothing happens for other kinds.
    pub async fn claim(&self, engine: &Engine, call: &Call, new: &mut Value, old: Option<&Value>) -> ApiResult<Claim> {
        if !call.served.is("", "services") {
            return Ok(Claim::default());
        }
        let mut claim = Claim { since: Some(Instant::now()), ..Claim::default() };
        let outcome = self.fill(engine, &mut claim, new, old).await;
        let slow = claim.since.is_some_and(|since| since.elapsed() > CLAIM_LIFE);
        match outcome {
            Ok(()) if !slow => Ok(claim),
            Ok(()) => {
                claim.roll_back(engine).await;
                Err(ApiError::unavailable("allocating addresses took too long; try again"))
            }
            Err(error) => {
                claim.roll_back(engine).await;
                Err(error)
            }
        }
    }

    async fn fill(&self, engine: &Engine, claim: &mut Claim, new: &mut Value, old: Option<&Value>) -> ApiResult<()> {
        let (namespace, name) = (text(new, "/metadata/namespace").to_owned(), text(new, "/metadata/name").to_owned());
        let mut errors = FieldErrors::default();
        let families: Vec<&str> =
            self.ranges.iter().map(|r| if r.addr().is_ipv4() { "IPv4" } else { "IPv6" }).collect();
        let wishes = fields::address_wishes(new, &families, &mut errors);
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
            let port = self.take_any_port(engine, claim, namespace, name).await?;
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
        let Some(range) = self.ranges.iter().find(|r| r.contains(&ip)) else {
            let ranges: Vec<String> = self.ranges.iter().map(ToString::to_string).collect();
            return Ok(Err(format!(
                "failed to allocate IP {ip}: the provided network does not match the current range: the valid range is {}",
                ranges.join(", ")
            )));
        };
        let band = Band::of_range(*range);
        if !(band.first..=band.last).contains(&number(ip)) {
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
        let range = self.ranges.iter().find(|r| r.addr().is_ipv4() == v4);
        let full = || ApiError::internal(format!("failed to allocate a serviceIP: range is full ({family})"));
        let range = range.ok_or_else(full)?;
        let taken = engine.feed.cache(&prefix("networking.k8s.io", "ipaddresses"));
        for n in Band::of_range(*range).candidates() {
            let ip = address(n, v4);
            if ip == engine.cluster.dns_ip || ip == engine.cluster.kubernetes_ip() || taken.get(&ip_key(ip)).is_some() {
                continue;
            }
            if self.take(engine, claim, ip_key(ip), &ip_object(ip, namespace, name)).await? {
                return Ok(ip);
            }
        }
        Err(full())
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

    /// A Service is gone since `revision`: what it held becomes free. A namesake that came later keeps what it took.
    pub async fn released(&self, engine: &Engine, served: &Served, object: &Value, revision: Revision) {
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

#[cfg(test)]
mod tests {
    use super::fields::NodePortWish;
    use super::*;

    #[test]
    fn bands_follow_the_keps() {
        let band = |range: &str| {
            let b = Band::of_range(range.parse().unwrap());
            (
                address(b.first, true).to_string(),
                address(b.dynamic, true).to_string(),
                address(b.last, true).to_string(),
            )
        };
        let own = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(band("10.96.0.0/12"), own("10.96.0.1", "10.96.1.1", "10.111.255.254"));
        assert_eq!(band("10.96.0.0/24"), own("10.96.0.1", "10.96.0.17", "10.96.0.254"));
        assert_eq!(band("10.96.0.0/28"), own("10.96.0.1", "10.96.0.1", "10.96.0.14"));
        let ports = Band::of_ports(30000, 32767);
        assert_eq!(ports.dynamic, 30086);
    }

    #[test]
    fn every_number_of_a_band_is_a_candidate() {
        let band = Band::of_range("10.0.0.0/27".parse().unwrap());
        let all: BTreeSet<u128> = band.candidates().collect();
        assert_eq!(all.len(), 30);
    }

    #[test]
    fn a_wish_knows_its_field() {
        let wish = NodePortWish { pointer: "/spec/ports/0/nodePort".to_owned(), port: 0 };
        assert_eq!(wish.path().to_string(), "spec.ports[0].nodePort");
    }
}
