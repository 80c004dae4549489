//! From what is programmed to what is wanted. Pure.
//!
//! In: pods, namespaces, policies and the node's ranges, as they change. Out: [`Plan`]s: chains and set elements to delete
//! and to add. What policies mean for the node's own pods is worked out anew for all of them whenever one of them or a
//! policy changes: there are about a hundred. What a pod of the whole cluster is a member of is worked out for that pod.

use crate::{
    chains::{Line, Needs},
    model::{Allow, Direction, Group, PodInfo, Policy},
};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

/// One element of one of our sets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// A pod of this node whose policies are in force.
    Pod(IpAddr),
    /// One that is isolated in a direction, and its chain.
    Isolated(Direction, IpAddr, String),
    /// A member of a group.
    Member(u64, IpAddr),
    /// A port with a name, or the port of a member that is one on some ports only.
    Port(u64, IpAddr, u8, u16),
    /// A bound of the node's pod ranges: the first address, or the first after it.
    Bound(IpAddr, bool),
}

impl Element {
    /// Tells the family.
    pub fn ip(&self) -> IpAddr {
        match self {
            Self::Pod(ip) | Self::Isolated(_, ip, _) | Self::Member(_, ip) | Self::Port(_, ip, ..) => *ip,
            Self::Bound(ip, _) => *ip,
        }
    }

    fn id(&self) -> Option<u64> {
        match self {
            Self::Member(id, _) | Self::Port(id, ..) => Some(*id),
            _ => None,
        }
    }
}

/// Everything that is wanted, or in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// By name. Their lines are what their names say.
    pub chains: BTreeMap<String, Vec<Line>>,
    /// Of all sets.
    pub elements: BTreeSet<Element>,
}

/// A change, to be done at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Chains to make.
    pub new_chains: BTreeMap<String, Vec<Line>>,
    /// Elements to delete.
    pub delete: BTreeSet<Element>,
    /// Elements to add.
    pub add: BTreeSet<Element>,
    /// Chains to delete.
    pub old_chains: BTreeSet<String>,
}

impl Plan {
    /// The way from one state to another. Of the first, the names of chains count only.
    pub fn between(old: &State, new: &State) -> Self {
        let missing = |(name, _): &(&String, &Vec<Line>)| !old.chains.contains_key(*name);
        Self {
            new_chains: new.chains.iter().filter(missing).map(|(n, l)| (n.clone(), l.clone())).collect(),
            delete: old.elements.difference(&new.elements).cloned().collect(),
            add: new.elements.difference(&old.elements).cloned().collect(),
            old_chains: old.chains.keys().filter(|n| !new.chains.contains_key(*n)).cloned().collect(),
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.new_chains.is_empty() && self.delete.is_empty() && self.add.is_empty() && self.old_chains.is_empty()
    }

    /// How many elements and chains it changes.
    pub fn len(&self) -> usize {
        self.new_chains.len() + self.delete.len() + self.add.len() + self.old_chains.len()
    }
}

/// Keeps the wanted state, and how it differs from what was planned last.
#[derive(Debug, Default)]
pub struct Planner {
    node: String,
    ranges: BTreeSet<IpNet>,
    pods: HashMap<String, PodInfo>,
    namespaces: HashMap<String, BTreeMap<String, String>>,
    pods_of: HashMap<String, BTreeSet<String>>,
    policies: BTreeMap<(String, String), Policy>,
    /// Addresses that the pod network gave and the API does not know yet, by the pod's uid.
    given: BTreeMap<String, BTreeSet<IpAddr>>,
    needs: Needs,
    /// Which addresses of which of this node's pods, by uid, the sets are about.
    covered: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Of sets that are about this node's pods.
    own: BTreeSet<Element>,
    /// What each pod of the cluster adds to the other sets, and how many pods add the same.
    of_pod: HashMap<String, BTreeSet<Element>>,
    counts: BTreeMap<Element, usize>,
    dirty_pods: BTreeSet<String>,
    dirty: bool,
    plan: Plan,
}

impl Planner {
    /// For a node.
    pub fn new(node: &str) -> Self {
        Self { node: node.to_owned(), dirty: true, ..Self::default() }
    }

