//! What every controller holds: the client, the shared copies of the kinds, the event recorder.

use crate::ControllersConfig;
use crate::cache::{Cache, Cached};
use crate::meta::controller_of;
use causeway_api::events::{EventType, Recorder};
use causeway_informers::Informers;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ResourceQuota, Service,
    ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client, Resource};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// One copy a kind. [`Self::new`] adds by what Pods are found.
#[derive(Default, Clone)]
#[allow(missing_docs, reason = "each field is the copy of the kind it names")]
pub struct Caches {
    pub pods: Cache<Pod>,
    pub nodes: Cache<Node>,
    pub leases: Cache<Lease>,
    pub namespaces: Cache<Namespace>,
    pub services: Cache<Service>,
    pub slices: Cache<EndpointSlice>,
    pub endpoints: Cache<Endpoints>,
    pub accounts: Cache<ServiceAccount>,
    pub config_maps: Cache<ConfigMap>,
    pub deployments: Cache<Deployment>,
    pub replica_sets: Cache<ReplicaSet>,
    pub stateful_sets: Cache<StatefulSet>,
    pub daemon_sets: Cache<DaemonSet>,
    pub revisions: Cache<ControllerRevision>,
    pub claims: Cache<PersistentVolumeClaim>,
    pub volumes: Cache<PersistentVolume>,
    pub classes: Cache<StorageClass>,
    pub budgets: Cache<PodDisruptionBudget>,
    pub quotas: Cache<ResourceQuota>,
    pub requests: Cache<CertificateSigningRequest>,
    pub cidrs: Cache<ServiceCIDR>,
    pub addresses: Cache<IPAddress>,
}

/// Names of indexes.
const NODE: &str = "node";
const CONTROLLER: &str = "controller";

impl Caches {
    /// Empty ones.
    pub fn new() -> Self {
        let all = Self::default();
        all.pods.index(NODE, |pod| pod.spec.as_ref()?.node_name.clone());
        all.pods.index(CONTROLLER, |pod| Some(owner_key(&pod.metadata)));
        all
    }

    /// The Pods bound to a node.
    pub fn pods_on(&self, node: &str) -> Vec<Arc<Pod>> {
        self.pods.found_by(NODE, node)
    }

    /// The Pods whose controller has this uid.
    pub fn pods_of(&self, uid: &str) -> Vec<Arc<Pod>> {
        self.pods.found_by(CONTROLLER, uid)
    }

    /// The Pods that a controller of `namespace` has, or could adopt: its own, and those that have no controller.
    pub fn candidates(&self, namespace: &str, uid: &str) -> Vec<Arc<Pod>> {
        let mut all = self.pods_of(uid);
        all.extend(self.pods.found_by(CONTROLLER, &nobodys(namespace)));
        all
    }
}

/// By what a Pod's controller finds it.
fn owner_key(meta: &ObjectMeta) -> String {
    match controller_of(meta) {
        Some(owner) => owner.uid.clone(),
        None => nobodys(meta.namespace.as_deref().unwrap_or("")),
    }
}

/// No uid has a slash.
fn nobodys(namespace: &str) -> String {
    format!("{namespace}/")
}

/// Shared by all controllers.
pub struct Context {
    /// The client, with the controllers' identity.
    pub client: Client,
    /// The process' copies of all kinds.
    pub informers: Informers,
    /// The configuration.
    pub config: ControllersConfig,
    /// The copies.
    pub caches: Caches,
}

impl Context {
    /// The API of a namespaced kind.
    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The API of a cluster-wide kind.
    pub fn cluster<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>,
    {
        Api::all(self.client.clone())
    }

    /// A recorder that signs as `component`.
    pub fn recorder(&self, component: &str) -> Events {
        Events(Recorder::new(self.client.clone(), component, None))
    }

    /// Follows the copies.
    pub fn watch(&self, tasks: &TaskTracker, shutdown: &CancellationToken) {
        let (c, i) = (&self.caches, &self.informers);
        tasks.spawn(c.pods.clone().run(
            {
                let i = i.clone();
                move || i.pods()
            },
            shutdown.clone(),
        ));
        tasks.spawn(c.nodes.clone().run(
            {
                let i = i.clone();
                move || i.nodes()
            },
            shutdown.clone(),
        ));
        self.start(&c.leases, tasks, shutdown);
        self.start(&c.namespaces, tasks, shutdown);
        self.start(&c.services, tasks, shutdown);
        self.start(&c.slices, tasks, shutdown);
        self.start(&c.endpoints, tasks, shutdown);
        self.start(&c.accounts, tasks, shutdown);
        self.start(&c.config_maps, tasks, shutdown);
        self.start(&c.deployments, tasks, shutdown);
        self.start(&c.replica_sets, tasks, shutdown);
        self.start(&c.stateful_sets, tasks, shutdown);
        self.start(&c.daemon_sets, tasks, shutdown);
        self.start(&c.revisions, tasks, shutdown);
        self.start(&c.claims, tasks, shutdown);
        self.start(&c.volumes, tasks, shutdown);
        self.start(&c.classes, tasks, shutdown);
        self.start(&c.budgets, tasks, shutdown);
        self.start(&c.quotas, tasks, shutdown);
        self.start(&c.requests, tasks, shutdown);
        self.start(&c.cidrs, tasks, shutdown);
        self.start(&c.addresses, tasks, shutdown);
    }

    fn start<K: Cached>(&self, cache: &Cache<K>, tasks: &TaskTracker, shutdown: &CancellationToken) {
        let informers = self.informers.clone();
        tasks.spawn(cache.clone().run(move || informers.all(), shutdown.clone()));
    }
}

/// Writes events for one controller.
#[derive(Clone)]
pub struct Events(Recorder);

impl Events {
    /// All is well.
    pub fn normal<K: Resource<DynamicType = ()>>(&self, object: &K, reason: &str, message: impl Into<String>) {
        self.0.record(object, EventType::Normal, reason, message);
    }

    /// Somebody should look.
    pub fn warning<K: Resource<DynamicType = ()>>(&self, object: &K, reason: &str, message: impl Into<String>) {
        self.0.record(object, EventType::Warning, reason, message);
    }
}
