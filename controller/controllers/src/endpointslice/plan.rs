//! Packs endpoints into slices: what is in its place stays there, and a change touches as few slices as it can. Pure.

use super::model::{Group, uid_of};
use crate::meta::{Map, controller_ref, fit, name};
use causeway_api::endpoints::SERVICE_NAME_LABEL;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Endpoints in one slice at most.
pub const MAX_ENDPOINTS: usize = 100;
/// The label that says who writes a slice.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// We, under upstream's name: clients look for it.
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// A new slice.
    Create(Box<EndpointSlice>),
    /// A changed one.
    Update(Box<EndpointSlice>),
    /// One too many.
    Delete(Arc<EndpointSlice>),
}

/// The writes that turn `existing` into slices of `groups`.
pub fn plan(service: &Service, groups: Vec<Group>, existing: &[Arc<EndpointSlice>]) -> Vec<Op> {
    let labels = labels(service);
    let (mut creates, mut updates, mut spare) = (Vec::new(), Vec::new(), existing.to_vec());
    for group in groups {
        let (mine, rest): (Vec<_>, Vec<_>) =
            spare.into_iter().partition(|s| s.address_type == group.address_type && same_ports(s, &group.ports));
        spare = rest;
        let (fresh, changed, empty) = pack(&group, &mine, &labels);
        creates.extend(fresh.into_iter().map(|endpoints| slice(service, &group, endpoints, &labels)));
        updates.extend(changed);
        spare.extend(empty);
    }
    // A slice that is not needed any more takes the place of a new one.
    let mut ops: Vec<Op> = updates.into_iter().map(|s| Op::Update(Box::new(s))).collect();
    for mut create in creates {
        match spare.iter().position(|s| s.address_type == create.address_type) {
            Some(i) => {
                let old = spare.remove(i);
                let annotations = create.metadata.annotations.take();
                create.metadata = ObjectMeta { labels: create.metadata.labels, annotations, ..old.metadata.clone() };
                ops.push(Op::Update(Box::new(create)));
            }
            None => ops.push(Op::Create(Box::new(create))),
        }
    }
    ops.extend(spare.into_iter().map(Op::Delete));
    ops
}

type Packed = (Vec<Vec<Endpoint>>, Vec<EndpointSlice>, Vec<Arc<EndpointSlice>>);

/// New slices' endpoints, changed slices, and slices that became empty.
fn pack(group: &Group, mine: &[Arc<EndpointSlice>], labels: &Map) -> Packed {
    if group.endpoints.is_empty() {
        // One empty slice says that the Service is looked after.
        let keep = mine.iter().find(|s| s.endpoints.is_empty()).or(mine.first());
        let rest = mine.iter().filter(|s| keep.is_none_or(|k| !Arc::ptr_eq(k, s))).cloned().collect();
        let changed = keep.filter(|s| !s.endpoints.is_empty() || s.metadata.labels.as_ref() != Some(labels));
        let changed = changed.map(|s| rewritten(s, Vec::new(), group, labels));
        let fresh = if keep.is_none() { vec![Vec::new()] } else { Vec::new() };
        return (fresh, changed.into_iter().collect(), rest);
    }
    let identity = |e: &Endpoint| (e.addresses.clone(), uid_of(e).map(str::to_owned));
    let mut missing: BTreeMap<_, _> = group.endpoints.iter().map(|e| (identity(e), e.clone())).collect();
    let mut bins: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
    for slice in mine {
        let kept = slice.endpoints.iter().filter_map(|e| missing.remove(&identity(e))).collect();
        bins.push((slice.clone(), kept));
    }
    let mut left: Vec<Endpoint> = missing.into_values().collect();
    let touched = |(slice, kept): &(Arc<EndpointSlice>, Vec<Endpoint>)| {
        *kept != slice.endpoints || slice.metadata.labels.as_ref() != Some(labels)
    };
    // Slices that are written anyway take what they can, the fullest first.
    bins.sort_by_key(|(_, kept)| Reverse(kept.len()));
    for bin in bins.iter_mut().filter(|b| touched(b) && !b.1.is_empty()) {
        let room = MAX_ENDPOINTS.saturating_sub(bin.1.len()).min(left.len());
        bin.1.extend(left.drain(..room));
    }
    let mut fresh = Vec::new();
    while left.len() >= MAX_ENDPOINTS {
        fresh.push(left.drain(..MAX_ENDPOINTS).collect());
    }
    if !left.is_empty() {
        // The fullest slice with room for all of the rest: one more write, but no more slices.
        match bins.iter_mut().find(|(_, kept)| kept.len() + left.len() <= MAX_ENDPOINTS) {
            Some((_, kept)) => kept.append(&mut left),
            None => fresh.push(left),
        }
    }
    let (empty, filled): (Vec<_>, Vec<_>) = bins.into_iter().partition(|(_, kept)| kept.is_empty());
    let changed = filled.into_iter().filter(touched).map(|(s, kept)| rewritten(&s, kept, group, labels)).collect();
    (fresh, changed, empty.into_iter().map(|(s, _)| s).collect())
}

