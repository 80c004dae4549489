//! Probes of one running container: startup first, then liveness and readiness side by side. In: the container's
//! specification. Out: verdicts in the pod worker's mailbox, the moment they are reached.

use crate::context::Context;
use crate::inbox::{Inbox, Report};
use crate::model::Unhealthy;
use crate::net;
use causeway_api::events::EventType;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};

/// A container that is to be probed.
#[derive(Clone)]
pub struct Target {
    /// The pod, for events.
    pub pod: Arc<Pod>,
    /// Its specification.
    pub container: Container,
    /// The runtime's id.
    pub id: String,
    /// Where HTTP and TCP probes go.
    pub ip: Option<IpAddr>,
    /// When it was started.
    pub started_at: Timestamp,
    /// The startup probe has succeeded in an earlier run.
    pub started: bool,
}

/// Probes until dropped.
pub async fn run(ctx: Arc<Context>, inbox: Arc<Inbox>, target: Target) {
    if let Some(probe) = target.container.startup_probe.clone().filter(|_| !target.started)
        && !startup(&ctx, &inbox, &target, &probe).await
    {
        return;
    }
    let (live, ready) = (target.container.liveness_probe.clone(), target.container.readiness_probe.clone());
    tokio::join!(
        async {
            if let Some(probe) = live {
                liveness(&ctx, &inbox, &target, &probe).await;
            }
        },
        async {
            if let Some(probe) = ready {
                readiness(&ctx, &inbox, &target, &probe).await;
            }
        }
    );
}

/// `true` when it succeeded; `false` when it failed for good.
async fn startup(ctx: &Context, inbox: &Inbox, t: &Target, probe: &Probe) -> bool {
    let mut rounds = Rounds::new(t, probe);
    let mut count = Count::new(probe);
    loop {
        rounds.next().await;
        match count.add(attempt(ctx, t, probe, "Startup").await) {
            Some(true) => {
                inbox.report(Report::Started { id: t.id.clone() });
                return true;
            }
            Some(false) => {
                kill(ctx, inbox, t, probe, "startup");
                return false;
            }
            None => {}
        }
    }
}

async fn liveness(ctx: &Context, inbox: &Inbox, t: &Target, probe: &Probe) {
    let mut rounds = Rounds::new(t, probe);
    let mut count = Count::new(probe);
    loop {
        rounds.next().await;
        if count.add(attempt(ctx, t, probe, "Liveness").await) == Some(false) {
            return kill(ctx, inbox, t, probe, "liveness");
        }
    }
}

fn kill(ctx: &Context, inbox: &Inbox, t: &Target, probe: &Probe, what: &str) {
    ctx.metrics.probe_kills.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let message = format!("Container {} failed {what} probe, will be restarted", t.container.name);
    let unhealthy = Unhealthy { message, grace: probe.termination_grace_period_seconds };
    inbox.report(Report::Unhealthy { id: t.id.clone(), unhealthy });
}

async fn readiness(ctx: &Context, inbox: &Inbox, t: &Target, probe: &Probe) {
    let mut rounds = Rounds::new(t, probe);
    let mut count = Count::new(probe);
    let mut told = None;
    loop {
        rounds.next().await;
        if let Some(ready) = count.add(attempt(ctx, t, probe, "Readiness").await)
            && told != Some(ready)
        {
            told = Some(ready);
            inbox.report(Report::Ready { id: t.id.clone(), ready });
        }
    }
}

/// When the rounds are: after the initial delay from the container's start, then each period.
struct Rounds {
    next: Instant,
    period: Duration,
}

impl Rounds {
    fn new(t: &Target, probe: &Probe) -> Self {
        let delay = seconds(probe.initial_delay_seconds, 0);
        let age = Duration::try_from(Timestamp::now().duration_since(t.started_at)).unwrap_or_default();
        Self { next: Instant::now() + delay.saturating_sub(age), period: seconds(probe.period_seconds, 10) }
    }

    async fn next(&mut self) {
        sleep_until(self.next).await;
        // A slow answer must not be followed by a burst of rounds that were missed.
        self.next = (self.next + self.period).max(Instant::now());
    }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    let given = value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0);
    Duration::from_secs(given.unwrap_or(default))
}

/// Thresholds: a verdict is reached after so many results of one kind in a row.
#[derive(Debug)]
struct Count {
    success: u32,
    failure: u32,
    last: Option<bool>,
    run: u32,
}

impl Count {
    fn new(probe: &Probe) -> Self {
        let least =
            |v: Option<i32>, default| v.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default);
        Self {
            success: least(probe.success_threshold, 1),
            failure: least(probe.failure_threshold, 3),
            last: None,
            run: 0,
        }
    }

    fn add(&mut self, ok: bool) -> Option<bool> {
        self.run = if self.last == Some(ok) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(ok);
        (self.run >= if ok { self.success } else { self.failure }).then_some(ok)
    }
}

async fn attempt(ctx: &Context, t: &Target, probe: &Probe, what: &str) -> bool {
    match once(ctx, t, probe).await {
        Ok(()) => true,
        Err(text) => {
            let message = format!("{what} probe failed: {text}");
            ctx.container_event(&t.pod, &t.container.name, EventType::Warning, "Unhealthy", message);
            false
        }
    }
}

async fn once(ctx: &Context, t: &Target, probe: &Probe) -> Result<(), String> {
    let limit = seconds(probe.timeout_seconds, 1);
    let host = |given: &Option<String>| {
        given.clone().filter(|h| !h.is_empty()).or_else(|| t.ip.map(|ip| ip.to_string())).unwrap_or_default()
    };
    let late = |_| "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned();
    if let Some(action) = &probe.http_get {
        let (code, _) = timeout(limit, net::http(action, &t.container, t.ip)).await.map_err(late)??;
        return if (200..400).contains(&code) {
            Ok(())
        } else {
            Err(format!("HTTP probe failed with statuscode: {code}"))
        };
    }
    if let Some(action) = &probe.tcp_socket {
        let (host, port) = (host(&action.host), net::port(&action.port, &t.container)?);
        return timeout(limit, net::tcp(&host, port))
            .await
            .map_err(|_| format!("dial tcp {host}:{port}: i/o timeout"))?;
    }
    if let Some(action) = &probe.grpc {
        let port = u16::try_from(action.port).map_err(|_| format!("invalid port: {}", action.port))?;
        let check = crate::grpc::check(t.ip, port, action.service.as_deref().unwrap_or(""));
        return timeout(limit, check).await.map_err(|_| "timeout: health rpc did not complete".to_owned())?;
    }
    if let Some(action) = &probe.exec {
        let command = action.command.clone().unwrap_or_default();
        let out = ctx.runtime.exec_sync(&t.id, &command, limit).await.map_err(|e| e.to_string())?;
        return match out.code {
            Some(0) => Ok(()),
            Some(_) => Err(out.output),
            None => Err(format!("command timed out: {:?} timed out after {}s", command.join(" "), limit.as_secs())),
        };
    }
    Err("missing probe handler".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut c = Count::new(&probe);
        let seen: Vec<_> = [true, true, false, false, true, false, false, false].map(|ok| c.add(ok)).into();
        assert_eq!(seen, [None, Some(true), None, None, None, None, None, Some(false)]);
    }
}
