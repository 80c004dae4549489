//! How many requests a client may send. In: a client's address. Out: whether one more is within its share. Memory is
//! bounded: clients that have been quiet are forgotten when there are many.

use governor::clock::DefaultClock;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use ipnet::IpNet;
use std::fmt;
use std::net::IpAddr;

/// Clients remembered before the quiet ones are looked for.
const MANY: usize = 16_384;

/// A share of requests for every client (the generic cell rate algorithm).
pub struct RateLimit {
    limiter: RateLimiter<IpAddr, HashMapStateStore<IpAddr>, DefaultClock>,
    spared: Vec<IpNet>,
}

impl RateLimit {
    /// `spared` clients are not counted.
    pub fn new(quota: Quota, spared: Vec<IpNet>) -> Self {
        Self { limiter: RateLimiter::hashmap(quota), spared }
    }

    /// Whether a client may send one more request now.
    pub fn permit(&self, client: Option<IpAddr>) -> bool {
        let Some(client) = client.map(|c| c.to_canonical()) else { return true };
        if self.spared.iter().any(|n| n.contains(&client)) {
            return true;
        }
        // One machine has a whole /64.
        let key = match client {
            IpAddr::V4(_) => client,
            IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) >> 64 << 64).into()),
        };
        let permitted = self.limiter.check_key(&key).is_ok();
        if self.limiter.len() > MANY {
            self.limiter.retain_recent();
        }
        permitted
    }
}

impl fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit").field("clients", &self.limiter.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    #[test]
    fn every_client_has_its_own_share() {
        let two = NonZeroU32::new(2).unwrap();
        let limit = RateLimit::new(Quota::per_hour(two), vec!["10.9.0.0/16".parse().unwrap()]);
        let ask = |ip: &str| limit.permit(Some(ip.parse().unwrap()));
        assert!(ask("10.0.0.1") && ask("10.0.0.1") && !ask("10.0.0.1"));
        assert!(ask("10.0.0.2"));
        assert!((0..9).all(|_| ask("10.9.0.1")));
        // Addresses of one /64 are one client.
        assert!(ask("fd12::1") && ask("fd12::2") && !ask("fd12::3"));
    }
}
