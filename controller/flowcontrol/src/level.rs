//! One priority level: its limits, and fair queuing between its flows.
//!
//! In: requests with the hash of their flow. Out: whose turn it is. Each flow has a hand of queues (shuffle sharding)
//! and joins the shortest of them; a flow that floods fills its own hand, and another's hand hardly ever is the same.
//! Between queues: start-time fair queuing. Each queue has a tag, the seat-time it has been given; the lowest tag is
//! next, and a queue that was empty starts where the level is, so that it neither has saved up nor owes anything.
//! Seat-time is estimated at dispatch and corrected at the request's end.

use crate::config::{LevelSpec, Response};
use crate::seat::Charge;
use crate::snapshot::FlowStats;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long a request is assumed to run until it is known (upstream: 3 ms).
const ESTIMATE: Duration = Duration::from_millis(3);

/// Seat-time, in seat-nanoseconds.
pub(crate) type SeatTime = u128;

pub(crate) struct Waiter {
    pub seats: u32,
    pub since: Instant,
    pub stats: Arc<FlowStats>,
    /// Told when it has its seats; nobody listens when it went away, which its ticket then reports.
    pub granted: oneshot::Sender<Charge>,
    /// Where the level was when it came; the level sets it.
    pub arrived_at: SeatTime,
}

#[derive(Default)]
struct Queue {
    waiting: BTreeMap<u64, Waiter>,
    waiting_seats: u64,
    /// Requests that run and came through this queue.
    executing: u64,
    tag: SeatTime,
    /// When it was last served: among equal tags the one served longest ago is next.
    served: u64,
    key: Option<(SeatTime, u64, u32)>,
}

/// Where a waiting request is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub level: u64,
    pub queue: u32,
    pub number: u64,
}

pub(crate) struct Level {
    pub name: Arc<str>,
    pub spec: LevelSpec,
    pub quiescing: bool,
    /// Seats by its shares, what of them it never lends, and the most it gets.
    pub nominal: u64,
    pub reserved: u64,
    pub most: u64,
    /// The most one request gets.
    pub widest: u32,
    pub seats_in_use: u64,
    pub executing: u64,
    pub waiting: u64,
    /// Only queues in use. As many as a configuration names would be a way to use up memory.
    queues: HashMap<u32, Queue>,
    order: BTreeSet<(SeatTime, u64, u32)>,
    now: SeatTime,
    numbers: u64,
}

impl Level {
    pub fn new(spec: LevelSpec) -> Self {
        Self {
            name: Arc::clone(&spec.name),
            spec,
            quiescing: false,
            nominal: 0,
            reserved: 0,
            most: 0,
            widest: 1,
            seats_in_use: 0,
            executing: 0,
            waiting: 0,
            queues: HashMap::new(),
            order: BTreeSet::new(),
            now: 0,
            numbers: 0,
        }
    }

    pub fn idle(&self) -> bool {
        self.executing == 0 && self.waiting == 0
    }

    pub fn below_nominal(&self) -> bool {
        self.seats_in_use < self.nominal
    }

    /// Below its nominal number before above, and then the one with less of it.
    pub fn goes_before(&self, other: &Self) -> bool {
        // Of a level without a nominal number, a seat in use counts as all of it.
        let part = |a: &Self, b: &Self| u128::from(a.seats_in_use) * u128::from(b.nominal.max(1));
        match (self.below_nominal(), other.below_nominal()) {
            (true, false) => true,
            (false, true) => false,
            _ => part(self, other) < part(other, self),
        }
    }

    /// Seats that are used, or kept free for this level.
    pub fn held(&self) -> u64 {
        self.seats_in_use.max(self.reserved)
    }

    /// Sets the limits anew: `seats` of the server by this level's part of `shares`.
    #[allow(clippy::cast_possible_truncation)]
    pub fn apportion(&mut self, seats: u64, shares: u64) {
        let spec = &self.spec;
        let percent = |n: u64, percent: u64| (n * percent + 50) / 100;
        self.nominal = (seats * spec.shares).div_ceil(shares.max(1));
        self.reserved = self.nominal - percent(self.nominal, spec.lendable_percent).min(self.nominal);
        let borrowed = spec.borrowing_percent.map_or(seats, |p| percent(self.nominal, p));
        self.most = (self.nominal + borrowed).min(seats.max(self.nominal));
        let hand = if let Response::Queue { hand, .. } = spec.response { u64::from(hand) } else { 1 };
        self.widest = (self.nominal * 15).div_ceil(100).min(self.nominal / hand).clamp(1, u64::from(u32::MAX)) as u32;
    }

    /// What a request of this width gets.
    pub fn fitted(&self, seats: u32) -> u32 {
        let most = u32::try_from(self.most).unwrap_or(u32::MAX);
        seats.clamp(1, self.widest).min(most.max(1))
    }

    /// Seats of the request whose turn it is.
    pub fn head(&self) -> Option<u32> {
        let (.., queue) = self.order.first()?;
        self.queues.get(queue)?.waiting.values().next().map(|w| self.fitted(w.seats))
    }

