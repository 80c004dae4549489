//! How much of the server a request takes.
//!
//! In: what is known of a request before it runs. Out: seats, as Kubernetes 1.35 estimates them. A seat stands for
//! what one small request takes while it runs.

use std::time::Duration;

/// Seats of one list at most, where only the number of its objects is known.
const MOST_BY_COUNT: u64 = 10;
const OBJECTS_PER_SEAT: u64 = 100;
/// Seats of one list at most, where their size is known.
const MOST_BY_SIZE: u64 = 100;
const BYTES_PER_SEAT: u64 = 100_000;
/// A list out of the cache is streamed and has no more than this in memory.
const MOST_FROM_CACHE: u64 = 1_000_000;
/// Upstream's longest wait: a quarter of a request's 60 seconds.
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// What a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Width {
    /// Seats while it runs, at least 1. A level gives one request no more than a part of what it has (upstream: 15 %,
    /// and a hand's part).
    pub seats: u32,
    /// How long it may wait for them. Upstream: a quarter of the server's time-out for requests, less for one that
    /// brings a shorter deadline.
    pub wait: Duration,
}

impl Default for Width {
    fn default() -> Self {
        Self { seats: 1, wait: LONGEST_WAIT }
    }
}

/// What is known of a list, or of a watch that begins with one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Listing {
    /// Objects of the resource, in all namespaces, as far as they have to be looked at.
    pub objects: u64,
    /// How large one of them is on average, in bytes, when known.
    pub average_bytes: Option<u64>,
    /// `limit` of the request; 0 for none.
    pub limit: u64,
    /// By a field selector for one name.
    pub single: bool,
    /// With another selector.
    pub selected: bool,
    /// Answered from memory, not from the store.
    pub cached: bool,
}

impl Width {
    /// A read of one object, a write, a watch that does not begin with a list.
    pub fn one() -> Self {
        Self::default()
    }

    /// A list.
    pub fn list(listing: &Listing) -> Self {
        let seats = match listing.average_bytes {
            Some(bytes) => listing.by_size(bytes).clamp(1, MOST_BY_SIZE),
            None => listing.by_count().clamp(1, MOST_BY_COUNT),
        };
        Self { seats: u32::try_from(seats).unwrap_or(u32::MAX), ..Self::default() }
    }

    /// With another longest wait.
    pub fn waiting(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }
}

impl Listing {
    fn limited(&self) -> u64 {
        if self.limit > 0 { self.limit.min(self.objects) } else { self.objects }
    }

    fn by_count(&self) -> u64 {
        let looked_at = match self {
            Self { single: true, .. } => 1,
            Self { cached: true, .. } => self.objects,
            Self { selected: true, .. } => self.objects.saturating_add(self.limited()),
            _ => self.limited().saturating_mul(2),
        };
        looked_at.div_ceil(OBJECTS_PER_SEAT)
    }

    fn by_size(&self, average: u64) -> u64 {
        let loaded = match self {
            Self { single: true, .. } => 1,
            Self { cached: false, selected: true, .. } => self.limited().max(self.objects / 2),
            _ => self.limited(),
        };
        let bytes = loaded.saturating_mul(average);
        let bytes = if self.cached { bytes.min(MOST_FROM_CACHE) } else { bytes };
        bytes.div_ceil(BYTES_PER_SEAT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_cost_as_upstream_counts() {
        let l = |objects, limit, cached| Listing { objects, limit, cached, ..Listing::default() };
        let sized = |objects, limit, cached, bytes| Listing { average_bytes: Some(bytes), ..l(objects, limit, cached) };
        for (listing, seats) in [
            (l(0, 0, true), 1),
            (l(100, 0, true), 1),
            (l(101, 0, true), 2),
            (l(1_000_000, 0, true), 10),
            (l(1000, 50, true), 10),
            (l(1000, 50, false), 1),
            (Listing { selected: true, ..l(300, 100, false) }, 4),
            (Listing { single: true, ..l(1_000_000, 0, true) }, 1),
            (sized(100, 0, true, 1000), 1),
            (sized(1000, 0, true, 2000), 10),
            (sized(1000, 0, false, 2000), 20),
            (sized(1000, 100, false, 2000), 2),
            (sized(u64::MAX, 0, false, u64::MAX), 100),
            (Listing { selected: true, ..sized(1000, 100, false, 2000) }, 10),
            (Listing { single: true, ..sized(1000, 0, false, 2000) }, 1),
        ] {
            assert_eq!(Width::list(&listing).seats, seats, "{listing:?}");
        }
    }
}
