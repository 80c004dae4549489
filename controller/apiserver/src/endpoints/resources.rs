//! The verbs of HTTP on resources: from a parsed request to the engine and back to a response.

use super::{Endpoints, call_of};
use crate::endpoints::subresources;
use crate::engine::{Call, DeleteOptions, Part};
use crate::exchange::{Incoming, Reply};
use crate::request::{FieldTerm, ListOptions, Target};
use crate::serialization::codec;
use crate::serialization::render::{self, EventEncoder};
use crate::status::{ApiError, ApiResult, success};
use axum::body::Body;
use bytes::Bytes;
use causeway_schema::patch::PatchError;
use http::StatusCode;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

pub(super) const JSON_PATCH: &str = "application/json-patch+json";
pub(super) const MERGE_PATCH: &str = "application/merge-patch+json";
pub(super) const STRATEGIC_PATCH: &str = "application/strategic-merge-patch+json";
const APPLY_PATCH: &str = "application/apply-patch+yaml";
/// Watches without a time-out of their own end after this long (and up to twice as long).
const WATCH_SECONDS: u64 = 1800;
/// And with one, at the latest after this.
const LONGEST_WATCH: u64 = 24 * 3600;

impl Endpoints {
    /// Serves a resource path.
    pub async fn resource(self: &Arc<Self>, target: Target, verb: &str, incoming: Incoming) -> ApiResult<Reply> {
        let table = self.engine.catalog.table();
        let Some(served) = table.get(&target.group, &target.version, &target.resource) else {
            return self.virtual_resource(target, verb, incoming).await;
        };
        if target.namespace.is_some() != served.namespaced() {
            let across = target.namespace.is_none() && target.name.is_none() && matches!(verb, "list" | "watch");
            if !across {
                return Err(if target.namespace.is_none() && target.name.is_none() {
                    ApiError::method_not_allowed()
                } else {
                    ApiError::no_such_path()
                });
            }
        }
        let call = call_of(served, target.namespace.as_deref().unwrap_or(""), &incoming)?;
        let name = target.name.clone().unwrap_or_default();
        match target.subresource.as_deref() {
            None => self.object_verb(call, &name, verb, incoming).await,
            Some("status") if call.served.resource.status => {
                self.part_verb(call, &name, Part::Status, verb, incoming).await
            }
            Some("finalize") if call.served.is("", "namespaces") && verb == "update" => {
                self.part_verb(call, &name, Part::Finalize, verb, incoming).await
            }
            Some("approval") if call.served.is("certificates.k8s.io", "certificatesigningrequests") => {
                self.part_verb(call, &name, Part::Approval, verb, incoming).await
            }
            Some(subresource) => subresources::serve(self, call, &name, subresource, verb, incoming).await,
        }
    }

