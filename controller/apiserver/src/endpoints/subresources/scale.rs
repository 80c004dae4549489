//! `/scale`: the number of replicas of any kind that has one (autoscaling/v1 Scale).

use crate::endpoints::Endpoints;
use crate::endpoints::resources::{JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, refused};
use crate::engine::{Call, Part, text};
use crate::exchange::{Incoming, Reply};
use crate::serialization::codec;
use crate::status::{ApiError, ApiResult};
use causeway_api::selector::Selector;
use causeway_registry::ScalePaths;
use causeway_schema::strict;
use http::StatusCode;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, json};
use std::sync::Arc;

/// From the Scale as it is to the Scale as it shall be.
type Change = Box<dyn Fn(&Value) -> ApiResult<Value> + Send + Sync>;

/// Get, update and patch.
pub async fn serve(
    server: &Arc<Endpoints>,
    mut call: Call,
    name: &str,
    verb: &str,
    incoming: Incoming,
) -> ApiResult<Reply> {
    let Some(paths) = call.served.resource.scale.clone() else { return Err(ApiError::no_such_path()) };
    if verb == "get" {
        let object = server.engine.get(&call.served, &call.namespace, name, None).await?;
        let value = crate::engine::Engine::show_value(&call.served, &object);
        return Ok(Reply::json(StatusCode::OK, &scale_of(&value, &paths)));
    }
    let body = incoming.body().await?;
    let media = codec::media_type(&incoming.content_type);
    let change: Change = match (verb, media.as_str()) {
        ("update", _) => {
            let (scale, _) = codec::decode(&incoming.content_type, &body)?;
            incoming.patch_is(&scale);
            Box::new(move |_| Ok(scale.clone()))
        }
        ("patch", JSON_PATCH) => {
            let patch = codec::decode_yaml(&body)?;
            incoming.patch_is(&patch);
            Box::new(move |old| causeway_schema::patch::json(old, &patch).map_err(refused))
        }
        // A Scale has no lists: both merge it alike.
        ("patch", MERGE_PATCH | STRATEGIC_PATCH) => {
            let patch = codec::decode_yaml(&body)?;
            incoming.patch_is(&patch);
            Box::new(move |old| Ok(causeway_schema::patch::merge(old, &patch)))
        }
        ("patch", _) => {
            return Err(ApiError::unsupported_media_type(&[JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH]));
        }
        _ => return Err(ApiError::method_not_allowed()),
    };
    let schema = causeway_schema::builtin("autoscaling", "v1", "Scale")
        .ok_or_else(|| ApiError::internal("the schema of autoscaling/v1 Scale is missing"))?;
    let changed = server
        .engine
        .patch(&mut call, name, Part::Main, |old| {
            let before = scale_of(old, &paths);
            let scale = change(&before)?;
            let wanted = text(&scale, "/metadata/resourceVersion");
            let mut new = old.clone();
            if !wanted.is_empty() {
                new["metadata"]["resourceVersion"] = wanted.into();
            }
            let given = scale.pointer("/spec/replicas").unwrap_or(&Value::Null);
            if let Some((_, why)) = strict::type_errors(&json!({ "spec": { "replicas": given } }), &schema).first() {
                let text = format!("Scale in version \"v1\" cannot be handled as a Scale: {why}");
                return Err(ApiError::bad_request(text));
            }
            let replicas = given.as_i64().unwrap_or(0);
            if replicas < 0 {
                return Err(ApiError::new(
                    422,
                    "Invalid",
                    format!("Scale.autoscaling {name:?} is invalid: spec.replicas: Invalid value: {replicas}: must be greater than or equal to 0"),
                ));
            }
            set(&mut new, &paths.spec_replicas, replicas.into());
            Ok(new)
        })
        .await?;
    Ok(Reply::json(StatusCode::OK, &scale_of(&changed, &paths)))
}

/// The Scale of an object.
fn scale_of(object: &Value, paths: &ScalePaths) -> Value {
    let meta = &object["metadata"];
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"],
            "resourceVersion": meta["resourceVersion"], "creationTimestamp": meta["creationTimestamp"],
        },
        "spec": { "replicas": get(object, &paths.spec_replicas).and_then(Value::as_i64).unwrap_or(0) },
        "status": { "replicas": get(object, &paths.status_replicas).and_then(Value::as_i64).unwrap_or(0) },
    });
    let selector = paths.selector.as_ref().and_then(|path| get(object, path)).and_then(|selector| match selector {
        Value::String(text) => Some(text.clone()),
        other => {
            let selector: LabelSelector = serde_json::from_value(other.clone()).ok()?;
            Selector::from_object(&selector).ok().map(|s| s.to_string())
        }
    });
    if let Some(selector) = selector {
        scale["status"]["selector"] = selector.into();
    }
    scale
}

fn get<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').filter(|p| !p.is_empty()).try_fold(object, |value, part| value.get(part))
}

fn set(object: &mut Value, path: &str, value: Value) {
    let mut place = object;
    for part in path.split('.').filter(|p| !p.is_empty()) {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[part];
    }
    *place = value;
}
