//! kube-proxy's own health over HTTP: `/healthz` for those who route to the node, `/livez` for those who would restart
//! the process, and `/metrics`.
//!
//! In: when programming began and succeeded, and whether the node is about to go. Out: 200 or 503 under kube-proxy's rules.

use crate::metrics::Metrics;
use axum::{Json, Router, http::StatusCode, response::IntoResponse, routing::get};
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use prometheus::Registry;
use std::{sync::Arc, time::Duration};

/// Programming that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What `/healthz` tells.
#[derive(Debug, Default)]
pub struct Health {
    state: Mutex<State>,
}

#[derive(Debug, Default, Clone, Copy)]
struct State {
    updated: Option<Timestamp>,
    /// Since when changes wait to be programmed.
    waiting: Option<Timestamp>,
    leaving: bool,
}

impl State {
    /// Everything was programmed once, and nothing waits too long.
    fn is_alive(&self, now: Timestamp) -> bool {
        let late = self.waiting.is_some_and(|since| now.duration_since(since).unsigned_abs() > PATIENCE);
        self.updated.is_some() && !late
    }

    /// The same, and new connections should still be sent to the node.
    fn is_eligible(&self, now: Timestamp) -> bool {
        self.is_alive(now) && !self.leaving
    }
}

impl Health {
    /// Programming has begun.
    pub fn begins(&self) {
        self.state.lock().waiting.get_or_insert_with(Timestamp::now);
    }

    /// All is programmed.
    pub fn succeeds(&self) {
        let mut state = self.state.lock();
        (state.updated, state.waiting) = (Some(Timestamp::now()), None);
    }

    /// Whether the node is about to be taken away.
    pub fn set_leaving(&self, leaving: bool) {
        self.state.lock().leaving = leaving;
    }

    /// Whether the rules are what they should be.
    pub fn is_alive(&self) -> bool {
        self.state.lock().is_alive(Timestamp::now())
    }

    fn answer(&self, with_node: bool) -> (StatusCode, Json<serde_json::Value>) {
        let (state, now) = (*self.state.lock(), Timestamp::now());
        let healthy = if with_node { state.is_eligible(now) } else { state.is_alive(now) };
        let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let body = serde_json::json!({
            "lastUpdated": state.updated, "currentTime": now, "nodeEligible": !state.leaving,
        });
        (status, Json(body))
    }
}

/// Serves `/healthz`, `/livez` and `/metrics` until told to stop.
pub async fn serve(
    listener: std::net::TcpListener,
    health: Arc<Health>,
    counted: Metrics,
    registry: Registry,
    shutdown: tokio_util::sync::CancellationToken,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let metrics = move || {
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather());
        std::future::ready(text.map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string())))
    };
    let told = move |with_node: bool| {
        let (health, counted) = (health.clone(), counted.clone());
        get(move || {
            let answer = health.answer(with_node);
            let counter = if with_node { &counted.healthz } else { &counted.livez };
            counter.with_label_values(&[answer.0.as_str()]).inc();
            std::future::ready(answer.into_response())
        })
    };
    let router =
        Router::new().route("/healthz", told(true)).route("/livez", told(false)).route("/metrics", get(metrics));
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn healthy_is_programmed_in_time_and_eligible_is_here_to_stay() {
        let now = Timestamp::now();
        let before = |seconds| now.checked_sub(Duration::from_secs(seconds)).ok();
        let state = |updated, waiting, leaving| State { updated, waiting, leaving };
        let both = |s: State| (s.is_alive(now), s.is_eligible(now));
        assert_eq!(both(state(None, None, false)), (false, false), "nothing is programmed yet");
        assert_eq!(both(state(before(100), None, false)), (true, true), "no news is good news");
        assert_eq!(both(state(before(100), before(10), false)), (true, true));
        assert_eq!(both(state(before(100), before(61), false)), (false, false), "it is stuck");
        assert_eq!(both(state(before(1), None, true)), (true, false), "no reason to restart it");
    }
}
