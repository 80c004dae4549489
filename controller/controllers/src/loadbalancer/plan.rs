//! Which addresses of the pools a Service gets. Pure.
//!
//! In: the Service's wish, the pools, what it has, what others have. Out: its addresses, or why there are none.

use crate::meta::annotation;
use causeway_api::balancer::{ADDRESSES_ANNOTATION, POOL_ANNOTATION, Pool};
use k8s_openapi::api::core::v1::Service;
use std::net::IpAddr;

/// What a Service asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// Families in the Service's order; `true` for IPv4.
    pub families: Vec<bool>,
    /// All of them, or as many as there are.
    pub all: bool,
    /// These very addresses.
    pub addresses: Vec<IpAddr>,
    /// Out of this pool.
    pub pool: Option<String>,
}

/// Reads the wish of a Service.
pub fn wish(service: &Service) -> Result<Wish, String> {
    let spec = service.spec.clone().unwrap_or_default();
    let families: Vec<bool> = spec.ip_families.iter().flatten().map(|f| f == "IPv4").collect();
    let asked = annotation(&service.metadata, ADDRESSES_ANNOTATION).or(spec.load_balancer_ip.as_deref()).unwrap_or("");
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in asked.split(',').map(str::trim).filter(|t| !t.is_empty()) {
        let ip: IpAddr = text.parse().map_err(|_| format!("{text:?} is no IP address"))?;
        if !families.contains(&ip.is_ipv4()) {
            return Err(format!("{ip} is of a family that the Service does not have (spec.ipFamilies)"));
        }
        if addresses.iter().any(|a| a.is_ipv4() == ip.is_ipv4()) {
            return Err(format!("{asked:?} asks for more than one address of a family"));
        }
        addresses.push(ip);
    }
    Ok(Wish {
        families,
        all: spec.ip_family_policy.as_deref() == Some("RequireDualStack"),
        addresses,
        pool: annotation(&service.metadata, POOL_ANNOTATION).map(str::to_owned),
    })
}

