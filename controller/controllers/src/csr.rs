//! Certificate signing requests of nodes: approved where they are what a node may have, and old ones cleaned away.
//!
//! In: requests, nodes. Out: conditions `Approved`; the addresses of a node's serving certificate, written down in an
//! annotation of the Node; deletes. What is no node's, or not as it should be, waits for a person
//! (`kubectl certificate approve`). A machine that uses a bootstrap token gets the name of a node that is not there yet: a
//! stolen token must not become somebody else's node. A kubelet's serving certificate is for addresses that the cluster
//! knows to be its own ([`causeway_authz::node::serving`]), whatever the node says of itself: it is approved once they are
//! written down, and no other node has one of them.

use crate::cache::key_of;
use crate::context::Context;
use crate::error::{Doing, Result, ignore_not_found};
use crate::meta::{created, name};
use crate::queue::{Key, Queue};
use causeway_api::bootstrap_token;
use causeway_api::certificates::{self, NODE_USER_PREFIX, SIGNER_KUBELET_CLIENT, SIGNER_KUBELET_SERVING};
use causeway_authz::node::{SERVING_ANNOTATION, serving};
use ipnet::IpNet;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use std::net::IpAddr;
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
    // A serving certificate waits until its addresses are written down.
    let (sink, requests) = (queue.clone(), context.caches.requests.clone());
    context.caches.nodes.on_change(move |old, new| {
        let written = |n: Option<&Arc<Node>>| n.map(|n| annotation(n).map(str::to_owned));
        if written(old) != written(new) {
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
            match verdict(&request, &self.context.caches.nodes.all(), &self.known()) {
                Verdict::Approve(why) => self.approve(&request, why).await?,
                // Is looked at again as soon as the Node's annotation is seen.
                Verdict::Record(node, addresses) => self.record(&node, &addresses).await?,
                Verdict::Wait(why) => tracing::debug!(request = key.name, why, "certificate request waits"),
                Verdict::Leave(why) => tracing::info!(request = key.name, why, "certificate request left to a person"),
            }
        }
        Ok(Some(Duration::from_secs(u64::try_from(life - age).unwrap_or(1).clamp(1, 3600))))
    }

    /// What is known of the cluster's addresses now.
    fn known(&self) -> Known {
        let (caches, config) = (&self.context.caches, &self.context.config);
        let mut known = Known {
            services: config.cluster.service_cidrs.clone(),
            pods: config.cluster.pod_cidrs.clone(),
            domain: config.cluster.domain.clone(),
            api: Vec::new(),
            names: Vec::new(),
        };
        for object in caches.cidrs.all() {
            let ranges = object.spec.iter().flat_map(|s| s.cidrs.iter().flatten());
            known.services.extend(ranges.filter_map(|r| r.parse::<IpNet>().ok()));
        }
        for host in &config.api_hosts {
            match host.parse::<IpAddr>() {
                Ok(ip) => known.api.push(ip),
                Err(_) => known.names.push(host.clone()),
            }
        }
        if let Some(endpoints) = caches.endpoints.get(&Key::new("default", "kubernetes")) {
            let all = endpoints.subsets.iter().flatten().flat_map(|s| s.addresses.iter().flatten());
            known.api.extend(all.filter_map(|a| a.ip.parse::<IpAddr>().ok()));
        }
        known
    }

    /// Writes down which addresses are a node's.
    async fn record(&self, node: &str, addresses: &[IpAddr]) -> Result<()> {
        let patch = json!({ "metadata": { "annotations": { SERVING_ANNOTATION: serving::write(addresses) } } });
        let api = self.context.cluster::<Node>();
        let written = api.patch(node, &PatchParams::default(), &Patch::Merge(&patch)).await;
        ignore_not_found(written.doing(|| format!("write down the addresses of node {node}"))).map(drop)
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

/// What is known of the cluster's addresses.
#[derive(Debug, Default)]
struct Known {
    services: Vec<IpNet>,
    pods: Vec<IpNet>,
    domain: String,
    api: Vec<IpAddr>,
    names: Vec<String>,
}

/// What to do with a request.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Approve it, with this message.
    Approve(&'static str),
    /// Write down that a node has these addresses, then look again.
    Record(String, Vec<IpAddr>),
    /// It is too early: why.
    Wait(String),
    /// A person has to look at it: why.
    Leave(String),
}

/// Decides on a request. Pure.
fn verdict(request: &CertificateSigningRequest, nodes: &[Arc<Node>], known: &Known) -> Verdict {
    decide(request, nodes, known).unwrap_or_else(Verdict::Leave)
}

fn decide(request: &CertificateSigningRequest, nodes: &[Arc<Node>], known: &Known) -> Result<Verdict, String> {
    let spec = &request.spec;
    let wish = certificates::parse(&spec.request.0)?;
    let usages = spec.usages.as_deref().unwrap_or_default();
    let user = spec.username.as_deref().unwrap_or_default();
    let find = |node: &str| nodes.iter().find(|n| name(&n.metadata) == node);
    match spec.signer_name.as_str() {
        SIGNER_KUBELET_CLIENT => {
            let node = wish.kubelet_client(usages)?;
            if user.strip_prefix(NODE_USER_PREFIX) == Some(node) {
                let why = "Auto approving self kubelet client certificate after SubjectAccessReview.";
                return Ok(Verdict::Approve(why));
            }
            if !spec.groups.iter().flatten().any(|g| g == bootstrap_token::GROUP) {
                return Err(format!("{user} is neither node {node} nor uses a bootstrap token"));
            }
            match find(node) {
                Some(_) => Err(format!("node {node} exists already; approve it, or delete the node first")),
                None => {
                    let why = "Auto approving kubelet client certificate after SubjectAccessReview.";
                    Ok(Verdict::Approve(why))
                }
            }
        }
        SIGNER_KUBELET_SERVING => {
            let node = wish.kubelet_serving(usages)?;
            if user.strip_prefix(NODE_USER_PREFIX) != Some(node) {
                return Err(format!("{user} is not node {node}"));
            }
            let Some(object) = find(node) else {
                return Ok(Verdict::Wait(format!("node {node} has not registered yet")));
            };
            let own = written(object);
            let asked = serving::Request {
                node,
                dns_names: &wish.dns_names,
                ips: &wish.ips,
                peer: request.metadata.annotations.iter().find_map(|a| a.get(serving::PEER_ANNOTATION)?.parse().ok()),
            };
            let cluster = serving::Cluster {
                services: &known.services,
                pods: &known.pods,
                domain: &known.domain,
                api: &known.api,
                api_names: &known.names,
                own: &own,
                others: &nodes.iter().filter(|n| name(&n.metadata) != node).flat_map(|n| written(n)).collect(),
            };
            let addresses = serving::decide(&asked, &cluster)?;
            // Before it is approved: two that ask for one address at a time both see it, and neither gets it.
            if !addresses.iter().all(|ip| own.contains(ip)) {
                return Ok(Verdict::Record(node.to_owned(), addresses));
            }
            Ok(Verdict::Approve("Auto approving kubelet serving certificate for the node's own addresses."))
        }
        other => Err(format!("requests to {other} are a person's to decide")),
    }
}

fn annotation(node: &Node) -> Option<&str> {
    node.metadata.annotations.as_ref()?.get(SERVING_ANNOTATION).map(String::as_str)
}

/// The addresses that are written down for a node.
fn written(node: &Node) -> Vec<IpAddr> {
    annotation(node).map(serving::read).unwrap_or_default()
}

#[cfg(test)]
mod tests;
