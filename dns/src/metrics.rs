//! Counters under CoreDNS' names, so that its dashboards work. What every packet counts is found without a look-up by
//! text: label values are few, and kept once used.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use std::sync::OnceLock;
use std::time::Duration;

/// The label `server`, as CoreDNS writes the standard one.
const SERVER: &str = "dns://:53";
/// CoreDNS' bounds for sizes.
const SIZES: [f64; 14] = [0., 100., 200., 300., 400., 511., 1023., 2047., 4095., 8291., 16e3, 32e3, 48e3, 64e3];
/// The types that are counted by name.
const TYPES: [(RecordType, &str); 17] = [
    (RecordType::A, "A"),
    (RecordType::AAAA, "AAAA"),
    (RecordType::CNAME, "CNAME"),
    (RecordType::DNSKEY, "DNSKEY"),
    (RecordType::DS, "DS"),
    (RecordType::HTTPS, "HTTPS"),
    (RecordType::MX, "MX"),
    (RecordType::NS, "NS"),
    (RecordType::NSEC, "NSEC"),
    (RecordType::NSEC3, "NSEC3"),
    (RecordType::PTR, "PTR"),
    (RecordType::RRSIG, "RRSIG"),
    (RecordType::SOA, "SOA"),
    (RecordType::SRV, "SRV"),
    (RecordType::TXT, "TXT"),
    (RecordType::ANY, "ANY"),
    (RecordType::ZERO, "other"),
];
/// The codes that are counted by name.
const CODES: [(ResponseCode, &str); 8] = [
    (ResponseCode::NoError, "NOERROR"),
    (ResponseCode::FormErr, "FORMERR"),
    (ResponseCode::ServFail, "SERVFAIL"),
    (ResponseCode::NXDomain, "NXDOMAIN"),
    (ResponseCode::NotImp, "NOTIMP"),
    (ResponseCode::Refused, "REFUSED"),
    (ResponseCode::BADVERS, "BADVERS"),
    (ResponseCode::YXDomain, "other"),
];

/// Whose name was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneLabel {
    /// The cluster's.
    Cluster = 0,
    /// An IPv4 address'.
    Reverse4 = 1,
    /// An IPv6 address'.
    Reverse6 = 2,
    /// Any other.
    Root = 3,
    /// None: the packet could not be read.
    Dropped = 4,
}

const ZONES: usize = 5;
const FAMILIES: [&str; 2] = ["1", "2"];
const PROTOCOLS: [&str; 2] = ["udp", "tcp"];

/// A question that was answered.
#[derive(Debug, Clone, Copy)]
pub struct Tally {
    /// Whose name.
    pub zone: ZoneLabel,
    /// By TCP.
    pub tcp: bool,
    /// From an IPv6 address.
    pub v6: bool,
    /// From [`type_index`].
    pub kind: u8,
    /// From [`code_index`].
    pub code: u8,
    /// Bytes of the question and of the answer.
    pub sizes: (usize, usize),
    /// From packet to packet.
    pub took: Duration,
}

/// What is counted.
pub struct Metrics {
    registry: Registry,
    zones: [String; ZONES],
    requests: (IntCounterVec, Vec<OnceLock<IntCounter>>),
    responses: (IntCounterVec, Vec<OnceLock<IntCounter>>),
    duration: (HistogramVec, Vec<OnceLock<Histogram>>),
    request_size: (HistogramVec, Vec<OnceLock<Histogram>>),
    response_size: (HistogramVec, Vec<OnceLock<Histogram>>),
    /// Packets and connections beyond what is served at the same time.
    pub dropped: IntCounterVec,
    /// Services in the zone.
    pub services: IntGauge,
    cache_hits: [IntCounter; 2],
    /// Questions to upstreams that no kept answer was there for.
    pub cache_misses: IntCounter,
    cache_entries: IntGaugeVec,
    /// Answers fetched before their end.
    pub prefetched: IntCounter,
    /// Answers given past their end.
    pub served_stale: IntCounter,
    forward_requests: IntCounterVec,
    forward_responses: IntCounterVec,
    forward_duration: HistogramVec,
    proxy_duration: HistogramVec,
    probe_failures: IntCounterVec,
    proxy_probe_failures: IntCounterVec,
    /// Questions when every upstream was left out.
    pub all_down: IntCounter,
    /// Questions beyond what is asked at the same time.
    pub rejected: IntCounter,
    /// Search paths completed.
    pub autopath: IntCounter,
    /// Tasks that answer packets and fell.
    pub panics: IntCounter,
    /// Time of `/health`, asked by ourselves.
    pub health_duration: Histogram,
    /// Times that failed.
    pub health_failures: IntCounter,
    /// From a change of endpoints to the name that says so.
    pub programming: HistogramVec,
    /// Settings that could not be taken over.
    pub reload_failed: IntCounter,
    /// Settings taken over.
    pub reloaded: IntCounter,
}

