//! CustomResourceDefinitions: their versions are served as soon as their names are accepted, and their objects are
//! deleted with them.
//!
//! In: the definitions in the cache. Out: the catalog's run-time part, and the definitions' conditions.

use super::rounds::Rounds;
use crate::admission::FINALIZER;
use crate::catalog::{Conversion, Custom, Served, api_version, prefix};
use crate::engine::{Call, DeleteOptions, Engine, Part, now_text, text};
use crate::request::{ListOptions, Query};
use crate::status::ApiResult;
use causeway_registry::custom_resource;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const GROUP: &str = "apiextensions.k8s.io";
const PLURAL: &str = "customresourcedefinitions";

/// Follows the definitions until shutdown.
pub async fn run(engine: Arc<Engine>, shutdown: CancellationToken) {
    let mut rounds = Rounds::over(&engine, GROUP, &[PLURAL], shutdown);
    let mut known = BTreeSet::new();
    loop {
        let again = sync(&engine, &mut known).await;
        let pause = if again { Duration::from_millis(200) } else { Duration::from_secs(30) };
        if !rounds.next(pause).await {
            return;
        }
    }
}

/// One round over all definitions; `true` when one of them waits for something.
pub async fn sync(engine: &Arc<Engine>, known: &mut BTreeSet<String>) -> bool {
    let cache = engine.feed.cache(&prefix(GROUP, PLURAL));
    let (objects, _) = cache.list(&prefix(GROUP, PLURAL));
    let definitions: Vec<Value> = objects.iter().map(|o| o.value()).collect();
    let mut again = false;
    let mut present = BTreeSet::new();
    for definition in &definitions {
        let name = text(definition, "/metadata/name").to_owned();
        present.insert(name.clone());
        match sync_one(engine, definition, &definitions).await {
            Ok(waits) => again |= waits,
            Err(error) if error.code() == 404 || error.code() == 409 => again = true,
            Err(error) => {
                tracing::warn!(definition = name, %error, "custom resource definition not processed; trying again");
                again = true;
            }
        }
    }
    for gone in known.difference(&present) {
        engine.catalog.set_custom(gone, Vec::new());
    }
    *known = present;
    again
}

async fn sync_one(engine: &Arc<Engine>, definition: &Value, all: &[Value]) -> ApiResult<bool> {
    let name = text(definition, "/metadata/name");
    let conflict = name_conflict(engine, definition, all);
    let established = conflict.is_none() || condition(definition, "Established") == Some("True");
    let (versions, broken) = if established { served_versions(definition) } else { (Vec::new(), None) };
    if let Some(why) = &broken {
        tracing::warn!(definition = name, why, "a version of this definition cannot be served");
    }
    let deleting = definition.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null());
    if !same_as_served(engine, name, definition) {
        engine.catalog.set_custom(name, versions.into_iter().map(Arc::new).collect());
    }
    write_status(engine, definition, conflict.as_deref(), established, deleting, broken.as_deref()).await?;
    if deleting { clean_up(engine, definition).await } else { Ok(false) }
}

/// The catalog has this very spec already: nothing to compile again.
fn same_as_served(engine: &Engine, name: &str, definition: &Value) -> bool {
    let table = engine.catalog.table();
    let mark = mark(definition);
    let served = || table.all.iter().filter_map(|s| s.custom.as_ref()).filter(|c| c.definition == name);
    served().next().is_some() && served().all(|c| c.mark == mark)
}

fn mark(definition: &Value) -> String {
    let uid = text(definition, "/metadata/uid");
    format!("{uid}/{}", definition.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0))
}

/// The versions that can be served, and why one cannot.
fn served_versions(definition: &Value) -> (Vec<Served>, Option<String>) {
    let (group, name) = (text(definition, "/spec/group"), text(definition, "/metadata/name"));
    let versions = definition.pointer("/spec/versions").and_then(Value::as_array).cloned().unwrap_or_default();
    let storage = versions.iter().find(|v| v["storage"] == true).map(|v| text(v, "/name")).unwrap_or("");
    let mut broken = None;
    let mut served = Vec::new();
    for version in versions.iter().filter(|v| v["served"] == true) {
        let resource = match custom_resource(definition, text(version, "/name")) {
            Ok(resource) => resource,
            Err(errors) => {
                broken = errors.0.first().map(ToString::to_string);
                continue;
            }
        };
        let openapi =
            version.pointer("/schema/openAPIV3Schema").cloned().unwrap_or_else(|| json!({ "type": "object" }));
        let schema = causeway_schema::crd::structural(&openapi).unwrap_or_else(|_| causeway_schema::anything());
        served.push(Served {
            api_version: api_version(group, &resource.version),
            storage_api_version: api_version(group, storage),
            prefix: prefix(group, &resource.plural),
            resource,
            schema,
            custom: Some(Custom { definition: name.to_owned(), openapi, mark: mark(definition) }),
            conversion: Conversion::None,
        });
    }
    (served, broken)
}

