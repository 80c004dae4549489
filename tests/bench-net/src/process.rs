//! Processes we start and look at: CPU time and memory as the kernel counts them, and an end for every child.

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The kernel's unit of `/proc/PID/stat`: a hundred a second on every Linux that we run on.
const TICK: Duration = Duration::from_millis(10);

/// A child that is killed when dropped, with all that it started.
pub struct Server {
    child: Child,
    /// Its process, and its process group.
    pub pid: u32,
}

impl Server {
    /// Starts a process in a group of its own; its output goes to a file, or nowhere.
    pub fn spawn(mut command: Command, log: Option<&Path>) -> Result<Self> {
        command.stdin(Stdio::null()).process_group(0);
        match log {
            Some(path) => {
                let file = std::fs::File::create(path).with_context(|| format!("making {}", path.display()))?;
                command.stdout(file.try_clone()?).stderr(file);
            }
            None => {
                command.stdout(Stdio::null());
            }
        }
        let child = command.spawn().with_context(|| format!("starting {:?}", command.get_program()))?;
        Ok(Self { pid: child.id(), child })
    }

    /// Starts a server pinned to a core and waits until it takes connections on a port of 127.0.0.1.
    pub fn start(core: usize, port: u16, command: &Command) -> Result<Self> {
        let mut this = Self::spawn(pin(core, command), None)?;
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            this.alive().with_context(|| format!("{:?}", command.get_program()))?;
            if begin.elapsed() > Duration::from_secs(20) {
                bail!("{:?} does not listen on port {port}", command.get_program());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(this)
    }

    /// Fails when the process has ended.
    pub fn alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("it ended with {status}"),
            None => Ok(()),
        }
    }

    /// CPU time used so far by all of its threads.
    pub fn cpu(&self) -> Result<Duration> {
        let mut nanoseconds = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            nanoseconds += text.split(' ').next().unwrap_or("0").parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// The same with the time of programs that it started and that have ended.
    pub fn cpu_with_children(&self) -> Result<Duration> {
        Ok(self.cpu()? + ticks(self.pid, 13)?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.pid) {
            // Gone already is well.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The same command on one core, and before other work of the machine where that is allowed. Both programs in front
/// replace themselves by the next, so the process is the command's.
pub fn pin(core: usize, command: &Command) -> Command {
    let core = core.to_string();
    before(&["nice", "-n", "-10", "taskset", "-c", &core], command)
}

/// The same command in a network namespace.
pub fn inside(netns: &str, command: &Command) -> Command {
    before(&["ip", "netns", "exec", netns], command)
}

fn before(words: &[&str], command: &Command) -> Command {
    let mut longer = Command::new(words[0]);
    longer.args(&words[1..]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            longer.env(name, value);
        }
    }
    longer
}

/// CPU time used so far by all threads of a process, ended ones included; in steps of ten milliseconds.
pub fn cpu_seconds(pid: i32) -> Result<f64> {
    Ok(ticks(u32::try_from(pid)?, 11)?.as_secs_f64())
}

/// User and system time in `/proc/PID/stat`, two fields that begin so many after the state.
fn ticks(pid: u32, first: usize) -> Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may have spaces; fields count from the state on.
    let after = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields = after.split_whitespace().skip(first).take(2);
    let ticks: Vec<u32> = fields.map(str::parse).collect::<Result<_, _>>().context("reading stat")?;
    Ok(TICK * ticks.iter().sum::<u32>())
}

/// A line of `/proc/PID/status` in MiB.
pub fn memory(pid: i32, field: &str) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    let line = line.with_context(|| format!("no {field} of process {pid}"))?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
}

/// Processes of a name whose command line has a word in it.
pub fn named(name: &str, word: &str) -> Vec<i32> {
    pids()
        .filter(|pid| {
            let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            read("comm").trim() == name && read("cmdline").contains(word)
        })
        .collect()
}

/// Watches how much a process group has resident, all its processes together.
pub struct Peak {
    kib: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Peak {
    /// Looks five times a second until dropped.
    pub fn of_group(group: u32) -> Self {
        let this = Self { kib: Arc::default(), stop: Arc::default() };
        let (kib, stop) = (this.kib.clone(), this.stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let members = pids().filter(|pid| group_of(*pid) == Some(group));
                let now: f64 = members.filter_map(|pid| memory(pid, "VmRSS").ok()).sum();
                kib.fetch_max((now * 1024.0) as u64, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        this
    }

    /// The most that was seen, in MiB.
    pub fn mib(&self) -> f64 {
        self.kib.load(Ordering::Relaxed) as f64 / 1024.0
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok())
}

fn group_of(pid: i32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')')?.1.split_whitespace().nth(2)?.parse().ok()
}
