//! The default roles and bindings, and the roles that are made of others.
//!
//! In: what Kubernetes and this program's components need ([`bootstrap`]), the ClusterRoles in the cache. Out: objects that
//! are there and have at least the rules and subjects they must have; the rules of roles with an `aggregationRule`.

use crate::catalog::prefix;
use crate::engine::{Call, DeleteOptions, Engine, Part, text};
use crate::feed::Subscription;
use crate::status::{ApiError, ApiResult};
use causeway_authz::rbac::{aggregate, bootstrap};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const GROUP: &str = "rbac.authorization.k8s.io";
/// Writes at a time: the store puts them into one batch.
const AT_ONCE: usize = 64;

/// Creates what is missing and adds what was taken away, unless the object says that it is not to be looked after.
pub async fn ensure(engine: &Engine) -> ApiResult<()> {
    let all: Vec<(&str, Value)> = bootstrap::objects().into_iter().chain(bootstrap::components()).collect();
    for batch in all.chunks(AT_ONCE) {
        let writes = batch.iter().map(|(plural, expected)| reconcile(engine, plural, expected));
        for outcome in futures::future::join_all(writes).await {
            outcome?;
        }
    }
    Ok(())
}

async fn reconcile(engine: &Engine, plural: &str, expected: &Value) -> ApiResult<()> {
    let served = engine.served(GROUP, "v1", plural)?;
    let (namespace, name) = (text(expected, "/metadata/namespace"), text(expected, "/metadata/name"));
    let failed = |error: ApiError| ApiError::internal(format!("default {plural} {name}: {error}"));
    let mut call = Call::internal(served.clone(), namespace);
    let Some(existing) = engine.feed.cache(&served.prefix).get(&served.key(namespace, name)) else {
        return match engine.create(&mut call, expected.clone()).await {
            Err(error) if error.failure().reason != "AlreadyExists" => Err(failed(error)),
            _ => Ok(()),
        };
    };
    match bootstrap::reconcile(expected, &existing.value()) {
        None => Ok(()),
        Some(bootstrap::Change::Update(new)) => {
            tracing::info!(plural, name, "a default role or binding lacked something and got it back");
            match engine.update(&mut call, name, Part::Main, new).await {
                // Somebody else was there at the same time; the next start looks again.
                Err(error) if error.code() != 409 => Err(failed(error)),
                _ => Ok(()),
            }
        }
        Some(bootstrap::Change::Recreate(new)) => {
            tracing::info!(plural, name, "a default binding named another role and is made anew");
            let uid = text(&existing.value(), "/metadata/uid").to_owned();
            let options = DeleteOptions { uid: Some(uid), ..DeleteOptions::default() };
            match engine.delete(&mut call, name, &options).await {
                Err(error) if !matches!(error.code(), 404 | 409) => return Err(failed(error)),
                _ => {}
            }
            match engine.create(&mut call, new).await {
                Err(error) if error.failure().reason != "AlreadyExists" => Err(failed(error)),
                _ => Ok(()),
            }
        }
    }
}

/// Keeps the rules of aggregated ClusterRoles until shutdown.
pub async fn run(engine: Arc<Engine>, shutdown: CancellationToken) {
    let storage_prefix = prefix(GROUP, "clusterroles");
    let mut changed = Subscription::new(engine.feed.cache(&storage_prefix), None);
    loop {
        changed.mark_unchanged();
        let wait = match aggregate_all(&engine).await {
            Ok(()) => Duration::from_secs(3600),
            Err(error) => {
                tracing::warn!(%error, "aggregated roles are not up to date; trying again");
                Duration::from_secs(1)
            }
        };
        tokio::select! {
            _ = changed.changed() => {}
            () = tokio::time::sleep(wait) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// One round: what one role gathers may be gathered by another, so it goes on until nothing changes.
pub async fn aggregate_all(engine: &Engine) -> ApiResult<()> {
    let served = engine.served(GROUP, "v1", "clusterroles")?;
    for object in engine.feed.cache(&served.prefix).list(&served.prefix).0 {
        if !object.json.windows(RULE.len()).any(|w| w == RULE) {
            continue;
        }
        let name = object.names().1.to_owned();
        let roles: Vec<Value> =
            engine.feed.cache(&served.prefix).list(&served.prefix).0.iter().map(|o| o.value()).collect();
        let mut call = Call::internal(served.clone(), "");
        let gathered = engine.patch(&mut call, &name, Part::Main, |role| {
            let rules = aggregate(&roles, role).map_err(ApiError::internal)?;
            let mut new = role.clone();
            if let Some(rules) = rules {
                new["rules"] = rules.into();
            }
            Ok(new)
        });
        match gathered.await {
            Err(error) if error.code() == 404 => {}
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
    Ok(())
}

const RULE: &[u8] = b"\"aggregationRule\"";
