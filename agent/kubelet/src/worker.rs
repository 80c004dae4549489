//! One task a pod: looks, decides ([`crate::plan`]), reports ([`crate::status`]), and starts what has to be done. In:
//! the mailbox, ends of operations, the clock. It never waits for anything but these, so a slow image never holds up
//! a deletion.

mod outcomes;
mod probing;

use crate::backoff::Backoff;
use crate::context::Context;
use crate::inbox::{Inbox, Mail};
use crate::model::{Failure, Op, PodModel, Record, Sandbox};
use crate::objects::PodObjects;
use crate::observe;
use crate::operations::{self, Outcome, Ready};
use crate::plan::{Action, plan};
use crate::publish::Publisher;
use crate::status::{OWN_CONDITIONS, begun_back_offs, status};
use crate::volumes::Volumes;
use causeway_api::events::EventType;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

/// The content of volumes is looked at this often even when nothing has changed, for tokens to be renewed and for files that
/// somebody has spoilt. Nobody is asked for an object: they are followed.
const REFRESH: SignedDuration = SignedDuration::from_secs(60);
/// However often objects change, their pods follow no faster.
const SOON: SignedDuration = SignedDuration::from_millis(500);
/// Until a failed sandbox is tried again.
const SANDBOX_RETRY: SignedDuration = SignedDuration::from_secs(2);
/// Until a failed removal is tried again.
const CLEAN_RETRY: SignedDuration = SignedDuration::from_secs(3);
/// The code of what ended when the machine did: no fault of its own, so it does not wait for it.
const LOST: i32 = 255;
/// The runtime is looked at this often even when it reports nothing.
const LOOK: SignedDuration = SignedDuration::from_secs(300);

/// The key of the operation that brings volumes up to date; no container has such a name.
const VOLUMES: &str = "volumes/";

/// A pod's worker.
pub struct Worker {
    ctx: Arc<Context>,
    inbox: Arc<Inbox>,
    objects: Arc<PodObjects>,
    model: PodModel,
    ready: Option<Ready>,
    operations: JoinSet<Outcome>,
    running: HashMap<String, AbortHandle>,
    probes: HashMap<String, JoinHandle<()>>,
    publisher: Publisher,
    last: PodStatus,
    messages: HashMap<String, String>,
    look: bool,
    looked_at: Timestamp,
    refreshed_at: Timestamp,
    /// Something that volumes show has changed since they were brought up to date.
    stale: bool,
    adopted: bool,
    retry_clean: Option<Timestamp>,
    announced: bool,
    orphan: bool,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.probes.values().for_each(JoinHandle::abort);
    }
}

impl Worker {
    /// For a pod; `failure` when the node refuses it, `orphan` when the API does not know it.
    pub fn new(ctx: Arc<Context>, inbox: Arc<Inbox>, pod: Arc<Pod>, failure: Option<Failure>, orphan: bool) -> Self {
        let now = Timestamp::now();
        let mut model = PodModel::new(pod.clone(), ctx.config.node_ips.clone(), now);
        model.failure = failure;
        model.vanished = orphan;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        Self {
            objects: Arc::new(PodObjects::new(ctx.objects.clone(), &inbox, namespace)),
            publisher: Publisher::new(ctx.clone(), &pod),
            last: pod.status.clone().unwrap_or_default(),
            ctx,
            inbox,
            model,
            ready: None,
            operations: JoinSet::new(),
            running: HashMap::new(),
            probes: HashMap::new(),
            messages: HashMap::new(),
            look: true,
            looked_at: now,
            refreshed_at: now,
            stale: false,
            adopted: false,
            retry_clean: None,
            announced: false,
            orphan,
        }
    }

