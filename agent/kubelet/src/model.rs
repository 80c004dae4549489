//! What is known about one pod on this node: its object, its sandbox, its containers in the runtime, probe results
//! and back-offs. In: the worker's observations. Out: a value that [`crate::plan`] and [`crate::status`] read. No
//! I/O and no clock here.

use crate::backoff::Backoff;
use causeway_runtime::ContainerState;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Which part a container plays in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Runs to its end before the next.
    Init,
    /// An init container with `restartPolicy: Always`: runs beside the main ones.
    Sidecar,
    /// A main container.
    Main,
}

/// A container of the pod in the runtime, running or not (or one whose start failed).
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The runtime's id.
    pub id: String,
    /// The container's name in the pod.
    pub name: String,
    /// How many of that name came before.
    pub attempt: u32,
    /// Fingerprint of its specification; see [`crate::names::spec_hash`].
    pub hash: String,
    /// Image name as resolved.
    pub image: String,
    /// What `imageID` shows.
    pub image_id: String,
    /// Where it is in its life.
    pub state: ContainerState,
    /// Termination message, for an exited one.
    pub message: String,
    /// A reason that overrides the one derived from the state (`StartError`).
    pub reason: Option<&'static str>,
}

impl Record {
    /// Its first process runs.
    pub fn running(&self) -> bool {
        matches!(self.state, ContainerState::Running { .. })
    }

    /// Exit code and time, when it has ended.
    pub fn exit(&self) -> Option<(i32, Timestamp)> {
        match self.state {
            ContainerState::Exited { code, finished_at, .. } => Some((code, finished_at)),
            _ => None,
        }
    }
}

/// Why a container cannot be started at the moment: `state.waiting`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// For example `ImagePullBackOff`.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// An operation that is under way on a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Image, creation, start, postStart hook.
    Starting,
    /// preStop hook, signal, kill; killed at the time given.
    Stopping {
        /// When the grace ends.
        until: Timestamp,
    },
}

/// A running container that must be stopped, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unhealthy {
    /// The event's text.
    pub message: String,
    /// `terminationGracePeriodSeconds` of the probe.
    pub grace: Option<i64>,
}

/// What is remembered of a container name beyond the runtime's records.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Life {
    /// Under way.
    pub op: Option<Op>,
    /// Why the last start did not come about.
    pub waiting: Option<Waiting>,
    /// Not before.
    pub retry_at: Option<Timestamp>,
    /// Between restarts.
    pub backoff: Backoff,
    /// The record the probe fields below are about.
    pub probed: String,
    /// The startup probe succeeded (or there is none).
    pub started: bool,
    /// The readiness probe succeeds (or there is none).
    pub ready: bool,
    /// A startup or liveness probe, or a hook, failed for good.
    pub unhealthy: Option<Unhealthy>,
    /// A start that failed, kept as a record since the runtime has none.
    pub failed_start: Option<Record>,
}

/// The pod's network and folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sandbox {
    /// Not there; the time is when a failed attempt may be repeated.
    Absent {
        /// Not before.
        retry_at: Option<Timestamp>,
    },
    /// Being made.
    SettingUp,
    /// There, with the pod's addresses.
    Ready(Vec<IpAddr>),
    /// Being taken away.
    TearingDown,
    /// Taken away; the pod has ended. Addresses are kept for the status.
    Gone(Vec<IpAddr>),
    /// Everything of the pod is removed from the node.
    Cleaned,
}

/// Why a pod as a whole has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// `status.reason`.
    pub reason: String,
    /// `status.message`.
    pub message: String,
}

/// All that is known about one pod.
#[derive(Debug, Clone)]
pub struct PodModel {
    /// The newest object seen.
    pub pod: Arc<Pod>,
    /// It is gone from the API.
    pub vanished: bool,
    /// It was refused, or ran out of time.
    pub failure: Option<Failure>,
    /// Network and folders.
    pub sandbox: Sandbox,
    /// By container name.
    pub lives: BTreeMap<String, Life>,
    /// Sorted by name, then attempt.
    pub records: Vec<Record>,
    /// This node's addresses.
    pub node_ips: Vec<IpAddr>,
    /// When this kubelet took the pod up.
    pub start_time: Timestamp,
}

impl PodModel {
    /// A pod that was just seen for the first time.
    pub fn new(pod: Arc<Pod>, node_ips: Vec<IpAddr>, now: Timestamp) -> Self {
        let start_time =
            pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or_else(|| whole_seconds(now), |t| t.0);
        Self {
            pod,
            vanished: false,
            failure: None,
            sandbox: Sandbox::Absent { retry_at: None },
            lives: BTreeMap::new(),
            records: Vec::new(),
            node_ips,
            start_time,
        }
    }

    /// The pod's specification; an empty one stands for a missing one.
    pub fn spec(&self) -> &PodSpec {
        static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        self.pod.spec.as_ref().unwrap_or(&EMPTY)
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or("")
    }

    /// Init containers and sidecars, in order.
    pub fn init_containers(&self) -> impl Iterator<Item = (Kind, &Container)> {
        self.spec().init_containers.iter().flatten().map(|c| (init_kind(c), c))
    }

    /// Main containers.
    pub fn main_containers(&self) -> impl Iterator<Item = &Container> {
        self.spec().containers.iter()
    }

    /// All containers.
    pub fn containers(&self) -> impl Iterator<Item = (Kind, &Container)> {
        self.init_containers().chain(self.main_containers().map(|c| (Kind::Main, c)))
    }

