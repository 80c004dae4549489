//! Admission: small functions in a fixed order, between defaulting and validation.
//!
//! In: a new or changed object and the state of the cluster. Out: the object with what the cluster adds to it, or a
//! refusal.

mod certificates;
mod classes;
mod definitions;
mod nodes;
mod pods;
mod roles;

pub use definitions::FINALIZER;

use crate::authz::Rules;
use crate::engine::{Admission, Call, Engine, Part, text};
use crate::status::{ApiError, ApiResult};
use async_trait::async_trait;
use causeway_authz::node::Operation;
use nodes::Asked;
use serde_json::Value;
use std::sync::Arc;

/// Namespaces that stay.
const PROTECTED: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// The admission chain.
pub struct Chain {
    /// Roles and what nodes may reach.
    pub rules: Arc<Rules>,
}

#[async_trait]
impl Admission for Chain {
    async fn create(&self, engine: &Engine, call: &mut Call, object: &mut Value) -> ApiResult<()> {
        namespace_lifecycle(engine, call, object).await?;
        let asked = Asked { operation: Operation::Create, subresource: "", name: "", new: Some(object), old: None };
        nodes::restrict(engine, &self.rules, call, asked).await?;
        roles::admit(&self.rules, call, object, None).await?;
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
            classes::default_storage_class(engine, object).await?;
        }
        if call.served.is("networking.k8s.io", "ingresses") {
            classes::default_ingress_class(engine, object).await?;
        }
        if call.served.is("apiextensions.k8s.io", "customresourcedefinitions") {
            definitions::protect(object);
        }
        Ok(())
    }

    async fn update(
        &self,
        engine: &Engine,
        call: &mut Call,
        part: Part,
        new: &mut Value,
        old: &Value,
    ) -> ApiResult<()> {
        let asked = Asked {
            operation: Operation::Update,
            subresource: part.subresource(),
            name: text(old, "/metadata/name"),
            new: Some(new),
            old: Some(old),
        };
        nodes::restrict(engine, &self.rules, call, asked).await?;
        roles::admit(&self.rules, call, new, Some(old)).await?;
        if call.served.is("certificates.k8s.io", "certificatesigningrequests") {
            certificates::admit_update(call, part, new, old).await?;
        }
        if part == Part::Main && call.served.is("", "services") {
            crate::services::carry_over(new, old);
        }
        Ok(())
    }

    async fn subresource(
        &self,
        engine: &Engine,
        call: &Call,
        name: &str,
        subresource: &str,
        body: &Value,
    ) -> ApiResult<()> {
        let asked = Asked { operation: Operation::Create, subresource, name, new: Some(body), old: None };
        nodes::restrict(engine, &self.rules, call, asked).await
    }

    async fn delete(&self, engine: &Engine, call: &mut Call, name: &str, object: &Value) -> ApiResult<()> {
        let asked = Asked { operation: Operation::Delete, subresource: "", name, new: None, old: Some(object) };
        nodes::restrict(engine, &self.rules, call, asked).await?;
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
