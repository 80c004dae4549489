//! Control groups as files, versions 1 and 2: what a container uses, whether the kernel killed in it for memory, and
//! the removal of what a dead runtime left. In: absolute cgroup paths (`/causeway-…`). Out: figures.

use crate::types::ContainerStats;
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

const ROOT: &str = "/sys/fs/cgroup";

/// Whether this machine has the unified hierarchy only.
pub fn is_v2() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// The folders that stand for one path: one on version 2, one per controller on version 1.
fn folders(path: &str) -> Vec<PathBuf> {
    let relative = path.trim_matches('/');
    // A path that leads upwards or is the root itself must never be killed or removed.
    if relative.is_empty() || relative.split('/').any(|part| part == "..") {
        return Vec::new();
    }
    let mut roots = vec![PathBuf::from(ROOT)];
    if !is_v2() {
        roots = fs::read_dir(ROOT)
            .map(|entries| entries.flatten().map(|e| e.path()).filter(|p| p.is_dir() && !p.is_symlink()).collect())
            .unwrap_or_default();
    }
    roots.into_iter().map(|root| root.join(relative)).filter(|p| p.is_dir()).collect()
}

fn controller(name: &str, path: &str) -> PathBuf {
    let root = if is_v2() { PathBuf::from(ROOT) } else { Path::new(ROOT).join(name) };
    root.join(path.trim_start_matches('/'))
}

/// The value after `key` in a file of `key value` lines.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// CPU time and working set (use without inactive file cache, as Kubernetes counts it).
pub fn stats(path: &str) -> io::Result<ContainerStats> {
    let number = |file: PathBuf| fs::read_to_string(file)?.trim().parse::<u64>().map_err(io::Error::other);
    let memory = controller("memory", path);
    let stat = fs::read_to_string(memory.join("memory.stat"))?;
    let (used, inactive, cpu_nanos) = if is_v2() {
        let cpu = fs::read_to_string(controller("cpu", path).join("cpu.stat"))?;
        let cpu = field(&cpu, "usage_usec").unwrap_or(0).saturating_mul(1000);
        (number(memory.join("memory.current"))?, field(&stat, "inactive_file"), cpu)
    } else {
        let cpu = number(controller("cpuacct", path).join("cpuacct.usage"))?;
        (number(memory.join("memory.usage_in_bytes"))?, field(&stat, "total_inactive_file"), cpu)
    };
    Ok(ContainerStats { cpu_nanos, memory_working_set: used.saturating_sub(inactive.unwrap_or(0)) })
}

/// How often the kernel killed in this group for want of memory.
pub fn oom_kills(path: &str) -> u64 {
    let file = if is_v2() { "memory.events" } else { "memory.oom_control" };
    let text = fs::read_to_string(controller("memory", path).join(file)).unwrap_or_default();
    field(&text, "oom_kill").unwrap_or(0)
}

/// Whether any process is in the group or below it.
pub fn populated(path: &str) -> bool {
    folders(path).iter().any(|folder| !processes(folder).is_empty())
}

fn processes(folder: &Path) -> Vec<i32> {
    let mut pids: Vec<i32> = fs::read_to_string(folder.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect();
    for child in children(folder) {
        pids.extend(processes(&child));
    }
    pids
}

fn children(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .map(|entries| {
            entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
        })
        .unwrap_or_default()
}

fn remove_tree(folder: &Path) {
    for child in children(folder) {
        remove_tree(&child);
    }
    let _ = fs::remove_dir(folder);
}

/// Kills everything in the group and removes it. Its parents stay even when empty: somebody may be about to make
/// another group in one. Blocks up to about 5 s. True when nothing is left of it.
pub fn kill_and_remove(path: &str) -> bool {
    for round in 0..100 {
        let folders = folders(path);
        if folders.is_empty() {
            break;
        }
        for folder in &folders {
            for pid in processes(folder) {
                // Pids of 0 are processes of another pid namespace: not ours to kill.
                if pid > 1 {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                }
            }
            remove_tree(folder);
        }
        if round > 0 {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    folders(path).is_empty()
}

/// Removes the group if nothing runs in it. Its parent stays: the pod's other containers may be starting in it.
pub fn remove_empty(path: &str) {
    for folder in folders(path) {
        if processes(&folder).is_empty() {
            remove_tree(&folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_match_whole_keys() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(field(text, "oom_kill"), Some(3));
        assert_eq!(field(text, "oom"), None);
    }

    #[test]
    fn the_root_and_what_leads_upwards_are_never_touched() {
        assert!(folders("/").is_empty());
        assert!(folders("").is_empty());
        assert!(folders("/a/../..").is_empty());
    }
}
