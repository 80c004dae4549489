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
    /// What webhooks and policies are told of a request; nothing where none is for it, which costs next to nothing.
    fn facts(
        &self,
        engine: &Engine,
        call: &Call,
        subresource: &str,
        operation: admission_request::Operation,
        object: &Value,
        name: &str,
    ) -> Option<Facts> {
        if self.dynamic.is_empty() {
            return None;
        }
        let facts = facts::full(engine, call, subresource, operation, object, name);
        self.dynamic.concerns(&facts).then_some(facts)
    }

    /// Asks those that change. `between` is what else does so.
    async fn ask_mutating(
        &self,
        call: &mut Call,
        facts: &Facts,
        object: &mut Value,
        old: &Value,
        between: impl Fn(&mut Value) + Send + Sync,
    ) -> ApiResult<()> {
        let mut between = |object: &mut Value| {
            between(object);
            Ok(())
        };
        let outcome = dynamic::accept(self.dynamic.mutate(facts, object, old, &mut between).await)?;
        dynamic::told(call, outcome);
        Ok(())
    }

    async fn ask_validating(&self, call: &mut Call, facts: Facts, object: &Value, old: &Value) -> ApiResult<()> {
        let outcome = dynamic::accept(self.dynamic.validate(&Arc::new(facts), object, old).await)?;
        dynamic::told(call, outcome);
        Ok(())
    }

    /// Asks both, about what is not stored: the body of a subresource, or nothing in the place of an object.
    async fn ask(&self, call: &mut Call, facts: Facts, object: &mut Value, old: &Value) -> ApiResult<()> {
        self.ask_mutating(call, &facts, object, old, |_| {}).await?;
        self.ask_validating(call, facts, object, old).await
    }

    /// Asks those that change about an object that is to be stored.
    async fn ask_about(
        &self,
        engine: &Engine,
        call: &mut Call,
        part: Part,
        new: &mut Value,
        old: &Value,
    ) -> ApiResult<()> {
        let operation = facts::operation(Some(old).filter(|old| !old.is_null()));
        let name = dynamic::name_of(old);
        let Some(facts) = self.facts(engine, call, part.subresource(), operation, new, name) else { return Ok(()) };
        let strategy = call.served.resource.strategy.clone();
        self.ask_mutating(call, &facts, new, old, |object| strategy.default(object)).await
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
        classes::default_class(engine, call, object)?;
        if call.served.is("apiextensions.k8s.io", "customresourcedefinitions") {
            definitions::protect(object);
        }
        self.ask_about(engine, call, Part::Main, object, &Value::Null).await
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
        self.ask_about(engine, call, part, new, old).await
    }

    async fn validate(
        &self,
        engine: &Engine,
        call: &mut Call,
        part: Part,
        new: &Value,
        old: Option<&Value>,
    ) -> ApiResult<()> {
        let warnings = standard::validate(engine, &self.security, call, part, new, old).await?;
        call.warnings.extend(warnings);
        if let Some(facts) = self.facts(engine, call, part.subresource(), facts::operation(old), new, "") {
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
        let operation = match connects {
            true => admission_request::Operation::Connect,
            false => admission_request::Operation::Create,
        };
        match self.facts(engine, call, subresource, operation, body, name) {
            Some(facts) => self.ask(call, facts, body, &Value::Null).await,
            None => Ok(()),
        }
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
        match self.facts(engine, call, "", admission_request::Operation::Delete, object, name) {
            Some(facts) => self.ask(call, facts, &mut Value::Null, object).await,
            None => Ok(()),
        }
    }
}

/// The address of a Service stays taken as long as the Service has it.
fn address_in_use(engine: &Engine, name: &str, address: &Value) -> ApiResult<()> {
    let (namespace, service) = (text(address, "/spec/parentRef/namespace"), text(address, "/spec/parentRef/name"));
    let Some(object) = engine.cached("", "services", namespace, service)? else { return Ok(()) };
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
