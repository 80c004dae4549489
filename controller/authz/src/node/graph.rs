//! Which objects the pods of a node refer to.
//!
//! ```text
//!  node ── pods ──┬── Secrets, ConfigMaps, ServiceAccounts, ResourceClaims
//!                 └── PersistentVolumeClaims ── PersistentVolumes (by claimRef) ── Secrets of their sources
//! ```
//!
//! In: objects, one change at a time. A change costs what the one object refers to; a question costs a few look-ups in
//! hash tables, except for Secrets of volumes: there at most as many steps as the node's pods have claims.

use super::references::{self, Kind, Name, is_mirror, text};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// What [`Graph::upsert`] and [`Graph::remove`] want to be told of: (group, plural). Where a server does not have a kind,
/// nobody reaches its objects.
pub const WATCHED: [(&str, &str); 4] = [
    ("", "pods"),
    ("", "persistentvolumes"),
    ("storage.k8s.io", "volumeattachments"),
    ("resource.k8s.io", "resourceslices"),
];

/// The label of local volumes: the node whose kubelet removes their folder.
pub const VOLUME_NODE_LABEL: &str = "causeway.dev/node";

/// An object that pods refer to.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Object {
    kind: Kind,
    namespace: String,
    name: String,
}

#[derive(Debug, PartialEq, Eq)]
struct Pod {
    node: String,
    /// Each once, the pod itself among them.
    objects: Vec<Arc<Object>>,
}

#[derive(Debug)]
struct Volume {
    claim: Option<Name>,
    secrets: Vec<Name>,
    /// By [`VOLUME_NODE_LABEL`].
    node: String,
}

/// What one node reaches: by how many of its pods.
#[derive(Debug, Default)]
struct Reach {
    objects: HashMap<Arc<Object>, u32>,
    claims: HashMap<Name, u32>,
}

/// The objects that each node reaches.
#[derive(Debug, Default)]
pub struct Graph {
    pods: HashMap<Name, Pod>,
    nodes: HashMap<String, Reach>,
    /// One copy of each object's name: most pods of a namespace refer to the same few.
    names: HashSet<Arc<Object>>,
    volumes: HashMap<String, Volume>,
    /// The volumes of a claim.
    by_claim: HashMap<Name, BTreeSet<String>>,
    /// The volumes whose source names a Secret.
    by_secret: HashMap<Name, BTreeSet<String>>,
    /// VolumeAttachments and the node that each is for.
    attachments: HashMap<String, String>,
    /// ResourceSlices and their node.
    slices: HashMap<String, String>,
}

impl Graph {
    /// An empty one: no node reaches anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes an object as it is now, of a resource of [`WATCHED`] (by its plural); others are passed over.
    pub fn upsert(&mut self, resource: &str, object: &Value) {
        let name = text(object, "/metadata/name");
        match resource {
            "pods" => self.upsert_pod(object),
            "persistentvolumes" => self.upsert_volume(name, object),
            "volumeattachments" => keep(&mut self.attachments, name, text(object, "/spec/nodeName")),
            "resourceslices" => keep(&mut self.slices, name, text(object, "/spec/nodeName")),
            _ => {}
        }
    }

    /// Forgets an object that is gone; `namespace` is empty for a cluster-wide kind.
    pub fn remove(&mut self, resource: &str, namespace: &str, name: &str) {
        match resource {
            "pods" => self.remove_pod(&(namespace.to_owned(), name.to_owned())),
            "persistentvolumes" => self.remove_volume(name),
            "volumeattachments" => drop(self.attachments.remove(name)),
            "resourceslices" => drop(self.slices.remove(name)),
            _ => {}
        }
    }

    fn upsert_pod(&mut self, pod: &Value) {
        let name = (text(pod, "/metadata/namespace").to_owned(), text(pod, "/metadata/name").to_owned());
        let node = text(pod, "/spec/nodeName");
        if node.is_empty() {
            return self.remove_pod(&name);
        }
        let mut kinds = vec![(Kind::Pod, name.1.clone())];
        // A node makes mirror pods by itself: they must not lead to anything. Admission refuses those that refer to
        // something; this is the second fence.
        if !is_mirror(pod) {
            kinds.extend(references::of_pod(pod));
            kinds.sort();
            kinds.dedup();
        }
        let objects: Vec<_> = kinds.into_iter().map(|(kind, of)| self.name(kind, &name.0, of)).collect();
        let new = Pod { node: node.to_owned(), objects };
        if self.pods.get(&name) == Some(&new) {
            return;
        }
        self.remove_pod(&name);
        let reach = self.nodes.entry(new.node.clone()).or_default();
        for object in &new.objects {
            self.names.insert(object.clone());
            if object.kind == Kind::Claim {
                *reach.claims.entry((object.namespace.clone(), object.name.clone())).or_default() += 1;
            }
            *reach.objects.entry(object.clone()).or_default() += 1;
        }
        self.pods.insert(name, new);
    }

