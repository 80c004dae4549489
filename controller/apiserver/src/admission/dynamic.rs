//! Webhooks and policies: what they are asked through, and where they look things up.

use crate::authz::{self, Rules};
use crate::dialer::NodeDialer;
use crate::engine::{Call, Engine, text};
use crate::request::ListOptions;
use crate::status::{ApiError, ApiResult};
use async_trait::async_trait;
use causeway_admission::admission_request::{Outcome, Rejection, User};
use causeway_admission::dynamic::Dynamic;
use causeway_admission::expressions;
use causeway_admission::policies::Parameters;
use causeway_admission::webhooks::{HttpCaller, Network};
use causeway_api::identity::UserInfo;
use rustls::RootCertStore;
use serde_json::Value;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock, Weak};
use tokio::net::TcpStream;

/// The way from plugins to objects and into the network of pods. The engine comes later than its plugins.
pub struct Reach {
    engine: OnceLock<Weak<Engine>>,
    dialer: Arc<dyn NodeDialer>,
}

impl Reach {
    /// Without an engine yet.
    pub fn new(dialer: Arc<dyn NodeDialer>) -> Arc<Self> {
        Arc::new(Self { engine: OnceLock::new(), dialer })
    }

    /// The engine whose objects are looked up from now on.
    pub fn set(&self, engine: &Arc<Engine>) {
        let _ = self.engine.set(Arc::downgrade(engine));
    }

    fn engine(&self) -> Result<Arc<Engine>, String> {
        self.engine.get().and_then(Weak::upgrade).ok_or_else(|| "the server is starting or ending".to_owned())
    }
}

/// Webhooks and policies over a way to their objects.
pub fn new(reach: &Arc<Reach>, rules: Arc<Rules>) -> anyhow::Result<Dynamic> {
    let mut roots = RootCertStore::empty();
    // Of the system, for webhooks at URLs without a bundle of their own.
    for certificate in rustls_native_certs::load_native_certs().certs {
        let _ = roots.add(certificate);
    }
    let caller = HttpCaller::new(reach.clone(), roots).map_err(|why| anyhow::anyhow!("webhooks: {why}"))?;
    Ok(Dynamic::new(Arc::new(caller), reach.clone(), Arc::new(Decides(rules))))
}

/// Decisions for expressions.
struct Decides(Arc<Rules>);

impl expressions::Authorizer for Decides {
    fn authorize(&self, user: &User, asked: &expressions::Attributes) -> Result<expressions::Decision, String> {
        let user = UserInfo {
            username: user.username.clone(),
            uid: user.uid.clone(),
            groups: user.groups.clone(),
            extra: user.extra.clone(),
        };
        let attributes = authz::Attributes {
            verb: asked.verb.clone(),
            group: asked.group.clone(),
            resource: asked.resource.clone(),
            subresource: asked.subresource.clone(),
            namespace: asked.namespace.clone(),
            name: asked.name.clone(),
            path: asked.path.clone().unwrap_or_default(),
            ..authz::Attributes::default()
        };
        Ok(match self.0.decide(&user, &attributes) {
            authz::Decision::Allow(reason) => expressions::Decision { allowed: true, reason },
            authz::Decision::Deny(reason) | authz::Decision::NoOpinion(reason) => {
                expressions::Decision { allowed: false, reason }
            }
        })
    }
}

/// `apps/v1` in its parts.
fn parts(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

#[async_trait]
impl Parameters for Reach {
    async fn namespaced(&self, api_version: &str, kind: &str) -> Option<bool> {
        let (group, version) = parts(api_version);
        Some(self.engine().ok()?.catalog.table().by_kind(group, version, kind)?.namespaced())
    }

    async fn get(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>, String> {
        let engine = self.engine()?;
        let (group, version) = parts(api_version);
        let table = engine.catalog.table();
        let served = table.by_kind(group, version, kind).ok_or_else(|| format!("{kind} is not served"))?;
        match engine.get(served, namespace, name, Some(0)).await {
            Ok(object) => Ok(Some(Engine::show_value(served, &object))),
            Err(error) if error.code() == 404 => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn list(&self, api_version: &str, kind: &str, namespace: &str) -> Result<Vec<Value>, String> {
        let engine = self.engine()?;
        let (group, version) = parts(api_version);
        let table = engine.catalog.table();
        let served = table.by_kind(group, version, kind).ok_or_else(|| format!("{kind} is not served"))?;
        let newest =
            ListOptions::parse(&crate::request::Query::parse("resourceVersion=0")).map_err(|e| e.to_string())?;
        let page = engine.list(served, namespace, &newest).await.map_err(|e| e.to_string())?;
        Ok(page.objects.iter().map(|o| Engine::show_value(served, o)).collect())
    }
}

#[async_trait]
impl Network for Reach {
    async fn resolve(&self, namespace: &str, name: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
        let engine = self.engine()?;
        let missing = || format!("service {name:?} not found");
        let object = |group: &str, plural: &str| engine.served(group, "v1", plural).map_err(|e| e.to_string());
        let services = object("", "services")?;
        let service =
            engine.feed.cache(&services.prefix).get(&services.key(namespace, name)).ok_or_else(missing)?.value();
        let ports = service.pointer("/spec/ports").and_then(Value::as_array);
        let wanted = ports.into_iter().flatten().find(|p| p["port"] == port);
        let port_name = wanted.ok_or_else(|| format!("no service port {port} found for service {name:?}"))?["name"]
            .as_str()
            .unwrap_or("")
            .to_owned();
        let slices = object("discovery.k8s.io", "endpointslices")?;
        let prefix = format!("{}{namespace}/", slices.prefix);
        let mut all = Vec::new();
        for slice in engine.feed.cache(&slices.prefix).list(&prefix).0 {
            if slice.labels.get("kubernetes.io/service-name").map(String::as_str) == Some(name) {
                all.extend(ready(&slice.value(), &port_name));
            }
        }
        if all.is_empty() { Err(format!("no endpoints available for service {name:?}")) } else { Ok(all) }
    }

    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.dialer.dial(address).await
    }
}

/// The ready endpoints of a slice.
fn ready(slice: &Value, port_name: &str) -> Vec<SocketAddr> {
    let list = |field: &str| slice[field].as_array().cloned().unwrap_or_default();
    let ports = list("ports");
    let port = ports.iter().find(|p| p["name"].as_str().unwrap_or("") == port_name).and_then(|p| p["port"].as_u64());
    let Some(port) = port.and_then(|p| u16::try_from(p).ok()) else { return Vec::new() };
    let endpoints = list("endpoints");
    let serving = endpoints.iter().filter(|e| e.pointer("/conditions/ready").and_then(Value::as_bool).unwrap_or(true));
    let addresses = serving.flat_map(|e| e["addresses"].as_array().cloned().unwrap_or_default());
    addresses.filter_map(|a| a.as_str()?.parse::<IpAddr>().ok()).map(|ip| SocketAddr::new(ip, port)).collect()
}

/// What webhooks and policies told, for the client and the record.
pub fn told(call: &mut Call, outcome: Outcome) {
    call.warnings.extend(outcome.warnings);
    for (key, value) in outcome.audit {
        call.annotate(&key, &value);
    }
}

/// A refusal as the client gets it.
pub fn rejected(rejection: Rejection) -> ApiError {
    ApiError::told(rejection.code, rejection.reason, rejection.message, *rejection.details)
}

/// The name of a written object, for messages.
pub fn name_of(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// A result with the refusal as an error.
pub fn accept<T>(outcome: Result<T, Rejection>) -> ApiResult<T> {
    outcome.map_err(rejected)
}
