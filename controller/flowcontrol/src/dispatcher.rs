//! Classifies requests and lets them in.
//!
//! In: configuration, and the facts of each request. Out: seats. One lock over all levels: what it guards takes less
//! than a microsecond, and it lets levels lend each other seats exactly.

use crate::config::{Applied, Config};
use crate::level::{Place, Waiter};
use crate::matching::{self, Class, Facts};
use crate::pool::{Arrival, Pool};
use crate::seat::{Charge, Flow, Reason, Rejected, Seat};
use crate::snapshot::{FlowCounters, FlowStats, Snapshot};
use crate::width::Width;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::Value;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Upstream begins with a second, too.
const RETRY_AFTER_SECONDS: u32 = 1;
/// How often a request is classified anew because its level went away meanwhile.
const MOST_ATTEMPTS: usize = 10;

/// A configuration in use: `ids[i]` is what the pool calls the i-th level.
struct Active {
    config: Config,
    ids: Vec<u64>,
}

pub(crate) struct Shared {
    active: ArcSwap<Active>,
    pool: Mutex<Pool>,
    /// Keyed by chance at start: nobody can look for a user name whose hand of queues is another's.
    hasher: RandomState,
}

impl Shared {
    pub fn release(&self, charge: Charge, took: Duration) {
        self.pool.lock().release(charge, took);
    }
}

/// Lets requests in, by priority and fairly. Cheap to clone.
#[derive(Clone)]
pub struct Dispatcher {
    shared: Arc<Shared>,
}

impl Dispatcher {
    /// With upstream's default objects, and this many seats (upstream: 600, the sum of `--max-requests-inflight` and
    /// `--max-mutating-requests-inflight`).
    pub fn new(seats: u32) -> Self {
        let active = Active { config: Config::read(&[], &[], |_, _| None), ids: Vec::new() };
        let shared = Shared {
            active: ArcSwap::from_pointee(active),
            pool: Mutex::new(Pool::default()),
            hasher: RandomState::new(),
        };
        let dispatcher = Self { shared: Arc::new(shared) };
        let objects = crate::defaults::objects();
        let (schemas, levels): (Vec<_>, Vec<_>) = objects.into_iter().partition(|o| o["kind"] == "FlowSchema");
        dispatcher.configure(&schemas, &levels, seats);
        dispatcher
    }

    /// Takes all objects there are. Requests that run or wait keep their places, also where their level goes away.
    /// Mandatory objects that are missing are supplied.
    pub fn configure(&self, schemas: &[Value], levels: &[Value], total_seats: u32) -> Applied {
        // Two at once: each reads the other's counters or none; the lock orders them.
        let mut pool = self.shared.pool.lock();
        let old = self.shared.active.load();
        let stats = |schema: &str, level: &str| {
            let same = |f: &Flow| &*f.schema == schema && &*f.level == level;
            old.config.schemas.iter().find(|s| same(&s.flow)).map(|s| Arc::clone(&s.stats))
        };
        let config = Config::read(schemas, levels, stats);
        let ids = pool.configure(&config.levels, total_seats);
        let applied = config.applied.clone();
        // Before the lock is free: who finds a level gone finds the new configuration.
        self.shared.active.store(Arc::new(Active { config, ids }));
        applied
    }

    /// Where a request belongs.
    pub fn classify(&self, facts: &Facts<'_>) -> Class {
        let active = self.shared.active.load();
        match matching::classify(&active.config.schemas, facts) {
            Some(schema) => {
                Class { flow: Arc::clone(&schema.flow), distinguisher: schema.distinguisher.of(facts).to_owned() }
            }
            None => Class { flow: Arc::default(), distinguisher: String::new() },
        }
    }

    /// Lets a request in, now or when its turn comes. The future may be dropped at any time: the request then leaves
    /// its queue. The seat is to be held while the request runs; of a watch, until its initial state has been sent.
    pub async fn admit(&self, facts: &Facts<'_>, width: Width) -> Result<Seat, Rejected> {
        match self.start(facts, width.seats) {
            Start::Done(result) => result,
            Start::Wait(ticket) => ticket.wait(width.wait).await,
        }
    }

