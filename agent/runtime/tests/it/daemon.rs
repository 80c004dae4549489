//! The containerd of our own: adopted, replaced, and gone without traces.

use crate::house::{House, busybox_image, config, eventually, unique};
use causeway_runtime::{
    ContainerState, Containerd, Runtime,
    daemon::{ContainerdDaemon, DaemonError},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{fs, path::Path};

/// What of a cluster is on the machine: processes, mounts, control groups, sockets.
fn traces(name: &str, dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let dir = dir.display().to_string();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        if pid != std::process::id() && (read("cmdline").contains(name) || read("cgroup").contains(name)) {
            found.push(format!("process {pid} {}", read("cmdline").replace('\0', " ")));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(mounts.lines().filter(|l| l.contains(name) || l.contains(&dir)).map(|l| format!("mount {l}")));
    let mut roots = vec!["/sys/fs/cgroup/causeway".into()];
    roots.extend(fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|e| e.path().join("causeway")));
    found.extend(roots.iter().map(|r| r.join(name)).filter(|p| p.exists()).map(|p| format!("cgroup {}", p.display())));
    let run = Path::new("/run/causeway").join(name);
    found.extend(run.exists().then(|| format!("folder {}", run.display())));
    found
}

fn shim_sockets(name: &str) -> Vec<std::path::PathBuf> {
    let tasks = format!("/run/causeway/{name}/containerd/state/io.containerd.runtime.v2.task/causeway-n1");
    let bundles = fs::read_dir(tasks).into_iter().flatten().flatten();
    let addresses = bundles.filter_map(|b| fs::read_to_string(b.path().join("address")).ok());
    addresses.map(|a| a.trim().trim_start_matches("unix://").into()).collect()
}

fn kill_all(name: &str) {
    let pid = |pid: &str| Pid::from_raw(pid.trim().parse().unwrap());
    let run = format!("/run/causeway/{name}/containerd");
    kill(pid(&fs::read_to_string(format!("{run}/containerd.pid")).unwrap()), Signal::SIGKILL).unwrap();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let file = entry.file_name();
        let Some(number) = file.to_str().filter(|n| n.parse::<i32>().is_ok()) else { continue };
        let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        if command.contains("containerd-shim") && command.contains(&run) {
            let _ = kill(pid(number), Signal::SIGKILL);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_leaves_nothing_behind() {
    let mut house = House::new().await;
    house.run(&house.spec("a", "while true; do sleep 1; done")).await;
    house.run(&house.spec("b", "exit 1")).await;
    house.exit("b").await;
    let sockets = shim_sockets(&house.name);
    assert_eq!(sockets.len(), 2);
    assert!(!traces(&house.name, house.dir.path()).is_empty());
    house.daemon.take().unwrap().stop().await.unwrap();
    assert_eq!(traces(&house.name, house.dir.path()), [""; 0]);
    assert!(sockets.iter().all(|s| !s.exists()), "{sockets:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_kill_9_of_everything_nothing_is_left_either() {
    let mut house = House::new().await;
    house.run(&house.spec("a", "while true; do sleep 1; done")).await;
    let sockets = shim_sockets(&house.name);
    // Ours first: a crash leaves containerd running.
    house.daemon = None;
    eventually("the watch has let go", async || {
        (tokio::time::sleep(std::time::Duration::from_millis(600)).await, Some(())).1
    })
    .await;
    kill_all(&house.name);
    ContainerdDaemon::clean_up(house.dir.path(), &house.name).await.unwrap();
    // The orphans are dead, but it is for the machine's init to bury them.
    eventually("nothing is left", async || traces(&house.name, house.dir.path()).is_empty().then_some(())).await;
    assert!(sockets.iter().all(|s| !s.exists()), "{sockets:?}");
    ContainerdDaemon::clean_up(house.dir.path(), &house.name).await.unwrap();

    // Content lasts, and the container is known to have ended.
    let daemon = ContainerdDaemon::start(house.dir.path(), &house.name).await.unwrap();
    let runtime = Containerd::connect(config(&daemon, house.dir.path())).await.unwrap();
    assert_eq!(runtime.images().await.unwrap().len(), 1);
    let states: Vec<_> = runtime.containers().await.unwrap().into_iter().map(|c| c.state).collect();
    assert!(matches!(states[..], [ContainerState::Exited { code: 255, .. }]), "{states:?}");
    runtime.remove_container("a").await.unwrap();
    house.run_on(&runtime).await;
    house.daemon = Some(daemon);
}

impl House {
    async fn run_on(&self, runtime: &Containerd) {
        let spec = self.spec("again", "echo hi");
        runtime.create_container(&spec).await.unwrap();
        runtime.start_container("again").await.unwrap();
        self.says("again", "hi").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_runs_is_adopted_and_another_folder_is_refused() {
    let mut house = House::new().await;
    let pid_file = format!("/run/causeway/{}/containerd/containerd.pid", house.name);
    let before = fs::read_to_string(&pid_file).unwrap();
    house.daemon = None;
    let adopted = ContainerdDaemon::start(house.dir.path(), &house.name).await.unwrap();
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), before);
    let other = tempfile::tempdir().unwrap();
    let error = ContainerdDaemon::start(other.path(), &house.name).await.err().unwrap();
    assert!(matches!(error, DaemonError::Taken { .. }), "{error}");
    house.daemon = Some(adopted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_live_side_by_side_and_long_names_are_refused() {
    let (one, two) = (House::new().await, House::new().await);
    one.run(&one.spec("same", "echo one; sleep 60")).await;
    two.run(&two.spec("same", "echo two; sleep 60")).await;
    one.says("same", "one").await;
    two.says("same", "two").await;
    let dir = tempfile::tempdir().unwrap();
    let error = ContainerdDaemon::start(dir.path(), &"x".repeat(90)).await.err().unwrap();
    assert!(matches!(error, DaemonError::PathTooLong { .. }), "{error}");
    busybox_image(&dir.path().join("unused.tar"));
    assert_ne!(unique(), unique());
}
