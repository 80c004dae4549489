//! What the dispatcher answers: a seat, or why there is none.

use crate::dispatcher::Shared;
use crate::snapshot::FlowStats;
use std::fmt;
use std::sync::Arc;
use tokio::time::Instant;

/// Where a request belongs: names for metrics and logs, uids for the headers `X-Kubernetes-PF-FlowSchema-UID` and
/// `X-Kubernetes-PF-PriorityLevel-UID` (clients are not told the names).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flow {
    /// The FlowSchema's name.
    pub schema: Arc<str>,
    /// Its uid; empty while the API does not have it.
    pub schema_uid: Arc<str>,
    /// The PriorityLevelConfiguration's name.
    pub level: Arc<str>,
    /// Its uid; empty while the API does not have it.
    pub level_uid: Arc<str>,
}

/// Why a request was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The level has queues, and the shortest in reach of this flow is full.
    QueueFull,
    /// The level has no queues, and no seat is free.
    ConcurrencyLimit,
    /// It waited as long as it might.
    TimeOut,
}

impl Reason {
    /// As the label `reason` of upstream's metrics has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue-full",
            Self::ConcurrencyLimit => "concurrency-limit",
            Self::TimeOut => "time-out",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A request that was not let in: to be answered with 429, `Retry-After` and the plain text
/// [`MESSAGE`](Rejected::MESSAGE).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Why.
    pub reason: Reason,
    /// For `Retry-After`.
    pub retry_after_seconds: u32,
    /// Where the request belongs.
    pub flow: Arc<Flow>,
}

impl Rejected {
    /// Upstream's body of the answer; it tells nothing of the reason.
    pub const MESSAGE: &str = "Too many requests, please try again later.";
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Flow { schema, level, .. } = &*self.flow;
        write!(f, "rejected by priority level {level:?} (flow schema {schema:?}): {}", self.reason)
    }
}

impl std::error::Error for Rejected {}

/// A place in a level's book: seats in use, and the queue they are charged to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Charge {
    pub level: u64,
    pub queue: Option<u32>,
    pub seats: u32,
    pub since: Instant,
}

/// The right to run. Dropped, it makes room for the next: at the request's end, or when a watch has sent its initial
/// state.
#[must_use = "a seat that is dropped is free again"]
pub struct Seat {
    pub(crate) shared: Arc<Shared>,
    pub(crate) flow: Arc<Flow>,
    pub(crate) stats: Arc<FlowStats>,
    pub(crate) charge: Charge,
}

impl Seat {
    /// Where the request belongs.
    pub fn flow(&self) -> &Flow {
        &self.flow
    }

    /// How many seats it has.
    pub fn seats(&self) -> u32 {
        self.charge.seats
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("flow", &self.flow).field("seats", &self.charge.seats).finish_non_exhaustive()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let took = self.charge.since.elapsed();
        let seats = u64::from(self.charge.seats);
        self.stats.count(|c| {
            c.executing -= 1;
            c.executing_seats -= seats;
            c.executed += took;
        });
        self.shared.release(self.charge, took);
    }
}