    fn name(&self, kind: Kind, namespace: &str, name: String) -> Arc<Object> {
        let object = Object { kind, namespace: namespace.to_owned(), name };
        self.names.get(&object).cloned().unwrap_or_else(|| Arc::new(object))
    }

    fn remove_pod(&mut self, name: &Name) {
        let Some(old) = self.pods.remove(name) else { return };
        let Some(reach) = self.nodes.get_mut(&old.node) else { return };
        for object in old.objects {
            release(&mut reach.objects, &object);
            if object.kind == Kind::Claim {
                release(&mut reach.claims, &(object.namespace.clone(), object.name.clone()));
            }
            // The table's own, and this one.
            if Arc::strong_count(&object) <= 2 {
                self.names.remove(&object);
            }
        }
        if reach.objects.is_empty() {
            self.nodes.remove(&old.node);
        }
    }

    fn upsert_volume(&mut self, name: &str, volume: &Value) {
        self.remove_volume(name);
        let (claim, secrets) = match references::of_persistent_volume(volume) {
            Some((claim, secrets)) => (Some(claim), secrets),
            None => (None, Vec::new()),
        };
        let labels = volume.pointer("/metadata/labels");
        let node = labels.and_then(|l| l.get(VOLUME_NODE_LABEL)).and_then(Value::as_str).unwrap_or("").to_owned();
        if let Some(claim) = &claim {
            self.by_claim.entry(claim.clone()).or_default().insert(name.to_owned());
        }
        for secret in &secrets {
            self.by_secret.entry(secret.clone()).or_default().insert(name.to_owned());
        }
        self.volumes.insert(name.to_owned(), Volume { claim, secrets, node });
    }

    fn remove_volume(&mut self, name: &str) {
        let Some(old) = self.volumes.remove(name) else { return };
        if let Some(claim) = &old.claim {
            leave(&mut self.by_claim, claim, name);
        }
        for secret in &old.secrets {
            leave(&mut self.by_secret, secret, name);
        }
    }

    /// Whether a pod of the node refers to the object, directly.
    pub(super) fn refers(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        let Some(reach) = self.nodes.get(node) else { return false };
        let object = Object { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        reach.objects.contains_key(&object)
    }

    /// Whether the PersistentVolume is for a claim of a pod of the node.
    pub(super) fn reaches_volume(&self, node: &str, name: &str) -> bool {
        let claim = self.volumes.get(name).and_then(|v| v.claim.as_ref());
        self.nodes.get(node).zip(claim).is_some_and(|(reach, claim)| reach.claims.contains_key(claim))
    }

    /// Whether the Secret is named by a pod of the node, or by a volume that one of them claims.
    pub(super) fn reaches_secret(&self, node: &str, namespace: &str, name: &str) -> bool {
        if self.refers(node, Kind::Secret, namespace, name) {
            return true;
        }
        let secret = (namespace.to_owned(), name.to_owned());
        let (Some(reach), Some(volumes)) = (self.nodes.get(node), self.by_secret.get(&secret)) else { return false };
        // A driver's Secret may be named by all its volumes: the shorter way.
        if volumes.len() <= reach.claims.len() {
            return volumes.iter().any(|volume| self.reaches_volume(node, volume));
        }
        let of_claims = reach.claims.keys().filter_map(|claim| self.by_claim.get(claim)).flatten();
        of_claims.into_iter().any(|volume| volumes.contains(volume))
    }

    /// Whether the PersistentVolume's folder is the node's to remove.
    pub(super) fn is_local(&self, node: &str, name: &str) -> bool {
        self.volumes.get(name).is_some_and(|v| v.node == node)
    }

    pub(super) fn is_attachment_of(&self, node: &str, name: &str) -> bool {
        self.attachments.get(name).is_some_and(|n| n == node)
    }

    pub(super) fn is_slice_of(&self, node: &str, name: &str) -> bool {
        self.slices.get(name).is_some_and(|n| n == node)
    }

    /// The number of pods that are bound, and of names that are kept.
    pub fn size(&self) -> (usize, usize) {
        (self.pods.len(), self.names.len())
    }
}

fn keep(map: &mut HashMap<String, String>, name: &str, node: &str) {
    if node.is_empty() {
        map.remove(name);
    } else {
        map.insert(name.to_owned(), node.to_owned());
    }
}

/// One less.
fn release<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

fn leave(index: &mut HashMap<Name, BTreeSet<String>>, key: &Name, name: &str) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
