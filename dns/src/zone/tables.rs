//! What the zone holds: services by namespace and name, and who has an address. In: one service's records at a time.

use crate::model::{Key, Records};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// One service.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub key: Arc<Key>,
    pub records: Records,
}

/// Services with an address: nearly always one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Owners {
    One(Arc<Key>),
    Many(Vec<Arc<Key>>),
}

impl Owners {
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Key>> {
        match self {
            Self::One(key) => std::slice::from_ref(key).iter(),
            Self::Many(keys) => keys.iter(),
        }
    }
}

#[derive(Default)]
pub(super) struct Tables {
    /// By namespace and name.
    pub services: HashMap<Box<str>, HashMap<Box<str>, Service>>,
    /// Namespaces that exist; those with services count without being here.
    pub known: HashSet<Box<str>>,
    /// Addresses of services and of endpoints of headless services.
    pub reverse: HashMap<IpAddr, Owners>,
}

impl Tables {
    pub fn get(&self, service: &str, namespace: &str) -> Option<&Records> {
        self.services.get(namespace)?.get(service).map(|s| &s.records)
    }

    pub fn has_namespace(&self, name: &str) -> bool {
        self.services.contains_key(name) || self.known.contains(name)
    }

    /// Puts a service's records in place of what was there. What was there, or `None` when nothing changed.
    pub fn set(&mut self, key: &Key, records: Option<Records>) -> Option<Option<Records>> {
        let old = self.services.get(&key.namespace).and_then(|ns| ns.get(&key.name));
        if old.map(|s| &s.records) == records.as_ref() {
            return None;
        }
        let (before, after): (HashSet<IpAddr>, HashSet<IpAddr>) =
            (addresses(old.map(|s| &s.records)).collect(), addresses(records.as_ref()).collect());
        let key = old.map_or_else(|| Arc::new(key.clone()), |s| s.key.clone());
        for ip in before.difference(&after) {
            self.disown(*ip, &key);
        }
        for ip in after.difference(&before) {
            self.own(*ip, &key);
        }
        let old = match records {
            Some(records) => {
                let namespace = self.services.entry(key.namespace.clone()).or_default();
                namespace.insert(key.name.clone(), Service { key, records })
            }
            None => {
                let old = self.services.get_mut(&key.namespace).and_then(|ns| ns.remove(&key.name));
                if self.services.get(&key.namespace).is_some_and(HashMap::is_empty) {
                    self.services.remove(&key.namespace);
                }
                old
            }
        };
        Some(old.map(|s| s.records))
    }

    fn own(&mut self, ip: IpAddr, key: &Arc<Key>) {
        match self.reverse.get_mut(&ip) {
            None => drop(self.reverse.insert(ip, Owners::One(key.clone()))),
            Some(Owners::Many(keys)) => keys.push(key.clone()),
            Some(owners) => {
                let both = owners.iter().chain([key]).cloned().collect();
                *owners = Owners::Many(both);
            }
        }
    }

    fn disown(&mut self, ip: IpAddr, key: &Arc<Key>) {
        let Some(owners) = self.reverse.get_mut(&ip) else { return };
        let mut left: Vec<_> = owners.iter().filter(|k| *k != key).cloned().collect();
        match left.len() {
            0 => drop(self.reverse.remove(&ip)),
            1 => *owners = Owners::One(left.remove(0)),
            _ => *owners = Owners::Many(left),
        }
    }
}

fn addresses(records: Option<&Records>) -> impl Iterator<Item = IpAddr> {
    let (own, endpoints): (&[IpAddr], &[_]) = match records {
        Some(Records::Cluster { ips, .. }) => (ips, &[]),
        Some(Records::Headless { endpoints }) => (&[], endpoints),
        Some(Records::External { .. }) | None => (&[], &[]),
    };
    own.iter().chain(endpoints.iter().flat_map(|e| e.ips.iter())).copied()
}
