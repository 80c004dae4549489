//! Keeps allocations and Services in step: gives back what a crash leaked, takes again what got lost, and reports what
//! only people can mend (two Services with one address).

use super::{fields, free, ip_key, ip_object, port_key, port_object, ranges};
use crate::catalog::prefix;
use crate::engine::{Engine, text};
use crate::feed::INTERNAL;
use crate::object::Object;
use crate::status::{ApiError, ApiResult};
use causeway_api::events::{EventType, Recorder};
use causeway_store::{ListRequest, Revision, StoreError};
use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::Value;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A key without a Service is given back when it is older than this: its Service may be about to be written.
pub const GRACE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_secs(30);

/// Repairs regularly until shutdown.
pub async fn run(engine: Arc<Engine>, events: Recorder, shutdown: CancellationToken) {
    loop {
        if let Err(error) = repair(&engine, Some(&events), GRACE).await {
            tracing::warn!(%error, "service addresses and node ports were not checked; trying again");
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// A key in the store: an IPAddress, or who holds a node port.
struct Held {
    value: Value,
    revision: Revision,
}

impl Held {
    fn names(&self) -> (&str, &str) {
        let holder = self.value.pointer("/spec/parentRef").unwrap_or(&self.value);
        (text(holder, "/namespace"), text(holder, "/name"))
    }

    fn is_address(&self) -> bool {
        self.value.get("spec").is_some()
    }

    /// Ours to give back: an IPAddress that users or other controllers made is theirs.
    fn is_ours(&self) -> bool {
        !self.is_address()
            || self.value["metadata"]["labels"]["ipaddress.kubernetes.io/managed-by"] == "ipallocator.k8s.io"
    }

    fn refers_to_a_service(&self) -> bool {
        let parent = &self.value["spec"]["parentRef"];
        !self.is_address() || text(parent, "/group").is_empty() && text(parent, "/resource") == "services"
    }
}

/// What a Service uses.
struct Use<'a> {
    key: String,
    what: What,
    service: &'a Object,
}

#[derive(Clone, Copy)]
enum What {
    Ip(IpAddr),
    Port(u16),
}

impl Use<'_> {
    /// The value the key should have.
    fn object(&self) -> Value {
        let (namespace, name) = self.service.names();
        match self.what {
            What::Ip(ip) => ip_object(ip, namespace, name),
            What::Port(_) => port_object(namespace, name),
        }
    }

    /// The event's reason, and what it is about, in upstream's words.
    fn words(&self, ip: &'static str, port: &'static str) -> (&'static str, String) {
        match self.what {
            What::Ip(address) => {
                let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                (ip, format!("Cluster IP [{family}]: {address}"))
            }
            What::Port(number) => (port, format!("Port {number}")),
        }
    }
}

/// One round. Keys younger than `grace` are left alone.
pub async fn repair(engine: &Engine, events: Option<&Recorder>, grace: Duration) -> ApiResult<()> {
    // Keys first: a Service written after they were read can only add to what is in use.
    let mut held = keys(engine, &prefix("networking.k8s.io", "ipaddresses")).await?;
    held.extend(keys(engine, &format!("{INTERNAL}nodeports/")).await?);
    engine.feed.catch_up().await?;
    let (services, _) = engine.feed.cache(&prefix("", "services")).list(&prefix("", "services"));
    let mut uses: HashMap<String, Vec<Use>> = HashMap::new();
    for service in &services {
        for used in uses_of(service) {
            uses.entry(used.key.clone()).or_default().push(used);
        }
    }
    for (key, held) in &held {
        give_back(engine, events, key, held, uses.get(key).map_or(&[], Vec::as_slice), grace).await;
    }
    let ranges = ranges::all(engine);
    for (key, users) in &uses {
        for used in users {
            let (reason, what) = used.words("ClusterIPOutOfRange", "PortOutOfRange");
            let inside = match used.what {
                What::Ip(ip) => ranges.iter().any(|r| r.net.contains(&ip)),
                What::Port(port) => engine.cluster.node_port_range().contains(&port),
            };
            if !inside {
                let rest = "is not within any configured range; please recreate service";
                report(events, used.service, reason, format!("{what} {rest}"));
            }
            keep(engine, events, key, held.get(key), used, users).await?;
        }
    }
    Ok(())
}

/// A key that nobody uses becomes free.
async fn give_back(
    engine: &Engine,
    events: Option<&Recorder>,
    key: &str,
    held: &Held,
    users: &[Use<'_>],
    grace: Duration,
) {
    let (namespace, name) = held.names();
    // A wrong reference to a used address is put right below.
    if !held.is_ours() || !users.is_empty() || age(&held.value).is_some_and(|age| age < grace) {
        return;
    }
    tracing::info!(key, namespace, name, "given back: no Service uses it");
    free(engine, key, held.revision).await;
    if held.is_address()
        && let Some(events) = events
    {
        let address = text(&held.value, "/metadata/name");
        let message =
            format!("IPAddress: {address} for Service {namespace}/{name} appears to have leaked: cleaning up");
        events.record_ref(reference(&held.value), EventType::Warning, "IPAddressNotAllocated", message);
    }
}

/// What a Service uses is held by its key.
async fn keep(
    engine: &Engine,
    events: Option<&Recorder>,
    key: &str,
    held: Option<&Held>,
    used: &Use<'_>,
    users: &[Use<'_>],
) -> ApiResult<()> {
    let bytes = serde_json::to_vec(&used.object()).map_err(ApiError::internal)?;
    let (reason, what) = used.words("ClusterIPNotAllocated", "PortNotAllocated");
    let Some(held) = held else {
        return match engine.store.create(key, bytes.into()).await {
            Ok(_) => {
                report(events, used.service, reason, format!("{what} is not allocated; repairing"));
                Ok(())
            }
            Err(StoreError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        };
    };
    let own = used.service.names();
    if held.refers_to_a_service() && held.names() == own && held.is_ours() {
        return Ok(());
    }
    if held.refers_to_a_service() && users.iter().any(|u| u.service.names() == held.names() && u.service.names() != own)
    {
        let (reason, what) = used.words("ClusterIPAlreadyAllocated", "PortAlreadyAllocated");
        let message = format!("{what} was assigned to multiple services; please recreate service");
        report(events, used.service, reason, message);
        return Ok(());
    }
    // Changed in the meantime: the next round looks again.
    match engine.store.update(key, bytes.into(), held.revision).await {
        Ok(_) => {
            report(events, used.service, reason, format!("{what} has a wrong reference; repairing"));
            Ok(())
        }
        Err(StoreError::Conflict { .. } | StoreError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn report(events: Option<&Recorder>, service: &Object, reason: &str, message: String) {
    let (namespace, name) = service.names();
    tracing::warn!(namespace, name, reason, "{message}");
    if let Some(events) = events {
        events.record_ref(reference(&service.value()), EventType::Warning, reason, message);
    }
}

fn reference(object: &Value) -> ObjectReference {
    let own = |pointer: &str| Some(text(object, pointer).to_owned()).filter(|t| !t.is_empty());
    ObjectReference {
        api_version: own("/apiVersion"),
        kind: own("/kind"),
        namespace: own("/metadata/namespace"),
        name: own("/metadata/name"),
        uid: own("/metadata/uid"),
        ..ObjectReference::default()
    }
}

fn uses_of(service: &Object) -> Vec<Use<'_>> {
    let value = service.value();
    let ips = fields::addresses(&value).into_iter().map(|ip| (ip_key(ip), What::Ip(ip)));
    let ports = fields::node_ports(&value).into_iter().map(|port| (port_key(port), What::Port(port)));
    ips.chain(ports).map(|(key, what)| Use { key, what, service }).collect()
}

async fn keys(engine: &Engine, prefix: &str) -> ApiResult<HashMap<String, Held>> {
    let mut all = HashMap::new();
    let mut request = ListRequest { prefix: prefix.to_owned(), limit: 1000, ..ListRequest::default() };
    loop {
        let page = engine.store.list(request.clone()).await?;
        for kv in &page.items {
            if let Ok(value) = serde_json::from_slice(&kv.value) {
                all.insert(kv.key.clone(), Held { value, revision: kv.mod_revision });
            }
        }
        let Some(last) = page.items.last().filter(|_| page.remaining > 0) else { return Ok(all) };
        request.start_after = Some(last.key.clone());
        request.at = Some(page.revision);
    }
}

fn age(value: &Value) -> Option<Duration> {
    let since = value.pointer("/metadata/creationTimestamp").or_else(|| value.get("since"))?.as_str()?;
    let since: jiff::Timestamp = since.parse().ok()?;
    Duration::try_from(jiff::Timestamp::now().duration_since(since)).ok()
}
