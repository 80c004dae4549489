//! The report: from what is known about a pod to its `status`. Pure. Times of transitions are kept from the status
//! before, so that an unchanged pod gives an unchanged status.

use crate::backoff::go_duration;
use crate::model::{Kind, PodModel, Record, Sandbox, Waiting};
use crate::names::format_pod;
use crate::resources;
use causeway_runtime::ContainerState as Run;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::net::IpAddr;

/// The condition types a kubelet writes.
pub const OWN_CONDITIONS: [&str; 4] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"];

/// Computes the status; `before` is the last one known (from the API, or written by us).
pub fn status(m: &PodModel, before: &PodStatus, now: Timestamp) -> PodStatus {
    let init: Vec<_> = m.init_containers().map(|(k, c)| container_status(m, k, c, now)).collect();
    let main: Vec<_> = m.main_containers().map(|c| container_status(m, Kind::Main, c, now)).collect();
    let phase = phase(m, before, &main);
    let ips = pod_ips(m, before);
    let mut s = PodStatus {
        phase: Some(phase.to_owned()),
        reason: m.failure.as_ref().map(|f| f.reason.clone()).or_else(|| before.reason.clone()),
        message: m.failure.as_ref().map(|f| f.message.clone()).or_else(|| before.message.clone()),
        start_time: Some(Time(m.start_time)),
        qos_class: Some(resources::qos_class(m.spec()).to_owned()),
        host_ip: m.node_ips.first().map(IpAddr::to_string),
        host_ips: Some(m.node_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
        observed_generation: m.pod.metadata.generation,
        nominated_node_name: before.nominated_node_name.clone(),
        ..PodStatus::default()
    };
    s.conditions = Some(conditions(m, phase, &init, &main, before, now));
    s.init_container_statuses = (!init.is_empty()).then_some(init);
    s.container_statuses = (!main.is_empty()).then_some(main);
    s
}

fn pod_ips(m: &PodModel, before: &PodStatus) -> Vec<String> {
    let known = match &m.sandbox {
        Sandbox::Ready(ips) | Sandbox::Gone(ips) => ips.iter().map(IpAddr::to_string).collect(),
        _ => Vec::new(),
    };
    if known.is_empty() {
        return before.pod_ips.iter().flatten().map(|p| p.ip.clone()).collect();
    }
    known
}

fn phase(m: &PodModel, before: &PodStatus, main: &[ContainerStatus]) -> &'static str {
    match before.phase.as_deref() {
        Some("Succeeded") => return "Succeeded",
        Some("Failed") => return "Failed",
        _ => {}
    }
    let ended = m.quiet();
    if ended && (m.failure.is_some() || m.init_failed()) {
        return "Failed";
    }
    let terminated = |s: &ContainerStatus| s.state.as_ref().and_then(|s| s.terminated.as_ref().map(|t| t.exit_code));
    let codes: Vec<i32> = main.iter().filter_map(terminated).collect();
    let all = !main.is_empty() && codes.len() == main.len();
    if all && ended && (m.work_done() || m.terminating()) {
        return if codes.iter().all(|c| *c == 0) { "Succeeded" } else { "Failed" };
    }
    if !m.initialized() {
        return "Pending";
    }
    let ran = |s: &ContainerStatus| {
        let state = s.state.as_ref();
        state.is_some_and(|s| s.running.is_some() || s.terminated.is_some())
            || s.last_state.as_ref().is_some_and(|l| l.terminated.is_some())
    };
    if main.iter().all(ran) { "Running" } else { "Pending" }
}

/// Whether a container that ended is waiting to be started again at `now`, and since which delay.
fn crash_loop(m: &PodModel, kind: Kind, record: &Record, now: Timestamp) -> Option<String> {
    let (code, finished) = record.exit()?;
    if m.terminating() || m.failure.is_some() || !m.restarts(kind, code) {
        return None;
    }
    // While the next one is being started the back-off counts for the one after it.
    let life = m.life(&record.name).filter(|l| l.op.is_none())?;
    (life.backoff.ready_at(finished) > now).then(|| {
        let delay = go_duration(life.backoff.delay());
        format!("back-off {delay} restarting failed container={} pod={}", record.name, format_pod(&m.pod))
    })
}

/// The containers that entered a crash loop's back-off between two reports: each is worth one event.
pub fn begun_back_offs(last: &PodStatus, next: &PodStatus) -> Vec<String> {
    let waits = |status: &PodStatus| -> Vec<(String, i32)> {
        let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        let waits = all.filter(|c| {
            let waiting = c.state.as_ref().and_then(|s| s.waiting.as_ref());
            waiting.is_some_and(|w| w.reason.as_deref() == Some("CrashLoopBackOff"))
        });
        waits.map(|c| (c.name.clone(), c.restart_count)).collect()
    };
    let before = waits(last);
    waits(next).into_iter().filter(|w| !before.contains(w)).map(|(name, _)| name).collect()
}

