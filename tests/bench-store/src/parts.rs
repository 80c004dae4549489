//! The parts that measure whole stores: writes, lists, opening after a crash, memory and disk, and leases.
//!
//! In: subjects and how long to measure. Out: figures as JSON, each a median with its range over rounds in which the
//! subjects take turns.

use crate::Options;
use crate::serve::Command;
use crate::session::{Session, Subjects, disk_bytes, mib};
use crate::stats::{median, percentile, round, spread};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::time::{Duration, Instant};

/// Concurrent writers.
pub const WRITERS: [usize; 3] = [1, 16, 128];
/// Bytes of a record.
const RECORD: usize = 1024;

/// Samples by what they are of.
#[derive(Default)]
struct Samples(BTreeMap<(String, String), Vec<f64>>);

impl Samples {
    fn add(&mut self, subject: &str, figure: &str, value: f64) {
        self.0.entry((subject.to_owned(), figure.to_owned())).or_default().push(value);
    }

    fn take(&mut self, subject: &str, answer: &Value, figures: &[&str]) {
        for figure in figures {
            self.add(subject, figure, answer[figure].as_f64().unwrap_or(f64::NAN));
        }
    }

    /// By subject and figure: medians and ranges.
    fn told(&self) -> Value {
        let mut all = json!({});
        for ((subject, figure), samples) in &self.0 {
            all[subject][figure] = spread(samples);
        }
        all
    }

    fn median(&self, subject: &str, figure: &str) -> f64 {
        self.0.get(&(subject.to_owned(), figure.to_owned())).map_or(f64::NAN, |samples| median(samples))
    }
}

/// A folder for a round, which goes with it.
fn folder(options: &Options) -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("bench-store-").tempdir_in(&options.out)?)
}

/// Acknowledged writes a second, each synced, next to one file that is appended to and synced record by record.
pub fn writes(options: &Options, subjects: &Subjects) -> Result<Value> {
    let mut samples = Samples::default();
    for turn in 0..options.rounds {
        for writers in WRITERS {
            samples.take("file", &appended(options)?, &["perSecond", "p50", "p99"]);
            for name in subjects.turn(turn) {
                let dir = folder(options)?;
                let mut session = Session::open(subjects, name, &dir.path().join("data"))?;
                let write = Command::Write { writers, seconds: options.seconds, bytes: RECORD };
                let cpu = session.cpu()?;
                let mut answer = session.ask(write)?;
                let per_write = (session.cpu()? - cpu) * 1e6 / answer["n"].as_f64().unwrap_or(f64::NAN);
                answer["cpuMicroseconds"] = per_write.into();
                samples.take(&format!("{name}-{writers}"), &answer, &["perSecond", "p50", "p99", "cpuMicroseconds"]);
            }
        }
        println!("    round {} of {}, load {}", turn + 1, options.rounds, crate::machine::load());
    }
    let mut told = samples.told();
    for subject in told.as_object().map(|all| all.keys().cloned().collect::<Vec<_>>()).unwrap_or_default() {
        let ratio = samples.median(&subject, "perSecond") / samples.median("file", "perSecond");
        told[&subject]["toFile"] = round(ratio).into();
    }
    Ok(json!({"seconds": options.seconds, "recordBytes": RECORD, "subjects": told}))
}