impl Metrics {
    /// Registers everything in a registry of its own; `domain` is the cluster's.
    pub fn new(domain: &str) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let r = Maker(&registry);
        let times = prometheus::exponential_buckets(0.000_01, 2.0, 20)?;
        let hits =
            r.counters("coredns_cache_hits_total", "Answers from the cache", &["server", "type", "zones", "view"])?;
        let hits = ["success", "denial"].map(|kind| hits.with_label_values(&[SERVER, kind, ".", ""]));
        let build = r.gauges("coredns_build_info", "What runs", &["version", "revision", "goversion"])?;
        build.with_label_values(&[concat!("causeway-", env!("CARGO_PKG_VERSION")), "", ""]).set(1);
        let one = |name: &str, help: &str| {
            Ok::<_, prometheus::Error>(r.counters(name, help, &["server"])?.with_label_values(&[SERVER]))
        };
        Ok(Self {
            zones: [
                format!("{}.", domain.trim_end_matches('.')),
                "in-addr.arpa.".into(),
                "ip6.arpa.".into(),
                ".".into(),
                "dropped".into(),
            ],
            requests: (
                r.counters(
                    "coredns_dns_requests_total",
                    "Questions",
                    &["server", "zone", "view", "proto", "family", "type"],
                )?,
                cells(ZONES * 4 * TYPES.len()),
            ),
            responses: (
                r.counters("coredns_dns_responses_total", "Answers", &["server", "zone", "view", "rcode", "plugin"])?,
                cells(ZONES * CODES.len()),
            ),
            duration: (
                r.histograms(
                    "coredns_dns_request_duration_seconds",
                    "Time to answer",
                    &["server", "zone", "view"],
                    times.clone(),
                )?,
                cells(ZONES),
            ),
            request_size: (
                r.histograms(
                    "coredns_dns_request_size_bytes",
                    "Size of questions",
                    &["server", "zone", "view", "proto"],
                    SIZES.into(),
                )?,
                cells(ZONES * 2),
            ),
            response_size: (
                r.histograms(
                    "coredns_dns_response_size_bytes",
                    "Size of answers",
                    &["server", "zone", "view", "proto"],
                    SIZES.into(),
                )?,
                cells(ZONES * 2),
            ),
            dropped: r.counters(
                "causeway_dns_dropped_total",
                "Packets and connections beyond the limits",
                &["proto"],
            )?,
            services: r.gauges("causeway_dns_services", "Services in the zone", &[])?.with_label_values::<&str>(&[]),
            cache_hits: hits,
            cache_misses: r
                .counters(
                    "coredns_cache_misses_total",
                    "Questions without a kept answer",
                    &["server", "zones", "view"],
                )?
                .with_label_values(&[SERVER, ".", ""]),
            cache_entries: r.gauges("coredns_cache_entries", "Answers kept", &["server", "type", "zones", "view"])?,
            prefetched: r
                .counters(
                    "coredns_cache_prefetch_total",
                    "Answers fetched before their end",
                    &["server", "zones", "view"],
                )?
                .with_label_values(&[SERVER, ".", ""]),
            served_stale: r
                .counters(
                    "coredns_cache_served_stale_total",
                    "Answers given past their end",
                    &["server", "zones", "view"],
                )?
                .with_label_values(&[SERVER, ".", ""]),
            forward_requests: r.counters("coredns_forward_requests_total", "Questions to an upstream", &["to"])?,
            forward_responses: r.counters(
                "coredns_forward_responses_total",
                "Answers of an upstream",
                &["to", "rcode"],
            )?,
            forward_duration: r.histograms(
                "coredns_forward_request_duration_seconds",
                "Time of an upstream to answer",
                &["to", "rcode"],
                times.clone(),
            )?,
            proxy_duration: r.histograms(
                "coredns_proxy_request_duration_seconds",
                "Time of an upstream to answer",
                &["proxy_name", "to", "rcode"],
                times.clone(),
            )?,
            probe_failures: r.counters(
                "coredns_forward_healthcheck_failures_total",
                "Failed probes of an upstream",
                &["to"],
            )?,
            proxy_probe_failures: r.counters(
                "coredns_proxy_healthcheck_failures_total",
                "Failed probes of an upstream",
                &["proxy_name", "to"],
            )?,
            all_down: r
                .counters(
                    "coredns_forward_healthcheck_broken_total",
                    "Questions while all upstreams were left out",
                    &[],
                )?
                .with_label_values::<&str>(&[]),
            rejected: r
                .counters("coredns_forward_max_concurrent_rejects_total", "Questions beyond the limit", &[])?
                .with_label_values::<&str>(&[]),
            autopath: one("coredns_autopath_success_total", "Search paths completed")?,
            panics: r.counters("coredns_panics_total", "Tasks that fell", &[])?.with_label_values::<&str>(&[]),
            health_duration: r
                .histograms("coredns_health_request_duration_seconds", "Time of our own /health", &[], times.clone())?
                .with_label_values::<&str>(&[]),
            health_failures: r
                .counters("coredns_health_request_failures_total", "Failures of our own /health", &[])?
                .with_label_values::<&str>(&[]),
            programming: r.histograms(
                "coredns_kubernetes_dns_programming_duration_seconds",
                "From a change of endpoints to the name that says so",
                &["service_kind"],
                prometheus::exponential_buckets(0.001, 2.0, 20)?,
            )?,
            reload_failed: r
                .counters("coredns_reload_failed_total", "Settings that could not be taken over", &[])?
                .with_label_values::<&str>(&[]),
            reloaded: r
                .counters("causeway_dns_reloads_total", "Settings taken over", &[])?
                .with_label_values::<&str>(&[]),
            registry,
        })
    }

    /// Counts a question and its answer.
    pub fn tally(&self, t: &Tally) {
        let (zone, tcp, family) = (t.zone as usize, usize::from(t.tcp), usize::from(t.v6));
        let name = self.zones[zone].as_str();
        let (kind, code) = (usize::from(t.kind), usize::from(t.code));
        let cell = ((zone * 2 + tcp) * 2 + family) * TYPES.len() + kind;
        let requests =
            || self.requests.0.with_label_values(&[SERVER, name, "", PROTOCOLS[tcp], FAMILIES[family], TYPES[kind].1]);
        self.requests.1[cell].get_or_init(requests).inc();
        let responses = || self.responses.0.with_label_values(&[SERVER, name, "", CODES[code].1, ""]);
        self.responses.1[zone * CODES.len() + code].get_or_init(responses).inc();
        let duration = || self.duration.0.with_label_values(&[SERVER, name, ""]);
        self.duration.1[zone].get_or_init(duration).observe(t.took.as_secs_f64());
        for (sizes, size) in [(&self.request_size, t.sizes.0), (&self.response_size, t.sizes.1)] {
            let histogram = || sizes.0.with_label_values(&[SERVER, name, "", PROTOCOLS[tcp]]);
            sizes.1[zone * 2 + tcp].get_or_init(histogram).observe(size as f64);
        }
    }

    /// An answer came from the cache.
    pub fn cache_hit(&self, negative: bool) {
        self.cache_hits[usize::from(negative)].inc();
    }

    /// How many answers are kept.
    pub fn cached(&self, (positive, negative): (usize, usize)) {
        for (kind, count) in [("success", positive), ("denial", negative)] {
            self.cache_entries
                .with_label_values(&[SERVER, kind, ".", ""])
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// An upstream answered.
    pub fn asked(&self, to: &str, code: ResponseCode, took: Duration) {
        let code = CODES[usize::from(code_index(code))].1;
        self.forward_requests.with_label_values(&[to]).inc();
        self.forward_responses.with_label_values(&[to, code]).inc();
        self.forward_duration.with_label_values(&[to, code]).observe(took.as_secs_f64());
        self.proxy_duration.with_label_values(&["forward", to, code]).observe(took.as_secs_f64());
    }

    /// An upstream did not answer a probe.
    pub fn probe_failed(&self, to: &str) {
        self.probe_failures.with_label_values(&[to]).inc();
        self.proxy_probe_failures.with_label_values(&["forward", to]).inc();
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

/// A bounded set of label values, whatever is asked.
pub fn type_index(kind: RecordType) -> u8 {
    let at = TYPES.iter().position(|(k, _)| *k == kind).unwrap_or(TYPES.len() - 1);
    u8::try_from(at).unwrap_or_default()
}

/// As [`type_index`], for codes.
pub fn code_index(code: ResponseCode) -> u8 {
    let at = CODES.iter().position(|(c, _)| *c == code).unwrap_or(CODES.len() - 1);
    u8::try_from(at).unwrap_or_default()
}

/// Places for what is kept once used.
fn cells<T>(n: usize) -> Vec<OnceLock<T>> {
    (0..n).map(|_| OnceLock::new()).collect()
}

/// Makes what a registry holds.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
        let made = IntCounterVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(made.clone())).map(|()| made)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
        let made = IntGaugeVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(made.clone())).map(|()| made)
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: Vec<f64>,
    ) -> Result<HistogramVec, prometheus::Error> {
        let made = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels)?;
        self.0.register(Box::new(made.clone())).map(|()| made)
    }
}
