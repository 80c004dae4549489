//! Containers from creation to removal. In: specifications and ids. Out: snapshots, container records and tasks in
//! containerd, each step repeatable, and the state of all of them after a restart of either side.

use super::{
    Inner,
    content::{Labels, Lease},
    images::Image,
    io::{Fifos, Pump},
    logs::LogFile,
    record::{CGROUP, LOG, PREFIX, Record, STDIN, STOP_SIGNAL, TTY, own_label},
    rpc::{self, LONG, SHORT, gone_is_fine},
    signals,
    spec::{self, Machine},
    users::{Layers, resolve},
};
use crate::{
    cgroup,
    types::{ContainerInfo, ContainerSpec, ContainerState, Result, RuntimeError},
};
use containerd_client::{
    services::v1::{
        Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest,
        GetContainerRequest, GetRequest, KillRequest, ListContainersRequest, ListTasksRequest, StartRequest,
        WaitRequest, container,
        snapshots::{MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest},
    },
    types::{
        Mount,
        v1::{Process, Status as TaskStatus},
    },
};
use jiff::Timestamp;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};
use prost::Message;
use std::{
    collections::HashMap,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};
use tonic::{Code, Status};

const RUNTIME: &str = "io.containerd.runc.v2";
/// Says how a task ended that nobody could ask any more, as CRI does.
const UNKNOWN_EXIT: i32 = 255;
/// How long an exit may wait for the last of its log.
const DRAIN: Duration = Duration::from_secs(3);

/// `containerd.runc.v1.Options`, as far as we set them.
#[derive(Clone, PartialEq, Message)]
struct RuncOptions {
    #[prost(string, tag = "7")]
    root: String,
}

impl Inner {
    pub(super) fn folder(&self, id: &str) -> PathBuf {
        self.config.state_dir.join("containers").join(id)
    }

    pub(super) async fn container(&self, id: &str) -> Result<Container> {
        self.find(id).await?.ok_or_else(|| RuntimeError::NotFound { id: id.into() })
    }

    async fn find(&self, id: &str) -> Result<Option<Container>> {
        let request = self.api.ask(GetContainerRequest { id: id.into() }, SHORT);
        let found = gone_is_fine(self.api.containers().get(request).await)
            .map_err(|s| self.api.fail(format!("looking up container {id}"), &s))?;
        Ok(found.and_then(|answer| answer.into_inner().container))
    }

    pub(super) async fn task(&self, id: &str) -> Result<Option<Process>> {
        let request = self.api.ask(GetRequest { container_id: id.into(), exec_id: String::new() }, SHORT);
        let found = gone_is_fine(self.api.tasks().get(request).await)
            .map_err(|s| self.api.fail(format!("looking up the task of container {id}"), &s))?;
        Ok(found.and_then(|answer| answer.into_inner().process))
    }

    pub(super) async fn create(&self, spec: &ContainerSpec) -> Result<()> {
        let fail = |detail: String| RuntimeError::Create { id: spec.id.clone(), detail };
        let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if spec.id.is_empty() || spec.id.len() > 76 || !spec.id.bytes().all(valid) || spec.id.starts_with('.') {
            return Err(fail("its id must be 1 to 76 characters of [A-Za-z0-9_.-]".into()));
        }
        if self.find(&spec.id).await?.is_some() {
            return Ok(());
        }
        let image = self.images.find(&spec.image).await?;
        let lease = Lease::new(&self.api).await?;
        let mounts = self.prepare(&spec.id, &image, &lease).await?;
        let built = self.specification(spec, &mounts).await.map_err(fail);
        let created = match built {
            Ok(container) => {
                let request = CreateContainerRequest { container: Some(container) };
                match self.api.containers().create(self.api.leased(request, &lease.id, SHORT)).await {
                    Ok(_) => return Ok(()),
                    Err(status) if status.code() == Code::AlreadyExists => return Ok(()),
                    Err(status) if status.code() == Code::Unavailable => Err(self.api.fail("creating", &status)),
                    Err(status) => Err(fail(rpc::words(&status))),
                }
            }
            Err(error) => Err(error),
        };
        let _ = self.remove_snapshot(&spec.id).await;
        created
    }

