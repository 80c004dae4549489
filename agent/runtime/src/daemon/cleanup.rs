//! Leaving nothing behind. In: the paths of one containerd. Out: no task, shim, container process, control group, mount
//! or socket of it, whether it ended in order or was killed.

use super::{Paths, process::arguments};
use crate::cgroup;
use containerd_client::services::v1::{
    DeleteTaskRequest, KillRequest, ListNamespacesRequest, ListTasksRequest, WaitRequest,
    namespaces_client::NamespacesClient, tasks_client::TasksClient,
};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::timeout;
use tonic::{Request, transport::Channel};

const PATIENCE: Duration = Duration::from_secs(20);

/// Kills and deletes the tasks of all namespaces through containerd, as far as it answers.
pub(super) async fn end_tasks(paths: &Paths) {
    let work = async {
        let channel = containerd_client::connect(paths.socket()).await.map_err(|error| error.to_string())?;
        let spaces = NamespacesClient::new(channel.clone()).list(ListNamespacesRequest::default()).await;
        for space in spaces.map_err(|status| status.message().to_string())?.into_inner().namespaces {
            let tasks = TasksClient::new(channel.clone()).list(within(&space.name, ListTasksRequest::default())).await;
            let tasks = tasks.map_err(|status| status.message().to_string())?.into_inner().tasks;
            let ending = tasks.into_iter().map(|task| end_task(channel.clone(), &space.name, task.id));
            futures::future::join_all(ending).await;
        }
        Ok::<(), String>(())
    };
    match timeout(PATIENCE, work).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error, "ending containers in order; the rest is killed"),
        Err(_) => tracing::warn!("containers did not end in time; they are killed"),
    }
}

/// Ends one namespace as a power cut would: its processes are killed wherever they are, and nothing of their tasks is
/// left in containerd. What is on its disk stays: images, containers' files and records.
pub(super) async fn power_off(paths: &Paths, namespace: &str, cgroup: &str) {
    let cgroup = cgroup.to_owned();
    if !matches!(tokio::task::spawn_blocking(move || cgroup::kill_and_remove(&cgroup)).await, Ok(true)) {
        tracing::warn!(namespace, "a process hangs in the kernel");
    }
    let work = async {
        let channel = containerd_client::connect(paths.socket()).await.map_err(|error| error.to_string())?;
        let tasks = TasksClient::new(channel.clone()).list(within(namespace, ListTasksRequest::default())).await;
        let tasks = tasks.map_err(|status| status.message().to_string())?.into_inner().tasks;
        futures::future::join_all(tasks.into_iter().map(|task| end_task(channel.clone(), namespace, task.id))).await;
        Ok::<(), String>(())
    };
    match timeout(PATIENCE, work).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(namespace, error, "containerd keeps tasks of dead containers"),
        Err(_) => tracing::warn!(namespace, "containerd does not end its tasks in time"),
    }
}

fn within<T>(namespace: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Ok(value) = namespace.parse() {
        request.metadata_mut().insert("containerd-namespace", value);
    }
    request.set_timeout(PATIENCE);
    request
}

async fn end_task(channel: Channel, namespace: &str, id: String) {
    let mut tasks = TasksClient::new(channel);
    let signal = nix::libc::SIGKILL as u32;
    let request = KillRequest { container_id: id.clone(), exec_id: String::new(), signal, all: true };
    let _ = tasks.kill(within(namespace, request)).await;
    let request = WaitRequest { container_id: id.clone(), exec_id: String::new() };
    let _ = tasks.wait(within(namespace, request)).await;
    let _ = tasks.delete(within(namespace, DeleteTaskRequest { container_id: id })).await;
}

/// Kills what is left of shims and containers, and unmounts their file systems. containerd must not run. Blocks.
pub(super) fn processes_and_mounts(paths: &Paths) {
    kill_shims(paths);
    for bundle in bundles(paths) {
        if let Some(path) = cgroup_of(&bundle)
            && !cgroup::kill_and_remove(&path)
        {
            tracing::warn!(cgroup = path, "cannot be removed; a process in it may hang in the kernel");
        }
        // The shims' sockets are not in our folder: containerd has one place for all of them.
        let address = fs::read_to_string(bundle.join("address")).unwrap_or_default();
        if let Some(socket) = address.trim().strip_prefix("unix://")
            && Path::new(socket).starts_with("/run/containerd/s")
        {
            let _ = fs::remove_file(socket);
        }
    }
    unmount_below(&[&paths.run, &paths.root]);
    // Bundles are what the above goes by: they go when it is done.
    let _ = fs::remove_dir_all(paths.state());
    let _ = fs::remove_dir_all(paths.run.join("runc"));
}

/// Removes the control groups of the cluster: by convention all are below `/causeway-<cluster>`.
/// No group is shared between clusters: removing a common parent, empty for a moment, would fail the container that
/// another cluster is starting below it. Blocks.
pub(super) fn cgroups(paths: &Paths) {
    let path = format!("/causeway-{}", paths.cluster);
    if !cgroup::kill_and_remove(&path) {
        tracing::warn!(cgroup = path, "cannot be removed; a process in it may hang in the kernel");
    }
}

/// Removes the folder below `/run`, and the cluster's if nothing else is in it.
pub(super) fn folders(paths: &Paths) -> io::Result<()> {
    match fs::remove_dir_all(&paths.run) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    for parent in paths.run.ancestors().skip(1).take(2) {
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

fn kill_shims(paths: &Paths) {
    let socket = paths.socket().to_string_lossy().into_owned();
    let ours = |pid: &u32| {
        let arguments = arguments(*pid);
        let shim = arguments.first().is_some_and(|program| program.contains("containerd-shim"));
        shim && arguments.windows(2).any(|pair| pair[0] == "-address" && pair[1] == socket)
    };
    for _ in 0..100 {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids: Vec<u32> = entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(ours).collect();
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX)), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `state/io.containerd.runtime.v2.task/<namespace>/<container>`.
fn bundles(paths: &Paths) -> Vec<PathBuf> {
    let folders = |folder: &Path| -> Vec<PathBuf> {
        fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect()
    };
    folders(&paths.state().join("io.containerd.runtime.v2.task")).iter().flat_map(|space| folders(space)).collect()
}

fn cgroup_of(bundle: &Path) -> Option<String> {
    let config: serde_json::Value = serde_json::from_slice(&fs::read(bundle.join("config.json")).ok()?).ok()?;
    Some(config["linux"]["cgroupsPath"].as_str()?.to_string())
}

/// Unmounts everything below the folders, innermost first.
fn unmount_below(folders: &[&PathBuf]) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut points: Vec<PathBuf> = points.filter(|p| folders.iter().any(|f| p.starts_with(f) && p != *f)).collect();
    points.reverse();
    for point in points {
        if let Err(error) = umount2(&point, MntFlags::MNT_DETACH) {
            tracing::warn!(mount = %point.display(), %error, "cannot be unmounted");
        }
    }
}

/// The kernel writes blanks and backslashes as `\040`.
fn unescape(text: &str) -> PathBuf {
    let (mut out, bytes) = (Vec::with_capacity(text.len()), text.as_bytes());
    let mut at = 0;
    while at < bytes.len() {
        let octal = text.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(r"/a\040b\134c"), PathBuf::from(r"/a b\c"));
        assert_eq!(unescape("/plain"), PathBuf::from("/plain"));
        assert_eq!(unescape(r"/end\"), PathBuf::from(r"/end\"));
    }
}
