//! The next step of a Deployment: scale, roll, recreate, clean up. Pure.

use super::sets::{DESIRED, Entry, HASH, Limits, MAX, REVISION, REVISION_HISTORY, Sets, without_hash};
use super::status;
use crate::meta::{Map, controller_ref, created, fit, name, namespace, short_hash, uid};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// A change to a ReplicaSet.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// A new template's set.
    Create(Box<ReplicaSet>),
    /// Size, annotations.
    Update {
        /// As observed.
        set: Arc<ReplicaSet>,
        /// The new size.
        replicas: Option<i32>,
        /// Annotations to write.
        annotations: Map,
        /// The new `minReadySeconds`.
        min_ready_seconds: Option<i32>,
    },
    /// An old one beyond the history limit.
    Delete(Arc<ReplicaSet>),
}

/// One step.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// In this order.
    pub ops: Vec<Op>,
    /// The status to show.
    pub status: DeploymentStatus,
    /// The Deployment's revision annotation.
    pub revision: Option<String>,
    /// Look again after so long, whatever happens.
    pub recheck: Option<Duration>,
}

struct Step<'a> {
    deployment: &'a Deployment,
    spec: &'a DeploymentSpec,
    limits: Limits,
    sets: Sets,
    status: DeploymentStatus,
    create: Option<ReplicaSet>,
    delete: Vec<Arc<ReplicaSet>>,
    now: Timestamp,
}

/// Plans one step. `running` has the uids of sets that still have pods.
pub fn plan(deployment: &Deployment, sets: Vec<Arc<ReplicaSet>>, running: &HashSet<String>, now: Timestamp) -> Plan {
    let status = deployment.status.clone().unwrap_or_default();
    let Some(spec) = deployment.spec.as_ref() else {
        return Plan { ops: Vec::new(), status, revision: None, recheck: None };
    };
    let sets = Sets::of(deployment, sets);
    let limits = Limits::of(spec);
    let mut step = Step { deployment, spec, limits, sets, status, create: None, delete: Vec::new(), now };
    let rolls = step.run(running);
    step.finish(rolls)
}