    async fn object_verb(
        self: &Arc<Self>,
        mut call: Call,
        name: &str,
        verb: &str,
        incoming: Incoming,
    ) -> ApiResult<Reply> {
        let offered = call.served.offers(verb);
        if !offered {
            return Err(ApiError::method_not_allowed());
        }
        match verb {
            "get" => {
                let version = ListOptions::parse(&incoming.info.query)?.version;
                let object = self.engine.get(&call.served, &call.namespace, name, version).await?;
                let form = incoming.form()?;
                Ok(Reply::new(StatusCode::OK, form, render::object(&call.served, form, &object)))
            }
            "list" => {
                let options = ListOptions::parse(&incoming.info.query)?;
                let form = incoming.form()?;
                let page = self.engine.list(&call.served, &call.namespace, &options).await?;
                Ok(Reply::stream(form, render::list(&call.served, form, page)))
            }
            "watch" => self.watch(call, name, incoming).await,
            "create" if name.is_empty() => self.create(call, incoming).await,
            "update" | "patch" => self.part_verb(call, name, Part::Main, verb, incoming).await,
            "delete" => {
                let options = self.delete_options(&incoming).await?;
                let outcome = self.engine.delete(&mut call, name, &options).await?;
                let form = incoming.form()?;
                // What still exists, and the kinds clients wait on, are shown; else a Status says it is done.
                if !outcome.gone || call.served.is("", "pods") {
                    return Ok(Reply::value(&call.served, StatusCode::OK, form, outcome.object));
                }
                let uid = crate::engine::text(&outcome.object, "/metadata/uid");
                Ok(Reply::json(StatusCode::OK, &success(&call.served.resource, name, uid)))
            }
            "deletecollection" => {
                let options = self.delete_options(&incoming).await?;
                let list = ListOptions::parse(&incoming.info.query)?;
                let items = self.engine.delete_collection(&call, &list, &options).await?;
                let revision = self.engine.feed.revision().to_string();
                let body = serde_json::json!({
                    "kind": call.served.resource.list_kind, "apiVersion": call.served.api_version,
                    "metadata": { "resourceVersion": revision }, "items": items,
                });
                Ok(Reply::json(StatusCode::OK, &body))
            }
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    async fn create(self: &Arc<Self>, mut call: Call, incoming: Incoming) -> ApiResult<Reply> {
        let (mut object, problems) = incoming.object().await?;
        call.warnings = codec::conform(&call.served, &mut object, problems, call.options.validation)?;
        let stored = self.engine.create(&mut call, object).await?;
        Ok(Reply::value(&call.served, StatusCode::CREATED, incoming.form()?, stored).warn(call.warnings))
    }

    /// Get, update and patch of an object or a part of it.
    async fn part_verb(
        self: &Arc<Self>,
        mut call: Call,
        name: &str,
        part: Part,
        verb: &str,
        incoming: Incoming,
    ) -> ApiResult<Reply> {
        let form = incoming.form()?;
        match verb {
            "get" => {
                let object = self.engine.get(&call.served, &call.namespace, name, None).await?;
                Ok(Reply::new(StatusCode::OK, form, render::object(&call.served, form, &object)))
            }
            "update" => {
                let (mut object, problems) = incoming.object().await?;
                call.warnings = codec::conform(&call.served, &mut object, problems, call.options.validation)?;
                let (stored, created) = self.engine.update(&mut call, name, part, object).await?;
                let code = if created { StatusCode::CREATED } else { StatusCode::OK };
                Ok(Reply::value(&call.served, code, form, stored).warn(call.warnings))
            }
            "patch" => {
                let (stored, created) = self.patch(&mut call, name, part, &incoming).await?;
                let code = if created { StatusCode::CREATED } else { StatusCode::OK };
                Ok(Reply::value(&call.served, code, form, stored).warn(call.warnings))
            }
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    async fn patch(&self, call: &mut Call, name: &str, part: Part, incoming: &Incoming) -> ApiResult<(Value, bool)> {
        let body = incoming.body().await?;
        let media = codec::media_type(&incoming.content_type);
        if media == APPLY_PATCH {
            if incoming.info.query.get("fieldManager").is_none() {
                return Err(ApiError::new(
                    422,
                    "Invalid",
                    "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
                ));
            }
            let mut applied = codec::decode_yaml(&body)?;
            incoming.patch_is(&applied);
            let problems = codec::conform_applied(&call.served, &mut applied, Vec::new(), call.options.validation)?;
            call.warnings = problems;
            return self.engine.apply(call, name, part, &applied).await;
        }
        let served = call.served.clone();
        let validation = call.options.validation;
        let patch = PatchBody::parse(&media, &body, served.custom.is_some())?;
        incoming.patch_is(patch.value());
        let mut warnings = Vec::new();
        let outcome = self
            .engine
            .patch(call, name, part, |old| {
                let mut new = patch.apply(old, &served.schema)?;
                warnings = codec::conform(&served, &mut new, Vec::new(), validation)?;
                Ok(new)
            })
            .await;
        call.warnings.extend(warnings);
        outcome.map(|object| (object, false))
    }

    async fn delete_options(&self, incoming: &Incoming) -> ApiResult<DeleteOptions> {
        let value = incoming.object_or_nothing().await?;
        DeleteOptions::parse(&value, &incoming.info.query)
    }

    /// Watches all objects, or the one of a name.
    async fn watch(self: &Arc<Self>, call: Call, name: &str, incoming: Incoming) -> ApiResult<Reply> {
        if self.shutdown.is_cancelled() {
            // Otherwise clients would open one watch after the other, each ended at once.
            return Err(ApiError::unavailable("the server is shutting down"));
        }
        let mut options = ListOptions::parse(&incoming.info.query)?;
        if !name.is_empty() {
            options.fields.push(FieldTerm { field: "metadata.name".to_owned(), equal: true, value: name.to_owned() });
        }
        let form = incoming.form()?;
        let watcher = match self.engine.watch(&call.served, &call.namespace, &options).await {
            Ok(watcher) => watcher,
            // Clients expect this one as an event, and list again.
            Err(error) if error.code() == 410 => {
                return Ok(Reply::stream(form, Body::from(render::error_event(&error))));
            }
            Err(error) => return Err(error),
        };
        let seconds = options
            .timeout_seconds
            .map(|s| s.min(LONGEST_WATCH))
            .unwrap_or_else(|| WATCH_SECONDS + rand::random_range(0..WATCH_SECONDS));
        let deadline = tokio::time::Instant::now() + Duration::from_secs(seconds);
        let shutdown = self.shutdown.clone();
        let gauge = self.metrics.watching(&call.served);
        let state = Some((watcher, EventEncoder::new(form), gauge));
        let events = futures::stream::unfold(state, move |state| {
            let shutdown = shutdown.clone();
            async move {
                let (mut watcher, mut encoder, gauge) = state?;
                let next = tokio::select! {
                    next = watcher.next() => next,
                    () = tokio::time::sleep_until(deadline) => return None,
                    () = shutdown.cancelled() => return None,
                };
                match next {
                    Ok(events) => {
                        let mut out = Vec::new();
                        let served = watcher.served.clone();
                        for event in &events {
                            encoder.encode(&served, event, &mut out);
                        }
                        Some((Ok::<_, std::convert::Infallible>(Bytes::from(out)), Some((watcher, encoder, gauge))))
                    }
                    Err(error) => Some((Ok(Bytes::from(render::error_event(&error))), None)),
                }
            }
        });
        Ok(Reply::stream(form, Body::from_stream(events)))
    }
}

/// A patch that is no server-side apply.
enum PatchBody {
    Json(Value),
    Merge(Value),
    Strategic(Value),
}

impl PatchBody {
    fn parse(media: &str, body: &[u8], custom: bool) -> ApiResult<Self> {
        let value = || {
            serde_json::from_slice::<Value>(body)
                .or_else(|e| codec::decode_yaml(body).map_err(|_| e))
                .map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}")))
        };
        match media {
            JSON_PATCH => Ok(Self::Json(value()?)),
            MERGE_PATCH => Ok(Self::Merge(value()?)),
            STRATEGIC_PATCH if !custom => Ok(Self::Strategic(value()?)),
            _ if custom => Err(ApiError::unsupported_media_type(&[JSON_PATCH, MERGE_PATCH, APPLY_PATCH])),
            _ => Err(ApiError::unsupported_media_type(&[JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH])),
        }
    }

    fn value(&self) -> &Value {
        match self {
            Self::Json(patch) | Self::Merge(patch) | Self::Strategic(patch) => patch,
        }
    }

    fn apply(&self, old: &Value, schema: &causeway_schema::Schema) -> ApiResult<Value> {
        match self {
            Self::Json(patch) => causeway_schema::patch::json(old, patch).map_err(refused),
            Self::Merge(patch) => Ok(causeway_schema::patch::merge(old, patch)),
            Self::Strategic(patch) => causeway_schema::patch::strategic(old, patch, schema).map_err(refused),
        }
    }
}

/// A patch that does not fit the object, or is too big.
pub(crate) fn refused(error: PatchError) -> ApiError {
    let text = error.to_string();
    match error {
        PatchError::TooManyOperations(_) => {
            ApiError::new(413, "RequestEntityTooLarge", format!("Request entity too large: {text}"))
        }
        PatchError::DoesNotApply(_) => ApiError::new(422, "Invalid", text),
        PatchError::Malformed(_) => {
            let text = format!("the server rejected our request due to an error in our request: {text}");
            ApiError::new(422, "Invalid", text)
        }
    }
}
