//! The server's seats, and who of the levels gets the next.
//!
//! In: arrivals, ends, departures. Out: grants. Every level has a nominal number of seats by its shares. What it does
//! not lend is kept free for it; the rest is anybody's who may borrow, at once and seat by seat. A lender gets its
//! seats back as they are freed: levels below their nominal number come before those above, the one with the least of
//! its number first, and while such a level waits nobody above takes a seat.
//!
//! Upstream reaches the same end by limits that it computes anew every ten seconds from the demand of the time before;
//! here there is nothing to compute, and a lender waits for the end of one request instead of ten seconds. Seats in use
//! by the exempt level count: others borrow less, but keep what they never lend.

use crate::config::{LevelSpec, Response};
use crate::level::{Level, Place, Waiter};
use crate::seat::{Charge, Reason};
use crate::snapshot::LevelCounters;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What an arrival comes to.
pub(crate) enum Arrival {
    Seated(Charge),
    Waiting(Place),
    Rejected(Reason),
    /// The level is gone: classify anew.
    Gone,
}

#[derive(Default)]
pub(crate) struct Pool {
    levels: BTreeMap<u64, Level>,
    ids: u64,
    /// As configured.
    seats: u64,
    /// Not below what is kept for the levels together, which rounding up may make more than `seats`.
    limit: u64,
    /// The sum over levels of what is used or kept for them.
    held: u64,
    waiting: u64,
}

impl Pool {
    /// Takes a new configuration; the ids of its levels, in their order. Levels that are gone serve those who wait and
    /// then go.
    pub fn configure(&mut self, specs: &[LevelSpec], seats: u32) -> Vec<u64> {
        self.seats = u64::from(seats);
        for level in self.levels.values_mut() {
            level.quiescing = true;
        }
        let mut ids = Vec::with_capacity(specs.len());
        for spec in specs {
            let known = self.levels.iter_mut().find(|(_, l)| l.name == spec.name);
            let id = if let Some((id, level)) = known {
                level.spec = spec.clone();
                level.quiescing = false;
                *id
            } else {
                self.ids += 1;
                self.levels.insert(self.ids, Level::new(spec.clone()));
                self.ids
            };
            ids.push(id);
        }
        self.apportion();
        self.dispatch();
        ids
    }

    /// Forgets levels without use, and divides the seats among the others.
    fn apportion(&mut self) {
        self.levels.retain(|_, l| !(l.quiescing && l.idle()));
        let shares = self.levels.values().map(|l| l.spec.shares).sum();
        for level in self.levels.values_mut() {
            level.apportion(self.seats, shares);
        }
        self.limit = self.seats.max(self.levels.values().map(|l| l.reserved).sum());
        self.held = self.levels.values().map(Level::held).sum();
    }

    /// A request comes. `waiter` is asked for only if it has to wait.
    pub fn arrive(&mut self, id: u64, seats: u32, hash: u64, waiter: impl FnOnce(u32) -> Waiter) -> Arrival {
        let Some(level) = self.levels.get(&id) else { return Arrival::Gone };
        let response = level.spec.response;
        let seats = if response == Response::Exempt { seats.max(1) } else { level.fitted(seats) };
        let own = level.seats_in_use + u64::from(seats) <= level.reserved;
        let at_once = match response {
            Response::Exempt => true,
            Response::Reject => own || self.fits(level, seats) && (level.below_nominal() || self.waiting == 0),
            Response::Queue { .. } => level.waiting == 0 && (own || self.waiting == 0 && self.fits(level, seats)),
        };
        if at_once {
            let charge = Charge { level: id, queue: None, seats, since: Instant::now() };
            self.charge(charge);
            return Arrival::Seated(charge);
        }
        if response == Response::Reject {
            return Arrival::Rejected(Reason::ConcurrencyLimit);
        }
        let Some(level) = self.levels.get_mut(&id) else { return Arrival::Gone };
        let Some(place) = level.enqueue(id, hash, waiter(seats)) else {
            return Arrival::Rejected(Reason::QueueFull);
        };
        self.waiting += 1;
        self.dispatch();
        Arrival::Waiting(place)
    }

    /// A waiting request goes away. False: it waits no longer, because it has been granted its seats.
    pub fn leave(&mut self, place: Place) -> bool {
        let Some(level) = self.levels.get_mut(&place.level) else { return false };
        if !level.remove(place) {
            return false;
        }
        self.waiting -= 1;
        self.after_end(place.level);
        true
    }

    /// A request has ended after `took`.
    pub fn release(&mut self, charge: Charge, took: Duration) {
        let Some(level) = self.levels.get_mut(&charge.level) else { return };
        self.held -= level.held();
        level.seats_in_use -= u64::from(charge.seats);
        level.executing -= 1;
        self.held += level.held();
        if let Some(queue) = charge.queue {
            level.settle(queue, charge.seats, took);
        }
        self.after_end(charge.level);
    }

    fn after_end(&mut self, id: u64) {
        if self.levels.get(&id).is_some_and(|l| l.quiescing && l.idle()) {
            self.apportion();
        }
        self.dispatch();
    }

    fn charge(&mut self, charge: Charge) {
        let Some(level) = self.levels.get_mut(&charge.level) else { return };
        self.held -= level.held();
        level.seats_in_use += u64::from(charge.seats);
        level.executing += 1;
        self.held += level.held();
    }

    fn fits(&self, level: &Level, seats: u32) -> bool {
        let would = level.seats_in_use + u64::from(seats);
        would <= level.reserved
            || would <= level.most && self.held - level.held() + would.max(level.reserved) <= self.limit
    }

    /// Grants seats as long as there are any for those who wait.
    fn dispatch(&mut self) {
        while self.waiting > 0 {
            let Some(id) = self.next() else { return };
            let Some((charge, waiter)) = self.levels.get_mut(&id).and_then(|l| l.pop(id)) else { return };
            self.waiting -= 1;
            self.charge(charge);
            waiter.stats.count(|c| {
                c.in_queue -= 1;
                c.waited += charge.since - waiter.since;
                c.seated(charge.seats);
            });
            // Whoever went away meanwhile finds the charge in the channel, and gives it back.
            let _ = waiter.granted.send(charge);
        }
    }

    /// The level whose turn it is, if there are seats for it.
    fn next(&self) -> Option<u64> {
        let mut best: Option<(u64, &Level, u32)> = None;
        for (id, level) in self.levels.iter().filter(|(_, l)| l.waiting > 0) {
            let Some(seats) = level.head() else { continue };
            let would = level.seats_in_use + u64::from(seats);
            if would <= level.reserved {
                return Some(*id);
            }
            if would <= level.most && best.is_none_or(|(_, other, _)| level.goes_before(other)) {
                best = Some((*id, level, seats));
            }
        }
        best.filter(|(_, level, seats)| self.fits(level, *seats)).map(|(id, ..)| id)
    }

    /// The levels, the server's seats, and how many of them are used or kept.
    pub fn counters(&self) -> (Vec<LevelCounters>, u64, u64) {
        let level = |l: &Level| LevelCounters {
            level: Arc::clone(&l.name),
            nominal: l.nominal,
            lower: l.reserved,
            upper: l.most,
            in_queue: l.waiting,
            executing: l.executing,
            executing_seats: l.seats_in_use,
            quiescing: l.quiescing,
        };
        let mut levels: Vec<_> = self.levels.values().map(level).collect();
        levels.sort_by(|a, b| a.level.cmp(&b.level));
        (levels, self.limit, self.held)
    }
}
