//! A subject in processes of its own, seen from outside: started, asked, measured, and ended in order or by SIGKILL.
//!
//! In: the name of a subject and a folder. Out: answers of its process, and its memory, CPU time and bytes on disk. etcd
//! listens on 127.0.0.1 only.

use crate::process::{self, Server};
use crate::serve::Command;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command as Program, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What can be measured on this machine.
pub struct Subjects {
    /// Their names, in a fixed order.
    pub names: Vec<&'static str>,
    /// etcd's programs and versions by name.
    etcd: Vec<(&'static str, PathBuf, String)>,
}

impl Subjects {
    /// The embedded ones, and etcd as far as `peers.sh` has brought it.
    pub fn find(out: &Path) -> Self {
        let mut this = Self { names: vec!["new", "old"], etcd: Vec::new() };
        for (name, path) in [("etcd34", "etcd.root/usr/bin/etcd"), ("etcd36", "peers.go/etcd")] {
            let path = out.join(path);
            let version = crate::machine::said(Program::new(&path).arg("--version"));
            if version.is_empty() {
                println!("    {name} is left out: {} does not run", path.display());
                continue;
            }
            this.names.push(name);
            this.etcd.push((name, path, version));
        }
        this
    }

    /// What they call themselves.
    pub fn versions(&self) -> Value {
        self.etcd.iter().map(|(name, _, version)| ((*name).to_owned(), Value::from(version.clone()))).collect::<Value>()
    }

    /// The names in another order each round, so that none is always first.
    pub fn turn(&self, round: usize) -> Vec<&'static str> {
        let mut names = self.names.clone();
        let by = round % names.len();
        names.rotate_left(by);
        names
    }
}

/// A subject that runs.
pub struct Session {
    driver: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    etcd: Option<Server>,
    dir: PathBuf,
    /// From before it was started to its first answer.
    pub opened: Duration,
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// etcd as Kubernetes would have it, with its history compacted every five minutes as the embedded store's is.
fn etcd(program: &Path, dir: &Path, port: u16) -> Result<Program> {
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free_port()?));
    // It ends with this process, however that ends.
    let mut command = Program::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command.args(["--name", "bench", "--log-level", "error", "--logger", "zap"]);
    command.arg("--data-dir").arg(dir);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.arg("--initial-cluster").arg(format!("bench={peer}"));
    command.args(["--quota-backend-bytes", "8589934592"]);
    command.args(["--auto-compaction-mode", "periodic", "--auto-compaction-retention", "5m"]);
    Ok(command)
}

impl Session {
    /// Starts a subject on what is in a folder, and waits for its first answer.
    pub fn open(subjects: &Subjects, name: &str, dir: &Path) -> Result<Self> {
        let begin = Instant::now();
        let mut port = 0;
        let server = match subjects.etcd.iter().find(|(n, ..)| *n == name) {
            Some((_, program, _)) => {
                port = free_port()?;
                let log = dir.with_extension("log");
                Some(Server::spawn(etcd(program, dir, port)?, Some(&log))?)
            }
            None => None,
        };
        let mut driver = Program::new(std::env::current_exe()?)
            .args(["serve", name])
            .arg(dir)
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let commands = driver.stdin.take().context("no standard input")?;
        let answers = BufReader::new(driver.stdout.take().context("no standard output")?);
        let dir = dir.to_owned();
        let mut this = Self { driver, commands, answers, etcd: server, dir, opened: Duration::ZERO };
        this.answer().with_context(|| format!("starting {name}"))?;
        this.opened = begin.elapsed();
        Ok(this)
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            bail!("it has ended without an answer");
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Has it do something.
    pub fn ask(&mut self, command: Command) -> Result<Value> {
        writeln!(self.commands, "{}", serde_json::to_string(&command)?)?;
        self.answer().with_context(|| format!("{command:?}"))
    }

    /// The process that has the data.
    pub fn pid(&self) -> Result<i32> {
        Ok(i32::try_from(self.etcd.as_ref().map_or(self.driver.id(), |server| server.pid))?)
    }

    /// CPU seconds so far.
    pub fn cpu(&self) -> Result<f64> {
        process::cpu_seconds(self.pid()?)
    }

    /// Resident memory, and of that what is not files, in MiB.
    pub fn memory(&self) -> Result<(f64, f64)> {
        let pid = self.pid()?;
        Ok((process::memory(pid, "VmRSS")?, process::memory(pid, "RssAnon")?))
    }

    /// Looks every half second how much memory and disk it has.
    pub fn watch(&self) -> Result<Peaks> {
        Ok(Peaks::begin(self.pid()?, self.dir.clone()))
    }

    /// Ends it as an operator would.
    pub fn close(mut self) -> Result<()> {
        self.ask(Command::Close)?;
        self.driver.wait()?;
        let Some(server) = &mut self.etcd else { return Ok(()) };
        let pid = nix::unistd::Pid::from_raw(i32::try_from(server.pid)?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let begin = Instant::now();
        while server.alive().is_ok() && begin.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Whatever has not ended in order ends by SIGKILL.
impl Drop for Session {
    fn drop(&mut self) {
        // etcd first, so that both see the same: an end without warning.
        drop(self.etcd.take());
        drop(self.driver.kill());
        drop(self.driver.wait());
    }
}

/// Bytes that the files below a folder take on disk; what vanishes meanwhile counts nothing.
pub fn disk_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => disk_bytes(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

/// The most that was seen of a process and its folder.
pub struct Peaks {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<[f64; 3]>>,
}

impl Peaks {
    fn begin(pid: i32, dir: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut most = [0.0_f64; 3];
            while !stopped.load(Ordering::Relaxed) {
                let memory = |field| process::memory(pid, field).unwrap_or(0.0);
                let now = [memory("VmRSS"), memory("RssAnon"), mib(disk_bytes(&dir))];
                for (most, now) in most.iter_mut().zip(now) {
                    *most = most.max(now);
                }
                std::thread::sleep(Duration::from_millis(500));
            }
            most
        });
        Self { stop, thread: Some(thread) }
    }

    /// Resident MiB, of that without files, MiB on disk.
    pub fn end(mut self) -> Result<[f64; 3]> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it has ended")?;
        thread.join().map_err(|_| anyhow::anyhow!("the thread that watched panicked"))
    }
}

/// Bytes in MiB.
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
