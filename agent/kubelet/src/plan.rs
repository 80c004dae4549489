//! The decision: from what is known about a pod and the time to what must be done next. Pure; the worker applies it
//! and asks again after every change.

use crate::model::{Kind, Op, PodModel, Record, Sandbox};
use crate::names;
use causeway_runtime::ContainerState;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;

/// Something to do; none of them blocks another.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make folders, volumes and network.
    SetUp,
    /// Start the given attempt of a container.
    Start {
        /// The container's name.
        name: String,
        /// Its number.
        attempt: u32,
        /// When the one before ended.
        after: Option<Timestamp>,
    },
    /// Stop a running container.
    Stop {
        /// The runtime's id.
        id: String,
        /// The container's name.
        name: String,
        /// Time for preStop and the stop signal.
        grace: SignedDuration,
        /// The text of the `Killing` event; `None` for none.
        event: Option<String>,
        /// Run the preStop hook.
        hook: bool,
    },
    /// Give up a start that has not come to a running container yet.
    Cancel {
        /// The container's name.
        name: String,
    },
    /// Remove an ended container that nobody will ask for again.
    Remove {
        /// The runtime's id.
        id: String,
    },
    /// Take the network away; the containers and logs stay to be looked at.
    TearDown,
    /// Remove everything of the pod from this node, then the object from the API unless it is gone.
    Clean,
    /// The pod has run too long.
    ExceedDeadline,
}

/// What to do now, and when to ask again even if nothing happens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// To be done now.
    pub actions: Vec<Action>,
    /// To be asked again at the latest.
    pub wake: Option<Timestamp>,
}

impl Plan {
    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }
}

/// Decides.
pub fn plan(m: &PodModel, now: Timestamp) -> Plan {
    let mut p = Plan::default();
    if m.sandbox == Sandbox::Cleaned {
        return p;
    }
    if m.terminating() || m.failure.is_some() || m.finished_in_api() {
        end(m, now, &mut p);
        return p;
    }
    if let Some(deadline) = m.deadline() {
        if deadline <= now {
            p.actions.push(Action::ExceedDeadline);
            return p;
        }
        p.wake_at(deadline);
    }
    if m.work_done() {
        end(m, now, &mut p);
        return p;
    }
    match &m.sandbox {
        Sandbox::Absent { retry_at } => match retry_at.filter(|t| *t > now) {
            Some(at) => p.wake_at(at),
            None => p.actions.push(Action::SetUp),
        },
        Sandbox::Ready(_) => {
            if init(m, now, &mut p) {
                for c in m.main_containers() {
                    keep(m, Kind::Main, c, now, &mut p);
                }
            }
            prune(m, &mut p);
        }
        Sandbox::SettingUp | Sandbox::TearingDown | Sandbox::Gone(_) | Sandbox::Cleaned => {}
    }
    p
}

/// Brings init containers and sidecars forward; `true` when the main ones may run.
fn init(m: &PodModel, now: Timestamp, p: &mut Plan) -> bool {
    let begun = m.main_begun();
    for (kind, c) in m.init_containers() {
        match kind {
            Kind::Sidecar => {
                keep(m, kind, c, now, p);
                let up = m.current(&c.name).is_some_and(Record::running);
                let started = up && m.life(&c.name).is_some_and(|l| l.started);
                if !(begun || started) {
                    return false;
                }
            }
            _ if begun => {}
            _ => {
                if m.current(&c.name).and_then(Record::exit).is_some_and(|(code, _)| code == 0) {
                    continue;
                }
                keep(m, kind, c, now, p);
                return false;
            }
        }
    }
    true
}

