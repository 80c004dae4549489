//! FlowSchemas and PriorityLevelConfigurations: the defaults are there, and what is there is in force.
//!
//! In: both kinds in the cache. Out: default objects, the configuration of the dispatcher, the condition `Dangling`.

use super::rounds::{Rounds, pause};
use crate::engine::{Call, DeleteOptions, Engine, Part, now_text, text};
use crate::status::{ApiError, ApiResult};
use causeway_flowcontrol::{Dispatcher, dangling_condition, defaults};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const SCHEMAS: &str = "flowschemas";
const LEVELS: &str = "prioritylevelconfigurations";
/// Seats of the server: requests that run at once. (The sum of Kubernetes' `--max-requests-inflight` and
/// `--max-mutating-requests-inflight`.)
pub const SEATS: u32 = 600;

fn plural(object: &Value) -> &'static str {
    if object["kind"] == "FlowSchema" { SCHEMAS } else { LEVELS }
}

/// Creates or mends the defaults, and deletes those that are none any more.
pub async fn ensure(engine: &Engine) -> ApiResult<()> {
    let all = defaults::objects();
    let writes = all.iter().map(|expected| reconcile(engine, expected));
    for outcome in futures::future::join_all(writes).await {
        outcome?;
    }
    for kind in [SCHEMAS, LEVELS] {
        let served = engine.served(GROUP, "v1", kind)?;
        for object in engine.all_cached(GROUP, kind, "")? {
            if defaults::unwanted(&object) {
                let mut call = Call::internal(served.clone(), "");
                engine
                    .delete(&mut call, text(&object, "/metadata/name"), &DeleteOptions::default())
                    .await
                    .map(drop)
                    .or_else(raced)?;
            }
        }
    }
    Ok(())
}

/// Somebody else has written at the same time: the next start looks again.
fn raced(error: ApiError) -> ApiResult<()> {
    if matches!(error.code(), 404 | 409) { Ok(()) } else { Err(error) }
}

async fn reconcile(engine: &Engine, expected: &Value) -> ApiResult<()> {
    let served = engine.served(GROUP, "v1", plural(expected))?;
    let name = text(expected, "/metadata/name");
    let existing = engine.cached(GROUP, plural(expected), "", name)?.map(|o| o.value());
    let Some(wanted) = defaults::reconcile(expected, existing.as_ref()) else { return Ok(()) };
    let mut call = Call::internal(served, "");
    if existing.is_none() {
        return engine.create(&mut call, wanted).await.map(drop).or_else(raced);
    }
    engine.update(&mut call, name, Part::Main, wanted).await.map(drop).or_else(raced)
}

/// Puts what is there in force, until shutdown.
pub async fn run(engine: Arc<Engine>, dispatcher: Dispatcher, shutdown: CancellationToken) {
    let mut rounds = Rounds::over(&engine, GROUP, &[SCHEMAS, LEVELS], shutdown);
    while rounds.next(pause(apply(&engine, &dispatcher).await, "the status of flow schemas is not written")).await {}
}

/// One round.
pub async fn apply(engine: &Engine, dispatcher: &Dispatcher) -> ApiResult<()> {
    let (schemas, levels) = (engine.all_cached(GROUP, SCHEMAS, "")?, engine.all_cached(GROUP, LEVELS, "")?);
    let applied = dispatcher.configure(&schemas, &levels, SEATS);
    for ignored in &applied.ignored {
        tracing::warn!(kind = ignored.kind, name = ignored.name, why = ignored.why, "ignored in flow control");
    }
    let served = engine.served(GROUP, "v1", SCHEMAS)?;
    for schema in &schemas {
        let name = text(schema, "/metadata/name");
        let Some(dangling) = applied.dangling.get(name) else { continue };
        if dangling_condition(schema, *dangling, &now_text()).is_none() {
            continue;
        }
        let mut call = Call::internal(served.clone(), "");
        let changed = engine.patch(&mut call, name, Part::Status, |old| {
            let mut new = old.clone();
            if let Some(condition) = dangling_condition(old, *dangling, &now_text()) {
                let mut conditions: Vec<Value> =
                    old.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
                conditions.retain(|c| c["type"] != "Dangling");
                conditions.push(condition);
                new["status"] = json!({ "conditions": conditions });
            }
            Ok(new)
        });
        changed.await.map(drop).or_else(raced)?;
    }
    Ok(())
}