    /// The node's pod ranges. An address there is closed until its pod is known.
    pub fn set_ranges(&mut self, ranges: BTreeSet<IpNet>) {
        self.dirty |= self.ranges != ranges;
        self.ranges = ranges;
    }

    /// A pod, or something like one, by any key; none when it is gone.
    pub fn set_pod(&mut self, key: &str, pod: Option<PodInfo>) {
        let old = self.pods.get(key);
        if old == pod.as_ref() {
            return;
        }
        let is_own = |p: &&PodInfo| p.node == self.node;
        self.dirty |= old.iter().chain(pod.as_ref().iter()).any(is_own);
        for (pod, is_there) in old.iter().map(|p| (*p, false)).chain(pod.as_ref().map(|p| (p, true))) {
            let keys = self.pods_of.entry(pod.namespace.clone()).or_default();
            if is_there {
                keys.insert(key.to_owned());
            } else {
                keys.remove(key);
            }
            if keys.is_empty() {
                self.pods_of.remove(&pod.namespace);
            }
        }
        match pod {
            Some(pod) => self.pods.insert(key.to_owned(), pod),
            None => self.pods.remove(key),
        };
        self.dirty_pods.insert(key.to_owned());
    }

    /// A namespace's labels; none when it is gone.
    pub fn set_namespace(&mut self, name: &str, labels: Option<BTreeMap<String, String>>) {
        if self.namespaces.get(name) == labels.as_ref() {
            return;
        }
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
        self.dirty_pods.extend(self.pods_of.get(name).into_iter().flatten().cloned());
    }

    /// A policy by namespace and name; none when it is gone.
    pub fn set_policy(&mut self, namespace: &str, name: &str, policy: Option<Policy>) {
        let key = (namespace.to_owned(), name.to_owned());
        if self.policies.get(&key) == policy.as_ref() {
            return;
        }
        match policy {
            Some(policy) => self.policies.insert(key, policy),
            None => self.policies.remove(&key),
        };
        self.dirty = true;
    }

    /// What the pod network gave to this node's pods, by uid.
    pub fn set_given(&mut self, given: BTreeMap<String, BTreeSet<IpAddr>>) {
        if self.given == given {
            return;
        }
        let own = self.pods.iter().filter(|(_, p)| p.node == self.node && !p.only_ports);
        let touched = own.filter(|(_, p)| self.given.get(&p.uid) != given.get(&p.uid)).map(|(k, _)| k.clone());
        self.dirty_pods.extend(touched.collect::<Vec<_>>());
        self.given = given;
        self.dirty = true;
    }

    /// What has changed since the last call. Chains and elements that came and went in between are not in it.
    pub fn take_plan(&mut self) -> Plan {
        if std::mem::take(&mut self.dirty) {
            self.own_pods();
        }
        for key in std::mem::take(&mut self.dirty_pods) {
            let new = self.pods.get(&key).map(|p| self.adds(p, &self.needs.groups, &self.needs.ports));
            self.replace(&key, new.unwrap_or_default());
        }
        std::mem::take(&mut self.plan)
    }

    /// All that is wanted, as of the last plan.
    pub fn state(&self) -> State {
        let elements = self.own.iter().chain(self.counts.keys()).cloned().collect();
        State { chains: self.needs.chains.clone(), elements }
    }

    /// The addresses of this node's pods whose policies the last plan has, by uid.
    pub fn covered(&self) -> &BTreeMap<String, BTreeSet<IpAddr>> {
        &self.covered
    }

    /// (policies, pods of this node that are isolated in a direction, elements), for people.
    pub fn sizes(&self) -> (usize, usize, usize) {
        let isolated = self.own.iter().filter(|e| matches!(e, Element::Isolated(..)));
        let isolated: BTreeSet<IpAddr> = isolated.map(Element::ip).collect();
        (self.policies.len(), isolated.len(), self.own.len() + self.counts.len())
    }

