//! From what is programmed to what is wanted, in set elements. Pure.
//!
//! In: the models of services, as they change. Out: [`Plan`]s: elements to delete and to add. Endpoints keep their
//! places while they live; when one goes, the last one moves into its hole, so that a change of one endpoint is a
//! change of a few elements.

use crate::{
    conntrack::{Stale, stale},
    model::{Choice, Front, ServiceModel, TCP, Target, Wanted},
};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

/// The value of a front that refuses.
pub const REFUSE: u32 = 0;
/// The value of a front that drops.
pub const DROP: u32 = u32::MAX;
/// Places of a front's external choice start here, so that both fit in one map.
pub const EXTERNAL: u32 = 0x1_0000;
/// Up to so many endpoints, one place is one endpoint.
pub const EXACT: u32 = 64;
/// With more, the endpoints take turns on so many places: none gets more than about a sixteenth above its share.
pub const WIDE: [u32; 2] = [4096, 16384];

/// Sets of ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RangeSet {
    /// All pods of the cluster.
    Pods,
    /// All service addresses.
    Services,
    /// The node's own addresses and pods.
    Local,
}

/// One element of one of the kernel's sets and maps. A start sorts after an end at the same address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// Where a range starts (`true`), or has ended.
    Bound(RangeSet, IpAddr, bool),
    /// Front → number of places and how to choose.
    Service(Front, u32),
    /// The same for sources outside of the cluster.
    External(Front, u32),
    /// Front and place → endpoint.
    Endpoint(Front, u32, Target),
    /// Front with affinity and place → the endpoint's number, which stays the same wherever its place is.
    Id(Front, u32, u32),
    /// Front with affinity and endpoint's number → endpoint.
    Sticky(Front, u32, Target),
    /// An address of a Service.
    ClusterIp(IpAddr),
    /// An endpoint on this node.
    Hairpin(IpAddr),
}

impl Element {
    /// Whose family's table it belongs to.
    pub fn ip(&self) -> IpAddr {
        match self {
            Self::Bound(_, ip, _) | Self::ClusterIp(ip) | Self::Hairpin(ip) => *ip,
            Self::Service(f, _) | Self::External(f, _) => f.ip,
            Self::Endpoint(f, ..) | Self::Id(f, ..) | Self::Sticky(f, ..) => f.ip,
        }
    }
}

/// The smallest change. Everything to delete goes first: an element whose value changes is deleted and added.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Elements that are there.
    pub delete: BTreeSet<Element>,
    /// Elements that are not.
    pub add: BTreeSet<Element>,
}

impl Plan {
    /// From one state to another.
    pub fn between(old: &BTreeSet<Element>, new: &BTreeSet<Element>) -> Self {
        Self { delete: old - new, add: new - old }
    }

    /// This, and then another one, as one change: what the other takes back is not done at all.
    pub fn extend(&mut self, next: Self) {
        for element in next.delete {
            if !self.add.remove(&element) {
                self.delete.insert(element);
            }
        }
        for element in next.add {
            if !self.delete.remove(&element) {
                self.add.insert(element);
            }
        }
    }

    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.add.is_empty()
    }
}

/// The affinity time-outs in use, in seconds; their order is the kernel's and only grows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timeouts(pub Vec<u32>);

impl Timeouts {
    /// The class of a choice: even for all sources, odd for external ones; 0 and 1 without affinity.
    fn class(&self, external: bool, affinity: Option<u32>) -> u32 {
        let index = affinity.and_then(|a| self.0.iter().position(|t| *t == a)).map_or(0, |i| i + 1);
        index as u32 * 2 + u32::from(external)
    }
}

