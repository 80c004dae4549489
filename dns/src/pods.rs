//! Which namespace an address belongs to. In: pods as the API has them. Out: the owner of an address, for names of pods
//! that must exist, and for completing the search path of who asks.

use crate::model::Key;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::RwLock;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What names depend on in a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPart {
    /// Who it is.
    pub key: Key,
    /// Its own addresses; none for pods on the node's network, and when it has ended.
    pub ips: Vec<IpAddr>,
}

impl From<&Pod> for PodPart {
    fn from(pod: &Pod) -> Self {
        let text = |t: &Option<String>| t.clone().unwrap_or_default().into_boxed_str();
        let key = Key { namespace: text(&pod.metadata.namespace), name: text(&pod.metadata.name) };
        let status = pod.status.as_ref();
        let shares = pod.spec.as_ref().is_some_and(|s| s.host_network == Some(true));
        let ended = status.and_then(|s| s.phase.as_deref()).is_some_and(|p| p == "Succeeded" || p == "Failed");
        let ips = status.into_iter().flat_map(|s| s.pod_ips.iter().flatten().map(|ip| &ip.ip).chain(&s.pod_ip));
        let mut ips: Vec<IpAddr> = ips.filter(|_| !shares && !ended).filter_map(|ip| ip.parse().ok()).collect();
        ips.sort();
        ips.dedup();
        Self { key, ips }
    }
}

/// Pods by address. Readers and the one writer share it.
#[derive(Default)]
pub struct Pods {
    table: RwLock<Table>,
    complete: AtomicBool,
}

#[derive(Default)]
struct Table {
    pods: HashMap<Key, Vec<IpAddr>>,
    /// Namespaces by address: an address changes hands before everybody knows.
    owners: HashMap<IpAddr, Vec<Arc<str>>>,
}

impl Pods {
    /// Puts a pod in place of what was known of it.
    pub fn set(&self, pod: PodPart) {
        let mut table = self.table.write();
        if table.pods.get(&pod.key) == Some(&pod.ips) {
            return;
        }
        table.remove(&pod.key);
        let namespace: Arc<str> = pod.key.namespace.as_ref().into();
        for ip in &pod.ips {
            table.owners.entry(*ip).or_default().push(namespace.clone());
        }
        table.pods.insert(pod.key, pod.ips);
    }

    /// Forgets a pod.
    pub fn remove(&self, key: &Key) {
        self.table.write().remove(key);
    }

    /// Forgets all, and that it knew.
    pub fn clear(&self) {
        self.complete.store(false, Ordering::Release);
        *self.table.write() = Table::default();
    }

    /// True once all pods that are wanted have been seen.
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Forgets all but these, which are all there are.
    pub fn retain(&self, keep: &HashSet<Key>) {
        self.complete.store(true, Ordering::Release);
        let mut table = self.table.write();
        let gone: Vec<Key> = table.pods.keys().filter(|k| !keep.contains(*k)).cloned().collect();
        gone.iter().for_each(|key| table.remove(key));
    }

    /// Whether a pod of the namespace has the address.
    pub fn is_in(&self, ip: IpAddr, namespace: &str) -> bool {
        self.table.read().owners.get(&ip).is_some_and(|all| all.iter().any(|n| **n == *namespace))
    }

    /// The namespace of the pod with an address; the latest, should two say they have it.
    pub fn namespace_of(&self, ip: IpAddr) -> Option<Arc<str>> {
        self.table.read().owners.get(&ip.to_canonical())?.last().cloned()
    }
}

impl Table {
    fn remove(&mut self, key: &Key) {
        for ip in self.pods.remove(key).unwrap_or_default() {
            let Some(owners) = self.owners.get_mut(&ip) else { continue };
            if let Some(at) = owners.iter().position(|n| **n == *key.namespace) {
                owners.remove(at);
            }
            if owners.is_empty() {
                self.owners.remove(&ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn part(namespace: &str, name: &str, spec: Value, status: Value) -> PodPart {
        let pod = json!({ "metadata": { "namespace": namespace, "name": name }, "spec": spec, "status": status });
        PodPart::from(&serde_json::from_value::<Pod>(pod).unwrap())
    }

    #[test]
    fn an_address_is_who_has_it_now() {
        let (pods, ip): (Pods, IpAddr) = (Pods::default(), "10.244.0.9".parse().unwrap());
        let spec = json!({ "containers": [] });
        let up = json!({ "phase": "Running", "podIP": "10.244.0.9", "podIPs": [{ "ip": "10.244.0.9" }, { "ip": "fd00::9" }] });
        pods.set(part("shop", "a", spec.clone(), up.clone()));
        assert_eq!(pods.namespace_of(ip).as_deref(), Some("shop"));
        assert!(pods.is_in("fd00::9".parse().unwrap(), "shop") && !pods.is_in(ip, "other"));
        // The next has the address before the end of the first is known.
        pods.set(part("other", "b", spec.clone(), up.clone()));
        assert_eq!(pods.namespace_of(ip).as_deref(), Some("other"));
        pods.set(part("shop", "a", spec.clone(), json!({ "phase": "Succeeded", "podIP": "10.244.0.9" })));
        assert!(!pods.is_in(ip, "shop") && pods.is_in(ip, "other"));
        pods.retain(&HashSet::new());
        assert_eq!(pods.namespace_of(ip), None);
        // The node's address says nothing about who asks.
        pods.set(part("shop", "c", json!({ "containers": [], "hostNetwork": true }), up));
        assert_eq!(pods.namespace_of(ip), None);
    }
}
