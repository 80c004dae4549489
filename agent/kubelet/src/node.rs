//! This node in the API: registration, status, lease; and its pod network, which is made when the node has a pod CIDR.

pub mod facts;

use crate::config::KubeletConfig;
use anyhow::Context;
use causeway_informers::Informer;
use causeway_runtime::ImageInfo;
use facts::{Capacity, Pressure};
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeSpec, NodeSystemInfo};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher::Event;
use kube::{Api, Client};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How soon what the API did not take is tried again.
const AGAIN: Duration = Duration::from_secs(2);
const CHECK: Duration = Duration::from_secs(10);
const REPORT_AT_LEAST: SignedDuration = SignedDuration::from_secs(300);
/// Images in the status, the largest first: as many as upstream lists.
const MAX_IMAGES: usize = 50;

/// How long a kubelet that has begun just now may look around before it says that its node is not ready: nobody is to
/// be evicted because a kubelet was started anew.
const PATIENCE: Duration = Duration::from_secs(10);

/// How far the pod network has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// Nothing is known of the node yet, or its network is being made.
    Opening,
    /// Pods can have addresses.
    Ready,
    /// Why not.
    NotReady(String),
}

impl Network {
    /// What the node says of it; `None` when all is well.
    fn complaint(&self) -> Option<String> {
        match self {
            Self::Opening => Some("network not ready: it is being made".to_owned()),
            Self::Ready => None,
            Self::NotReady(why) => Some(format!("network not ready: {why}")),
        }
    }
}

/// Keeps the node in the API.
pub struct Keeper {
    /// The API.
    pub client: Client,
    /// What all parts share.
    pub shared: Arc<crate::context::Context>,
    /// What the node has.
    pub capacity: Capacity,
    /// Of the network.
    pub network: watch::Receiver<Network>,
}

impl Keeper {
    fn settings(&self) -> &KubeletConfig {
        &self.shared.config
    }

    /// Registers, then reports until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let api: Api<Node> = Api::all(self.client.clone());
        let mut network = self.network.clone();
        let mut seen = self.shared.node.clone();
        let mut sent: Option<(Value, Timestamp)> = None;
        let mut known = false;
        let begun = Instant::now();
        loop {
            if !known {
                known = self.register(&api).await;
            }
            // What was said before this kubelet began holds until it knows better.
            let unsure = seen.borrow().is_none() || *network.borrow() == Network::Opening;
            if known && sent.is_none() && unsure && begun.elapsed() < PATIENCE {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    _ = network.changed() => {}
                    _ = seen.changed() => {}
                    () = tokio::time::sleep(PATIENCE.saturating_sub(begun.elapsed())) => {}
                }
                continue;
            }
            let runtime = self.shared.runtime.version().await.map_err(|e| e.to_string());
            let images = self.shared.runtime.images().await.unwrap_or_default();
            let now = Timestamp::now();
            let before = seen.borrow_and_update().clone();
            let conditions = conditions(
                facts::pressure(self.settings()),
                runtime.as_ref().err().cloned().or_else(|| network.borrow().complaint()),
                before.as_deref(),
                now,
            );
            let info = facts::system(runtime.as_deref().unwrap_or("containerd://unknown"));
            let body = self.body(&conditions, info, &images);
            // Who did not hear of us for a while has written that, and we know better.
            let due = before.as_deref().is_some_and(|node| contradicts(node, &conditions))
                || sent.as_ref().is_none_or(|(last, at)| {
                    comparable(last) != comparable(&body) || at.saturating_add(REPORT_AT_LEAST).is_ok_and(|t| t <= now)
                });
            let mut failed = false;
            if known && due {
                match api
                    .patch_status(&self.settings().node_name, &PatchParams::default(), &Patch::Strategic(&body))
                    .await
                {
                    Ok(_) => sent = Some((body, now)),
                    Err(kube::Error::Api(s)) if s.is_not_found() => known = false,
                    Err(error) => {
                        failed = true;
                        tracing::warn!(%error, "node status not written");
                    }
                }
            }
            let pause = match (known, failed) {
                (true, false) => CHECK,
                (true, true) => AGAIN,
                (false, _) => Duration::from_secs(1),
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = network.changed() => {}
                _ = seen.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Makes the Node object, or brings its labels up to date; `true` when it is there.
    async fn register(&self, api: &Api<Node>) -> bool {
        let config = self.settings();
        let labels = labels(config);
        let patch = json!({"metadata": {"labels": labels}});
        match api.patch(&config.node_name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => return true,
            Err(kube::Error::Api(s)) if s.is_not_found() && config.register => {}
            Err(error) => {
                tracing::warn!(%error, node = config.node_name, "node is not registered yet");
                return false;
            }
        }
        let node = Node {
            metadata: ObjectMeta {
                name: Some(config.node_name.clone()),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                taints: (!config.taints.is_empty()).then(|| config.taints.clone()),
                ..NodeSpec::default()
            }),
            status: None,
        };
        match api.create(&PostParams::default(), &node).await {
            Ok(_) => true,
            Err(kube::Error::Api(s)) if s.is_already_exists() => true,
            Err(error) => {
                tracing::warn!(%error, node = config.node_name, "node is not registered yet");
                false
            }
        }
    }