    /// Records of a name, oldest first; a failed start counts as one.
    pub fn history(&self, name: &str) -> Vec<&Record> {
        let mut all: Vec<&Record> = self.records.iter().filter(|r| r.name == name).collect();
        if let Some(failed) = self.lives.get(name).and_then(|l| l.failed_start.as_ref()) {
            all.retain(|r| r.id != failed.id);
            all.push(failed);
        }
        all.sort_by_key(|r| r.attempt);
        all
    }

    /// The newest record of a name.
    pub fn current(&self, name: &str) -> Option<&Record> {
        self.history(name).last().copied()
    }

    /// What is remembered of a name.
    pub fn life(&self, name: &str) -> Option<&Life> {
        self.lives.get(name)
    }

    /// As [`Self::life`], to change it.
    pub fn life_mut(&mut self, name: &str) -> &mut Life {
        self.lives.entry(name.to_owned()).or_default()
    }

    /// What is under way on a container.
    pub fn op(&self, name: &str) -> Option<Op> {
        self.life(name).and_then(|l| l.op)
    }

    /// Something is under way on any container.
    pub fn busy(&self) -> bool {
        self.lives.values().any(|l| l.op.is_some())
    }

    /// The container's status in the API object.
    pub fn api_status(&self, name: &str) -> Option<&ContainerStatus> {
        let status = self.pod.status.as_ref()?;
        let all = status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
        all.into_iter().find(|s| s.name == name)
    }

    /// `deletionTimestamp` is set, or the pod is gone altogether.
    pub fn terminating(&self) -> bool {
        self.vanished || self.pod.metadata.deletion_timestamp.is_some()
    }

    /// The API already says `Succeeded` or `Failed`: never to run again.
    pub fn finished_in_api(&self) -> bool {
        causeway_api::pod::is_finished(&self.pod)
    }

    /// `restartPolicy`, `Always` by default.
    pub fn restart_policy(&self) -> &str {
        self.spec().restart_policy.as_deref().unwrap_or("Always")
    }

    /// Whether a container that ended with `code` is started again.
    pub fn restarts(&self, kind: Kind, code: i32) -> bool {
        match (kind, self.restart_policy()) {
            (Kind::Sidecar, _) => true,
            (Kind::Init, "Never") => false,
            (Kind::Init, _) => code != 0,
            (Kind::Main, "Never") => false,
            (Kind::Main, "OnFailure") => code != 0,
            (Kind::Main, _) => true,
        }
    }

    /// Seconds between the stop signal and the kill.
    pub fn grace(&self) -> SignedDuration {
        let meta = self.pod.metadata.deletion_grace_period_seconds;
        let seconds = match (self.vanished, meta) {
            (true, None) => 2,
            (_, Some(s)) => s,
            (false, None) => self.spec().termination_grace_period_seconds.unwrap_or(30),
        };
        // A point in time has to hold it, however long a pod asks for.
        SignedDuration::from_secs(seconds.clamp(0, i64::from(i32::MAX)))
    }

    /// When `activeDeadlineSeconds` is over.
    pub fn deadline(&self) -> Option<Timestamp> {
        let seconds = self.spec().active_deadline_seconds?;
        self.start_time.checked_add(SignedDuration::from_secs(seconds)).ok()
    }

    /// A main container was created: initialisation is over.
    pub fn main_begun(&self) -> bool {
        self.main_containers().any(|c| self.current(&c.name).is_some())
    }

    /// An init container has failed for good.
    pub fn init_failed(&self) -> bool {
        self.init_containers().filter(|(k, _)| *k == Kind::Init).any(|(kind, c)| {
            self.current(&c.name)
                .and_then(Record::exit)
                .is_some_and(|(code, _)| code != 0 && !self.restarts(kind, code))
        })
    }

    /// All init containers have ended well and all sidecars have started.
    pub fn initialized(&self) -> bool {
        self.main_begun()
            || self.init_containers().all(|(kind, c)| match kind {
                Kind::Sidecar => {
                    self.current(&c.name).is_some_and(Record::running) && self.life(&c.name).is_some_and(|l| l.started)
                }
                _ => self.current(&c.name).and_then(Record::exit).is_some_and(|(code, _)| code == 0),
            })
    }

    /// Every main container has ended and none will be started again, or an init container failed for good.
    pub fn work_done(&self) -> bool {
        self.init_failed()
            || (self.main_begun()
                && self.main_containers().all(|c| {
                    self.op(&c.name).is_none()
                        && self
                            .current(&c.name)
                            .and_then(Record::exit)
                            .is_some_and(|(code, _)| !self.restarts(Kind::Main, code))
                }))
    }

    /// No container runs and nothing is under way.
    pub fn quiet(&self) -> bool {
        !self.busy() && !self.records.iter().any(Record::running)
    }

    /// The number the next container of a name gets.
    pub fn next_attempt(&self, name: &str) -> u32 {
        if let Some(record) = self.current(name) {
            return record.attempt + 1;
        }
        // The runtime has lost it (a new data folder, a reboot): go on counting from what the API remembers.
        self.api_status(name)
            .filter(|s| s.container_id.is_some())
            .and_then(|s| u32::try_from(s.restart_count).ok())
            .map_or(0, |n| n + 1)
    }
}

/// Whether an init container is a sidecar.
pub fn init_kind(container: &Container) -> Kind {
    if container.restart_policy.as_deref() == Some("Always") { Kind::Sidecar } else { Kind::Init }
}

/// Times in the API have whole seconds.
pub fn whole_seconds(t: Timestamp) -> Timestamp {
    Timestamp::from_second(t.as_second()).unwrap_or(t)
}
