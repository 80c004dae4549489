//! What kube-proxy counts, under its names, and its health over HTTP.

use axum::{Json, Router, http::StatusCode, response::IntoResponse, routing::get};
use k8s_openapi::{api::discovery::v1::EndpointSlice, jiff::Timestamp};
use parking_lot::Mutex;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntGaugeVec, Opts, Registry, exponential_buckets};
use std::{sync::Arc, time::Duration};

/// When an endpoint's pod changed, written by the EndpointSlice controller.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// kube-proxy's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// How long one synchronisation took.
    pub sync: Histogram,
    /// From a pod's change to its being programmed.
    pub programming: Histogram,
    /// Changed EndpointSlices.
    pub endpoint_changes: IntCounter,
    /// Changed Services.
    pub service_changes: IntCounter,
    /// Synchronisations that failed.
    pub failures: IntCounter,
    /// When rules were last programmed, in seconds since 1970.
    pub last: Gauge,
}

impl Metrics {
    /// Registers all of them; in a process with several nodes, each needs a registry of its own.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let histogram = |name: &str, help: &str, buckets| {
            Histogram::with_opts(HistogramOpts::new(format!("kubeproxy_{name}"), help).buckets(buckets))
        };
        let counter = |name: &str, help: &str| IntCounter::new(format!("kubeproxy_{name}"), help);
        let this = Self {
            sync: histogram(
                "sync_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds",
                exponential_buckets(0.0001, 2.0, 20)?,
            )?,
            programming: histogram(
                "network_programming_duration_seconds",
                "In Cluster Network Programming Latency in seconds",
                exponential_buckets(0.001, 2.0, 18)?,
            )?,
            endpoint_changes: counter(
                "sync_proxy_rules_endpoint_changes_total",
                "Cumulative proxy rules Endpoint changes",
            )?,
            service_changes: counter(
                "sync_proxy_rules_service_changes_total",
                "Cumulative proxy rules Service changes",
            )?,
            failures: counter(
                "sync_proxy_rules_nftables_sync_failures_total",
                "Cumulative proxy nftables sync failures",
            )?,
            last: Gauge::new(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "The last time proxy rules were successfully synced",
            )?,
        };
        registry.register(Box::new(this.sync.clone()))?;
        registry.register(Box::new(this.programming.clone()))?;
        registry.register(Box::new(this.endpoint_changes.clone()))?;
        registry.register(Box::new(this.service_changes.clone()))?;
        registry.register(Box::new(this.failures.clone()))?;
        registry.register(Box::new(this.last.clone()))?;
        Ok(this)
    }

    /// Notes that the changes of these times are programmed now.
    pub fn programmed(&self, triggers: &[Timestamp], now: Timestamp) {
        for trigger in triggers {
            self.programming.observe(now.duration_since(*trigger).as_secs_f64().max(0.0));
        }
    }
}

/// What kube-proxy counts in the mode iptables alone.
#[derive(Debug, Clone)]
pub struct IptablesMetrics {
    /// Rules there are, by table.
    total: IntGaugeVec,
    /// Rules that the last synchronisation wrote, by table.
    last: IntGaugeVec,
    /// Restore files that were refused.
    pub failures: IntCounter,
    /// Those of them with some chains only.
    pub partial_failures: IntCounter,
}

impl IptablesMetrics {
    /// Registers all of them.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| {
            IntGaugeVec::new(Opts::new(format!("kubeproxy_sync_proxy_rules_iptables_{name}"), help), &["table"])
        };
        let counter =
            |name: &str, help: &str| IntCounter::new(format!("kubeproxy_sync_proxy_rules_iptables_{name}"), help);
        let this = Self {
            total: gauge("total", "Total number of iptables rules owned by kube-proxy")?,
            last: gauge("last", "Number of iptables rules written by kube-proxy in last sync")?,
            failures: counter("restore_failures_total", "Cumulative proxy iptables restore failures")?,
            partial_failures: counter(
                "partial_restore_failures_total",
                "Cumulative proxy iptables partial restore failures",
            )?,
        };
        registry.register(Box::new(this.total.clone()))?;
        registry.register(Box::new(this.last.clone()))?;
        registry.register(Box::new(this.failures.clone()))?;
        registry.register(Box::new(this.partial_failures.clone()))?;
        Ok(this)
    }

    /// Notes what was written to a table, and what is there now.
    pub fn wrote(&self, table: &str, written: usize, total: usize) {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.last.with_label_values(&[table]).set(number(written));
        self.total.with_label_values(&[table]).set(number(total));
    }
}

/// When the change that a slice tells of happened.
pub fn trigger(slice: &EndpointSlice) -> Option<Timestamp> {
    slice.metadata.annotations.as_ref()?.get(TRIGGER_TIME)?.parse().ok()
}

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

    fn answer(&self, with_node: bool) -> impl IntoResponse + use<> {
        /// Programming that takes longer has failed.
        const PATIENCE: Duration = Duration::from_secs(60);
        let state = *self.state.lock();
        let now = Timestamp::now();
        let late = state.waiting.is_some_and(|since| now.duration_since(since).unsigned_abs() > PATIENCE);
        let healthy = state.updated.is_some() && !late && !(with_node && state.leaving);
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
    registry: Registry,
    shutdown: tokio_util::sync::CancellationToken,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (for_health, for_live) = (health.clone(), health);
    let metrics = move || {
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather());
        std::future::ready(text.map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string())))
    };
    let router = Router::new()
        .route("/healthz", get(move || std::future::ready(for_health.answer(true))))
        .route("/livez", get(move || std::future::ready(for_live.answer(false))))
        .route("/metrics", get(metrics));
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}
