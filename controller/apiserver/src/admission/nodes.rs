//! What a node may write, told with the object at hand: the rules are in [`causeway_authz::node`], here is what they look
//! things up in.

use crate::authz::{Attributes, Decision, Rules};
use crate::engine::{Call, Engine, text};
use crate::status::{ApiError, ApiResult};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use causeway_api::certificates;
use causeway_authz::Subject;
use causeway_authz::node::{self, Lookup, Operation, Write};
use serde_json::Value;

/// The server's own copies.
struct Cached<'a> {
    engine: &'a Engine,
    rules: &'a Rules,
    call: &'a Call,
}

impl Lookup for Cached<'_> {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        Some(self.engine.cached(group, resource, namespace, name).ok()??.value())
    }

    fn common_name(&self, request: &str) -> Result<String, String> {
        let pem = STANDARD.decode(request).map_err(|e| e.to_string())?;
        Ok(certificates::parse(&pem)?.common_name)
    }

    fn may_request_audience(&self, namespace: &str, account: &str, audience: &str) -> bool {
        let asked = Attributes {
            verb: "request-serviceaccounts-token-audience".to_owned(),
            resource: audience.to_owned(),
            namespace: namespace.to_owned(),
            name: account.to_owned(),
            ..Attributes::default()
        };
        matches!(self.rules.decide(&self.call.user, &asked), Decision::Allow(_))
    }

    fn now(&self) -> i64 {
        jiff::Timestamp::now().as_second()
    }
}

/// A write, as it is asked about.
pub struct Asked<'a> {
    /// What is done.
    pub operation: Operation,
    /// Subresource; empty for the object itself.
    pub subresource: &'a str,
    /// The object's name.
    pub name: &'a str,
    /// What is to be stored, or the body of a subresource.
    pub new: Option<&'a Value>,
    /// What is there.
    pub old: Option<&'a Value>,
}

/// Refuses what a node may not write. Nothing happens for other callers.
pub async fn restrict(engine: &Engine, rules: &Rules, call: &Call, asked: Asked<'_>) -> ApiResult<()> {
    let subject = Subject { user: &call.user.username, groups: &call.user.groups };
    let Some(node) = node::node_of(&subject) else { return Ok(()) };
    // What is looked up must not be older than what the node has seen.
    engine.feed.catch_up().await?;
    let resource = &call.served.resource;
    let name = if asked.name.is_empty() { asked.new.map_or("", |new| text(new, "/metadata/name")) } else { asked.name };
    let write = Write {
        operation: asked.operation,
        group: &resource.group,
        resource: &resource.plural,
        subresource: asked.subresource,
        namespace: &call.namespace,
        name,
        object: asked.new,
        old: asked.old,
    };
    let lookup = Cached { engine, rules, call };
    node::restrict(node, &write, &lookup).map_err(|why| {
        let plural = if asked.subresource.is_empty() {
            resource.plural.clone()
        } else {
            format!("{}/{}", resource.plural, asked.subresource)
        };
        ApiError::forbidden(&resource.group, &plural, name, &why)
    })
}