impl Step<'_> {
    /// Whether progress is to be judged: not while paused, merely scaled, or deleted.
    fn run(&mut self, running: &HashSet<String>) -> bool {
        if self.deployment.metadata.deletion_timestamp.is_some() {
            return false;
        }
        let paused = self.spec.paused == Some(true);
        status::pause(&mut self.status, paused, self.now);
        self.sync_revision();
        if paused || self.is_scaling() {
            self.scale();
            if paused {
                self.clean_up();
            }
            return false;
        }
        if self.limits.rolling {
            self.roll();
        } else {
            self.recreate(running);
        }
        if status::complete(self.deployment, &self.counts()) {
            self.clean_up();
        }
        true
    }

    fn counts(&self) -> DeploymentStatus {
        status::counts(self.deployment, &self.sets, &self.limits, &self.status, self.now)
    }

    /// Brings the new set's revision and annotations up to date.
    fn sync_revision(&mut self) {
        let next = self.next_revision();
        let copied = self.copied_annotations();
        let min_ready = self.spec.min_ready_seconds.unwrap_or(0);
        let Some(new) = self.sets.new.as_mut() else { return };
        for (key, value) in copied {
            new.annotate(&key, value);
        }
        let before = new.annotation(REVISION).map(str::to_owned);
        if new.revision() < next {
            new.annotate(REVISION, next.to_string());
            if let Some(before) = before.filter(|b| !b.is_empty()) {
                let history = match new.annotation(REVISION_HISTORY) {
                    Some(history) if !history.is_empty() => format!("{history},{before}"),
                    _ => before,
                };
                new.annotate(REVISION_HISTORY, history);
            }
        }
        if new.set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0) != min_ready {
            new.min_ready_seconds = Some(min_ready);
        }
        if !status::has(&self.status, "Progressing") && self.spec.progress_deadline_seconds.is_some() {
            let text = format!("Found new replica set {:?}", name(&new.set.metadata));
            status::set(
                &mut self.status,
                status::condition("Progressing", "True", "FoundNewReplicaSet", &text, self.now),
            );
        }
    }

    fn next_revision(&self) -> i64 {
        self.sets.old.iter().map(Entry::revision).max().unwrap_or(0) + 1
    }

    fn copied_annotations(&self) -> Map {
        const OWN: [&str; 6] = [
            "kubectl.kubernetes.io/last-applied-configuration",
            REVISION,
            REVISION_HISTORY,
            DESIRED,
            MAX,
            "deprecated.deployment.rollback.to",
        ];
        let all = self.deployment.metadata.annotations.clone().unwrap_or_default();
        all.into_iter().filter(|(k, _)| !OWN.contains(&k.as_str())).collect()
    }

    /// The Deployment's size changed since a set was last scaled.
    fn is_scaling(&self) -> bool {
        let wanted = self.limits.replicas.to_string();
        self.sets.all().any(|e| e.replicas > 0 && e.annotation(DESIRED).is_some_and(|d| d != wanted))
    }

    /// Scales without rolling: the one active set, or all in proportion to their sizes.
    fn scale(&mut self) {
        let limits = self.limits;
        let active = self.sets.all().filter(|e| e.replicas > 0).count();
        if active <= 1 {
            let newest_old = self.sets.old.len().checked_sub(1);
            let only = if active == 1 {
                self.sets.all_mut().find(|e| e.replicas > 0)
            } else if self.sets.new.is_some() {
                self.sets.new.as_mut()
            } else {
                newest_old.and_then(|i| self.sets.old.get_mut(i))
            };
            if let Some(entry) = only.filter(|e| e.replicas != limits.replicas) {
                entry.scale(limits.replicas, &limits);
            }
            return;
        }
        if self.sets.new.as_ref().is_some_and(|e| saturated(e, &limits)) {
            for entry in self.sets.old.iter_mut().filter(|e| e.replicas > 0) {
                entry.scale(0, &limits);
            }
            return;
        }
        if limits.rolling {
            self.scale_in_proportion();
        }
    }

    fn scale_in_proportion(&mut self) {
        let limits = self.limits;
        let allowed = if limits.replicas > 0 { limits.max_total() } else { 0 };
        let to_add = allowed - self.sets.total();
        let fallback = self.deployment.status.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        let mut active: Vec<&mut Entry> = self.sets.all_mut().filter(|e| e.replicas > 0).collect();
        // The largest take the leftover; among equals the newer when growing, the older when shrinking.
        if to_add > 0 {
            active.sort_by_key(|e| (Reverse(e.replicas), Reverse(created(&e.set.metadata))));
        } else {
            active.sort_by_key(|e| (Reverse(e.replicas), created(&e.set.metadata)));
        }
        let mut added = 0;
        let mut sizes = Vec::with_capacity(active.len());
        for entry in &active {
            let share = if to_add == 0 { 0 } else { proportion(entry, &limits, fallback, to_add, added) };
            added += share;
            sizes.push(entry.replicas + share);
        }
        if let Some(first) = sizes.first_mut() {
            *first = (*first + to_add - added).max(0);
        }
        for (entry, size) in active.into_iter().zip(sizes) {
            entry.scale(size, &limits);
        }
    }

    fn roll(&mut self) {
        if self.sets.new.is_none() {
            let size = self.new_size(0);
            self.create(size);
            return;
        }
        let limits = self.limits;
        let current = self.sets.new.as_ref().map_or(0, |e| e.replicas);
        let size = if current > limits.replicas { limits.replicas } else { self.new_size(current) };
        if let Some(new) = self.sets.new.as_mut().filter(|e| e.replicas != size) {
            new.scale(size, &limits);
            return;
        }
        self.shrink_old();
    }

    /// How large the new set may be now.
    fn new_size(&self, current: i32) -> i32 {
        if !self.limits.rolling {
            return self.limits.replicas;
        }
        let room = self.limits.max_total() - self.sets.total();
        if room <= 0 {
            return current;
        }
        current + room.min(self.limits.replicas - current).max(0)
    }

    /// First takes the pods of old sets that serve nobody, then as many as the available ones allow.
    fn shrink_old(&mut self) {
        let limits = self.limits;
        let waiting = self.sets.new.as_ref().map_or(0, |e| e.replicas - e.available());
        let mut room = self.sets.total() - limits.min_available() - waiting;
        for entry in self.sets.old.iter_mut() {
            let sick = (entry.replicas - entry.available()).min(room);
            if entry.replicas > 0 && sick > 0 {
                room -= sick;
                entry.scale(entry.replicas - sick, &limits);
            }
        }
        let mut spare = self.sets.available() - limits.min_available();
        for entry in self.sets.old.iter_mut() {
            let down = entry.replicas.min(spare).min(room);
            if down > 0 {
                spare -= down;
                room -= down;
                entry.scale(entry.replicas - down, &limits);
            }
        }
    }

    fn recreate(&mut self, running: &HashSet<String>) {
        let limits = self.limits;
        let mut waits = false;
        for entry in self.sets.old.iter_mut() {
            if entry.replicas > 0 {
                entry.scale(0, &limits);
                waits = true;
            }
            waits |= running.contains(uid(&entry.set.metadata));
        }
        if waits {
            return;
        }
        match self.sets.new.as_mut() {
            Some(new) if new.replicas != limits.replicas => new.scale(limits.replicas, &limits),
            Some(_) => {}
            None => self.create(limits.replicas),
        }
    }

    fn create(&mut self, size: i32) {
        let deployment = self.deployment;
        let plain = without_hash(&self.spec.template);
        let hash = short_hash(&plain, self.status.collision_count);
        let set_name = format!("{}-{hash}", fit(name(&deployment.metadata), 252 - hash.len()));
        let mut template = self.spec.template.clone();
        let meta = template.metadata.get_or_insert_default();
        meta.creation_timestamp = None;
        let labels = meta.labels.get_or_insert_default();
        labels.insert(HASH.to_owned(), hash.clone());
        let labels = labels.clone();
        let mut selector = self.spec.selector.clone();
        selector.match_labels.get_or_insert_default().insert(HASH.to_owned(), hash);
        let mut annotations = self.copied_annotations();
        annotations.insert(REVISION.to_owned(), self.next_revision().to_string());
        annotations.insert(DESIRED.to_owned(), self.limits.replicas.to_string());
        annotations.insert(MAX.to_owned(), self.limits.max_total().to_string());
        if self.spec.progress_deadline_seconds.is_some() {
            let text = format!("Created new replica set {set_name:?}");
            status::set(
                &mut self.status,
                status::condition("Progressing", "True", "NewReplicaSetCreated", &text, self.now),
            );
        }
        self.create = Some(ReplicaSet {
            metadata: ObjectMeta {
                name: Some(set_name),
                namespace: Some(namespace(&deployment.metadata).to_owned()),
                labels: Some(labels),
                annotations: Some(annotations),
                owner_references: Some(vec![controller_ref(deployment)]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(size),
                min_ready_seconds: self.spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        });
    }

    /// Old sets beyond the history limit that are empty and say so themselves.
    fn clean_up(&mut self) {
        let limit = self.spec.revision_history_limit.unwrap_or(10).max(0) as usize;
        let mut old: Vec<&Entry> =
            self.sets.old.iter().filter(|e| e.set.metadata.deletion_timestamp.is_none()).collect();
        let Some(excess) = old.len().checked_sub(limit).filter(|n| *n > 0) else { return };
        old.sort_by_key(|e| e.revision());
        self.delete = old
            .into_iter()
            .take(excess)
            .filter(|e| {
                let observed = e.set.status.as_ref().and_then(|s| s.observed_generation);
                e.replicas == 0 && e.before() == 0 && e.actual() == 0 && e.set.metadata.generation <= observed
            })
            .map(|e| e.set.clone())
            .collect();
    }

    fn finish(self, rolls: bool) -> Plan {
        let counted = self.counts();
        let (status, recheck) = if rolls {
            status::progress(self.deployment, &self.sets, counted, self.create.as_ref(), self.now)
        } else {
            (counted, None)
        };
        let revision = match (&self.sets.new, &self.create) {
            (Some(new), _) => new.annotation(REVISION).map(str::to_owned),
            (None, Some(set)) => set.metadata.annotations.as_ref().and_then(|a| a.get(REVISION).cloned()),
            (None, None) => None,
        };
        let mut ops: Vec<Op> = self.create.into_iter().map(|s| Op::Create(Box::new(s))).collect();
        let deleted: HashSet<_> = self.delete.iter().map(|s| uid(&s.metadata).to_owned()).collect();
        for entry in self.sets.all().filter(|e| !deleted.contains(uid(&e.set.metadata))) {
            let replicas = (entry.replicas != entry.before()).then_some(entry.replicas);
            if replicas.is_some() || !entry.annotations.is_empty() || entry.min_ready_seconds.is_some() {
                ops.push(Op::Update {
                    set: entry.set.clone(),
                    replicas,
                    annotations: entry.annotations.clone(),
                    min_ready_seconds: entry.min_ready_seconds,
                });
            }
        }
        ops.extend(self.delete.into_iter().map(Op::Delete));
        Plan { ops, status, revision, recheck }
    }
}

fn saturated(new: &Entry, limits: &Limits) -> bool {
    new.annotation(DESIRED).and_then(|d| d.parse().ok()) == Some(limits.replicas)
        && new.replicas == limits.replicas
        && new.available() == limits.replicas
}

/// A set's share of what is added or taken, bounded by what is left.
fn proportion(entry: &Entry, limits: &Limits, fallback: i32, to_add: i32, added: i32) -> i32 {
    let fraction = if limits.replicas == 0 {
        -entry.replicas
    } else {
        let before = entry.annotation(MAX).and_then(|m| m.parse().ok()).filter(|m| *m > 0).unwrap_or(fallback.max(1));
        let exact = f64::from(entry.replicas) * f64::from(limits.max_total()) / f64::from(before);
        exact.round() as i32 - entry.replicas
    };
    let left = to_add - added;
    if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
}

#[cfg(test)]
mod tests;
