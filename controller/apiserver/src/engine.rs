//! The generic resource engine: every verb on every kind, over the store and the watch cache.
//!
//! In: a [`Call`] (who, on which resource, with which options) and objects as JSON values. Out: objects, pages,
//! watch streams, or an [`ApiError`]. Reads come from the cache after it has caught up with the store; writes are
//! compare-and-swap loops on the store itself.

mod apply;
mod delete;
mod frame;
mod hooks;
mod read;
mod write;

pub use delete::DeleteOptions;
pub use frame::name_suffix;
pub use hooks::{Admission, Allocation, Claim, NoClaim};
pub use read::{Event, Page};
pub use write::Part;

use crate::authz::{self, Attributes, Authorizer};
use crate::catalog::{Catalog, Served};
use crate::feed::Feed;
use crate::object::{Filter, Object, stamp};
use crate::request::{FieldValidation, ListOptions, WriteOptions};
use crate::status::{ApiError, ApiResult};
use bytes::Bytes;
use causeway_api::config::ClusterConfig;
use causeway_api::identity::UserInfo;
use causeway_audit::Record;
use causeway_schema::bounds::{MAX_DEPTH, is_deeper, too_deep};
use causeway_store::{KeyValue, MAX_ADDED, MAX_KEY, MAX_REQUEST, Store};
use serde_json::Value;
use std::net::IpAddr;
use std::sync::Arc;

/// An object as it is stored is at most this long: what the store takes, as etcd does.
const MAX_OBJECT: usize = MAX_REQUEST - MAX_KEY - MAX_ADDED;

/// The engine's parts.
pub struct Engine {
    /// Where everything is kept.
    pub store: Arc<dyn Store>,
    /// What is in it, in memory.
    pub feed: Arc<Feed>,
    /// What is served.
    pub catalog: Arc<Catalog>,
    /// Ranges and names.
    pub cluster: ClusterConfig,
    /// Service addresses and node ports.
    pub allocation: Arc<dyn Allocation>,
    /// Rules between decoding and validation.
    pub admission: Arc<dyn Admission>,
}

/// Who answers for what a call does in the end.
#[derive(Clone)]
pub enum Authority {
    /// The server itself, for what it keeps in place: nobody is asked.
    Server,
    /// The caller: what the request turns out to do is asked for in its name.
    Caller(Arc<dyn Authorizer>),
}

/// One request to the engine.
pub struct Call {
    /// The resource.
    pub served: Arc<Served>,
    /// The namespace; empty for cluster-wide resources.
    pub namespace: String,
    /// Who asks.
    pub user: UserInfo,
    /// Whether the user may do what is in the end done.
    pub authority: Authority,
    /// The address that the request came from, where there is one.
    pub peer: Option<IpAddr>,
    /// Write options.
    pub options: WriteOptions,
    /// What is recorded of the request, if it is.
    pub record: Option<Arc<Record>>,
    /// For `Warning` headers.
    pub warnings: Vec<String>,
    /// Managed fields are already up to date (server-side apply).
    pub tracked: bool,
}

impl Call {
    /// A call of the server itself.
    pub fn internal(served: Arc<Served>, namespace: &str) -> Self {
        Self {
            served,
            namespace: namespace.to_owned(),
            user: UserInfo::component(causeway_api::identity::USER_APISERVER, &[]),
            authority: Authority::Server,
            peer: None,
            options: WriteOptions {
                dry_run: false,
                field_manager: "causeway-apiserver".to_owned(),
                validation: FieldValidation::Ignore,
                force: false,
            },
            record: None,
            warnings: Vec::new(),
            tracked: false,
        }
    }

    /// The same in one namespace: a call on all of them goes on as its caller.
    pub fn of_namespace(&self, namespace: &str) -> Self {
        Self {
            served: self.served.clone(),
            namespace: namespace.to_owned(),
            user: self.user.clone(),
            authority: self.authority.clone(),
            peer: self.peer,
            options: self.options.clone(),
            record: self.record.clone(),
            warnings: Vec::new(),
            tracked: false,
        }
    }

    /// Adds an annotation to the request's audit events.
    pub fn annotate(&self, key: &str, value: &str) {
        if let Some(record) = &self.record {
            record.annotate(key, value);
        }
    }

    /// The storage key of an object.
    pub fn key(&self, name: &str) -> String {
        self.served.key(&self.namespace, name)
    }

