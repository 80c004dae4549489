//! Who may do what: one seam, [`Authorizer`], asked once for every request.
//!
//! The interim rules of [`Interim`] stand until RBAC fills the seam: administrators may do everything, each
//! component what its table says, nodes what kubelets need, service accounts may read what is not secret, and
//! everybody with a credential may read discovery and ask about themselves.

use causeway_api::bootstrap_token;
use causeway_api::certificates::NODE_USER_PREFIX;
use causeway_api::identity::{self, UserInfo};

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Attributes {
    /// API verb, or the HTTP verb in lower case for paths that are no resource.
    pub verb: String,
    /// API group.
    pub group: String,
    /// Plural resource; empty for other paths.
    pub resource: String,
    /// Subresource.
    pub subresource: String,
    /// Namespace; empty for all.
    pub namespace: String,
    /// Object name.
    pub name: String,
    /// The path, for what is no resource.
    pub path: String,
}

impl Attributes {
    /// Changes nothing.
    pub fn is_read(&self) -> bool {
        matches!(self.verb.as_str(), "get" | "list" | "watch" | "head")
    }
}

/// The answer to one question of authorisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Yes, because.
    Allow(String),
    /// Nothing allows it.
    NoOpinion,
}

/// Decides on requests.
pub trait Authorizer: Send + Sync {
    /// Whether `user` may do it.
    fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Decision;
}

/// The rules until RBAC is there.
pub struct Interim;

