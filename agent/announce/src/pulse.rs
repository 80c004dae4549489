//! When this node says that it is alive, until when that counts, and when the loop must look again. Pure: time is
//! passed in.
//!
//! In: what became of the renewals of this node's own Lease. Out: the next one, the moment at which it lapses, and the
//! next instant at which anything is due ([`next_wake`]).

use crate::plan::{DEADLINE, RENEW};
use std::time::{Duration, Instant};

/// Between two attempts to renew when one has failed.
pub const RETRY: Duration = Duration::from_millis(250);
/// What could not be done, other than a renewal, is tried again after this.
const UNFINISHED: Duration = RENEW;
/// Between two rounds at least: what was due in a round has been tried in it.
const BREATH: Duration = Duration::from_millis(20);

/// This node's own Lease.
#[derive(Debug, Clone)]
pub struct Pulse {
    tried: Option<Instant>,
    failing: bool,
    /// Start of the last renewal that succeeded.
    renewed: Option<Instant>,
    /// The Lease may be there.
    stored: bool,
}

impl Default for Pulse {
    /// Of a process that begins: a former one may have left a Lease.
    fn default() -> Self {
        Self { tried: None, failing: false, renewed: None, stored: true }
    }
}

impl Pulse {
    /// How long what this node announces may stay; `None` when its Lease has lapsed.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        let left = (self.renewed? + DEADLINE).saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// Start of the last renewal that succeeded.
    pub fn renewed(&self) -> Option<Instant> {
        self.renewed
    }

    /// When the next renewal is due, at a node that must renew.
    fn due_at(&self, now: Instant) -> Instant {
        self.tried.map_or(now, |t| t + if self.failing { RETRY } else { RENEW })
    }

    /// Whether a node that must renew does so now.
    pub fn is_due(&self, now: Instant) -> bool {
        self.due_at(now) <= now
    }

    /// Whether a node that is about to take an address, and whose Lease has lapsed, may try to renew it now.
    pub fn may_join(&self, now: Instant) -> bool {
        !self.failing || self.is_due(now)
    }

    /// A renewal began at `begun`, and succeeded or not. Another one that failed before it is forgotten.
    pub fn beat(&mut self, begun: Instant, succeeded: bool) {
        self.tried = Some(begun);
        self.failing = !succeeded;
        // One that failed may have come through all the same.
        self.stored = true;
        if succeeded {
            self.renewed = Some(begun);
        }
    }

    /// Whether the last renewal failed.
    pub fn is_failing(&self) -> bool {
        self.failing
    }

    /// Whether the Lease is there, has lapsed, and so can go once it is not needed.
    pub fn is_left_over(&self, now: Instant) -> bool {
        self.stored && self.left(now).is_none()
    }

    /// The Lease is gone.
    pub fn gone(&mut self) {
        *self = Self { stored: false, renewed: None, ..*self };
    }
}

/// What may be due at a node.
#[derive(Debug, Clone, Copy)]
pub struct Due {
    /// It must renew its Lease.
    pub duty: bool,
    /// It has addresses on its link.
    pub holds: bool,
    /// When something is due about an address, unless there is news before.
    pub addresses: Option<Instant>,
    /// When the neighbours are to be told again.
    pub again: Option<Instant>,
    /// Something was to be done and could not be.
    pub unfinished: bool,
    /// Something was done: the next look is at a different world.
    pub acted: bool,
}

/// When the loop must look again; `None`: only at news.
pub fn next_wake(due: Due, pulse: &Pulse, now: Instant) -> Option<Instant> {
    let lapse = pulse.renewed.map(|r| r + DEADLINE);
    let removal = lapse.filter(|at| pulse.stored && !due.duty && *at > now);
    let all = [
        due.duty.then(|| pulse.due_at(now)),
        lapse.filter(|_| due.holds),
        removal,
        due.addresses,
        due.again,
        due.unfinished.then(|| now + UNFINISHED),
        due.acted.then_some(now),
    ];
    all.into_iter().flatten().min().map(|at| at.max(now + BREATH))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: Due = Due { duty: false, holds: false, addresses: None, again: None, unfinished: false, acted: false };

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn who_has_nothing_to_do_sleeps_until_there_is_news() {
        let t = Instant::now();
        assert_eq!(next_wake(REST, &Pulse::default(), t), None);
        let mut pulse = Pulse::default();
        pulse.gone();
        assert_eq!(next_wake(REST, &pulse, t), None);
    }

    #[test]
    fn a_renewal_is_due_in_time_and_soon_after_a_failed_one() {
        let (t, mut pulse) = (Instant::now(), Pulse::default());
        let duty = Due { duty: true, ..REST };
        assert!(pulse.is_due(t));
        assert_eq!(next_wake(duty, &pulse, t), Some(t + BREATH), "at once");
        pulse.beat(t, true);
        assert!(!pulse.is_due(t + RENEW - ms(1)) && pulse.is_due(t + RENEW));
        assert_eq!(next_wake(duty, &pulse, t + ms(300)), Some(t + RENEW));
        pulse.beat(t + RENEW, false);
        assert_eq!(next_wake(duty, &pulse, t + RENEW), Some(t + RENEW + RETRY));
        assert!(!pulse.may_join(t + RENEW + ms(1)) && pulse.may_join(t + RENEW + RETRY));
        assert_eq!(pulse.left(t + RENEW), Some(DEADLINE - RENEW), "counted from the one that succeeded");
    }

    #[test]
    fn what_is_announced_lapses_and_an_unneeded_lease_goes_then() {
        let (t, mut pulse) = (Instant::now(), Pulse::default());
        pulse.beat(t, true);
        assert_eq!(pulse.left(t), Some(DEADLINE));
        assert_eq!(pulse.left(t + DEADLINE), None);
        assert_eq!(next_wake(Due { holds: true, ..REST }, &pulse, t), Some(t + DEADLINE));
        assert_eq!(next_wake(REST, &pulse, t), Some(t + DEADLINE), "to take the Lease away");
        assert!(!pulse.is_left_over(t + DEADLINE - ms(1)) && pulse.is_left_over(t + DEADLINE));
        pulse.gone();
        assert!(!pulse.is_left_over(t + DEADLINE));
        assert_eq!(next_wake(REST, &pulse, t), None);
    }

    #[test]
    fn the_earliest_counts_and_never_at_once_again() {
        let (t, pulse) = (Instant::now(), Pulse::default());
        let due = Due { addresses: Some(t + ms(700)), again: Some(t + ms(500)), ..REST };
        assert_eq!(next_wake(due, &pulse, t), Some(t + ms(500)));
        assert_eq!(next_wake(Due { again: None, ..due }, &pulse, t), Some(t + ms(700)));
        assert_eq!(next_wake(due, &pulse, t + ms(900)), Some(t + ms(900) + BREATH));
        assert_eq!(next_wake(Due { unfinished: true, ..REST }, &pulse, t), Some(t + UNFINISHED));
        assert_eq!(next_wake(Due { acted: true, unfinished: true, ..due }, &pulse, t), Some(t + BREATH));
    }
}
