//! The record of a running cluster, so that `down`, `status` and a second `up` find it. In: a process that starts or
//! ends. Out: `cluster.json` in the run folder, replaced as a whole.
//!
//! A process id alone is not enough: it may have been given to another process since. The start time tells.

use crate::paths::Paths;
use crate::tasks::Health;
use crate::upgrade::{self, End, Wish};
use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// What a running cluster tells about itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The process.
    pub pid: i32,
    /// Its start, in clock ticks since boot.
    pub started: u64,
    /// Where the cluster's data is.
    pub data_dir: PathBuf,
    /// Ports on 127.0.0.1.
    pub http_port: u16,
    /// Ports on 127.0.0.1.
    pub https_port: u16,
    /// Ports on 127.0.0.1.
    pub api_port: u16,
    /// Names of the nodes.
    pub nodes: Vec<String>,
    /// What is being done at the moment; empty once ready.
    pub phase: String,
    /// Everything answered.
    pub ready: bool,
    /// What it is of a cluster.
    #[serde(default)]
    pub role: Role,
    /// Supervised components: `running`, or why not.
    #[serde(default)]
    pub components: BTreeMap<String, String>,
    /// How many programs have handed over in this process.
    #[serde(default)]
    pub generation: u32,
}

/// What a process is of a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// All of it: `causeway up`.
    #[default]
    Local,
    /// The control plane: `causeway server`.
    Server,
    /// A node: `causeway agent`.
    Agent,
}

impl Record {
    /// Of this process, in a first phase.
    pub fn of_this_process(paths: &Paths, phase: &str) -> Result<Self> {
        Ok(Self {
            pid: i32::try_from(std::process::id())?,
            started: own_start(),
            data_dir: paths.data.clone(),
            http_port: 0,
            https_port: 0,
            api_port: 0,
            nodes: Vec::new(),
            phase: phase.to_owned(),
            ready: false,
            role: Role::Local,
            components: BTreeMap::new(),
            generation: 0,
        })
    }
}

/// Keeps the record of a ready process up to date until it is told to stop, or to hand over.
pub async fn follow(
    paths: &Paths,
    mut record: Record,
    health: &Health,
    stop: &CancellationToken,
    wish: &mut Wish,
) -> End {
    record.phase = "ready".to_owned();
    loop {
        record.components = health.all();
        if let Err(error) = write(paths, &record) {
            tracing::warn!("the state of the components is not told: {error:#}");
        }
        tokio::select! {
            () = stop.cancelled() => return End::Stop,
            () = health.changed() => {}
            () = wish.heard() => {
                upgrade::announce(paths, &mut record);
                return End::HandOver;
            }
        }
    }
}

/// Patience for a cluster to stop by itself.
const STOP_PATIENCE: Duration = Duration::from_secs(60);
/// Patience for a killed process to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How often a process is looked at meanwhile.
const POLL: Duration = Duration::from_millis(50);

/// Writes the record, whole or not at all.
pub fn write(paths: &Paths, record: &Record) -> Result<()> {
    fs::create_dir_all(&paths.run).with_context(|| format!("making {}", paths.run.display()))?;
    let next = paths.record().with_extension("next");
    // Whoever uses the machine may know what runs on it, also where a unit's umask is strict.
    let open = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    fs::write(&next, serde_json::to_vec_pretty(record)?)
        .and_then(|()| open(&paths.run, 0o755))
        .and_then(|()| open(&next, 0o644))
        .and_then(|()| fs::rename(&next, paths.record()))
        .with_context(|| format!("writing {}", paths.record().display()))
}

/// The last record, whether its process lives or not.
pub fn read(paths: &Paths) -> Result<Option<Record>> {
    match fs::read(paths.record()) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("reading {}", paths.record().display())),
        // A record that does not parse is of a version we do not know: nothing of ours runs by it.
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
    }
}

/// The record of a process that is alive. One that is just ending is waited for.
pub fn running(paths: &Paths) -> Result<Option<Record>> {
    let Some(record) = read(paths)? else { return Ok(None) };
    match wait_while(&record, |life| life == Life::Ends, KILL_PATIENCE) {
        Life::Runs => Ok(Some(record)),
        Life::Gone => Ok(None),
        Life::Ends => Err(stuck(&record)),
    }
}

