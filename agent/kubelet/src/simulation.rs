//! A pod's life in a simulated node: random faults from a seed, an injected clock, invariants after every step. A
//! failure prints its seed.

use crate::images::Refused;
use crate::model::{Kind, Life, Op, PodModel, Record, Sandbox, Waiting, init_kind};
use crate::names;
use crate::plan::{Action, plan};
use crate::status::status;
use causeway_runtime::ContainerState;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use std::sync::Arc;

struct World {
    m: PodModel,
    now: Timestamp,
    rng: StdRng,
    last: PodStatus,
    pending: Vec<(Timestamp, Action)>,
    cleaned: bool,
    torn_down: bool,
    ready_seen: bool,
    users: bool,
}

fn pod(restart_policy: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 1},
        "spec": {"restartPolicy": restart_policy, "terminationGracePeriodSeconds": 5,
            "initContainers": [{"name": "i", "image": "x"}, {"name": "s", "image": "x", "restartPolicy": "Always"}],
            "containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "x"}]}}))
    .unwrap()
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let policy = ["Always", "OnFailure", "Never"][rng.random_range(0..3)];
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let m = PodModel::new(Arc::new(pod(policy)), vec!["10.0.0.1".parse().unwrap()], now);
        Self {
            m,
            now,
            rng,
            last: PodStatus::default(),
            pending: Vec::new(),
            cleaned: false,
            torn_down: false,
            ready_seen: false,
            users: true,
        }
    }

    fn kind(&self, name: &str) -> Kind {
        let init = self.m.spec().init_containers.iter().flatten().find(|c| c.name == name);
        init.map_or(Kind::Main, init_kind)
    }

    /// One turn of the worker, its operations taking random time.
    fn turn(&mut self) {
        let decided = plan(&self.m, self.now);
        for action in decided.actions {
            self.begin(action);
        }
        self.report();
        let soonest = self.pending.iter().map(|(t, _)| *t).min();
        let step = SignedDuration::from_millis(self.rng.random_range(10..3000));
        let mut next = self.now + step;
        if let Some(t) = soonest {
            next = next.min(t.max(self.now));
        }
        self.now = next.max(self.now + SignedDuration::from_millis(1));
        let due: Vec<Action> = self.pending.extract_if(.., |(t, _)| *t <= next).map(|(_, a)| a).collect();
        for action in due {
            self.complete(action);
        }
        self.chaos();
    }

    fn begin(&mut self, action: Action) {
        assert!(!self.cleaned, "nothing is done after the removal, but {action:?}");
        match &action {
            Action::SetUp => {
                assert!(matches!(self.m.sandbox, Sandbox::Absent { .. }));
                self.m.sandbox = Sandbox::SettingUp;
            }
            Action::Start { name, attempt, after } => {
                self.check_start(name, *attempt, *after);
                let life = self.m.life_mut(name);
                if let Some(after) = after.filter(|_| life.waiting.is_none()) {
                    life.backoff.step(after);
                }
                life.op = Some(Op::Starting);
                life.retry_at = None;
            }
            Action::Stop { name, grace, .. } => {
                self.pending.retain(|(_, a)| !matches!(a, Action::Start { name: n, .. } if n == name));
                let until = self.now + *grace;
                self.m.life_mut(name).op = Some(Op::Stopping { until });
            }
            Action::Cancel { name } => {
                self.pending.retain(|(_, a)| !matches!(a, Action::Start { name: n, .. } if n == name));
                self.m.life_mut(name).op = None;
                return;
            }
            Action::Remove { id } => {
                self.m.records.retain(|r| r.id != *id);
                return;
            }
            Action::TearDown | Action::Clean => {
                assert!(self.m.quiet(), "the sandbox goes last");
                self.m.sandbox = Sandbox::TearingDown;
            }
            Action::ExceedDeadline => return,
        }
        let takes = SignedDuration::from_millis(self.rng.random_range(0..4000));
        self.pending.push((self.now + takes, action));
    }

    fn check_start(&self, name: &str, attempt: u32, after: Option<Timestamp>) {
        assert!(matches!(self.m.sandbox, Sandbox::Ready(_)), "{name} starts in a sandbox");
        assert!(!self.m.terminating(), "{name} must not start while the pod ends");
        assert_eq!(self.m.op(name), None);
        if let Some(current) = self.m.current(name) {
            assert!(!current.running(), "{name} must not run twice");
            let (code, at) = current.exit().unwrap();
            assert_eq!(attempt, current.attempt + 1);
            assert_eq!(after, Some(at));
            assert!(self.m.restarts(self.kind(name), code));
            if let Some(life) = self.m.life(name) {
                assert!(life.backoff.ready_at(at) <= self.now, "{name} starts within its back-off");
            }
        }
        if self.kind(name) == Kind::Main {
            assert!(self.m.initialized(), "{name} starts after the init containers");
        }
    }

    fn complete(&mut self, action: Action) {
        match action {
            Action::SetUp => {
                self.m.sandbox = if self.rng.random_bool(0.2) {
                    Sandbox::Absent { retry_at: Some(self.now + SignedDuration::from_secs(2)) }
                } else {
                    Sandbox::Ready(vec!["10.1.0.1".parse().unwrap()])
                };
            }
            Action::Start { name, attempt, .. } => self.started(&name, attempt),
            Action::Stop { name, id, .. } => {
                self.m.life_mut(&name).op = None;
                self.m.life_mut(&name).unhealthy = None;
                self.exit(&id, 143);
            }
            Action::TearDown => {
                self.torn_down = true;
                self.m.sandbox = Sandbox::Gone(Vec::new());
            }
            Action::Clean => {
                self.cleaned = true;
                self.m.records.clear();
                self.m.sandbox = Sandbox::Cleaned;
            }
            Action::Remove { .. } | Action::Cancel { .. } | Action::ExceedDeadline => {}
        }
    }

    fn started(&mut self, name: &str, attempt: u32) {
        let now = self.now;
        let outcome = self.rng.random_range(0..10);
        let c = self.m.containers().find(|(_, c)| c.name == name).map(|(_, c)| c.clone()).unwrap();
        let record = |state| Record {
            id: names::container_id("u", name, attempt),
            name: name.to_owned(),
            attempt,
            hash: names::spec_hash(&c),
            image: "x".to_owned(),
            image_id: String::new(),
            state,
            message: String::new(),
            reason: None,
        };
        let failed =
            record(ContainerState::Exited { code: 128, started_at: None, finished_at: now, oom_killed: false });
        let running = record(ContainerState::Running { pid: 1, started_at: now });
        let life = self.m.life_mut(name);
        life.op = None;
        match outcome {
            0 => {
                let refused = Refused::new("ErrImagePull", "no", 0);
                life.waiting = Some(refused.waiting);
                life.retry_at = Some(now + SignedDuration::from_secs(3));
            }
            1 => {
                life.waiting = None;
                life.failed_start = Some(failed);
            }
            _ => {
                *life = Life {
                    started: true,
                    ready: true,
                    probed: running.id.clone(),
                    backoff: life.backoff,
                    ..Life::default()
                };
                self.m.records.push(running);
            }
        }
    }

    fn exit(&mut self, id: &str, code: i32) {
        let finished_at = self.now;
        for r in self.m.records.iter_mut().filter(|r| r.id == id && r.running()) {
            r.state = ContainerState::Exited { code, started_at: None, finished_at, oom_killed: false };
        }
    }

    /// Containers end, users delete.
    fn chaos(&mut self) {
        let running: Vec<(String, String)> =
            self.m.records.iter().filter(|r| r.running()).map(|r| (r.id.clone(), r.name.clone())).collect();
        for (id, name) in running {
            let likely = if self.kind(&name) == Kind::Init { 0.5 } else { 0.05 };
            if self.rng.random_bool(likely) {
                let code = if self.rng.random_bool(0.6) { 0 } else { 1 };
                self.exit(&id, code);
            }
        }
        if self.users && self.rng.random_bool(0.005) && !self.m.terminating() {
            let mut pod = (*self.m.pod).clone();
            pod.metadata.deletion_timestamp = Some(Time(self.now));
            pod.metadata.deletion_grace_period_seconds = Some(self.rng.random_range(0..10));
            self.m.pod = Arc::new(pod);
        }
    }

    fn report(&mut self) {
        if self.cleaned || self.m.terminating() && self.m.sandbox == Sandbox::TearingDown {
            return;
        }
        let next = status(&self.m, &self.last, self.now);
        let again = status(&self.m, &next, self.now);
        assert_eq!(next, again, "a report is stable");
        let over = |s: &PodStatus| matches!(s.phase.as_deref(), Some("Succeeded" | "Failed"));
        if over(&self.last) {
            assert_eq!(self.last.phase, next.phase, "an ended pod stays ended");
        }
        if over(&next) {
            assert!(!self.m.records.iter().any(|r| r.running() && self.kind(&r.name) != Kind::Sidecar));
        }
        let ready = next.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        if ready {
            self.ready_seen = true;
            assert_eq!(next.phase.as_deref(), Some("Running"));
            for name in ["a", "b", "s"] {
                assert!(self.m.current(name).is_some_and(Record::running), "a ready pod's {name} runs");
            }
        }
        for (old, new) in self.last.container_statuses.iter().flatten().zip(next.container_statuses.iter().flatten()) {
            assert!(new.restart_count >= old.restart_count, "restarts are never uncounted");
        }
        self.last = next;
    }
}

