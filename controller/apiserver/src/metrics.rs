//! Metrics under the names of Kubernetes' API server.

use crate::catalog::Served;
use crate::engine::Engine;
use crate::request::{Query, Target};
use causeway_store::Store;
use http::{Method, Uri};
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use std::time::Duration;

/// The server's counters.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    durations: HistogramVec,
    watchers: IntGaugeVec,
    objects: IntGaugeVec,
    revision: IntGauge,
}

/// What a request is counted under.
pub struct Labels {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
}

/// Counts a watch while it lives.
pub struct Watching(IntGauge);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// A fresh set, with those of the store.
    pub fn new(store: &dyn Store) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        for collector in store.collectors() {
            registry.register(collector)?;
        }
        let request_labels = ["verb", "group", "version", "resource", "subresource", "code"];
        let requests = IntCounterVec::new(
            Opts::new("apiserver_request_total", "Requests by verb, resource and HTTP code"),
            &request_labels,
        )?;
        let buckets = vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
        let durations = HistogramVec::new(
            HistogramOpts::new("apiserver_request_duration_seconds", "Response latency in seconds, without watches")
                .buckets(buckets),
            &["verb", "group", "version", "resource", "subresource"],
        )?;
        let watchers = IntGaugeVec::new(
            Opts::new("apiserver_longrunning_requests", "Watches in progress"),
            &["verb", "group", "version", "resource"],
        )?;
        let objects = IntGaugeVec::new(Opts::new("apiserver_storage_objects", "Stored objects"), &["resource"])?;
        let revision = IntGauge::new("causeway_store_revision", "Revision up to which the caches are filled")?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(durations.clone()))?;
        registry.register(Box::new(watchers.clone()))?;
        registry.register(Box::new(objects.clone()))?;
        registry.register(Box::new(revision.clone()))?;
        Ok(Self { registry, requests, durations, watchers, objects, revision })
    }

    /// What a request will be counted under.
    pub fn label(&self, method: &Method, uri: &Uri) -> Labels {
        let Some(target) = Target::parse(uri.path()) else {
            let verb = if method == Method::GET { "GET" } else { "OTHER" };
            let none = String::new;
            return Labels { verb, group: none(), version: none(), resource: none(), subresource: none() };
        };
        let query = Query::parse(uri.query().unwrap_or(""));
        let verb = match target.verb(method, &query) {
            Some("get") => "GET",
            Some("list") => "LIST",
            Some("watch") => "WATCH",
            Some("create") => "POST",
            Some("update") => "PUT",
            Some("patch") => "PATCH",
            Some("delete") => "DELETE",
            Some("deletecollection") => "DELETECOLLECTION",
            _ => "OTHER",
        };
        let Target { group, version, resource, subresource, .. } = target;
        Labels { verb, group, version, resource, subresource: subresource.unwrap_or_default() }
    }

    /// Counts an answer. Names that lead nowhere are counted together, so that strangers cannot make memory grow.
    pub fn observe(&self, mut labels: Labels, code: u16, took: Duration) {
        if code == 404 || code == 403 || code == 401 {
            labels = Labels {
                resource: String::new(),
                group: String::new(),
                version: String::new(),
                subresource: String::new(),
                ..labels
            };
        }
        let Labels { verb, group, version, resource, subresource } = labels;
        self.requests.with_label_values(&[verb, &group, &version, &resource, &subresource, &code.to_string()]).inc();
        if verb != "WATCH" {
            self.durations
                .with_label_values(&[verb, &group, &version, &resource, &subresource])
                .observe(took.as_secs_f64());
        }
    }

    /// Counts a watch until it is dropped.
    pub fn watching(&self, served: &Served) -> Watching {
        let r = &served.resource;
        let gauge = self.watchers.with_label_values(&["WATCH", &r.group, &r.version, &r.plural]);
        gauge.inc();
        Watching(gauge)
    }

    /// The text format.
    pub fn render(&self, engine: &Engine) -> String {
        for (prefix, count) in engine.feed.counts() {
            let mut parts = prefix.trim_matches('/').split('/').skip(1);
            let (group, plural) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
            let name = if group == "core" { plural.to_owned() } else { format!("{plural}.{group}") };
            self.objects.with_label_values(&[&name]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.revision.set(i64::try_from(engine.feed.revision()).unwrap_or(i64::MAX));
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}
