//! containerd as a [`Runtime`]: its own gRPC services (content, images, snapshots, containers, tasks, events), no CRI.
//!
//! In: the trait's calls. Out: content, snapshots and tasks in one containerd namespace; logs and records of exits in
//! files of ours. What containerd knows is never cached across calls, so a restart of either side changes nothing.

pub(crate) use manifest::architecture;

mod archive;
mod content;
mod create;
mod events;
mod exec;
mod images;
mod io;
mod lifecycle;
mod logs;
mod manifest;
mod record;
mod registry;
mod rpc;
mod signals;
mod spec;
mod users;

use crate::{
    Runtime, cgroup,
    types::{
        ContainerEvent, ContainerInfo, ContainerSpec, ContainerStats, ExecOutput, ExecSession, ExecSpec, ImageInfo,
        RegistryAuth, Result, RuntimeError,
    },
};
use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Semaphore, broadcast};
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::sync::CancellationToken;

/// Pulls at the same time; more would only share the same line.
const PULLS: usize = 3;

/// Where containerd is and how we use it.
#[derive(Debug, Clone)]
pub struct ContainerdConfig {
    /// Its gRPC socket.
    pub socket: PathBuf,
    /// The containerd namespace that holds this node's images and containers.
    pub namespace: String,
    /// For pipes; must survive a restart of the program, and may be lost with a reboot.
    pub state_dir: PathBuf,
    /// For records of starts and exits, on a disk that outlives a reboot: a container of which nobody knows that it ran
    /// would be started twice. `None`: beside the pipes.
    pub record_dir: Option<PathBuf>,
    /// `overlayfs` wherever possible, `native` where the file system cannot.
    pub snapshotter: String,
    /// Registries (`host[:port]`) that are spoken to in plain HTTP; those on a loopback address always are.
    pub insecure_registries: Vec<String>,
    /// Network namespace of containers without one of their own; `None` is that of containerd. Nodes that are
    /// namespaces must set it, or `hostNetwork` pods get the machine's network.
    pub node_network: Option<PathBuf>,
    /// Where runc keeps its state; `None` is containerd's default, `/run/containerd/runc`.
    pub runc_root: Option<PathBuf>,
    /// The tokio runtime that pulls; `None` is the caller's. Threads that live in a network namespace without a way out
    /// hand the pull to those of the machine.
    pub pull_on: Option<tokio::runtime::Handle>,
}

impl ContainerdConfig {
    /// The usual settings. Beside a socket of our own (not in `/run/containerd`), runc's state is kept there too.
    pub fn new(socket: impl Into<PathBuf>, namespace: impl Into<String>, state_dir: impl Into<PathBuf>) -> Self {
        let socket = socket.into();
        let beside = socket.parent().filter(|p| *p != Path::new("/run/containerd")).map(|p| p.join("runc"));
        Self {
            socket,
            namespace: namespace.into(),
            state_dir: state_dir.into(),
            record_dir: None,
            snapshotter: "overlayfs".into(),
            insecure_registries: Vec::new(),
            node_network: None,
            runc_root: beside,
            pull_on: None,
        }
    }
}

/// containerd behind the [`Runtime`] trait. Cheap to clone; containers run on when the last clone is dropped.
#[derive(Clone)]
pub struct Containerd {
    inner: Arc<Inner>,
}

struct Inner {
    api: rpc::Api,
    config: ContainerdConfig,
    images: images::Images,
    pumps: Mutex<HashMap<String, io::Pump>>,
    events: broadcast::Sender<ContainerEvent>,
    /// Containers whose exit was told.
    announced: Mutex<HashSet<String>>,
    pulls: Semaphore,
    cancel: CancellationToken,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Containerd {
    /// Connects, takes up the logs of running containers again and starts to listen for exits. Fails when containerd
    /// does not answer; later interruptions are survived.
    pub async fn connect(config: ContainerdConfig) -> Result<Self> {
        // reqwest panics without a provider; another one that is already there is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let address = config.socket.display().to_string();
        let connecting = tokio::time::timeout(Duration::from_secs(10), containerd_client::connect(&config.socket));
        let unavailable = |detail: String| RuntimeError::Unavailable { address: address.clone(), detail };
        let channel = connecting
            .await
            .map_err(|_| unavailable("no answer within 10 s".into()))?
            .map_err(|error| unavailable(content::chain(&error)))?;
        let api = rpc::Api::new(channel, &config.namespace, address.clone())?;
        std::fs::create_dir_all(config.state_dir.join("containers")).map_err(|error| RuntimeError::Other {
            doing: format!("making the state folder {}", config.state_dir.display()),
            detail: error.to_string(),
        })?;
        let inner = Arc::new(Inner {
            images: images::Images::new(api.clone(), config.snapshotter.clone()),
            api,
            config,
            pumps: Mutex::default(),
            events: broadcast::Sender::new(1024),
            announced: Mutex::default(),
            pulls: Semaphore::new(PULLS),
            cancel: CancellationToken::new(),
        });
        let this = Self { inner };
        this.version().await?;
        // What ended before is found by the first list of the caller.
        let ended = this.inner.adopt().await?;
        this.inner.announced.lock().extend(ended);
        tokio::spawn(events::listen(Arc::downgrade(&this.inner), this.inner.cancel.clone()));
        Ok(this)
    }
}

impl Inner {
    async fn pull(self: Arc<Self>, reference: String, auth: Option<RegistryAuth>) -> Result<ImageInfo> {
        let image = manifest::parse_reference(&reference)?;
        let fail = |detail: String| RuntimeError::ImagePull { reference: reference.clone(), detail };
        let _turn = self.pulls.acquire().await.map_err(|error| fail(error.to_string()))?;
        let name = image.whole();
        let source = registry::Registry::resolve(image, auth.as_ref(), &self.config.insecure_registries).await?;
        // What goes wrong on the way is a failed pull, except that containerd is gone.
        self.images.store(&name, source.root(), &source).await.map_err(|error| match error {
            RuntimeError::Other { doing, detail } => fail(format!("{doing}: {detail}")),
            other => other,
        })?;
        self.images.info(&name).await?.ok_or_else(|| fail("it vanished as soon as it was pulled".into()))
    }

