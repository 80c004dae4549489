//! What room for values costs: the same job for all of [`crate::rooms`], each in a process of its own; and how long each
//! of the libraries takes to build.
//!
//! In: how many values. Out: puts and gets a second, CPU time, memory, bytes on disk. The job: batches of 1 to 16 values
//! of 1 KiB; four of five are dropped 40,000 values later, the fifth 200,000 later, so that dropping goes at the rate of
//! putting once it has begun; and as many random gets of what is there as puts. One thread.

use crate::Options;
use crate::bytes_of::{Random, Values};
use crate::process;
use crate::rooms::{self, NAMES};
use crate::session::{disk_bytes, mib};
use crate::stats::{round, spread};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SIZE: usize = 1024;
/// How many values later one is dropped: most, and some.
const SHORT: u64 = 40_000;
const LONG: u64 = 200_000;

/// Measures all rooms, in turns.
pub fn run(options: &Options) -> Result<Value> {
    let mut samples: BTreeMap<&str, BTreeMap<String, Vec<f64>>> = BTreeMap::new();
    for turn in 0..options.rounds {
        let mut names = NAMES;
        names.rotate_left(turn % NAMES.len());
        for name in names {
            let dir = tempfile::Builder::new().prefix("bench-store-").tempdir_in(&options.out)?;
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["room", name]).arg(dir.path().join("data")).arg(options.puts.to_string());
            let output = command.stderr(Stdio::inherit()).output()?;
            let figures: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{name} failed"))?;
            for (figure, value) in figures.as_object().into_iter().flatten() {
                let all = samples.entry(name).or_default().entry(figure.clone()).or_default();
                all.push(value.as_f64().unwrap_or(f64::NAN));
            }
        }
    }
    let mut told = json!({});
    for (name, figures) in &samples {
        for (figure, values) in figures {
            told[*name][figure] = spread(values);
        }
    }
    Ok(json!({"puts": options.puts, "valueBytes": SIZE, "rooms": told}))
}

/// The process of one room: `bench-store room NAME FOLDER PUTS`.
pub fn room(args: &[String]) -> Result<()> {
    let [name, dir, puts] = args else { bail!("room NAME FOLDER PUTS") };
    println!("{}", job(name, Path::new(dir), puts.parse()?)?);
    Ok(())
}

/// Values by the revision at which they are to be dropped.
struct Live {
    short: VecDeque<u64>,
    long: VecDeque<u64>,
}

impl Live {
    /// What is not wanted any more at a revision.
    fn dropped(&mut self, at: u64) -> Vec<u64> {
        let mut gone = Vec::new();
        for (queue, after) in [(&mut self.short, SHORT), (&mut self.long, LONG)] {
            while queue.front().is_some_and(|revision| revision + after <= at) {
                gone.extend(queue.pop_front());
            }
        }
        gone
    }

    fn any(&self, random: &mut Random) -> Option<u64> {
        let place = random.below(self.short.len() + self.long.len());
        self.short.get(place).or_else(|| self.long.get(place - self.short.len())).copied()
    }
}

