//! Who owns whom, and what follows from it. Pure.

use crate::resources::Kind;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::PropagationPolicy;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

/// Dependents lose their owner and stay.
pub const ORPHAN: &str = "orphan";
/// Dependents go first.
pub const FOREGROUND: &str = "foregroundDeletion";

/// An object, as far as collecting it goes.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its kind.
    pub kind: Arc<Kind>,
    /// Namespace, or empty.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Resource version.
    pub version: Option<String>,
    /// Its owners.
    pub owners: Vec<OwnerReference>,
    /// Its finalizers.
    pub finalizers: Vec<String>,
    /// It is being deleted.
    pub deleting: bool,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.resource.kind, self.namespace, self.name)
    }
}

impl Node {
    /// From metadata.
    pub fn of(kind: Arc<Kind>, meta: ObjectMeta) -> Self {
        Self {
            kind,
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name.unwrap_or_default(),
            version: meta.resource_version,
            owners: meta.owner_references.unwrap_or_default(),
            finalizers: meta.finalizers.unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
        }
    }

    fn deletes(&self, finalizer: &str) -> bool {
        self.deleting && self.finalizers.iter().any(|f| f == finalizer)
    }
}

/// What is known of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// There, and staying.
    Solid,
    /// There, and waiting for its dependents to go.
    Waiting,
    /// Not there.
    Absent,
}

/// What to do about one object.
#[derive(Debug, Clone)]
pub enum Decision {
    /// Leave it.
    Nothing,
    /// It waits for these to go.
    CheckDependents(Vec<String>),
    /// Delete it.
    Delete(PropagationPolicy),
    /// Take references to these owners (uids) off.
    DropOwners(Vec<String>),
    /// Nothing is in its way any more: take this finalizer off.
    Unblock(&'static str),
    /// Take the references to it off these, then the finalizer off it.
    Orphan(Vec<(String, Node)>),
}

/// The graph, by uid.
#[derive(Default)]
pub struct Graph {
    nodes: HashMap<String, Node>,
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    /// An object came or changed; which objects are to be looked at.
    pub fn put(&mut self, uid: String, node: Node) -> Vec<String> {
        let mut checks = Vec::new();
        let before = self.nodes.remove(&uid);
        for lost in before.iter().flat_map(|n| &n.owners).filter(|o| !node.owners.iter().any(|n| n.uid == o.uid)) {
            self.unlink(&lost.uid, &uid);
            checks.push(lost.uid.clone());
        }
        // An owner that no longer has to wait for this one is to be looked at, too.
        for owner in &node.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
            if self.nodes.get(&owner.uid).is_some_and(|o| o.deletes(FOREGROUND)) {
                checks.push(owner.uid.clone());
            }
        }
        if node.deletes(ORPHAN) || node.deletes(FOREGROUND) || !node.deleting && !node.owners.is_empty() {
            checks.push(uid.clone());
        }
        self.nodes.insert(uid, node);
        checks
    }