    /// The container's own layer above the image's. Left-overs of an attempt that did not get further are used.
    async fn prepare(&self, id: &str, image: &Image, lease: &Lease) -> Result<Vec<Mount>> {
        for attempt in 0..2 {
            let request = PrepareSnapshotRequest {
                snapshotter: self.config.snapshotter.clone(),
                key: id.into(),
                parent: image.chain_id(),
                labels: Labels::new(),
            };
            let prepared = self.api.snapshots().prepare(self.api.leased(request, &lease.id, SHORT)).await;
            match prepared {
                Ok(answer) => return Ok(answer.into_inner().mounts),
                Err(status) if status.code() == Code::AlreadyExists => return self.mounts(id).await,
                // The image is there but was unpacked for another snapshotter, or the snapshot was removed by hand.
                Err(status) if status.code() == Code::NotFound && attempt == 0 => {
                    self.images.unpack(image, lease).await?;
                }
                Err(status) => return Err(self.api.fail(format!("preparing the file system of {id}"), &status)),
            }
        }
        Err(RuntimeError::Create {
            id: id.into(),
            detail: "the image cannot be unpacked; remove and pull it again".into(),
        })
    }

    async fn mounts(&self, id: &str) -> Result<Vec<Mount>> {
        let request = MountsRequest { snapshotter: self.config.snapshotter.clone(), key: id.into() };
        let answer = self.api.snapshots().mounts(self.api.ask(request, SHORT)).await;
        answer
            .map(|answer| answer.into_inner().mounts)
            .map_err(|s| self.api.fail(format!("finding the file system of {id}"), &s))
    }

