//! The container-technology-agnostic seam: sandboxes are the network's business, images, containers, exec and logs
//! are here, as one trait. The kubelet is the only user.
//!
//! In: [`ContainerSpec`]s in the words of the pod API. Out: containers that run, their exits as events, log files
//! in the CRI format (`<RFC 3339 nanos> stdout F <line>`).

pub mod cgroup;
mod containerd;
pub mod daemon;
pub mod oci_build;
mod types;

pub use containerd::{Containerd, ContainerdConfig};
pub use types::*;

use async_trait::async_trait;
use futures::stream::BoxStream;
use std::{path::Path, time::Duration};

/// What the kubelet needs of a container runtime. Every call is idempotent: creating what exists returns it,
/// stopping or removing what is gone succeeds.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Name and version, for `Node.status.nodeInfo.containerRuntimeVersion` (`containerd://1.6.20`).
    async fn version(&self) -> Result<String>;

    /// Pulls an image from its registry (also plain HTTP for registries configured so) and unpacks it.
    async fn pull_image(&self, reference: &str, auth: Option<&RegistryAuth>) -> Result<ImageInfo>;

    /// What is known locally of an image; `None` when it is not there.
    async fn image(&self, reference: &str) -> Result<Option<ImageInfo>>;

    /// All images.
    async fn images(&self) -> Result<Vec<ImageInfo>>;

    /// Loads an OCI layout or docker archive (tar, plain or gzip) and returns the names it brought.
    async fn load_image(&self, archive: &Path) -> Result<Vec<String>>;

    /// Removes an image by name.
    async fn remove_image(&self, reference: &str) -> Result<()>;

    /// Creates a container (root file system, OCI spec), not started.
    async fn create_container(&self, spec: &ContainerSpec) -> Result<()>;

    /// Starts a created container. Its output goes to [`ContainerSpec::log_path`] from the first byte.
    async fn start_container(&self, id: &str) -> Result<()>;

    /// Sends the stop signal, waits up to `grace`, then kills. Returns when the container has exited.
    async fn stop_container(&self, id: &str, signal: Option<&str>, grace: Duration) -> Result<()>;

    /// Removes an exited container, its root file system and its runtime state (not its log).
    async fn remove_container(&self, id: &str) -> Result<()>;

    /// All containers of this node, including exited ones that were not removed, found again after a restart.
    async fn containers(&self) -> Result<Vec<ContainerInfo>>;

    /// Exits and out-of-memory kills from now on. Ends only when the runtime is gone.
    async fn events(&self) -> Result<BoxStream<'static, ContainerEvent>>;

    /// Runs a command in a running container.
    async fn exec(&self, id: &str, spec: &ExecSpec) -> Result<ExecSession>;

    /// Runs a command without input and collects its output (at most 64 KiB), for probes and hooks.
    async fn exec_sync(&self, id: &str, command: &[String], timeout: Duration) -> Result<ExecOutput>;

    /// Attaches to the first process of a running container.
    async fn attach(&self, id: &str, spec: &ExecSpec) -> Result<ExecSession>;

    /// CPU and memory in use.
    async fn stats(&self, id: &str) -> Result<ContainerStats>;
}
