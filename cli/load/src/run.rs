//! A run: connections are opened, requests become due, workers send them, all is counted. Out: a [`Report`], and while it
//! lasts, [`Progress`] for who watches.

use crate::client::{Connection, Shared};
use crate::pace::{Pace, Stop};
use crate::plan::Plan;
use crate::report::Report;
use crate::stats::{Failure, Sample, Stats};
use anyhow::{Context, Result};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// How often progress is told.
const TELL: Duration = Duration::from_millis(500);
/// Connections opened at a time, at the beginning.
const OPENING: usize = 64;
/// After a failure to connect, so that a server that is gone does not cost a core.
const PAUSE: Duration = Duration::from_millis(10);

/// How a run is going.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// How much of its time is over, from 0 to 1.
    pub part: f64,
    /// Still warming up.
    pub is_warmup: bool,
    /// Answers so far.
    pub answered: u64,
    /// Failures so far.
    pub failed: u64,
    /// Answers a second since the last time.
    pub rate: f64,
    /// The latency that half of the answers so far did not exceed, in microseconds.
    pub p50: u64,
    /// The same of 99 of a hundred.
    pub p99: u64,
}

/// What the workers share.
struct Run {
    /// Requests are counted from here.
    begin: Instant,
    /// None become due from here.
    end: Instant,
    pace: Option<Pace>,
    /// The first request's number that counts.
    counted: u64,
    total: u64,
    taken: AtomicU64,
    permits: Arc<Semaphore>,
    timeout: Duration,
}

/// Runs a load to its end. `tell` is called about twice a second. Fails only where nothing could be sent at all.
pub async fn run(plan: Plan, mut tell: impl FnMut(Progress)) -> Result<Report> {
    plan.check()?;
    let target = plan.target().await?;
    let shared = Arc::new(Shared::new(plan.clone(), target)?);
    let connections: Vec<_> = (0..plan.connections).map(|_| Arc::new(Connection::new(shared.clone()))).collect();
    if !plan.fresh {
        open(&connections).await.with_context(|| format!("connecting to {}", plan.url))?;
    }
    let first = Instant::now() + Duration::from_millis(20);
    let begin = first + plan.warmup;
    let pace = plan.rate.map(|rate| Pace { rate });
    let run = Arc::new(Run {
        begin,
        end: begin + plan.duration,
        pace,
        counted: pace.filter(|_| !plan.warmup.is_zero()).map_or(0, |p| p.within(plan.warmup)),
        total: pace.map_or(u64::MAX, |p| p.within(plan.warmup + plan.duration)),
        taken: AtomicU64::new(0),
        permits: Arc::new(Semaphore::new(0)),
        timeout: plan.timeout,
    });
    let stop = Arc::new(Stop::default());
    let pacing = pace.map(|pace| {
        let (run, stop) = (run.clone(), stop.clone());
        std::thread::spawn(move || pace.follow(first, run.total, &run.permits, &stop))
    });
    let mut stats = Vec::new();
    let mut workers = JoinSet::new();
    for connection in &connections {
        for _ in 0..plan.streams {
            let own = Arc::new(Mutex::new(Stats::new(plan.duration)));
            stats.push(own.clone());
            workers.spawn(worker(run.clone(), connection.clone(), own, first));
        }
    }
    let deadline = run.end + plan.timeout;
    watch(&run, &mut workers, &stats, deadline, &mut tell).await;
    stop.set();
    workers.shutdown().await;
    if let Some(pacing) = pacing {
        // It looks at the flag at least ten times a second.
        drop(tokio::task::spawn_blocking(move || pacing.join()).await);
    }
    let mut all = together(&stats, plan.duration);
    if pace.is_some() {
        let sent = all.answered() + all.failed();
        for n in sent..(run.total - run.counted) {
            let due = pace.map(|p| p.due(n)).unwrap_or_default();
            all.add(Sample { due, latency: plan.timeout, outcome: Err(Failure::NotSent) });
        }
    }
    Ok(Report::new(plan, all))
}

async fn open(connections: &[Arc<Connection>]) -> Result<()> {
    for some in connections.chunks(OPENING) {
        let mut opening = JoinSet::new();
        for connection in some {
            let connection = connection.clone();
            opening.spawn(async move { connection.open().await });
        }
        while let Some(opened) = opening.join_next().await {
            opened??;
        }
    }
    Ok(())
}

/// Tells of progress until all workers are done, or time is up.
async fn watch(
    run: &Run,
    workers: &mut JoinSet<()>,
    stats: &[Arc<Mutex<Stats>>],
    deadline: Instant,
    tell: &mut impl FnMut(Progress),
) {
    let (mut last, mut before) = (Instant::now(), 0);
    let mut tick = tokio::time::interval(TELL);
    loop {
        tokio::select! {
            done = workers.join_next() => if done.is_none() { return },
            () = tokio::time::sleep_until(deadline.into()) => return,
            _ = tick.tick() => {
                let now = Instant::now();
                let whole = run.end - run.begin;
                let all = together(stats, whole);
                let passed = now.saturating_duration_since(run.begin);
                tell(Progress {
                    part: (passed.as_secs_f64() / whole.as_secs_f64()).min(1.0),
                    is_warmup: now < run.begin,
                    answered: all.answered(),
                    failed: all.failed(),
                    rate: (all.answered() - before) as f64 / now.duration_since(last).as_secs_f64().max(1e-3),
                    p50: all.percentile(50.0),
                    p99: all.percentile(99.0),
                });
                (last, before) = (now, all.answered());
            }
        }
    }
}

fn together(stats: &[Arc<Mutex<Stats>>], duration: Duration) -> Stats {
    let mut all = Stats::new(duration);
    for own in stats {
        all.merge(&own.lock());
    }
    all
}

/// Sends one request after another, each when it is due or, when that has passed, at once.
async fn worker(run: Arc<Run>, connection: Arc<Connection>, stats: Arc<Mutex<Stats>>, first: Instant) {
    tokio::time::sleep_until(first.into()).await;
    loop {
        let (number, due) = match run.pace {
            None => {
                let now = Instant::now();
                if now >= run.end {
                    return;
                }
                (if now < run.begin { 0 } else { u64::MAX }, now)
            }
            Some(pace) => {
                // Nobody closes it: who waits in vain is ended from outside.
                let Ok(permit) = run.permits.acquire().await else { return };
                permit.forget();
                let number = run.taken.fetch_add(1, Ordering::Relaxed);
                (number, first + pace.due(number))
            }
        };
        let outcome = match tokio::time::timeout_at((due + run.timeout).into(), connection.ask()).await {
            Ok(outcome) => outcome,
            Err(_) => {
                connection.forget().await;
                Err(Failure::Timeout)
            }
        };
        let counts = if run.pace.is_some() { number >= run.counted } else { number == u64::MAX };
        if counts {
            let sample = Sample { due: due.saturating_duration_since(run.begin), latency: due.elapsed(), outcome };
            stats.lock().add(sample);
        }
        if outcome == Err(Failure::Connect) {
            tokio::time::sleep(PAUSE).await;
        }
        if run.pace.is_some() && number + 1 >= run.total {
            // The last one: the others wait for requests that never come.
            run.permits.close();
        }
    }
}
