//! A containerd of our own: Debian's program with its root, state and socket in our folders, so that the machine's is
//! never touched. In: a data folder and the cluster's name. Out: a socket that serves, a watch over the process, and a
//! machine without traces when it is stopped, or cleaned up after a `kill -9` of everything.

mod cleanup;
mod process;

use process::Process;
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long containerd may take to serve.
const START: Duration = Duration::from_secs(30);
/// The kernel's limit of a socket's path, less containerd's own suffix.
const MAX_SOCKET: usize = 107 - ".ttrpc".len();

/// Why there is no containerd.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The program is not installed.
    #[error("{program} is not in PATH; install it (Debian: apt-get install {package}) and start again")]
    Missing {
        /// What was looked for.
        program: &'static str,
        /// Where Debian has it.
        package: &'static str,
    },
    /// The cluster's name is too long for a socket path.
    #[error("the socket path {path} is too long for the kernel; choose a shorter cluster name")]
    PathTooLong {
        /// It.
        path: PathBuf,
    },
    /// Another data folder uses the same cluster name right now.
    #[error(
        "a containerd for cluster {cluster} runs already (pid {pid}) with another data folder than {dir}; stop that \
         cluster, or choose another name"
    )]
    Taken {
        /// The cluster.
        cluster: String,
        /// Of the one that runs.
        pid: u32,
        /// Ours.
        dir: PathBuf,
    },
    /// It does not come up.
    #[error("containerd does not serve at {socket}: {detail}; see {log}")]
    NotServing {
        /// Where it should.
        socket: PathBuf,
        /// What is wrong.
        detail: String,
        /// Its own words.
        log: PathBuf,
    },
    /// A file operation failed.
    #[error("{doing} {path}: {source}")]
    Files {
        /// What was being done.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Where everything is. Short paths hold sockets, the data folder holds what must last.
#[derive(Debug, Clone)]
struct Paths {
    cluster: String,
    /// Content and snapshots.
    root: PathBuf,
    /// Everything that goes with the processes: `/run/causeway/<cluster>/containerd`.
    run: PathBuf,
    log: PathBuf,
}

impl Paths {
    fn new(dir: &Path, cluster: &str) -> Self {
        Self {
            cluster: cluster.into(),
            root: dir.join("containerd"),
            run: Path::new("/run/causeway").join(cluster).join("containerd"),
            log: dir.join("containerd.log"),
        }
    }

    fn socket(&self) -> PathBuf {
        self.run.join("containerd.sock")
    }

    fn config(&self) -> PathBuf {
        self.run.join("config.toml")
    }

    fn pid(&self) -> PathBuf {
        self.run.join("containerd.pid")
    }

    fn state(&self) -> PathBuf {
        self.run.join("state")
    }

    fn not_serving(&self, detail: impl ToString) -> DaemonError {
        DaemonError::NotServing { socket: self.socket(), detail: detail.to_string(), log: self.log.clone() }
    }
}

/// A containerd that is watched and started again when it dies. Dropping this leaves it and its containers running, as
/// a crash of ours would: the next [`ContainerdDaemon::start`] adopts them.
pub struct ContainerdDaemon {
    paths: Paths,
    shutdown: CancellationToken,
    watch: JoinHandle<Option<Process>>,
}

impl Drop for ContainerdDaemon {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl ContainerdDaemon {
    /// Ends all containers of one of its namespaces at once, as a power cut of the node they are on would.
    pub async fn power_off(&self, namespace: &str, cgroup: &str) {
        cleanup::power_off(&self.paths, namespace, cgroup).await;
    }

    /// Starts containerd for a cluster, or adopts the one that an earlier run of ours left, and waits until it serves.
    ///
    /// `dir` holds content and snapshots (they last); sockets and state are in `/run/causeway/<cluster>/containerd`.
    pub async fn start(dir: &Path, cluster: &str) -> Result<Self, DaemonError> {
        let dir = std::path::absolute(dir).map_err(|source| DaemonError::Files {
            doing: "finding",
            path: dir.into(),
            source,
        })?;
        let paths = Paths::new(&dir, cluster);
        if paths.socket().as_os_str().len() > MAX_SOCKET {
            return Err(DaemonError::PathTooLong { path: paths.socket() });
        }
        for folder in [&paths.root, &paths.run] {
            std::fs::create_dir_all(folder).map_err(|source| DaemonError::Files {
                doing: "making folder",
                path: folder.clone(),
                source,
            })?;
        }
        let process = match Process::find(&paths)? {
            Some(process) => process,
            None => {
                // What a dead one left would be in the way of the new one's containers.
                let leftover = paths.clone();
                let _ = tokio::task::spawn_blocking(move || cleanup::processes_and_mounts(&leftover)).await;
                Process::spawn(&paths)?
            }
        };
        let process = process.until_serving(&paths, START).await?;
        let shutdown = CancellationToken::new();
        let watch = tokio::spawn(process.watch(paths.clone(), shutdown.clone()));
        Ok(Self { paths, shutdown, watch })
    }

    /// The gRPC socket.
    pub fn socket(&self) -> PathBuf {
        self.paths.socket()
    }

    /// Kills all containers, stops containerd and removes everything but content, snapshots and the log.
    pub async fn stop(mut self) -> Result<(), DaemonError> {
        self.shutdown.cancel();
        let process = (&mut self.watch).await.ok().flatten();
        cleanup::end_tasks(&self.paths).await;
        if let Some(process) = process {
            process.terminate(Duration::from_secs(10)).await;
        }
        Self::clean_up_paths(self.paths.clone()).await
    }

    /// Removes what a cluster's containerd left when everything was killed: shims, containers, mounts, control groups,
    /// sockets. Also stops one that still runs. Content and snapshots stay in `dir`. Succeeds when there is nothing.
    pub async fn clean_up(dir: &Path, cluster: &str) -> Result<(), DaemonError> {
        let dir = std::path::absolute(dir).map_err(|source| DaemonError::Files {
            doing: "finding",
            path: dir.into(),
            source,
        })?;
        let paths = Paths::new(&dir, cluster);
        if let Some(process) = Process::find(&paths)? {
            cleanup::end_tasks(&paths).await;
            process.terminate(Duration::from_secs(10)).await;
        }
        Self::clean_up_paths(paths).await
    }

    async fn clean_up_paths(paths: Paths) -> Result<(), DaemonError> {
        let run = paths.run.clone();
        let cleaned = tokio::task::spawn_blocking(move || {
            cleanup::processes_and_mounts(&paths);
            cleanup::cgroups(&paths);
            cleanup::folders(&paths)
        });
        let files = |source| DaemonError::Files { doing: "removing", path: run.clone(), source };
        cleaned.await.map_err(|error| files(io::Error::other(error)))?.map_err(files)
    }
}

/// containerd without what we do not use. Its score for the out-of-memory killer is left as it is: lowering it needs
/// a capability that not every machine gives.
fn configuration(paths: &Paths) -> String {
    let quoted = |path: &Path| serde_json::Value::from(path.to_string_lossy().into_owned()).to_string();
    let ttrpc = PathBuf::from(format!("{}.ttrpc", paths.socket().display()));
    format!(
        "# Written at every start.\n\
         version = 2\n\
         root = {}\n\
         state = {}\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\", \
         \"io.containerd.snapshotter.v1.aufs\", \"io.containerd.snapshotter.v1.btrfs\", \
         \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\", \
         \"io.containerd.tracing.processor.v1.otlp\", \"io.containerd.internal.v1.tracing\", \
         \"io.containerd.nri.v1.nri\"]\n\n\
         [grpc]\n  address = {}\n\n\
         [ttrpc]\n  address = {}\n",
        quoted(&paths.root),
        quoted(&paths.state()),
        quoted(&paths.socket()),
        quoted(&ttrpc),
    )
}
