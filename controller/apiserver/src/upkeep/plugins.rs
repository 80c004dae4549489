//! Webhooks and policies: what is configured is in force.
//!
//! In: the kinds of `admissionregistration.k8s.io` in the cache. Out: the configuration of admission.

use crate::catalog::prefix;
use crate::engine::Engine;
use crate::feed::Subscription;
use crate::status::{ApiError, ApiResult};
use causeway_admission::dynamic::Dynamic;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
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
    let mut changed = KINDS.map(|kind| Subscription::new(engine.feed.cache(&prefix(GROUP, kind)), None));
    loop {
        changed.iter_mut().for_each(Subscription::mark_unchanged);
        let wait = match apply(&engine, &dynamic).await {
            Ok(()) => Duration::from_secs(3600),
            Err(error) => {
                tracing::warn!(%error, "webhooks and policies are not up to date; trying again");
                Duration::from_secs(1)
            }
        };
        let any = futures::future::select_all(changed.iter_mut().map(|c| Box::pin(c.changed())));
        tokio::select! {
            _ = any => {}
            () = tokio::time::sleep(wait) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// One round.
pub async fn apply(engine: &Engine, dynamic: &Arc<Dynamic>) -> ApiResult<()> {
    let of = |kind: &&str| {
        let prefix = prefix(GROUP, kind);
        engine.feed.cache(&prefix).list(&prefix).0
    };
    let objects: Vec<Value> = KINDS.iter().flat_map(of).map(|o| o.value()).collect();
    let dynamic = dynamic.clone();
    // Compiling expressions takes time that requests need.
    let configured = tokio::task::spawn_blocking(move || dynamic.configure(&objects)).await;
    configured.map_err(ApiError::internal)?.map_err(ApiError::internal)
}
