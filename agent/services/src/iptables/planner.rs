//! All rules of all services, and which chains changed since they were last written. Pure.
//!
//! In: models as they change. Out: [`Changes`], chains with their new rules. What has not changed is rendered only when
//! everything is asked for ([`Planner::all`]).

use super::{
    names::{ChainId, NODE_PORTS, SERVICES},
    render::{self, Rendered, SharedChain, SharedRule},
    shared::{By, Key, NARROW, Shared},
};
use crate::{
    conntrack::{Stale, stale},
    family::Family,
    model::{Front, ServiceModel, TCP, Wanted},
    renderer::Ranges,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::Arc,
};

/// Chains that change: their new rules, or none when they go.
pub type Changes = BTreeMap<ChainId, Option<Vec<String>>>;

#[derive(Debug, Default)]
struct Service {
    model: ServiceModel,
    /// What its chains were when last rendered, as fingerprints.
    chains: BTreeMap<ChainId, u64>,
    shared: Vec<(Family, SharedChain, Key)>,
}

/// What is, or is about to be, in the kernel.
#[derive(Debug)]
pub struct Planner {
    families: Vec<Family>,
    ranges: Ranges,
    services: BTreeMap<Arc<str>, Service>,
    /// Who wants a front: should two, the first by name has it.
    claims: HashMap<Front, BTreeSet<Arc<str>>>,
    /// Cluster IPs and how many services have them.
    cluster_ips: BTreeMap<IpAddr, usize>,
    /// Those outside of the service ranges, as after a change of these.
    strays: BTreeSet<IpAddr>,
    shared: BTreeMap<(Family, SharedChain), Shared>,
    changes: Changes,
    /// Shared chains that may have changed.
    touched: BTreeSet<(Family, SharedChain, String)>,
    fixed_changed: bool,
}

impl Planner {
    /// Without services. Everything counts as changed.
    pub fn new(families: Vec<Family>) -> Self {
        Self::branching_above(families, NARROW)
    }

    /// With another size of shared chains: for tests.
    pub fn branching_above(families: Vec<Family>, narrow: usize) -> Self {
        let mut shared = BTreeMap::new();
        let mut touched = BTreeSet::new();
        for family in &families {
            for chain in SharedChain::ALL {
                let is_by_port = matches!(chain, SharedChain::NodePorts | SharedChain::HealthChecks);
                let by = if is_by_port { By::Port } else { By::Address };
                shared.insert((*family, chain), Shared::new(chain.base().1, by, narrow));
                touched.insert((*family, chain, chain.base().1.to_owned()));
            }
        }
        Self {
            families,
            ranges: Ranges::default(),
            services: BTreeMap::new(),
            claims: HashMap::new(),
            cluster_ips: BTreeMap::new(),
            strays: BTreeSet::new(),
            shared,
            changes: Changes::new(),
            touched,
            fixed_changed: true,
        }
    }

    /// The families that are programmed.
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// How many chains there are, roughly.
    pub fn size(&self) -> usize {
        self.services.values().map(|s| s.chains.len()).sum()
    }

    /// Takes a service's new model; none when it is gone. Returns the fronts whose
    /// datagram flows are to be looked at.
    pub fn set(&mut self, name: &str, model: Option<ServiceModel>) -> Stale {
        let name: Arc<str> = match self.services.get_key_value(name) {
            Some((name, _)) => name.clone(),
            None => name.into(),
        };
        let new = model.unwrap_or_default();
        let old = self.services.get(&name).map(|s| s.model.clone()).unwrap_or_default();
        if old == new && self.services.contains_key(&name) {
            return Stale::new();
        }
        let touched: BTreeSet<Front> = old.fronts.keys().chain(new.fronts.keys()).copied().collect();
        let before = self.datagrams(&touched);
        let owners = |this: &Self| -> BTreeMap<Front, Option<Arc<str>>> {
            touched.iter().map(|front| (*front, this.owner(front).cloned())).collect()
        };
        let owned_before = owners(self);
        for front in old.fronts.keys() {
            if let Some(claims) = self.claims.get_mut(front) {
                claims.remove(&name);
                if claims.is_empty() {
                    self.claims.remove(front);
                }
            }
        }
        for front in new.fronts.keys() {
            self.claims.entry(*front).or_default().insert(name.clone());
        }
        self.count_cluster_ips(&old.cluster_ips, &new.cluster_ips);
        self.services.entry(name.clone()).or_default().model = new;
        // Whoever loses or gets a front by this changes too.
        let mut affected = BTreeSet::from([name.clone()]);
        for (front, owner) in owners(self) {
            let before = owned_before.get(&front).cloned().flatten();
            if before != owner {
                affected.extend(before.into_iter().chain(owner));
            }
        }
        for name in affected {
            self.render(&name);
        }
        let is_empty = self.services.get(&name).is_some_and(|s| s.model == ServiceModel::default());
        if is_empty {
            self.services.remove(&name);
        }
        let after = self.datagrams(&touched);
        let of = |front: &Front| Some((*front, stale(front, before.get(front), after.get(front))?));
        touched.iter().filter_map(of).collect()
    }

    /// Sets the cluster's and the node's ranges.
    pub fn set_ranges(&mut self, ranges: &Ranges) {
        if self.ranges == *ranges {
            return;
        }
        self.ranges = ranges.clone();
        let is_stray = |ip: &&IpAddr| !ranges.services.iter().any(|range| range.contains(*ip));
        self.strays = self.cluster_ips.keys().filter(is_stray).copied().collect();
        self.fixed_changed = true;
        let names: Vec<Arc<str>> = self.services.keys().cloned().collect();
        for name in names {
            self.render(&name);
        }
    }