/// Starts, restarts or stops one container as its specification wants.
fn keep(m: &PodModel, kind: Kind, c: &Container, now: Timestamp, p: &mut Plan) {
    let life = m.life(&c.name);
    if life.is_some_and(|l| l.op.is_some()) {
        return;
    }
    let Some(record) = m.current(&c.name) else {
        return start(m, c, m.next_attempt(&c.name), None, now, p);
    };
    match &record.state {
        ContainerState::Running { .. } => {
            let changed = record.hash != names::spec_hash(c);
            if let Some(bad) = life.and_then(|l| l.unhealthy.as_ref()) {
                let grace =
                    bad.grace.map_or_else(|| m.grace(), |s| SignedDuration::from_secs(s.clamp(0, i64::from(i32::MAX))));
                p.actions.push(stop(record, grace, Some(bad.message.clone())));
            } else if changed {
                let text = format!("Container {} definition changed, will be restarted", c.name);
                p.actions.push(stop(record, m.grace(), Some(text)));
            }
        }
        ContainerState::Created => start(m, c, record.attempt, None, now, p),
        ContainerState::Exited { code, finished_at, .. } => {
            if m.restarts(kind, *code) {
                start(m, c, record.attempt + 1, Some(*finished_at), now, p);
            }
        }
    }
}

fn start(m: &PodModel, c: &Container, attempt: u32, after: Option<Timestamp>, now: Timestamp, p: &mut Plan) {
    let life = m.life(&c.name);
    let restart = after.map(|t| life.map_or(t, |l| l.backoff.ready_at(t)));
    let retry = life.and_then(|l| l.retry_at);
    match restart.max(retry).filter(|t| *t > now) {
        Some(at) => p.wake_at(at),
        None => p.actions.push(Action::Start { name: c.name.clone(), attempt, after }),
    }
}

fn stop(record: &Record, grace: SignedDuration, event: Option<String>) -> Action {
    Action::Stop { id: record.id.clone(), name: record.name.clone(), grace, event, hook: true }
}

/// Ends a pod: main containers first, then sidecars in reverse order, then the sandbox.
fn end(m: &PodModel, now: Timestamp, p: &mut Plan) {
    let grace = m.grace();
    let is_sidecar = |name: &str| m.init_containers().any(|(k, c)| k == Kind::Sidecar && c.name == name);
    let mut running: Vec<&Record> = m.records.iter().filter(|r| r.running() && !is_sidecar(&r.name)).collect();
    if running.is_empty() {
        let order = |r: &&Record| m.init_containers().position(|(_, c)| c.name == r.name);
        running = m.records.iter().filter(|r| r.running()).max_by_key(order).into_iter().collect();
    }
    for record in &running {
        stop_to_end(m, record, grace, now, p);
    }
    for (name, life) in &m.lives {
        let up = m.records.iter().any(|r| r.name == *name && r.running());
        if life.op == Some(Op::Starting) && !up {
            p.actions.push(Action::Cancel { name: name.clone() });
        }
    }
    if !m.quiet() {
        return;
    }
    let here = !matches!(m.sandbox, Sandbox::SettingUp | Sandbox::TearingDown);
    if !here {
        return;
    }
    if m.terminating() {
        p.actions.push(Action::Clean);
    } else if !matches!(m.sandbox, Sandbox::Gone(_)) {
        p.actions.push(Action::TearDown);
    }
}

/// Stops a container of an ending pod, or shortens the grace of a stop that is under way.
fn stop_to_end(m: &PodModel, record: &Record, grace: SignedDuration, now: Timestamp, p: &mut Plan) {
    match m.op(&record.name) {
        None => p.actions.push(stop(record, grace, Some(format!("Stopping container {}", record.name)))),
        Some(Op::Stopping { until })
            if until > now.saturating_add(grace + SignedDuration::from_secs(1)).unwrap_or(until) =>
        {
            p.actions.push(Action::Stop {
                id: record.id.clone(),
                name: record.name.clone(),
                grace,
                event: None,
                hook: false,
            });
        }
        // A start in its postStart hook is cut off like any other running container.
        Some(Op::Starting) => p.actions.push(stop(record, grace, Some(format!("Stopping container {}", record.name)))),
        Some(Op::Stopping { .. }) => {}
    }
}

/// Keeps the newest record of a name and the one before; older ones go.
fn prune(m: &PodModel, p: &mut Plan) {
    for (_, c) in m.containers() {
        let all = m.history(&c.name);
        let keep_from = all.len().saturating_sub(2);
        for old in &all[..keep_from] {
            let known = m.records.iter().any(|r| r.id == old.id);
            if known && !old.running() {
                p.actions.push(Action::Remove { id: old.id.clone() });
            }
        }
    }
}
