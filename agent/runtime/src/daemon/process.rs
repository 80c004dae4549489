//! The containerd process: found by its pid file, started, asked whether it serves, watched and ended. A pid is
//! believed only when its command line names our configuration.

use super::{DaemonError, Paths, configuration};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// One containerd; `child` when it is ours to reap.
pub(super) struct Process {
    pid: u32,
    child: Option<std::process::Child>,
}

/// The arguments of a process; empty when it is gone or a zombie.
pub(super) fn arguments(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|b| *b == 0).filter(|a| !a.is_empty()).map(|a| String::from_utf8_lossy(a).into_owned()).collect()
}

/// A program in PATH, or where Debian keeps those of the administrator.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|folder| folder.join(name)).find(|p| p.is_file())
}

/// The PATH of containerd: it looks for the shim and runc itself.
fn program_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").trim_start_matches(':').to_string()
}

impl Process {
    /// The one that runs already for this cluster.
    pub(super) fn find(paths: &Paths) -> Result<Option<Self>, DaemonError> {
        let pid = fs::read_to_string(paths.pid()).ok().and_then(|text| text.trim().parse::<u32>().ok());
        let Some(pid) = pid else { return Ok(None) };
        let config = paths.config().to_string_lossy().into_owned();
        if !arguments(pid).contains(&config) {
            return Ok(None);
        }
        let ours = fs::read_to_string(paths.config()).is_ok_and(|text| text == configuration(paths));
        if ours {
            return Ok(Some(Self { pid, child: None }));
        }
        let dir = paths.root.parent().unwrap_or(&paths.root).to_path_buf();
        Err(DaemonError::Taken { cluster: paths.cluster.clone(), pid, dir })
    }

    pub(super) fn spawn(paths: &Paths) -> Result<Self, DaemonError> {
        let missing = |program, package| DaemonError::Missing { program, package };
        let program = find_program("containerd").ok_or_else(|| missing("containerd", "containerd"))?;
        find_program("containerd-shim-runc-v2").ok_or_else(|| missing("containerd-shim-runc-v2", "containerd"))?;
        find_program("runc").ok_or_else(|| missing("runc", "runc"))?;
        let files = |doing, path: &Path| {
            let path = path.to_path_buf();
            move |source| DaemonError::Files { doing, path, source }
        };
        fs::write(paths.config(), configuration(paths)).map_err(files("writing", &paths.config()))?;
        // Socket files of a dead one would look like a running one.
        let _ = fs::remove_file(paths.socket());
        // One start's words are enough; a loop of crashes must not fill the disk.
        let fresh = fs::metadata(&paths.log).map_or(true, |m| m.len() > 16 << 20);
        let log = OpenOptions::new().create(true).write(true).append(!fresh).truncate(fresh).open(&paths.log);
        let log = log.map_err(files("opening", &paths.log))?;
        let copy = log.try_clone().map_err(files("opening", &paths.log))?;
        let child = Command::new(program)
            .arg("--config")
            .arg(paths.config())
            .env("PATH", program_path())
            // Units of systemd's notify type would take containerd for us.
            .env_remove("NOTIFY_SOCKET")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(copy)
            // Ctrl-C in our terminal is meant for us, who then stop containerd in order.
            .process_group(0)
            .spawn()
            .map_err(files("starting", Path::new("containerd")))?;
        let process = Self { pid: child.id(), child: Some(child) };
        fs::write(paths.pid(), format!("{}\n", process.pid)).map_err(files("writing", &paths.pid()))?;
        Ok(process)
    }

    /// Waits until it answers. One that was adopted and does not is replaced.
    pub(super) async fn until_serving(mut self, paths: &Paths, limit: Duration) -> Result<Self, DaemonError> {
        let end = Instant::now() + limit;
        let mut patience = Instant::now() + Duration::from_secs(10);
        loop {
            let detail = match serves(&paths.socket()).await {
                Ok(()) => return Ok(self),
                Err(detail) => detail,
            };
            let adopted = self.child.is_none();
            if !self.alive() {
                if !adopted {
                    return Err(paths.not_serving(format!("it ended at once: {}", last_words(&paths.log))));
                }
                self = Self::spawn(paths)?;
            } else if adopted && Instant::now() > patience {
                tracing::warn!(pid = self.pid, "the containerd of an earlier run does not answer; it is replaced");
                self.terminate(Duration::from_secs(5)).await;
                self = Self::spawn(paths)?;
                patience = end;
            }
            if Instant::now() > end {
                self.terminate(Duration::from_secs(5)).await;
                return Err(paths.not_serving(format!("no answer within {} s: {detail}", limit.as_secs())));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn alive(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => !arguments(self.pid).is_empty(),
        }
    }

    /// Starts it again whenever it dies, until `shutdown`; returns the one that runs then.
    pub(super) async fn watch(mut self, paths: Paths, shutdown: CancellationToken) -> Option<Self> {
        let mut pause = Duration::from_millis(100);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Some(self),
                () = sleep(Duration::from_millis(250)) => {}
            }
            if self.alive() {
                continue;
            }
            tracing::error!(pid = self.pid, log = %paths.log.display(), "containerd died; starting it again");
            loop {
                match Self::spawn(&paths) {
                    Ok(process) => {
                        let begun = Instant::now();
                        self = process;
                        while self.alive() && serves(&paths.socket()).await.is_err() && begun.elapsed() < super::START {
                            sleep(Duration::from_millis(50)).await;
                        }
                        if self.alive() {
                            break;
                        }
                    }
                    Err(error) => tracing::error!(%error, "starting containerd again"),
                }
                tokio::select! {
                    () = shutdown.cancelled() => return None,
                    () = sleep(pause) => {}
                }
                pause = (pause * 2).min(Duration::from_secs(10));
            }
            pause = Duration::from_millis(100);
        }
    }

    /// Ends it, by force when it does not end within `grace`.
    pub(super) async fn terminate(mut self, grace: Duration) {
        let pid = Pid::from_raw(i32::try_from(self.pid).unwrap_or(i32::MAX));
        for (signal, patience) in [(Signal::SIGTERM, grace), (Signal::SIGKILL, Duration::from_secs(5))] {
            let end = Instant::now() + patience;
            let _ = kill(pid, signal);
            while Instant::now() < end {
                if !self.alive() {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

async fn serves(socket: &Path) -> Result<(), String> {
    let ask = async {
        let channel = containerd_client::connect(socket).await.map_err(|error| error.to_string())?;
        let mut client = containerd_client::services::v1::version_client::VersionClient::new(channel);
        client.version(()).await.map(drop).map_err(|status| status.message().to_string())
    };
    timeout(Duration::from_secs(2), ask).await.unwrap_or_else(|_| Err("no answer".into()))
}

/// The last line of the log that says why.
fn last_words(log: &Path) -> String {
    let read = || -> io::Result<String> {
        let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
        let bad = |line: &&str| {
            line.contains("level=error") || line.contains("level=fatal") || line.starts_with("containerd:")
        };
        Ok(text.lines().rev().find(bad).or(text.lines().next_back()).unwrap_or_default().to_string())
    };
    read().unwrap_or_default()
}