    /// A request joins the shortest queue of its flow's hand. None: that is full.
    pub fn enqueue(&mut self, id: u64, hash: u64, waiter: Waiter) -> Option<Place> {
        let Response::Queue { queues, hand, length } = self.spec.response else { return None };
        let number = self.numbers;
        self.numbers += 1;
        // Begins somewhere else each time, so that of equally short queues not always the same is taken.
        let hand = deal(hash, queues, hand);
        let offset = usize::try_from(number % hand.len() as u64).unwrap_or(0);
        let load = |q: &u32| self.queues.get(q).map_or(0, |queue| queue.waiting_seats);
        let index = *hand[offset..].iter().chain(&hand[..offset]).min_by_key(|q| load(q))?;
        let (now, queue) = (self.now, self.queues.entry(index).or_default());
        if queue.waiting.len() >= length {
            return None;
        }
        if queue.waiting.is_empty() && queue.executing == 0 {
            queue.tag = now;
        }
        queue.waiting_seats += u64::from(waiter.seats);
        queue.waiting.insert(number, Waiter { arrived_at: now, ..waiter });
        self.waiting += 1;
        self.sort(index);
        Some(Place { level: id, queue: index, number })
    }

    /// Takes the request whose turn it is out of its queue, and charges it.
    pub fn pop(&mut self, id: u64) -> Option<(Charge, Waiter)> {
        let &(start, _, index) = self.order.first()?;
        let served = self.numbers;
        self.numbers += 1;
        let queue = self.queues.get_mut(&index)?;
        let (_, waiter) = queue.waiting.pop_first()?;
        queue.waiting_seats -= u64::from(waiter.seats);
        queue.executing += 1;
        queue.served = served;
        self.waiting -= 1;
        self.now = self.now.max(start);
        let seats = self.fitted(waiter.seats);
        if let Some(queue) = self.queues.get_mut(&index) {
            queue.tag = start + cost(seats, ESTIMATE);
        }
        self.sort(index);
        Some((Charge { level: id, queue: Some(index), seats, since: Instant::now() }, waiter))
    }

    /// A waiting request went away. False: it no longer waits.
    pub fn remove(&mut self, place: Place) -> bool {
        let Some(queue) = self.queues.get_mut(&place.queue) else { return false };
        let Some(waiter) = queue.waiting.remove(&place.number) else { return false };
        queue.waiting_seats -= u64::from(waiter.seats);
        self.waiting -= 1;
        self.sort(place.queue);
        true
    }

    /// A request that came through a queue has ended after `took`.
    pub fn settle(&mut self, index: u32, seats: u32, took: Duration) {
        let Some(queue) = self.queues.get_mut(&index) else { return };
        queue.executing -= 1;
        queue.tag = (queue.tag + cost(seats, took)).saturating_sub(cost(seats, ESTIMATE));
        self.sort(index);
    }

    /// Puts a queue where its tag belongs; forgets it when nothing is in it.
    fn sort(&mut self, index: u32) {
        let Some(queue) = self.queues.get_mut(&index) else { return };
        let key = queue.waiting.values().next().map(|head| {
            // No turn before its arrival: time that a queue did not use is not saved up.
            queue.tag = queue.tag.max(head.arrived_at);
            (queue.tag, queue.served, index)
        });
        if key != queue.key {
            if let Some(old) = std::mem::replace(&mut queue.key, key) {
                self.order.remove(&old);
            }
            self.order.extend(key);
        }
        if queue.waiting.is_empty() && queue.executing == 0 {
            self.queues.remove(&index);
            if self.queues.is_empty() {
                self.now = 0;
            }
        }
    }
}

fn cost(seats: u32, time: Duration) -> SeatTime {
    u128::from(seats) * time.as_nanos()
}

/// `hand` different numbers below `deck`, each hand as likely as any other. `hand` is at most `deck`, and both are such
/// that 60 bits suffice.
fn deal(hash: u64, deck: u32, hand: u32) -> Vec<u32> {
    let mut rest = hash;
    let mut dealt: Vec<u32> = Vec::with_capacity(hand as usize);
    for i in 0..hand {
        let left = u64::from(deck - i);
        let mut card = u32::try_from(rest % left).unwrap_or(0);
        rest /= left;
        // The card-th of those that are left: `dealt` is sorted.
        let place = dealt.iter().position(|d| {
            if *d <= card {
                card += 1;
                false
            } else {
                true
            }
        });
        dealt.insert(place.unwrap_or(dealt.len()), card);
    }
    dealt
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn every_hand_is_as_likely_as_any_other() {
        let mut counts: BTreeMap<Vec<u32>, u32> = BTreeMap::new();
        // 5 * 4 * 3 hashes deal each of the 10 hands, in each of its 6 orders, once.
        for hash in 0..60 {
            *counts.entry(deal(hash, 5, 3)).or_default() += 1;
        }
        assert_eq!(counts.len(), 10);
        assert!(counts.iter().all(|(hand, n)| *n == 6 && hand.is_sorted_by(|a, b| a < b)), "{counts:?}");
        assert_eq!(deal(u64::MAX, 4, 4), [0, 1, 2, 3]);
        assert_eq!(deal(7, 1, 1), [0]);
    }
}
