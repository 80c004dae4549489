//! Server-side apply, and the upkeep of managed fields for everybody else.

use super::frame::{check_kind, metadata};
use super::{Call, Engine, Part, now_text, text};
use crate::status::{ApiError, ApiResult};
use causeway_schema::apply::{ApplyError, FieldManager};
use serde_json::Value;

impl Engine {
    /// Server-side apply: merges, or creates.
    pub async fn apply(&self, call: &mut Call, name: &str, part: Part, applied: &Value) -> ApiResult<(Value, bool)> {
        let mut applied = applied.clone();
        check_kind(call, &mut applied)?;
        let in_body = text(&applied, "/metadata/name");
        if !in_body.is_empty() && in_body != name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({in_body}) does not match the name on the URL ({name})"
            )));
        }
        if applied.pointer("/metadata/managedFields").is_some_and(|m| !m.is_null()) {
            return Err(ApiError::bad_request("metadata.managedFields must be nil"));
        }
        metadata(&mut applied)?.insert("name".to_owned(), name.into());
        if call.served.namespaced() {
            let namespace = call.namespace.clone();
            metadata(&mut applied)?.insert("namespace".to_owned(), namespace.into());
        }
        call.tracked = true;
        let (served, manager, force) = (call.served.clone(), call.options.field_manager.clone(), call.options.force);
        let now = now_text();
        let merge = move |live: Option<&Value>| {
            let manager = FieldManager {
                name: &manager,
                api_version: &served.api_version,
                subresource: part.subresource(),
                now: &now,
                force,
            };
            causeway_schema::apply::apply(live, &applied, &served.schema, &manager).map_err(refused)
        };
        let changed = self.patch(call, name, part, |old| merge(Some(old))).await;
        match changed {
            Err(e) if e.code() == 404 && part == Part::Main => {
                call.require("create", "", name).await?;
                let object = merge(None)?;
                match self.create(call, object).await {
                    Err(e) if e.failure().reason == "AlreadyExists" => {
                        self.patch(call, name, part, |old| merge(Some(old))).await.map(|object| (object, false))
                    }
                    other => other.map(|object| (object, true)),
                }
            }
            other => other.map(|object| (object, false)),
        }
    }

    /// Keeps `managedFields` for a manager that does not apply.
    pub(super) fn track(&self, call: &Call, old: Option<&Value>, new: &mut Value, part: Part) {
        let now = now_text();
        let manager = FieldManager {
            name: &call.options.field_manager,
            api_version: &call.served.api_version,
            subresource: part.subresource(),
            now: &now,
            force: false,
        };
        causeway_schema::apply::track(old, new, &call.served.schema, &manager);
    }
}

/// A failed server-side apply as the client is told.
fn refused(error: ApplyError) -> ApiError {
    let text = error.to_string();
    match error {
        ApplyError::Conflicts(conflicts) => {
            let causes: Vec<(String, String)> =
                conflicts.iter().map(|c| (c.field.clone(), format!("conflict with {}", c.manager))).collect();
            ApiError::apply_conflict(text, &causes)
        }
        _ => ApiError::bad_request(text),
    }
}
