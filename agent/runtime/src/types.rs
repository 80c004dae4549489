//! The values that cross the runtime seam.

use std::{collections::BTreeMap, path::PathBuf};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

/// The runtime's result.
pub type Result<T, E = RuntimeError> = std::result::Result<T, E>;

/// Why the runtime could not do it. The kubelet turns the variant into a waiting reason.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The image reference cannot be parsed: `InvalidImageName`.
    #[error("image name {reference:?} is not valid: {detail}")]
    InvalidImageName {
        /// As given.
        reference: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The image could not be pulled: `ErrImagePull`.
    #[error("failed to pull image {reference:?}: {detail}")]
    ImagePull {
        /// As given.
        reference: String,
        /// What the registry said.
        detail: String,
    },
    /// The image is not on this node: `ErrImageNeverPull` or a pull first.
    #[error("image {reference:?} is not present on this node")]
    ImageMissing {
        /// As given.
        reference: String,
    },
    /// The container cannot be created from its specification: `CreateContainerError`.
    #[error("failed to create container {id}: {detail}")]
    Create {
        /// The container.
        id: String,
        /// Why.
        detail: String,
    },
    /// The container cannot be started: `RunContainerError` / `StartError`.
    #[error("failed to start container {id}: {detail}")]
    Start {
        /// The container.
        id: String,
        /// Why.
        detail: String,
    },
    /// There is no such container.
    #[error("container {id} does not exist")]
    NotFound {
        /// The container.
        id: String,
    },
    /// The runtime does not answer.
    #[error("the container runtime does not answer at {address}: {detail}; is containerd running?")]
    Unavailable {
        /// Its socket.
        address: String,
        /// The transport's words.
        detail: String,
    },
    /// Anything else.
    #[error("container runtime, while {doing}: {detail}")]
    Other {
        /// What was being done, on what.
        doing: String,
        /// What went wrong.
        detail: String,
    },
}

/// Credentials for a registry.
#[derive(Clone, Default)]
pub struct RegistryAuth {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

/// An image on this node.
#[derive(Debug, Clone, Default)]
pub struct ImageInfo {
    /// Digest of the image configuration (`sha256:…`): `status.containerStatuses[].imageID` shows it.
    pub id: String,
    /// Names with tags, fully qualified (`docker.io/library/nginx:latest`).
    pub names: Vec<String>,
    /// `repository@digest` of the manifest.
    pub repo_digests: Vec<String>,
    /// Bytes of content.
    pub size: u64,
    /// From the image configuration.
    pub entrypoint: Vec<String>,
    /// From the image configuration.
    pub cmd: Vec<String>,
    /// `KEY=value`, from the image configuration.
    pub env: Vec<String>,
    /// `user[:group]`, names or numbers, from the image configuration.
    pub user: String,
    /// From the image configuration.
    pub working_dir: String,
    /// For example `SIGQUIT`, from the image configuration.
    pub stop_signal: Option<String>,
}

/// A mount of a host path into a container.
#[derive(Debug, Clone)]
pub struct Mount {
    /// Path on the node; bind-mounted.
    pub source: PathBuf,
    /// Path in the container.
    pub destination: PathBuf,
    /// Read-only.
    pub read_only: bool,
    /// `None`, `HostToContainer` or `Bidirectional` (`mountPropagation`).
    pub propagation: MountPropagation,
}

/// `volumeMounts[].mountPropagation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MountPropagation {
    /// Private.
    #[default]
    None,
    /// rslave.
    HostToContainer,
    /// rshared.
    Bidirectional,
}

/// Limits in the units of cgroups; `None` is unlimited.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourceLimits {
    /// cgroup v1 `cpu.shares` (v2 weight is derived).
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time a period of 100,000 µs.
    pub cpu_quota: Option<i64>,
    /// Bytes.
    pub memory_bytes: Option<i64>,
    /// Number of processes.
    pub pids: Option<i64>,
}

