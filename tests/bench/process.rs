//! Processes we start and look at: CPU time and memory as the kernel counts them, and an end for every child.

use anyhow::{Context, Result, bail};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A child that is killed when dropped.
pub struct Server {
    child: Child,
    /// Its process.
    pub pid: u32,
}

impl Server {
    /// Starts a server pinned to a core and waits until it takes connections on a port of 127.0.0.1.
    pub fn start(core: usize, port: u16, command: &Command) -> Result<Self> {
        let mut pinned = pin(core, command);
        let child = pinned.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.with_context(|| format!("starting {:?}", command.get_program()))?;
        let mut this = Self { pid: child.id(), child };
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = this.child.try_wait()? {
                bail!("{:?} ended with {status}", command.get_program());
            }
            if begin.elapsed() > Duration::from_secs(20) {
                bail!("{:?} does not listen on port {port}", command.get_program());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(this)
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
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The same command on one core, and before other work of the machine where that is allowed. Both programs in front
/// replace themselves by the next, so the process is the command's.
pub fn pin(core: usize, command: &Command) -> Command {
    let mut pinned = Command::new("nice");
    pinned
        .args(["-n", "-10", "taskset", "-c"])
        .arg(core.to_string())
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            pinned.env(name, value);
        }
    }
    pinned
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
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let all = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    all.filter(|pid| {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        read("comm").trim() == name && read("cmdline").contains(word)
    })
    .collect()
}
