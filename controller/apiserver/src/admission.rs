//! Admission: small functions in a fixed order, between defaulting and validation.
//!
//! In: a new or changed object and the state of the cluster. Out: the object with what the cluster adds to it, or a
//! refusal.

mod certificates;
mod definitions;
mod nodes;
mod pods;

pub use definitions::FINALIZER;
pub use nodes::restrict_token;

use crate::engine::{Admission, Call, Engine, Part, text};
use crate::status::{ApiError, ApiResult};
use async_trait::async_trait;
use serde_json::Value;

/// Namespaces that stay.
const PROTECTED: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// The admission chain.
pub struct Chain;

#[async_trait]
impl Admission for Chain {
    async fn create(&self, engine: &Engine, call: &mut Call, object: &mut Value) -> ApiResult<()> {
        namespace_lifecycle(engine, call, object).await?;
        nodes::restrict(call, None, object)?;
        if call.served.is("certificates.k8s.io", "certificatesigningrequests") {
            certificates::admit(call, object)?;
        }
        if call.served.is("", "services") {
            crate::services::normalize(object, None);
        }
        if call.served.is("", "pods") {
            pods::admit(engine, call, object).await?;
        }
        if call.served.is("", "persistentvolumeclaims") {
            default_storage_class(engine, object).await?;
        }
        if call.served.is("networking.k8s.io", "ingresses") {
            default_ingress_class(engine, object).await?;
        }
        if call.served.is("apiextensions.k8s.io", "customresourcedefinitions") {
            definitions::protect(object);
        }
        Ok(())
    }

    async fn update(&self, _: &Engine, call: &mut Call, part: Part, new: &mut Value, old: &Value) -> ApiResult<()> {
        nodes::restrict(call, Some(old), new)?;
        if part == Part::Main && call.served.is("", "services") {
            crate::services::carry_over(new, old);
        }
        Ok(())
    }

    async fn delete(&self, engine: &Engine, call: &mut Call, name: &str, object: &Value) -> ApiResult<()> {
        nodes::restrict(call, Some(object), object)?;
        if call.served.is("", "namespaces") && PROTECTED.contains(&name) {
            return Err(ApiError::forbidden("", "namespaces", name, "this namespace may not be deleted"));
        }
        if call.served.is("networking.k8s.io", "ipaddresses") {
            return address_in_use(engine, name, object);
        }
        Ok(())
    }
}

/// The address of a Service stays taken as long as the Service has it.
fn address_in_use(engine: &Engine, name: &str, address: &Value) -> ApiResult<()> {
    let services = engine.served("", "v1", "services")?;
    let (namespace, service) = (text(address, "/spec/parentRef/namespace"), text(address, "/spec/parentRef/name"));
    let Some(object) = engine.feed.cache(&services.prefix).get(&services.key(namespace, service)) else {
        return Ok(());
    };
    let service_object = object.value();
    let cluster_ip = crate::services::addresses(&service_object).iter().any(|ip| ip.to_string() == name);
    // The address of a load balancer is claimed by an IPAddress too.
    let ingress = service_object.pointer("/status/loadBalancer/ingress").and_then(Value::as_array);
    if cluster_ip || ingress.into_iter().flatten().any(|i| i["ip"] == name) {
        let why = format!("the address is in use by the Service {namespace}/{service}");
        return Err(ApiError::forbidden("networking.k8s.io", "ipaddresses", name, &why));
    }
    Ok(())
}

/// Objects live in namespaces that exist and stay.
async fn namespace_lifecycle(engine: &Engine, call: &Call, object: &Value) -> ApiResult<()> {
    if call.namespace.is_empty() {
        return Ok(());
    }
    let namespaces = engine.served("", "v1", "namespaces")?;
    let found = match engine.get(&namespaces, "", &call.namespace, Some(0)).await {
        // The cache may be behind the client that has just created it.
        Err(e) if e.code() == 404 => engine.get(&namespaces, "", &call.namespace, None).await,
        other => other,
    };
    let namespace = found?.value();
    let going = namespace.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null())
        || text(&namespace, "/status/phase") == "Terminating";
    if going {
        let name = text(object, "/metadata/name");
        return Err(ApiError::namespace_terminating(&call.served.resource, name, &call.namespace));
    }
    Ok(())
}

/// Marks the object of a kind as the cluster's default; the newest wins when there are several.
async fn default_of(engine: &Engine, group: &str, plural: &str, annotation: &str) -> ApiResult<Option<String>> {
    let served = engine.served(group, "v1", plural)?;
    let (objects, _) = engine.feed.cache(&served.prefix).list(&served.prefix);
    let mut defaults: Vec<(String, String)> = objects
        .iter()
        .map(|o| o.value())
        .filter(|v| v["metadata"]["annotations"][annotation] == "true")
        .map(|v| (text(&v, "/metadata/creationTimestamp").to_owned(), text(&v, "/metadata/name").to_owned()))
        .collect();
    // Newest first, then by name, as upstream decides.
    defaults.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    Ok(defaults.into_iter().next().map(|(_, name)| name))
}

async fn default_storage_class(engine: &Engine, claim: &mut Value) -> ApiResult<()> {
    let given = claim.pointer("/spec/storageClassName").is_some_and(|c| !c.is_null())
        || claim["metadata"]["annotations"].get("volume.beta.kubernetes.io/storage-class").is_some();
    if given || !claim["spec"].is_object() {
        return Ok(());
    }
    let annotation = "storageclass.kubernetes.io/is-default-class";
    if let Some(class) = default_of(engine, "storage.k8s.io", "storageclasses", annotation).await? {
        claim["spec"]["storageClassName"] = class.into();
    }
    Ok(())
}

async fn default_ingress_class(engine: &Engine, ingress: &mut Value) -> ApiResult<()> {
    let given = ingress.pointer("/spec/ingressClassName").is_some_and(|c| !c.is_null())
        || ingress["metadata"]["annotations"].get("kubernetes.io/ingress.class").is_some();
    if given || !ingress["spec"].is_object() {
        return Ok(());
    }
    let annotation = "ingressclass.kubernetes.io/is-default-class";
    if let Some(class) = default_of(engine, "networking.k8s.io", "ingressclasses", annotation).await? {
        ingress["spec"]["ingressClassName"] = class.into();
    }
    Ok(())
}
