//! Containers from their start to their removal. In: ids. Out: tasks in containerd, each step repeatable, and the state
//! of all of them after a restart of either side.

use super::{
    Inner,
    io::{Fifos, Pump},
    logs::LogFile,
    record::{CGROUP, LOG, PREFIX, Record, STDIN, STOP_SIGNAL, TTY, own_label},
    rpc::{self, LONG, SHORT, gone_is_fine},
    signals,
};
use crate::{
    cgroup,
    types::{ContainerInfo, ContainerState, Result, RuntimeError},
};
use containerd_client::{
    services::v1::{
        Container, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest, GetContainerRequest, GetRequest,
        KillRequest, ListContainersRequest, ListTasksRequest, StartRequest, WaitRequest,
        snapshots::RemoveSnapshotRequest,
    },
    types::v1::{Process, Status as TaskStatus},
};
use jiff::Timestamp;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};
use tonic::{Code, Status};

/// Says how a task ended that nobody could ask any more, as CRI does.
const UNKNOWN_EXIT: i32 = 255;
/// How long an exit may wait for the last of its log.
const DRAIN: Duration = Duration::from_secs(3);

impl Inner {
    pub(super) fn folder(&self, id: &str) -> PathBuf {
        self.config.state_dir.join("containers").join(id)
    }

    /// Where its record is, which tells that it ran also after the machine did not.
    fn record_folder(&self, id: &str) -> PathBuf {
        match &self.config.record_dir {
            Some(dir) => dir.join(id),
            None => self.folder(id),
        }
    }

    pub(super) async fn container(&self, id: &str) -> Result<Container> {
        self.find(id).await?.ok_or_else(|| RuntimeError::NotFound { id: id.into() })
    }

    pub(super) async fn find(&self, id: &str) -> Result<Option<Container>> {
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
        if Record::load(&self.record_folder(id)).started_at.is_some() {
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
        if let Err(error) = record.save(&self.record_folder(id)) {
            tracing::warn!(container = id, %error, "its record cannot be written");
        }
    }

    /// Remembers that the kernel killed in this container for memory.
    pub(super) fn note_oom(&self, id: &str) {
        let mut record = Record::load(&self.record_folder(id));
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
        let mut record = Record::load(&self.record_folder(id));
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

    pub(super) async fn remove_snapshot(&self, id: &str) -> Result<()> {
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
        for folder in [self.folder(id), self.record_folder(id)] {
            match std::fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(container = id, %error, "its folder cannot be removed");
                }
                _ => {}
            }
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
            let state = self.state(&container, tasks.get(&container.id)).await?;
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

    async fn state(&self, container: &Container, task: Option<&Process>) -> Result<ContainerState> {
        let id = &container.id;
        let mut record = Record::load(&self.record_folder(id));
        // The list of tasks is older than the record: a task that is not in it may have been made since. One that is not
        // there now, after its record, is gone.
        let made_since = match task {
            None if record.started_at.is_some() && record.finished_at.is_none() => self.task(id).await?,
            _ => None,
        };
        let task = task.or(made_since.as_ref());
        match task.map(|task| (task, task.status())) {
            Some((task, TaskStatus::Running | TaskStatus::Paused | TaskStatus::Pausing | TaskStatus::Unknown)) => {
                let since = record.started_at.or(rpc::time(container.created_at.as_ref()));
                let started_at = since.unwrap_or(Timestamp::UNIX_EPOCH);
                return Ok(ContainerState::Running { pid: task.pid, started_at });
            }
            Some((task, TaskStatus::Stopped)) => {
                let code = i32::try_from(task.exit_status).unwrap_or(UNKNOWN_EXIT);
                record = self.settle(id, code, rpc::time(task.exited_at.as_ref())).await;
            }
            Some((_, TaskStatus::Created)) => return Ok(ContainerState::Created),
            None if record.started_at.is_none() => return Ok(ContainerState::Created),
            // Its task went with a crash or a reboot.
            None => record = self.settle(id, UNKNOWN_EXIT, None).await,
        }
        Ok(ContainerState::Exited {
            code: record.exit_code.unwrap_or(UNKNOWN_EXIT),
            started_at: record.started_at,
            finished_at: record.finished_at.unwrap_or(Timestamp::UNIX_EPOCH),
            oom_killed: record.oom_killed,
        })
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
            if matches!(self.state(container, task).await?, ContainerState::Exited { .. }) {
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
