//! The rules until RBAC is there: administrators may do everything, each component what its table says, nodes what
//! kubelets need, service accounts may read what is not secret, and everybody with a credential may read discovery and
//! ask about themselves.

use super::{Attributes, Authorizer, Decision};
use async_trait::async_trait;
use causeway_api::bootstrap_token;
use causeway_api::certificates::NODE_USER_PREFIX;
use causeway_api::identity::{self, UserInfo};

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
/// Certificates, password files and authorities, each by its name: what nobody refers to is not the ingress' to read.
const INGRESS_BY_NAME: &[Rule] = &[(READ, "", &["configmaps", "secrets"])];
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
/// Subresources that service accounts may read, with their resource (`*` stands for any). They are those that
/// Kubernetes' role `view` has. Everything else is refused, above all what is a way into a container or a node.
const SERVICE_ACCOUNT_READS: &[(&str, &str)] = &[("*", "status"), ("*", "scale"), ("pods", "log")];

/// Service accounts read everything but secrets.
fn service_account_reads(a: &Attributes) -> bool {
    // Split again: a review may name both in the resource.
    let full = a.full_resource();
    let (resource, subresource) = full.split_once('/').unwrap_or((&full, ""));
    let known = || SERVICE_ACCOUNT_READS.iter().any(|(r, s)| (*r == "*" || *r == resource) && *s == subresource);
    // `*` asks for all resources, and secrets are among them.
    a.is_read() && !matches!(resource, "*" | "secrets") && (subresource.is_empty() || known())
}

fn matches_rule(rule: &Rule, a: &Attributes) -> bool {
    let (verbs, group, resources) = rule;
    let full = a.full_resource();
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

/// What a component may do only where the request names the object, in its namespace.
fn by_name(user: &UserInfo, a: &Attributes) -> bool {
    let rules = if user.username == identity::USER_INGRESS { INGRESS_BY_NAME } else { &[] };
    !a.name.is_empty() && !a.namespace.is_empty() && rules.iter().any(|rule| matches_rule(rule, a))
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

#[async_trait]
impl Authorizer for Interim {
    async fn authorize(&self, user: &UserInfo, a: &Attributes) -> Decision {
        self.decide(user, a)
    }
}

impl Interim {
    fn decide(&self, user: &UserInfo, a: &Attributes) -> Decision {
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
            return if reader && is_discovery(&a.path) {
                allow("discovery")
            } else {
                Decision::NoOpinion(String::new())
            };
        }
        let cluster_info = a.resource == "configmaps"
            && a.namespace == bootstrap_token::CLUSTER_INFO_NAMESPACE
            && a.name == bootstrap_token::CLUSTER_INFO;
        if cluster_info && a.verb == "get" && a.group.is_empty() && a.subresource.is_empty() {
            return allow("who wants to join has no credential yet");
        }
        if !member(identity::GROUP_AUTHENTICATED) {
            return Decision::NoOpinion(String::new());
        }
        let self_review = matches!(
            a.resource.as_str(),
            "selfsubjectaccessreviews" | "selfsubjectrulesreviews" | "selfsubjectreviews"
        );
        if self_review && a.verb == "create" {
            return allow("asks about itself");
        }
        if let Some(table) = table_of(user) {
            return if table.iter().any(|rule| matches_rule(rule, a)) || by_name(user, a) {
                allow("component rule")
            } else {
                Decision::NoOpinion(String::new())
            };
        }
        if member(identity::GROUP_SERVICE_ACCOUNTS) && service_account_reads(a) {
            return allow("service accounts may read");
        }
        Decision::NoOpinion(String::new())
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
        Interim.decide(user, &a) != Decision::NoOpinion(String::new())
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

    #[test]
    fn the_ingress_reads_secrets_by_name_only() {
        let ingress = UserInfo::component(identity::USER_INGRESS, &[]);
        let may = |verb: &str, resource: &str, namespace: &str, name: &str| {
            let [verb, resource, namespace, name] = [verb, resource, namespace, name].map(str::to_owned);
            let a = Attributes { verb, resource, namespace, name, ..Attributes::default() };
            Interim.decide(&ingress, &a) != Decision::NoOpinion(String::new())
        };
        for verb in ["get", "list", "watch"] {
            for resource in ["secrets", "configmaps"] {
                assert!(may(verb, resource, "n", "s"));
                assert!(!may(verb, resource, "n", "") && !may(verb, resource, "", "s") && !may(verb, resource, "", ""));
            }
        }
        assert!(!may("delete", "secrets", "n", "s") && !may("deletecollection", "secrets", "n", "s"));
        assert!(may("create", "secrets", "n", "") && may("patch", "secrets", "n", "s"), "what it got by ACME");
    }

    #[test]
    fn service_accounts_read_what_is_listed() {
        let account = UserInfo::component("system:serviceaccount:a:b", &[identity::GROUP_SERVICE_ACCOUNTS]);
        for (group, resource, subresource, expected) in [
            ("", "pods", "", true),
            ("", "pods", "status", true),
            ("", "pods", "log", true),
            ("apps", "deployments", "scale", true),
            ("example.com", "things", "", true),
            ("", "pods", "exec", false),
            ("", "pods", "attach", false),
            ("", "pods", "portforward", false),
            ("", "pods", "proxy", false),
            ("", "pods", "ephemeralcontainers", false),
            ("", "services", "proxy", false),
            ("", "nodes", "proxy", false),
            ("", "nodes", "log", false),
            ("", "nodes", "stats", false),
            ("", "serviceaccounts", "token", false),
            ("", "pods", "unheard-of", false),
            ("", "secrets", "", false),
            ("", "secrets", "status", false),
            // Old paths and reviews that put both into one word.
            ("", "proxy", "p", false),
            ("", "pods/exec", "", false),
            ("", "pods/log", "", true),
            ("", "pods/exec", "status", false),
            ("", "secrets/x", "status", false),
            ("*", "*", "", false),
            ("", "*", "status", false),
        ] {
            for verb in ["get", "list", "watch"] {
                let found = may(&account, verb, group, resource, subresource);
                assert_eq!(found, expected, "{verb} {group} {resource} {subresource}");
            }
            assert!(!may(&account, "create", group, resource, subresource), "{resource} {subresource}");
            assert!(!may(&account, "*", group, resource, subresource), "{resource} {subresource}");
        }
    }
}