    fn body(&self, conditions: &[NodeCondition], info: NodeSystemInfo, images: &[ImageInfo]) -> Value {
        let config = self.settings();
        let c = self.capacity;
        let resources = json!({
            "cpu": if c.cpu_milli.is_multiple_of(1000) { (c.cpu_milli / 1000).to_string() } else { format!("{}m", c.cpu_milli) },
            "memory": format!("{}Ki", c.memory_bytes >> 10),
            "ephemeral-storage": format!("{}Ki", c.disk_bytes >> 10),
            "pods": c.pods.to_string(),
        });
        let port = config.server_listener.local_addr().map_or(10250, |a| a.port());
        json!({"status": {
            "addresses": addresses(&config.node_name, &config.node_ips),
            "capacity": resources,
            "allocatable": resources,
            "conditions": conditions,
            "nodeInfo": info,
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            "images": image_list(images),
        }})
    }
}

fn labels(config: &KubeletConfig) -> BTreeMap<String, String> {
    let mut labels = config.labels.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", facts::architecture()),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

fn addresses(name: &str, ips: &[IpAddr]) -> Vec<Value> {
    let address = |type_: &str, address: String| json!({"type": type_, "address": address});
    let ips = ips.iter().map(|ip| address("InternalIP", ip.to_string()));
    // A patch merges this list by type, and would make one of two addresses of the same type.
    ips.chain([address("Hostname", name.to_owned()), json!({"$patch": "replace"})]).collect()
}

/// Whether the object says something else than we do.
fn contradicts(node: &Node, ours: &[NodeCondition]) -> bool {
    let theirs = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    ours.iter().any(|o| theirs.iter().any(|t| t.type_ == o.type_ && t.status != o.status))
}

fn image_list(images: &[ImageInfo]) -> Vec<Value> {
    let mut all: Vec<&ImageInfo> = images.iter().collect();
    all.sort_by_key(|i| std::cmp::Reverse(i.size));
    let names = |i: &ImageInfo| -> Vec<String> { i.repo_digests.iter().chain(&i.names).take(5).cloned().collect() };
    all.into_iter().take(MAX_IMAGES).map(|i| json!({"names": names(i), "sizeBytes": i.size})).collect()
}

/// Without what changes each time.
fn comparable(body: &Value) -> Value {
    let mut body = body.clone();
    if let Some(conditions) = body.pointer_mut("/status/conditions").and_then(Value::as_array_mut) {
        for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
            condition.remove("lastHeartbeatTime");
        }
    }
    body
}

