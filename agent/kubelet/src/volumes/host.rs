//! Folders and mounts on the node: host paths by their type, tmpfs, ownership, and taking mounts away again.

use causeway_api::quantity;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// Checks a host path against `hostPath.type`, making it where the type says so.
pub fn check_host_path(path: &Path, type_: &str) -> Result<(), String> {
    let failed = |what: &str| Err(format!("hostPath type check failed: {} is not {what}", path.display()));
    let made = |r: io::Result<()>| r.map_err(|e| format!("failed to create {}: {e}", path.display()));
    let kind = std::fs::metadata(path).ok().map(|m| m.file_type());
    match type_ {
        "" if kind.is_none() => made(std::fs::create_dir_all(path)),
        "" => Ok(()),
        "DirectoryOrCreate" if kind.is_none() => made(make_folder(path, 0o755)),
        "DirectoryOrCreate" | "Directory" if kind.is_some_and(|k| k.is_dir()) => Ok(()),
        "DirectoryOrCreate" | "Directory" => failed("a directory"),
        "FileOrCreate" if kind.is_none() => made(std::fs::File::create_new(path).map(drop)),
        "FileOrCreate" | "File" if kind.is_some_and(|k| k.is_file()) => Ok(()),
        "FileOrCreate" | "File" => failed("a file"),
        "Socket" if kind.is_some_and(|k| k.is_socket()) => Ok(()),
        "Socket" => failed("a socket file"),
        "CharDevice" if kind.is_some_and(|k| k.is_char_device()) => Ok(()),
        "CharDevice" => failed("a character device"),
        "BlockDevice" if kind.is_some_and(|k| k.is_block_device()) => Ok(()),
        "BlockDevice" => failed("a block device"),
        other => Err(format!("unknown hostPath type {other:?}")),
    }
}

/// Makes a folder (and those above it) with exactly this mode, whatever the process' umask.
pub fn make_folder(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Mounts a tmpfs unless there is one already.
pub fn tmpfs(path: &Path, limit: Option<&Quantity>, mode: u32) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    if mounts_below(path)?.iter().any(|m| m == path) {
        return Ok(());
    }
    let mut options = format!("mode={mode:o}");
    if let Some(bytes) = limit.and_then(|q| quantity::units(&q.0)).filter(|b| *b > 0) {
        options.push_str(&format!(",size={bytes}"));
    }
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options.as_str()))?;
    Ok(())
}

/// Gives a folder and everything in it to a group, as `fsGroup` asks; already given ones are left alone.
pub fn give_to_group(path: &Path, group: u32) -> io::Result<()> {
    let meta = std::fs::symlink_metadata(path)?;
    if meta.gid() == group && meta.mode() & 0o2000 != 0 && meta.is_dir() {
        return Ok(());
    }
    give(path, group)
}

fn give(path: &Path, group: u32) -> io::Result<()> {
    let meta = std::fs::symlink_metadata(path)?;
    if meta.is_symlink() {
        return std::os::unix::fs::lchown(path, None, Some(group));
    }
    chown(path, None, Some(group))?;
    let mode = meta.mode() & 0o7777;
    if meta.is_dir() {
        for entry in std::fs::read_dir(path)? {
            give(&entry?.path(), group)?;
        }
        return std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode | 0o2770));
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode | 0o660))
}

/// Mount points at or below a path, deepest first.
pub fn mounts_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .filter(|mounted| mounted.starts_with(path))
        .collect();
    found.reverse();
    found.sort_by_key(|m| std::cmp::Reverse(m.components().count()));
    Ok(found)
}

/// `\040` and its kin in mountinfo.
fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| tail.get(..3)).flatten();
        let code = octal.and_then(|o| std::str::from_utf8(o).ok()).and_then(|o| u8::from_str_radix(o, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Takes away every mount at or below a path; what is busy is detached. Public so that a cluster's removal can make
/// sure that its data folder holds no mount before it deletes it.
pub fn unmount_below(path: &Path) -> io::Result<()> {
    let path = match path.canonicalize() {
        Ok(path) => path,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for point in mounts_below(&path)? {
        match umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(e) => {
                return Err(io::Error::new(io::Error::from(e).kind(), format!("unmounting {}: {e}", point.display())));
            }
        }
    }
    Ok(())
}

/// Removes a folder after everything mounted in it, so that nothing behind a mount is ever deleted.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    unmount_below(path)?;
    if let Ok(real) = path.canonicalize()
        && let Some(left) = mounts_below(&real)?.first()
    {
        return Err(io::Error::other(format!("{} is still mounted; not removing {}", left.display(), path.display())));
    }
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_of_host_paths() {
        let tmp = tempfile::tempdir().unwrap();
        let p = |n: &str| tmp.path().join(n);
        assert!(check_host_path(&p("a/b"), "DirectoryOrCreate").is_ok());
        assert!(check_host_path(&p("a/b"), "File").unwrap_err().contains("is not a file"));
        assert!(check_host_path(&p("f"), "FileOrCreate").is_ok());
        assert!(check_host_path(&p("f"), "Directory").unwrap_err().contains("is not a directory"));
        assert!(check_host_path(&p("none"), "Socket").is_err());
        assert_eq!(unescape("/a\\040b"), "/a b");
    }
}
