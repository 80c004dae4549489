//! What all parts of a kubelet share: its configuration and the seams it works through.

use crate::config::KubeletConfig;
use crate::images::Images;
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::observe::Observer;
use crate::volumes::Volumes;
use causeway_api::events::{EventType, Recorder};
use causeway_informers::{Informer, Informers};
use causeway_network::PodNetwork;
use causeway_runtime::Runtime;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service};
use kube::{Client, Resource};
use std::sync::Arc;
use tokio::sync::watch;

/// The node's pod network once it is there.
pub type NetworkSlot = watch::Receiver<Option<Arc<dyn PodNetwork>>>;

/// Shared by all workers.
pub struct Context {
    /// The API, as this node.
    pub client: Client,
    /// As given.
    pub config: KubeletConfig,
    /// Runs containers.
    pub runtime: Arc<dyn Runtime>,
    /// Lists containers, once for all who ask at the same time.
    pub observer: Observer,
    /// Gives pods a network; empty until the node has a pod CIDR.
    pub network: NetworkSlot,
    /// Writes events.
    pub recorder: Recorder,
    /// All Services, for environment variables.
    pub services: Informer<Service>,
    /// The copies of the node.
    pub informers: Informers,
    /// This node's object, as last seen.
    pub node: watch::Receiver<Option<Arc<Node>>>,
    /// Pulls images.
    pub images: Images,
    /// ConfigMaps, Secrets and what else pods mention.
    pub objects: Arc<Objects>,
    /// Makes volumes.
    pub volumes: Volumes,
    /// (milli-CPU, bytes) for pods.
    pub allocatable: (i64, i64),
    /// Counters.
    pub metrics: Metrics,
}

impl Context {
    /// Records an event about a pod.
    pub fn pod_event(&self, pod: &Pod, type_: EventType, reason: &str, message: impl Into<String>) {
        self.recorder.record_ref(pod.object_ref(&()), type_, reason, message.into());
    }

    /// Records an event about a container of a pod.
    pub fn container_event(&self, pod: &Pod, name: &str, type_: EventType, reason: &str, message: impl Into<String>) {
        let init = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten()).any(|c| c.name == name);
        let list = if init { "initContainers" } else { "containers" };
        let reference = ObjectReference { field_path: Some(format!("spec.{list}{{{name}}}")), ..pod.object_ref(&()) };
        self.recorder.record_ref(reference, type_, reason, message.into());
    }

    /// What the downward API may say about a pod.
    pub fn facts(&self, pod_ips: &[std::net::IpAddr]) -> crate::downward::Facts {
        crate::downward::Facts {
            pod_ips: pod_ips.to_vec(),
            host_ips: self.config.node_ips.clone(),
            cpu_milli: self.allocatable.0,
            memory_bytes: self.allocatable.1,
        }
    }
}