    /// An object went; which objects are to be looked at: its dependents, and owners that waited for it.
    pub fn remove(&mut self, uid: &str) -> Vec<String> {
        let mut checks: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        if let Some(node) = self.nodes.remove(uid) {
            for owner in node.owners {
                self.unlink(&owner.uid, uid);
                checks.push(owner.uid);
            }
        }
        checks
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(all) = self.dependents.get_mut(owner) {
            all.remove(dependent);
            if all.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    /// A complete list of a kind came: others of the kind are gone.
    pub fn retain_kind(&mut self, kind: &(String, String), there: &HashSet<String>) -> Vec<String> {
        let gone: Vec<_> = self
            .nodes
            .iter()
            .filter(|(uid, n)| n.kind.id() == *kind && !there.contains(*uid))
            .map(|(u, _)| u.clone())
            .collect();
        gone.iter().flat_map(|uid| self.remove(uid)).collect()
    }

    /// The object and those of its owners that the graph does not have.
    pub fn unknown_owners(&self, uid: &str) -> Option<(Node, Vec<OwnerReference>)> {
        let node = self.nodes.get(uid)?;
        if node.deleting {
            return Some((node.clone(), Vec::new()));
        }
        let unknown = node.owners.iter().filter(|o| self.known(node, o).is_none()).cloned().collect();
        Some((node.clone(), unknown))
    }

    fn known(&self, node: &Node, owner: &OwnerReference) -> Option<Owner> {
        let o = self.nodes.get(&owner.uid)?;
        // An owner in another namespace is none: the reference cannot mean it.
        if !o.namespace.is_empty() && o.namespace != node.namespace {
            return Some(Owner::Absent);
        }
        Some(if o.deletes(FOREGROUND) { Owner::Waiting } else { Owner::Solid })
    }

    /// Decides about one object; `found` has what was learnt about owners the graph does not have.
    pub fn decide(&self, uid: &str, found: &HashMap<String, Owner>) -> Decision {
        let Some(node) = self.nodes.get(uid) else { return Decision::Nothing };
        let dependents: Vec<_> = self
            .dependents
            .get(uid)
            .into_iter()
            .flatten()
            .filter_map(|d| Some((d, self.nodes.get(d)?)))
            .filter(|(_, d)| node.namespace.is_empty() || d.namespace == node.namespace)
            .collect();
        if node.deletes(ORPHAN) {
            return Decision::Orphan(dependents.into_iter().map(|(u, n)| (u.clone(), n.clone())).collect());
        }
        if node.deletes(FOREGROUND) {
            let blocks = |n: &Node| n.owners.iter().any(|o| o.uid == uid && o.block_owner_deletion == Some(true));
            if !dependents.iter().any(|(_, n)| blocks(n)) {
                return Decision::Unblock(FOREGROUND);
            }
            let open = dependents.into_iter().filter(|(_, n)| !n.deleting || n.deletes(FOREGROUND));
            return Decision::CheckDependents(open.map(|(u, _)| u.clone()).collect());
        }
        if node.deleting || node.owners.is_empty() {
            return Decision::Nothing;
        }
        let state = |o: &OwnerReference| self.known(node, o).or_else(|| found.get(&o.uid).copied());
        let with = |wanted: Owner| node.owners.iter().filter(move |o| state(o) == Some(wanted));
        if node.owners.iter().any(|o| state(o).is_none()) {
            return Decision::Nothing;
        }
        let leaving: Vec<_> =
            node.owners.iter().filter(|o| state(o) != Some(Owner::Solid)).map(|o| o.uid.clone()).collect();
        if with(Owner::Solid).next().is_some() {
            return if leaving.is_empty() { Decision::Nothing } else { Decision::DropOwners(leaving) };
        }
        // The last owner goes: so does this one, in the way it was asked to.
        let finalizer = |f: &str| node.finalizers.iter().any(|x| x == f);
        Decision::Delete(if finalizer(ORPHAN) {
            PropagationPolicy::Orphan
        } else if finalizer(FOREGROUND) || with(Owner::Waiting).next().is_some() && !dependents.is_empty() {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::discovery::ApiResource;

    fn kind() -> Arc<Kind> {
        let resource = ApiResource::erase::<k8s_openapi::api::core::v1::ConfigMap>(&());
        Arc::new(Kind { resource, namespaced: true, verbs: Vec::new() })
    }

    fn node(owners: &[(&str, bool)], finalizers: &[&str], deleting: bool) -> Node {
        Node {
            kind: kind(),
            namespace: "n".to_owned(),
            name: "x".to_owned(),
            version: None,
            owners: owners
                .iter()
                .map(|(uid, block)| OwnerReference {
                    uid: (*uid).to_owned(),
                    block_owner_deletion: Some(*block),
                    ..OwnerReference::default()
                })
                .collect(),
            finalizers: finalizers.iter().map(|f| (*f).to_owned()).collect(),
            deleting,
        }
    }

    fn put(graph: &mut Graph, uid: &str, node: Node) -> Vec<String> {
        graph.put(uid.to_owned(), node)
    }

    #[test]
    fn background() {
        let mut g = Graph::default();
        put(&mut g, "owner", node(&[], &[], false));
        put(&mut g, "child", node(&[("owner", true)], &[], false));
        assert!(matches!(g.decide("child", &HashMap::new()), Decision::Nothing));
        assert_eq!(g.remove("owner"), ["child"]);
        let (_, unknown) = g.unknown_owners("child").unwrap();
        assert_eq!(unknown.len(), 1, "absence is confirmed first");
        assert!(matches!(g.decide("child", &HashMap::new()), Decision::Nothing));
        let absent = HashMap::from([("owner".to_owned(), Owner::Absent)]);
        assert!(matches!(g.decide("child", &absent), Decision::Delete(PropagationPolicy::Background)));
    }

    #[test]
    fn one_of_two_owners_goes() {
        let mut g = Graph::default();
        put(&mut g, "a", node(&[], &[], false));
        put(&mut g, "child", node(&[("a", true), ("b", true)], &[], false));
        let absent = HashMap::from([("b".to_owned(), Owner::Absent)]);
        assert!(matches!(g.decide("child", &absent), Decision::DropOwners(o) if o == ["b"]));
    }

    #[test]
    fn foreground_waits_for_blocking_dependents() {
        let mut g = Graph::default();
        put(&mut g, "owner", node(&[], &[FOREGROUND], true));
        put(&mut g, "child", node(&[("owner", true)], &[], false));
        put(&mut g, "grandchild", node(&[("child", true)], &[], false));
        put(&mut g, "loose", node(&[("owner", false)], &[], false));
        assert!(matches!(g.decide("owner", &HashMap::new()), Decision::CheckDependents(d) if d.len() == 2));
        assert!(matches!(g.decide("child", &HashMap::new()), Decision::Delete(PropagationPolicy::Foreground)));
        assert!(matches!(g.decide("loose", &HashMap::new()), Decision::Delete(PropagationPolicy::Background)));
        g.remove("grandchild");
        assert!(g.remove("child").contains(&"owner".to_owned()));
        assert!(matches!(g.decide("owner", &HashMap::new()), Decision::Unblock(FOREGROUND)), "loose does not block");
    }

    #[test]
    fn orphans_stay() {
        let mut g = Graph::default();
        put(&mut g, "owner", node(&[], &[ORPHAN], true));
        put(&mut g, "child", node(&[("owner", true)], &[], false));
        assert!(matches!(g.decide("owner", &HashMap::new()), Decision::Orphan(d) if d.len() == 1));
    }

    #[test]
    fn an_owner_in_another_namespace_is_absent() {
        let mut g = Graph::default();
        put(&mut g, "owner", Node { namespace: "other".to_owned(), ..node(&[], &[], false) });
        put(&mut g, "child", node(&[("owner", true)], &[], false));
        assert!(matches!(g.decide("child", &HashMap::new()), Decision::Delete(_)));
    }

    #[test]
    fn a_relist_finds_what_went() {
        let mut g = Graph::default();
        put(&mut g, "owner", node(&[], &[], false));
        put(&mut g, "child", node(&[("owner", true)], &[], false));
        let checks = g.retain_kind(&kind().id(), &HashSet::from(["child".to_owned()]));
        assert_eq!(checks, ["child"]);
    }
}
