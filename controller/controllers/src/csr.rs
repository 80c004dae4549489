//! Certificate signing requests of nodes: approved where they are what a node may have, and old ones cleaned away.
//!
//! In: requests, nodes. Out: conditions `Approved`; deletes. What is no node's, or not as it should be, waits for a
//! person (`kubectl certificate approve`). A machine that uses a bootstrap token gets the name of a node that is not
//! there yet: a stolen token must not become somebody else's node.

use crate::cache::key_of;
use crate::context::Context;
use crate::error::{Doing, Result, ignore_not_found};
use crate::meta::{created, name};
use crate::queue::{Key, Queue};
use causeway_api::bootstrap_token;
use causeway_api::certificates::{self, NODE_USER_PREFIX, SIGNER_KUBELET_CLIENT, SIGNER_KUBELET_SERVING};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// How long requests are kept that were decided, in seconds, as Kubernetes does.
const DECIDED: i64 = 3600;
/// And those that nobody decided.
const PENDING: i64 = 24 * 3600;

/// The controller.
pub struct Requests {
    context: Arc<Context>,
}

/// Wires the handlers up; keys are requests' names.
pub fn queue(context: &Arc<Context>) -> Arc<Queue<Key>> {
    let queue = Queue::new();
    let sink = queue.clone();
    context.caches.requests.on_change(move |_, new| {
        if let Some(request) = new {
            sink.add(key_of(&**request));
        }
    });
    // A serving certificate waits until its node has the address it is for.
    let (sink, requests) = (queue.clone(), context.caches.requests.clone());
    context.caches.nodes.on_change(move |old, new| {
        let addresses = |n: Option<&Arc<Node>>| n.and_then(|n| n.status.as_ref()?.addresses.clone());
        if addresses(old) != addresses(new) {
            for request in requests.all() {
                if request.spec.signer_name == SIGNER_KUBELET_SERVING && !is_decided(&request) {
                    sink.add(key_of(&*request));
                }
            }
        }
    });
    queue
}

impl Requests {
    /// The controller over `context`.
    pub fn new(context: Arc<Context>) -> Arc<Self> {
        Arc::new(Self { context })
    }

    /// One level-triggered step for one request.
    pub async fn reconcile(self: Arc<Self>, key: Key) -> Result<Option<Duration>> {
        let Some(request) = self.context.caches.requests.get(&key) else { return Ok(None) };
        let api = self.context.cluster::<CertificateSigningRequest>();
        let age = Timestamp::now().as_second() - created(&request.metadata);
        let life = if is_decided(&request) { DECIDED } else { PENDING };
        if age >= life {
            let deleted = api.delete(&key.name, &DeleteParams::default()).await;
            ignore_not_found(deleted.doing(|| format!("delete the old certificate signing request {key}")))?;
            return Ok(None);
        }
        if !is_decided(&request) {
            match verdict(&request.spec, &self.context.caches.nodes.all()) {
                Verdict::Approve(why) => self.approve(&request, why).await?,
                // Is looked at again as soon as the node says its addresses.
                Verdict::Leave(why) if request.spec.signer_name == SIGNER_KUBELET_SERVING => {
                    tracing::debug!(request = key.name, why, "certificate request waits")
                }
                Verdict::Leave(why) => tracing::info!(request = key.name, why, "certificate request left to a person"),
            }
        }
        Ok(Some(Duration::from_secs(u64::try_from(life - age).unwrap_or(1).clamp(1, 3600))))
    }

    async fn approve(&self, request: &CertificateSigningRequest, why: &str) -> Result<()> {
        let now = Time(Timestamp::now());
        let mut conditions = request.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        conditions.push(CertificateSigningRequestCondition {
            type_: "Approved".to_owned(),
            status: "True".to_owned(),
            reason: Some("AutoApproved".to_owned()),
            message: Some(why.to_owned()),
            last_update_time: Some(now.clone()),
            last_transition_time: Some(now),
        });
        let version = &request.metadata.resource_version;
        let patch = json!({ "metadata": { "resourceVersion": version }, "status": { "conditions": conditions } });
        let name = name(&request.metadata);
        let api = self.context.cluster::<CertificateSigningRequest>();
        let written = api.patch_approval(name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        ignore_not_found(written.doing(|| format!("approve the certificate signing request {name}"))).map(drop)
    }
}

fn is_decided(request: &CertificateSigningRequest) -> bool {
    let conditions = request.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| matches!(c.type_.as_str(), "Approved" | "Denied"))
}

/// What to do with a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Approve it, with this message.
    Approve(&'static str),
    /// A person has to look at it: why.
    Leave(String),
}

/// Decides on a request. Pure.
pub fn verdict(spec: &CertificateSigningRequestSpec, nodes: &[Arc<Node>]) -> Verdict {
    match decide(spec, nodes) {
        Ok(message) => Verdict::Approve(message),
        Err(why) => Verdict::Leave(why),
    }
}