    async fn specification(&self, wish: &ContainerSpec, mounts: &[Mount]) -> Result<Container, String> {
        let layers = Layers::of(mounts);
        let text = |path: &str| layers.read(path).unwrap_or_default();
        let who = resolve(&wish.user, &text("/etc/passwd"), &text("/etc/group"))?;
        let mut wish = wish.clone();
        if wish.cgroup_path.is_empty() {
            wish.cgroup_path = format!("/causeway/{}/{}", self.config.namespace, wish.id);
        }
        let built = spec::build(&wish, &who, &machine(&self.config.node_network, wish.privileged))?;
        let mut labels: HashMap<String, String> = wish.labels.clone().into_iter().collect();
        let mut own = |name: &str, value: String| labels.insert(format!("{PREFIX}{name}"), value);
        own(LOG, wish.log_path.to_string_lossy().into_owned());
        own(CGROUP, wish.cgroup_path.clone());
        own(TTY, wish.tty.to_string());
        own(STDIN, wish.stdin.to_string());
        if let Some(signal) = &wish.stop_signal {
            signals::number(signal).ok_or_else(|| format!("unknown stop signal {signal:?}"))?;
            own(STOP_SIGNAL, signal.clone());
        }
        let options = self.config.runc_root.as_ref().map(|root| prost_types::Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: RuncOptions { root: root.to_string_lossy().into_owned() }.encode_to_vec(),
        });
        Ok(Container {
            id: wish.id.clone(),
            labels,
            image: wish.image.clone(),
            runtime: Some(container::Runtime { name: RUNTIME.into(), options }),
            spec: Some(prost_types::Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
                value: serde_json::to_vec(&built).map_err(|error| error.to_string())?,
            }),
            snapshotter: self.config.snapshotter.clone(),
            snapshot_key: wish.id,
            ..Default::default()
        })
    }

    pub(super) async fn start(&self, id: &str) -> Result<()> {
        let fail = |detail: String| RuntimeError::Start { id: id.into(), detail };
        let container = self.container(id).await?;
        if let Some(task) = self.task(id).await? {
            match task.status() {
                TaskStatus::Running | TaskStatus::Paused | TaskStatus::Pausing => return Ok(()),
                TaskStatus::Stopped => return Err(fail("it has exited already; make a new one".into())),
                // Half-started by a process that died: its pipes are not known to be ours.
                TaskStatus::Created | TaskStatus::Unknown => self.delete_task(id).await?,
            }
        }
        if Record::load(&self.folder(id)).started_at.is_some() {
            return Err(fail("it has exited already; make a new one".into()));
        }
        let fifos = fifos(&self.folder(id), &container);
        let log = LogFile::open(Path::new(own_label(&container, LOG).unwrap_or_default()))
            .map_err(|error| fail(format!("opening its log: {error}")))?;
        fifos.make().map_err(|error| fail(format!("making its pipes: {error}")))?;
        let (outputs, held) = fifos.open_outputs().map_err(|error| fail(format!("opening its pipes: {error}")))?;
        let pump = Pump::start(outputs, log, self.cancel.child_token());
        self.pumps.lock().insert(id.into(), pump);
        let started = self.run_task(id, &container, &fifos).await;
        drop(held);
        if started.is_err() {
            self.pumps.lock().remove(id);
            let _ = self.delete_task(id).await;
            fifos.remove();
        }
        started
    }

    async fn run_task(&self, id: &str, container: &Container, fifos: &Fifos) -> Result<()> {
        let fail = |status: &Status| match status.code() {
            Code::Unavailable => self.api.fail("starting", status),
            _ => RuntimeError::Start { id: id.into(), detail: rpc::words(status) },
        };
        let path = |p: &Option<PathBuf>| p.as_ref().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
        let request = CreateTaskRequest {
            container_id: id.into(),
            rootfs: self.mounts(id).await?,
            stdin: path(&fifos.stdin),
            stdout: path(&fifos.stdout),
            stderr: path(&fifos.stderr),
            terminal: own_label(container, TTY) == Some("true"),
            ..Default::default()
        };
        self.api.tasks().create(self.api.ask(request, LONG)).await.map_err(|s| fail(&s))?;
        // Written first: a container of which nobody knows that it ran would be started twice.
        let mut record = Record { started_at: Some(Timestamp::now()), ..Default::default() };
        self.save(id, &record);
        let start = StartRequest { container_id: id.into(), exec_id: String::new() };
        if let Err(status) = self.api.tasks().start(self.api.ask(start, LONG)).await {
            record.started_at = None;
            self.save(id, &record);
            return Err(fail(&status));
        }
        Ok(())
    }

    fn save(&self, id: &str, record: &Record) {
        if let Err(error) = record.save(&self.folder(id)) {
            tracing::warn!(container = id, %error, "its record cannot be written");
        }
    }

    /// Remembers that the kernel killed in this container for memory.
    pub(super) fn note_oom(&self, id: &str) {
        let mut record = Record::load(&self.folder(id));
        if record.started_at.is_some() && !record.oom_killed {
            record.oom_killed = true;
            self.save(id, &record);
        }
    }

    /// Remembers how a container ended, once its log is complete.
    pub(super) async fn settle(&self, id: &str, code: i32, at: Option<Timestamp>) -> Record {
        let pump = self.pumps.lock().get(id).cloned();
        if let Some(pump) = pump {
            let _ = tokio::time::timeout(DRAIN, pump.drained()).await;
        }
        let mut record = Record::load(&self.folder(id));
        if record.finished_at.is_some() {
            return record;
        }
        if let Ok(Some(container)) = self.find(id).await {
            let killed = own_label(&container, CGROUP).map_or(0, cgroup::oom_kills);
            record.oom_killed = (record.oom_killed || killed > 0) && code != 0;
            record.exit_code = Some(code);
            record.finished_at = Some(at.unwrap_or_else(Timestamp::now));
            self.save(id, &record);
        }
        record
    }

    pub(super) async fn kill(&self, id: &str, exec: &str, signal: u32, all: bool) -> Result<()> {
        let request = KillRequest { container_id: id.into(), exec_id: exec.into(), signal, all };
        match gone_is_fine(self.api.tasks().kill(self.api.ask(request, SHORT)).await) {
            Err(status) if !status.message().contains("process already finished") => {
                Err(self.api.fail(format!("sending signal {signal} to {id}"), &status))
            }
            _ => Ok(()),
        }
    }

    /// Waits for the end of a process; `None` when containerd no longer knows it.
    pub(super) async fn wait(&self, id: &str, exec: &str) -> Option<(i32, Option<Timestamp>)> {
        loop {
            let request = WaitRequest { container_id: id.into(), exec_id: exec.into() };
            match self.api.tasks().wait(self.api.stream(request)).await {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    let code = i32::try_from(answer.exit_status).unwrap_or(UNKNOWN_EXIT);
                    return Some((code, rpc::time(answer.exited_at.as_ref())));
                }
                Err(status) if matches!(status.code(), Code::Unavailable | Code::Cancelled) => {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                Err(_) => return None,
            }
        }
    }

    pub(super) async fn stop(&self, id: &str, signal: Option<&str>, grace: Duration) -> Result<()> {
        let Some(container) = self.find(id).await? else { return Ok(()) };
        let Some(task) = self.task(id).await? else { return Ok(()) };
        let exited = async {
            if let Some((code, at)) = self.wait(id, "").await {
                self.settle(id, code, at).await;
            }
        };
        tokio::pin!(exited);
        if task.status() == TaskStatus::Stopped {
            exited.await;
            return Ok(());
        }
        if task.status() == TaskStatus::Created {
            return self.delete_task(id).await;
        }
        let name = signal.or(own_label(&container, STOP_SIGNAL)).unwrap_or("SIGTERM");
        let number = signals::number(name).unwrap_or(nix::libc::SIGTERM as u32);
        if !grace.is_zero() {
            self.kill(id, "", number, false).await?;
            if tokio::time::timeout(grace, &mut exited).await.is_ok() {
                return Ok(());
            }
        }
        for _ in 0..5 {
            self.kill(id, "", nix::libc::SIGKILL as u32, true).await?;
            if tokio::time::timeout(Duration::from_secs(4), &mut exited).await.is_ok() {
                return Ok(());
            }
        }
        Err(RuntimeError::Other {
            doing: format!("killing container {id}"),
            detail: "it is still there after 20 s; a process of it may hang in the kernel".into(),
        })
    }

    async fn delete_task(&self, id: &str) -> Result<()> {
        for attempt in 0..3 {
            let request = DeleteTaskRequest { container_id: id.into() };
            match gone_is_fine(self.api.tasks().delete(self.api.ask(request, LONG)).await) {
                Ok(_) => return Ok(()),
                // Created or still running: only a dead one can be deleted.
                Err(status) if status.code() == Code::FailedPrecondition && attempt < 2 => {
                    self.kill(id, "", nix::libc::SIGKILL as u32, true).await?;
                    let _ = tokio::time::timeout(Duration::from_secs(10), self.wait(id, "")).await;
                }
                Err(status) => return Err(self.api.fail(format!("deleting the task of {id}"), &status)),
            }
        }
        Ok(())
    }

    async fn remove_snapshot(&self, id: &str) -> Result<()> {
        let request = RemoveSnapshotRequest { snapshotter: self.config.snapshotter.clone(), key: id.into() };
        gone_is_fine(self.api.snapshots().remove(self.api.ask(request, SHORT)).await)
            .map(drop)
            .map_err(|s| self.api.fail(format!("removing the file system of {id}"), &s))
    }

    pub(super) async fn remove(&self, id: &str) -> Result<()> {
        let container = self.find(id).await?;
        self.stop(id, None, Duration::ZERO).await?;
        self.delete_task(id).await?;
        let request = self.api.ask(DeleteContainerRequest { id: id.into() }, SHORT);
        gone_is_fine(self.api.containers().delete(request).await)
            .map_err(|s| self.api.fail(format!("removing container {id}"), &s))?;
        self.remove_snapshot(id).await?;
        self.pumps.lock().remove(id);
        self.announced.lock().remove(id);
        match std::fs::remove_dir_all(self.folder(id)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(container = id, %error, "its folder cannot be removed");
            }
            _ => {}
        }
        // runc removes its own group; after a crash of the shim it may be left.
        if let Some(path) = container.as_ref().and_then(|c| own_label(c, CGROUP)) {
            let path = path.to_string();
            let _ = tokio::task::spawn_blocking(move || cgroup::remove_empty(&path)).await;
        }
        Ok(())
    }

    async fn listed(&self) -> Result<(Vec<Container>, HashMap<String, Process>)> {
        let request = self.api.ask(ListContainersRequest::default(), SHORT);
        let containers = self.api.containers().list(request).await;
        let containers = containers.map_err(|s| self.api.fail("listing containers", &s))?.into_inner().containers;
        let request = self.api.ask(ListTasksRequest::default(), SHORT);
        let tasks = self.api.tasks().list(request).await.map_err(|s| self.api.fail("listing tasks", &s))?;
        let key = |p: &Process| if p.id.is_empty() { p.container_id.clone() } else { p.id.clone() };
        Ok((containers, tasks.into_inner().tasks.into_iter().map(|p| (key(&p), p)).collect()))
    }

    pub(super) async fn list(&self) -> Result<Vec<ContainerInfo>> {
        let (containers, tasks) = self.listed().await?;
        let mut infos = Vec::with_capacity(containers.len());
        for container in containers {
            // Others' containers in our namespace (made with ctr) are left alone.
            if own_label(&container, CGROUP).is_none() {
                continue;
            }
            let state = self.state(&container, tasks.get(&container.id)).await;
            infos.push(ContainerInfo {
                created_at: rpc::time(container.created_at.as_ref()).unwrap_or(Timestamp::UNIX_EPOCH),
                labels: container.labels.into_iter().filter(|(key, _)| !key.starts_with(PREFIX)).collect(),
                id: container.id,
                image: container.image,
                state,
            });
        }
        Ok(infos)
    }

    async fn state(&self, container: &Container, task: Option<&Process>) -> ContainerState {
        let id = &container.id;
        let mut record = Record::load(&self.folder(id));
        match task.map(|task| (task, task.status())) {
            Some((task, TaskStatus::Running | TaskStatus::Paused | TaskStatus::Pausing | TaskStatus::Unknown)) => {
                let since = record.started_at.or(rpc::time(container.created_at.as_ref()));
                return ContainerState::Running { pid: task.pid, started_at: since.unwrap_or(Timestamp::UNIX_EPOCH) };
            }
            Some((task, TaskStatus::Stopped)) => {
                let code = i32::try_from(task.exit_status).unwrap_or(UNKNOWN_EXIT);
                record = self.settle(id, code, rpc::time(task.exited_at.as_ref())).await;
            }
            Some((_, TaskStatus::Created)) => return ContainerState::Created,
            None if record.started_at.is_none() => return ContainerState::Created,
            // Its task went with a crash or a reboot.
            None => record = self.settle(id, UNKNOWN_EXIT, None).await,
        }
        ContainerState::Exited {
            code: record.exit_code.unwrap_or(UNKNOWN_EXIT),
            started_at: record.started_at,
            finished_at: record.finished_at.unwrap_or(Timestamp::UNIX_EPOCH),
            oom_killed: record.oom_killed,
        }
    }

    /// After a restart of either side: takes up the logs of what runs, notes what has ended and returns it.
    pub(super) async fn adopt(&self) -> Result<Vec<String>> {
        let (containers, tasks) = self.listed().await?;
        let mut ended = Vec::new();
        for container in &containers {
            if own_label(container, CGROUP).is_none() {
                continue;
            }
            let task = tasks.get(&container.id);
            if matches!(self.state(container, task).await, ContainerState::Exited { .. }) {
                ended.push(container.id.clone());
            } else if task.is_some_and(|t| t.status() == TaskStatus::Running) {
                self.resume_log(container);
            }
        }
        Ok(ended)
    }

    fn resume_log(&self, container: &Container) {
        let id = &container.id;
        let mut pumps = self.pumps.lock();
        if pumps.contains_key(id) {
            return;
        }
        let resumed = fifos(&self.folder(id), container).open_outputs().and_then(|(outputs, _held)| {
            let log = LogFile::open(Path::new(own_label(container, LOG).unwrap_or_default()))?;
            Ok(Pump::start(outputs, log, self.cancel.child_token()))
        });
        match resumed {
            Ok(pump) => drop(pumps.insert(id.clone(), pump)),
            Err(error) => tracing::warn!(container = id, %error, "its log cannot be continued"),
        }
    }
}