fn job(name: &str, dir: &Path, puts: u64) -> Result<Value> {
    let mut room = rooms::open(name, dir)?;
    let (values, mut random) = (Values::of(SIZE), Random::new(3));
    let mut live = Live { short: VecDeque::new(), long: VecDeque::new() };
    let (mut putting, mut getting, mut dropping) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let (mut revision, mut most, mut looked) = (0, 0, 0);
    let begin = Instant::now();
    while revision < puts {
        let batch: Vec<_> =
            (0..=random.next() % 16).map(|i| revision + i).map(|r| (r, values.get(r as usize))).collect();
        let lent: Vec<_> = batch.iter().map(|(revision, value)| (*revision, value.as_ref())).collect();
        let begin = Instant::now();
        room.put(&lent)?;
        putting += begin.elapsed();
        for (at, _) in &batch {
            if at % 5 == 0 { live.long.push_back(*at) } else { live.short.push_back(*at) }
        }
        revision += batch.len() as u64;
        let gone = live.dropped(revision);
        let begin = Instant::now();
        if !gone.is_empty() {
            room.remove(&gone)?;
        }
        dropping += begin.elapsed();
        let begin = Instant::now();
        for _ in 0..batch.len() {
            let Some(wanted) = live.any(&mut random) else { break };
            let found = room.get(wanted)?.with_context(|| format!("the value of {wanted} is gone"))?;
            ensure!(found.len() == SIZE, "the value of {wanted} has {} bytes", found.len());
        }
        getting += begin.elapsed();
        if revision - looked >= 10_000 {
            looked = revision;
            most = most.max(disk_bytes(dir));
        }
    }
    let took = begin.elapsed();
    let pid = i32::try_from(std::process::id())?;
    let (cpu, memory, peak) =
        (process::cpu_seconds(pid)?, process::memory(pid, "VmRSS")?, process::memory(pid, "VmHWM")?);
    let left = live.short.len() + live.long.len();
    let rate = |time: Duration| revision as f64 / time.as_secs_f64();
    let disk = disk_bytes(dir);
    let begin = Instant::now();
    drop(room);
    Ok(json!({
        "putsPerSecond": rate(putting), "dropsPerSecond": (revision as f64 - left as f64) / dropping.as_secs_f64(),
        "getsPerSecond": rate(getting), "seconds": took.as_secs_f64(), "cpuSeconds": cpu, "memoryMiB": memory,
        "peakMiB": peak, "diskMiB": mib(disk), "mostDiskMiB": mib(most.max(disk)), "wantedMiB": mib((left * SIZE) as u64),
        "closeSeconds": begin.elapsed().as_secs_f64(), "closedDiskMiB": mib(disk_bytes(dir)),
    }))
}

/// Builds a program with nothing but one of the libraries in it, from nothing.
pub fn builds(options: &Options) -> Result<Value> {
    let mut told = json!({});
    for (name, wanted) in [("sled", "0.34.7"), ("redb", "4"), ("fjall", "3")] {
        let dir = tempfile::Builder::new().prefix("bench-store-").tempdir_in(&options.out)?;
        let at = dir.path();
        std::fs::create_dir(at.join("src"))?;
        std::fs::write(at.join("src/main.rs"), format!("use {name} as _;\nfn main() {{}}\n"))?;
        let manifest = format!(
            "[package]\nname = \"alone\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[dependencies]\n{name} = \"{wanted}\"\n\n[workspace]\n"
        );
        std::fs::write(at.join("Cargo.toml"), manifest)?;
        std::fs::write(at.join("Cargo.lock"), include_str!("../Cargo.lock"))?;
        let cargo = |words: &[&str]| {
            let mut command = Command::new("cargo");
            command.args(words).current_dir(at).env("CARGO_TARGET_DIR", at.join("target"));
            command
        };
        let tree = cargo(&["tree", "--offline", "--prefix", "none", "--no-dedupe"]).output()?;
        let lines: std::collections::BTreeSet<_> =
            tree.stdout.split(|b| *b == b'\n').filter(|l| !l.is_empty()).collect();
        let (begin, before) = (Instant::now(), children()?);
        let built = cargo(&["build", "--release", "--offline", "--quiet", "-j2"]).status()?;
        ensure!(built.success(), "building {name} ended with {built}");
        told[name] = json!({
            "version": version(name), "seconds": round(begin.elapsed().as_secs_f64()),
            "cpuSeconds": round(children()? - before), "crates": lines.len().saturating_sub(1),
        });
    }
    Ok(told)
}

/// CPU seconds of all children that have ended.
fn children() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let all = usage.user_time().num_milliseconds() + usage.system_time().num_milliseconds();
    Ok(all as f64 / 1000.0)
}

/// The version that the lock file has.
fn version(name: &str) -> String {
    let lock = include_str!("../Cargo.lock");
    let after = lock.split_once(&format!("name = \"{name}\"\nversion = \"")).map(|(_, rest)| rest);
    after.and_then(|rest| rest.split('"').next()).unwrap_or_default().to_owned()
}
