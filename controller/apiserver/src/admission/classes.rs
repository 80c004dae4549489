//! Classes that are taken where none is named: of storage, of ingresses.

use super::dynamic::name_of;
use crate::engine::{Call, Engine, text};
use crate::status::ApiResult;
use serde_json::Value;

/// Where a kind names its class, and which class is taken otherwise.
struct Class {
    group: &'static str,
    plural: &'static str,
    /// The annotation of the class that is the cluster's default.
    marked: &'static str,
    /// The field of `spec` that names a class.
    field: &'static str,
    /// The annotation that did so before there was the field.
    before: &'static str,
}

const STORAGE: Class = Class {
    group: "storage.k8s.io",
    plural: "storageclasses",
    marked: "storageclass.kubernetes.io/is-default-class",
    field: "storageClassName",
    before: "volume.beta.kubernetes.io/storage-class",
};
const INGRESS: Class = Class {
    group: "networking.k8s.io",
    plural: "ingressclasses",
    marked: "ingressclass.kubernetes.io/is-default-class",
    field: "ingressClassName",
    before: "kubernetes.io/ingress.class",
};

/// Names the default class in a new claim or ingress that names none.
pub fn default_class(engine: &Engine, call: &Call, object: &mut Value) -> ApiResult<()> {
    let class = if call.served.is("", "persistentvolumeclaims") {
        STORAGE
    } else if call.served.is("networking.k8s.io", "ingresses") {
        INGRESS
    } else {
        return Ok(());
    };
    let named = object["spec"].get(class.field).is_some_and(|c| !c.is_null())
        || object["metadata"]["annotations"].get(class.before).is_some();
    if named || !object["spec"].is_object() {
        return Ok(());
    }
    let all = engine.all_cached(class.group, class.plural, "")?;
    let marked = all.iter().filter(|c| c["metadata"]["annotations"][class.marked] == "true");
    let age = |c: &Value| text(c, "/metadata/creationTimestamp").to_owned();
    // The newest, then the first by name, as upstream decides.
    let first = marked.min_by(|a, b| age(b).cmp(&age(a)).then_with(|| name_of(a).cmp(name_of(b))));
    if let Some(first) = first {
        object["spec"][class.field] = name_of(first).into();
    }
    Ok(())
}
