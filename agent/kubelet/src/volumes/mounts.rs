//! From `volumeMounts` to the runtime's mounts, with `subPath` resolved inside its volume whatever links are in it.

use crate::env::expand;
use causeway_runtime::{Mount, MountPropagation};
use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, mkdirat};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// The mounts of a container; `mounted` are the pod's volumes by name. The error's text is that of
/// `CreateContainerConfigError`.
pub fn mounts(
    pod: &Pod,
    c: &Container,
    mounted: &BTreeMap<String, PathBuf>,
    vars: &BTreeMap<String, String>,
    pod_dir: &Path,
) -> Result<Vec<Mount>, String> {
    let mut all = Vec::new();
    for (i, m) in c.volume_mounts.iter().flatten().enumerate() {
        let root = mounted.get(&m.name).ok_or_else(|| format!("volume \"{}\" is not mounted", m.name))?;
        let sub = match (&m.sub_path_expr, &m.sub_path) {
            (Some(text), _) if !text.is_empty() => expand(text, |n| vars.get(n).cloned()),
            (_, Some(text)) => text.clone(),
            _ => String::new(),
        };
        let source = if sub.is_empty() {
            root.clone()
        } else {
            let point = pod_dir.join("volume-subpaths").join(&m.name).join(&c.name).join(i.to_string());
            sub_path(root, &sub, &point).map_err(|e| {
                format!("failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {e}", m.name, c.name)
            })?
        };
        let volume = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).find(|v| v.name == m.name);
        let destination = Path::new("/").join(&m.mount_path);
        all.push(Mount {
            source,
            destination,
            read_only: m.read_only == Some(true) || volume.is_some_and(read_only),
            propagation: match m.mount_propagation.as_deref() {
                Some("HostToContainer") => MountPropagation::HostToContainer,
                Some("Bidirectional") => MountPropagation::Bidirectional,
                _ => MountPropagation::None,
            },
        });
    }
    Ok(all)
}

/// Volumes that no container may write.
fn read_only(v: &Volume) -> bool {
    v.config_map.is_some()
        || v.secret.is_some()
        || v.projected.is_some()
        || v.downward_api.is_some()
        || v.persistent_volume_claim.as_ref().is_some_and(|c| c.read_only == Some(true))
}

/// Binds `root/sub` to `point`. The path is walked inside the volume by the kernel, so that a link planted by a
/// container cannot lead out of it, and the bind holds on to what was found.
fn sub_path(root: &Path, sub: &str, point: &Path) -> Result<PathBuf, String> {
    let words = |what: &str, e: nix::Error| format!("{what} {sub:?} in {}: {e}", root.display());
    if Path::new(sub).components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(format!("{sub:?} must be a relative path without '..'"));
    }
    let how = |flags| OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let root_fd =
        nix::fcntl::open(root, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(|e| words("opening", e))?;
    let found = match openat2(&root_fd, sub, how(OFlag::O_PATH)) {
        Ok(fd) => fd,
        Err(nix::Error::ENOENT) => make_sub_path(&root_fd, sub).map_err(|e| words("making", e))?,
        Err(e) => return Err(words("opening", e)),
    };
    let link = format!("/proc/self/fd/{}", found.as_raw_fd());
    let folder = std::fs::metadata(&link).map_err(|e| e.to_string())?.is_dir();
    let prepare = || -> std::io::Result<()> {
        super::host::unmount_below(point)?;
        if folder {
            return std::fs::create_dir_all(point);
        }
        if let Some(parent) = point.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::OpenOptions::new().create(true).append(true).open(point).map(drop)
    };
    prepare().map_err(|e| format!("preparing {}: {e}", point.display()))?;
    mount(Some(link.as_str()), point, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|e| words("binding", e))?;
    Ok(point.to_path_buf())
}

fn make_sub_path(root: &OwnedFd, sub: &str) -> nix::Result<OwnedFd> {
    let how = || {
        OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT)
    };
    let mut walked = PathBuf::new();
    let mut at = openat2(root, ".", how())?;
    for part in Path::new(sub).components().filter(|c| matches!(c, Component::Normal(_))) {
        walked.push(part);
        at = match openat2(root, &walked, how()) {
            Ok(fd) => fd,
            Err(nix::Error::ENOENT) => {
                let name = Path::new(part.as_os_str());
                mkdirat(&at, name, Mode::from_bits_truncate(0o750))?;
                openat2(root, &walked, how())?
            }
            Err(e) => return Err(e),
        };
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_paths_stay_inside() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("volume");
        std::fs::create_dir_all(root.join("d")).unwrap();
        std::fs::write(tmp.path().join("secret"), "no").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("out")).unwrap();
        let point = |n: &str| tmp.path().join("points").join(n);
        let made = sub_path(&root, "new/deep", &point("0")).unwrap();
        std::fs::write(made.join("f"), "x").unwrap();
        assert_eq!(std::fs::read_to_string(root.join("new/deep/f")).unwrap(), "x");
        assert!(sub_path(&root, "../secret", &point("1")).is_err());
        // Inside its root the link leads nowhere, so a folder cannot be made over it and nothing outside is bound.
        let out = sub_path(&root, "out", &point("2"));
        assert!(out.is_err() || !point("2").is_file());
        super::super::host::unmount_below(tmp.path()).unwrap();
    }
}
