//! The rules for nodes that need no graph: those of Kubernetes 1.35 (`NodeRules`), and what the components of this
//! cluster's nodes need beyond them, each with its reason.
//!
//! A joined node has one identity, `system:node:NAME`: kube-proxy, network policies, DNS and the announcer speak under it
//! as the kubelet does.

use super::authorize::Selectors;
use crate::Attributes;

/// One line: what is allowed. Nothing stands for all but what is written `*`.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Verbs.
    pub verbs: &'static [&'static str],
    /// API group.
    pub group: &'static str,
    /// Resources, with their subresource (`nodes/status`).
    pub resources: &'static [&'static str],
    /// Namespace; `*` for any, also none.
    pub namespace: &'static str,
    /// Names, in which `{node}` stands for the node and a final `*` for anything; empty for any, also none. To `create`
    /// is allowed also where the request has no name: admission sees the object.
    pub names: &'static [&'static str],
    /// The label (key, value) that a list or watch must select by; empty for none.
    pub label: (&'static str, &'static str),
    /// Who needs it.
    pub why: &'static str,
}

const READ: &[&str] = &["get", "list", "watch"];
const FOLLOW: &[&str] = &["list", "watch"];
const ANY: Rule =
    Rule { verbs: &[], group: "", resources: &[], namespace: "*", names: &[], label: ("", ""), why: "the kubelet" };

/// Kubernetes 1.35's rules for what is not told apart by the graph. Not among them: trust bundles and pod certificates,
/// which this API does not serve.
pub(super) const UPSTREAM: &[Rule] = &[
    Rule { verbs: &["create"], group: "authentication.k8s.io", resources: &["tokenreviews"], ..ANY },
    Rule {
        verbs: &["create"],
        group: "authorization.k8s.io",
        resources: &["subjectaccessreviews", "localsubjectaccessreviews"],
        ..ANY
    },
    Rule { verbs: READ, resources: &["services"], ..ANY },
    Rule { verbs: &["create", "update", "patch"], resources: &["events"], ..ANY },
    Rule { verbs: &["create", "update", "patch"], group: "events.k8s.io", resources: &["events"], ..ANY },
    Rule { verbs: &["get"], resources: &["endpoints"], ..ANY },
    Rule {
        verbs: &["create", "get", "list", "watch"],
        group: "certificates.k8s.io",
        resources: &["certificatesigningrequests"],
        ..ANY
    },
    Rule { verbs: READ, group: "storage.k8s.io", resources: &["csidrivers"], ..ANY },
    Rule { verbs: READ, group: "node.k8s.io", resources: &["runtimeclasses"], ..ANY },
];

/// What a joined node of this cluster needs beyond Kubernetes' rules. None of it reads a Secret, and a ConfigMap only by
/// the names of the cluster's own settings.
pub const EXTRA: &[Rule] = &[
    Rule {
        verbs: FOLLOW,
        resources: &["pods"],
        namespace: "",
        why: "network policies (addresses and labels of peers on other nodes) and DNS' `pods verified`. The price: a node \
              reads the specs of all pods, without what they refer to",
        ..ANY
    },
    Rule {
        verbs: FOLLOW,
        resources: &["nodes"],
        namespace: "",
        why: "routes to the pods of every node; the announcer's choice of a node",
        ..ANY
    },
    Rule { verbs: FOLLOW, resources: &["namespaces"], namespace: "", why: "network policies and DNS", ..ANY },
    Rule {
        verbs: FOLLOW,
        group: "discovery.k8s.io",
        resources: &["endpointslices"],
        namespace: "",
        why: "kube-proxy, DNS, the announcer",
        ..ANY
    },
    Rule {
        verbs: FOLLOW,
        group: "networking.k8s.io",
        resources: &["networkpolicies", "servicecidrs"],
        namespace: "",
        why: "network policies; kube-proxy's ranges of service addresses",
        ..ANY
    },
    Rule {
        verbs: &["get"],
        resources: &["configmaps"],
        namespace: "kube-system",
        names: &["causeway-config"],
        why: "the cluster's settings, at each start of a joined machine",
        ..ANY
    },
    Rule {
        verbs: READ,
        resources: &["configmaps"],
        namespace: "kube-system",
        names: &["causeway-dns"],
        why: "the settings of DNS, followed",
        ..ANY
    },
    Rule { verbs: &["get"], resources: &["events"], names: &["*"], why: "counting on after a restart", ..ANY },
    Rule {
        verbs: &["create", "update", "patch"],
        group: "discovery.k8s.io",
        resources: &["endpointslices"],
        namespace: "kube-system",
        names: &["kube-dns-{node}", "kube-dns-{node}-v6"],
        why: "where this node's DNS is",
        ..ANY
    },
    Rule {
        verbs: FOLLOW,
        group: "coordination.k8s.io",
        resources: &["leases"],
        namespace: "kube-system",
        label: ("causeway.dev/announce", "address"),
        why: "the announcer: who has which load balancer address",
        ..ANY
    },
    Rule {
        verbs: READ,
        group: "coordination.k8s.io",
        resources: &["leases"],
        namespace: "kube-system",
        names: &["announce-*"],
        why: "the announcer: whether another node's is alive",
        ..ANY
    },
    Rule {
        verbs: &["create", "update", "patch", "delete"],
        group: "coordination.k8s.io",
        resources: &["leases"],
        namespace: "kube-system",
        names: &["announce-{node}"],
        why: "the announcer: that it is alive",
        ..ANY
    },
    Rule {
        verbs: &["create", "update", "delete"],
        group: "coordination.k8s.io",
        resources: &["leases"],
        namespace: "kube-system",
        names: &["load-balancer-*"],
        why: "the announcer: taking an address and giving it back",
        ..ANY
    },
    Rule {
        verbs: FOLLOW,
        resources: &["persistentvolumes"],
        namespace: "",
        label: ("causeway.dev/node", "{node}"),
        why: "the kubelet: folders of local volumes that are to be removed",
        ..ANY
    },
];

impl Rule {
    /// Whether it allows a request of a node.
    pub fn allows(&self, node: &str, a: &Attributes, selectors: &Selectors<'_>) -> bool {
        self.verbs.contains(&a.verb.as_str())
            && self.group == a.group
            && self.resources.contains(&a.full_resource().as_str())
            && (self.namespace == "*" || self.namespace == a.namespace)
            && self.names_allow(node, a)
            && self.label_allows(node, selectors)
    }

    fn names_allow(&self, node: &str, a: &Attributes) -> bool {
        if self.names.is_empty() || (a.name.is_empty() && a.verb == "create") {
            return true;
        }
        !a.name.is_empty() && self.names.iter().any(|pattern| matches_name(pattern, node, &a.name))
    }

    fn label_allows(&self, node: &str, selectors: &Selectors<'_>) -> bool {
        let (key, value) = self.label;
        let value = if value == "{node}" { node } else { value };
        key.is_empty() || selectors.labels.iter().any(|t| t.equal && t.key == key && t.value == value)
    }
}

fn matches_name(pattern: &str, node: &str, name: &str) -> bool {
    if let Some(prefix) = pattern.strip_suffix('*') {
        return name.starts_with(prefix);
    }
    match pattern.split_once("{node}") {
        Some((before, after)) => {
            name.strip_prefix(before).and_then(|rest| rest.strip_suffix(after)).is_some_and(|middle| middle == node)
        }
        None => name == pattern,
    }
}