fn rewritten(old: &EndpointSlice, endpoints: Vec<Endpoint>, group: &Group, labels: &Map) -> EndpointSlice {
    let mut slice = old.clone();
    slice.endpoints = endpoints;
    slice.metadata.labels = Some(labels.clone());
    stamp(&mut slice.metadata, group);
    slice
}

fn stamp(metadata: &mut ObjectMeta, group: &Group) {
    match group.trigger {
        Some(at) => {
            metadata.annotations.get_or_insert_default().insert(TRIGGER.to_owned(), at.to_string());
        }
        None => {
            metadata.annotations.iter_mut().for_each(|a| drop(a.remove(TRIGGER)));
        }
    }
}

fn slice(service: &Service, group: &Group, endpoints: Vec<Endpoint>, labels: &Map) -> EndpointSlice {
    let mut metadata = ObjectMeta {
        generate_name: Some(format!("{}-", fit(name(&service.metadata), 246))),
        namespace: service.metadata.namespace.clone(),
        labels: Some(labels.clone()),
        owner_references: Some(vec![controller_ref(service)]),
        ..ObjectMeta::default()
    };
    stamp(&mut metadata, group);
    EndpointSlice {
        metadata,
        address_type: group.address_type.clone(),
        endpoints,
        ports: (!group.ports.is_empty()).then(|| group.ports.clone()),
    }
}

