//! What this node does about the addresses. Pure: time is passed in.
//!
//! In: the candidates, whose name is on each address' Lease, what was seen of other nodes' Leases, what this node has on
//! its link. Out: one [`Step`] for each address; whether this node must renew its own Lease, whose Leases it must
//! follow, and when something is due without news ([`decide`]).
//!
//! Of the candidates of an address, only its holder and the [`STANDBYS`] next ones renew their Leases, and only these
//! follow: each the holder and those of them that are better placed. The others know the holder's Lease from single
//! looks, and each is more patient than the one before it. So at rest nothing grows with the number of nodes, and when
//! the holder dies together with all that stand by, the next one still takes over.

use crate::model::{self, Wanted};
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How often a node says that it is alive.
pub const RENEW: Duration = Duration::from_millis(1500);
/// A node that could not say so for this long announces nothing any more. Counted from before the last renewal was sent.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// Others take over from a node of which they have seen nothing new for this long.
pub const LEASE: Duration = Duration::from_secs(6);
/// So many candidates besides the holder say that they are alive and follow those before them.
pub const STANDBYS: usize = 2;
/// How long a node leaves an address to a better placed one.
pub const TURN: Duration = Duration::from_secs(1);

/// How long a node leaves an address to so many better placed ones. Those that follow nobody wait longer, so that they
/// seldom look.
pub fn turn(ahead: usize) -> Duration {
    let near = ahead.min(STANDBYS);
    let times = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    TURN * times(near) + LEASE * times(ahead - near)
}

/// What was seen of a node's Lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// Nobody has looked yet.
    Never,
    /// There is none.
    Gone,
    /// It is at this version.
    At(String),
}

impl From<Option<String>> for Sight {
    fn from(version: Option<String>) -> Self {
        version.map_or(Self::Gone, Self::At)
    }
}

/// What has been seen of other nodes' Leases, and when it was first so.
#[derive(Debug, Default, Clone)]
pub struct Alive(HashMap<String, (Sight, Instant, Left)>);

/// Whether a node took its Lease away.
type Left = bool;

impl Alive {
    /// Takes over what is seen now. Says whether somebody else's turn may have come by it: the node took its Lease away.
    pub fn see(&mut self, node: &str, sight: Sight, now: Instant) -> bool {
        match self.0.get(node) {
            Some((known, ..)) if *known == sight => false,
            known => {
                let left = sight == Sight::Gone && known.is_some_and(|(before, ..)| matches!(before, Sight::At(_)));
                self.0.insert(node.to_owned(), (sight, now, left));
                left
            }
        }
    }

    /// What is known, and since when. Of a node never seen: it has its time from now on.
    pub fn sight(&mut self, node: &str, now: Instant) -> (Sight, Instant) {
        let (sight, since, _) = self.0.entry(node.to_owned()).or_insert((Sight::Never, now, false));
        (sight.clone(), *since)
    }

    /// A look at its Lease failed: it has its full time again.
    pub fn doubt(&mut self, node: &str) {
        self.0.remove(node);
    }

    /// Forgets all others.
    fn only(&mut self, nodes: &BTreeSet<&str>) {
        self.0.retain(|node, _| nodes.contains(node.as_str()));
    }

    /// From when on a node that is followed counts as one that takes no part. `None`: it has its turn.
    fn out_at(&self, node: &str) -> Option<Instant> {
        match self.0.get(node) {
            None | Some((Sight::Never, ..)) => None,
            Some((_, since, true)) => Some(*since),
            Some((_, since, false)) => Some(*since + LEASE),
        }
    }
}

/// A silent node, and what was last seen of its Lease.
pub type Silent = (String, Sight);

/// What is to be done about an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing, unless this comes without news.
    Rest {
        /// When to look again.
        until: Option<Instant>,
    },
    /// Write our name on the Lease; then the address comes here.
    Take {
        /// From this node, which shows no life: its own Lease must still be as it was seen.
        from: Option<Silent>,
    },
    /// It is here and stays.
    Keep,
    /// Take it off the link; it is another's.
    Drop,
    /// Take it off the link, then our name off the Lease.
    Release,
    /// Nobody wants it or holds it: its Lease goes.
    Forget {
        /// Its holder, which shows no life: as for `Take`.
        from: Option<Silent>,
    },
}

/// What must be known of this node.
#[derive(Debug, Clone, Copy)]
pub struct Own<'a> {
    /// Its name.
    pub node: &'a str,
    /// Its uplink is up.
    pub fit: bool,
}

/// What must be known of an address.
#[derive(Debug, Clone, Copy)]
pub struct Address<'a> {
    /// The address.
    pub ip: IpAddr,
    /// Who may have it; `None` when nobody shall.
    pub wanted: Option<&'a Wanted>,
    /// The name on its Lease (empty for none); `None` when it has no Lease.
    pub lease: Option<&'a str>,
    /// It is on our link, rightly so: our own Lease is alive.
    pub has: bool,
}

