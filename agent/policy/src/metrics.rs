//! What the policies' programming counts, and its health over HTTP.

use axum::{Router, http::StatusCode, routing::get};
use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry, exponential_buckets};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Metrics of one node.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// How long one synchronisation took.
    pub sync: Histogram,
    /// Synchronisations that failed.
    pub failures: IntCounter,
    /// How often the tables were made anew: at the first start, and when others had meddled with them.
    pub rebuilds: IntCounter,
    /// NetworkPolicies in the cluster.
    pub policies: IntGauge,
    /// Pods of this node that a policy isolates.
    pub isolated: IntGauge,
    /// Set elements in the kernel.
    pub elements: IntGauge,
}

impl Metrics {
    /// Registers all of them; in a process with several nodes, each needs a registry of its own.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let name = |what: &str| format!("causeway_network_policy_{what}");
        let buckets = exponential_buckets(0.0001, 2.0, 20)?;
        let sync = HistogramOpts::new(name("sync_duration_seconds"), "Time to programme a change").buckets(buckets);
        let this = Self {
            sync: Histogram::with_opts(sync)?,
            failures: IntCounter::new(name("sync_failures_total"), "Changes that the kernel refused")?,
            rebuilds: IntCounter::new(name("rebuilds_total"), "Times all rules were made anew")?,
            policies: IntGauge::new(name("policies"), "NetworkPolicies of the cluster")?,
            isolated: IntGauge::new(name("isolated_pods"), "Pods of this node that a NetworkPolicy isolates")?,
            elements: IntGauge::new(name("elements"), "Elements of the sets in the kernel")?,
        };
        registry.register(Box::new(this.sync.clone()))?;
        registry.register(Box::new(this.failures.clone()))?;
        registry.register(Box::new(this.rebuilds.clone()))?;
        registry.register(Box::new(this.policies.clone()))?;
        registry.register(Box::new(this.isolated.clone()))?;
        registry.register(Box::new(this.elements.clone()))?;
        Ok(this)
    }
}

/// Serves `/healthz` and `/metrics` until told to stop. Healthy is a node whose last change was programmed.
pub async fn serve(
    listener: std::net::TcpListener,
    healthy: watch::Receiver<bool>,
    registry: Registry,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let health = move || {
        let answer = if *healthy.borrow() {
            (StatusCode::OK, "ok\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "the network policies of this node are not in force\n")
        };
        std::future::ready(answer)
    };
    let metrics = move || {
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather());
        std::future::ready(text.map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string())))
    };
    let router = Router::new().route("/healthz", get(health)).route("/metrics", get(metrics));
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}
