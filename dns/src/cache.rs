//! Answers of upstreams that are kept. In: questions, answers and the time of day as the caller knows it. Out: what is kept,
//! how old it is, and whether it should be fetched anew. Bounded, and pure but for its locks: no clock, no I/O.

use causeway_api::dns::DnsCache;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use lru::LruCache;
use parking_lot::Mutex;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Locks for each half.
const SHARDS: usize = 16;
/// Questions with a longer pause between them do not make an answer popular: CoreDNS' default.
const POPULAR_PAUSE: Duration = Duration::from_secs(60);
/// Seconds that whoever gets an answer past its end may keep it (RFC 8767, section 4).
pub const STALE_TTL: u32 = 30;

/// A question to upstreams.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    /// In lower case.
    pub name: Name,
    /// Of which type.
    pub kind: RecordType,
    /// Signatures are wanted too.
    pub dnssec: bool,
    /// The upstream shall not check signatures.
    pub unchecked: bool,
}

/// What an upstream said.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Its code.
    pub code: ResponseCode,
    /// It has checked the signatures.
    pub authentic: bool,
    /// The answer section, including aliases on the way.
    pub answers: Vec<Record>,
    /// The authority section.
    pub authorities: Vec<Record>,
    /// The additional section.
    pub additionals: Vec<Record>,
}

impl Outcome {
    fn is_positive(&self) -> bool {
        self.code == ResponseCode::NoError && !self.answers.is_empty()
    }

    /// For how long it may be kept; `None`: not at all.
    fn ttl(&self, limits: &DnsCache) -> Option<Duration> {
        if !matches!(self.code, ResponseCode::NoError | ResponseCode::NXDomain) {
            return None;
        }
        let answers = self.answers.iter().map(|r| r.ttl);
        // How long "there is none" holds is in the start of authority (RFC 2308).
        let negative = self.authorities.iter().filter_map(|r| match &r.data {
            RData::SOA(soa) => Some(r.ttl.min(soa.minimum)),
            _ => None,
        });
        let said = answers.chain(negative).min().unwrap_or(0);
        let most = if self.is_positive() { limits.max_ttl } else { limits.negative_max_ttl };
        Some(Duration::from_secs(said.max(limits.min_ttl).min(most).into()))
    }
}

/// What is kept about a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Look {
    /// Nothing.
    Miss,
    /// An answer.
    Fresh {
        /// The answer.
        outcome: Arc<Outcome>,
        /// Seconds since it was given.
        age: u32,
        /// It is popular and near its end: fetch it anew.
        prefetch: bool,
    },
    /// An answer past its end, for when there is none better.
    Stale(Arc<Outcome>),
}

struct Item {
    outcome: Arc<Outcome>,
    stored: Instant,
    ttl: Duration,
    /// Questions with no long pause between them.
    hits: u32,
    last: Instant,
    /// Told to fetch it anew, once.
    told: bool,
}

type Shard = Mutex<LruCache<Question, Item>>;

/// The kept answers: those with records and those without apart, so that neither crowds the other out.
pub struct Cache {
    positive: Vec<Shard>,
    negative: Vec<Shard>,
    limits: DnsCache,
}

impl Cache {
    /// An empty one.
    pub fn new(limits: DnsCache) -> Self {
        let shards = |items: usize| {
            let each = NonZeroUsize::new(items.div_ceil(SHARDS)).unwrap_or(NonZeroUsize::MIN);
            // Sparse: memory is taken as answers come.
            (0..SHARDS).map(|_| Mutex::new(LruCache::sparse(each))).collect()
        };
        Self { positive: shards(limits.positive_items), negative: shards(limits.negative_items), limits }
    }

    /// Its bounds.
    pub fn limits(&self) -> &DnsCache {
        &self.limits
    }

    /// Looks a question up.
    pub fn look(&self, question: &Question, now: Instant) -> Look {
        let shard = shard(question);
        let mut best = Look::Miss;
        for half in [&self.positive, &self.negative] {
            match self.look_in(&mut half[shard].lock(), question, now) {
                fresh @ Look::Fresh { .. } => return fresh,
                stale @ Look::Stale(_) if best == Look::Miss => best = stale,
                _ => {}
            }
        }
        best
    }