    fn own(&self) -> impl Iterator<Item = (&String, &PodInfo)> {
        self.pods.iter().filter(|(_, p)| p.node == self.node && p.counts)
    }

    /// The API's word, and before it has one the network's.
    fn ips(&self, pod: &PodInfo) -> BTreeSet<IpAddr> {
        let given = self.given.get(&pod.uid).filter(|_| pod.counts && !pod.uid.is_empty());
        pod.ips.iter().chain(given.into_iter().flatten()).copied().collect()
    }

    /// Works out chains, and the sets about this node's pods.
    fn own_pods(&mut self) {
        let mut needs = Needs::default();
        let mut own = bounds(&self.ranges);
        // Should two claim an address, it is the newer one's; one that is being deleted holds it least.
        let mut pods: Vec<_> = self.own().collect();
        pods.sort_by_key(|(key, p)| (p.leaving, -p.created, *key));
        let (mut taken, mut covered) = (BTreeSet::new(), BTreeMap::new());
        for (_, pod) in pods {
            let ips: Vec<IpAddr> = self.ips(pod).into_iter().filter(|ip| taken.insert(*ip)).collect();
            if ips.is_empty() {
                continue;
            }
            own.extend(ips.iter().map(|ip| Element::Pod(*ip)));
            covered.insert(pod.uid.clone(), ips.iter().copied().collect());
            for direction in [Direction::In, Direction::Out] {
                let Some(allows) = self.allowed(pod, direction) else { continue };
                let Some(chain) = needs.add(direction, &allows) else { continue };
                own.extend(ips.iter().map(|ip| Element::Isolated(direction, *ip, chain.clone())));
            }
        }
        for gone in self.own.difference(&own) {
            drop_element(&mut self.plan, gone);
        }
        for new in own.difference(&self.own) {
            add_element(&mut self.plan, new);
        }
        (self.own, self.covered) = (own, covered);
        let old = std::mem::replace(&mut self.needs, needs);
        self.change_chains(&old.chains);
        self.change_members(&old);
    }

    /// What all policies together allow a pod; none when none isolates it.
    fn allowed(&self, pod: &PodInfo, direction: Direction) -> Option<BTreeSet<Allow>> {
        let from = (pod.namespace.clone(), String::new());
        let here = self.policies.range(from..).take_while(|((namespace, _), _)| *namespace == pod.namespace);
        let mut all = None;
        for (_, policy) in here.filter(|(_, policy)| policy.pods.matches(&pod.labels)) {
            let rules = if direction == Direction::In { &policy.ingress } else { &policy.egress };
            if let Some(rules) = rules {
                all.get_or_insert_with(BTreeSet::new).extend(rules.iter().cloned());
            }
        }
        all
    }

    fn change_chains(&mut self, old: &BTreeMap<String, Vec<Line>>) {
        for name in old.keys().filter(|n| !self.needs.chains.contains_key(*n)) {
            if self.plan.new_chains.remove(name).is_none() {
                self.plan.old_chains.insert(name.clone());
            }
        }
        for (name, lines) in self.needs.chains.iter().filter(|(n, _)| !old.contains_key(*n)) {
            if !self.plan.old_chains.remove(name) {
                self.plan.new_chains.insert(name.clone(), lines.clone());
            }
        }
    }