/// The record of another process that is alive. One of ours is of the program that we have taken over from.
pub fn another(paths: &Paths) -> Result<Option<Record>> {
    let own = i32::try_from(std::process::id())?;
    Ok(running(paths)?.filter(|r| r.pid != own))
}

/// When this process was started, in clock ticks since boot.
pub fn own_start() -> u64 {
    procfs::process::Process::myself().and_then(|own| own.stat()).map_or(0, |stat| stat.starttime)
}

/// Asks a running cluster to stop and waits; kills it when it does not.
pub fn stop(paths: &Paths) -> Result<()> {
    let Some(record) = running(paths)? else { return Ok(()) };
    let pid = Pid::from_raw(record.pid);
    kill(pid, Signal::SIGTERM).with_context(|| format!("stopping process {pid}"))?;
    let is_there = |life| life != Life::Gone;
    if wait_while(&record, is_there, STOP_PATIENCE) == Life::Gone {
        return Ok(());
    }
    eprintln!("process {pid} did not stop within {} s: killing it", STOP_PATIENCE.as_secs());
    kill(pid, Signal::SIGKILL).with_context(|| format!("killing process {pid}"))?;
    if wait_while(&record, is_there, KILL_PATIENCE) != Life::Gone {
        return Err(stuck(&record));
    }
    Ok(())
}

fn stuck(record: &Record) -> anyhow::Error {
    let pid = record.pid;
    anyhow!("process {pid} was killed and does not end; look at it with: ps -L -o pid,lwp,stat,wchan,cmd -p {pid}")
}

/// Waits while the process is in such a state, but no longer than `patience`. Returns the state that it is in then.
fn wait_while(record: &Record, such: impl Fn(Life) -> bool, patience: Duration) -> Life {
    let begin = Instant::now();
    loop {
        let life = life(record);
        if !such(life) || begin.elapsed() > patience {
            return life;
        }
        std::thread::sleep(POLL);
    }
}

/// Whether the process of a record is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Runs,
    /// Killed, and its first thread is gone. Its other threads still hold what the process has open: ports, locks.
    Ends,
    /// Gone, or only a zombie that holds nothing.
    Gone,
}

fn life(record: &Record) -> Life {
    let stat = procfs::process::Process::new(record.pid).and_then(|process| process.stat());
    match stat {
        Ok(stat) if stat.starttime != record.started => Life::Gone,
        Ok(stat) if stat.state != 'Z' => Life::Runs,
        Ok(stat) if stat.num_threads > 1 => Life::Ends,
        _ => Life::Gone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// Its first thread ends at once, another one lives as long as standard input is open.
    const PROGRAM: &str = "#include <pthread.h>\n#include <unistd.h>\n\
        static void *wait_for_end(void *unused) { char byte; while (read(0, &byte, 1) > 0); return unused; }\n\
        int main(void) { pthread_t other; pthread_create(&other, 0, wait_for_end, 0); pthread_exit(0); }\n";

    #[test]
    fn a_process_is_gone_when_its_last_thread_is() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("ends");
        let mut compiler = Command::new("cc");
        compiler.args(["-x", "c", "-", "-pthread", "-o"]).arg(&program).stdin(Stdio::piped());
        let mut compiler = compiler.spawn().unwrap();
        compiler.stdin.take().unwrap().write_all(PROGRAM.as_bytes()).unwrap();
        assert!(compiler.wait().unwrap().success());

        let mut child = Command::new(&program).stdin(Stdio::piped()).spawn().unwrap();
        let paths = Paths { run: dir.path().to_owned(), ..Paths::new("ends", None).unwrap() };
        let pid = i32::try_from(child.id()).unwrap();
        let started = procfs::process::Process::new(pid).unwrap().stat().unwrap().starttime;
        let record = Record { pid, started, ..Record::of_this_process(&paths, "test").unwrap() };
        write(&paths, &record).unwrap();
        let begin = Instant::now();
        while life(&record) == Life::Runs && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(life(&record), Life::Ends);
        let asked = std::thread::spawn({
            let paths = paths.clone();
            move || running(&paths)
        });
        std::thread::sleep(Duration::from_millis(200));
        assert!(!asked.is_finished(), "what the process has open is not free yet");
        drop(child.stdin.take());
        assert!(asked.join().unwrap().unwrap().is_none());
        assert_eq!(life(&record), Life::Gone);
        child.wait().unwrap();
    }
}
