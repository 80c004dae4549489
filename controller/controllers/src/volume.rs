//! Volumes: binds claims to volumes, provisions local ones, reclaims them, and protects both while they are used.
//!
//! In: PersistentVolumes, claims, StorageClasses, pods, nodes. Out: bindings, new volumes, phases, finalizers.
//! [`binding`] and [`provision`] decide; this file applies.
//!
//! # Local volumes and the node's part
//! A volume of provisioner `causeway.dev/local-path` is a `hostPath` of type `DirectoryOrCreate` with a node affinity
//! for `kubernetes.io/hostname` and the label `causeway.dev/node: <node>`. Nobody but that node touches the directory:
//! - its kubelet creates the directory when it mounts the volume;
//! - the volume carries the finalizer `causeway.dev/local-path`. When the claim has gone and the policy is `Delete`,
//!   this controller deletes the volume. The kubelet of the labelled node sees a volume with its label, the finalizer
//!   and a `deletionTimestamp`, removes the directory `spec.hostPath.path` with everything in it, and then takes the
//!   finalizer off. It waits while `kubernetes.io/pv-protection` is still there: somebody may have it mounted.
//! - when the node itself is gone from the API, this controller takes the finalizer off: nobody else could.

pub mod binding;
pub mod provision;

use crate::cache::key_of;
use crate::context::{Context, Events};
use crate::error::{Doing, Result, ignore_not_found};
use crate::meta::{annotation, has_finalizer, name, uid};
use crate::queue::{Key, Queue};
use binding::{ClaimStep, VolumeStep};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Keeps a claim while a pod uses it.
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Keeps a volume while a claim is bound to it.
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// Keeps a local volume until its node has removed the directory.
pub const LOCAL_PATH_FINALIZER: &str = "causeway.dev/local-path";
/// The label with the node a local volume is on.
pub const NODE_LABEL: &str = "causeway.dev/node";

/// What is reconciled.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Item {
    /// A claim.
    Claim(Key),
    /// A volume, by name.
    Volume(String),
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(key) => write!(f, "claim {key}"),
            Self::Volume(name) => write!(f, "volume {name}"),
        }
    }
}

/// The controller.
pub struct Volumes {
    context: Arc<Context>,
    events: Events,
}

/// Wires the handlers up; the queue is worked by the caller, with one worker: two claims must not take one volume.
pub fn queue(context: &Arc<Context>) -> Arc<Queue<Item>> {
    let queue = Queue::new();
    let caches = &context.caches;
    let (sink, volumes) = (queue.clone(), caches.volumes.clone());
    caches.claims.on_change(move |old, new| {
        if let (Some(gone), None) = (old, new) {
            // Also those that were reserved and never bound.
            let key = key_of(&**gone);
            for volume in volumes.all().iter().filter(|v| binding::claim_key(v).as_ref() == Some(&key)) {
                sink.add(Item::Volume(name(&volume.metadata).to_owned()));
            }
        }
        for claim in [old, new].into_iter().flatten() {
            sink.add(Item::Claim(key_of(&**claim)));
            if let Some(volume) = claim.spec.as_ref().and_then(|s| s.volume_name.clone()) {
                sink.add(Item::Volume(volume));
            }
        }
    });
    let (sink, claims) = (queue.clone(), caches.claims.clone());
    caches.volumes.on_change(move |old, new| {
        for volume in [old, new].into_iter().flatten() {
            sink.add(Item::Volume(name(&volume.metadata).to_owned()));
            if let Some(key) = binding::claim_key(volume) {
                sink.add(Item::Claim(key));
            }
        }
        // A volume that is free may be what a waiting claim wants.
        if new.is_some_and(|v| binding::claim_key(v).is_none()) {
            for claim in claims.all().iter().filter(|c| !binding::is_settled(c)) {
                sink.add(Item::Claim(key_of(&**claim)));
            }
        }
    });
    let sink = queue.clone();
    caches.pods.on_change(move |old, new| {
        let gone = new.is_none_or(|p| causeway_api::pod::is_finished(p)) || old.is_none();
        if let Some(pod) = new.or(old).filter(|_| gone) {
            for claim in claims_of(pod) {
                sink.add(Item::Claim(claim));
            }
        }
    });
    let (sink, claims) = (queue.clone(), caches.claims.clone());
    caches.classes.on_change(move |_, _| {
        for claim in claims.all().iter().filter(|c| !binding::is_settled(c)) {
            sink.add(Item::Claim(key_of(&**claim)));
        }
    });
    let (sink, volumes) = (queue.clone(), caches.volumes.clone());
    caches.nodes.on_change(move |_, new| {
        if new.is_none() {
            for volume in volumes.all() {
                sink.add(Item::Volume(name(&volume.metadata).to_owned()));
            }
        }
    });
    queue
}

/// The claims a pod mounts.
fn claims_of(pod: &Pod) -> Vec<Key> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.filter_map(|v| Some(Key::new(namespace, &v.persistent_volume_claim.as_ref()?.claim_name))).collect()
}

impl Volumes {
    /// The controller over `context`.
    pub fn new(context: Arc<Context>) -> Arc<Self> {
        let events = context.recorder("persistentvolume-controller");
        Arc::new(Self { context, events })
    }