#[test]
fn a_pod_keeps_its_promises_under_faults() {
    let (mut ready, mut cleaned, mut ended) = (0, 0, 0);
    for seed in 0..300 {
        let mut world = World::new(seed);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for turn in 0..800 {
                // Users come to rest, so that what they deleted can be gone at the end.
                world.users = turn < 500;
                world.turn();
            }
        }));
        assert!(outcome.is_ok(), "seed {seed}");
        if world.m.terminating() {
            assert!(world.cleaned, "seed {seed}: a deleted pod goes");
            cleaned += 1;
        }
        ready += usize::from(world.ready_seen);
        ended += usize::from(world.torn_down);
    }
    assert!(ready > 100 && cleaned > 100 && ended > 30, "the simulation is worth something: {ready} {cleaned} {ended}");
}

#[test]
fn a_refused_pod_is_failed_without_a_sandbox() {
    let now = Timestamp::from_second(1_700_000_000).unwrap();
    let mut m = PodModel::new(Arc::new(pod("Always")), Vec::new(), now);
    m.failure = Some(crate::model::Failure { reason: "OutOfcpu".to_owned(), message: "no".to_owned() });
    assert_eq!(plan(&m, now).actions, [Action::TearDown]);
    let s = status(&m, &PodStatus::default(), now);
    assert_eq!((s.phase.as_deref(), s.reason.as_deref()), (Some("Failed"), Some("OutOfcpu")));
}

#[test]
fn a_waiting_image_shows_and_is_retried() {
    let now = Timestamp::from_second(1_700_000_000).unwrap();
    let one: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"containers": [{"name": "a"}]}}))
    .unwrap();
    let mut m = PodModel::new(Arc::new(one), Vec::new(), now);
    m.sandbox = Sandbox::Ready(Vec::new());
    let later = now + SignedDuration::from_secs(5);
    let life = m.life_mut("a");
    life.waiting = Some(Waiting { reason: "ImagePullBackOff".to_owned(), message: "m".to_owned() });
    life.retry_at = Some(later);
    let p = plan(&m, now);
    assert!(p.actions.is_empty());
    assert_eq!(p.wake, Some(later));
    let s = status(&m, &PodStatus::default(), now);
    let state = s.container_statuses.unwrap().remove(0).state.unwrap().waiting.unwrap();
    assert_eq!(state.reason.as_deref(), Some("ImagePullBackOff"));
    assert_eq!(s.phase.as_deref(), Some("Pending"));
    assert_eq!(plan(&m, later).actions.len(), 1);
}
