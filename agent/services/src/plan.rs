//! From what is programmed to what is wanted, in set elements. Pure.
//!
//! In: the models of services, as they change. Out: [`Plan`]s: elements to delete and to add, as few as can be. `element`
//! has the elements, `place` gives endpoints their places behind a front.

mod element;
mod place;
#[cfg(test)]
mod tests;

use crate::{
    conntrack::{Stale, stale},
    model::{Front, ServiceModel, TCP, Target, Wanted},
};
use element::bounds;
pub use element::{Element, Plan, RangeSet};
use ipnet::IpNet;
pub use place::{DROP, ENDPOINT_EXTERNAL, EXACT, EXTERNAL, REFUSE, Timeouts, WIDE};
use place::{Placed, PlacedFront};
use std::collections::{BTreeMap, BTreeSet, HashMap};

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
            all.extend(placed.elements(*front, &self.timeouts));
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
            self.fronts
                .insert(front, PlacedFront { choice: spread(all), external, affinity: None, group: 0, sources: None });
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
        let mut new = wanted.map(|w| PlacedFront::settle(old, w));
        if let Some(seconds) = new.as_mut().and_then(|n| n.affinity.as_mut()) {
            *seconds = self.timeouts.take(*seconds);
        }
        let of = |placed: Option<&PlacedFront>| -> BTreeSet<Element> {
            placed.map(|p| p.elements(front, &self.timeouts).collect()).unwrap_or_default()
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
}

fn addresses(model: &ServiceModel) -> BTreeSet<Element> {
    let cluster = model.cluster_ips.iter().map(|ip| Element::ClusterIp(*ip));
    cluster.chain(model.local.iter().map(|ip| Element::Hairpin(*ip))).collect()
}
