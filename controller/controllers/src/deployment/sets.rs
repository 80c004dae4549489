//! A Deployment's ReplicaSets as a working copy: which one is new, which are old, how large each is to be. Pure.

use crate::meta::{Map, annotation, created, name, scaled};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use std::sync::Arc;

/// Which roll-out a ReplicaSet stands for, counted from 1.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// The revisions a ReplicaSet stood for before.
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The Deployment's size when the ReplicaSet was last scaled.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// The most pods the Deployment allowed when the ReplicaSet was last scaled.
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// The label that keeps the pods of one Deployment's ReplicaSets apart.
pub const HASH: &str = "pod-template-hash";

/// A ReplicaSet and what is to become of it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// As observed.
    pub set: Arc<ReplicaSet>,
    /// Its size after this step.
    pub replicas: i32,
    /// Annotations to write.
    pub annotations: Map,
    /// `minReadySeconds` to write.
    pub min_ready_seconds: Option<i32>,
}

impl Entry {
    /// An unchanged one.
    pub fn new(set: Arc<ReplicaSet>) -> Self {
        let replicas = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
        Self { set, replicas, annotations: Map::new(), min_ready_seconds: None }
    }

    /// Available pods, as observed.
    pub fn available(&self) -> i32 {
        self.set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
    }

    /// Pods, as observed.
    pub fn actual(&self) -> i32 {
        self.set.status.as_ref().map_or(0, |s| s.replicas)
    }

    /// The size as observed.
    pub fn before(&self) -> i32 {
        self.set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    /// An annotation, counting what this step writes.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str).or_else(|| annotation(&self.set.metadata, key))
    }

    /// The revision; 0 when there is none.
    pub fn revision(&self) -> i64 {
        self.annotation(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
    }

    /// Writes an annotation if it differs.
    pub fn annotate(&mut self, key: &str, value: String) -> bool {
        let differs = self.annotation(key) != Some(&value);
        if differs {
            self.annotations.insert(key.to_owned(), value);
        }
        differs
    }

    /// Sets the size and notes what it was measured against.
    pub fn scale(&mut self, replicas: i32, limits: &Limits) {
        self.replicas = replicas;
        self.annotate(DESIRED, limits.replicas.to_string());
        self.annotate(MAX, limits.max_total().to_string());
    }
}

/// The numbers a roll-out must keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Wanted pods.
    pub replicas: i32,
    /// Pods above that.
    pub surge: i32,
    /// Pods that may be missing.
    pub unavailable: i32,
    /// Replaces pods gradually; otherwise all at once.
    pub rolling: bool,
}

impl Limits {
    /// Reads them; when both round to nothing, one may be missing, or nothing would ever move.
    pub fn of(spec: &DeploymentSpec) -> Self {
        let replicas = spec.replicas.unwrap_or(1);
        let rolling = spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("Recreate");
        if !rolling {
            return Self { replicas, surge: 0, unavailable: replicas, rolling };
        }
        let parameters = spec.strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        let surge = scaled(parameters.and_then(|p| p.max_surge.as_ref()), replicas, true);
        let unavailable = scaled(parameters.and_then(|p| p.max_unavailable.as_ref()), replicas, false);
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        Self { replicas, surge, unavailable: unavailable.min(replicas), rolling }
    }

    /// The most pods at any time.
    pub fn max_total(&self) -> i32 {
        self.replicas + self.surge
    }

    /// The fewest available pods at any time.
    pub fn min_available(&self) -> i32 {
        self.replicas - self.unavailable
    }
}

/// All ReplicaSets of a Deployment.
#[derive(Debug, Clone)]
pub struct Sets {
    /// The one with the Deployment's template.
    pub new: Option<Entry>,
    /// The others, oldest first.
    pub old: Vec<Entry>,
}

impl Sets {
    /// Sorts them; of several with the same template the oldest is the new one.
    pub fn of(deployment: &Deployment, mut sets: Vec<Arc<ReplicaSet>>) -> Self {
        sets.sort_by(|a, b| (created(&a.metadata), name(&a.metadata)).cmp(&(created(&b.metadata), name(&b.metadata))));
        let template = deployment.spec.as_ref().map(|s| without_hash(&s.template));
        let new =
            sets.iter().position(|s| s.spec.as_ref().and_then(|s| s.template.as_ref()).map(without_hash) == template);
        let new = new.map(|i| Entry::new(sets.remove(i)));
        Self { new, old: sets.into_iter().map(Entry::new).collect() }
    }

    /// Old and new.
    pub fn all(&self) -> impl Iterator<Item = &Entry> {
        self.old.iter().chain(&self.new)
    }

    /// Old and new, to change.
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.old.iter_mut().chain(&mut self.new)
    }

    /// Sum of the sizes.
    pub fn total(&self) -> i32 {
        self.all().map(|e| e.replicas).sum()
    }

    /// Sum of the available pods.
    pub fn available(&self) -> i32 {
        self.all().map(Entry::available).sum()
    }
}

/// Whether two ReplicaSets describe the same pods, the hash label aside.
pub fn same_template(a: &ReplicaSet, b: &ReplicaSet) -> bool {
    let template = |s: &ReplicaSet| s.spec.as_ref().and_then(|s| s.template.as_ref()).map(without_hash);
    template(a) == template(b)
}

/// A template without the hash label.
pub fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let metadata = template.metadata.get_or_insert_default();
    if let Some(labels) = metadata.labels.as_mut() {
        labels.remove(HASH);
    }
    // Neither is the template's own: `kubectl` and Go clients send `creationTimestamp: null`.
    metadata.creation_timestamp = None;
    template
}
