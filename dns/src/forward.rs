//! Names that are not the cluster's. In: a question. Out: what an upstream says, from the resolver's bounded cache
//! where it may; refused at once where no upstream is configured.

use crate::config::DnsConfig;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

/// Answers kept: CoreDNS' default.
const CACHE_ITEMS: u64 = 9984;
/// Questions to upstreams at the same time; more are refused, so that a dead upstream cannot hold everything up.
const MAX_CONCURRENT: usize = 1000;
/// An upstream gets this long, twice.
const TIMEOUT: Duration = Duration::from_secs(2);
/// All upstreams together get this long: resolvers in pods ask again after five seconds.
const DEADLINE: Duration = Duration::from_millis(4500);
/// Failures of upstreams are told at most this often.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// What an upstream said.
#[derive(Debug, Clone, PartialEq)]
pub enum Forwarded {
    /// Records of the answer section, including aliases on the way.
    Found(Vec<Record>),
    /// Nothing of that type or name, with the upstream's start of authority.
    Nothing(ResponseCode, Vec<Record>),
    /// No upstream is configured for the name.
    Refused,
    /// No upstream answered.
    Failed,
}

/// The upstreams, by domain.
pub struct Forwarder {
    /// Longest domain first; the root last.
    zones: Vec<(Name, TokioResolver)>,
    slots: Arc<Semaphore>,
    /// Where the questions are asked; the caller's runtime with `None`.
    runtime: Option<Handle>,
    told: Mutex<Told>,
}

/// What was said about failures, so that a dead upstream does not fill the log.
#[derive(Default)]
struct Told {
    last: Option<Instant>,
    untold: u64,
}

impl Forwarder {
    /// Prepares resolvers; nothing is sent.
    pub fn new(config: &DnsConfig) -> Result<Self, String> {
        let mut all: BTreeMap<String, Vec<SocketAddr>> = config.stub_domains.clone();
        if !config.upstreams.is_empty() {
            all.insert(".".to_owned(), config.upstreams.clone());
        }
        let mut zones = Vec::new();
        for (domain, servers) in &all {
            let mut name = Name::from_str(domain).map_err(|e| format!("stub domain {domain:?}: {e}"))?;
            name.set_fqdn(true);
            zones.push((name.to_lowercase(), resolver(servers)?));
        }
        zones.sort_by_key(|(name, _)| std::cmp::Reverse(name.num_labels()));
        Ok(Self {
            zones,
            slots: Arc::new(Semaphore::new(MAX_CONCURRENT)),
            runtime: config.forward_on.clone(),
            told: Mutex::default(),
        })
    }

    /// Asks the upstreams of a name's domain.
    pub async fn lookup(&self, name: &Name, kind: RecordType) -> Forwarded {
        let Some((_, resolver)) = self.zones.iter().find(|(zone, _)| zone.zone_of(name)) else {
            return Forwarded::Refused;
        };
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            return self.failed(name, &format!("{MAX_CONCURRENT} questions to upstreams are under way already"));
        };
        let (resolver, asked) = (resolver.clone(), name.clone());
        // Sockets belong to the runtime, and so to the network, of the task that opens them.
        let asking = async move {
            let _slot = slot;
            tokio::time::timeout(DEADLINE, resolver.lookup(asked, kind)).await
        };
        let answer = match &self.runtime {
            None => asking.await,
            Some(runtime) => match AbortOnDropHandle::new(runtime.spawn(asking)).await {
                Ok(answer) => answer,
                Err(error) => return self.failed(name, &format!("the runtime that asks upstreams is gone: {error}")),
            },
        };
        match answer {
            Ok(Ok(lookup)) => Forwarded::Found(lookup.answers().to_vec()),
            Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => {
                let soa = none.soa.map(|soa| {
                    Record::from_rdata(soa.name.clone(), soa.ttl, hickory_proto::rr::RData::SOA(soa.data.clone()))
                });
                Forwarded::Nothing(none.response_code, soa.into_iter().collect())
            }
            Ok(Err(NetError::Dns(DnsError::ResponseCode(code)))) => Forwarded::Nothing(code, Vec::new()),
            Ok(Err(error)) => self.failed(name, &error.to_string()),
            Err(_) => self.failed(name, &format!("no answer within {DEADLINE:?}")),
        }
    }

    fn failed(&self, name: &Name, why: &str) -> Forwarded {
        let mut told = self.told.lock();
        if told.last.is_some_and(|last| last.elapsed() < TELL_EVERY) {
            told.untold += 1;
            tracing::debug!(%name, why, "no upstream answered");
        } else {
            let untold = std::mem::take(&mut told.untold);
            told.last = Some(Instant::now());
            tracing::warn!(%name, why, untold, "no upstream answered; are the configured DNS upstreams reachable?");
        }
        Forwarded::Failed
    }
}

fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, String> {
    let servers = servers.iter().map(|addr| {
        let connections = [ProtocolConfig::Udp, ProtocolConfig::Tcp].map(|protocol| {
            let mut connection = ConnectionConfig::new(protocol);
            connection.port = addr.port();
            connection
        });
        NameServerConfig::new(addr.ip(), true, connections.into())
    });
    let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let options = builder.options_mut();
    options.cache_size = CACHE_ITEMS;
    options.use_hosts_file = ResolveHosts::Never;
    options.timeout = TIMEOUT;
    options.attempts = 2;
    options.ndots = 0;
    options.preserve_intermediates = true;
    options.negative_max_ttl = Some(Duration::from_secs(30));
    builder.build().map_err(|e| format!("setting up the DNS upstreams: {e}"))
}