fn decide(spec: &CertificateSigningRequestSpec, nodes: &[Arc<Node>]) -> Result<&'static str, String> {
    let wish = certificates::parse(&spec.request.0)?;
    let usages = spec.usages.as_deref().unwrap_or_default();
    let user = spec.username.as_deref().unwrap_or_default();
    let find = |node: &str| nodes.iter().find(|n| name(&n.metadata) == node);
    match spec.signer_name.as_str() {
        SIGNER_KUBELET_CLIENT => {
            let node = wish.kubelet_client(usages)?;
            if user.strip_prefix(NODE_USER_PREFIX) == Some(node) {
                return Ok("Auto approving self kubelet client certificate after SubjectAccessReview.");
            }
            if !spec.groups.iter().flatten().any(|g| g == bootstrap_token::GROUP) {
                return Err(format!("{user} is neither node {node} nor uses a bootstrap token"));
            }
            match find(node) {
                Some(_) => Err(format!("node {node} exists already; approve it, or delete the node first")),
                None => Ok("Auto approving kubelet client certificate after SubjectAccessReview."),
            }
        }
        SIGNER_KUBELET_SERVING => {
            let node = wish.kubelet_serving(usages)?;
            if user.strip_prefix(NODE_USER_PREFIX) != Some(node) {
                return Err(format!("{user} is not node {node}"));
            }
            let object = find(node).ok_or_else(|| format!("node {node} has not registered yet"))?;
            let addresses: Vec<&str> =
                object.status.iter().flat_map(|s| s.addresses.iter().flatten()).map(|a| a.address.as_str()).collect();
            let beyond = wish.dns_names.iter().find(|n| *n != node && !addresses.contains(&n.as_str())).cloned();
            let beyond = beyond
                .or_else(|| wish.ips.iter().map(ToString::to_string).find(|ip| !addresses.contains(&ip.as_str())));
            match beyond {
                Some(name) => Err(format!("{name} is none of the addresses of node {node}")),
                None => Ok("Auto approving kubelet serving certificate for the node's own addresses."),
            }
        }
        other => Err(format!("requests to {other} are a person's to decide")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    fn request(cn: &str, org: &str, sans: &[&str]) -> ByteString {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = sans.iter().map(|s| (*s).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, org);
        params.distinguished_name.push(rcgen::DnType::CommonName, cn);
        ByteString(params.serialize_request(&key).unwrap().pem().unwrap().into_bytes())
    }

    fn spec(signer: &str, user: &str, group: &str, request: ByteString) -> CertificateSigningRequestSpec {
        let usage = if signer == SIGNER_KUBELET_SERVING { "server auth" } else { "client auth" };
        CertificateSigningRequestSpec {
            request,
            signer_name: signer.to_owned(),
            usages: Some(vec!["digital signature".to_owned(), usage.to_owned()]),
            username: Some(user.to_owned()),
            groups: Some(vec![group.to_owned()]),
            ..CertificateSigningRequestSpec::default()
        }
    }

    fn node(name: &str, ip: &str) -> Arc<Node> {
        let node = json!({"metadata": {"name": name}, "status": {"addresses": [
            {"type": "InternalIP", "address": ip}, {"type": "Hostname", "address": name}]}});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    #[test]
    fn nodes_get_what_is_theirs() {
        let nodes = [node("n1", "10.0.0.1"), node("n2", "10.0.0.2")];
        let ok = |s: &CertificateSigningRequestSpec| matches!(verdict(s, &nodes), Verdict::Approve(_));
        let client = |user: &str, group: &str, cn: &str| {
            ok(&spec(SIGNER_KUBELET_CLIENT, user, group, request(cn, "system:nodes", &[])))
        };
        let bootstrap = "system:bootstrap:abcdef";
        assert!(client(bootstrap, bootstrap_token::GROUP, "system:node:n3"), "a new node");
        assert!(client("system:node:n1", "system:nodes", "system:node:n1"), "a renewal");
        assert!(!client("system:node:n1", "system:nodes", "system:node:n2"), "another node's");
        assert!(!client(bootstrap, bootstrap_token::GROUP, "system:node:n1"), "a node that is there");
        assert!(!client("jane", "devs", "system:node:n3"));
        assert!(!client(bootstrap, bootstrap_token::GROUP, "admin"));
        let serving = |user: &str, cn: &str, sans: &[&str]| {
            ok(&spec(SIGNER_KUBELET_SERVING, user, "system:nodes", request(cn, "system:nodes", sans)))
        };
        assert!(serving("system:node:n1", "system:node:n1", &["n1", "10.0.0.1"]));
        assert!(!serving("system:node:n1", "system:node:n1", &["n1", "10.0.0.2"]), "another's address");
        assert!(!serving("system:node:n1", "system:node:n1", &["kubernetes"]), "another's name");
        assert!(!serving("system:node:n1", "system:node:n2", &["n2"]));
        assert!(!serving("system:node:n3", "system:node:n3", &["n3"]), "not registered yet");
        let admin = spec(certificates::SIGNER_CLIENT, "jane", "devs", request("jane", "devs", &[]));
        assert!(!ok(&admin), "people are a person's to decide");
    }
}
