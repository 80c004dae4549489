//! What kube-proxy counts, under its names.

use k8s_openapi::{api::discovery::v1::EndpointSlice, jiff::Timestamp};
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    exponential_buckets,
};
use std::collections::HashMap;

/// When an endpoint's pod changed, written by the EndpointSlice controller.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// kube-proxy's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// How long one synchronisation took.
    pub sync: Histogram,
    /// How long one took that made everything anew.
    pub full: Histogram,
    /// How long one took that changed what had changed.
    pub partial: Histogram,
    /// From a pod's change to its being programmed.
    pub programming: Histogram,
    /// Changed EndpointSlices.
    pub endpoint_changes: IntCounter,
    /// Changed Services.
    pub service_changes: IntCounter,
    /// Synchronisations that failed.
    pub failures: IntCounter,
    /// Failures to take away what another mode left.
    pub cleanup_failures: IntCounter,
    /// When rules were last programmed, in seconds since 1970.
    pub last: Gauge,
    /// When a change last came that is to be programmed, in seconds since 1970.
    pub queued: Gauge,
    /// Changed EndpointSlices that are not programmed yet.
    pub endpoints_pending: IntGauge,
    /// Changed Services that are not programmed yet.
    pub services_pending: IntGauge,
    /// Answers of `/healthz`, by status.
    pub healthz: IntCounterVec,
    /// Answers of `/livez`, by status.
    pub livez: IntCounterVec,
    /// Datagram flows deleted, for their endpoint is gone.
    pub flows: IntCounter,
    /// Ports with a policy `Local` and no local endpoint, by `traffic_policy`.
    without_local: IntGaugeVec,
}

impl Metrics {
    /// Registers all of them; in a process with several nodes, each needs a registry of its own.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let histogram = |name: &str, help: &str, buckets| {
            Histogram::with_opts(HistogramOpts::new(format!("kubeproxy_{name}"), help).buckets(buckets))
        };
        let counter = |name: &str, help: &str| IntCounter::new(format!("kubeproxy_{name}"), help);
        let codes =
            |name: &str, help: &str| IntCounterVec::new(Opts::new(format!("kubeproxy_{name}"), help), &["code"]);
        let this = Self {
            sync: histogram(
                "sync_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds",
                exponential_buckets(0.0001, 2.0, 20)?,
            )?,
            full: histogram(
                "sync_full_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for full resyncs",
                exponential_buckets(0.0001, 2.0, 20)?,
            )?,
            partial: histogram(
                "sync_partial_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for partial resyncs",
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
            cleanup_failures: counter(
                "sync_proxy_rules_nftables_cleanup_failures_total",
                "Cumulative proxy nftables cleanup failures",
            )?,
            last: Gauge::new(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "The last time proxy rules were successfully synced",
            )?,
            queued: Gauge::new(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "The last time a sync of proxy rules was queued",
            )?,
            endpoints_pending: IntGauge::new(
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                "Pending proxy rules Endpoint changes",
            )?,
            services_pending: IntGauge::new(
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                "Pending proxy rules Service changes",
            )?,
            healthz: codes("proxy_healthz_total", "Cumulative proxy healthz HTTP status")?,
            livez: codes("proxy_livez_total", "Cumulative proxy livez HTTP status")?,
            flows: counter(
                "conntrack_reconciler_deleted_entries_total",
                "Cumulative conntrack flows deleted by conntrack reconciler",
            )?,
            without_local: IntGaugeVec::new(
                Opts::new(
                    "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
                    "Number of services with a Local traffic policy and no endpoints",
                ),
                &["traffic_policy"],
            )?,
        };
        let all: [Box<dyn prometheus::core::Collector>; 16] = [
            Box::new(this.sync.clone()),
            Box::new(this.full.clone()),
            Box::new(this.partial.clone()),
            Box::new(this.programming.clone()),
            Box::new(this.endpoint_changes.clone()),
            Box::new(this.service_changes.clone()),
            Box::new(this.failures.clone()),
            Box::new(this.cleanup_failures.clone()),
            Box::new(this.last.clone()),
            Box::new(this.queued.clone()),
            Box::new(this.endpoints_pending.clone()),
            Box::new(this.services_pending.clone()),
            Box::new(this.healthz.clone()),
            Box::new(this.livez.clone()),
            Box::new(this.flows.clone()),
            Box::new(this.without_local.clone()),
        ];
        for collector in all {
            registry.register(collector)?;
        }
        Ok(this)
    }

    /// Notes how many ports of all Services want local endpoints and have none.
    pub fn set_without_local(&self, of: &HashMap<String, [i64; 2]>) {
        for (i, policy) in ["internal", "external"].into_iter().enumerate() {
            self.without_local.with_label_values(&[policy]).set(of.values().map(|counts| counts[i]).sum());
        }
    }

    /// Notes that something waits to be programmed.
    pub fn waits(&self) {
        self.queued.set(Timestamp::now().as_millisecond() as f64 / 1000.0);
    }

    /// Notes that the changes of these times are programmed now.
    pub fn programmed(&self, triggers: &[Timestamp], now: Timestamp) {
        for trigger in triggers {
            self.programming.observe(now.duration_since(*trigger).as_secs_f64().max(0.0));
        }
        self.endpoints_pending.set(0);
        self.services_pending.set(0);
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