    /// Until the pod is gone from the node and from the API.
    pub async fn run(mut self) {
        self.ctx.metrics.running_pods.fetch_add(1, Ordering::Relaxed);
        loop {
            let mail = self.inbox.take();
            self.read(mail);
            if self.look && !self.observe().await {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            if self.model.sandbox == Sandbox::Cleaned && self.model.vanished {
                break;
            }
            let wake = self.step();
            let wait = wake.map(|t| Duration::try_from(t.duration_since(Timestamp::now())).unwrap_or_default());
            tokio::select! {
                () = self.inbox.rung() => {}
                Some(done) = self.operations.join_next() => match done {
                    Ok(outcome) => self.ended(outcome),
                    Err(error) => self.broken(&error),
                },
                () = tokio::time::sleep(wait.unwrap_or(Duration::from_secs(3600))) => {}
            }
        }
        self.ctx.metrics.running_pods.fetch_sub(1, Ordering::Relaxed);
    }

    /// Decides, acts and reports; when to do it again.
    fn step(&mut self) -> Option<Timestamp> {
        self.ctx.metrics.syncs.fetch_add(1, Ordering::Relaxed);
        let now = Timestamp::now();
        self.probe();
        let decided = plan(&self.model, now);
        let mut wake = decided.wake;
        for action in decided.actions {
            self.act(action, now, &mut wake);
        }
        self.report(now);
        self.refresh(now, &mut wake);
        if self.looked_at.saturating_add(LOOK).is_ok_and(|t| t <= now) {
            self.look = true;
            wake = Some(now);
        }
        let latest = now.saturating_add(REFRESH).ok();
        [wake, latest].into_iter().flatten().min()
    }

    fn read(&mut self, mail: Mail) {
        self.look |= mail.look;
        if let Some(pod) = mail.pod {
            let changed = pod.metadata.labels != self.model.pod.metadata.labels
                || pod.metadata.annotations != self.model.pod.metadata.annotations;
            self.stale |= changed;
            self.reconcile(&pod);
            self.model.pod = pod;
        }
        self.model.vanished |= mail.vanished;
        if mail.objects {
            self.objects_changed();
        }
        for (id, verdicts) in mail.verdicts {
            self.judge(&id, verdicts);
        }
    }

    /// Others may have written into the status what only we know; then it is written again.
    fn reconcile(&mut self, pod: &Pod) {
        let theirs = pod.status.clone().unwrap_or_default();
        let own = |s: &PodStatus| -> Vec<(String, String)> {
            let all = s.conditions.iter().flatten().filter(|c| OWN_CONDITIONS.contains(&c.type_.as_str()));
            all.map(|c| (c.type_.clone(), c.status.clone())).collect()
        };
        let foreign = theirs.conditions.iter().flatten().filter(|c| !OWN_CONDITIONS.contains(&c.type_.as_str()));
        let foreign: Vec<_> = foreign.cloned().collect();
        if self.publisher.overtaken_by(pod) && (own(&theirs) != own(&self.last) || theirs.phase != self.last.phase) {
            self.publisher.publish(self.last.clone());
        }
        if let Some(conditions) = &mut self.last.conditions {
            conditions.retain(|c| OWN_CONDITIONS.contains(&c.type_.as_str()));
            conditions.extend(foreign);
        }
    }

    /// Looks at the runtime; `false` when it does not answer.
    async fn observe(&mut self) -> bool {
        let snapshot = match self.ctx.observer.fresh().await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                tracing::warn!(%error, "containers cannot be listed");
                return false;
            }
        };
        self.look = false;
        self.looked_at = Timestamp::now();
        let infos = snapshot.get(self.model.uid()).cloned().unwrap_or_default();
        let mut records: Vec<Record> = infos.iter().filter_map(observe::record).collect();
        for record in records.iter_mut().filter(|r| r.exit().is_some()) {
            record.message = self.message(record);
        }
        records.sort_by(|a, b| (&a.name, a.attempt).cmp(&(&b.name, b.attempt)));
        self.messages.retain(|id, _| records.iter().any(|r| r.id == *id));
        self.model.records = records;
        if !self.adopted {
            self.adopted = true;
            self.adopt();
        }
        true
    }

    /// Takes over what an earlier run of the kubelet started.
    fn adopt(&mut self) {
        let latest: Vec<Record> = self
            .model
            .containers()
            .filter_map(|(_, c)| self.model.current(&c.name).cloned())
            .filter(|r| r.attempt > 0 && r.exit().is_none_or(|(code, _)| code != LOST))
            .collect();
        for record in latest {
            let at = record.exit().map_or_else(Timestamp::now, |(_, at)| at);
            self.model.life_mut(&record.name).backoff = Backoff::after(record.attempt, at);
        }
    }

    fn message(&mut self, record: &Record) -> String {
        if let Some(known) = self.messages.get(&record.id) {
            return known.clone();
        }
        let config = &self.ctx.config;
        let meta = &self.model.pod.metadata;
        let text = |v: &Option<String>| v.clone().unwrap_or_default();
        let file = operations::message_file(&config.pod_dir(self.model.uid()), &record.name, record.attempt);
        let logs = config.log_dir(&text(&meta.namespace), &text(&meta.name), self.model.uid());
        let log = logs.join(&record.name).join(format!("{}.log", record.attempt));
        let fallback = self.model.containers().any(|(_, c)| {
            c.name == record.name && c.termination_message_policy.as_deref() == Some("FallbackToLogsOnError")
        });
        let failed = record.exit().is_some_and(|(code, _)| code != 0);
        let message = crate::logs::termination_message(&file, (fallback && failed).then_some(log.as_path()));
        self.messages.insert(record.id.clone(), message.clone());
        message
    }

    fn spawn(&mut self, key: &str, work: impl Future<Output = Outcome> + Send + 'static) {
        let handle = self.operations.spawn(work);
        if let Some(before) = self.running.insert(key.to_owned(), handle) {
            before.abort();
        }
    }

    fn act(&mut self, action: Action, now: Timestamp, wake: &mut Option<Timestamp>) {
        let (ctx, pod) = (self.ctx.clone(), self.model.pod.clone());
        match action {
            Action::SetUp => {
                self.model.sandbox = Sandbox::SettingUp;
                self.stale = false;
                self.spawn("sandbox/", operations::set_up(ctx, pod, self.objects.clone()));
            }
            Action::Start { name, attempt, after } => self.start(&name, attempt, after),
            Action::Cancel { name } => {
                if let Some(task) = self.running.remove(&name) {
                    task.abort();
                }
                self.model.life_mut(&name).op = None;
                self.look = true;
                *wake = Some(now);
            }
            Action::Stop { id, name, grace, event, hook } => {
                if let Some(text) = event {
                    ctx.container_event(&pod, &name, EventType::Normal, "Killing", text);
                }
                let c = self.model.containers().find(|(_, c)| hook && c.name == name).map(|(_, c)| c.clone());
                let ip = self.ready.as_ref().and_then(|r| r.ips.first().copied());
                let until = now.saturating_add(grace).unwrap_or(Timestamp::MAX);
                self.model.life_mut(&name).op = Some(Op::Stopping { until });
                self.spawn(&name.clone(), operations::stop(ctx, pod, c, id, name, grace, ip));
            }
            Action::Remove { id } => {
                if let Some(at) = self.model.records.iter().position(|r| r.id == id) {
                    let record = self.model.records.remove(at);
                    self.operations.spawn(operations::remove(ctx, pod, record));
                }
            }
            Action::TearDown => {
                self.model.sandbox = Sandbox::TearingDown;
                self.spawn("sandbox/", operations::tear_down(ctx, pod));
            }
            Action::Clean => match self.retry_clean.filter(|t| *t > now) {
                Some(at) => *wake = Some(wake.map_or(at, |w| w.min(at))),
                None => self.clean(now),
            },
            Action::ExceedDeadline => {
                let message = "Pod was active on the node longer than the specified deadline".to_owned();
                ctx.pod_event(&pod, EventType::Normal, "DeadlineExceeded", message.clone());
                self.model.failure = Some(Failure { reason: "DeadlineExceeded".to_owned(), message });
                *wake = Some(now);
            }
        }
    }

    fn start(&mut self, name: &str, attempt: u32, after: Option<Timestamp>) {
        let Some(ready) = self.ready.clone() else { return };
        let Some(c) = self.model.containers().find(|(_, c)| c.name == name).map(|(_, c)| c.clone()) else { return };
        let life = self.model.life_mut(name);
        life.op = Some(Op::Starting);
        life.retry_at = None;
        life.unhealthy = None;
        // Counted once for each end, however often the start has to be repeated.
        if let Some(after) = after.filter(|_| life.waiting.as_ref().is_none_or(|w| w.reason == "RunContainerError")) {
            life.backoff.step(after);
        }
        let (ctx, pod, objects) = (self.ctx.clone(), self.model.pod.clone(), self.objects.clone());
        self.spawn(name, operations::start(ctx, pod, objects, c, attempt, ready));
    }

    /// Writes the last status, then removes everything.
    fn clean(&mut self, now: Timestamp) {
        self.report(now);
        self.model.sandbox = Sandbox::TearingDown;
        self.spawn("sandbox/", operations::clean(self.ctx.clone(), self.model.pod.clone()));
    }

    fn report(&mut self, now: Timestamp) {
        // While everything is being removed the last report stands.
        let cleaning = self.model.terminating() && self.model.sandbox == Sandbox::TearingDown;
        if cleaning || self.model.sandbox == Sandbox::Cleaned || self.model.vanished || !self.adopted {
            return;
        }
        let next = status(&self.model, &self.last, now);
        for name in begun_back_offs(&self.last, &next) {
            let pod = &self.model.pod;
            let text = format!("Back-off restarting failed container {name} in pod {}", crate::names::format_pod(pod));
            self.ctx.container_event(pod, &name, EventType::Warning, "BackOff", text);
        }
        if next != self.last {
            self.last = next.clone();
            self.publisher.publish(next);
        }
        if !self.announced && self.last.phase.as_deref() == Some("Running") {
            self.announced = true;
            let millis = now.duration_since(self.model.start_time).as_millis();
            self.ctx.metrics.pod_starts.fetch_add(1, Ordering::Relaxed);
            self.ctx.metrics.pod_start_millis.fetch_add(u64::try_from(millis).unwrap_or(0), Ordering::Relaxed);
        }
    }

    fn refresh(&mut self, now: Timestamp, wake: &mut Option<Timestamp>) {
        let Some(ready) = self.ready.as_ref().filter(|_| Volumes::live(&self.model.pod)) else { return };
        // One at a time: its end is heard of, and what has changed meanwhile is next.
        if self.model.terminating() || self.running.contains_key(VOLUMES) {
            return;
        }
        let pause = if self.stale { SOON } else { REFRESH };
        let Some(due) = self.refreshed_at.checked_add(pause).ok() else { return };
        if due > now {
            *wake = Some(wake.map_or(due, |w| w.min(due)));
            return;
        }
        self.refreshed_at = now;
        self.stale = false;
        let ips = ready.ips.clone();
        let (ctx, pod, objects) = (self.ctx.clone(), self.model.pod.clone(), self.objects.clone());
        self.spawn(VOLUMES, operations::refresh(ctx, pod, objects, ips));
    }

    /// What waits for an object, or shows one, need not wait for its time.
    fn objects_changed(&mut self) {
        self.stale = true;
        let soon = Timestamp::now().saturating_add(SOON).unwrap_or(Timestamp::MAX);
        let sooner = |at: &mut Option<Timestamp>| *at = at.map(|at| at.min(soon));
        if let Sandbox::Absent { retry_at } = &mut self.model.sandbox {
            sooner(retry_at);
        }
        let waits = |reason: &str| reason == "CreateContainerConfigError";
        for life in self.model.lives.values_mut().filter(|l| l.waiting.as_ref().is_some_and(|w| waits(&w.reason))) {
            sooner(&mut life.retry_at);
        }
    }
}
