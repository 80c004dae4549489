//! Budgets for what lasts: watches, streams (exec, attach, port-forward, logs that follow), connections. Such a request
//! holds no seat while it lasts, so something else has to bound how many there are.
//!
//! In: who asks. Out: a guard, or that there are too many. A user is counted only while there is something to count.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// The most of each. A "component" is a kubelet or one of the cluster's own components.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Watches of one component. A kubelet opens up to 1500, on behalf of its pods (`MOST_WATCHES`).
    pub component_watches: u32,
    /// Watches of another user. An operator with informers for every kind of a large cluster has some hundred.
    pub user_watches: u32,
    /// Watches of all service accounts of a namespace together: whoever may create accounts has no more for that.
    pub namespace_watches: u32,
    /// Watches of all together who are no components.
    pub other_watches: u32,
    /// Watches of all together.
    pub watches: u32,
    /// Streams of one user; accounts of a namespace together have four times as many.
    pub user_streams: u32,
    /// Streams of all together.
    pub streams: u32,
    /// Connections from one address (IPv6: from one /64). Many clients may sit behind one address.
    pub address_connections: u32,
    /// All connections.
    pub connections: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            component_watches: 2000,
            user_watches: 500,
            namespace_watches: 2000,
            other_watches: 20_000,
            watches: 100_000,
            user_streams: 100,
            streams: 2000,
            address_connections: 2000,
            connections: 10_000,
        }
    }
}

/// There are too many already: to be answered with 429; a connection is closed instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverBudget {
    /// What there are too many of, and whose: for the client.
    pub reason: &'static str,
    /// How many there may be.
    pub limit: u32,
    /// For `Retry-After`.
    pub retry_after_seconds: u32,
}

impl fmt::Display for OverBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "too many {}: the limit is {}", self.reason, self.limit)
    }
}

impl std::error::Error for OverBudget {}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Watches,
    OtherWatches,
    UserWatches(Box<str>),
    NamespaceWatches(Box<str>),
    Streams,
    UserStreams(Box<str>),
    NamespaceStreams(Box<str>),
    Connections,
    Address(IpAddr),
}

/// Counts what lasts. Cheap to clone.
#[derive(Clone)]
pub struct Budgets {
    limits: Arc<Limits>,
    counts: Arc<Mutex<HashMap<Key, u32>>>,
}

/// One watch, stream or connection; dropped, it is no longer counted.
#[must_use = "what is dropped is no longer counted"]
pub struct Budget {
    counts: Arc<Mutex<HashMap<Key, u32>>>,
    keys: Vec<Key>,
}

const COMPONENTS: [&str; 4] = ["system:node:", "system:causeway:", "system:kube-", "system:apiserver"];

fn component(user: &str) -> bool {
    COMPONENTS.iter().any(|c| user.starts_with(c))
}

/// The namespace of a service account.
fn namespace(user: &str) -> Option<&str> {
    Some(user.strip_prefix("system:serviceaccount:")?.split_once(':')?.0)
}

impl Budgets {
    /// With these limits.
    pub fn new(limits: Limits) -> Self {
        Self { limits: Arc::new(limits), counts: Arc::default() }
    }

    /// A watch begins.
    pub fn watch(&self, user: &str) -> Result<Budget, OverBudget> {
        let l = &self.limits;
        let own = Key::UserWatches(user.into());
        let mut wanted = vec![(Key::Watches, "watches in this cluster", l.watches)];
        if component(user) {
            wanted.push((own, "watches of this user", l.component_watches));
        } else {
            wanted.push((Key::OtherWatches, "watches in this cluster", l.other_watches));
            wanted.push((own, "watches of this user", l.user_watches));
        }
        if let Some(namespace) = namespace(user) {
            let what = "watches of service accounts of this namespace";
            wanted.push((Key::NamespaceWatches(namespace.into()), what, l.namespace_watches));
        }
        self.take(wanted)
    }

    /// A stream begins: exec, attach, port-forward, proxy, or a log that follows.
    pub fn stream(&self, user: &str) -> Result<Budget, OverBudget> {
        let l = &self.limits;
        let mut wanted = vec![
            (Key::Streams, "streams in this cluster", l.streams),
            (Key::UserStreams(user.into()), "streams of this user", l.user_streams),
        ];
        if let Some(namespace) = namespace(user) {
            let what = "streams of service accounts of this namespace";
            wanted.push((Key::NamespaceStreams(namespace.into()), what, l.user_streams.saturating_mul(4)));
        }
        self.take(wanted)
    }

