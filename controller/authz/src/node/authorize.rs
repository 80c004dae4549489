//! The node authoriser: which requests of a node are allowed, as Kubernetes 1.35 decides (with AuthorizeNodeWithSelectors),
//! and what this cluster's nodes need beyond.
//!
//! In: who asks for what, and by which selectors a list is narrowed. Out: `Allow`, or no opinion with the reason in
//! upstream's words: it never denies what another authoriser allows.

use super::graph::Graph;
use super::references::Kind;
use super::rules::{EXTRA, UPSTREAM};
use crate::{Attributes, Decision, Subject};

/// The prefix of a node's user name.
const USER_PREFIX: &str = "system:node:";
/// The group of all nodes.
const GROUP: &str = "system:nodes";
/// Where nodes keep their leases.
pub(super) const LEASES: &str = "kube-node-lease";

/// One requirement of a selector: the value is, or is not, this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term<'a> {
    /// Field (`spec.nodeName`) or label.
    pub key: &'a str,
    /// `=` (or a set of one value), not `!=`.
    pub equal: bool,
    /// The value.
    pub value: &'a str,
}

/// What narrows a list, watch or deletecollection: the requirements all of which hold for what is answered. Those that no
/// [`Term`] can say are left out. Taken from the selectors as they were parsed for the answer, never parsed again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Selectors<'a> {
    /// Of fields.
    pub fields: &'a [Term<'a>],
    /// Of labels.
    pub labels: &'a [Term<'a>],
}

impl Selectors<'_> {
    fn field_is(&self, key: &str, value: &str) -> bool {
        self.fields.iter().any(|t| t.equal && t.key == key && t.value == value)
    }
}

/// The name of the node that asks: `None` for everybody else, empty where the user name says none.
pub fn node_of<'a>(subject: &Subject<'a>) -> Option<&'a str> {
    let name = subject.user.strip_prefix(USER_PREFIX)?;
    subject.groups.iter().any(|g| g == GROUP).then_some(name)
}

/// Why not.
type Answer = Result<(), String>;

fn no(why: &str) -> Answer {
    Err(why.to_owned())
}

impl Graph {
    /// Decides on a request. `selectors` matter to list, watch and deletecollection only.
    pub fn authorize(&self, subject: &Subject<'_>, a: &Attributes, selectors: &Selectors<'_>) -> Decision {
        let Some(node) = node_of(subject) else { return Decision::NoOpinion(String::new()) };
        if node.is_empty() {
            return Decision::NoOpinion(format!("unknown node for user {:?}", subject.user));
        }
        if a.resource.is_empty() {
            return Decision::NoOpinion(String::new());
        }
        let answer = self.upstream(node, a, selectors);
        let Err(why) = answer else { return Decision::Allow(String::new()) };
        if self.extra(node, a) || EXTRA.iter().any(|rule| rule.allows(node, a, selectors)) {
            return Decision::Allow(String::new());
        }
        Decision::NoOpinion(why)
    }

    fn upstream(&self, node: &str, a: &Attributes, selectors: &Selectors<'_>) -> Answer {
        match (a.group.as_str(), a.resource.as_str()) {
            ("", "secrets") => self.read(node, a, Kind::Secret),
            ("", "configmaps") => self.read(node, a, Kind::ConfigMap),
            ("", "persistentvolumeclaims") if a.subresource == "status" => match a.verb.as_str() {
                "update" | "patch" => self.related(node, a, Kind::Claim),
                _ => no("can only get/update/patch this type"),
            },
            ("", "persistentvolumeclaims") => self.get(node, a, |g| g.refers(node, Kind::Claim, &a.namespace, &a.name)),
            ("", "persistentvolumes") => self.get(node, a, |g| g.reaches_volume(node, &a.name)),
            ("resource.k8s.io", "resourceclaims") => {
                self.get(node, a, |g| g.refers(node, Kind::ResourceClaim, &a.namespace, &a.name))
            }
            ("storage.k8s.io", "volumeattachments") => self.get(node, a, |g| g.is_attachment_of(node, &a.name)),
            ("", "serviceaccounts") => self.account(node, a),
            ("coordination.k8s.io", "leases") => lease(node, a),
            ("storage.k8s.io", "csinodes") => csi_node(node, a),
            ("resource.k8s.io", "resourceslices") => self.slice(node, a, selectors),
            ("", "nodes") => own_node(node, a),
            ("", "pods") => self.pod(node, a, selectors),
            _ if UPSTREAM.iter().any(|rule| rule.allows(node, a, selectors)) => Ok(()),
            _ => no(""),
        }
    }

    /// Beyond upstream, of what the graph knows: our kubelet follows the claims and volumes that it waits for, each by its
    /// name, and takes its finalizer off the local volumes that it has removed.
    fn extra(&self, node: &str, a: &Attributes) -> bool {
        if !a.group.is_empty() || !a.subresource.is_empty() || a.name.is_empty() {
            return false;
        }
        match (a.resource.as_str(), a.verb.as_str()) {
            ("persistentvolumeclaims", "list" | "watch") => self.refers(node, Kind::Claim, &a.namespace, &a.name),
            ("persistentvolumes", "list" | "watch") => self.reaches_volume(node, &a.name),
            ("persistentvolumes", "patch") => self.is_local(node, &a.name),
            _ => false,
        }
    }