/// The Service's own labels and those that tie the slice to it.
fn labels(service: &Service) -> Map {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME_LABEL.to_owned(), name(&service.metadata).to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

fn same_ports(slice: &EndpointSlice, ports: &[EndpointPort]) -> bool {
    let facts = |p: &EndpointPort| {
        (
            p.name.clone().unwrap_or_default(),
            p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            p.port,
            p.app_protocol.clone(),
        )
    };
    let sorted = |all: &[EndpointPort]| {
        let mut all: Vec<_> = all.iter().map(facts).collect();
        all.sort();
        all
    };
    sorted(slice.ports.as_deref().unwrap_or_default()) == sorted(ports)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::meta;
    use k8s_openapi::api::core::v1::ObjectReference;
    use k8s_openapi::api::discovery::v1::EndpointConditions;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn endpoint(i: u32, ready: bool) -> Endpoint {
        Endpoint {
            addresses: vec![format!("10.0.{}.{}", i / 256, i % 256)],
            conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
            target_ref: Some(ObjectReference { uid: Some(i.to_string()), ..ObjectReference::default() }),
            ..Endpoint::default()
        }
    }

    fn group(ids: &BTreeSet<u32>, sick: &BTreeSet<u32>, port: i32) -> Group {
        Group {
            address_type: "IPv4".to_owned(),
            ports: vec![EndpointPort { port: Some(port), ..EndpointPort::default() }],
            endpoints: ids.iter().map(|i| endpoint(*i, !sick.contains(i))).collect(),
            trigger: None,
        }
    }

    fn service() -> Service {
        Service { metadata: meta("web"), ..Service::default() }
    }

    /// What the API would hold afterwards.
    fn apply(existing: &[Arc<EndpointSlice>], ops: &[Op], counter: &mut u32) -> Vec<Arc<EndpointSlice>> {
        let mut all = existing.to_vec();
        for op in ops {
            match op {
                Op::Create(s) => {
                    *counter += 1;
                    let mut s = (**s).clone();
                    s.metadata.name = Some(format!("web-{counter}"));
                    all.push(Arc::new(s));
                }
                Op::Update(s) => {
                    let old = all.iter_mut().find(|o| o.metadata.name == s.metadata.name).unwrap();
                    *old = Arc::new((**s).clone());
                }
                Op::Delete(s) => all.retain(|o| o.metadata.name != s.metadata.name),
            }
        }
        all
    }

    fn ids(n: std::ops::Range<u32>) -> BTreeSet<u32> {
        n.collect()
    }

    #[test]
    fn one_readiness_change_is_one_write() {
        let (mut n, none) = (0, BTreeSet::new());
        let all = ids(0..250);
        let slices = apply(&[], &plan(&service(), vec![group(&all, &none, 80)], &[]), &mut n);
        assert_eq!(slices.len(), 3);
        assert!(plan(&service(), vec![group(&all, &none, 80)], &slices).is_empty());
        let ops = plan(&service(), vec![group(&all, &[7].into(), 80)], &slices);
        assert!(matches!(ops.as_slice(), [Op::Update(_)]), "{}", ops.len());
        let ops = plan(&service(), vec![group(&ids(0..251), &none, 80)], &slices);
        assert!(matches!(ops.as_slice(), [Op::Update(_)]), "goes into the slice with room");
    }

    #[test]
    fn an_empty_service_has_one_empty_slice() {
        let (mut n, none) = (0, BTreeSet::new());
        let empty = || Group { ports: Vec::new(), ..group(&BTreeSet::new(), &BTreeSet::new(), 80) };
        let slices = apply(&[], &plan(&service(), vec![empty()], &[]), &mut n);
        assert_eq!((slices.len(), slices[0].endpoints.len()), (1, 0));
        assert!(plan(&service(), vec![empty()], &slices).is_empty());
        let ops = plan(&service(), vec![group(&ids(0..2), &none, 80)], &slices);
        assert!(matches!(ops.as_slice(), [Op::Update(_)]), "the empty slice is filled");
        let slices = apply(&slices, &ops, &mut n);
        let ops = plan(&service(), vec![empty()], &slices);
        assert!(matches!(ops.as_slice(), [Op::Update(_)]), "and emptied again");
    }

    proptest! {
        #[test]
        fn packing_holds(steps in prop::collection::vec(
            (prop::collection::btree_set(0u32..400, 0..350), prop::collection::btree_set(0u32..400, 0..20), 80i32..82), 1..8,
        )) {
            let (mut slices, mut counter) = (Vec::new(), 0);
            for (ids, sick, port) in steps {
                let wanted = group(&ids, &sick, port);
                let ops = plan(&service(), vec![wanted.clone()], &slices);
                slices = apply(&slices, &ops, &mut counter);
                let mut got: Vec<_> = slices.iter().flat_map(|s| s.endpoints.clone()).collect();
                got.sort_by(|a, b| a.addresses.cmp(&b.addresses));
                let mut want = wanted.endpoints.clone();
                want.sort_by(|a, b| a.addresses.cmp(&b.addresses));
                prop_assert_eq!(got, want, "exactly the wanted endpoints, each once");
                prop_assert!(slices.iter().all(|s| s.endpoints.len() <= MAX_ENDPOINTS));
                prop_assert!(plan(&service(), vec![wanted], &slices).is_empty(), "a second look changes nothing");
            }
        }
    }
}