fn container_status(m: &PodModel, kind: Kind, c: &Container, now: Timestamp) -> ContainerStatus {
    let history = m.history(&c.name);
    let current = history.last().copied();
    let previous = history.len().checked_sub(2).and_then(|i| history.get(i)).copied();
    let life = m.life(&c.name);
    let Some(record) = current else { return unborn(m, kind, c) };
    let running = record.running();
    let waiting = life.and_then(|l| l.waiting.clone()).filter(|_| !running && !m.terminating());
    let crash =
        crash_loop(m, kind, record, now).map(|message| Waiting { reason: "CrashLoopBackOff".to_owned(), message });
    let (state, last) = match (&record.state, waiting.or(crash)) {
        (Run::Running { .. } | Run::Created, None) | (Run::Running { .. }, Some(_)) => {
            (run_state(m, c, record), previous.and_then(terminated))
        }
        (Run::Created, Some(w)) => (waiting_state(w), previous.and_then(terminated)),
        (Run::Exited { .. }, Some(w)) => (waiting_state(w), terminated(record)),
        (Run::Exited { .. }, None) => (terminated(record).unwrap_or_default(), previous.and_then(terminated)),
    };
    let ready = match kind {
        Kind::Init => record.exit().is_some_and(|(code, _)| code == 0),
        _ => running && life.is_some_and(|l| l.ready && l.started),
    };
    ContainerStatus {
        name: c.name.clone(),
        container_id: Some(format!("containerd://{}", record.id)),
        image: if record.image.is_empty() { c.image.clone().unwrap_or_default() } else { record.image.clone() },
        image_id: record.image_id.clone(),
        restart_count: i32::try_from(record.attempt).unwrap_or(i32::MAX),
        ready,
        started: Some(running && (kind == Kind::Init || life.is_some_and(|l| l.started))),
        last_state: Some(last.unwrap_or_default()),
        state: Some(state),
        ..ContainerStatus::default()
    }
}

/// The status of a container that the runtime does not know.
fn unborn(m: &PodModel, kind: Kind, c: &Container) -> ContainerStatus {
    // It ended before and was cleaned up, or the runtime lost it: what the API remembers stays true.
    let old = m.api_status(&c.name).filter(|s| s.container_id.is_some());
    if let Some(old) = old {
        let mut kept = old.clone();
        if kept.state.as_ref().is_some_and(|s| s.running.is_some()) {
            kept.state = Some(lost(kept.container_id.clone()));
        }
        let over = m.terminating() || m.finished_in_api() || m.failure.is_some();
        if over || kept.state.as_ref().is_some_and(|s| s.terminated.is_some()) {
            kept.ready = kind == Kind::Init && kept.ready;
            kept.started = Some(false);
            return kept;
        }
    }
    let pending = if kind == Kind::Main && !m.initialized() || kind != Kind::Main {
        "PodInitializing"
    } else {
        "ContainerCreating"
    };
    let waiting = m.life(&c.name).and_then(|l| l.waiting.clone());
    let waiting = waiting.unwrap_or_else(|| Waiting { reason: pending.to_owned(), message: String::new() });
    ContainerStatus {
        name: c.name.clone(),
        image: c.image.clone().unwrap_or_default(),
        restart_count: old.map_or(0, |s| s.restart_count),
        started: Some(false),
        last_state: Some(old.and_then(|s| s.last_state.clone()).unwrap_or_default()),
        state: Some(waiting_state(waiting)),
        ..ContainerStatus::default()
    }
}

fn lost(container_id: Option<String>) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id,
            exit_code: 137,
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some("The container could not be located when the pod was terminated".to_owned()),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}

fn waiting_state(w: Waiting) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(w.reason),
            message: Some(w.message).filter(|m| !m.is_empty()),
        }),
        ..ContainerState::default()
    }
}

fn run_state(m: &PodModel, c: &Container, record: &Record) -> ContainerState {
    match record.state {
        Run::Running { started_at, .. } => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(time(started_at)) }),
            ..ContainerState::default()
        },
        _ => {
            let waiting = m.life(&c.name).and_then(|l| l.waiting.clone());
            let creating = Waiting { reason: "ContainerCreating".to_owned(), message: String::new() };
            waiting_state(waiting.unwrap_or(creating))
        }
    }
}

