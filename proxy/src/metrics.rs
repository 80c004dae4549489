//! Counters of the ingress. Labels are bounded: no host, path or object name becomes one.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

/// All metrics. Everything on the hot path is one atomic operation.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Requests by the class of their answer: index 0 none was sent, 1–5 for 1xx–5xx.
    by_class: [IntCounter; 6],
    /// From the request's head to the end of its answer, in seconds.
    pub duration: Histogram,
    /// Connections by listener: clear text.
    pub connections_http: IntCounter,
    /// Connections by listener: TLS.
    pub connections_https: IntCounter,
    /// Connections at the moment.
    pub connections: IntGauge,
    /// TLS handshakes that failed.
    pub handshake_failures: IntCounter,
    /// Connections to an endpoint that could not be made.
    pub connect_failures: IntCounter,
    /// Requests that were sent again to another endpoint.
    pub retries: IntCounter,
    /// Requests without a matching route.
    pub no_route: IntCounter,
    /// Requests whose route had no endpoint.
    pub no_endpoint: IntCounter,
    /// Requests refused for their form (host, path, size, time).
    pub malformed: IntCounter,
    /// Rules in the table.
    pub routes: IntGauge,
    /// Tables put in force.
    pub reloads: IntCounter,
    /// Lines of the access log that were not written.
    pub log_dropped: IntCounter,
    /// Endpoints passed over for their bad answers.
    pub ejections: IntCounter,
    /// Requests refused because their Service had as many as it may.
    pub overflows: IntCounter,
    /// Health checks that failed.
    pub check_failures: IntCounter,
    /// Further tries that the budget did not allow.
    pub retries_denied: IntCounter,
    /// Changes of endpoints without a new table.
    pub endpoint_changes: IntCounter,
}

impl Metrics {
    /// Registers everything in a registry of its own.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let c = IntCounter::with_opts(Opts::new(format!("causeway_ingress_{name}"), help))?;
            registry.register(Box::new(c.clone()))?;
            Ok(c)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let g = IntGauge::with_opts(Opts::new(format!("causeway_ingress_{name}"), help))?;
            registry.register(Box::new(g.clone()))?;
            Ok(g)
        };
        let requests = IntCounterVec::new(
            Opts::new("causeway_ingress_requests_total", "Requests by the class of their answer."),
            &["class"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        let connections = IntCounterVec::new(
            Opts::new("causeway_ingress_connections_total", "Connections accepted, by the listener's scheme."),
            &["scheme"],
        )?;
        registry.register(Box::new(connections.clone()))?;
        let duration = Histogram::with_opts(
            HistogramOpts::new(
                "causeway_ingress_request_duration_seconds",
                "From a request's head to its answer's end.",
            )
            .buckets(vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0]),
        )?;
        registry.register(Box::new(duration.clone()))?;
        Ok(Self {
            by_class: ["none", "1xx", "2xx", "3xx", "4xx", "5xx"].map(|c| requests.with_label_values(&[c])),
            duration,
            connections_http: connections.with_label_values(&["http"]),
            connections_https: connections.with_label_values(&["https"]),
            connections: gauge("connections", "Connections at the moment.")?,
            handshake_failures: counter("tls_handshake_failures_total", "TLS handshakes that failed.")?,
            connect_failures: counter("upstream_connect_failures_total", "Endpoints that took no connection.")?,
            retries: counter("upstream_retries_total", "Requests sent again to another endpoint.")?,
            no_route: counter("no_route_total", "Requests without a matching route.")?,
            no_endpoint: counter("no_endpoint_total", "Requests whose route had no endpoint.")?,
            malformed: counter("malformed_requests_total", "Requests refused for their form.")?,
            routes: gauge("routes", "Rules in the table.")?,
            reloads: counter("table_swaps_total", "Tables put in force.")?,
            endpoint_changes: counter("endpoint_changes_total", "Endpoint changes without a new table.")?,
            ejections: counter("upstream_ejections_total", "Endpoints passed over for bad answers.")?,
            overflows: counter("upstream_overflows_total", "Requests beyond what their Service may have at a time.")?,
            check_failures: counter("health_check_failures_total", "Health checks of endpoints that failed.")?,
            retries_denied: counter("upstream_retries_denied_total", "Further tries beyond the budget.")?,
            log_dropped: counter("access_log_dropped_total", "Lines of the access log that were not written.")?,
            registry,
        })
    }

    /// Counts an answered request (status 0: nothing was sent).
    pub fn answered(&self, status: u16, seconds: f64) {
        self.by_class[usize::from(status / 100).min(5)].inc();
        self.duration.observe(seconds);
    }

    /// Requests answered with a class (2 for 2xx).
    pub fn answers(&self, class: usize) -> u64 {
        self.by_class.get(class).map_or(0, IntCounter::get)
    }

    /// In the text format of Prometheus.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}
