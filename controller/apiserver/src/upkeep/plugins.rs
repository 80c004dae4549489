//! Webhooks and policies: what is configured is in force.
//!
//! In: the kinds of `admissionregistration.k8s.io` in the cache. Out: the configuration of admission.

use super::rounds::{Rounds, pause};
use crate::engine::Engine;
use crate::status::{ApiError, ApiResult};
use causeway_admission::dynamic::Dynamic;
use serde_json::Value;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

const GROUP: &str = "admissionregistration.k8s.io";
const KINDS: [&str; 4] = [
    "mutatingwebhookconfigurations",
    "validatingwebhookconfigurations",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
];

/// Puts what is there in force, until shutdown.
pub async fn run(engine: Arc<Engine>, dynamic: Arc<Dynamic>, shutdown: CancellationToken) {
    let mut rounds = Rounds::over(&engine, GROUP, &KINDS, shutdown);
    while rounds.next(pause(apply(&engine, &dynamic).await, "webhooks and policies are not up to date")).await {}
}

/// One round.
pub async fn apply(engine: &Engine, dynamic: &Arc<Dynamic>) -> ApiResult<()> {
    let mut objects: Vec<Value> = Vec::new();
    for kind in KINDS {
        objects.extend(engine.all_cached(GROUP, kind, "")?);
    }
    let dynamic = dynamic.clone();
    // Compiling expressions takes time that requests need.
    let configured = tokio::task::spawn_blocking(move || dynamic.configure(&objects)).await;
    configured.map_err(ApiError::internal)?.map_err(ApiError::internal)
}
