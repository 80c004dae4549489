//! Names that are not the cluster's. In: a question. Out: what an upstream says, or said a while ago, from the bounded
//! cache where it may; refused at once where no upstream is configured. The same question is asked once at a time.

use crate::cache::{Cache, Look, Outcome, Question, STALE_TTL};
use crate::metrics::Metrics;
use crate::upstream::{Address, TIMEOUT, Upstream, trust};
use causeway_api::dns::{DnsSettings, UpstreamPolicy};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use hickory_net::proto::op::{DnsRequest, DnsRequestOptions, DnsResponse, Query, ResponseCode};
use hickory_net::proto::rr::Name;
use parking_lot::Mutex;
use rand::seq::SliceRandom;
use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

/// All upstreams together get this long: resolvers in pods ask again after five seconds.
const DEADLINE: Duration = Duration::from_millis(4500);
/// Who has an answer past its end waits this long for a better one (RFC 8767, section 5).
const STALE_AFTER: Duration = Duration::from_millis(1800);
/// Failures of upstreams are told at most this often.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// What is known about a name.
#[derive(Debug, Clone, PartialEq)]
pub enum Forwarded {
    /// An upstream said it, that many seconds ago.
    Said(Arc<Outcome>, u32),
    /// It was said longer ago than it should be given, but nobody says anything now.
    Stale(Arc<Outcome>),
    /// No upstream is configured for the name.
    Refused,
    /// No upstream answered.
    Failed,
}

type Flight = Shared<BoxFuture<'static, Option<Arc<Outcome>>>>;

/// The upstreams, by domain.
pub struct Forwarder {
    /// Longest domain first; the root last.
    pools: Vec<(Name, Arc<Pool>)>,
    cache: Cache,
    slots: Arc<Semaphore>,
    max_concurrent: usize,
    /// Questions under way.
    flights: Mutex<HashMap<Question, Flight>>,
    /// Where the questions are asked; the caller's runtime with `None`.
    runtime: Option<Handle>,
    metrics: Arc<Metrics>,
    told: Mutex<Told>,
}

/// The servers of one domain.
struct Pool {
    upstreams: Vec<Arc<Upstream>>,
    policy: UpstreamPolicy,
    turn: AtomicUsize,
    metrics: Arc<Metrics>,
}

/// What was said about failures, so that a dead upstream does not fill the log.
#[derive(Default)]
struct Told {
    last: Option<Instant>,
    untold: u64,
}

impl Forwarder {
    /// Prepares the upstreams; nothing is sent. `runtime` is where they are asked, `None` for the caller's.
    pub fn new(settings: &DnsSettings, runtime: Option<Handle>, metrics: Arc<Metrics>) -> Result<Self, String> {
        let mut all: BTreeMap<&str, &[String]> =
            settings.stub_domains.iter().map(|(domain, servers)| (domain.as_str(), servers.as_slice())).collect();
        if !settings.upstreams.is_empty() {
            all.insert(".", &settings.upstreams);
        }
        let mut config = None;
        let mut pools = Vec::new();
        for (domain, servers) in all {
            let mut name = Name::from_str(domain).map_err(|e| format!("stub domain {domain:?}: {e}"))?;
            name.set_fqdn(true);
            let mut upstreams = Vec::new();
            for server in servers {
                let address = Address::parse(server)?;
                if config.is_none() && server.starts_with("tls://") {
                    config = Some(trust(settings.tls_ca.as_deref())?);
                }
                upstreams.push(Arc::new(Upstream::new(address, config.clone(), settings.max_fails)));
            }
            if upstreams.is_empty() {
                return Err(format!("stub domain {domain:?} names no server"));
            }
            let (policy, turn) = (settings.policy, AtomicUsize::new(0));
            let pool = Pool { upstreams, policy, turn, metrics: metrics.clone() };
            pools.push((name.to_lowercase(), Arc::new(pool)));
        }
        pools.sort_by_key(|(name, _)| std::cmp::Reverse(name.num_labels()));
        Ok(Self {
            pools,
            cache: Cache::new(settings.cache.clone()),
            slots: Arc::new(Semaphore::new(settings.max_concurrent)),
            max_concurrent: settings.max_concurrent,
            flights: Mutex::default(),
            runtime,
            metrics,
            told: Mutex::default(),
        })
    }

    /// Kept answers, for metrics.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Answers from the cache, or asks the upstreams of a name's domain.
    pub async fn lookup(self: &Arc<Self>, question: &Question) -> Forwarded {
        let Some((_, pool)) = self.pools.iter().find(|(zone, _)| zone.zone_of(&question.name)) else {
            return Forwarded::Refused;
        };
        let stale = match self.cache.look(question, Instant::now()) {
            Look::Fresh { outcome, age, prefetch } => {
                self.metrics.cache_hit(outcome.answers.is_empty());
                if prefetch {
                    self.metrics.prefetched.inc();
                    drop(self.fly(question, pool));
                }
                return Forwarded::Said(outcome, age);
            }
            Look::Stale(outcome) => Some(outcome),
            Look::Miss => None,
        };
        self.metrics.cache_misses.inc();
        let flight = self.fly(question, pool);
        let patience = match (&stale, self.cache.limits().stale_immediately) {
            (None, _) => DEADLINE,
            (Some(_), false) => STALE_AFTER,
            (Some(_), true) => Duration::ZERO,
        };
        let said = match flight {
            Some(flight) => tokio::time::timeout(patience, flight).await.ok().flatten(),
            None => None,
        };
        match (said, stale) {
            // A server that cannot answer says less than one that could an hour ago.
            (Some(said), None) => Forwarded::Said(said, 0),
            (Some(said), Some(_)) if said.code != ResponseCode::ServFail => Forwarded::Said(said, 0),
            (_, Some(stale)) => {
                self.metrics.served_stale.inc();
                Forwarded::Stale(stale)
            }
            (None, None) => Forwarded::Failed,
        }
    }

