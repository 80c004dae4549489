//! Endpoints: one address that requests can be sent to, what is known of how it does, and the connections to it that wait.
//! What is known is a few atomic numbers: a request that is counted waits for nobody.

use crate::traffic::kept::Kept;
use crate::traffic::sessions::Sessions;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// After the first refused connection an endpoint is passed over this long; doubled for each further one.
const EJECT_BASE: Duration = Duration::from_millis(500);
/// The longest time an endpoint is passed over.
const EJECT_MAX: Duration = Duration::from_secs(30);
/// After so many bad answers that the Service says so, an endpoint is passed over this long, times how often it was.
const EXPEL_BASE: Duration = Duration::from_secs(10);
/// The longest time for that.
const EXPEL_MAX: Duration = Duration::from_secs(300);
/// After so long, a measured answer counts for about a third.
const MEMORY: Duration = Duration::from_secs(10);
/// The share of requests that an endpoint gets at least while it starts slowly.
const SLOWEST: f64 = 0.1;

/// One address that requests can be sent to.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Differs from every other endpoint's in this process, also from that of an earlier one at the same address.
    pub id: u64,
    /// Tells it from others in cookies, also after a restart; says nothing of its address.
    pub tag: u64,
    /// Milliseconds on [`clock`] when it came to others that were there; 0 for one that was among the first.
    came: u64,
    active: AtomicU32,
    failures: AtomicU32,
    /// Milliseconds on [`clock`]; 0 is not ejected.
    ejected_until: AtomicU64,
    /// Bad answers one after another, and how often that led to its being passed over.
    bad: AtomicU32,
    expelled: AtomicU32,
    expelled_until: AtomicU64,
    /// Active checks find it unhealthy.
    down: AtomicBool,
    /// A moving average of the time to an answer's head, in microseconds, as the bits of an `f64`; when it was set.
    latency: AtomicU64,
    measured: AtomicU64,
    /// Connections to it that wait for the next request (HTTP/1.1).
    pub kept: Kept,
    /// Connections to it that have room for requests (HTTP/2).
    pub sessions: Sessions,
}

/// Counts a request at its endpoint while it lives.
#[derive(Debug)]
pub struct InFlight {
    endpoint: Arc<Endpoint>,
    started: Instant,
}

impl Endpoint {
    /// A fresh endpoint, one of the first of its Service.
    pub fn new(address: SocketAddr) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            address,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            tag: {
                let mut hasher = DefaultHasher::new();
                address.hash(&mut hasher);
                hasher.finish()
            },
            came: 0,
            active: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            bad: AtomicU32::new(0),
            expelled: AtomicU32::new(0),
            expelled_until: AtomicU64::new(0),
            down: AtomicBool::new(false),
            latency: AtomicU64::new(0),
            measured: AtomicU64::new(0),
            kept: Kept::default(),
            sessions: Sessions::default(),
        }
    }

    /// One that comes to others that are there.
    pub fn late(address: SocketAddr) -> Self {
        Self { came: clock(), ..Self::new(address) }
    }

    /// Requests under way.
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// Passed over for now: it refused connections, gave bad answers, or is found unhealthy.
    pub fn ejected(&self) -> bool {
        let until = |time: &AtomicU64| {
            let until = time.load(Ordering::Relaxed);
            until != 0 && clock() < until
        };
        until(&self.ejected_until) || until(&self.expelled_until) || self.down.load(Ordering::Relaxed)
    }

    /// A connection could not be made.
    pub fn failed(&self) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).min(16);
        let pause = EJECT_BASE.saturating_mul(1 << failures).min(EJECT_MAX);
        self.ejected_until.store(after(pause), Ordering::Relaxed);
    }

    /// A connection was made.
    pub fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.ejected_until.store(0, Ordering::Relaxed);
        }
    }

    /// An answer was good.
    pub fn good(&self) {
        if self.bad.load(Ordering::Relaxed) != 0 {
            self.bad.store(0, Ordering::Relaxed);
        }
    }

    /// An answer was bad, or none came. True when it is the `limit`th one after another.
    pub fn bad(&self, limit: u32) -> bool {
        self.bad.fetch_add(1, Ordering::Relaxed) + 1 == limit
    }

    /// Passes it over for its bad answers.
    pub fn expel(&self) {
        let times = self.expelled.fetch_add(1, Ordering::Relaxed).min(64) + 1;
        self.bad.store(0, Ordering::Relaxed);
        self.expelled_until.store(after(EXPEL_BASE.saturating_mul(times).min(EXPEL_MAX)), Ordering::Relaxed);
    }

    /// What an active check found.
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }

    /// Whether active checks find it unhealthy.
    pub fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// The time to an answer's head: a peak counts at once, and is forgotten slowly.
    pub fn measure(&self, took: Duration) {
        let (new, now) = (took.as_secs_f64() * 1e6, clock());
        let old = f64::from_bits(self.latency.load(Ordering::Relaxed));
        let pause = now.saturating_sub(self.measured.swap(now, Ordering::Relaxed));
        let kept = (-(pause as f64) / MEMORY.as_millis() as f64).exp();
        let next = if new > old { new } else { old * kept + new * (1.0 - kept) };
        self.latency.store(next.to_bits(), Ordering::Relaxed);
    }

    /// That average in microseconds; none before the first answer.
    pub fn latency(&self) -> Option<f64> {
        (self.measured.load(Ordering::Relaxed) != 0).then(|| f64::from_bits(self.latency.load(Ordering::Relaxed)))
    }

    /// The part of a full share that it gets while it starts slowly, up to 1.
    pub fn share(&self, slow_start: Option<Duration>) -> f64 {
        let Some(time) = slow_start.filter(|_| self.came != 0) else { return 1.0 };
        let age = clock().saturating_sub(self.came) as f64;
        (age / (time.as_millis() as f64).max(1.0)).clamp(SLOWEST, 1.0)
    }
}

impl InFlight {
    /// Counts from now on.
    pub fn start(endpoint: Arc<Endpoint>) -> Self {
        endpoint.active.fetch_add(1, Ordering::Relaxed);
        Self { endpoint, started: Instant::now() }
    }

    /// The endpoint it is at.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// How long it has been there.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Milliseconds since the first call, at least 1.
pub(super) fn clock() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

fn after(pause: Duration) -> u64 {
    clock().saturating_add(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Endpoint {
        Endpoint::new(SocketAddr::from(([10, 0, 0, 1], 80)))
    }

    #[test]
    fn bad_answers_count_only_one_after_another() {
        let e = endpoint();
        assert!(!e.bad(3) && !e.bad(3));
        e.good();
        assert!(!e.bad(3) && !e.bad(3) && e.bad(3));
        e.expel();
        assert!(e.ejected());
        e.succeeded();
        assert!(e.ejected(), "a connection says nothing about answers");
        assert!(!e.bad(3), "it begins anew");
    }

    #[test]
    fn a_slow_answer_counts_at_once() {
        let e = endpoint();
        assert_eq!(e.latency(), None);
        e.measure(Duration::from_millis(2));
        e.measure(Duration::from_millis(50));
        assert_eq!(e.latency(), Some(50_000.0));
        e.measure(Duration::from_millis(2));
        let now = e.latency().unwrap();
        assert!(now > 40_000.0 && now <= 50_000.0, "{now}");
    }

    #[test]
    fn only_who_comes_late_starts_slowly() {
        let time = Some(Duration::from_secs(100));
        assert_eq!(endpoint().share(time), 1.0);
        let late = Endpoint::late(endpoint().address);
        assert_eq!((late.share(time), late.share(None)), (0.1, 1.0));
    }
}