    fn related(&self, node: &str, a: &Attributes, kind: Kind) -> Answer {
        if a.name.is_empty() {
            return no("No Object name found");
        }
        let found = match kind {
            Kind::Secret => self.reaches_secret(node, &a.namespace, &a.name),
            _ => self.refers(node, kind, &a.namespace, &a.name),
        };
        if found { Ok(()) } else { Err(unrelated(node)) }
    }

    /// Secrets and ConfigMaps, one at a time.
    fn read(&self, node: &str, a: &Attributes, kind: Kind) -> Answer {
        if !matches!(a.verb.as_str(), "get" | "list" | "watch") {
            return no("can only read resources of this type");
        }
        if !a.subresource.is_empty() {
            return no("cannot read subresource");
        }
        if a.namespace.is_empty() {
            return no("can only read namespaced object of this type");
        }
        self.related(node, a, kind)
    }

    fn get(&self, node: &str, a: &Attributes, reaches: impl Fn(&Self) -> bool) -> Answer {
        if a.verb != "get" {
            return no("can only get individual resources of this type");
        }
        if !a.subresource.is_empty() {
            return no("cannot get subresource");
        }
        if a.name.is_empty() {
            return no("No Object name found");
        }
        if reaches(self) { Ok(()) } else { Err(unrelated(node)) }
    }

    /// Accounts of its pods: read, and tokens of them.
    fn account(&self, node: &str, a: &Attributes) -> Answer {
        match (a.verb.as_str(), a.subresource.as_str()) {
            ("get", "") | ("create", "token") if !a.name.is_empty() => self.related(node, a, Kind::Account),
            ("create", "token") => no("can only create tokens for individual service accounts"),
            ("create", _) => no("can only create token subresource of serviceaccount"),
            ("get", "") => no("can only get individual service accounts"),
            _ => no("can only get individual service accounts or create tokens for them"),
        }
    }

    fn slice(&self, node: &str, a: &Attributes, selectors: &Selectors<'_>) -> Answer {
        if !a.subresource.is_empty() {
            return no("cannot authorize ResourceSlice subresources");
        }
        match a.verb.as_str() {
            // Admission sees whose it is.
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" if a.name.is_empty() => no("No Object name found"),
            "get" | "update" | "patch" | "delete" if self.is_slice_of(node, &a.name) => Ok(()),
            "get" | "update" | "patch" | "delete" => Err(unrelated(node)),
            "watch" | "list" | "deletecollection" if selectors.field_is("spec.nodeName", node) => Ok(()),
            "watch" | "list" | "deletecollection" => {
                no("can only list/watch/deletecollection resourceslices with nodeName field selector")
            }
            _ => no(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, \
                     delete, deletecollection",
            ),
        }
    }

    fn pod(&self, node: &str, a: &Attributes, selectors: &Selectors<'_>) -> Answer {
        match (a.subresource.as_str(), a.verb.as_str()) {
            ("", "get") => self.related(node, a, Kind::Pod),
            ("", "list" | "watch") if selectors.field_is("spec.nodeName", node) => Ok(()),
            ("", "list" | "watch") if !a.name.is_empty() => self.related(node, a, Kind::Pod),
            ("", "list" | "watch") => no("can only list/watch pods with spec.nodeName field selector"),
            // Which ones, admission sees: mirror pods, and what is bound to the node.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
            _ => no(""),
        }
    }
}

fn unrelated(node: &str) -> String {
    format!("no relationship found between node '{node}' and this object")
}

/// The one of its own name. A create has no name yet: admission sees it.
fn lease(node: &str, a: &Attributes) -> Answer {
    if !a.subresource.is_empty() || !matches!(a.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a node lease");
    }
    if a.namespace != LEASES {
        return Err(format!("can only access leases in the {LEASES:?} system namespace"));
    }
    if a.verb != "create" && a.name != node {
        return no("can only access node lease with the same name as the requesting node");
    }
    Ok(())
}

fn csi_node(node: &str, a: &Attributes) -> Answer {
    if !matches!(a.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a CSINode");
    }
    if !a.subresource.is_empty() {
        return no("cannot authorize CSINode subresources");
    }
    if a.verb != "create" && a.name != node {
        return no("can only access CSINode with the same name as the requesting node");
    }
    Ok(())
}

fn own_node(node: &str, a: &Attributes) -> Answer {
    match (a.subresource.as_str(), a.verb.as_str()) {
        // Which one, admission sees.
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
        ("", "get" | "list" | "watch") if a.name == node => Ok(()),
        ("", "get" | "list" | "watch") if a.name.is_empty() => {
            Err(format!("node '{node}' cannot read all nodes, only its own Node object"))
        }
        ("", "get" | "list" | "watch") => {
            Err(format!("node '{node}' cannot read '{}', only its own Node object", a.name))
        }
        _ => no(""),
    }
}

#[cfg(test)]
pub(super) mod tests;
