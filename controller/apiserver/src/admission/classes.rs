//! Classes that are taken where none is named: of storage, of ingresses.

use crate::engine::{Engine, text};
use crate::status::ApiResult;
use serde_json::Value;

/// The object of a kind that an annotation marks as the cluster's default; the newest wins when there are several.
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

/// For new claims without a class.
pub async fn default_storage_class(engine: &Engine, claim: &mut Value) -> ApiResult<()> {
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

/// For new ingresses without a class.
pub async fn default_ingress_class(engine: &Engine, ingress: &mut Value) -> ApiResult<()> {
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