    fn look_in(&self, shard: &mut LruCache<Question, Item>, question: &Question, now: Instant) -> Look {
        let Some(item) = shard.get_mut(question) else { return Look::Miss };
        let age = now.saturating_duration_since(item.stored);
        if age >= item.ttl {
            let past = age - item.ttl;
            if past < Duration::from_secs(self.limits.serve_stale_seconds) {
                return Look::Stale(item.outcome.clone());
            }
            shard.pop(question);
            return Look::Miss;
        }
        let paused = now.saturating_duration_since(item.last) > POPULAR_PAUSE;
        item.hits = if paused { 1 } else { item.hits.saturating_add(1) };
        item.last = now;
        let amount = self.limits.prefetch_amount;
        let near = (item.ttl - age) * 100 <= item.ttl * u32::from(self.limits.prefetch_percentage);
        let prefetch = amount > 0 && item.hits >= amount && near && !item.told;
        item.told |= prefetch;
        Look::Fresh { outcome: item.outcome.clone(), age: u32::try_from(age.as_secs()).unwrap_or(u32::MAX), prefetch }
    }

    /// Keeps an answer, where it may be kept.
    pub fn store(&self, question: Question, outcome: Arc<Outcome>, now: Instant) {
        let Some(ttl) = outcome.ttl(&self.limits) else { return };
        let shard = shard(&question);
        let (to, other) = match outcome.is_positive() {
            true => (&self.positive, &self.negative),
            false => (&self.negative, &self.positive),
        };
        // What is said now replaces what was said before, also where that was of the other kind.
        other[shard].lock().pop(&question);
        let mut to = to[shard].lock();
        // A prefetched answer stays popular.
        let (hits, last) = to.peek(&question).map_or((0, now), |old| (old.hits, old.last));
        to.put(question, Item { outcome, stored: now, ttl, hits, last, told: false });
    }

    /// How many answers with records, and how many without, are kept.
    pub fn len(&self) -> (usize, usize) {
        let count = |half: &[Shard]| half.iter().map(|s| s.lock().len()).sum();
        (count(&self.positive), count(&self.negative))
    }

    /// True when nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == (0, 0)
    }
}