/// A choice with places.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Placed {
    Refuse,
    Drop,
    Spread(Vec<Target>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct PlacedFront {
    choice: Placed,
    external: Option<Placed>,
    affinity: Option<u32>,
}

/// The models of all services and the places of their endpoints: what is, or is about to be, in the kernel.
#[derive(Debug, Default)]
pub struct Planner {
    services: BTreeMap<String, ServiceModel>,
    /// Who wants a front: should two, the first by name has it.
    claims: HashMap<Front, BTreeSet<String>>,
    addresses: HashMap<Element, usize>,
    fronts: BTreeMap<Front, PlacedFront>,
    ranges: BTreeSet<Element>,
    timeouts: Timeouts,
    stale: Stale,
}

impl Planner {
    /// With the time-outs that the kernel's chains know.
    pub fn new(timeouts: Timeouts) -> Self {
        Self { timeouts, ..Self::default() }
    }

    /// The affinity time-outs that the kernel's chains must know.
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// The fronts whose datagram flows are to be looked at since the last call.
    pub fn take_stale(&mut self) -> Stale {
        std::mem::take(&mut self.stale)
    }

    fn wanted(&self, front: &Front) -> Option<&Wanted> {
        let name = self.claims.get(front)?.first()?;
        self.services.get(name)?.fronts.get(front)
    }

    /// Sets or removes a service; the plan is what that changes.
    pub fn set(&mut self, name: &str, model: Option<ServiceModel>) -> Plan {
        let before: BTreeSet<Front> =
            self.services.get(name).into_iter().flat_map(|s| s.fronts.keys()).copied().collect();
        let touched: BTreeSet<Front> =
            before.into_iter().chain(model.iter().flat_map(|m| m.fronts.keys()).copied()).collect();
        let wanted: Vec<(Front, Option<Wanted>)> =
            touched.iter().filter(|f| f.protocol != TCP).map(|f| (*f, self.wanted(f).cloned())).collect();
        let old = self.services.remove(name).unwrap_or_default();
        let new = model.clone().unwrap_or_default();
        if let Some(model) = model {
            self.services.insert(name.to_owned(), model);
        }
        let mut plan = Plan::default();
        for address in addresses(&old).difference(&addresses(&new)) {
            self.release(*address, &mut plan);
        }
        for address in addresses(&new).difference(&addresses(&old)) {
            let count = self.addresses.entry(*address).or_default();
            *count += 1;
            if *count == 1 {
                plan.add.insert(*address);
            }
        }
        for front in old.fronts.keys().filter(|f| !new.fronts.contains_key(f)) {
            let claims = self.claims.entry(*front).or_default();
            claims.remove(name);
        }
        for front in new.fronts.keys() {
            self.claims.entry(*front).or_default().insert(name.to_owned());
        }
        for front in touched {
            self.place(front, &mut plan);
        }
        for (front, before) in wanted {
            if let Some(on) = stale(&front, before.as_ref(), self.wanted(&front)) {
                self.stale.insert(front, on);
            }
        }
        plan
    }

    /// Sets the cluster's and the node's ranges.
    pub fn set_ranges(&mut self, pods: &[IpNet], services: &[IpNet], local: &[IpNet]) -> Plan {
        let sets = [(RangeSet::Pods, pods), (RangeSet::Services, services), (RangeSet::Local, local)];
        let new = sets.into_iter().flat_map(|(set, nets)| bounds(set, nets)).collect();
        let plan = Plan::between(&self.ranges, &new);
        self.ranges = new;
        plan
    }

    /// Everything that is to be in the kernel.
    pub fn elements(&self) -> BTreeSet<Element> {
        let mut all = self.ranges.clone();
        all.extend(self.addresses.keys());
        for (front, placed) in &self.fronts {
            all.extend(self.elements_of(front, placed));
        }
        all
    }

    /// Takes over the places that endpoints have in the kernel, so that a restart moves none. To be called before
    /// services are set.
    pub fn adopt(&mut self, kernel: &BTreeSet<Element>) {
        let mut places: BTreeMap<Front, [BTreeMap<u32, Target>; 2]> = BTreeMap::new();
        for element in kernel {
            if let Element::Endpoint(front, place, target) = element {
                let external = usize::from(*place >= EXTERNAL);
                places.entry(*front).or_default()[external].insert(*place % EXTERNAL, *target);
            }
        }
        let spread = |places: BTreeMap<u32, Target>| {
            let mut seen = BTreeSet::new();
            Placed::Spread(places.into_values().filter(|t| seen.insert(*t)).collect())
        };
        for (front, [all, external]) in places {
            let external = (!external.is_empty()).then(|| spread(external));
            self.fronts.insert(front, PlacedFront { choice: spread(all), external, affinity: None });
        }
    }

    /// After [`Planner::adopt`] and the first complete set of services: forgets places nobody wants.
    pub fn forget_unclaimed(&mut self) {
        let claims = &self.claims;
        self.fronts.retain(|front, _| claims.get(front).is_some_and(|c| !c.is_empty()));
    }

    fn release(&mut self, address: Element, plan: &mut Plan) {
        if let Some(count) = self.addresses.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&address);
                plan.delete.insert(address);
            }
        }
    }

    fn place(&mut self, front: Front, plan: &mut Plan) {
        let wanted = self.wanted(&front);
        let old = self.fronts.get(&front);
        let new = wanted.map(|w| settle_front(old, w));
        let affinity = new.as_ref().and_then(|n| n.affinity);
        if let Some(seconds) = affinity.filter(|a| !self.timeouts.0.contains(a)) {
            self.timeouts.0.push(seconds);
        }
        let of = |placed: Option<&PlacedFront>| -> BTreeSet<Element> {
            placed.map(|p| self.elements_of(&front, p).collect()).unwrap_or_default()
        };
        let change = Plan::between(&of(old), &of(new.as_ref()));
        plan.extend(change);
        match new {
            Some(new) => {
                self.fronts.insert(front, new);
            }
            None => {
                self.fronts.remove(&front);
                self.claims.remove(&front);
            }
        }
    }

    fn elements_of(&self, front: &Front, placed: &PlacedFront) -> impl Iterator<Item = Element> + use<> {
        let front = *front;
        let mut all = Vec::new();
        let number = |choice: &Placed, external: bool| match choice {
            Placed::Refuse => REFUSE,
            Placed::Drop => DROP,
            Placed::Spread(targets) => self.timeouts.class(external, placed.affinity) << 16 | places(targets.len()),
        };
        all.push(Element::Service(front, number(&placed.choice, false)));
        all.extend(placed.external.as_ref().map(|e| Element::External(front, number(e, true))));
        let choices = [(Some(&placed.choice), 0), (placed.external.as_ref(), EXTERNAL)];
        let spread = choices.into_iter().filter_map(|(choice, offset)| match choice {
            Some(Placed::Spread(targets)) => Some((targets, offset)),
            _ => None,
        });
        let ids = if placed.affinity.is_some() { ids(spread.clone().flat_map(|(t, _)| t)) } else { BTreeMap::new() };
        for (targets, offset) in spread {
            let taken = targets.iter().cycle().zip(offset..offset + places(targets.len()));
            for (target, place) in taken {
                all.push(Element::Endpoint(front, place, *target));
                all.extend(ids.get(target).map(|id| Element::Id(front, place, *id)));
            }
        }
        all.extend(ids.into_iter().map(|(target, id)| Element::Sticky(front, id, target)));
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

/// A number for every endpoint that depends on the endpoint alone, but for one in four thousand million.
fn ids<'a>(targets: impl Iterator<Item = &'a Target>) -> BTreeMap<Target, u32> {
    let mut taken = BTreeSet::new();
    let mut number = |target: &Target| {
        let step = |h: u32, b: u8| (h ^ u32::from(b)).wrapping_mul(0x0100_0193);
        let hash = target.port.to_be_bytes().into_iter().fold(0x811c_9dc5, step);
        let mut id = match target.ip {
            IpAddr::V4(ip) => ip.octets().into_iter().fold(hash, step),
            IpAddr::V6(ip) => ip.octets().into_iter().fold(hash, step),
        };
        while !taken.insert(id) {
            id = id.wrapping_add(1);
        }
        id
    };
    let sorted: BTreeSet<Target> = targets.copied().collect();
    sorted.into_iter().map(|target| (target, number(&target))).collect()
}

