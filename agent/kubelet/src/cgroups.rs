//! Removes the cgroup of a pod that is gone. Containers' own cgroups are the runtime's; the empty folder above them is
//! ours.

use std::path::{Path, PathBuf};

/// Removes an empty cgroup (and empty ones in it) in every mounted hierarchy; what is still used stays.
pub fn remove(path: &str) {
    for root in hierarchies() {
        remove_empty(&root.join(path.trim_start_matches('/')));
    }
}

fn hierarchies() -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let fields = |line: &str| -> Option<PathBuf> {
        let (left, right) = line.split_once(" - ")?;
        matches!(right.split(' ').next()?, "cgroup" | "cgroup2").then(|| left.split(' ').nth(4).map(PathBuf::from))?
    };
    table.lines().filter_map(fields).collect()
}

fn remove_empty(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    // Only an empty cgroup can be removed; the kernel refuses the others.
    let _ = std::fs::remove_dir(dir);
}