fn shard(question: &Question) -> usize {
    let mut hasher = DefaultHasher::new();
    question.hash(&mut hasher);
    usize::try_from(hasher.finish() % SHARDS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::{A, SOA};
    use proptest::prelude::*;
    use std::str::FromStr;

    fn question(name: &str) -> Question {
        Question { name: Name::from_str(name).unwrap(), kind: RecordType::A, dnssec: false, unchecked: false }
    }

    fn found(ttl: u32) -> Arc<Outcome> {
        let record = Record::from_rdata(Name::from_str("a.example.").unwrap(), ttl, RData::A(A::new(192, 0, 2, 1)));
        outcome(ResponseCode::NoError, vec![record], vec![])
    }

    fn none(code: ResponseCode, ttl: u32, minimum: u32) -> Arc<Outcome> {
        let name = Name::from_str("example.").unwrap();
        let soa = SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, minimum);
        outcome(code, vec![], vec![Record::from_rdata(name, ttl, RData::SOA(soa))])
    }

    fn outcome(code: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) -> Arc<Outcome> {
        Arc::new(Outcome { code, authentic: false, answers, authorities, additionals: vec![] })
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn answers_live_as_long_as_their_records_say_within_bounds() {
        let limits = DnsCache { min_ttl: 5, max_ttl: 100, negative_max_ttl: 50, ..DnsCache::default() };
        for (outcome, want) in [
            (found(60), Some(60)),
            (found(0), Some(5)),
            (found(4000), Some(100)),
            (none(ResponseCode::NXDomain, 30, 20), Some(20)),
            (none(ResponseCode::NoError, 10, 20), Some(10)),
            (none(ResponseCode::NXDomain, 900, 900), Some(50)),
            (outcome(ResponseCode::NXDomain, vec![], vec![]), Some(5)),
            (outcome(ResponseCode::ServFail, vec![], vec![]), None),
            (outcome(ResponseCode::Refused, vec![], vec![]), None),
        ] {
            assert_eq!(outcome.ttl(&limits), want.map(secs), "{outcome:?}");
        }
    }

    #[test]
    fn fresh_then_stale_then_gone() {
        let cache = Cache::new(DnsCache { serve_stale_seconds: 100, ..DnsCache::default() });
        let (q, begin) = (question("a.example."), Instant::now());
        assert_eq!(cache.look(&q, begin), Look::Miss);
        cache.store(q.clone(), found(60), begin);
        let fresh = |age| Look::Fresh { outcome: found(60), age, prefetch: false };
        assert_eq!(cache.look(&q, begin + secs(59)), fresh(59));
        assert_eq!(cache.look(&q, begin + secs(60)), Look::Stale(found(60)));
        assert_eq!(cache.look(&q, begin + secs(159)), Look::Stale(found(60)));
        assert_eq!(cache.look(&q, begin + secs(160)), Look::Miss);
        assert!(cache.is_empty());
        // A name that has gone is not served from what it once was.
        cache.store(q.clone(), found(60), begin);
        cache.store(q.clone(), none(ResponseCode::NXDomain, 10, 10), begin + secs(70));
        assert_eq!(
            cache.look(&q, begin + secs(75)),
            Look::Fresh { outcome: none(ResponseCode::NXDomain, 10, 10), age: 5, prefetch: false }
        );
        assert_eq!(cache.len(), (0, 1));
        // With signatures is another question.
        assert_eq!(cache.look(&Question { dnssec: true, ..q }, begin), Look::Miss);
    }

    #[test]
    fn popular_answers_are_fetched_before_they_end_and_once() {
        let limits = DnsCache { prefetch_amount: 3, prefetch_percentage: 20, ..DnsCache::default() };
        let cache = Cache::new(limits);
        let (q, begin) = (question("a.example."), Instant::now());
        cache.store(q.clone(), found(100), begin);
        let prefetch = |at| matches!(cache.look(&q, begin + secs(at)), Look::Fresh { prefetch: true, .. });
        assert!(!prefetch(10) && !prefetch(40) && !prefetch(79), "too early");
        assert!(prefetch(80));
        assert!(!prefetch(81), "told already");
        // Fetched, it is popular still; a pause ends that.
        cache.store(q.clone(), found(100), begin + secs(82));
        assert!(!prefetch(120) && prefetch(170));
        cache.store(q.clone(), found(100), begin + secs(171));
        assert!(!prefetch(264) && !prefetch(265) && prefetch(266));
    }

    #[test]
    fn neither_half_grows_beyond_its_bound() {
        let cache = Cache::new(DnsCache { positive_items: 160, negative_items: 32, ..DnsCache::default() });
        let now = Instant::now();
        for i in 0..5000 {
            cache.store(question(&format!("p{i}.example.")), found(60), now);
            cache.store(question(&format!("n{i}.example.")), none(ResponseCode::NXDomain, 60, 60), now);
        }
        let (positive, negative) = cache.len();
        assert!(positive <= 160 && positive > 100 && negative <= 32, "{positive} {negative}");
    }

    proptest! {
        /// Whatever happens when, nothing is called fresh past its end, nor stale beyond what is allowed.
        #[test]
        fn no_answer_outlives_its_time(steps in prop::collection::vec((0u8..3, 0u64..40, 1u32..60), 1..80)) {
            let limits = DnsCache { min_ttl: 1, serve_stale_seconds: 30, prefetch_amount: 2, ..DnsCache::default() };
            let cache = Cache::new(limits);
            let (q, mut now, mut last) = (question("a.example."), Instant::now(), None);
            for (what, pass, ttl) in steps {
                now += secs(pass);
                match what {
                    0 => { cache.store(q.clone(), found(ttl), now); last = Some((now, ttl)); }
                    _ => match (cache.look(&q, now), last) {
                        (Look::Fresh { age, .. }, Some((at, ttl))) => {
                            prop_assert!(now - at < secs(ttl.into()));
                            prop_assert_eq!(secs(age.into()), now - at);
                        }
                        (Look::Stale(_), Some((at, ttl))) => {
                            prop_assert!(now - at >= secs(ttl.into()) && now - at < secs(u64::from(ttl) + 30));
                        }
                        (Look::Miss, Some((at, ttl))) => prop_assert!(now - at >= secs(u64::from(ttl) + 30)),
                        (look, None) => prop_assert_eq!(look, Look::Miss),
                    },
                }
            }
        }
    }
}
