//! Who speaks to the API: the names and groups that certificates and tokens carry, as Kubernetes names them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An authenticated caller (authentication.k8s.io/v1 UserInfo).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserInfo {
    /// For example `system:node:node-1`.
    pub username: String,
    /// Stable id, where there is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// For example `system:nodes`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// More about the caller (for example the pod a token is bound to).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Members may do everything.
pub const GROUP_MASTERS: &str = "system:masters";
/// All kubelets.
pub const GROUP_NODES: &str = "system:nodes";
/// Everybody with a valid credential.
pub const GROUP_AUTHENTICATED: &str = "system:authenticated";
/// Everybody without one.
pub const GROUP_UNAUTHENTICATED: &str = "system:unauthenticated";
/// All service accounts.
pub const GROUP_SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
/// The caller without a credential.
pub const USER_ANONYMOUS: &str = "system:anonymous";
/// The scheduler.
pub const USER_SCHEDULER: &str = "system:kube-scheduler";
/// The controllers.
pub const USER_CONTROLLER_MANAGER: &str = "system:kube-controller-manager";
/// Reads the copies that controllers and scheduler share, and writes nothing.
pub const USER_CONTROLLERS: &str = "system:causeway:controllers";
/// Reads the copies that the components of a node share, and writes nothing.
pub const USER_NODE: &str = "system:causeway:node";
/// The per-node proxy of service addresses.
pub const USER_PROXY: &str = "system:kube-proxy";
/// The ingress.
pub const USER_INGRESS: &str = "system:causeway:ingress";
/// Cluster DNS.
pub const USER_DNS: &str = "system:causeway:dns";
/// The network policies of a node.
pub const USER_POLICY: &str = "system:causeway:network-policy";
/// The per-node announcer of load balancer addresses.
pub const USER_ANNOUNCE: &str = "system:causeway:announce";
/// The API server towards kubelets.
pub const USER_APISERVER: &str = "system:apiserver";

impl UserInfo {
    /// A named component, also a member of [`GROUP_AUTHENTICATED`].
    pub fn component(username: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        groups.push(GROUP_AUTHENTICATED.to_owned());
        Self { username: username.to_owned(), groups, ..Self::default() }
    }

    /// The kubelet of a node.
    pub fn node(name: &str) -> Self {
        Self::component(&format!("system:node:{name}"), &[GROUP_NODES])
    }

    /// The administrator.
    pub fn admin() -> Self {
        Self::component("kubernetes-admin", &[GROUP_MASTERS])
    }

    /// The caller without a credential.
    pub fn anonymous() -> Self {
        Self { username: USER_ANONYMOUS.to_owned(), groups: vec![GROUP_UNAUTHENTICATED.to_owned()], ..Self::default() }
    }
}
