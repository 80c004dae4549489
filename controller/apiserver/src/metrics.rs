//! Metrics under the names of Kubernetes' API server.

use crate::catalog::{Served, Table, group_and_plural};
use crate::engine::Engine;
use crate::request::RequestInfo;
use crate::status::qualified;
use causeway_store::Store;
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

/// Subresources that are counted by their name.
const SUBRESOURCES: &[&str] = &[
    "approval",
    "attach",
    "binding",
    "ephemeralcontainers",
    "eviction",
    "exec",
    "finalize",
    "log",
    "portforward",
    "proxy",
    "scale",
    "status",
    "token",
];

/// Resources that are asked, never stored.
const REVIEWS: &[&str] = &[
    "tokenreviews",
    "selfsubjectreviews",
    "subjectaccessreviews",
    "selfsubjectaccessreviews",
    "localsubjectaccessreviews",
    "selfsubjectrulesreviews",
];

impl Labels {
    /// Of a request. What is not served is counted together, whatever the answer: strangers must not make memory grow by
    /// asking for names that lead nowhere.
    pub fn new(info: &RequestInfo, table: &Table) -> Self {
        let verb = match info.verb.as_str() {
            "get" => "GET",
            "list" => "LIST",
            "watch" => "WATCH",
            "create" => "POST",
            "update" => "PUT",
            "patch" => "PATCH",
            "delete" => "DELETE",
            "deletecollection" => "DELETECOLLECTION",
            _ => "OTHER",
        };
        let none = || Self {
            verb,
            group: String::new(),
            version: String::new(),
            resource: String::new(),
            subresource: String::new(),
        };
        let Some(target) = &info.target else { return none() };
        let served = table.get(&target.group, &target.version, &target.resource).is_some();
        let subresource = target.subresource.clone().unwrap_or_default();
        let asked_only = matches!(target.group.as_str(), "authentication.k8s.io" | "authorization.k8s.io")
            && target.version == "v1"
            && REVIEWS.contains(&target.resource.as_str());
        if !(served || asked_only) || !(subresource.is_empty() || SUBRESOURCES.contains(&subresource.as_str())) {
            return none();
        }
        let (group, version, resource) = (target.group.clone(), target.version.clone(), target.resource.clone());
        Self { verb, group, version, resource, subresource }
    }
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

    /// Counts an answer.
    pub fn observe(&self, labels: &Labels, code: u16, took: Duration) {
        let Labels { verb, group, version, resource, subresource } = labels;
        let (group, version, resource, subresource) =
            (group.as_str(), version.as_str(), resource.as_str(), subresource.as_str());
        self.requests
            .with_label_values(&[*verb, group, version, resource, subresource, code.to_string().as_str()])
            .inc();
        if *verb != "WATCH" {
            self.durations
                .with_label_values(&[*verb, group, version, resource, subresource])
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
            let (group, plural) = group_and_plural(&prefix);
            let name = qualified(group, plural);
            self.objects.with_label_values(&[&name]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.revision.set(i64::try_from(engine.feed.revision()).unwrap_or(i64::MAX));
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}
