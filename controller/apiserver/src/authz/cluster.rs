//! The cluster's own authorisation: administrators, nodes by what their pods refer to, everybody else by roles.
//!
//! In: changes of roles, bindings, pods and volumes, as the watch cache takes them over. Out: decisions. Both indexes are
//! as new as the cache, so that who has created a binding can rely on it as on anything else that was acknowledged.

use super::{Attributes, Authorizer, Decision};
use crate::catalog::group_and_plural;
use crate::feed::{Feed, Observer};
use crate::object::Object;
use async_trait::async_trait;
use causeway_api::identity::{self, UserInfo};
use causeway_authz::node::{Graph, Selectors, Term};
use causeway_authz::rbac::{Index, RulesFor};
use causeway_authz::{Requirement, Subject};
use parking_lot::RwLock;
use std::sync::{Arc, OnceLock, Weak};

/// Kinds that the role index is made of.
const ROLES: [&str; 4] = ["roles", "clusterroles", "rolebindings", "clusterrolebindings"];
/// Kinds that say what a node may reach.
const GRAPH: [&str; 2] = ["pods", "persistentvolumes"];

/// The cluster's rules, kept up to date by the cache.
#[derive(Default)]
pub struct Rules {
    roles: RwLock<Index>,
    graph: RwLock<Graph>,
    /// What the indexes are made of; it comes later than they do.
    feed: OnceLock<Weak<Feed>>,
}

fn subject(user: &UserInfo) -> Subject<'_> {
    Subject { user: &user.username, groups: &user.groups }
}

fn terms(requirements: &[Requirement]) -> Vec<Term<'_>> {
    requirements.iter().map(|r| Term { key: &r.key, equal: r.equal, value: &r.value }).collect()
}

/// Member of the group that may do everything.
pub fn is_master(user: &UserInfo) -> bool {
    user.groups.iter().any(|g| g == identity::GROUP_MASTERS)
}

impl Rules {
    /// The cache that keeps the indexes up to date.
    pub fn follow(&self, feed: &Arc<Feed>) {
        let _ = self.feed.set(Arc::downgrade(feed));
    }

    /// The roles as they are now. Cheap; does not change any more.
    pub fn roles(&self) -> Index {
        self.roles.read().clone()
    }

    /// Whether `user` may do it, without asking anybody outside.
    pub fn decide(&self, user: &UserInfo, a: &Attributes) -> Decision {
        if is_master(user) {
            return Decision::Allow("member of system:masters".to_owned());
        }
        let (fields, labels) = (terms(&a.fields), terms(&a.labels));
        let selectors = Selectors { fields: &fields, labels: &labels };
        let node = self.graph.read().authorize(&subject(user), a, &selectors);
        if matches!(node, Decision::Allow(_)) || by_name(user, a) {
            return Decision::Allow(String::new());
        }
        match (self.roles.read().authorize(subject(user), a), node) {
            (Decision::NoOpinion(why), Decision::NoOpinion(of_node)) => {
                let all: Vec<String> = [of_node, why].into_iter().filter(|w| !w.is_empty()).collect();
                Decision::NoOpinion(all.join(", "))
            }
            (decision, _) => decision,
        }
    }
}

/// Certificates, password files and authorities are the ingress' to read, each by its name: what nobody refers to is not.
/// A role cannot say "any one name".
fn by_name(user: &UserInfo, a: &Attributes) -> bool {
    user.username == identity::USER_INGRESS
        && !a.name.is_empty()
        && !a.namespace.is_empty()
        && a.group.is_empty()
        && a.subresource.is_empty()
        && matches!(a.resource.as_str(), "secrets" | "configmaps")
        && matches!(a.verb.as_str(), "get" | "list" | "watch")
}

#[async_trait]
impl Authorizer for Rules {
    async fn authorize(&self, user: &UserInfo, a: &Attributes) -> Decision {
        let decision = self.decide(user, a);
        if matches!(decision, Decision::Allow(_)) {
            return decision;
        }
        // What allows it may have been acknowledged a moment ago.
        match self.feed.get().and_then(Weak::upgrade) {
            Some(feed) if feed.catch_up().await.is_ok() => self.decide(user, a),
            _ => decision,
        }
    }

    fn rules_for(&self, user: &UserInfo, namespace: &str) -> RulesFor {
        if is_master(user) {
            let everything = || serde_json::json!({ "verbs": ["*"] });
            let (mut resource, mut path) = (everything(), everything());
            resource["apiGroups"] = serde_json::json!(["*"]);
            resource["resources"] = serde_json::json!(["*"]);
            path["nonResourceURLs"] = serde_json::json!(["*"]);
            return RulesFor { resource: vec![resource], non_resource: vec![path], error: String::new() };
        }
        self.roles.read().rules_for(subject(user), namespace)
    }
}