    /// Creates the default StorageClass when there is none of its name.
    pub async fn install_class(&self) -> Result<()> {
        let class = provision::default_class();
        let made = self.context.cluster::<StorageClass>().create(&PostParams::default(), &class).await;
        match made.doing(|| "create StorageClass local-path".to_owned()) {
            Err(error) if error.is_already_exists() => Ok(()),
            other => other.map(drop),
        }
    }

    /// One level-triggered step for one claim or volume.
    pub async fn reconcile(self: Arc<Self>, item: Item) -> Result<Option<Duration>> {
        match item {
            Item::Claim(key) => match self.context.caches.claims.get(&key) {
                Some(claim) => self.claim(&claim).await,
                None => Ok(None),
            },
            Item::Volume(volume) => match self.context.caches.volumes.get(&Key::new("", &volume)) {
                Some(volume) => self.volume(&volume).await.map(|()| None),
                None => Ok(None),
            },
        }
    }

    async fn claim(&self, claim: &PersistentVolumeClaim) -> Result<Option<Duration>> {
        if claim.metadata.deletion_timestamp.is_some() {
            if has_finalizer(&claim.metadata, CLAIM_PROTECTION) && !self.is_used(claim) {
                self.edit_claim(claim, json!({ "finalizers": without(&claim.metadata.finalizers, CLAIM_PROTECTION) }))
                    .await?;
            }
            return Ok(None);
        }
        if !has_finalizer(&claim.metadata, CLAIM_PROTECTION) {
            let finalizers = with(&claim.metadata.finalizers, CLAIM_PROTECTION);
            self.edit_claim(claim, json!({ "finalizers": finalizers })).await?;
            // The change comes back through the watch.
            return Ok(None);
        }
        let caches = &self.context.caches;
        let class = binding::class_name(claim).and_then(|c| caches.classes.get(&Key::new("", c)));
        let used = self.is_used(claim);
        match binding::claim_step(claim, class.as_deref(), &caches.volumes.all()) {
            ClaimStep::Nothing => {}
            ClaimStep::Status(status) => self.write_claim_status(claim, status).await?,
            ClaimStep::ReserveVolume(volume) => {
                self.edit_volume(&volume, json!({}), json!({ "claimRef": binding::reference(claim) })).await?;
            }
            ClaimStep::Bind(volume) => self.bind(claim, &volume).await?,
            ClaimStep::Provision(class) => self.provision(claim, &class).await?,
            ClaimStep::Wait { reason, message } => {
                match reason {
                    "ProvisioningFailed" => self.events.warning(claim, reason, message),
                    _ => self.events.normal(claim, reason, message),
                }
                // A pending claim shows its phase.
                if claim.status.as_ref().and_then(|s| s.phase.as_deref()).is_none() {
                    self.write_claim_status(claim, binding::claim_status("Pending", None)).await?;
                }
                // Time is not what a claim that nobody uses waits for.
                return Ok(used.then_some(Duration::from_secs(15)));
            }
        }
        Ok(None)
    }

    fn is_used(&self, claim: &PersistentVolumeClaim) -> bool {
        let key = key_of(claim);
        let pods = self.context.caches.pods.in_namespace(&key.namespace);
        pods.iter().any(|p| !causeway_api::pod::is_finished(p) && claims_of(p).contains(&key))
    }