/// Everything needed to create one container.
#[derive(Debug, Clone, Default)]
pub struct ContainerSpec {
    /// Unique on the node, at most 76 characters of `[A-Za-z0-9_.-]`.
    pub id: String,
    /// Found again after a restart: pod uid, namespace, name, container name, restart count, spec hash, …
    pub labels: BTreeMap<String, String>,
    /// Image name as resolved by [`crate::Runtime::image`].
    pub image: String,
    /// The complete argument vector (entrypoint and command are merged by the kubelet).
    pub args: Vec<String>,
    /// `KEY=value`, complete and in order (the image's are merged by the kubelet).
    pub env: Vec<String>,
    /// Working directory; `/` when empty.
    pub working_dir: String,
    /// `uid[:gid]` or names resolved in the container's own `/etc/passwd`; empty for root.
    pub user: String,
    /// Supplementary groups (`fsGroup`, `supplementalGroups`).
    pub extra_groups: Vec<u32>,
    /// Bind mounts, in order (`/etc/hosts`, `/etc/resolv.conf`, volumes, service-account token, …).
    pub mounts: Vec<Mount>,
    /// `/run/netns/…`; `None` for the host's (node's) network.
    pub network_namespace: Option<PathBuf>,
    /// Host name inside.
    pub hostname: String,
    /// Absolute cgroup path, for example `/causeway-default/pod<uid>/<container id>`.
    pub cgroup_path: String,
    /// Limits.
    pub resources: ResourceLimits,
    /// `securityContext.privileged`.
    pub privileged: bool,
    /// `securityContext.readOnlyRootFilesystem`.
    pub read_only_rootfs: bool,
    /// Added to the default set, without `CAP_`; `ALL` for all.
    pub add_capabilities: Vec<String>,
    /// Removed from the default set; `ALL` for all.
    pub drop_capabilities: Vec<String>,
    /// `!allowPrivilegeEscalation`.
    pub no_new_privileges: bool,
    /// `sysctl` names and values of the pod.
    pub sysctls: BTreeMap<String, String>,
    /// `tty: true`.
    pub tty: bool,
    /// `stdin: true`.
    pub stdin: bool,
    /// `stdinOnce: true`: the input of the first who attaches is all there will be.
    pub stdin_once: bool,
    /// The container's log in the CRI format; appended to, parent folders are made.
    pub log_path: PathBuf,
    /// Signal that [`crate::Runtime::stop_container`] sends unless told otherwise; `SIGTERM` when `None`.
    pub stop_signal: Option<String>,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Created, not started.
    Created,
    /// Running.
    Running {
        /// Its first process, as seen from the node.
        pid: u32,
        /// When it was started.
        started_at: jiff::Timestamp,
    },
    /// Ended.
    Exited {
        /// 128 + signal when killed.
        code: i32,
        /// When it was started, as far as known.
        started_at: Option<jiff::Timestamp>,
        /// When it ended.
        finished_at: jiff::Timestamp,
        /// The kernel killed it for memory.
        oom_killed: bool,
    },
}

/// A container as the runtime knows it.
#[derive(Debug, Clone)]
pub struct ContainerInfo {
    /// Its id.
    pub id: String,
    /// As given at creation.
    pub labels: BTreeMap<String, String>,
    /// As given at creation.
    pub image: String,
    /// When it was created.
    pub created_at: jiff::Timestamp,
    /// Its state.
    pub state: ContainerState,
}

/// Something happened to a container: look at it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerEvent {
    /// Its first process ended.
    Exited {
        /// The container.
        id: String,
    },
    /// The kernel killed a process of it for memory.
    Oom {
        /// The container.
        id: String,
    },
}

/// What to run in a container.
#[derive(Debug, Clone, Default)]
pub struct ExecSpec {
    /// Argument vector; unused by attach.
    pub command: Vec<String>,
    /// Allocate a terminal; stderr is merged into stdout then.
    pub tty: bool,
    /// Connect standard input.
    pub stdin: bool,
    /// Connect standard output.
    pub stdout: bool,
    /// Connect standard error.
    pub stderr: bool,
}

/// A terminal size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A byte stream into a process; dropping it closes the process' standard input.
pub type BoxWrite = Box<dyn AsyncWrite + Send + Unpin>;
/// A byte stream out of a process; ends when the process closes it.
pub type BoxRead = Box<dyn AsyncRead + Send + Unpin>;

/// A running exec or attach.
pub struct ExecSession {
    /// Present when asked for.
    pub stdin: Option<BoxWrite>,
    /// Present when asked for.
    pub stdout: Option<BoxRead>,
    /// Present when asked for and there is no terminal.
    pub stderr: Option<BoxRead>,
    /// Terminal sizes go in here.
    pub resize: mpsc::Sender<TerminalSize>,
    /// The exit code, once; after all output has been handed over. Dropping the session kills an exec.
    pub exit: oneshot::Receiver<i32>,
}

/// The result of a short command.
#[derive(Debug, Clone, Default)]
pub struct ExecOutput {
    /// Exit code; `None` when it was killed at the time-out.
    pub code: Option<i32>,
    /// Standard output and error, interleaved, at most 64 KiB.
    pub output: String,
}

/// Use of resources.
#[derive(Debug, Clone, Copy, Default)]
pub struct ContainerStats {
    /// CPU time since start, nanoseconds.
    pub cpu_nanos: u64,
    /// Memory in use without reclaimable cache, bytes.
    pub memory_working_set: u64,
}