/// The kind of a storage prefix, if it is one of these indexes'.
fn kind_of(storage_prefix: &str) -> Option<&'static str> {
    // Asked for every change of every kind: nothing is made for it.
    let (group, plural) = group_and_plural(storage_prefix);
    let kinds: &[&str] = match group {
        "rbac.authorization.k8s.io" => &ROLES,
        "" => &GRAPH,
        _ => &[],
    };
    kinds.iter().find(|kind| **kind == plural).copied()
}

/// What a pod refers to is fixed when it gets a node; what comes later is its status, and ephemeral containers.
fn refers_as_before(object: &Object, prev: &Object) -> bool {
    object.field("spec.nodeName") == prev.field("spec.nodeName")
        && !object.json.windows(EPHEMERAL.len()).any(|w| w == EPHEMERAL)
}

const EPHEMERAL: &[u8] = b"\"ephemeralContainers\"";

impl Observer for Rules {
    fn concerns(&self, prefix: &str) -> bool {
        kind_of(prefix).is_some()
    }

    fn put(&self, prefix: &str, object: &Object, prev: Option<&Object>) {
        let Some(kind) = kind_of(prefix) else { return };
        if kind == "pods" && prev.is_some_and(|prev| refers_as_before(object, prev)) {
            return;
        }
        if GRAPH.contains(&kind) {
            self.graph.write().upsert(kind, &object.value());
        } else {
            self.roles.write().upsert(kind, &object.value());
        }
    }

    fn removed(&self, prefix: &str, object: &Object) {
        let Some(kind) = kind_of(prefix) else { return };
        let (namespace, name) = object.names();
        if GRAPH.contains(&kind) {
            self.graph.write().remove(kind, namespace, name);
        } else {
            self.roles.write().remove(kind, namespace, name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use causeway_authz::rbac::bootstrap;

    /// Rules of a new cluster.
    fn fresh() -> Rules {
        let rules = Rules::default();
        for (kind, object) in bootstrap::objects().into_iter().chain(bootstrap::components()) {
            rules.roles.write().upsert(kind, &object);
        }
        rules
    }

    fn may(
        rules: &Rules,
        user: &UserInfo,
        (verb, group, resource): (&str, &str, &str),
        (ns, name): (&str, &str),
    ) -> bool {
        let (full, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let a = Attributes {
            verb: verb.to_owned(),
            group: group.to_owned(),
            resource: full.to_owned(),
            subresource: subresource.to_owned(),
            namespace: ns.to_owned(),
            name: name.to_owned(),
            ..Attributes::default()
        };
        matches!(rules.decide(user, &a), Decision::Allow(_))
    }

    #[test]
    fn the_ingress_reads_secrets_by_name_only() {
        let rules = fresh();
        let ingress = UserInfo::component(identity::USER_INGRESS, &[]);
        for verb in ["get", "list", "watch"] {
            for resource in ["secrets", "configmaps"] {
                assert!(may(&rules, &ingress, (verb, "", resource), ("n", "s")), "{verb} {resource}");
                for place in [("n", ""), ("", "s"), ("", "")] {
                    assert!(!may(&rules, &ingress, (verb, "", resource), place), "{verb} {resource} {place:?}");
                }
            }
        }
        assert!(!may(&rules, &ingress, ("delete", "", "secrets"), ("n", "s")));
        assert!(may(&rules, &ingress, ("create", "", "secrets"), ("n", "")), "certificates that it got by ACME");
    }

    #[test]
    fn components_have_what_they_need_and_no_more() {
        let rules = fresh();
        let of = |name: &str| UserInfo::component(name, &[]);
        for (user, verb, group, resource, allowed) in [
            (identity::USER_SCHEDULER, "create", "", "pods/binding", true),
            (identity::USER_SCHEDULER, "create", "apps", "deployments", false),
            (identity::USER_SCHEDULER, "list", "", "secrets", false),
            (identity::USER_CONTROLLER_MANAGER, "create", "", "pods", true),
            (identity::USER_CONTROLLER_MANAGER, "create", "", "pods/exec", false),
            (identity::USER_CONTROLLER_MANAGER, "update", "rbac.authorization.k8s.io", "clusterroles", false),
            (identity::USER_CONTROLLERS, "watch", "", "pods", true),
            (identity::USER_CONTROLLERS, "list", "", "secrets", false),
            (identity::USER_CONTROLLERS, "patch", "", "pods", false),
            (identity::USER_NODE, "watch", "discovery.k8s.io", "endpointslices", true),
            (identity::USER_NODE, "list", "", "configmaps", false),
            (identity::USER_POLICY, "watch", "networking.k8s.io", "networkpolicies", true),
            (identity::USER_POLICY, "update", "", "pods", false),
            (identity::USER_ANNOUNCE, "watch", "", "nodes", false),
            ("system:serviceaccount:a:b", "list", "", "pods", false),
        ] {
            assert_eq!(may(&rules, &of(user), (verb, group, resource), ("", "")), allowed, "{user} {verb} {resource}");
        }
        assert!(may(&rules, &UserInfo::admin(), ("delete", "x", "y"), ("", "z")));
        assert!(!may(&rules, &UserInfo::anonymous(), ("list", "", "pods"), ("", "")));
    }
}