    fn start(&self, facts: &Facts<'_>, seats: u32) -> Start {
        for _ in 0..MOST_ATTEMPTS {
            let active = self.shared.active.load();
            let Some(schema) = matching::classify(&active.config.schemas, facts) else { break };
            let Some(id) = active.ids.get(schema.level) else { break };
            let hash = self.shared.hasher.hash_one((&schema.flow.schema, schema.distinguisher.of(facts)));
            let (flow, stats) = (Arc::clone(&schema.flow), Arc::clone(&schema.stats));
            let mut receiver = None;
            let waiter = |seats| {
                let (granted, listens) = oneshot::channel();
                receiver = Some(listens);
                stats.count(|c| c.in_queue += 1);
                Waiter { seats, since: Instant::now(), stats: Arc::clone(&stats), granted, arrived_at: 0 }
            };
            let arrival = self.shared.pool.lock().arrive(*id, seats, hash, waiter);
            return match (arrival, receiver) {
                (Arrival::Gone, _) => continue,
                (Arrival::Seated(charge), _) => {
                    stats.count(|c| c.seated(charge.seats));
                    Start::Done(Ok(Seat { shared: Arc::clone(&self.shared), flow, stats, charge }))
                }
                (Arrival::Waiting(place), Some(granted)) => {
                    let since = Instant::now();
                    Start::Wait(Ticket {
                        shared: Arc::clone(&self.shared),
                        flow,
                        stats,
                        place,
                        granted,
                        since,
                        done: false,
                    })
                }
                (Arrival::Rejected(reason), receiver) => {
                    stats.count(|c| {
                        c.in_queue -= u64::from(receiver.is_some());
                        c.rejected(reason);
                    });
                    Start::Done(Err(Rejected { reason, retry_after_seconds: RETRY_AFTER_SECONDS, flow }))
                }
                (Arrival::Waiting(_), None) => break,
            };
        }
        // Not reached: there always is `catch-all`, and a level of which the pool knows.
        let (reason, flow) = (Reason::ConcurrencyLimit, Arc::default());
        Start::Done(Err(Rejected { reason, retry_after_seconds: RETRY_AFTER_SECONDS, flow }))
    }

    /// All counters.
    pub fn snapshot(&self) -> Snapshot {
        let (levels, seats, held) = self.shared.pool.lock().counters();
        let active = self.shared.active.load();
        let flows = active.config.schemas.iter().map(|s| FlowCounters {
            schema: Arc::clone(&s.flow.schema),
            level: Arc::clone(&s.flow.level),
            ..s.stats.read()
        });
        Snapshot { levels, flows: flows.collect(), seats, held }
    }
}

enum Start {
    Done(Result<Seat, Rejected>),
    Wait(Ticket),
}

/// A waiting request. Dropped, it leaves its queue, or gives back what it has just been granted.
struct Ticket {
    shared: Arc<Shared>,
    flow: Arc<Flow>,
    stats: Arc<FlowStats>,
    place: Place,
    granted: oneshot::Receiver<Charge>,
    since: Instant,
    done: bool,
}

impl Ticket {
    async fn wait(mut self, longest: Duration) -> Result<Seat, Rejected> {
        if let Ok(Ok(charge)) = tokio::time::timeout(longest, &mut self.granted).await {
            return Ok(self.seat(charge));
        }
        match self.leave(Some(Reason::TimeOut)) {
            // Granted at the last moment.
            Some(seat) => Ok(seat),
            None => Err(Rejected {
                reason: Reason::TimeOut,
                retry_after_seconds: RETRY_AFTER_SECONDS,
                flow: Arc::clone(&self.flow),
            }),
        }
    }

    fn seat(&mut self, charge: Charge) -> Seat {
        self.done = true;
        let (shared, flow, stats) = (Arc::clone(&self.shared), Arc::clone(&self.flow), Arc::clone(&self.stats));
        Seat { shared, flow, stats, charge }
    }

    /// Leaves the queue; the seat, when it has already been granted. No reason: the client went away.
    fn leave(&mut self, reason: Option<Reason>) -> Option<Seat> {
        self.done = true;
        // In a statement of its own: the lock must be free when a seat is dropped.
        let left = self.shared.pool.lock().leave(self.place);
        if !left {
            return self.granted.try_recv().ok().map(|charge| self.seat(charge));
        }
        let waited = self.since.elapsed();
        self.stats.count(|c| {
            c.in_queue -= 1;
            c.waited += waited;
            match reason {
                Some(reason) => c.rejected(reason),
                None => c.cancelled += 1,
            }
        });
        None
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.done {
            drop(self.leave(None));
        }
    }
}