/// One line of a component's table: verbs, group, resources (`*` stands for all).
type Rule = (&'static [&'static str], &'static str, &'static [&'static str]);

const READ: &[&str] = &["get", "list", "watch"];
const ALL: &[&str] = &["*"];
const EVENTS: Rule = (&["create", "patch", "update", "get"], "", &["events"]);
const LEASES: Rule = (&["create", "patch", "update", "get"], "coordination.k8s.io", &["leases"]);

/// The copies of the control plane: never Secrets.
const CONTROLLERS: &[Rule] = &[
    (
        READ,
        "",
        &[
            "pods",
            "nodes",
            "namespaces",
            "services",
            "endpoints",
            "serviceaccounts",
            "configmaps",
            "persistentvolumes",
            "persistentvolumeclaims",
        ],
    ),
    (READ, "apps", &["deployments", "replicasets", "statefulsets", "daemonsets", "controllerrevisions"]),
    (READ, "certificates.k8s.io", &["certificatesigningrequests"]),
    (READ, "coordination.k8s.io", &["leases"]),
    (READ, "discovery.k8s.io", &["endpointslices"]),
    (READ, "networking.k8s.io", &["servicecidrs", "ipaddresses"]),
    (READ, "policy", &["poddisruptionbudgets"]),
    (READ, "storage.k8s.io", &["storageclasses"]),
];
/// The copies of a node: never Secrets or ConfigMaps.
const NODE_COPIES: &[Rule] = &[
    (READ, "", &["pods", "services", "nodes", "namespaces"]),
    (READ, "discovery.k8s.io", &["endpointslices"]),
    (READ, "networking.k8s.io", &["servicecidrs"]),
];
const SCHEDULER: &[Rule] = &[
    EVENTS,
    LEASES,
    (&["create"], "", &["pods/binding", "bindings"]),
    (&["patch", "update"], "", &["pods/status", "persistentvolumeclaims", "persistentvolumes"]),
    (&["delete"], "", &["pods"]),
];
const PROXY: &[Rule] = &[
    (READ, "", &["services", "endpoints", "nodes", "namespaces", "configmaps"]),
    (READ, "discovery.k8s.io", ALL),
    (READ, "networking.k8s.io", ALL),
    EVENTS,
];
const DNS: &[Rule] = &[(READ, "", &["configmaps"]), (ALL, "discovery.k8s.io", &["endpointslices"]), EVENTS, LEASES];
const INGRESS: &[Rule] = &[
    (READ, "", &["configmaps", "secrets"]),
    (READ, "networking.k8s.io", ALL),
    (READ, "gateway.networking.k8s.io", ALL),
    (&["patch", "update"], "networking.k8s.io", &["ingresses", "ingresses/status"]),
    (ALL, "networking.k8s.io", &["ingressclasses"]),
    (&["patch", "update"], "gateway.networking.k8s.io", ALL),
    (&["create"], "gateway.networking.k8s.io", &["gatewayclasses"]),
    (&["get", "create"], "apiextensions.k8s.io", &["customresourcedefinitions"]),
    // Certificates that it got by ACME.
    (&["create", "patch"], "", &["secrets"]),
    // Every Gateway gets a Service and the EndpointSlice behind it.
    (&["create", "patch", "delete"], "", &["services"]),
    (&["create", "patch", "delete"], "discovery.k8s.io", &["endpointslices"]),
    EVENTS,
    LEASES,
];
const POLICY: &[Rule] = &[(READ, "", &["pods"]), (READ, "networking.k8s.io", &["networkpolicies"])];
const ANNOUNCE: &[Rule] =
    &[(READ, "coordination.k8s.io", &["leases"]), (&["delete"], "coordination.k8s.io", &["leases"]), LEASES, EVENTS];
const NODE: &[Rule] = &[
    (
        READ,
        "",
        &[
            "pods",
            "services",
            "nodes",
            "configmaps",
            "secrets",
            "persistentvolumes",
            "persistentvolumeclaims",
            "serviceaccounts",
            "namespaces",
            "endpoints",
        ],
    ),
    (READ, "networking.k8s.io", ALL),
    (READ, "node.k8s.io", ALL),
    (READ, "discovery.k8s.io", ALL),
    (READ, "storage.k8s.io", ALL),
    (&["create", "update", "patch"], "", &["nodes", "nodes/status"]),
    (&["create", "update", "patch", "delete"], "", &["pods"]),
    (&["update", "patch"], "", &["pods/status", "persistentvolumeclaims/status"]),
    (&["update", "patch"], "", &["persistentvolumes"]),
    (&["create"], "", &["serviceaccounts/token", "pods/eviction"]),
    (&["create"], "authentication.k8s.io", &["tokenreviews"]),
    (&["create"], "authorization.k8s.io", &["subjectaccessreviews"]),
    EVENTS,
    (ALL, "coordination.k8s.io", &["leases"]),
    CERTIFICATES,
    // Which of them are a node's own is asked at admission: `admission::nodes`.
    (&["create", "update", "patch"], "discovery.k8s.io", &["endpointslices"]),
];
/// To ask for a certificate and to see what became of it.
const CERTIFICATES: Rule =
    (&["create", "get", "list", "watch"], "certificates.k8s.io", &["certificatesigningrequests"]);
const BOOTSTRAPPER: &[Rule] = &[CERTIFICATES];
/// Service accounts: reading everything but secrets.
const SERVICE_ACCOUNT_READS: &[&str] = &["secrets", "serviceaccounts/token"];

fn matches_rule(rule: &Rule, a: &Attributes) -> bool {
    let (verbs, group, resources) = rule;
    let full = if a.subresource.is_empty() { a.resource.clone() } else { format!("{}/{}", a.resource, a.subresource) };
    let within = |list: &[&str], word: &str| list.contains(&"*") || list.contains(&word);
    within(verbs, &a.verb) && (*group == "*" || *group == a.group) && within(resources, &full)
}

fn table_of(user: &UserInfo) -> Option<&'static [Rule]> {
    match user.username.as_str() {
        identity::USER_CONTROLLERS => Some(CONTROLLERS),
        identity::USER_NODE => Some(NODE_COPIES),
        identity::USER_SCHEDULER => Some(SCHEDULER),
        identity::USER_PROXY => Some(PROXY),
        identity::USER_DNS => Some(DNS),
        identity::USER_POLICY => Some(POLICY),
        identity::USER_ANNOUNCE => Some(ANNOUNCE),
        identity::USER_INGRESS => Some(INGRESS),
        name if user.groups.iter().any(|g| g == identity::GROUP_NODES) && name.starts_with(NODE_USER_PREFIX) => {
            Some(NODE)
        }
        _ if user.groups.iter().any(|g| g == bootstrap_token::GROUP) => Some(BOOTSTRAPPER),
        _ => None,
    }
}

