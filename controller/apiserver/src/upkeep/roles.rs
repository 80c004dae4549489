//! The default roles and bindings, and the roles that are made of others.
//!
//! In: what Kubernetes and this program's components need ([`bootstrap`]), the ClusterRoles in the cache. Out: objects that
//! are there and have at least the rules and subjects they must have; the rules of roles with an `aggregationRule`.

use super::bootstrap as system;
use super::rounds::{Rounds, pause};
use crate::engine::{Call, DeleteOptions, Engine, Part, text};
use crate::status::{ApiError, ApiResult};
use causeway_authz::rbac::{aggregate, bootstrap};
use serde_json::Value;
use std::sync::Arc;
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
    let Some(existing) = engine.cached(GROUP, plural, namespace, name)? else {
        return system::create_new(engine, &mut call, expected.clone()).await;
    };
    let existing = existing.value();
    match bootstrap::reconcile(expected, &existing) {
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
            let uid = text(&existing, "/metadata/uid").to_owned();
            let options = DeleteOptions { uid: Some(uid), ..DeleteOptions::default() };
            match engine.delete(&mut call, name, &options).await {
                Err(error) if !matches!(error.code(), 404 | 409) => return Err(failed(error)),
                _ => {}
            }
            system::create_new(engine, &mut call, new).await
        }
    }
}

/// Keeps the rules of aggregated ClusterRoles until shutdown.
pub async fn run(engine: Arc<Engine>, shutdown: CancellationToken) {
    let mut rounds = Rounds::over(&engine, GROUP, &["clusterroles"], shutdown);
    while rounds.next(pause(aggregate_all(&engine).await, "aggregated roles are not up to date")).await {}
}

/// One round: what one role gathers may be gathered by another, so it goes on until nothing changes.
pub async fn aggregate_all(engine: &Engine) -> ApiResult<()> {
    let served = engine.served(GROUP, "v1", "clusterroles")?;
    // What changes by this round makes the next one due.
    let roles = engine.all_cached(GROUP, "clusterroles", "")?;
    for role in roles.iter().filter(|role| !role["aggregationRule"].is_null()) {
        let mut call = Call::internal(served.clone(), "");
        let gathered = engine.patch(&mut call, text(role, "/metadata/name"), Part::Main, |role| {
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
