//! Keeps allocations and Services in step: gives back what a crash leaked, takes again what got lost.

use super::{fields, free, ip_key, ip_object, port_key, port_object};
use crate::catalog::prefix;
use crate::engine::{Engine, text};
use crate::feed::INTERNAL;
use crate::object::Object;
use crate::status::ApiResult;
use causeway_store::{ListRequest, Revision, StoreError};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A key without a Service is given back when it is older than this: its Service may be about to be written.
pub const GRACE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_secs(30);

/// Repairs regularly until shutdown.
pub async fn run(engine: Arc<Engine>, shutdown: CancellationToken) {
    loop {
        if let Err(error) = repair(&engine, GRACE).await {
            tracing::warn!(%error, "service addresses and node ports were not checked; trying again");
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// One round. Keys younger than `grace` are left alone.
pub async fn repair(engine: &Engine, grace: Duration) -> ApiResult<()> {
    // Keys first: a Service written after they were read can only add to what is in use.
    let addresses = keys(engine, &prefix("networking.k8s.io", "ipaddresses")).await?;
    let ports = keys(engine, &format!("{INTERNAL}nodeports/")).await?;
    engine.feed.catch_up().await?;
    let (services, _) = engine.feed.cache(&prefix("", "services")).list(&prefix("", "services"));
    let wanted = wanted(&services);
    for (key, (value, revision)) in addresses.iter().chain(&ports) {
        let holder = value.pointer("/spec/parentRef").unwrap_or(value);
        let (namespace, name) = (text(holder, "/namespace"), text(holder, "/name"));
        let foreign = value.get("spec").is_some()
            && value["metadata"]["labels"]["ipaddress.kubernetes.io/managed-by"] != "ipallocator.k8s.io";
        let used = wanted.get(key).is_some_and(|(n, m, _)| n == namespace && m == name);
        if foreign || used || age(value).is_some_and(|age| age < grace) {
            continue;
        }
        tracing::info!(key, namespace, name, "given back: no Service uses it");
        free(engine, key, *revision).await;
    }
    for (key, (namespace, name, object)) in &wanted {
        let held = addresses.get(key).or_else(|| ports.get(key));
        match held {
            None => take_again(engine, key, object).await?,
            Some((value, _)) => {
                let holder = value.pointer("/spec/parentRef").unwrap_or(value);
                if holder["namespace"] != namespace.as_str() || holder["name"] != name.as_str() {
                    tracing::error!(key, namespace, name, holder = %holder, "two Services claim one address or port");
                }
            }
        }
    }
    Ok(())
}

async fn keys(engine: &Engine, prefix: &str) -> ApiResult<HashMap<String, (Value, Revision)>> {
    let mut all = HashMap::new();
    let mut request = ListRequest { prefix: prefix.to_owned(), limit: 1000, ..ListRequest::default() };
    loop {
        let page = engine.store.list(request.clone()).await?;
        for kv in &page.items {
            if let Ok(value) = serde_json::from_slice(&kv.value) {
                all.insert(kv.key.clone(), (value, kv.mod_revision));
            }
        }
        let Some(last) = page.items.last().filter(|_| page.remaining > 0) else { return Ok(all) };
        request.start_after = Some(last.key.clone());
        request.at = Some(page.revision);
    }
}

/// What Services use: key to namespace, name and the value the key should have.
fn wanted(services: &[Arc<Object>]) -> HashMap<String, (String, String, Value)> {
    let mut wanted = HashMap::new();
    for object in services {
        let service = object.value();
        let (namespace, name) = object.names();
        let own = |value| (namespace.to_owned(), name.to_owned(), value);
        for ip in fields::addresses(&service) {
            wanted.insert(ip_key(ip), own(ip_object(ip, namespace, name)));
        }
        for port in fields::node_ports(&service) {
            wanted.insert(port_key(port), own(port_object(namespace, name)));
        }
    }
    wanted
}

async fn take_again(engine: &Engine, key: &str, object: &Value) -> ApiResult<()> {
    let bytes = serde_json::to_vec(object).map_err(crate::status::ApiError::internal)?;
    match engine.store.create(key, bytes.into()).await {
        Ok(_) => tracing::warn!(key, "taken again: a Service uses it and it was free"),
        Err(StoreError::AlreadyExists { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn age(value: &Value) -> Option<Duration> {
    let since = value.pointer("/metadata/creationTimestamp").or_else(|| value.get("since"))?.as_str()?;
    let since: jiff::Timestamp = since.parse().ok()?;
    Duration::try_from(jiff::Timestamp::now().duration_since(since)).ok()
}
