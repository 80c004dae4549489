//! Which endpoint has which place behind a front, and how a front says so in numbers. Endpoints keep their places while
//! they live; when one goes, the last one moves into its hole. Pure.

use super::element::{Element, prefixes};
use crate::model::{Choice, Front, Target, Wanted};
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
};

/// The value of a front that refuses.
pub const REFUSE: u32 = 0;
/// The value of a front that drops.
pub const DROP: u32 = u32::MAX;
/// Places of a front's external choice start here, so that both fit in one map.
pub const EXTERNAL: u32 = 0x1_0000;
/// The bit that an endpoint's number has behind a front's external choice. Clients are remembered without it, so that all
/// fronts of a port share what is remembered.
pub const ENDPOINT_EXTERNAL: u32 = 1;
/// Up to so many endpoints, one place is one endpoint.
pub const EXACT: u32 = 64;
/// With more, the endpoints take turns on so many places: none gets more than about a sixteenth above its share.
pub const WIDE: [u32; 2] = [4096, 16384];

/// The affinity time-outs in use, in seconds; their order is the kernel's and only grows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timeouts(pub Vec<u32>);

impl Timeouts {
    /// So many at most, for each needs chains of its own. Beyond, the next longer one does, or the longest.
    pub const MAX: usize = 64;

    /// The time-out that stands for this one; a new one comes last.
    pub(super) fn take(&mut self, seconds: u32) -> u32 {
        if self.0.contains(&seconds) {
            return seconds;
        }
        if self.0.len() < Self::MAX {
            self.0.push(seconds);
            return seconds;
        }
        let longer = self.0.iter().filter(|t| **t >= seconds).min();
        longer.or(self.0.iter().max()).copied().unwrap_or(seconds)
    }

    /// The class of a choice: even for all sources, odd for external ones; 0 and 1 without affinity.
    pub(super) fn class(&self, external: bool, affinity: Option<u32>) -> u32 {
        let index = affinity.and_then(|a| self.0.iter().position(|t| *t == a)).map_or(0, |i| i + 1);
        index as u32 * 2 + u32::from(external)
    }
}

/// A choice with places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Placed {
    Refuse,
    Drop,
    Spread(Vec<Target>),
}

/// All about a front, with places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlacedFront {
    pub(super) choice: Placed,
    pub(super) external: Option<Placed>,
    pub(super) affinity: Option<u32>,
    /// A number for the Service port, shared by all of its fronts; 0 without affinity.
    pub(super) group: u64,
    /// Who may connect: first and last addresses.
    pub(super) sources: Option<Vec<(IpAddr, IpAddr)>>,
}

impl PlacedFront {
    /// What a front wants, with endpoints where they were.
    pub(super) fn settle(old: Option<&Self>, wanted: &Wanted) -> Self {
        Self {
            choice: settle(old.map(|o| &o.choice), &wanted.choice),
            external: wanted.external.as_ref().map(|e| settle(old.and_then(|o| o.external.as_ref()), e)),
            affinity: wanted.affinity,
            group: if wanted.affinity.is_some() { group(&wanted.port) } else { 0 },
            sources: wanted.sources.as_ref().map(prefixes),
        }
    }

    /// All elements of a front.
    pub(super) fn elements(&self, front: Front, timeouts: &Timeouts) -> impl Iterator<Item = Element> + use<> {
        let mut all = Vec::new();
        let number = |choice: &Placed, external: bool| match choice {
            Placed::Refuse => REFUSE,
            Placed::Drop => DROP,
            Placed::Spread(targets) => timeouts.class(external, self.affinity) << 16 | places(targets.len()),
        };
        all.push(Element::Service(front, self.group, number(&self.choice, false)));
        all.extend(self.external.as_ref().map(|e| Element::External(front, self.group, number(e, true))));
        let choices = [(Some(&self.choice), 0), (self.external.as_ref(), EXTERNAL)];
        let spread = choices.into_iter().filter_map(|(choice, offset)| match choice {
            Some(Placed::Spread(targets)) => Some((targets, offset)),
            _ => None,
        });
        for (targets, offset) in spread {
            let ids = if self.affinity.is_some() { ids(targets) } else { BTreeMap::new() };
            let taken = targets.iter().cycle().zip(offset..offset + places(targets.len()));
            for (target, place) in taken {
                all.push(Element::Endpoint(front, place, *target));
                all.extend(ids.get(target).map(|id| Element::Id(front, place, *id)));
            }
            // A client that one front gave an endpoint does not find it at another one whose policy rules it out.
            let bit = if offset == EXTERNAL { ENDPOINT_EXTERNAL } else { 0 };
            all.extend(ids.into_iter().map(|(target, id)| Element::Sticky(front, id | bit, target)));
        }
        if let Some(sources) = &self.sources {
            all.push(Element::Limited(front));
            all.extend(sources.iter().map(|(first, last)| Element::Source(front, *first, *last)));
        }
        all.into_iter()
    }
}

/// How many places so many endpoints get.
fn places(endpoints: usize) -> u32 {
    match endpoints {
        n if n <= EXACT as usize => n as u32,
        n if n <= 256 => WIDE[0],
        _ => WIDE[1],
    }
}

/// A number for a Service port that depends on its name alone. With 64 bits, no two will ever have the same one.
fn group(port: &str) -> u64 {
    let mut hash = DefaultHasher::new();
    port.hash(&mut hash);
    hash.finish()
}

/// An even number for every endpoint that depends on the endpoint alone, but for one in two thousand million.
fn ids<'a>(targets: impl IntoIterator<Item = &'a Target>) -> BTreeMap<Target, u32> {
    let mut taken = BTreeSet::new();
    let mut number = |target: &Target| {
        let step = |h: u32, b: u8| (h ^ u32::from(b)).wrapping_mul(0x0100_0193);
        let hash = target.port.to_be_bytes().into_iter().fold(0x811c_9dc5, step);
        let hash = match target.ip {
            IpAddr::V4(ip) => ip.octets().into_iter().fold(hash, step),
            IpAddr::V6(ip) => ip.octets().into_iter().fold(hash, step),
        };
        let mut id = hash & !ENDPOINT_EXTERNAL;
        while !taken.insert(id) {
            id = id.wrapping_add(2);
        }
        id
    };
    let sorted: BTreeSet<Target> = targets.into_iter().copied().collect();
    sorted.into_iter().map(|target| (target, number(&target))).collect()
}

fn settle(old: Option<&Placed>, wanted: &Choice) -> Placed {
    let wanted = match wanted {
        Choice::Refuse => return Placed::Refuse,
        Choice::Drop => return Placed::Drop,
        Choice::Spread(targets) => targets,
    };
    let old = match old {
        Some(Placed::Spread(targets)) => targets.as_slice(),
        _ => &[],
    };
    let mut places: Vec<Option<Target>> = old.iter().map(|t| wanted.contains(t).then_some(*t)).collect();
    let mut fresh = wanted.iter().filter(|t| !old.contains(t)).copied();
    for place in places.iter_mut().filter(|p| p.is_none()) {
        *place = fresh.next();
    }
    places.extend(fresh.map(Some));
    while let Some(hole) = places.iter().position(Option::is_none) {
        places.swap_remove(hole);
    }
    Placed::Spread(places.into_iter().flatten().collect())
}
