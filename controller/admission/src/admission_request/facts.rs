//! What a request is about, as far as webhooks and policies are concerned; what becomes of it.

pub use crate::request::Operation;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Group, version and resource (`apps`, `v1`, `deployments`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Gvr {
    /// Empty for core.
    pub group: String,
    /// For example `v1`.
    pub version: String,
    /// The plural, lower-case name.
    pub resource: String,
}

/// Group, version and kind (`apps`, `v1`, `Deployment`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Gvk {
    /// Empty for core.
    pub group: String,
    /// For example `v1`.
    pub version: String,
    /// For example `Deployment`.
    pub kind: String,
}

impl Gvr {
    /// From its parts.
    pub fn new(group: &str, version: &str, resource: &str) -> Self {
        Self { group: group.to_owned(), version: version.to_owned(), resource: resource.to_owned() }
    }

    /// `deployments.apps`, or `pods`.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.resource.clone() } else { format!("{}.{}", self.resource, self.group) }
    }

    pub(crate) fn json(&self) -> Value {
        json!({"group": self.group, "version": self.version, "resource": self.resource})
    }
}

impl Gvk {
    /// From its parts.
    pub fn new(group: &str, version: &str, kind: &str) -> Self {
        Self { group: group.to_owned(), version: version.to_owned(), kind: kind.to_owned() }
    }

    /// `apps/v1`, or `v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    pub(crate) fn json(&self) -> Value {
        json!({"group": self.group, "version": self.version, "kind": self.kind})
    }
}

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// For example `system:serviceaccount:shop:web`.
    pub username: String,
    /// May be empty.
    pub uid: String,
    /// All groups.
    pub groups: Vec<String>,
    /// What the authenticator added.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    pub(crate) fn json(&self) -> Value {
        let mut user = json!({"username": self.username});
        if !self.uid.is_empty() {
            user["uid"] = json!(self.uid);
        }
        if !self.groups.is_empty() {
            user["groups"] = json!(self.groups);
        }
        if !self.extra.is_empty() {
            user["extra"] = json!(self.extra);
        }
        user
    }
}

/// Another version or group under which the same objects are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Equivalent {
    /// Its resource.
    pub resource: Gvr,
    /// The kind of its objects.
    pub kind: Gvk,
}

/// Converts an object to another kind of the same objects.
pub type Convert = dyn Fn(&Value, &Gvk) -> Result<Value, String> + Send + Sync;

/// Fills the defaults of an object.
pub type Defaults = dyn Fn(&mut Value) + Send + Sync;

/// A request that changes something, without its objects.
#[derive(Clone)]
pub struct Facts {
    /// The resource under which the objects come here.
    pub resource: Gvr,
    /// The kind of the objects.
    pub kind: Gvk,
    /// `status`, `scale`, … or empty.
    pub subresource: String,
    /// What the client asked for, when that was another version; `resource` and `kind` otherwise.
    pub requested: Option<Equivalent>,
    /// Other versions in which the objects are served; for `matchPolicy: Equivalent`.
    pub equivalents: Vec<Equivalent>,
    /// How objects come into the form of one of them. Without it, those of the same group and kind get another
    /// `apiVersion` and all others are an error.
    pub convert: Option<Arc<Convert>>,
    /// Fills the defaults of an object that a webhook has patched, in the version of `kind`.
    pub default: Option<Arc<Defaults>>,
    /// Empty when it is yet to be generated.
    pub name: String,
    /// Empty for cluster-wide resources; the name for a Namespace itself.
    pub namespace: String,
    /// What is done.
    pub operation: Operation,
    /// Who asks.
    pub user: User,
    /// Nothing is stored.
    pub dry_run: bool,
    /// The `CreateOptions`, `UpdateOptions`, `PatchOptions` or `DeleteOptions`; `null` when there are none.
    pub options: Value,
    /// The Namespace object of `namespace`; `None` for cluster-wide resources.
    pub namespace_object: Option<Arc<Value>>,
}

impl Facts {
    /// It is about a Namespace itself.
    pub(crate) fn is_namespace(&self) -> bool {
        self.resource.group.is_empty() && self.resource.resource == "namespaces"
    }

    /// In a namespace. (A Namespace is not, though it has one.)
    pub(crate) fn in_namespace(&self) -> bool {
        !self.namespace.is_empty() && !self.is_namespace()
    }