fn terminated(record: &Record) -> Option<ContainerState> {
    let Run::Exited { code, started_at, finished_at, oom_killed } = record.state else { return None };
    let reason = match (record.reason, oom_killed, code) {
        (Some(reason), _, _) => reason,
        (None, true, _) => "OOMKilled",
        (None, false, 0) => "Completed",
        (None, false, _) => "Error",
    };
    Some(ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(format!("containerd://{}", record.id)),
            exit_code: code,
            started_at: started_at.map(time),
            finished_at: Some(time(finished_at)),
            message: Some(record.message.clone()).filter(|t| !t.is_empty()),
            reason: Some(reason.to_owned()),
            signal: None,
        }),
        ..ContainerState::default()
    })
}

fn time(t: Timestamp) -> Time {
    Time(crate::model::whole_seconds(t))
}

fn conditions(
    m: &PodModel,
    phase: &str,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
    before: &PodStatus,
    now: Timestamp,
) -> Vec<PodCondition> {
    let sandbox = matches!(m.sandbox, Sandbox::Ready(_)) || m.records.iter().any(Record::running);
    let initialized = m.initialized() || phase == "Succeeded";
    let kinds: Vec<Kind> = m.init_containers().map(|(k, _)| k).collect();
    let incomplete: Vec<&str> = init
        .iter()
        .zip(&kinds)
        .filter(|(s, kind)| if **kind == Kind::Sidecar { s.started != Some(true) } else { !s.ready })
        .map(|(s, _)| s.name.as_str())
        .collect();
    let sidecars = init.iter().zip(&kinds).filter(|(_, kind)| **kind == Kind::Sidecar).map(|(s, _)| s);
    let unready: Vec<&str> = main.iter().chain(sidecars).filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    let all_ready = match phase {
        "Succeeded" => Verdict::no("PodCompleted", String::new()),
        "Failed" => Verdict::no("PodFailed", String::new()),
        _ if !initialized || !unready.is_empty() => {
            Verdict::no("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" ")))
        }
        _ => Verdict::yes(),
    };
    let gates = gates(m, before);
    let ready = if all_ready.ok && !gates.is_empty() {
        Verdict::no("ReadinessGatesNotReady", gates)
    } else {
        all_ready.clone()
    };
    let init_verdict = match (initialized, phase) {
        (true, "Succeeded") => Verdict { ok: true, reason: "PodCompleted".to_owned(), message: String::new() },
        (true, _) => Verdict::yes(),
        (false, _) => Verdict::no(
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{}]", incomplete.join(" ")),
        ),
    };
    let sandbox = Verdict { ok: sandbox, reason: String::new(), message: String::new() };
    let own = OWN_CONDITIONS.into_iter().zip([sandbox, init_verdict, ready, all_ready]);
    let mut all: Vec<PodCondition> = own.map(|(type_, v)| condition(m, type_, v, before, now)).collect();
    let foreign = before.conditions.iter().flatten();
    all.extend(foreign.filter(|c| !OWN_CONDITIONS.contains(&c.type_.as_str())).cloned());
    if !all.iter().any(|c| c.type_ == "PodScheduled") {
        all.push(condition(m, "PodScheduled", Verdict::yes(), before, now));
    }
    all
}

/// The readiness gates that are not `True`, in words; empty when all are.
fn gates(m: &PodModel, before: &PodStatus) -> String {
    let known = |t: &str| before.conditions.iter().flatten().find(|c| c.type_ == t);
    let words = m.spec().readiness_gates.iter().flatten().filter_map(|gate| match known(&gate.condition_type) {
        Some(c) if c.status == "True" => None,
        Some(c) => Some(format!(
            "the status of pod readiness gate \"{}\" is not \"True\", but {}",
            gate.condition_type, c.status
        )),
        None => {
            Some(format!("corresponding condition of pod readiness gate \"{}\" does not exist.", gate.condition_type))
        }
    });
    words.collect::<Vec<_>>().join(", ")
}

#[derive(Clone)]
struct Verdict {
    ok: bool,
    reason: String,
    message: String,
}

impl Verdict {
    fn yes() -> Self {
        Self { ok: true, reason: String::new(), message: String::new() }
    }

    fn no(reason: &str, message: String) -> Self {
        Self { ok: false, reason: reason.to_owned(), message }
    }
}

fn condition(m: &PodModel, type_: &str, v: Verdict, before: &PodStatus, now: Timestamp) -> PodCondition {
    let status = if v.ok { "True" } else { "False" };
    let old = before.conditions.iter().flatten().find(|c| c.type_ == type_ && c.status == status);
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(v.reason).filter(|r| !r.is_empty()),
        message: Some(v.message).filter(|t| !t.is_empty()),
        last_transition_time: old.and_then(|c| c.last_transition_time.clone()).or_else(|| Some(time(now))),
        last_probe_time: None,
        observed_generation: m.pod.metadata.generation,
    }
}
