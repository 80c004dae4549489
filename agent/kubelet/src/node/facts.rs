//! What the machine is and how it fares, read from /proc, /sys and /etc.

use crate::config::KubeletConfig;
use k8s_openapi::api::core::v1::NodeSystemInfo;
use std::path::Path;

/// Memory left below which the node says `MemoryPressure`.
const LEAST_MEMORY: u64 = 100 << 20;
/// Disk left below which the node says `DiskPressure`: a tenth of it, but at most this.
const LEAST_DISK: u64 = 1 << 30;

/// What the node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Bytes.
    pub memory_bytes: u64,
    /// Bytes of the file system that holds the pods' folders.
    pub disk_bytes: u64,
    /// Pods.
    pub pods: u32,
}

/// Which resources run short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pressure {
    /// Memory.
    pub memory: bool,
    /// Disk.
    pub disk: bool,
    /// Process ids.
    pub pids: bool,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn meminfo(key: &str) -> Option<u64> {
    let text = read("/proc/meminfo");
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// What this node may give to pods: the machine, or the share it was told.
pub fn capacity(config: &KubeletConfig) -> Capacity {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let machine = meminfo("MemTotal").unwrap_or(0);
    // A container or unit this process runs in may have less than the machine.
    let limit = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|p| read(p).parse::<u64>().ok());
    let (cpu_milli, memory_bytes) = match config.capacity {
        Some(share) => (share.cpu_milli, share.memory_bytes),
        None => (cpus * 1000, limit.map_or(machine, |l| l.min(machine))),
    };
    Capacity { cpu_milli, memory_bytes, disk_bytes: disk(&config.dir).map_or(0, |d| d.0), pods: config.max_pods }
}

/// (size, available) of the file system below a path.
fn disk(path: &Path) -> Option<(u64, u64)> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    let unit = stat.fragment_size();
    Some((stat.blocks() * unit, stat.blocks_available() * unit))
}

/// How the machine fares now.
pub fn pressure(config: &KubeletConfig) -> Pressure {
    let pids = || {
        let max: u64 = read("/proc/sys/kernel/pid_max").parse().ok()?;
        let running: u64 = read("/proc/loadavg").split(' ').nth(3)?.split_once('/')?.1.parse().ok()?;
        Some(running * 10 > max * 9)
    };
    Pressure {
        memory: meminfo("MemAvailable").is_some_and(|left| left < LEAST_MEMORY),
        disk: disk(&config.dir).is_some_and(|(size, left)| left < (size / 10).min(LEAST_DISK)),
        pids: pids().unwrap_or(false),
    }
}

/// `status.nodeInfo`.
pub fn system(runtime_version: &str) -> NodeSystemInfo {
    let release = read("/etc/os-release");
    let name =
        release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux").trim_matches('"').to_owned();
    let machine_id = read("/etc/machine-id");
    let uuid = read("/sys/class/dmi/id/product_uuid");
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: runtime_version.to_owned(),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: causeway_api::version::GIT_VERSION.to_owned(),
        system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
        machine_id,
        operating_system: "linux".to_owned(),
        os_image: name,
        swap: None,
    }
}

/// Go's name of the architecture.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