/// The addresses a Service should have: what it has as long as that meets its wish, else the first free ones.
pub fn choose(
    wish: &Wish,
    pools: &[Pool],
    own: &[IpAddr],
    is_taken: impl Fn(IpAddr) -> bool,
) -> Result<Vec<IpAddr>, String> {
    if let Some(name) = &wish.pool
        && !pools.iter().any(|p| p.name == *name)
    {
        return Err(format!("there is no pool {name:?}"));
    }
    let of_wish = |p: &&Pool| wish.pool.as_ref().is_none_or(|name| p.name == *name);
    let mut chosen = Vec::new();
    let mut missing = Vec::new();
    for v4 in &wish.families {
        if let Some(ip) = wish.addresses.iter().find(|ip| ip.is_ipv4() == *v4) {
            if !pools.iter().filter(of_wish).any(|p| p.contains(*ip)) {
                return Err(format!("the address {ip} is in no pool"));
            }
            if !own.contains(ip) && is_taken(*ip) {
                return Err(format!("the address {ip} belongs to another Service"));
            }
            chosen.push(*ip);
            continue;
        }
        let kept = own.iter().find(|ip| ip.is_ipv4() == *v4 && pools.iter().filter(of_wish).any(|p| p.contains(**ip)));
        let open = pools.iter().filter(of_wish).filter(|p| wish.pool.is_some() || p.auto_assign);
        let found = kept.copied().or_else(|| open.flat_map(|p| p.addresses(*v4)).find(|ip| !is_taken(*ip)));
        match found {
            Some(ip) => chosen.push(ip),
            None => missing.push(if *v4 { "IPv4" } else { "IPv6" }),
        }
    }
    if chosen.is_empty() || wish.all && !missing.is_empty() {
        let pool = wish.pool.as_ref().map_or_else(|| "the pools".to_owned(), |p| format!("pool {p:?}"));
        return Err(format!("no free {} address in {pool}", missing.join(" and ")));
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::collections::{BTreeMap, BTreeSet};

    fn pools() -> Vec<Pool> {
        serde_json::from_value(json!([
            { "name": "main", "addresses": ["10.9.0.1-10.9.0.3", "fd00:9::1-fd00:9::2"] },
            { "name": "spare", "addresses": ["10.8.0.0/30"], "autoAssign": false },
        ]))
        .unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn single() -> Wish {
        Wish { families: vec![true], ..Wish::default() }
    }

    #[test]
    fn first_free_kept_and_exhausted() {
        let taken =
            |list: &'static [&'static str]| move |ip: IpAddr| list.iter().any(|t| ip == t.parse::<IpAddr>().unwrap());
        assert_eq!(choose(&single(), &pools(), &[], taken(&[])), Ok(vec![ip("10.9.0.1")]));
        assert_eq!(choose(&single(), &pools(), &[], taken(&["10.9.0.1"])), Ok(vec![ip("10.9.0.2")]));
        assert_eq!(choose(&single(), &pools(), &[ip("10.9.0.3")], taken(&[])), Ok(vec![ip("10.9.0.3")]));
        assert_eq!(
            choose(&single(), &pools(), &[ip("10.7.0.3")], taken(&[])),
            Ok(vec![ip("10.9.0.1")]),
            "left its pool"
        );
        let all = taken(&["10.9.0.1", "10.9.0.2", "10.9.0.3"]);
        let full = choose(&single(), &pools(), &[], all);
        assert_eq!(full, Err("no free IPv4 address in the pools".to_owned()), "spare is not for everybody");
    }

    #[test]
    fn wishes() {
        let named = Wish { pool: Some("spare".into()), ..single() };
        assert_eq!(choose(&named, &pools(), &[ip("10.9.0.1")], |_| false), Ok(vec![ip("10.8.0.1")]));
        let none = Wish { pool: Some("nix".into()), ..single() };
        assert_eq!(choose(&none, &pools(), &[], |_| false), Err("there is no pool \"nix\"".to_owned()));
        let this = Wish { addresses: vec![ip("10.9.0.3")], ..single() };
        assert_eq!(choose(&this, &pools(), &[ip("10.9.0.1")], |_| false), Ok(vec![ip("10.9.0.3")]));
        assert!(choose(&this, &pools(), &[], |_| true).unwrap_err().contains("belongs to another"));
        assert_eq!(choose(&this, &pools(), &[ip("10.9.0.3")], |_| true), Ok(vec![ip("10.9.0.3")]));
        let outside = Wish { addresses: vec![ip("10.7.0.3")], ..single() };
        assert!(choose(&outside, &pools(), &[], |_| false).unwrap_err().contains("is in no pool"));

        let service = |spec: serde_json::Value, notes: serde_json::Value| -> Service {
            serde_json::from_value(json!({ "metadata": { "annotations": notes }, "spec": spec })).unwrap()
        };
        let both = service(
            json!({ "ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack", "loadBalancerIP": "10.9.0.9" }),
            json!({ ADDRESSES_ANNOTATION: "10.9.0.2, fd00:9::2", POOL_ANNOTATION: "main" }),
        );
        let read = wish(&both).unwrap();
        assert_eq!((read.families.as_slice(), read.all), ([false, true].as_slice(), true));
        assert_eq!(read.addresses, [ip("10.9.0.2"), ip("fd00:9::2")]);
        assert_eq!(choose(&read, &pools(), &[], |_| false), Ok(vec![ip("fd00:9::2"), ip("10.9.0.2")]));
        for wrong in ["fd00:9::1", "10.9.0.1,10.9.0.2", "x"] {
            assert!(wish(&service(json!({ "ipFamilies": ["IPv4"] }), json!({ ADDRESSES_ANNOTATION: wrong }))).is_err());
        }
    }

    #[test]
    fn two_families_required_or_preferred() {
        let both = |all| Wish { families: vec![true, false], all, ..Wish::default() };
        assert_eq!(choose(&both(true), &pools(), &[], |_| false), Ok(vec![ip("10.9.0.1"), ip("fd00:9::1")]));
        let no_v6 = |ip: IpAddr| ip.is_ipv6();
        assert_eq!(choose(&both(false), &pools(), &[], no_v6), Ok(vec![ip("10.9.0.1")]));
        assert_eq!(choose(&both(true), &pools(), &[], no_v6), Err("no free IPv6 address in the pools".to_owned()));
    }

    proptest! {
        /// Services that come, go and change their mind: never two with one address, and who has one keeps it.
        #[test]
        fn never_twice_and_kept(steps in proptest::collection::vec((0_u8..8, 0_u8..4), 1..60)) {
            let pools = pools();
            let mut has: BTreeMap<u8, Vec<IpAddr>> = BTreeMap::new();
            for (service, action) in steps {
                let own = has.remove(&service).unwrap_or_default();
                if action == 0 {
                    continue;
                }
                let wish = Wish { families: vec![true, false][..usize::from(action.min(2))].to_vec(), ..Wish::default() };
                let others: BTreeSet<IpAddr> = has.values().flatten().copied().collect();
                if let Ok(got) = choose(&wish, &pools, &own, |ip| others.contains(&ip)) {
                    for ip in &got {
                        prop_assert!(!others.contains(ip));
                        if let Some(before) = own.iter().find(|o| o.is_ipv4() == ip.is_ipv4()) {
                            prop_assert_eq!(before, ip);
                        }
                    }
                    has.insert(service, got);
                }
            }
        }
    }
}
