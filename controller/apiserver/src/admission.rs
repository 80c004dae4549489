//! Admission: small functions in a fixed order, between defaulting and validation.
//!
//! In: a new or changed object and the state of the cluster. Out: the object with what the cluster adds to it, or a
//! refusal.

mod certificates;
mod classes;
mod definitions;
pub mod dynamic;
mod facts;
mod nodes;
mod pods;
mod quota;
mod roles;
mod standard;

pub use definitions::FINALIZER;

use crate::authz::Rules;
use crate::engine::{Admission, Call, Engine, Part, text};
use crate::status::{ApiError, ApiResult};
use async_trait::async_trait;
use causeway_admission::admission_request::{self, Facts};
use causeway_admission::dynamic::Dynamic;
use causeway_admission::pod_security::PodSecurity;
use causeway_authz::node::Operation;
use nodes::Asked;
use serde_json::Value;
use std::sync::Arc;

/// Namespaces that stay.
const PROTECTED: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// The admission chain. Its order is that of Kubernetes: what exists and whose it is, then changes, and after validation
/// refusals, of which quotas come last.
pub struct Chain {
    /// Roles and what nodes may reach.
    pub rules: Arc<Rules>,
    /// Pod security.
    pub security: PodSecurity,
    /// Webhooks and policies.
    pub dynamic: Arc<Dynamic>,
}

impl Chain {
    async fn ask_mutating(
        &self,
        engine: &Engine,
        call: &mut Call,
        (part, operation): (Part, admission_request::Operation),
        object: &mut Value,
        old: &Value,
    ) -> ApiResult<()> {
        if self.dynamic.is_empty() {
            return Ok(());
        }
        let facts = facts::full(engine, call, part.subresource(), operation, object, dynamic::name_of(old));
        if !self.dynamic.concerns(&facts) {
            return Ok(());
        }
        let strategy = call.served.resource.strategy.clone();
        let mut between = |object: &mut Value| {
            strategy.default(object);
            Ok(())
        };
        let outcome = dynamic::accept(self.dynamic.mutate(&facts, object, old, &mut between).await)?;
        dynamic::told(call, outcome);
        Ok(())
    }

    async fn ask_validating(&self, call: &mut Call, facts: Facts, object: &Value, old: &Value) -> ApiResult<()> {
        if !self.dynamic.concerns(&facts) {
            return Ok(());
        }
        let outcome = dynamic::accept(self.dynamic.validate(&Arc::new(facts), object, old).await)?;
        dynamic::told(call, outcome);
        Ok(())
    }
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
        standard::mutate(engine, call, Part::Main, object, None)?;
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
        let create = (Part::Main, admission_request::Operation::Create);
        self.ask_mutating(engine, call, create, object, &Value::Null).await
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
        standard::mutate(engine, call, part, new, Some(old))?;
        self.ask_mutating(engine, call, (part, admission_request::Operation::Update), new, old).await
    }

    async fn validate(
        &self,
        engine: &Engine,
        call: &mut Call,
        part: Part,
        new: &Value,
        old: Option<&Value>,
    ) -> ApiResult<()> {
        standard::validate(engine, &self.security, call, part, new, old).await?;
        let operation = match old {
            Some(_) => admission_request::Operation::Update,
            None => admission_request::Operation::Create,
        };
        if !self.dynamic.is_empty() {
            let facts = facts::full(engine, call, part.subresource(), operation, new, "");
            self.ask_validating(call, facts, new, old.unwrap_or(&Value::Null)).await?;
        }
        quota::admit(engine, call, part, new, old).await
    }

    async fn subresource(
        &self,
        engine: &Engine,
        call: &mut Call,
        name: &str,
        subresource: &str,
        body: &mut Value,
    ) -> ApiResult<()> {
        let connects = matches!(subresource, "exec" | "attach" | "portforward" | "proxy");
        if !connects {
            let asked = Asked { operation: Operation::Create, subresource, name, new: Some(body), old: None };
            nodes::restrict(engine, &self.rules, call, asked).await?;
        }
        if self.dynamic.is_empty() {
            return Ok(());
        }
        let operation = match connects {
            true => admission_request::Operation::Connect,
            false => admission_request::Operation::Create,
        };
        let facts = facts::full(engine, call, subresource, operation, body, name);
        if !self.dynamic.concerns(&facts) {
            return Ok(());
        }
        let mut between = |_: &mut Value| Ok(());
        let outcome = dynamic::accept(self.dynamic.mutate(&facts, body, &Value::Null, &mut between).await)?;
        dynamic::told(call, outcome);
        self.ask_validating(call, facts, body, &Value::Null).await
    }

    async fn delete(&self, engine: &Engine, call: &mut Call, name: &str, object: &Value) -> ApiResult<()> {
        let asked = Asked { operation: Operation::Delete, subresource: "", name, new: None, old: Some(object) };
        nodes::restrict(engine, &self.rules, call, asked).await?;
        if call.served.is("", "namespaces") && PROTECTED.contains(&name) {
            return Err(ApiError::forbidden("", "namespaces", name, "this namespace may not be deleted"));
        }
        if call.served.is("networking.k8s.io", "ipaddresses") {
            address_in_use(engine, name, object)?;
        }
        if self.dynamic.is_empty() {
            return Ok(());
        }
        let facts = facts::full(engine, call, "", admission_request::Operation::Delete, object, name);
        if !self.dynamic.concerns(&facts) {
            return Ok(());
        }
        let (mut none, mut between) = (Value::Null, |_: &mut Value| Ok(()));
        let outcome = dynamic::accept(self.dynamic.mutate(&facts, &mut none, object, &mut between).await)?;
        dynamic::told(call, outcome);
        self.ask_validating(call, facts, &Value::Null, object).await
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
