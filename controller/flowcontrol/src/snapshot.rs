//! Counters, for metrics.
//!
//! In: what the dispatcher counts. Out: numbers by level and by flow schema. The only labels are names of configured
//! objects: nobody without the right to write those can make more of them.

use crate::seat::Reason;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// What is counted for a FlowSchema in a level (upstream: `apiserver_flowcontrol_*`).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FlowCounters {
    /// The FlowSchema.
    pub schema: Arc<str>,
    /// The PriorityLevelConfiguration.
    pub level: Arc<str>,
    /// Requests that got a seat (`dispatched_requests_total`).
    pub dispatched: u64,
    /// Requests that did not, because their queue was full (`rejected_requests_total{reason="queue-full"}`).
    pub queue_full: u64,
    /// … because the level has no queues and no free seats (`concurrency-limit`).
    pub concurrency_limit: u64,
    /// … because they waited too long (`time-out`).
    pub time_out: u64,
    /// … because the client went away while they waited (`cancelled`).
    pub cancelled: u64,
    /// Requests waiting now (`current_inqueue_requests`).
    pub in_queue: u64,
    /// Requests running now (`current_executing_requests`).
    pub executing: u64,
    /// Seats in use now (`current_executing_seats`).
    pub executing_seats: u64,
    /// How long all requests, also those that were rejected, waited together (`request_wait_duration_seconds_sum`);
    /// their number is the sum of those dispatched and rejected.
    pub waited: Duration,
    /// How long those that ended held their seats together (`request_execution_seconds_sum`).
    pub executed: Duration,
}

impl FlowCounters {
    pub(crate) fn seated(&mut self, seats: u32) {
        self.dispatched += 1;
        self.executing += 1;
        self.executing_seats += u64::from(seats);
    }

    pub(crate) fn rejected(&mut self, reason: Reason) {
        match reason {
            Reason::QueueFull => self.queue_full += 1,
            Reason::ConcurrencyLimit => self.concurrency_limit += 1,
            Reason::TimeOut => self.time_out += 1,
        }
    }
}

/// What a level has and how much of it is in use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LevelCounters {
    /// The PriorityLevelConfiguration.
    pub level: Arc<str>,
    /// Its share of the server's seats (`nominal_limit_seats`).
    pub nominal: u64,
    /// What nobody else ever gets of it (`lower_limit_seats`).
    pub lower: u64,
    /// The most it ever gets (`upper_limit_seats`).
    pub upper: u64,
    /// Requests waiting now.
    pub in_queue: u64,
    /// Requests running now.
    pub executing: u64,
    /// Seats in use now.
    pub executing_seats: u64,
    /// No longer configured: goes away with its last request.
    pub quiescing: bool,
}

/// All counters at one time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// By level, in the order of their names.
    pub levels: Vec<LevelCounters>,
    /// By level and schema, in the order in which schemas are tried.
    pub flows: Vec<FlowCounters>,
    /// Seats of the server.
    pub seats: u64,
    /// Of them in use, or kept for a level.
    pub held: u64,
}

/// Counters of a schema; they outlive a reconfiguration.
#[derive(Debug, Default)]
pub(crate) struct FlowStats(Mutex<FlowCounters>);

impl FlowStats {
    pub fn count(&self, change: impl FnOnce(&mut FlowCounters)) {
        change(&mut self.0.lock());
    }

    pub fn read(&self) -> FlowCounters {
        self.0.lock().clone()
    }
}