/// The node's conditions, in upstream's words.
fn conditions(p: Pressure, not_ready: Option<String>, before: Option<&Node>, now: Timestamp) -> Vec<NodeCondition> {
    let make = |type_: &str, status: bool, reason: &str, message: &str| {
        let status = if status { "True" } else { "False" };
        let old = before.and_then(|n| {
            n.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == type_ && c.status == status)
        });
        let now = Time(crate::model::whole_seconds(now));
        NodeCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: old.and_then(|c| c.last_transition_time.clone()).or_else(|| Some(now.clone())),
            last_heartbeat_time: Some(now),
        }
    };
    let memory = match p.memory {
        true => {
            make("MemoryPressure", true, "KubeletHasInsufficientMemory", "kubelet has insufficient memory available")
        }
        false => make("MemoryPressure", false, "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    };
    let disk = match p.disk {
        true => make("DiskPressure", true, "KubeletHasDiskPressure", "kubelet has disk pressure"),
        false => make("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    };
    let pids = match p.pids {
        true => make("PIDPressure", true, "KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
        false => make("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    };
    let ready = match &not_ready {
        None => make("Ready", true, "KubeletReady", "kubelet is posting ready status"),
        Some(why) => make("Ready", false, "KubeletNotReady", why),
    };
    vec![memory, disk, pids, ready]
}

/// Renews this node's lease until shutdown: four times in the time after which the node counts as lost.
pub async fn keep_lease(
    client: Client,
    node_name: String,
    seconds: u32,
    node: watch::Receiver<Option<Arc<Node>>>,
    shutdown: CancellationToken,
) {
    let api: Api<Lease> = Api::namespaced(client, "kube-node-lease");
    loop {
        let owner = node.borrow().as_ref().and_then(|n| n.metadata.uid.clone());
        let quarter = Duration::from_secs(u64::from(seconds)) / 4;
        let pause = match renew(&api, &node_name, seconds, owner).await {
            Ok(()) => quarter,
            Err(error) => {
                tracing::debug!(%error, "lease not renewed");
                AGAIN.min(quarter)
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn renew(api: &Api<Lease>, name: &str, seconds: u32, owner: Option<String>) -> Result<(), kube::Error> {
    let now = MicroTime(Timestamp::now());
    let patch = json!({"spec": {"holderIdentity": name, "leaseDurationSeconds": seconds, "renewTime": now}});
    match api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Err(kube::Error::Api(s)) if s.is_not_found() => {}
        other => return other.map(drop),
    }
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            owner_references: owner.map(|uid| {
                vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Node".to_owned(),
                    name: name.to_owned(),
                    uid,
                    ..OwnerReference::default()
                }]
            }),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_owned()),
            lease_duration_seconds: i32::try_from(seconds).ok(),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    api.create(&PostParams::default(), &lease).await.map(drop)
}

/// Follows this node's object until shutdown.
pub async fn follow(
    nodes: Informer<Node>,
    name: String,
    seen: watch::Sender<Option<Arc<Node>>>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut events = nodes.subscribe_to(&name);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            event = events.next() => match event.context("the watch of nodes ended")? {
                Event::InitApply(node) | Event::Apply(node) => drop(seen.send_replace(Some(node))),
                Event::Init | Event::InitDone | Event::Delete(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_addresses_of_one_type_stay_two() {
        let ips = ["10.90.0.11".parse().unwrap(), "fd90::b".parse().unwrap()];
        let all = addresses("n", &ips);
        let of = |i: usize| all[i]["address"].as_str().unwrap();
        assert_eq!([of(0), of(1), of(2)], ["10.90.0.11", "fd90::b", "n"]);
        assert_eq!(all[3], json!({"$patch": "replace"}));
    }

    #[test]
    fn who_says_unknown_is_contradicted() {
        let ours = conditions(Pressure::default(), None, None, Timestamp::UNIX_EPOCH);
        let mut node = Node { status: Some(Default::default()), ..Node::default() };
        node.status.as_mut().unwrap().conditions = Some(ours.clone());
        assert!(!contradicts(&node, &ours));
        node.status.as_mut().unwrap().conditions.as_mut().unwrap()[3].status = "Unknown".to_owned();
        assert!(contradicts(&node, &ours));
    }

    #[test]
    fn transitions_keep_their_time() {
        let t = |s| Timestamp::from_second(s).unwrap();
        let first = conditions(Pressure::default(), Some("no network".to_owned()), None, t(100));
        let ready = |c: &[NodeCondition]| c.iter().find(|c| c.type_ == "Ready").cloned().unwrap();
        assert_eq!(ready(&first).status, "False");
        let node = Node {
            status: Some(k8s_openapi::api::core::v1::NodeStatus {
                conditions: Some(first.clone()),
                ..Default::default()
            }),
            ..Node::default()
        };
        let again = conditions(Pressure::default(), Some("no network".to_owned()), Some(&node), t(200));
        assert_eq!(ready(&again).last_transition_time, ready(&first).last_transition_time);
        let up = conditions(Pressure::default(), None, Some(&node), t(300));
        assert_eq!(ready(&up).last_transition_time, Some(Time(t(300))));
        assert_eq!(ready(&up).reason.as_deref(), Some("KubeletReady"));
    }
}