fn addresses(model: &ServiceModel) -> BTreeSet<Element> {
    let cluster = model.cluster_ips.iter().map(|ip| Element::ClusterIp(*ip));
    cluster.chain(model.local.iter().map(|ip| Element::Hairpin(*ip))).collect()
}

fn settle_front(old: Option<&PlacedFront>, wanted: &Wanted) -> PlacedFront {
    PlacedFront {
        choice: settle(old.map(|o| &o.choice), &wanted.choice),
        external: wanted.external.as_ref().map(|e| settle(old.and_then(|o| o.external.as_ref()), e)),
        affinity: wanted.affinity,
    }
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

/// The bounds of ranges, merged where they meet. What reaches to the end of all addresses has no end.
fn bounds(set: RangeSet, nets: &[IpNet]) -> Vec<Element> {
    let next = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|n| IpAddr::V6(n.into())),
    };
    let mut all = BTreeSet::new();
    for net in IpNet::aggregate(&nets.to_vec()) {
        all.insert(Element::Bound(set, net.network(), true));
        if let Some(end) = next(net.broadcast()) {
            all.insert(Element::Bound(set, end, false));
        }
    }
    // Neighbours that are not one prefix: where one ends and the next starts, there is no bound.
    let both = |ip: IpAddr| [true, false].map(|s| Element::Bound(set, ip, s)).iter().all(|b| all.contains(b));
    all.iter().filter(|e| !both(e.ip())).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Kind;
    use proptest::prelude::*;

    fn front(n: u8) -> Front {
        Front { ip: IpAddr::from([10, 96, 0, n]), protocol: 6, port: 80 }
    }

    fn target(n: u16) -> Target {
        Target { ip: IpAddr::from([10, 244, (n >> 8) as u8, n as u8]), port: 8080 }
    }

    fn model(front_at: u8, targets: &BTreeSet<u16>, external: bool, affinity: Option<u32>) -> ServiceModel {
        let spread = |t: &BTreeSet<u16>| {
            if t.is_empty() { Choice::Refuse } else { Choice::Spread(t.iter().map(|n| target(*n)).collect()) }
        };
        let near: BTreeSet<u16> = targets.iter().copied().filter(|n| n % 2 == 0).collect();
        let wanted = Wanted {
            port: "d/s".into(),
            kind: Kind::ClusterIp,
            choice: spread(targets),
            external: external.then(|| spread(&near)),
            affinity,
            sources: None,
            lingering: BTreeSet::new(),
        };
        ServiceModel {
            fronts: [(front(front_at), wanted)].into(),
            cluster_ips: [front(front_at).ip].into(),
            local: near.iter().map(|n| target(*n).ip).collect(),
            health: None,
        }
    }

    fn apply(kernel: &mut BTreeSet<Element>, plan: &Plan) {
        for e in &plan.delete {
            assert!(kernel.remove(e), "deletes what is not there: {e:?}");
        }
        for e in &plan.add {
            assert!(kernel.insert(*e), "adds what is there: {e:?}");
        }
    }

    /// What packets see: per front the endpoints and their number of places.
    fn seen(elements: &BTreeSet<Element>) -> BTreeMap<(Front, bool), BTreeMap<Target, usize>> {
        let mut all: BTreeMap<_, BTreeMap<_, usize>> = BTreeMap::new();
        for e in elements {
            if let Element::Endpoint(f, place, t) = e {
                *all.entry((*f, *place >= EXTERNAL)).or_default().entry(*t).or_default() += 1;
            }
        }
        all
    }

    fn check_places(elements: &BTreeSet<Element>) {
        for e in elements {
            let (f, value, offset) = match e {
                Element::Service(f, value) => (f, *value, 0),
                Element::External(f, value) => (f, *value, EXTERNAL),
                _ => continue,
            };
            let places: Vec<u32> = elements
                .iter()
                .filter_map(|e| match e {
                    Element::Endpoint(g, p, _) if f == g && (*p >= EXTERNAL) == (offset > 0) => Some(p - offset),
                    _ => None,
                })
                .collect();
            let number = if value == DROP { 0 } else { value & 0xffff };
            assert_eq!(places, (0..number).collect::<Vec<_>>(), "every place is taken, once");
        }
    }

    #[test]
    fn one_that_goes_moves_one_other() {
        let mut p = Planner::default();
        p.set("s", Some(model(1, &(0..10).collect(), false, None)));
        let plan = p.set("s", Some(model(1, &(0..10).filter(|n| *n != 3).collect(), false, None)));
        let moved: Vec<_> = plan.add.iter().filter(|e| matches!(e, Element::Endpoint(..))).collect();
        assert_eq!(moved, [&Element::Endpoint(front(1), 3, target(9))]);
    }

    #[test]
    fn bounds_are_merged() {
        let nets: Vec<IpNet> =
            ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24", "255.255.255.0/24"].map(|n| n.parse().unwrap()).into();
        let at = |ip: &str, s| Element::Bound(RangeSet::Pods, ip.parse().unwrap(), s);
        assert_eq!(
            bounds(RangeSet::Pods, &nets),
            [at("10.0.0.0", true), at("10.0.3.0", false), at("255.255.255.0", true)]
        );
    }

    #[test]
    fn many_endpoints_share_places_evenly() {
        let mut p = Planner::default();
        p.set("s", Some(model(1, &(0..250).collect(), false, None)));
        let seen = seen(&p.elements());
        let shares: BTreeSet<usize> = seen.values().flat_map(BTreeMap::values).copied().collect();
        assert_eq!(shares, [16, 17].into());
    }

    type Step = (u8, u8, BTreeSet<u16>, bool, Option<u32>, bool);

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let targets = prop_oneof![
            8 => prop::collection::btree_set(0_u16..12, 0..8),
            1 => prop::collection::btree_set(0_u16..300, 60..70),
        ];
        let affinity = prop_oneof![3 => Just(None), 1 => Just(Some(10)), 1 => Just(Some(10_800))];
        prop::collection::vec((0_u8..4, 0_u8..4, targets, any::<bool>(), affinity, prop::bool::weighted(0.8)), 1..30)
    }

    proptest! {
        #[test]
        fn any_history_ends_where_a_fresh_start_does(steps in steps()) {
            let mut planner = Planner::default();
            let mut kernel = BTreeSet::new();
            let mut last: BTreeMap<String, ServiceModel> = BTreeMap::new();
            let mut all = Plan::default();
            for (service, at, targets, external, affinity, present) in steps {
                let name = format!("s{service}");
                let m = present.then(|| model(at, &targets, external, affinity));
                let plan = planner.set(&name, m.clone());
                apply(&mut kernel, &plan);
                all.extend(plan);
                match m { Some(m) => { last.insert(name, m); } None => { last.remove(&name); } }
                prop_assert_eq!(&kernel, &planner.elements());
                check_places(&kernel);
            }
            let mut fresh = Planner::new(planner.timeouts().clone());
            for (name, m) in &last {
                fresh.set(name, Some(m.clone()));
            }
            let others = |all: &BTreeSet<Element>| -> BTreeSet<Element> {
                all.iter().filter(|e| !matches!(e, Element::Endpoint(..) | Element::Id(..))).copied().collect()
            };
            prop_assert_eq!(others(&kernel), others(&fresh.elements()));
            prop_assert_eq!(seen(&kernel).len(), seen(&fresh.elements()).len());
            for (front, places) in seen(&fresh.elements()) {
                let here = &seen(&kernel)[&front];
                prop_assert_eq!(here.keys().collect::<Vec<_>>(), places.keys().collect::<Vec<_>>());
            }
            let mut at_once = BTreeSet::new();
            apply(&mut at_once, &all);
            prop_assert_eq!(&at_once, &kernel);
            // A restart finds everything in its place.
            let mut again = Planner::new(planner.timeouts().clone());
            again.adopt(&kernel);
            for (name, m) in &last {
                again.set(name, Some(m.clone()));
            }
            again.forget_unclaimed();
            prop_assert_eq!(Plan::between(&kernel, &again.elements()), Plan::default());
        }
    }
}
