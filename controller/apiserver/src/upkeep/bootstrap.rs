//! Objects every cluster has, kept in place: system namespaces, the Services `kubernetes` and `kube-dns`, the
//! endpoints of the API server, the system priority classes.

use crate::engine::{Call, Engine, Part, text};
use crate::status::{ApiError, ApiResult};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_secs(30);
/// How long events are kept, in seconds.
const EVENT_LIFE: i64 = 3600;

/// Keeps everything in place until shutdown.
pub async fn run(engine: Arc<Engine>, advertise: SocketAddr, shutdown: CancellationToken) {
    expire_events(&engine).await;
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
        if let Err(error) = ensure(&engine, advertise).await {
            tracing::warn!(%error, "system objects not checked; trying again");
        }
    }
}

/// Creates what is missing and mends what differs.
pub async fn ensure(engine: &Engine, advertise: SocketAddr) -> ApiResult<()> {
    for name in ["kube-system", "kube-public", "kube-node-lease", "default"] {
        create(engine, "", "namespaces", "", json!({ "metadata": { "name": name } })).await?;
    }
    let critical = [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];
    for (name, value) in critical {
        let description = match name {
            "system-node-critical" => "Used for system critical pods that must not be moved from their current node.",
            _ => {
                "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary."
            }
        };
        let class = json!({ "metadata": { "name": name }, "value": value, "description": description });
        create(engine, "scheduling.k8s.io", "priorityclasses", "", class).await?;
    }
    // Before the first Service: addresses come out of it.
    service_range(engine).await?;
    engine.feed.catch_up().await?;
    let kubernetes = json!({
        "metadata": { "name": "kubernetes", "labels": { "component": "apiserver", "provider": "kubernetes" } },
        "spec": {
            "type": "ClusterIP", "clusterIP": engine.cluster.kubernetes_ip().to_string(), "sessionAffinity": "None",
            "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": advertise.port() }],
        },
    });
    create(engine, "", "services", "default", kubernetes).await?;
    let dns = json!({
        "metadata": {
            "name": "kube-dns",
            "labels": { "k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS" },
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": engine.cluster.dns_ip.to_string(), "internalTrafficPolicy": "Local",
            "ports": [
                { "name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53 },
                { "name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53 },
            ],
        },
    });
    create(engine, "", "services", "kube-system", dns).await?;
    if advertise.ip().is_loopback() {
        // No pod could reach it there, and endpoints must not name it.
        tracing::debug!(%advertise, "a loopback address is not published as an endpoint of the service kubernetes");
        return Ok(());
    }
    endpoints(engine, advertise).await
}

/// The configured ranges of cluster IPs, as the ServiceCIDR that all others extend. It follows the configuration only
/// as far as Kubernetes allows: a second family may come and go, the first range stays.
async fn service_range(engine: &Engine) -> ApiResult<()> {
    let cidrs: Vec<String> = engine.cluster.service_cidrs.iter().map(ToString::to_string).collect();
    let range = json!({ "metadata": { "name": "kubernetes" }, "spec": { "cidrs": cidrs } });
    create(engine, "networking.k8s.io", "servicecidrs", "", range).await?;
    let mut call = Call::internal(engine.served("networking.k8s.io", "v1", "servicecidrs")?, "");
    let wanted = json!(cidrs);
    let follow = |old: &Value| {
        let mut new = old.clone();
        if old.pointer("/spec/cidrs/0") == wanted.get(0) {
            new["spec"]["cidrs"] = wanted.clone();
        }
        Ok(new)
    };
    let now = engine.patch(&mut call, "kubernetes", Part::Main, follow).await?;
    if now.pointer("/spec/cidrs") != Some(&wanted) {
        tracing::warn!(
            object = %now["spec"]["cidrs"], configured = %wanted,
            "the ServiceCIDR kubernetes does not match the configured service ranges, and stays as it is; to move a \
             cluster to other ranges, add a ServiceCIDR and delete this one"
        );
    }
    let ready = |old: &Value| {
        let mut new = old.clone();
        let told = old.pointer("/status/conditions/0/status").is_some();
        if !told && old.pointer("/metadata/deletionTimestamp").is_none_or(Value::is_null) {
            new["status"] = json!({ "conditions": [{
                "type": "Ready", "status": "True", "reason": "", "lastTransitionTime": crate::engine::now_text(),
                "message": "Kubernetes Service CIDR is ready",
            }] });
        }
        Ok(new)
    };
    engine.patch(&mut call, "kubernetes", Part::Status, ready).await.map(drop)
}

async fn endpoints(engine: &Engine, advertise: SocketAddr) -> ApiResult<()> {
    let (ip, port) = (advertise.ip().to_string(), advertise.port());
    let family = if advertise.is_ipv4() { "IPv4" } else { "IPv6" };
    let slice = json!({
        "metadata": { "name": "kubernetes", "labels": { "kubernetes.io/service-name": "kubernetes" } },
        "addressType": family,
        "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
        "endpoints": [{ "addresses": [ip], "conditions": { "ready": true } }],
    });
    put(engine, "discovery.k8s.io", "endpointslices", "default", slice, &["ports", "endpoints"]).await?;
    let legacy = json!({
        "metadata": { "name": "kubernetes", "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } },
        "subsets": [{ "addresses": [{ "ip": ip }], "ports": [{ "name": "https", "port": port, "protocol": "TCP" }] }],
    });
    put(engine, "", "endpoints", "default", legacy, &["subsets"]).await
}

/// Creates an object unless it is there.
async fn create(engine: &Engine, group: &str, plural: &str, namespace: &str, object: Value) -> ApiResult<()> {
    let served = engine.served(group, "v1", plural)?;
    let name = object["metadata"]["name"].as_str().unwrap_or("").to_owned();
    if engine.feed.cache(&served.prefix).get(&served.key(namespace, &name)).is_some() {
        return Ok(());
    }
    create_new(engine, &mut Call::internal(served, namespace), object).await
}

/// Creates an object that the cache does not know; somebody else may have created it meanwhile.
pub async fn create_new(engine: &Engine, call: &mut Call, object: Value) -> ApiResult<()> {
    let name = text(&object, "/metadata/name").to_owned();
    match engine.create(call, object).await {
        Ok(_) => Ok(()),
        Err(error) if error.failure().reason == "AlreadyExists" => Ok(()),
        Err(error) => {
            let plural = &call.served.resource.plural;
            Err(ApiError::internal(format!("system object {plural}/{name}: {error}")))
        }
    }
}

/// Creates an object, or gives it the named fields.
async fn put(
    engine: &Engine,
    group: &str,
    plural: &str,
    namespace: &str,
    object: Value,
    fields: &[&str],
) -> ApiResult<()> {
    create(engine, group, plural, namespace, object.clone()).await?;
    let name = object["metadata"]["name"].as_str().unwrap_or("").to_owned();
    let mut call = Call::internal(engine.served(group, "v1", plural)?, namespace);
    engine
        .patch(&mut call, &name, Part::Main, |old| {
            let mut new = old.clone();
            for field in fields {
                new[*field] = object[*field].clone();
            }
            Ok(new)
        })
        .await
        .map(drop)
}

/// Deletes events that are older than an hour: the store does it for those that were written with a time to live, and a
/// version before did not write any.
async fn expire_events(engine: &Engine) {
    let Ok(served) = engine.served("", "v1", "events") else { return };
    let (events, _) = engine.feed.cache(&served.prefix).list(&served.prefix);
    let now = jiff::Timestamp::now().as_second();
    for event in events {
        let value = event.value();
        let newest = ["/lastTimestamp", "/series/lastObservedTime", "/eventTime", "/metadata/creationTimestamp"]
            .iter()
            .filter_map(|p| value.pointer(p)?.as_str()?.parse::<jiff::Timestamp>().ok())
            .map(|t| t.as_second())
            .max();
        if newest.is_none_or(|newest| now - newest > EVENT_LIFE) {
            // Changed in the meantime: then it is not old.
            let _ = engine.store.delete(&event.key, Some(event.revision)).await;
        }
    }
}

/// Gives a ConfigMap a key; others stay.
pub async fn put_key(engine: &Engine, namespace: &str, name: &str, key: &str, text: &str) -> ApiResult<()> {
    let map = json!({ "metadata": { "name": name }, "data": { key: text } });
    create(engine, "", "configmaps", namespace, map).await?;
    let mut call = Call::internal(engine.served("", "v1", "configmaps")?, namespace);
    let changed = engine.patch(&mut call, name, Part::Main, |old| {
        let mut new = old.clone();
        if !new["data"].is_object() {
            new["data"] = json!({});
        }
        new["data"][key] = text.into();
        Ok(new)
    });
    changed.await.map(drop)
}