    /// The object in the form of another kind.
    pub(crate) fn converted(&self, object: &Value, to: &Gvk) -> Result<Value, String> {
        if object.is_null() {
            return Ok(Value::Null);
        }
        let from = object["apiVersion"].as_str().unwrap_or("");
        if from == to.api_version() && object["kind"] == to.kind.as_str() {
            return Ok(object.clone());
        }
        if let Some(convert) = &self.convert {
            return convert(object, to);
        }
        let group = from.rsplit_once('/').map_or("", |(group, _)| group);
        if group != to.group || object["kind"] != to.kind.as_str() {
            return Err(format!("no conversion of {from} to {}, Kind={}", to.api_version(), to.kind));
        }
        let mut object = object.clone();
        object["apiVersion"] = json!(to.api_version());
        Ok(object)
    }
}

/// The `request` of a review, without its uid: what webhooks get and expressions see. `matched` is the version as which
/// the webhook wants the objects, which are in that version.
pub(crate) fn described(facts: &Facts, matched: &Equivalent) -> Value {
    let (kind, resource) = match &facts.requested {
        Some(requested) => (&requested.kind, &requested.resource),
        None => (&facts.kind, &facts.resource),
    };
    let mut request = json!({
        "kind": matched.kind.json(),
        "resource": matched.resource.json(),
        "requestKind": kind.json(),
        "requestResource": resource.json(),
        "operation": facts.operation.name(),
        "userInfo": facts.user.json(),
        "dryRun": facts.dry_run,
    });
    let texts = [
        ("subResource", &facts.subresource),
        ("requestSubResource", &facts.subresource),
        ("name", &facts.name),
        ("namespace", &facts.namespace),
    ];
    for (key, value) in texts {
        if !value.is_empty() {
            request[key] = json!(value);
        }
    }
    if !facts.options.is_null() {
        request["options"] = facts.options.clone();
    }
    request
}

/// Why a request is refused: the fields of a `Status`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Rejection {
    /// HTTP status, 400 to 599.
    pub code: u16,
    /// `Forbidden`, `Invalid`, `InternalError`, …; may be empty.
    pub reason: String,
    /// For the user.
    pub message: String,
    /// `Status.details`, or `null`.
    pub details: Box<Value>,
}

impl Rejection {
    /// 500 InternalError.
    pub fn internal(why: impl std::fmt::Display) -> Self {
        let message = format!("Internal error occurred: {why}");
        let details = json!({"causes": [{"message": why.to_string()}]});
        Self { code: 500, reason: "InternalError".to_owned(), message, details: Box::new(details) }
    }

    /// 400 BadRequest.
    pub fn bad_request(why: impl Into<String>) -> Self {
        Self { code: 400, reason: "BadRequest".to_owned(), message: why.into(), details: Box::default() }
    }

    /// 403 Forbidden: `pods "web" is forbidden: why`.
    pub fn forbidden(facts: &Facts, why: &str) -> Self {
        let message = match facts.name.as_str() {
            "" => format!("{} is forbidden: {why}", facts.resource.qualified()),
            name => format!("{} {name:?} is forbidden: {why}", facts.resource.qualified()),
        };
        let mut details = json!({"kind": facts.resource.resource});
        for (key, value) in [("name", &facts.name), ("group", &facts.resource.group)] {
            if !value.is_empty() {
                details[key] = json!(value);
            }
        }
        Self { code: 403, reason: "Forbidden".to_owned(), message, details: Box::new(details) }
    }
}

/// What is to be told about a request that goes on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// For `Warning` headers; bounded in number and length.
    pub warnings: Vec<String>,
    /// For the audit event's annotations: key and value.
    pub audit: Vec<(String, String)>,
    /// The object was changed.
    pub changed: bool,
}

/// Warnings of one request.
const MAX_WARNINGS: usize = 64;
/// Bytes of one warning.
const MAX_WARNING: usize = 1024;
/// Audit annotations of one request, and bytes of a value.
const MAX_ANNOTATIONS: usize = 256;
pub(crate) const MAX_ANNOTATION: usize = 10 << 10;

impl Outcome {
    pub(crate) fn warn(&mut self, text: &str) {
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let text = cut(&text, MAX_WARNING).to_owned();
        if !text.is_empty() && self.warnings.len() < MAX_WARNINGS && !self.warnings.contains(&text) {
            self.warnings.push(text);
        }
    }

    pub(crate) fn annotate(&mut self, key: String, value: &str) {
        if self.audit.len() < MAX_ANNOTATIONS && !self.audit.iter().any(|(k, _)| *k == key) {
            self.audit.push((key, cut(value, MAX_ANNOTATION).to_owned()));
        }
    }

    pub(crate) fn extend(&mut self, other: Outcome) {
        other.warnings.iter().for_each(|w| self.warn(w));
        for (key, value) in other.audit {
            self.annotate(key, &value);
        }
        self.changed |= other.changed;
    }
}

/// The beginning of a text, whole characters of it.
pub(crate) fn cut(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or_default();
    &text[..end]
}