    /// Fills the groups and names that are new, and empties those that nobody needs any more.
    fn change_members(&mut self, old: &Needs) {
        let new = &self.needs;
        let is_gone = |id: &u64| {
            (old.groups.contains_key(id) || old.ports.contains_key(id))
                && !new.groups.contains_key(id)
                && !new.ports.contains_key(id)
        };
        let groups: BTreeMap<_, _> =
            new.groups.iter().filter(|(id, _)| !old.groups.contains_key(id)).map(|(i, g)| (*i, g.clone())).collect();
        let ports: BTreeMap<_, _> =
            new.ports.iter().filter(|(id, _)| !old.ports.contains_key(id)).map(|(i, p)| (*i, p.clone())).collect();
        let any_gone = old.groups.keys().chain(old.ports.keys()).any(is_gone);
        if !any_gone && groups.is_empty() && ports.is_empty() {
            return;
        }
        let mut changes = Vec::new();
        for (key, pod) in &self.pods {
            let before = self.of_pod.get(key);
            let kept = before.into_iter().flatten().filter(|e| !e.id().is_some_and(|id| is_gone(&id)));
            let mut after: BTreeSet<Element> = kept.cloned().collect();
            after.extend(self.adds(pod, &groups, &ports));
            if before.map_or(!after.is_empty(), |b| *b != after) {
                changes.push((key.clone(), after));
            }
        }
        for (key, after) in changes {
            self.replace(&key, after);
        }
    }

    /// The elements that a pod is the reason of.
    fn adds(
        &self,
        pod: &PodInfo,
        groups: &BTreeMap<u64, Group>,
        ports: &BTreeMap<u64, (u8, String)>,
    ) -> BTreeSet<Element> {
        let mut all = BTreeSet::new();
        let ips = if pod.node == self.node { self.ips(pod) } else { pod.ips.clone() };
        if ips.is_empty() {
            return all;
        }
        let namespace = self.namespaces.get(&pod.namespace);
        for id in groups.iter().filter(|(_, g)| g.has(pod, namespace)).map(|(id, _)| *id) {
            for ip in &ips {
                if pod.only_ports {
                    all.extend(pod.ports.iter().map(|(_, protocol, port)| Element::Port(id, *ip, *protocol, *port)));
                } else {
                    all.insert(Element::Member(id, *ip));
                }
            }
        }
        for (id, (protocol, name)) in ports {
            let named = pod.ports.iter().filter(|(n, p, _)| n == name && p == protocol);
            for (_, protocol, port) in named {
                all.extend(ips.iter().map(|ip| Element::Port(*id, *ip, *protocol, *port)));
            }
        }
        all
    }

    fn replace(&mut self, key: &str, new: BTreeSet<Element>) {
        let old = self.of_pod.remove(key).unwrap_or_default();
        for gone in old.difference(&new) {
            if let Some(count) = self.counts.get_mut(gone) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(gone);
                    drop_element(&mut self.plan, gone);
                }
            }
        }
        for element in new.difference(&old) {
            let count = self.counts.entry(element.clone()).or_default();
            *count += 1;
            if *count == 1 {
                add_element(&mut self.plan, element);
            }
        }
        if !new.is_empty() {
            self.of_pod.insert(key.to_owned(), new);
        }
    }
}

fn add_element(plan: &mut Plan, element: &Element) {
    if !plan.delete.remove(element) {
        plan.add.insert(element.clone());
    }
}

fn drop_element(plan: &mut Plan, element: &Element) {
    if !plan.add.remove(element) {
        plan.delete.insert(element.clone());
    }
}

/// The bounds of ranges that do not overlap: of two that do, the wider one counts.
fn bounds(ranges: &BTreeSet<IpNet>) -> BTreeSet<Element> {
    let within = |r: &&IpNet| !ranges.iter().any(|other| other != *r && other.contains(*r));
    let mut all = BTreeSet::new();
    for range in ranges.iter().filter(within) {
        all.insert(Element::Bound(range.network(), true));
        let next = match range.broadcast() {
            IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|n| IpAddr::V4(n.into())),
            IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|n| IpAddr::V6(n.into())),
        };
        all.extend(next.map(|ip| Element::Bound(ip, false)));
    }
    // Where one range ends and the next begins there is no gap.
    let starts: Vec<IpAddr> =
        all.iter().filter_map(|e| if let Element::Bound(ip, true) = e { Some(*ip) } else { None }).collect();
    for ip in starts {
        if all.remove(&Element::Bound(ip, false)) {
            all.remove(&Element::Bound(ip, true));
        }
    }
    all
}