    /// Refuses what the caller may not do to an object of this resource.
    pub async fn require(&self, verb: &str, subresource: &str, name: &str) -> ApiResult<()> {
        let resource = &self.served.resource;
        self.require_of(Attributes {
            verb: verb.to_owned(),
            group: resource.group.clone(),
            resource: resource.plural.clone(),
            subresource: subresource.to_owned(),
            namespace: if self.served.is("", "namespaces") { name.to_owned() } else { self.namespace.clone() },
            name: name.to_owned(),
            ..Attributes::default()
        })
        .await
    }

    /// Refuses what the caller may not do.
    pub async fn require_of(&self, attributes: Attributes) -> ApiResult<()> {
        match &self.authority {
            Authority::Server => Ok(()),
            Authority::Caller(authorizer) => authz::require(&**authorizer, &self.user, &attributes).await,
        }
    }
}

/// The time as Kubernetes writes it: RFC 3339, whole seconds, UTC.
pub fn now_text() -> String {
    time_text(jiff::Timestamp::now())
}

/// A point in time as Kubernetes writes it.
pub fn time_text(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl Engine {
    /// The built-in resource, which is always there.
    pub fn served(&self, group: &str, version: &str, plural: &str) -> ApiResult<Arc<Served>> {
        let missing = || ApiError::internal(format!("resource {plural} in {group}/{version} is not registered"));
        self.catalog.table().get(group, version, plural).ok_or_else(missing)
    }

    /// The filter of list options; fields the kind cannot select by are refused.
    pub fn filter(served: &Served, options: &ListOptions) -> ApiResult<Filter> {
        let strategy = served.resource.strategy.clone();
        let probe = serde_json::json!({ "metadata": {}, "spec": {}, "status": {}, "involvedObject": {}, "source": {} });
        for term in &options.fields {
            let known = matches!(term.field.as_str(), "metadata.name" | "metadata.namespace")
                || strategy.select_field(&probe, &term.field).is_some();
            if !known {
                return Err(ApiError::bad_request(format!(
                    "Unable to find {:?} that match label selector {:?}, field selector {:?}: field label not supported: {}",
                    format!("{}, Resource={}", served.api_version, served.resource.plural),
                    options.labels.to_string(),
                    format!("{}{}{}", term.field, if term.equal { "=" } else { "!=" }, term.value),
                    term.field
                )));
            }
        }
        Ok(Filter { labels: options.labels.clone(), fields: options.fields.clone(), strategy })
    }

    /// An object's JSON in the version that was asked for.
    pub fn show(served: &Served, object: &Object) -> Bytes {
        if object.api_version == served.api_version {
            return object.json.clone();
        }
        serde_json::to_vec(&Self::show_value(served, object)).unwrap_or_default().into()
    }

    /// As [`Self::show`], parsed.
    pub fn show_value(served: &Served, object: &Object) -> Value {
        let mut value = object.value();
        if object.api_version != served.api_version {
            served.to_served(&mut value);
        }
        value
    }

    /// The current stored object in the version of the call, straight from the store.
    async fn current(&self, call: &Call, name: &str) -> ApiResult<(Value, KeyValue)> {
        let key = call.key(name);
        let (found, _) = self.store.get(&key, None).await?;
        let kv = found.ok_or_else(|| ApiError::not_found(&call.served.resource, name))?;
        Ok((self.decode(&call.served, &kv)?, kv))
    }

    fn decode(&self, served: &Served, kv: &KeyValue) -> ApiResult<Value> {
        let mut value: Value = serde_json::from_slice(&kv.value)
            .map_err(|e| ApiError::internal(format!("the stored value of {} is broken: {e}", kv.key)))?;
        if value["apiVersion"] != served.api_version.as_str() || served.custom.is_some() {
            served.to_served(&mut value);
        }
        stamp(&mut value, kv.mod_revision);
        Ok(value)
    }

    /// What is stored. Refuses what could not be read again, and what no client could send.
    fn encode(&self, served: &Served, object: &Value) -> ApiResult<Bytes> {
        if is_deeper(object, MAX_DEPTH) {
            return Err(ApiError::bad_request(too_deep()));
        }
        let mut stored = object.clone();
        if let Some(metadata) = stored.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("resourceVersion");
        }
        served.to_storage(&mut stored);
        let bytes = serde_json::to_vec(&stored).map_err(ApiError::internal)?;
        // Patches and applies let an object grow by a request's body each. A dry run is told what the store would say.
        if bytes.len() > MAX_OBJECT { Err(ApiError::too_large(MAX_OBJECT)) } else { Ok(bytes.into()) }
    }
}

/// A string inside an object; empty when it is not there.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

/// `metadata.finalizers` has entries.
pub fn has_finalizers(object: &Value) -> bool {
    object.pointer("/metadata/finalizers").and_then(Value::as_array).is_some_and(|f| !f.is_empty())
}