fn fifos(folder: &Path, container: &Container) -> Fifos {
    let is = |name: &str| own_label(container, name) == Some("true");
    Fifos::new(folder, is(STDIN), true, !is(TTY))
}

fn machine(node_network: &Option<PathBuf>, privileged: bool) -> Machine {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let mut devices = Vec::new();
    if privileged {
        host_devices(Path::new("/dev"), 0, &mut devices);
    }
    Machine {
        cgroup_v2: cgroup::is_v2(),
        capabilities: bits.and_then(|b| u64::from_str_radix(b.trim(), 16).ok()).unwrap_or(0),
        devices,
        node_network: node_network.clone(),
    }
}

/// The machine's devices, without terminals and what every container has of its own.
fn host_devices(folder: &Path, depth: u32, out: &mut Vec<LinuxDevice>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(meta) = entry.metadata() else { continue };
        let kind = meta.file_type();
        if kind.is_dir() {
            let own = ["pts", "shm", "fd", "mqueue", ".lxc", ".udev"];
            if depth < 4 && !own.iter().any(|o| name == *o) {
                host_devices(&path, depth + 1, out);
            }
            continue;
        }
        let typ = match (kind.is_block_device(), kind.is_char_device()) {
            (true, _) => LinuxDeviceType::B,
            (_, true) => LinuxDeviceType::C,
            _ => continue,
        };
        if ["console", "ptmx"].iter().any(|n| name == *n) {
            continue;
        }
        let device = LinuxDeviceBuilder::default()
            .path(path)
            .typ(typ)
            .major(i64::try_from(nix::sys::stat::major(meta.rdev())).unwrap_or(0))
            .minor(i64::try_from(nix::sys::stat::minor(meta.rdev())).unwrap_or(0))
            .file_mode(meta.mode() & 0o7777)
            .uid(meta.uid())
            .gid(meta.gid())
            .build();
        out.extend(device.ok());
    }
}