    /// What changed since the last call.
    pub fn take(&mut self) -> Changes {
        for (family, chain, name) in std::mem::take(&mut self.touched) {
            let (table, _) = chain.base();
            let rules = self.shared_rules(family, chain, &name);
            self.changes.insert(ChainId::new(family, table, name), rules);
        }
        if std::mem::take(&mut self.fixed_changed) {
            for (id, rules) in self.fixed() {
                self.changes.insert(id, Some(rules));
            }
        }
        std::mem::take(&mut self.changes)
    }

    /// Everything that is to be in the kernel; nothing counts as changed after.
    pub fn all(&mut self) -> BTreeMap<ChainId, Vec<String>> {
        self.touched.clear();
        self.changes.clear();
        self.fixed_changed = false;
        let mut all = self.fixed();
        for ((family, chain), shared) in &self.shared {
            for name in shared.names() {
                let rules = self.shared_rules(*family, *chain, &name).unwrap_or_default();
                all.insert(ChainId::new(*family, chain.base().0, name), rules);
            }
        }
        for name in self.services.keys() {
            all.extend(self.rendered(name).chains);
        }
        all
    }

    fn owner(&self, front: &Front) -> Option<&Arc<str>> {
        self.claims.get(front)?.first()
    }

    /// What is wanted at those fronts that are not of TCP.
    fn datagrams(&self, fronts: &BTreeSet<Front>) -> BTreeMap<Front, Wanted> {
        let of = |front: &Front| self.services.get(self.owner(front)?)?.model.fronts.get(front).cloned();
        fronts.iter().filter(|f| f.protocol != TCP).filter_map(|f| Some((*f, of(f)?))).collect()
    }

    fn count_cluster_ips(&mut self, old: &BTreeSet<IpAddr>, new: &BTreeSet<IpAddr>) {
        for ip in new {
            let count = self.cluster_ips.entry(*ip).or_default();
            *count += 1;
            let is_stray = *count == 1 && !self.ranges.services.iter().any(|range| range.contains(ip));
            self.fixed_changed |= is_stray && self.strays.insert(*ip);
        }
        for ip in old {
            if let Some(count) = self.cluster_ips.get_mut(ip) {
                *count -= 1;
                if *count == 0 {
                    self.cluster_ips.remove(ip);
                    self.fixed_changed |= self.strays.remove(ip);
                }
            }
        }
    }

    fn rendered(&self, name: &Arc<str>) -> Rendered {
        match self.services.get(name) {
            Some(service) => {
                render::service(name, &service.model, &self.ranges, |front| self.owner(front) == Some(name))
            }
            None => Rendered::default(),
        }
    }

    fn render(&mut self, name: &Arc<str>) {
        let rendered = self.rendered(name);
        let Some(service) = self.services.get_mut(name) else { return };
        let is_served = |family: &Family| self.families.contains(family);
        let mut chains = BTreeMap::new();
        for (id, rules) in rendered.chains.into_iter().filter(|(id, _)| is_served(&id.family)) {
            let hash = fingerprint(&rules);
            if service.chains.remove(&id) != Some(hash) {
                self.changes.insert(id.clone(), Some(rules));
            }
            chains.insert(id, hash);
        }
        self.changes.extend(std::mem::replace(&mut service.chains, chains).into_keys().map(|id| (id, None)));
        let mut gone: BTreeSet<_> = std::mem::take(&mut service.shared).into_iter().collect();
        for SharedRule { chain, front, rank, rule } in rendered.shared {
            let family = Family::of(&front.ip);
            let Some(shared) = self.shared.get_mut(&(family, chain)) else { continue };
            let key = shared.key(front, rank, name);
            let mut names = BTreeSet::new();
            shared.set(key.clone(), Some(rule), &mut names);
            self.touched.extend(names.into_iter().map(|name| (family, chain, name)));
            let place = (family, chain, key);
            gone.remove(&place);
            service.shared.push(place);
        }
        for (family, chain, key) in gone {
            let Some(shared) = self.shared.get_mut(&(family, chain)) else { continue };
            let mut names = BTreeSet::new();
            shared.set(key, None, &mut names);
            self.touched.extend(names.into_iter().map(|name| (family, chain, name)));
        }
    }

    fn shared_rules(&self, family: Family, chain: SharedChain, name: &str) -> Option<Vec<String>> {
        let mut rules = self.shared.get(&(family, chain))?.chain(name, family)?;
        if chain == SharedChain::Services && name == SERVICES {
            let what = "kubernetes service nodeports; NOTE: this must be the last rule in this chain";
            rules.push(format!("-m comment --comment \"{what}\" -m addrtype --dst-type LOCAL -j {NODE_PORTS}"));
        }
        Some(rules)
    }

    fn fixed(&self) -> BTreeMap<ChainId, Vec<String>> {
        self.families.iter().flat_map(|family| render::fixed(*family, &self.ranges, &self.strays)).collect()
    }
}

/// Of a chain's rules: enough to see that they are others.
pub fn fingerprint(rules: &[String]) -> u64 {
    let mut hash = DefaultHasher::new();
    rules.hash(&mut hash);
    hash.finish()
}
