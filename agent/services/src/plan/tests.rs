//! Every history of changes ends where a fresh start does.

use super::*;
use crate::model::{Choice, Kind, Target};
use proptest::prelude::*;
use std::net::IpAddr;

fn front(n: u8) -> Front {
    Front { ip: IpAddr::from([10, 96, 0, n]), protocol: 6, port: 80 }
}

fn target(n: u16) -> Target {
    Target { ip: IpAddr::from([10, 244, (n >> 8) as u8, n as u8]), port: 8080 }
}

fn model(
    front_at: u8,
    targets: &BTreeSet<u16>,
    external: bool,
    affinity: Option<u32>,
    sources: &BTreeSet<u8>,
) -> ServiceModel {
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
        sources: (!sources.is_empty())
            .then(|| sources.iter().map(|n| IpNet::new([*n, 0, 0, 0].into(), 8 - n % 2).unwrap().trunc()).collect()),
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
            Element::Service(f, _, value) => (f, *value, 0),
            Element::External(f, _, value) => (f, *value, EXTERNAL),
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
    p.set("s", Some(model(1, &(0..10).collect(), false, None, &BTreeSet::new())));
    let plan = p.set("s", Some(model(1, &(0..10).filter(|n| *n != 3).collect(), false, None, &BTreeSet::new())));
    let moved: Vec<_> = plan.add.iter().filter(|e| matches!(e, Element::Endpoint(..))).collect();
    assert_eq!(moved, [&Element::Endpoint(front(1), 3, target(9))]);
}

#[test]
fn many_endpoints_share_places_evenly() {
    let mut p = Planner::default();
    p.set("s", Some(model(1, &(0..250).collect(), false, None, &BTreeSet::new())));
    let seen = seen(&p.elements());
    let shares: BTreeSet<usize> = seen.values().flat_map(BTreeMap::values).copied().collect();
    assert_eq!(shares, [16, 17].into());
}

type Step = (u8, u8, BTreeSet<u16>, bool, Option<u32>, BTreeSet<u8>, bool);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let targets = prop_oneof![
        8 => prop::collection::btree_set(0_u16..12, 0..8),
        1 => prop::collection::btree_set(0_u16..300, 60..70),
    ];
    let affinity = prop_oneof![3 => Just(None), 1 => Just(Some(10)), 1 => Just(Some(10_800))];
    let sources = prop::collection::btree_set(10_u8..16, 0..4);
    prop::collection::vec(
        (0_u8..4, 0_u8..4, targets, any::<bool>(), affinity, sources, prop::bool::weighted(0.8)),
        1..30,
    )
}

proptest! {
    #[test]
    fn any_history_ends_where_a_fresh_start_does(steps in steps()) {
        let mut planner = Planner::default();
        let mut kernel = BTreeSet::new();
        let mut last: BTreeMap<String, ServiceModel> = BTreeMap::new();
        let mut all = Plan::default();
        for (service, at, targets, external, affinity, sources, present) in steps {
            let name = format!("s{service}");
            let m = present.then(|| model(at, &targets, external, affinity, &sources));
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

#[test]
fn only_so_many_time_outs_have_chains_of_their_own() {
    let mut timeouts = Timeouts::default();
    let most = Timeouts::MAX as u32;
    for seconds in 1..=most {
        assert_eq!(timeouts.take(seconds * 10), seconds * 10);
    }
    assert_eq!(timeouts.take(15), 20, "the next longer one");
    assert_eq!(timeouts.take(86_400), most * 10, "or the longest");
    assert_eq!(timeouts.0.len(), Timeouts::MAX);
}

#[test]
fn limits_are_ranges_apart_from_one_another() {
    let mut p = Planner::default();
    let sources: BTreeSet<u8> = [10, 11, 12, 14].into();
    let plan = p.set("s", Some(model(1, &[1].into(), false, None, &sources)));
    let ranges: Vec<_> =
        plan.add.iter().filter_map(|e| if let Element::Source(_, a, b) = e { Some((*a, *b)) } else { None }).collect();
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let pairs = [("10.0.0.0", "11.255.255.255"), ("12.0.0.0", "12.255.255.255"), ("14.0.0.0", "14.255.255.255")];
    assert_eq!(ranges, pairs.map(|(first, last)| (ip(first), ip(last))));
    assert!(plan.add.contains(&Element::Limited(front(1))));
    let open = p.set("s", Some(model(1, &[1].into(), false, None, &BTreeSet::new())));
    assert_eq!((open.delete.len(), open.add.len()), (4, 0));
}
