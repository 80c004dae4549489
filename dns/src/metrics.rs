//! Counters under CoreDNS' names, so that its dashboards work.

use prometheus::{Encoder, Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

/// What is counted.
pub struct Metrics {
    registry: Registry,
    /// `coredns_dns_requests_total{proto,type}`.
    pub requests: IntCounterVec,
    /// `coredns_dns_responses_total{rcode}`.
    pub responses: IntCounterVec,
    /// `coredns_dns_request_duration_seconds`.
    pub duration: Histogram,
    /// `coredns_forward_requests_total{result}`.
    pub forwarded: IntCounterVec,
    /// `causeway_dns_dropped_total{proto}`: packets and connections beyond what is served at the same time.
    pub dropped: IntCounterVec,
    /// `causeway_dns_services`: services in the zone.
    pub services: IntGauge,
}

impl Metrics {
    /// Registers everything in a registry of its own.
    pub fn new() -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let buckets = prometheus::exponential_buckets(0.000_01, 4.0, 10)?;
        let duration = HistogramOpts::new("coredns_dns_request_duration_seconds", "Time to answer").buckets(buckets);
        let this = Self {
            registry: Registry::new(),
            requests: counter("coredns_dns_requests_total", "Questions", &["proto", "type"])?,
            responses: counter("coredns_dns_responses_total", "Answers", &["rcode"])?,
            duration: Histogram::with_opts(duration)?,
            forwarded: counter("coredns_forward_requests_total", "Questions for upstreams", &["result"])?,
            dropped: counter("causeway_dns_dropped_total", "Packets and connections beyond the limits", &["proto"])?,
            services: IntGauge::new("causeway_dns_services", "Services in the zone")?,
        };
        this.registry.register(Box::new(this.requests.clone()))?;
        this.registry.register(Box::new(this.responses.clone()))?;
        this.registry.register(Box::new(this.duration.clone()))?;
        this.registry.register(Box::new(this.forwarded.clone()))?;
        this.registry.register(Box::new(this.dropped.clone()))?;
        this.registry.register(Box::new(this.services.clone()))?;
        Ok(this)
    }

    /// The text exposition format.
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        if TextEncoder::new().encode(&self.registry.gather(), &mut out).is_err() {
            return String::new();
        }
        String::from_utf8(out).unwrap_or_default()
    }
}
