//! The ranges of service addresses: the configured ones, and those of ServiceCIDR objects, which come and go.
//!
//! In: watch events. Out: all ranges, and whether an event changed them. A range that goes away still counts as long as
//! its object is there, for Services may have addresses in it.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::runtime::watcher::Event;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// All ranges of service addresses.
#[derive(Debug, Default)]
pub struct ServiceRanges {
    configured: Vec<IpNet>,
    objects: BTreeMap<String, Vec<IpNet>>,
    listing: BTreeMap<String, Vec<IpNet>>,
}

impl ServiceRanges {
    /// The configured ones, until others are told of.
    pub fn new(configured: Vec<IpNet>) -> Self {
        Self { configured, ..Self::default() }
    }

    /// Takes an event; `true` when the ranges are others now.
    pub fn take(&mut self, event: Event<Arc<ServiceCIDR>>) -> bool {
        let before = self.all();
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(object) => drop(self.listing.insert(name(&object), self.nets(&object))),
            Event::InitDone => self.objects = std::mem::take(&mut self.listing),
            Event::Apply(object) => drop(self.objects.insert(name(&object), self.nets(&object))),
            Event::Delete(object) => drop(self.objects.remove(&name(&object))),
        }
        before != self.all()
    }

    /// All of them, once each: the configured ones first.
    pub fn all(&self) -> Vec<IpNet> {
        let others: BTreeSet<IpNet> = self.objects.values().flatten().copied().collect();
        let new = others.into_iter().filter(|n| !self.configured.contains(n));
        self.configured.iter().copied().chain(new).collect()
    }

    /// Those of a family that the cluster has.
    fn nets(&self, object: &ServiceCIDR) -> Vec<IpNet> {
        let cidrs = object.spec.as_ref().and_then(|s| s.cidrs.as_ref()).into_iter().flatten();
        let known = |n: &IpNet| self.configured.iter().any(|c| c.addr().is_ipv4() == n.addr().is_ipv4());
        cidrs.filter_map(|c| c.parse::<IpNet>().ok()).filter(known).collect()
    }
}

fn name(object: &ServiceCIDR) -> String {
    object.metadata.name.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn range(name: &str, cidrs: &[&str]) -> Arc<ServiceCIDR> {
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"cidrs": cidrs}})).unwrap())
    }

    #[test]
    fn ranges_come_and_go_and_a_list_is_taken_whole() {
        let mut ranges = ServiceRanges::new(vec!["10.96.0.0/12".parse().unwrap()]);
        let shown = |r: &ServiceRanges| r.all().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(!ranges.take(Event::Apply(range("kubernetes", &["10.96.0.0/12"]))), "known already");
        assert!(ranges.take(Event::Apply(range("more", &["10.60.0.0/16", "fd00::/112"]))));
        assert_eq!(shown(&ranges), ["10.96.0.0/12", "10.60.0.0/16"], "this cluster has no IPv6");
        assert!(!ranges.take(Event::Init) && !ranges.take(Event::InitApply(range("other", &["10.61.0.0/16"]))));
        assert_eq!(shown(&ranges).len(), 2, "a list counts when it is complete");
        assert!(ranges.take(Event::InitDone));
        assert_eq!(shown(&ranges), ["10.96.0.0/12", "10.61.0.0/16"]);
        assert!(ranges.take(Event::Delete(range("other", &[]))));
        assert_eq!(shown(&ranges), ["10.96.0.0/12"]);
    }
}