fn appended(options: &Options) -> Result<Value> {
    let dir = folder(options)?;
    let mut file = std::fs::File::create(dir.path().join("file"))?;
    let (begin, mut samples) = (Instant::now(), Vec::new());
    while begin.elapsed().as_secs_f64() < options.seconds {
        let begin = Instant::now();
        file.write_all(&[b'x'; RECORD])?;
        file.sync_data()?;
        samples.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    let rate = samples.len() as f64 / begin.elapsed().as_secs_f64();
    Ok(json!({"perSecond": rate, "p50": median(&samples), "p99": percentile(&samples, 0.99)}))
}

/// The first 500 of very many keys, and how many are left.
pub fn list(options: &Options, subjects: &Subjects) -> Result<Value> {
    const LIMIT: usize = 500;
    const TIMES: usize = 30;
    let (dir, mut sessions, mut samples) = (folder(options)?, Vec::new(), Samples::default());
    for name in &subjects.names {
        let mut session = Session::open(subjects, name, &dir.path().join(name))?;
        session.ask(Command::Fill { count: options.keys, bytes: RECORD })?;
        sessions.push((*name, session));
    }
    for turn in 0..options.rounds {
        let by = turn % sessions.len();
        sessions.rotate_left(by);
        for (name, session) in &mut sessions {
            let answer = session.ask(Command::Page { limit: LIMIT, times: TIMES })?;
            anyhow::ensure!(
                answer["items"] == LIMIT && answer["remaining"] == options.keys - LIMIT,
                "{name}: {answer}"
            );
            samples.take(name, &answer, &["perSecond", "p50", "p99"]);
        }
    }
    Ok(json!({"keys": options.keys, "limit": LIMIT, "times": TIMES, "valueBytes": RECORD, "subjects": samples.told()}))
}

/// From starting to the first answer after SIGKILL with so many MiB written: every round on a copy of the same files.
pub fn crash(options: &Options, subjects: &Subjects) -> Result<Value> {
    let (dir, mut samples, mut made) = (folder(options)?, Samples::default(), json!({}));
    let mut names = subjects.names.clone();
    names.push("new-log");
    for name in &names {
        let data = dir.path().join(name);
        let mut session = Session::open(subjects, name, &data)?;
        let answer = session.ask(Command::Churn { keys: 1024, bytes: 4096, mib: options.mib })?;
        drop(session);
        made[*name] = json!({"diskMiB": round(mib(disk_bytes(&data))), "writtenPerSecond": answer["perSecond"]});
    }
    for turn in 0..options.rounds {
        let by = turn % names.len();
        names.rotate_left(by);
        for name in &names {
            let copy = copied(&dir.path().join(name))?;
            let session = Session::open(subjects, name, &copy)?;
            samples.add(name, "seconds", session.opened.as_secs_f64());
            samples.add(name, "memoryMiB", session.memory()?.0);
            drop(session);
            std::fs::remove_dir_all(&copy)?;
        }
    }
    Ok(json!({"writtenMiB": options.mib, "keys": 1024, "valueBytes": 4096, "made": made, "subjects": samples.told()}))
}

/// A copy of a folder that is on the device already, so that nobody has to wait for writing it.
fn copied(dir: &Path) -> Result<PathBuf> {
    let copy = dir.with_extension("copy");
    let done = Program::new("cp").arg("-a").arg(dir).arg(&copy).status()?.success()
        && Program::new("sync").arg("-f").arg(&copy).status()?.success();
    done.then_some(copy).with_context(|| format!("copying {}", dir.display()))
}

/// Memory and disk with very many objects: after filling them in, and after an orderly end and a new start.
pub fn memory(options: &Options, subjects: &Subjects) -> Result<Value> {
    let mut samples = Samples::default();
    for turn in 0..options.rounds.min(3) {
        for name in subjects.turn(turn) {
            let dir = folder(options)?;
            let data = dir.path().join("data");
            let mut session = Session::open(subjects, name, &data)?;
            let watch = session.watch()?;
            let filled = session.ask(Command::Fill { count: options.objects, bytes: 4096 })?;
            std::thread::sleep(Duration::from_secs(3));
            samples.take(name, &filled, &["perSecond"]);
            samples.add(name, "cpuSeconds", session.cpu()?);
            let (memory, anonymous) = session.memory()?;
            samples.add(name, "memoryMiB", memory);
            samples.add(name, "anonymousMiB", anonymous);
            samples.add(name, "diskMiB", mib(disk_bytes(&data)));
            samples.add(name, "peakMiB", watch.end()?[0]);
            session.close()?;
            let session = Session::open(subjects, name, &data)?;
            samples.add(name, "againSeconds", session.opened.as_secs_f64());
            samples.add(name, "againMiB", session.memory()?.0);
        }
    }
    Ok(json!({"objects": options.objects, "valueBytes": 4096, "subjects": samples.told()}))
}

/// Leases that are renewed, in all subjects at the same time: what little each does leaves room for the others.
pub fn leases(options: &Options, subjects: &Subjects) -> Result<Value> {
    let dir = folder(options)?;
    let renew = Command::Renew { leases: options.leases, bytes: 600, every: 10.0, seconds: options.lease_seconds };
    let all = std::thread::scope(|scope| {
        let dir = dir.path();
        let begin = |name: &'static str| scope.spawn(move || leased(subjects, name, dir, renew));
        let threads: Vec<_> = subjects.names.iter().copied().map(begin).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|end| end.map_err(|_| anyhow::anyhow!("a thread panicked"))?).collect::<Result<Vec<_>>>()
    });
    let told: serde_json::Map<String, Value> = all?.into_iter().collect();
    Ok(json!({"leases": options.leases, "everySeconds": 10, "valueBytes": 600, "seconds": options.lease_seconds,
              "subjects": told}))
}

fn leased(subjects: &Subjects, name: &str, dir: &Path, renew: Command) -> Result<(String, Value)> {
    let mut session = Session::open(subjects, name, &dir.join(name))?;
    let (watch, cpu) = (session.watch()?, session.cpu()?);
    let answer = session.ask(renew)?;
    let [memory, anonymous, disk] = watch.end()?;
    let figures = json!({
        "renewed": answer["n"], "p50": answer["p50"], "p99": answer["p99"], "memoryMiB": round(memory),
        "anonymousMiB": round(anonymous), "diskMiB": round(disk), "cpuSeconds": round(session.cpu()? - cpu),
    });
    Ok((name.to_owned(), figures))
}