/// Why the names cannot be accepted: somebody else in the group has them.
fn name_conflict(engine: &Engine, definition: &Value, all: &[Value]) -> Option<String> {
    let group = text(definition, "/spec/group");
    let own = text(definition, "/metadata/name");
    let names = &definition["spec"]["names"];
    let of = |names: &Value| -> BTreeSet<String> {
        let mut set: BTreeSet<String> =
            ["plural", "singular"].iter().filter_map(|k| names[*k].as_str().map(str::to_owned)).collect();
        set.extend(names["shortNames"].as_array().into_iter().flatten().filter_map(|s| s.as_str().map(str::to_owned)));
        set
    };
    let mine = of(names);
    for other in all.iter().filter(|o| text(o, "/spec/group") == group && text(o, "/metadata/name") != own) {
        if condition(other, "NamesAccepted") != Some("True") {
            continue;
        }
        if let Some(name) = of(&other["status"]["acceptedNames"]).intersection(&mine).next() {
            return Some(format!("{name:?} is already in use"));
        }
        if other["status"]["acceptedNames"]["kind"] == names["kind"] {
            return Some(format!("{:?} is already in use", names["kind"].as_str().unwrap_or("")));
        }
    }
    let table = engine.catalog.table();
    let builtin =
        table.all.iter().find(|s| s.custom.is_none() && s.resource.group == group && mine.contains(&s.resource.plural));
    builtin.map(|s| format!("{:?} is already in use", s.resource.plural))
}

fn condition<'a>(definition: &'a Value, kind: &str) -> Option<&'a str> {
    let all = definition.pointer("/status/conditions")?.as_array()?;
    all.iter().find(|c| c["type"] == kind)?["status"].as_str()
}

async fn write_status(
    engine: &Arc<Engine>,
    definition: &Value,
    conflict: Option<&str>,
    established: bool,
    deleting: bool,
    broken: Option<&str>,
) -> ApiResult<()> {
    let name = text(definition, "/metadata/name");
    let mut call = Call::internal(engine.served(GROUP, "v1", PLURAL)?, "");
    let change = |old: &Value| {
        let mut new = old.clone();
        if !new["status"].is_object() {
            new["status"] = json!({});
        }
        let status = &mut new["status"];
        if !status["conditions"].is_array() {
            status["conditions"] = json!([]);
        }
        match conflict {
            None => {
                set_condition(status, "NamesAccepted", true, "NoConflicts", "no conflicts found");
                let mut names = definition["spec"]["names"].clone();
                let kind = names["kind"].as_str().unwrap_or("").to_owned();
                if names["listKind"].as_str().unwrap_or("").is_empty() {
                    names["listKind"] = format!("{kind}List").into();
                }
                if names["singular"].as_str().unwrap_or("").is_empty() {
                    names["singular"] = kind.to_lowercase().into();
                }
                status["acceptedNames"] = names;
            }
            Some(why) => set_condition(status, "NamesAccepted", false, "ListKindConflict", why),
        }
        if established {
            set_condition(status, "Established", true, "InitialNamesAccepted", "the initial names have been accepted");
        } else {
            set_condition(status, "Established", false, "NotAccepted", "not all names are accepted");
        }
        if let Some(why) = broken {
            set_condition(status, "NonStructuralSchema", true, "Violations", why);
        } else if let Some(all) = status["conditions"].as_array_mut() {
            all.retain(|c| c["type"] != "NonStructuralSchema");
        }
        if deleting {
            set_condition(
                status,
                "Terminating",
                true,
                "InstanceDeletionInProgress",
                "CustomResource deletion is in progress",
            );
        }
        let storage = definition["spec"]["versions"].as_array().into_iter().flatten().find(|v| v["storage"] == true);
        if let Some(storage) = storage.map(|v| v["name"].clone()) {
            if !status["storedVersions"].is_array() {
                status["storedVersions"] = json!([]);
            }
            if let Some(stored) = status["storedVersions"].as_array_mut().filter(|s| !s.contains(&storage)) {
                stored.push(storage);
            }
        }
        if status["acceptedNames"].is_null() {
            status["acceptedNames"] = json!({ "plural": "", "kind": "" });
        }
        Ok(new)
    };
    engine.patch(&mut call, name, Part::Status, change).await.map(drop)
}

fn set_condition(status: &mut Value, kind: &str, is: bool, reason: &str, message: &str) {
    let word = if is { "True" } else { "False" };
    let Some(all) = status["conditions"].as_array_mut() else { return };
    let now = now_text();
    match all.iter_mut().find(|c| c["type"] == kind) {
        Some(c) => {
            if c["status"] != word {
                c["lastTransitionTime"] = now.into();
            }
            c["status"] = word.into();
            c["reason"] = reason.into();
            c["message"] = message.into();
        }
        None => all.push(json!({
            "type": kind, "status": word, "lastTransitionTime": now, "reason": reason, "message": message,
        })),
    }
}

/// Deletes the objects of a definition that is going away; `true` while there are some left.
async fn clean_up(engine: &Arc<Engine>, definition: &Value) -> ApiResult<bool> {
    let (group, name) = (text(definition, "/spec/group"), text(definition, "/metadata/name"));
    let plural = text(definition, "/spec/names/plural");
    engine.feed.catch_up().await?;
    let table = engine.catalog.table();
    let served = table.all.iter().find(|s| s.custom.as_ref().is_some_and(|c| c.definition == name));
    let left = engine.feed.cache(&prefix(group, plural)).len();
    if left > 0
        && let Some(served) = served
    {
        let call = Call::internal(served.clone(), "");
        engine.delete_collection(&call, &ListOptions::parse(&Query::default())?, &DeleteOptions::default()).await?;
        return Ok(true);
    }
    let mut call = Call::internal(engine.served(GROUP, "v1", PLURAL)?, "");
    engine
        .patch(&mut call, name, Part::Main, |old| {
            let mut new = old.clone();
            if let Some(finalizers) = new.pointer_mut("/metadata/finalizers").and_then(Value::as_array_mut) {
                finalizers.retain(|f| f != FINALIZER);
            }
            Ok(new)
        })
        .await?;
    Ok(false)
}
