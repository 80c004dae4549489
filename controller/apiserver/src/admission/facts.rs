//! A write as the plugins of [`causeway_admission`] want it told.

use crate::engine::{Call, Engine, text};
use crate::object::Object;
use causeway_admission::admission_request::{Equivalent, Facts, Gvk, Gvr, User};
use causeway_admission::{admission_request, request};
use causeway_api::identity::UserInfo;
use serde_json::{Value, json};
use std::sync::Arc;

/// What is done to what, in plain words.
pub fn plain<'a>(
    call: &'a Call,
    subresource: &'a str,
    operation: request::Operation,
    name: &'a str,
) -> request::Facts<'a> {
    let resource = &call.served.resource;
    let namespaces = call.served.is("", "namespaces");
    request::Facts {
        user: &call.user.username,
        namespace: if namespaces { name } else { &call.namespace },
        group: &resource.group,
        resource: &resource.plural,
        subresource,
        operation,
    }
}

/// What a write is that puts an object in the place of another, or of none.
pub fn operation(old: Option<&Value>) -> request::Operation {
    if old.is_some() { request::Operation::Update } else { request::Operation::Create }
}

/// The Namespace object of a call, as the cache has it.
fn namespace_of(engine: &Engine, namespace: &str) -> Option<Arc<Object>> {
    engine.cached("", "namespaces", "", namespace).ok().flatten()
}

/// The labels of a namespace, which the cache has at hand.
pub fn labels_of_namespace(engine: &Engine, namespace: &str) -> Option<Value> {
    Some(json!(namespace_of(engine, namespace)?.labels))
}

fn user(user: &UserInfo) -> User {
    User {
        username: user.username.clone(),
        uid: user.uid.clone(),
        groups: user.groups.clone(),
        extra: user.extra.clone(),
    }
}

/// The kind of the body of a subresource; that of its object where it has none of its own.
fn kind_of(call: &Call, subresource: &str) -> Gvk {
    let resource = &call.served.resource;
    match subresource {
        "eviction" => Gvk::new("policy", "v1", "Eviction"),
        "binding" => Gvk::new("", "v1", "Binding"),
        "token" => Gvk::new("authentication.k8s.io", "v1", "TokenRequest"),
        "exec" => Gvk::new("", "v1", "PodExecOptions"),
        "attach" => Gvk::new("", "v1", "PodAttachOptions"),
        "portforward" => Gvk::new("", "v1", "PodPortForwardOptions"),
        _ => Gvk::new(&resource.group, &resource.version, &resource.kind),
    }
}

/// `CreateOptions` and so on; null for a connection, which has none.
fn options(call: &Call, operation: admission_request::Operation) -> Value {
    let kind = match operation {
        admission_request::Operation::Create => "CreateOptions",
        admission_request::Operation::Update => "UpdateOptions",
        admission_request::Operation::Delete => "DeleteOptions",
        admission_request::Operation::Connect => return Value::Null,
    };
    let mut options = json!({ "kind": kind, "apiVersion": "meta.k8s.io/v1" });
    if call.options.dry_run {
        options["dryRun"] = json!(["All"]);
    }
    if operation != admission_request::Operation::Delete {
        options["fieldManager"] = call.options.field_manager.as_str().into();
    }
    options
}

/// All that webhooks and policies may ask about.
pub fn full(
    engine: &Engine,
    call: &Call,
    subresource: &str,
    operation: admission_request::Operation,
    object: &Value,
    name: &str,
) -> Facts {
    let resource = &call.served.resource;
    let name = if name.is_empty() { text(object, "/metadata/name") } else { name };
    let namespaces = call.served.is("", "namespaces");
    let table = engine.catalog.table();
    let same = table.all.iter().filter(|other| other.prefix == call.served.prefix && !Arc::ptr_eq(other, &call.served));
    let equivalents = same.map(|other| {
        let r = &other.resource;
        Equivalent {
            resource: Gvr::new(&r.group, &r.version, &r.plural),
            kind: Gvk::new(&r.group, &r.version, &r.kind),
        }
    });
    let of_namespace = if namespaces { name } else { &call.namespace };
    let strategy = call.served.resource.strategy.clone();
    Facts {
        resource: Gvr::new(&resource.group, &resource.version, &resource.plural),
        kind: kind_of(call, subresource),
        subresource: subresource.to_owned(),
        requested: None,
        equivalents: equivalents.collect(),
        convert: None,
        default: Some(Arc::new(move |object: &mut Value| strategy.default(object))),
        name: name.to_owned(),
        namespace: of_namespace.to_owned(),
        operation,
        user: user(&call.user),
        dry_run: call.options.dry_run,
        options: options(call, operation),
        namespace_object: (!call.namespace.is_empty())
            .then(|| namespace_of(engine, &call.namespace))
            .flatten()
            .map(|namespace| Arc::new(namespace.value())),
    }
}