    async fn bind(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<()> {
        let key = key_of(claim);
        let patch = json!({
            "metadata": {
                "resourceVersion": claim.metadata.resource_version,
                "annotations": {
                    "pv.kubernetes.io/bind-completed": "yes",
                    "pv.kubernetes.io/bound-by-controller": "yes",
                },
            },
            "spec": { "volumeName": name(&volume.metadata) },
        });
        let bound = self
            .context
            .api::<PersistentVolumeClaim>(&key.namespace)
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .doing(|| format!("bind claim {key} to volume {}", name(&volume.metadata)));
        if let Some(bound) = ignore_not_found(bound)? {
            self.write_claim_status(&bound, binding::claim_status("Bound", Some(volume))).await?;
        }
        Ok(())
    }

    async fn provision(&self, claim: &PersistentVolumeClaim, class: &StorageClass) -> Result<()> {
        let node_name = annotation(&claim.metadata, provision::SELECTED_NODE);
        let nodes = self.context.caches.nodes.all();
        let node = match node_name {
            Some(wanted) => nodes.iter().find(|n| name(&n.metadata) == wanted).cloned(),
            None => provision::any_node(&nodes, claim),
        };
        let Some(node) = node else {
            let text = match node_name {
                Some(wanted) => format!("failed to provision volume: node {wanted:?} is not there any more"),
                None => "failed to provision volume: the cluster has no node yet".to_owned(),
            };
            self.events.warning(claim, "ProvisioningFailed", text);
            if node_name.is_some() {
                // The scheduler chooses again.
                self.edit_claim(claim, json!({ "annotations": { provision::SELECTED_NODE: null } })).await?;
            }
            return Ok(());
        };
        let volume = match provision::volume(claim, class, &node, &self.context.config.volume_directory) {
            Ok(volume) => volume,
            Err(text) => {
                self.events.warning(claim, "ProvisioningFailed", text);
                return Ok(());
            }
        };
        let made = self.context.cluster::<PersistentVolume>().create(&PostParams::default(), &volume).await;
        match made.doing(|| format!("provision volume {} for claim {}", name(&volume.metadata), key_of(claim))) {
            Ok(_) => {
                let text = format!("Successfully provisioned volume {}", name(&volume.metadata));
                self.events.normal(claim, "ProvisioningSucceeded", text);
                Ok(())
            }
            Err(error) if error.is_already_exists() => Ok(()),
            Err(error) => {
                self.events.warning(
                    claim,
                    "ProvisioningFailed",
                    format!("failed to provision volume: {}", error.reply()),
                );
                Err(error)
            }
        }
    }

    async fn volume(&self, volume: &PersistentVolume) -> Result<()> {
        let caches = &self.context.caches;
        let claim = binding::claim_key(volume).and_then(|key| caches.claims.get(&key));
        let node_there = crate::meta::label(&volume.metadata, NODE_LABEL)
            .is_none_or(|node| caches.nodes.get(&Key::new("", node)).is_some());
        match binding::volume_step(volume, claim.as_deref(), node_there) {
            VolumeStep::Nothing => Ok(()),
            VolumeStep::Protect => {
                let finalizers = with(&volume.metadata.finalizers, VOLUME_PROTECTION);
                self.edit_volume(volume, json!({ "finalizers": finalizers }), Value::Null).await
            }
            VolumeStep::Unprotect(finalizer) => {
                let finalizers = without(&volume.metadata.finalizers, finalizer);
                self.edit_volume(volume, json!({ "finalizers": finalizers }), Value::Null).await
            }
            VolumeStep::CompleteReference(reference) => {
                self.edit_volume(volume, json!({}), json!({ "claimRef": reference })).await
            }
            VolumeStep::Phase(phase, message) => self.write_volume_phase(volume, phase, message).await,
            VolumeStep::Delete => {
                let only = Preconditions { uid: Some(uid(&volume.metadata).to_owned()), resource_version: None };
                let deleted = self
                    .context
                    .cluster::<PersistentVolume>()
                    .delete(name(&volume.metadata), &DeleteParams::default().preconditions(only))
                    .await
                    .doing(|| format!("delete released volume {}", name(&volume.metadata)));
                ignore_not_found(deleted).map(drop)
            }
        }
    }

    async fn edit_claim(&self, claim: &PersistentVolumeClaim, mut metadata: Value) -> Result<()> {
        let key = key_of(claim);
        metadata["resourceVersion"] = json!(claim.metadata.resource_version);
        let written = self
            .context
            .api::<PersistentVolumeClaim>(&key.namespace)
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(json!({ "metadata": metadata })))
            .await
            .doing(|| format!("change claim {key}"));
        ignore_not_found(written).map(drop)
    }

    async fn edit_volume(&self, volume: &PersistentVolume, mut metadata: Value, spec: Value) -> Result<()> {
        metadata["resourceVersion"] = json!(volume.metadata.resource_version);
        let mut patch = json!({ "metadata": metadata });
        if !spec.is_null() {
            patch["spec"] = spec;
        }
        let volume_name = name(&volume.metadata);
        let written = self
            .context
            .cluster::<PersistentVolume>()
            .patch(volume_name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .doing(|| format!("change volume {volume_name}"));
        ignore_not_found(written).map(drop)
    }

    async fn write_claim_status(
        &self,
        claim: &PersistentVolumeClaim,
        status: k8s_openapi::api::core::v1::PersistentVolumeClaimStatus,
    ) -> Result<()> {
        let key = key_of(claim);
        let wanted = PersistentVolumeClaim { status: Some(status), ..claim.clone() };
        let written = self
            .context
            .api::<PersistentVolumeClaim>(&key.namespace)
            .replace_status(&key.name, &PostParams::default(), &wanted)
            .await
            .doing(|| format!("write the status of claim {key}"));
        ignore_not_found(written).map(drop)
    }

    async fn write_volume_phase(&self, volume: &PersistentVolume, phase: &str, message: Option<String>) -> Result<()> {
        let mut wanted = volume.clone();
        let status = wanted.status.get_or_insert_default();
        status.phase = Some(phase.to_owned());
        status.message = message;
        status.last_phase_transition_time =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::now()));
        let volume_name = name(&volume.metadata);
        let written = self
            .context
            .cluster::<PersistentVolume>()
            .replace_status(volume_name, &PostParams::default(), &wanted)
            .await
            .doing(|| format!("write the phase of volume {volume_name}"));
        ignore_not_found(written).map(drop)
    }
}

fn with(finalizers: &Option<Vec<String>>, one: &str) -> Vec<String> {
    let mut all = finalizers.clone().unwrap_or_default();
    all.push(one.to_owned());
    all
}

fn without(finalizers: &Option<Vec<String>>, one: &str) -> Vec<String> {
    finalizers.iter().flatten().filter(|f| *f != one).cloned().collect()
}