    /// Joins those who ask the same already, or asks. `None` when too much is asked at the time.
    fn fly(self: &Arc<Self>, question: &Question, pool: &Arc<Pool>) -> Option<Flight> {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(question) {
            return Some(flight.clone());
        }
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            drop(flights);
            self.metrics.rejected.inc();
            self.failed(
                &question.name,
                &format!("{} questions to upstreams are under way already", self.max_concurrent),
            );
            return None;
        };
        let (sender, receiver) = oneshot::channel();
        let flight: Flight = receiver.map(|said| said.ok().flatten()).boxed().shared();
        flights.insert(question.clone(), flight.clone());
        drop(flights);
        let (this, question, pool) = (self.clone(), question.clone(), pool.clone());
        let landing = Landing { this: this.clone(), question: question.clone() };
        // Sockets belong to the runtime, and so to the network, of the task that opens them.
        let asking = async move {
            let (_landing, _slot) = (landing, slot);
            let said = match tokio::time::timeout(DEADLINE, pool.ask(&question)).await {
                Ok(Ok(outcome)) => {
                    let outcome = Arc::new(outcome);
                    this.cache.store(question, outcome.clone(), Instant::now());
                    Some(outcome)
                }
                Ok(Err(why)) => this.failed(&question.name, &why),
                Err(_) => this.failed(&question.name, &format!("no answer within {DEADLINE:?}")),
            };
            drop(sender.send(said));
        };
        match &self.runtime {
            None => drop(tokio::spawn(asking)),
            Some(runtime) => drop(runtime.spawn(asking)),
        }
        Some(flight)
    }

    fn failed(&self, name: &Name, why: &str) -> Option<Arc<Outcome>> {
        let mut told = self.told.lock();
        if told.last.is_some_and(|last| last.elapsed() < TELL_EVERY) {
            told.untold += 1;
            tracing::debug!(%name, why, "no upstream answered");
        } else {
            let untold = std::mem::take(&mut told.untold);
            told.last = Some(Instant::now());
            tracing::warn!(%name, why, untold, "no upstream answered; are the configured DNS upstreams reachable?");
        }
        None
    }
}

/// Takes a question off the list of those under way, however asking it ends.
struct Landing {
    this: Arc<Forwarder>,
    question: Question,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.this.flights.lock().remove(&self.question);
    }
}

impl Pool {
    /// Asks one after another, those that are well first, until one answers.
    async fn ask(&self, question: &Question) -> Result<Outcome, String> {
        let mut order = self.upstreams.clone();
        match self.policy {
            UpstreamPolicy::Sequential => {}
            UpstreamPolicy::Random => order.shuffle(&mut rand::rng()),
            UpstreamPolicy::RoundRobin => {
                let by = self.turn.fetch_add(1, Ordering::Relaxed) % order.len();
                order.rotate_left(by);
            }
        }
        if !order.iter().any(|u| u.is_up()) {
            // Probes may be what fails: better to ask somebody than nobody.
            self.metrics.all_down.inc();
        }
        order.sort_by_key(|u| !u.is_up());
        let mut why = String::new();
        for upstream in &order {
            let begin = Instant::now();
            // Taking a packet and saying nothing costs the whole time; the deadline is above all of them.
            match tokio::time::timeout(TIMEOUT, upstream.ask(request(question))).await {
                Ok(Ok(response)) => {
                    upstream.succeeded();
                    self.metrics.asked(&upstream.label, response.metadata.response_code, begin.elapsed());
                    return Ok(outcome(response));
                }
                Ok(Err(error)) => why = format!("{}: {error}", upstream.label),
                Err(_) => why = format!("{}: no answer within {TIMEOUT:?}", upstream.label),
            }
            let metrics = self.metrics.clone();
            upstream.failed(move |label| metrics.probe_failed(label));
            tracing::debug!(why, "a DNS upstream failed");
        }
        Err(why)
    }
}

fn request(question: &Question) -> DnsRequest {
    let mut options = DnsRequestOptions::default();
    options.edns_set_dnssec_ok = question.dnssec;
    options.recursion_desired = true;
    let mut request = DnsRequest::from_query(Query::query(question.name.clone(), question.kind), options);
    request.metadata.checking_disabled = question.unchecked;
    request
}

fn outcome(response: DnsResponse) -> Outcome {
    let (message, _) = response.into_parts();
    Outcome {
        code: message.metadata.response_code,
        authentic: message.metadata.authentic_data,
        answers: message.answers,
        authorities: message.authorities,
        additionals: message.additionals,
    }
}

/// The records of an answer as they are `age` seconds later.
pub(crate) fn aged(records: &[hickory_proto::rr::Record], age: Option<u32>) -> Vec<hickory_proto::rr::Record> {
    let mut records = records.to_vec();
    for record in &mut records {
        record.ttl = age.map_or(STALE_TTL, |age| record.ttl.saturating_sub(age));
    }
    records
}
