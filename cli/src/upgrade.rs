//! `causeway upgrade`: another program in the place of a running one, without a refused connection. In: a process that
//! runs, and the program that is to take over (the one which the command is part of). Out: the same process with the new
//! program, which has found sockets, rules, containers and store as they were.
//!
//! The running program is told by `SIGUSR2`. It stops taking connections, which wait in the sockets' queues from then on,
//! answers the requests it has, ends, and replaces itself ([`causeway_handover`]).

use crate::instance::{self, Record};
use crate::paths::Paths;
use anyhow::{Context, Result, bail};
use causeway_handover::Sockets;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Patience for the new program to be ready.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was asked to stop.
    Stop,
    /// It was asked to hand over to another program.
    HandOver,
}

/// Runs the command.
pub fn run(paths: &Paths) -> Result<()> {
    crate::args::require_root("causeway upgrade")?;
    let Some(before) = instance::running(paths)? else {
        bail!("{:?} is not running; start it with: causeway up --name {}", paths.name, paths.name);
    };
    if !before.ready {
        bail!("{:?} is not ready ({}); try again when it is", paths.name, before.phase);
    }
    let program = std::env::current_exe().context("finding this program's own file")?;
    std::fs::write(next(paths), program.as_os_str().as_encoded_bytes())
        .with_context(|| format!("noting the new program in {}", next(paths).display()))?;
    kill(Pid::from_raw(before.pid), Signal::SIGUSR2).with_context(|| format!("telling process {}", before.pid))?;
    let begin = Instant::now();
    loop {
        match instance::running(paths)? {
            Some(now) if now.ready && now.generation > before.generation => {
                println!("{:?} runs {} now (process {})", paths.name, program.display(), now.pid);
                return Ok(());
            }
            None => bail!("the new program ended; see {}", paths.log().display()),
            Some(now) if begin.elapsed() > PATIENCE => {
                bail!("not ready after {} s: {}", PATIENCE.as_secs(), now.phase)
            }
            Some(_) => std::thread::sleep(Duration::from_millis(25)),
        }
    }
}

/// Where the command says which program is meant.
fn next(paths: &Paths) -> PathBuf {
    paths.run.join("next-program")
}

/// Hears of the wish to hand over.
pub struct Wish(tokio::signal::unix::Signal);

impl Wish {
    /// From now on.
    pub fn new() -> Result<Self> {
        Ok(Self(signal(SignalKind::user_defined2()).context("listening for SIGUSR2")?))
    }

    /// Waits for it.
    pub async fn heard(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Tells everybody that this process is about to be another program.
pub fn announce(paths: &Paths, record: &mut Record) {
    record.ready = false;
    record.phase = "handing over to the new program".to_owned();
    if let Err(error) = instance::write(paths, record) {
        tracing::warn!("the state is not told: {error:#}");
    }
    tracing::info!("handing over to the new program");
}

/// This program: what it has taken over, and how it ends.
pub struct Program {
    /// What the next one takes over.
    pub sockets: Arc<Sockets>,
    /// Its file, as it was called when it was started.
    file: PathBuf,
}

impl Program {
    /// To be called once, at the start.
    pub fn this() -> Result<Self> {
        let file = std::env::current_exe().context("finding this program's own file")?;
        Ok(Self { sockets: Arc::new(Sockets::of_environment()), file })
    }

    /// Ends as it was asked to. A hand-over returns only with the reason why there was none.
    pub fn end(&self, paths: &Paths, how: End) -> Result<()> {
        if how == End::Stop {
            return Ok(());
        }
        let named = std::fs::read(next(paths)).ok().map(|bytes| PathBuf::from(OsString::from_vec(bytes)));
        drop(std::fs::remove_file(next(paths)));
        let program = named.as_deref().unwrap_or(&self.file);
        let error = self.sockets.replace(program, std::env::args_os().skip(1));
        Err(error).with_context(|| format!("starting {} in our place", program.display()))
    }
}
