//! Which endpoint a request goes to, by what its Service asks for. In: a Service's settings, its endpoints, where the
//! request has been already, and what it is known by. Out: an endpoint. Endpoints that are passed over for now come
//! last, and are better than none.

use super::endpoint::{Endpoint, clock};
use super::upstream::Upstream;
use http::HeaderName;
use pingora_ketama::{Bucket, Continuum};
use rand::Rng as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// What a Service asks for, by its annotations. The default asks for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balance {
    /// How endpoints are chosen.
    pub algorithm: Algorithm,
    /// Endpoints that come to others get more and more of their share for so long.
    pub slow_start: Option<Duration>,
    /// Requests at a time, at all of its endpoints together; more get 503.
    pub max_requests: Option<u32>,
    /// After so many bad answers (5xx, or none) one after another an endpoint is passed over for a while.
    pub eject_after: Option<u32>,
    /// Further tries in percent of requests.
    pub retry_budget: u32,
    /// Endpoints are asked whether they are well.
    pub check: Option<Check>,
    /// TCP connections begin with the PROXY protocol of this version.
    pub announce: Option<ProxyVersion>,
}

/// How endpoints are chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// The less busy of two at random.
    #[default]
    LeastRequest,
    /// One after another.
    RoundRobin,
    /// Of two at random, the one whose answers come sooner and that has less to do.
    Ewma,
    /// By what a request is known by, on a ring: an endpoint that comes or goes moves only its own part.
    RingHash(HashBy),
}

/// What a request is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashBy {
    /// The client's address.
    Client,
    /// The path with its query.
    Uri,
    /// A header's value; the client's address where it is missing.
    Header(HeaderName),
    /// A cookie's value; likewise.
    Cookie(Box<str>),
}

/// How endpoints are asked whether they are well: `GET` over HTTP/1.1, or only a connection where they speak another
/// protocol. Three failures one after another are believed, and two successes after that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The path.
    pub path: Box<str>,
    /// From one time to the next; an answer must come within it.
    pub interval: Duration,
}

/// Versions of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// A binary header.
    V2,
}

impl Default for Balance {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::default(),
            slow_start: None,
            max_requests: None,
            eject_after: None,
            retry_budget: 20,
            check: None,
            announce: None,
        }
    }
}

/// What a client is known by.
pub fn key_of(client: IpAddr) -> Vec<u8> {
    client.to_canonical().to_string().into_bytes()
}

/// Settings with what follows from them and the endpoints.
#[derive(Default)]
pub(super) struct Tuned {
    pub(super) balance: Arc<Balance>,
    ring: Option<Continuum>,
}

impl std::fmt::Debug for Tuned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tuned").field("balance", &self.balance).finish_non_exhaustive()
    }
}

impl Tuned {
    pub(super) fn new(balance: Arc<Balance>, endpoints: &[Arc<Endpoint>]) -> Self {
        let buckets = || endpoints.iter().map(|e| Bucket::new(e.address, 1)).collect::<Vec<_>>();
        let ring = matches!(balance.algorithm, Algorithm::RingHash(_)).then(|| Continuum::new(&buckets()));
        Self { balance, ring }
    }
}

/// How many further tries an upstream's requests may have: a part of them, and ten a second for those that come rarely
/// (as GEP-3388 has it by default).
/// What fails everywhere is not made worse by asking again.
#[derive(Debug)]
pub(super) struct Budget {
    /// Thousandths of a try.
    left: AtomicI64,
    filled: AtomicU64,
}

/// Tries that are saved up.
const RESERVE: i64 = 100_000;
/// Those there are at the start.
const START: i64 = 10_000;
const TRY: i64 = 1000;
/// Thousandths of a try that are there anyway, a millisecond.
const ANYWAY: i64 = 10;

impl Default for Budget {
    fn default() -> Self {
        Self { left: AtomicI64::new(START), filled: AtomicU64::new(clock()) }
    }
}

impl Budget {
    fn put(&self, thousandths: i64) {
        if self.left.load(Ordering::Relaxed) < RESERVE {
            self.left.fetch_add(thousandths, Ordering::Relaxed);
        }
    }

    /// Whether there is a try left, which is taken; `now` is the time on [`clock`].
    fn take(&self, now: u64) -> bool {
        let pause = now.saturating_sub(self.filled.swap(now, Ordering::Relaxed));
        if self.left.load(Ordering::Relaxed) < START {
            self.put(i64::try_from(pause).unwrap_or(START).saturating_mul(ANYWAY).min(START));
        }
        let may = self.left.fetch_sub(TRY, Ordering::Relaxed) >= TRY;
        if !may {
            self.left.fetch_add(TRY, Ordering::Relaxed);
        }
        may
    }
}

impl Upstream {
    /// Follows other settings from now on.
    pub fn tune(&self, balance: Balance) {
        if *self.tuned.load().balance != balance {
            self.tuned.store(Arc::new(Tuned::new(Arc::new(balance), &self.endpoints.load())));
        }
    }