    /// A connection has been accepted.
    pub fn connection(&self, peer: IpAddr) -> Result<Budget, OverBudget> {
        let network = match peer.to_canonical() {
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
            v4 @ IpAddr::V4(_) => v4,
        };
        self.take(vec![
            (Key::Connections, "connections", self.limits.connections),
            (Key::Address(network), "connections from this address", self.limits.address_connections),
        ])
    }

    /// How many watches, streams and connections there are now.
    pub fn counts(&self) -> [(&'static str, u32); 3] {
        let counts = self.counts.lock();
        let of = |key| counts.get(&key).copied().unwrap_or(0);
        [("watches", of(Key::Watches)), ("streams", of(Key::Streams)), ("connections", of(Key::Connections))]
    }

    /// All of them, or none.
    fn take(&self, wanted: Vec<(Key, &'static str, u32)>) -> Result<Budget, OverBudget> {
        let mut counts = self.counts.lock();
        for (key, reason, limit) in &wanted {
            if counts.get(key).copied().unwrap_or(0) >= *limit {
                return Err(OverBudget { reason, limit: *limit, retry_after_seconds: 5 });
            }
        }
        let keys: Vec<Key> = wanted.into_iter().map(|(key, ..)| key).collect();
        for key in &keys {
            *counts.entry(key.clone()).or_default() += 1;
        }
        Ok(Budget { counts: Arc::clone(&self.counts), keys })
    }
}

impl Default for Budgets {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Budget").field(&self.keys).finish()
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        for key in &self.keys {
            if let Some(n) = counts.get_mut(key) {
                *n -= 1;
                if *n == 0 {
                    counts.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            component_watches: 4,
            user_watches: 2,
            namespace_watches: 3,
            other_watches: 6,
            watches: 9,
            user_streams: 1,
            streams: 5,
            address_connections: 2,
            connections: 5,
        }
    }

    fn watches(budgets: &Budgets, user: &str) -> Vec<Budget> {
        std::iter::from_fn(|| budgets.watch(user).ok()).collect()
    }

    #[test]
    fn each_has_its_own_and_nodes_have_what_others_cannot_take() {
        let budgets = Budgets::new(limits());
        let a = watches(&budgets, "alice");
        assert_eq!(a.len(), 2);
        let accounts: Vec<_> =
            ["x", "y", "z"].iter().flat_map(|n| watches(&budgets, &format!("system:serviceaccount:ns:{n}"))).collect();
        assert_eq!(accounts.len(), 3, "of the namespace");
        let over = budgets.watch("system:serviceaccount:ns:z").unwrap_err();
        assert_eq!(over.to_string(), "too many watches of service accounts of this namespace: the limit is 3");
        let c = watches(&budgets, "system:anonymous");
        assert_eq!(c.len(), 1, "all others together");
        let node = watches(&budgets, "system:node:a");
        assert_eq!(node.len(), 3, "up to the total");
        drop(a);
        assert_eq!(watches(&budgets, "system:node:a").len(), 1, "of one node");
        drop((accounts, c, node));
        assert!(budgets.counts.lock().is_empty(), "nothing is left behind");
    }

    #[test]
    fn a_refusal_counts_nothing() {
        let budgets = Budgets::new(limits());
        let _one = budgets.stream("alice").unwrap();
        for _ in 0..100 {
            assert_eq!(budgets.stream("alice").unwrap_err().limit, 1);
        }
        assert_eq!(budgets.counts()[1], ("streams", 1));
        assert_eq!(budgets.counts.lock().len(), 2);
    }

    #[test]
    fn addresses_are_counted_by_network() {
        let budgets = Budgets::new(limits());
        let connect = |peer: &str| budgets.connection(peer.parse().unwrap());
        let _a = [connect("2001:db8::1").unwrap(), connect("2001:db8::2").unwrap()];
        assert!(connect("2001:db8::3").is_err());
        let _b =
            [connect("2001:db8:0:1::1").unwrap(), connect("10.0.0.1").unwrap(), connect("::ffff:10.0.0.1").unwrap()];
        assert_eq!(connect("10.0.0.1").unwrap_err().reason, "connections");
        drop(_b);
        assert!(connect("10.0.0.1").is_ok());
    }
}
