//! Settings of cluster DNS, with their documented defaults. They come from the cluster's configuration and, while it
//! runs, from the ConfigMap `kube-system/causeway-dns`, so each field stands on its own there.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What cluster DNS answers and whom it asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct DnsSettings {
    /// Seconds for which an answer from the cluster's zone may be kept. Default 5.
    pub ttl: u32,
    /// Whether `1-2-3-4.NAMESPACE.pod` has an address. Default `insecure`.
    pub pods: PodRecords,
    /// Try the rest of a pod's search path on the server, so that an external name costs one query. Default false.
    pub autopath: bool,
    /// Servers for names outside the cluster: `ADDRESS`, `ADDRESS:PORT`, or over TLS `tls://ADDRESS[:PORT][#NAME]`, where
    /// NAME is what the certificate must say (without it, the address). With none such names are refused.
    pub upstreams: Vec<String>,
    /// Servers for the names of other domains, written alike; the longest domain wins.
    pub stub_domains: BTreeMap<String, Vec<String>>,
    /// Certificates (PEM) that vouch for upstreams over TLS. Default: those the machine trusts.
    pub tls_ca: Option<String>,
    /// In which order upstreams are asked. Default `random`.
    pub policy: UpstreamPolicy,
    /// Questions to upstreams at the same time; more fail at once. Default 1000.
    pub max_concurrent: usize,
    /// Failures in a row after which an upstream is left out until it answers a probe again; 0: never. Default 2.
    pub max_fails: u32,
    /// Answers of upstreams that are kept.
    pub cache: DnsCache,
    /// At the end, seconds of answering on after having said to be ending. Default 0.
    pub lameduck_seconds: u64,
}

/// `1-2-3-4.NAMESPACE.pod` names, as CoreDNS has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodRecords {
    /// No such names.
    Disabled,
    /// Every address in every namespace that exists.
    Insecure,
    /// Only where a pod of that namespace has the address; costs a watch of all pods.
    Verified,
}

/// Which upstream is asked first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamPolicy {
    /// Any.
    Random,
    /// Each in turn.
    RoundRobin,
    /// Always the first that is well.
    Sequential,
}

/// What is kept of upstreams' answers, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct DnsCache {
    /// Answers with records. Default 9984.
    pub positive_items: usize,
    /// Answers without. Default 9984.
    pub negative_items: usize,
    /// No answer is kept for fewer seconds. Default 5.
    pub min_ttl: u32,
    /// No answer with records is kept for more seconds. Default 3600.
    pub max_ttl: u32,
    /// No answer without records is kept for more seconds. Default 1800.
    pub negative_max_ttl: u32,
    /// For how many seconds after its end an answer is given when upstreams fail; 0: never. Default 3600.
    pub serve_stale_seconds: u64,
    /// Give such an answer at once and ask behind it, rather than only when upstreams fail. Default false.
    pub stale_immediately: bool,
    /// Answers asked for this often, with no pause of a minute, are fetched anew before they end; 0: never. Default 10.
    pub prefetch_amount: u32,
    /// …when less than this part, in percent, of their time is left. Default 10.
    pub prefetch_percentage: u8,
}

impl Default for DnsSettings {
    fn default() -> Self {
        Self {
            ttl: 5,
            pods: PodRecords::Insecure,
            autopath: false,
            upstreams: Vec::new(),
            stub_domains: BTreeMap::new(),
            tls_ca: None,
            policy: UpstreamPolicy::Random,
            max_concurrent: 1000,
            max_fails: 2,
            cache: DnsCache::default(),
            lameduck_seconds: 0,
        }
    }
}

impl Default for DnsCache {
    fn default() -> Self {
        Self {
            positive_items: 9984,
            negative_items: 9984,
            min_ttl: 5,
            max_ttl: 3600,
            negative_max_ttl: 1800,
            serve_stale_seconds: 3600,
            stale_immediately: false,
            prefetch_amount: 10,
            prefetch_percentage: 10,
        }
    }
}