    /// What its Service asks for.
    pub fn balance(&self) -> Arc<Balance> {
        Arc::clone(&self.tuned.load().balance)
    }

    /// How its endpoints are told who the client is.
    pub fn announce(&self) -> Option<ProxyVersion> {
        self.tuned.load().balance.announce
    }

    /// Whether the time to an answer counts.
    pub fn is_by_time(&self) -> bool {
        self.tuned.load().balance.algorithm == Algorithm::Ewma
    }

    /// A request comes: it may be followed by a part of a further try. False when there are too many already.
    pub fn admit(&self) -> bool {
        let tuned = self.tuned.load();
        self.budget.put(i64::from(tuned.balance.retry_budget) * TRY / 100);
        let busy = || self.endpoints.load().iter().map(|e| e.active()).sum::<u32>();
        tuned.balance.max_requests.is_none_or(|most| busy() < most)
    }

    /// Whether there may be another try of a request that an endpoint may have worked on already.
    pub fn may_repeat(&self) -> bool {
        self.budget.take(clock())
    }

    /// An answer was bad, or none came. True when the endpoint is passed over from now on: never more than half of all.
    pub fn bad_answer(&self, endpoint: &Endpoint) -> bool {
        let Some(limit) = self.tuned.load().balance.eject_after else { return false };
        if !endpoint.bad(limit) {
            return false;
        }
        let endpoints = self.endpoints.load();
        let passed_over = endpoints.iter().filter(|e| e.ejected()).count();
        let may = (passed_over + 1) * 2 <= endpoints.len();
        if may {
            endpoint.expel();
        } else {
            endpoint.good();
        }
        may
    }

    /// The settings by which a request's key is made, when one is needed.
    pub fn hash_by(&self) -> Option<HashBy> {
        match &self.tuned.load().balance.algorithm {
            Algorithm::RingHash(by) => Some(by.clone()),
            _ => None,
        }
    }

    /// An endpoint for a request that has been to `tried` (ids) already, and is known by `key`. None when there is no
    /// endpoint, or none that has not been tried.
    pub fn pick(&self, tried: &[u64], key: Option<&[u8]>) -> Option<Arc<Endpoint>> {
        let endpoints = self.endpoints.load();
        let n = endpoints.len();
        let fresh = |e: &Endpoint| !tried.contains(&e.id);
        if n <= 1 {
            return endpoints.first().filter(|e| fresh(e)).cloned();
        }
        let tuned = self.tuned.load();
        let usable = |e: &Endpoint| fresh(e) && !e.ejected();
        let slow = tuned.balance.slow_start;
        let first = match (&tuned.balance.algorithm, &tuned.ring, key) {
            (Algorithm::RingHash(_), Some(ring), Some(key)) => {
                let found = on_ring(ring, key, &endpoints, usable);
                if found.is_some() {
                    return found;
                }
                0
            }
            (Algorithm::RoundRobin, ..) => self.turn.fetch_add(1, Ordering::Relaxed) % n,
            _ => rand::rng().random_range(0..n),
        };
        let around = || (0..n).map(|i| &endpoints[(first + i) % n]);
        if matches!(tuned.balance.algorithm, Algorithm::RoundRobin) {
            let ripe = |e: &Endpoint| slow.is_none() || rand::rng().random::<f64>() < e.share(slow);
            if let Some(e) = around().find(|e| usable(e) && ripe(e)) {
                return Some(Arc::clone(e));
            }
        } else {
            let second = (first + 1 + rand::rng().random_range(0..n - 1)) % n;
            let (a, b) = (&endpoints[first], &endpoints[second]);
            match (usable(a), usable(b)) {
                (true, true) => {
                    let by_time = matches!(tuned.balance.algorithm, Algorithm::Ewma);
                    return Some(Arc::clone(better(a, b, by_time, slow)));
                }
                (true, false) => return Some(Arc::clone(a)),
                (false, true) => return Some(Arc::clone(b)),
                (false, false) => {}
            }
        }
        around().find(|e| usable(e)).or_else(|| around().find(|e| fresh(e))).cloned()
    }
}

/// The one of two that has less to do; with a slow start counted as if it had more. By time, what each request there
/// takes counts as well, where it is known of both.
fn better<'a>(a: &'a Arc<Endpoint>, b: &'a Arc<Endpoint>, by_time: bool, slow: Option<Duration>) -> &'a Arc<Endpoint> {
    if !by_time && slow.is_none() {
        return if b.active() < a.active() { b } else { a };
    }
    let times = if by_time { a.latency().zip(b.latency()) } else { None };
    let (of_a, of_b) = times.unwrap_or((1.0, 1.0));
    let cost = |e: &Endpoint, time: f64| time.max(1.0) * f64::from(e.active() + 1) / e.share(slow);
    if cost(b, of_b) < cost(a, of_a) { b } else { a }
}