/// Paths that everybody with a credential may read.
fn is_discovery(path: &str) -> bool {
    let roots = ["/api", "/apis", "/openapi", "/version", "/healthz", "/livez", "/readyz", "/.well-known", "/openid"];
    roots.iter().any(|root| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// Paths that need no credential.
fn is_public(path: &str) -> bool {
    ["/healthz", "/livez", "/readyz", "/version", "/version/"].contains(&path)
}

impl Authorizer for Interim {
    fn authorize(&self, user: &UserInfo, a: &Attributes) -> Decision {
        let allow = |why: &str| Decision::Allow(why.to_owned());
        let member = |group: &str| user.groups.iter().any(|g| g == group);
        if member(identity::GROUP_MASTERS) {
            return allow("member of system:masters");
        }
        if user.username == identity::USER_CONTROLLER_MANAGER || user.username == identity::USER_APISERVER {
            return allow("control plane");
        }
        if a.resource.is_empty() {
            if is_public(&a.path) && a.verb == "get" {
                return allow("public path");
            }
            let reader = member(identity::GROUP_AUTHENTICATED) && a.verb == "get";
            return if reader && is_discovery(&a.path) { allow("discovery") } else { Decision::NoOpinion };
        }
        let cluster_info = a.resource == "configmaps"
            && a.namespace == bootstrap_token::CLUSTER_INFO_NAMESPACE
            && a.name == bootstrap_token::CLUSTER_INFO;
        if cluster_info && a.verb == "get" && a.group.is_empty() && a.subresource.is_empty() {
            return allow("who wants to join has no credential yet");
        }
        if !member(identity::GROUP_AUTHENTICATED) {
            return Decision::NoOpinion;
        }
        let self_review = matches!(
            a.resource.as_str(),
            "selfsubjectaccessreviews" | "selfsubjectrulesreviews" | "selfsubjectreviews"
        );
        if self_review && a.verb == "create" {
            return allow("asks about itself");
        }
        if let Some(table) = table_of(user) {
            return if table.iter().any(|rule| matches_rule(rule, a)) {
                allow("component rule")
            } else {
                Decision::NoOpinion
            };
        }
        let full =
            if a.subresource.is_empty() { a.resource.clone() } else { format!("{}/{}", a.resource, a.subresource) };
        if member(identity::GROUP_SERVICE_ACCOUNTS) && a.is_read() && !SERVICE_ACCOUNT_READS.contains(&full.as_str()) {
            return allow("service accounts may read");
        }
        Decision::NoOpinion
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(user: &UserInfo, verb: &str, group: &str, resource: &str, subresource: &str) -> bool {
        let a = Attributes {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            ..Attributes::default()
        };
        Interim.authorize(user, &a) != Decision::NoOpinion
    }

    #[test]
    fn copies_are_read_by_name_and_hold_no_secrets() {
        for (user, kinds) in [
            (identity::USER_CONTROLLERS, &[("", "pods"), ("", "configmaps"), ("apps", "replicasets")][..]),
            (identity::USER_NODE, &[("", "services"), ("discovery.k8s.io", "endpointslices"), ("", "namespaces")]),
        ] {
            let user = UserInfo::component(user, &[]);
            assert!(kinds.iter().all(|(group, kind)| may(&user, "list", group, kind, "")));
            for verb in ["get", "list", "watch"] {
                assert!(!may(&user, verb, "", "secrets", ""));
            }
            assert!(!may(&user, "get", "", "pods", "log") && !may(&user, "create", "", "pods", "exec"));
            for verb in ["create", "update", "patch", "delete"] {
                assert!(kinds.iter().all(|(group, kind)| !may(&user, verb, group, kind, "")));
            }
        }
        let node = UserInfo::component(identity::USER_NODE, &[]);
        assert!(!may(&node, "get", "", "configmaps", ""));
        let scheduler = UserInfo::component(identity::USER_SCHEDULER, &[]);
        assert!(!may(&scheduler, "list", "", "secrets", ""));
    }

    #[test]
    fn components_have_what_they_need_and_no_more() {
        let scheduler = UserInfo::component(identity::USER_SCHEDULER, &[]);
        assert!(may(&scheduler, "create", "", "pods", "binding"));
        assert!(!may(&scheduler, "create", "apps", "deployments", ""));
        let proxy = UserInfo::component(identity::USER_PROXY, &[]);
        assert!(may(&proxy, "watch", "discovery.k8s.io", "endpointslices", ""));
        assert!(!may(&proxy, "get", "", "secrets", ""));
        let policy = UserInfo::component(identity::USER_POLICY, &[]);
        assert!(may(&policy, "watch", "networking.k8s.io", "networkpolicies", ""));
        assert!(may(&policy, "list", "", "pods", "") && !may(&policy, "list", "", "namespaces", ""));
        assert!(!may(&policy, "get", "", "secrets", ""));
        assert!(!may(&policy, "update", "", "pods", ""));
        assert!(may(&proxy, "watch", "networking.k8s.io", "servicecidrs", ""));
        let announcer = UserInfo::component(identity::USER_ANNOUNCE, &[]);
        assert!(may(&announcer, "update", "coordination.k8s.io", "leases", ""));
        assert!(!may(&announcer, "watch", "", "nodes", "") && !may(&announcer, "patch", "", "services", "status"));
        let node = UserInfo::node("n1");
        assert!(may(&node, "patch", "", "pods", "status"));
        assert!(!may(&node, "create", "rbac.authorization.k8s.io", "clusterroles", ""));
        let account = UserInfo::component("system:serviceaccount:a:b", &[identity::GROUP_SERVICE_ACCOUNTS]);
        assert!(may(&account, "list", "", "pods", ""));
        assert!(!may(&account, "list", "", "secrets", ""));
        assert!(!may(&account, "delete", "", "pods", ""));
        assert!(!may(&UserInfo::anonymous(), "list", "", "pods", ""));
        assert!(may(&UserInfo::admin(), "delete", "x", "y", "z"));
    }
}
