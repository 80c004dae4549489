//! The pods of this node by name, for the kubelet's own API.

use k8s_openapi::api::core::v1::Pod;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;

/// By (namespace, name), the newest object.
#[derive(Debug, Default)]
pub struct Pods(RwLock<BTreeMap<(String, String), Arc<Pod>>>);

fn key(pod: &Pod) -> (String, String) {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

impl Pods {
    /// Remembers a pod.
    pub fn put(&self, pod: Arc<Pod>) {
        self.0.write().insert(key(&pod), pod);
    }

    /// Forgets a pod, unless another one has its name by now.
    pub fn remove(&self, pod: &Pod) {
        let mut all = self.0.write();
        if all.get(&key(pod)).is_some_and(|p| p.metadata.uid == pod.metadata.uid) {
            all.remove(&key(pod));
        }
    }

    /// Finds a pod.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.0.read().get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// All pods.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.0.read().values().cloned().collect()
    }
}