    async fn load(&self, archive: &Path) -> Result<Vec<String>> {
        let (path, scratch) = (archive.to_path_buf(), self.config.state_dir.clone());
        let opened = tokio::task::spawn_blocking(move || archive::Archive::open(&path, &scratch)).await;
        let archive = opened.map_err(|error| RuntimeError::Other {
            doing: format!("loading image archive {}", archive.display()),
            detail: error.to_string(),
        })??;
        let mut names = Vec::new();
        for (name, target) in &archive.images {
            self.images.store(name, target.clone(), &archive).await?;
            names.push(name.clone());
        }
        Ok(names)
    }
}

#[async_trait]
impl Runtime for Containerd {
    async fn version(&self) -> Result<String> {
        let api = &self.inner.api;
        let answer =
            api.versions().version(api.ask((), rpc::SHORT)).await.map_err(|s| api.fail("asking its version", &s))?;
        let version = answer.into_inner().version;
        // Debian appends `~ds1`; node info wants the plain version.
        let plain = version.split(['~', '+', ' ']).next().unwrap_or_default().trim_start_matches('v');
        Ok(format!("containerd://{plain}"))
    }

    async fn pull_image(&self, reference: &str, auth: Option<&RegistryAuth>) -> Result<ImageInfo> {
        let pull = self.inner.clone().pull(reference.to_string(), auth.cloned());
        match &self.inner.config.pull_on {
            None => pull.await,
            Some(handle) => handle.spawn(pull).await.map_err(|error| RuntimeError::ImagePull {
                reference: reference.into(),
                detail: format!("the pull was broken off: {error}"),
            })?,
        }
    }

    async fn image(&self, reference: &str) -> Result<Option<ImageInfo>> {
        self.inner.images.info(reference).await
    }

    async fn images(&self) -> Result<Vec<ImageInfo>> {
        self.inner.images.list().await
    }

    async fn load_image(&self, archive: &Path) -> Result<Vec<String>> {
        self.inner.load(archive).await
    }

    async fn remove_image(&self, reference: &str) -> Result<()> {
        self.inner.images.remove(reference).await
    }

    async fn create_container(&self, spec: &ContainerSpec) -> Result<()> {
        self.inner.create(spec).await
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        self.inner.start(id).await
    }

    async fn stop_container(&self, id: &str, signal: Option<&str>, grace: Duration) -> Result<()> {
        self.inner.stop(id, signal, grace).await
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.inner.remove(id).await
    }

    async fn containers(&self) -> Result<Vec<ContainerInfo>> {
        self.inner.list().await
    }

    async fn events(&self) -> Result<BoxStream<'static, ContainerEvent>> {
        // Who lags so far behind that events are lost looks at all containers from time to time anyway.
        Ok(BroadcastStream::new(self.inner.events.subscribe()).filter_map(async |event| event.ok()).boxed())
    }

    async fn exec(&self, id: &str, spec: &ExecSpec) -> Result<ExecSession> {
        self.inner.clone().exec(id, spec).await
    }

    async fn exec_sync(&self, id: &str, command: &[String], timeout: Duration) -> Result<ExecOutput> {
        self.inner.clone().exec_sync(id, command, timeout).await
    }

    async fn attach(&self, id: &str, spec: &ExecSpec) -> Result<ExecSession> {
        self.inner.clone().attach(id, spec).await
    }

    async fn stats(&self, id: &str) -> Result<ContainerStats> {
        let container = self.inner.container(id).await?;
        let path = record::own_label(&container, record::CGROUP).unwrap_or_default().to_string();
        cgroup::stats(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => RuntimeError::NotFound { id: id.into() },
            _ => RuntimeError::Other { doing: format!("reading cgroup {path}"), detail: error.to_string() },
        })
    }
}