impl<'a> Address<'a> {
    fn holder(&self) -> &'a str {
        self.lease.unwrap_or("")
    }

    fn is_candidate(&self, node: &str) -> bool {
        self.wanted.is_some_and(|w| w.candidates.iter().any(|c| c == node))
    }

    /// Where a node that does not hold it stands among those that may take it.
    fn place(&self, node: &str) -> Option<Place<'a>> {
        let (wanted, holder) = (self.wanted?, self.holder());
        let others = || wanted.candidates.iter().map(String::as_str).filter(move |c| *c != holder);
        let ahead = others().position(|c| c == node)?;
        let near = if ahead < STANDBYS { others().take(ahead).collect() } else { Vec::new() };
        Some(Place { ahead, near })
    }
}

struct Place<'a> {
    /// So many are better placed.
    ahead: usize,
    /// Their names, of a node that stands by.
    near: Vec<&'a str>,
}

impl Place<'_> {
    fn stands_by(&self) -> bool {
        self.ahead < STANDBYS
    }
}

/// What a node remembers from one look to the next.
#[derive(Debug, Default, Clone)]
pub struct Memory {
    /// Other nodes' Leases.
    pub alive: Alive,
    /// Since when an address has been without a holder, and whether it was wanted.
    free: HashMap<IpAddr, (bool, Instant)>,
}

impl Memory {
    /// Since when this node could do something about an address without a holder.
    fn free_since(&mut self, address: &Address<'_>, may: bool, now: Instant) -> Instant {
        if !may || !address.holder().is_empty() {
            self.free.remove(&address.ip);
            return now;
        }
        let wanted = address.wanted.is_some();
        let known = self.free.entry(address.ip).or_insert((wanted, now));
        if known.0 != wanted {
            *known = (wanted, now);
        }
        known.1
    }
}

/// What a node does now.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Decision {
    /// It must say that it is alive: it holds an address, or stands by for one.
    pub duty: bool,
    /// Whose Leases it follows.
    pub follow: BTreeSet<String>,
    /// What it does about each address.
    pub steps: Vec<(IpAddr, Step)>,
    /// When something will be due, unless there is news before.
    pub due: Option<Instant>,
}

/// Decides about all addresses that are wanted, have a Lease or are here.
pub fn decide(own: Own<'_>, addresses: &[Address<'_>], memory: &mut Memory, now: Instant) -> Decision {
    let mut decision = Decision::default();
    // What was seen of others may be wrong by now.
    let mut known: BTreeSet<&str> = addresses.iter().map(Address::holder).collect();
    for address in addresses {
        let (holder, place) = (address.holder(), address.place(own.node));
        let standby = place.as_ref().filter(|p| p.stands_by());
        decision.duty |= own.fit && (standby.is_some() || (holder == own.node && address.is_candidate(own.node)));
        if let Some(place) = standby {
            let others = place.near.iter().copied().chain([holder]).filter(|n| !n.is_empty());
            others.for_each(|node| {
                known.insert(node);
                if !decision.follow.contains(node) {
                    decision.follow.insert(node.to_owned());
                }
            });
        }
    }
    memory.alive.only(&known);
    let ips: BTreeSet<IpAddr> = addresses.iter().map(|a| a.ip).collect();
    memory.free.retain(|ip, _| ips.contains(ip));
    for address in addresses {
        let step = step(own, address, memory, now);
        if let Step::Rest { until: Some(until) } = step {
            decision.due = Some(decision.due.map_or(until, |due| due.min(until)));
        }
        decision.steps.push((address.ip, step));
    }
    decision
}

/// Decides about one address.
pub fn step(own: Own<'_>, address: &Address<'_>, memory: &mut Memory, now: Instant) -> Step {
    let (holder, place) = (address.holder(), address.place(own.node));
    let may = own.fit && (place.is_some() || address.wanted.is_none());
    let free_since = memory.free_since(address, may, now);
    let mine = holder == own.node;
    if mine && !(own.fit && address.is_candidate(own.node)) {
        return Step::Release;
    }
    if address.has {
        return if mine { Step::Keep } else { Step::Drop };
    }
    if mine {
        // Our name from before a restart, or from before our Lease lapsed: written anew before anything is announced.
        return Step::Take { from: None };
    }
    if !may || (address.wanted.is_none() && address.lease.is_none()) {
        return Step::Rest { until: None };
    }
    // From when on it is there to be taken.
    let alive = &mut memory.alive;
    let (from, begin) = match holder {
        "" => (None, free_since),
        other => {
            let (sight, since) = alive.sight(other, now);
            (Some((other.to_owned(), sight)), since + LEASE)
        }
    };
    let Some(place) = place else {
        // Any node can see to that, and one is enough.
        let at = begin + Duration::from_millis(40) * u32::from(model::lot(address.ip, own.node));
        return if now >= at { Step::Forget { from } } else { Step::Rest { until: Some(at) } };
    };
    // Who is seen to be out has no turn. A node that follows nobody cannot tell.
    let outs: Vec<Option<Instant>> = place.near.iter().map(|node| alive.out_at(node)).collect();
    let out = outs.iter().flatten().filter(|at| **at <= now).count();
    let at = begin + turn(place.ahead - out);
    if now >= at {
        return Step::Take { from };
    }
    let next_out = outs.into_iter().flatten().filter(|at| *at > now).min();
    Step::Rest { until: Some(next_out.map_or(at, |next| at.min(next.max(begin)))) }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
