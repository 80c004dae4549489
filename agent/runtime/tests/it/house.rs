//! A containerd of its own per test, removed with everything in it when the test ends, also by panic.

use causeway_runtime::{
    ContainerInfo, ContainerSpec, ContainerState, Containerd, ContainerdConfig, Runtime, daemon::ContainerdDaemon,
    oci_build::ImageBuilder,
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

pub const BUSYBOX: &str = "docker.io/library/busybox:test";

pub struct House {
    pub name: String,
    pub dir: tempfile::TempDir,
    pub daemon: Option<ContainerdDaemon>,
    pub runtime: Containerd,
}

impl Drop for House {
    fn drop(&mut self) {
        self.daemon = None;
        let (dir, name) = (self.dir.path().to_path_buf(), self.name.clone());
        // Its own thread and runtime: the test's may be unwinding.
        let cleaned = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(ContainerdDaemon::clean_up(&dir, &name))
        });
        if !matches!(cleaned.join(), Ok(Ok(()))) {
            eprintln!("cleaning up {} failed", self.name);
        }
        causeway_runtime::cgroup::kill_and_remove(&format!("/causeway-{}", self.name));
    }
}

pub fn unique() -> String {
    format!("it{}", &uuid::Uuid::new_v4().simple().to_string()[..10])
}

pub fn config(daemon: &ContainerdDaemon, dir: &Path) -> ContainerdConfig {
    ContainerdConfig {
        record_dir: Some(dir.join("records")),
        ..ContainerdConfig::new(daemon.socket(), "causeway-n1", dir.join("runtime"))
    }
}

pub fn busybox_image(path: &Path) {
    let applets =
        ["sh", "cat", "echo", "sleep", "id", "ls", "stty", "env", "head", "tail", "dd", "kill", "true", "hostname"];
    let mut image = ImageBuilder::new("busybox:test").binary_with_libraries("/bin/busybox");
    for applet in applets {
        image = image.symlink(format!("/bin/{applet}"), "busybox");
    }
    image
        .file("/etc/passwd", "root:x:0:0::/:/bin/sh\nweb:x:33:34::/:/bin/sh\n", 0o644)
        .file("/etc/group", "root:x:0:\nweb:x:34:\nlog:x:4:web\n", 0o644)
        .dir("/tmp", 0o1777)
        .cmd(["/bin/sh"])
        .env("GREETING", "hello")
        .write(path)
        .unwrap();
}

impl House {
    /// With busybox loaded.
    pub async fn new() -> Self {
        let name = unique();
        let dir = tempfile::tempdir().unwrap();
        let daemon = ContainerdDaemon::start(dir.path(), &name).await.unwrap();
        let runtime = Containerd::connect(config(&daemon, dir.path())).await.unwrap();
        let archive = dir.path().join("busybox.tar");
        busybox_image(&archive);
        let house = Self { name, dir, daemon: Some(daemon), runtime };
        assert_eq!(house.runtime.load_image(&archive).await.unwrap(), [BUSYBOX]);
        house
    }

    pub fn log(&self, id: &str) -> PathBuf {
        self.dir.path().join("pods").join(id).join("0.log")
    }

    pub fn spec(&self, id: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            id: id.into(),
            image: BUSYBOX.into(),
            labels: [("pod".to_string(), id.to_string())].into(),
            args: ["/bin/sh", "-c", script].map(String::from).to_vec(),
            env: vec!["PATH=/bin".into()],
            hostname: "box".into(),
            cgroup_path: format!("/causeway-{}/pod-{id}/{id}", self.name),
            log_path: self.log(id),
            ..Default::default()
        }
    }

    pub async fn run(&self, spec: &ContainerSpec) {
        self.runtime.create_container(spec).await.unwrap();
        self.runtime.start_container(&spec.id).await.unwrap();
    }

    pub async fn info(&self, id: &str) -> ContainerInfo {
        info(&self.runtime, id).await.unwrap()
    }

    /// Code and whether it was for memory.
    pub async fn exit(&self, id: &str) -> (i32, bool) {
        eventually("the container exits", async || match self.info(id).await.state {
            ContainerState::Exited { code, oom_killed, .. } => Some((code, oom_killed)),
            _ => None,
        })
        .await
    }

    /// The text of the log, without times.
    pub fn text(&self, id: &str) -> String {
        let log = std::fs::read_to_string(self.log(id)).unwrap_or_default();
        log.lines().map(|line| line.split_once(' ').map_or("", |(_, rest)| rest).to_string() + "\n").collect()
    }

    pub async fn says(&self, id: &str, words: &str) {
        eventually(words, async || self.text(id).contains(words).then_some(())).await
    }
}

pub async fn info(runtime: &Containerd, id: &str) -> Option<ContainerInfo> {
    runtime.containers().await.unwrap().into_iter().find(|c| c.id == id)
}

pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(value) = check().await {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("waited 30 s in vain until: {what}");
}
