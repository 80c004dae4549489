//! The process that drives a subject: `bench-store serve NAME FOLDER PORT`.
//!
//! In: commands on standard input, one a line as JSON. Out: an answer each, likewise. The embedded engines run in this
//! process, so that their memory and CPU time are its own but for what the load itself takes; etcd is a process beside it.

use crate::bytes_of::Values;
use crate::stats::percentile;
use crate::subject::{self, Subject};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Where all keys are.
pub const PREFIX: &str = "/registry/pods/";

/// What the process is asked for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(tag = "do")]
pub enum Command {
    /// Creates this many keys.
    Fill { count: usize, bytes: usize },
    /// Creates keys for a time.
    Write { writers: usize, seconds: f64, bytes: usize },
    /// Updates a set of keys over and over until so many MiB are written.
    Churn { keys: usize, bytes: usize, mib: usize },
    /// Reads the first page of all keys, again and again.
    Page { limit: usize, times: usize },
    /// Creates keys, and updates each of them every so many seconds, spread evenly.
    Renew { leases: usize, bytes: usize, every: f64, seconds: f64 },
    /// Ends in order.
    Close,
}

/// Writers of what is only filled in.
const MANY: usize = 128;

/// Runs until told to end.
pub fn run(args: &[String]) -> Result<()> {
    let [name, dir, port] = args else { bail!("serve NAME FOLDER PORT") };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut subject = Some(runtime.block_on(subject::open(name, Path::new(dir), port.parse()?))?);
    say(&json!({}))?;
    for line in std::io::stdin().lock().lines() {
        let command: Command = serde_json::from_str(&line?)?;
        if matches!(command, Command::Close) {
            subject = None;
            say(&json!({}))?;
            break;
        }
        let subject = subject.clone().context("it is closed")?;
        say(&runtime.block_on(answer(subject, command))?)?;
    }
    drop(subject);
    Ok(())
}

fn say(answer: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{answer}")?;
    Ok(out.flush()?)
}

async fn answer(subject: Arc<dyn Subject>, command: Command) -> Result<Value> {
    match command {
        Command::Fill { count, bytes } => fill(subject, count, bytes).await,
        Command::Write { writers, seconds, bytes } => write(subject, writers, seconds, bytes).await,
        Command::Churn { keys, bytes, mib } => churn(subject, keys, bytes, mib).await,
        Command::Page { limit, times } => page(subject, limit, times).await,
        Command::Renew { leases, bytes, every, seconds } => renew(subject, leases, bytes, every, seconds).await,
        Command::Close => Ok(json!({})),
    }
}

/// Runs tasks side by side and puts their latencies together.
async fn side_by_side<F>(tasks: impl Iterator<Item = F>) -> Result<Vec<f64>>
where
    F: Future<Output = Result<Vec<f64>>> + Send + 'static,
{
    let mut all = Vec::new();
    for task in tasks.map(tokio::spawn).collect::<Vec<_>>() {
        all.extend(task.await??);
    }
    Ok(all)
}

fn micros(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1e6
}

fn told(samples: &[f64], elapsed: Duration) -> Value {
    json!({
        "n": samples.len(),
        "seconds": elapsed.as_secs_f64(),
        "perSecond": samples.len() as f64 / elapsed.as_secs_f64(),
        "p50": percentile(samples, 0.5),
        "p99": percentile(samples, 0.99),
    })
}

fn key(number: usize) -> String {
    format!("{PREFIX}namespace-{:02}/pod-{number:08}", number % 50)
}

async fn fill(subject: Arc<dyn Subject>, count: usize, bytes: usize) -> Result<Value> {
    let (next, values, begin) = (Arc::new(AtomicUsize::new(0)), Values::of(bytes), Instant::now());
    let samples = side_by_side((0..MANY).map(|_| {
        let (subject, next, values) = (subject.clone(), next.clone(), values.clone());
        async move {
            let mut samples = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(samples);
                }
                let begin = Instant::now();
                subject.create(&key(number), values.get(number)).await?;
                samples.push(micros(begin));
            }
        }
    }));
    Ok(told(&samples.await?, begin.elapsed()))
}

async fn write(subject: Arc<dyn Subject>, writers: usize, seconds: f64, bytes: usize) -> Result<Value> {
    let (values, begin) = (Values::of(bytes), Instant::now());
    let end = begin + Duration::from_secs_f64(seconds);
    let samples = side_by_side((0..writers).map(|writer| {
        let (subject, values) = (subject.clone(), values.clone());
        async move {
            let mut samples = Vec::new();
            while Instant::now() < end {
                let number = writer * 10_000_000 + samples.len();
                let begin = Instant::now();
                subject.create(&key(number), values.get(number)).await?;
                samples.push(micros(begin));
            }
            Ok(samples)
        }
    }));
    Ok(told(&samples.await?, begin.elapsed()))
}

async fn churn(subject: Arc<dyn Subject>, keys: usize, bytes: usize, mib: usize) -> Result<Value> {
    let (values, begin, each) = (Values::of(bytes), Instant::now(), (mib << 20) / bytes / keys);
    let samples = side_by_side((0..MANY).map(|writer| {
        let (subject, values) = (subject.clone(), values.clone());
        async move {
            let mine: Vec<usize> = (writer..keys).step_by(MANY).collect();
            let (mut revisions, mut samples) = (Vec::new(), Vec::new());
            for number in &mine {
                revisions.push(subject.create(&key(*number), values.get(*number)).await?);
            }
            for turn in 1..each {
                for (number, revision) in mine.iter().zip(&mut revisions) {
                    let begin = Instant::now();
                    *revision = subject.update(&key(*number), values.get(number + turn), *revision).await?;
                    samples.push(micros(begin));
                }
            }
            Ok(samples)
        }
    }));
    Ok(told(&samples.await?, begin.elapsed()))
}

async fn page(subject: Arc<dyn Subject>, limit: usize, times: usize) -> Result<Value> {
    let (mut samples, mut found) = (Vec::new(), (0, 0));
    let begin = Instant::now();
    for _ in 0..times {
        let begin = Instant::now();
        found = subject.page(PREFIX, limit).await?;
        samples.push(micros(begin));
    }
    let mut answer = told(&samples, begin.elapsed());
    answer["items"] = found.0.into();
    answer["remaining"] = found.1.into();
    Ok(answer)
}

async fn renew(subject: Arc<dyn Subject>, leases: usize, bytes: usize, every: f64, seconds: f64) -> Result<Value> {
    const TASKS: usize = 50;
    let (values, begin) = (Values::of(bytes), tokio::time::Instant::now());
    let samples = side_by_side((0..TASKS).map(|task| {
        let (subject, values) = (subject.clone(), values.clone());
        async move {
            let mine: Vec<usize> = (task..leases).step_by(TASKS).collect();
            let (mut revisions, mut samples) = (vec![0; mine.len()], Vec::new());
            for turn in 0.. {
                for (number, revision) in mine.iter().zip(&mut revisions) {
                    let due = (turn as f64 + *number as f64 / leases as f64) * every;
                    if due >= seconds {
                        return Ok(samples);
                    }
                    let due = begin + Duration::from_secs_f64(due);
                    tokio::time::sleep_until(due).await;
                    let value = values.get(number + turn * leases);
                    *revision = match *revision {
                        0 => subject.create(&key(*number), value).await?,
                        at => subject.update(&key(*number), value, at).await?,
                    };
                    samples.push(due.elapsed().as_secs_f64() * 1e6);
                }
            }
            Ok(samples)
        }
    }));
    Ok(told(&samples.await?, begin.elapsed()))
}