/// The first one on the ring that will do.
fn on_ring(
    ring: &Continuum,
    key: &[u8],
    endpoints: &[Arc<Endpoint>],
    usable: impl Fn(&Endpoint) -> bool,
) -> Option<Arc<Endpoint>> {
    /// Points that are looked at: with half of the endpoints unusable, one in a thousand million looks is in vain.
    const POINTS: usize = 256;
    let at = |address: &SocketAddr| endpoints.iter().find(|e| e.address == *address);
    ring.node_iter(key).take(POINTS).filter_map(at).find(|e| usable(e)).cloned()
}

#[cfg(test)]
mod tests {
    use super::super::upstream::{BackendKey, Protocol};
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn upstream(n: u8, balance: Balance) -> Upstream {
        let u = Upstream::new(BackendKey::External { name: "x".into(), port: 1, protocol: Protocol::Http1 });
        u.tune(balance);
        u.set(&addresses(0..n));
        u
    }

    fn addresses(numbers: impl Iterator<Item = u8>) -> Vec<SocketAddr> {
        numbers.map(|i| SocketAddr::from(([10, 0, 0, i], 80))).collect()
    }

    fn by(algorithm: Algorithm) -> Balance {
        Balance { algorithm, ..Balance::default() }
    }

    fn count(u: &Upstream, times: usize) -> BTreeMap<SocketAddr, usize> {
        let mut all = BTreeMap::new();
        for _ in 0..times {
            *all.entry(u.pick(&[], None).unwrap().address).or_default() += 1;
        }
        all
    }

    #[test]
    fn one_after_another_is_even() {
        let u = upstream(4, by(Algorithm::RoundRobin));
        assert!(count(&u, 40).values().all(|n| *n == 10));
        u.endpoints()[1].failed();
        assert_eq!(count(&u, 40).len(), 3);
    }

    #[test]
    fn sooner_answers_get_more() {
        let u = upstream(2, by(Algorithm::Ewma));
        u.endpoints()[0].measure(Duration::from_millis(100));
        assert_eq!(count(&u, 50).len(), 2, "of one nothing is known yet");
        u.endpoints()[1].measure(Duration::from_millis(1));
        assert_eq!(count(&u, 50).keys().collect::<Vec<_>>(), [&u.endpoints()[1].address]);
    }

    #[test]
    fn a_key_stays_and_few_move() {
        let u = upstream(10, by(Algorithm::RingHash(HashBy::Client)));
        let keys: Vec<String> = (0..1000).map(|i| format!("client {i}")).collect();
        let all = |u: &Upstream| -> Vec<SocketAddr> {
            keys.iter().map(|k| u.pick(&[], Some(k.as_bytes())).unwrap().address).collect()
        };
        let before = all(&u);
        assert_eq!(before, all(&u));
        assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 10);
        u.set(&addresses(1..10));
        let after = all(&u);
        let gone = addresses(0..1)[0];
        let moved = before.iter().zip(&after).filter(|(b, a)| a != b);
        assert!(moved.clone().count() > 0 && moved.clone().all(|(b, _)| *b == gone), "only those of the one that went");
        // One that is passed over for now gives its keys to others, and gets them back.
        let one = u.endpoints()[3].clone();
        one.failed();
        assert!(!all(&u).contains(&one.address));
        one.succeeded();
        assert_eq!(all(&u), after);
    }

    #[test]
    fn no_more_than_half_are_passed_over_for_their_answers() {
        let u = upstream(4, Balance { eject_after: Some(2), ..Balance::default() });
        let all = u.endpoints();
        let ejected: Vec<bool> = all.iter().map(|e| [u.bad_answer(e), u.bad_answer(e)][1]).collect();
        assert_eq!(ejected, [true, true, false, false]);
        assert_eq!(count(&u, 50).len(), 2);
    }

    #[test]
    fn further_tries_are_a_part_of_requests_and_some_anyway() {
        let u = upstream(2, Balance::default());
        let start = u.budget.filled.load(Ordering::Relaxed);
        let tries = |now| std::iter::from_fn(|| u.budget.take(now).then_some(())).take(100).count();
        assert_eq!(tries(start), 10);
        for _ in 0..50 {
            assert!(u.admit());
        }
        assert_eq!(tries(start), 10, "a fifth of fifty");
        assert_eq!(tries(start + 350), 3, "ten a second");
    }

    #[test]
    fn too_many_requests_are_not_admitted() {
        use super::super::endpoint::InFlight;
        let u = upstream(2, Balance { max_requests: Some(2), ..Balance::default() });
        let one = InFlight::start(u.endpoints()[0].clone());
        assert!(u.admit());
        let _two = InFlight::start(u.endpoints()[1].clone());
        assert!(!u.admit());
        drop(one);
        assert!(u.admit());
    }

    #[test]
    fn who_comes_late_starts_slowly() {
        let slow = Some(Duration::from_secs(1000));
        for algorithm in [Algorithm::RoundRobin, Algorithm::LeastRequest] {
            let u = upstream(1, Balance { slow_start: slow, ..by(algorithm) });
            u.set(&addresses(0..2));
            let late = count(&u, 400).get(&addresses(1..2)[0]).copied().unwrap_or(0);
            assert!(late < 100, "{late} of 400");
        }
    }
}
