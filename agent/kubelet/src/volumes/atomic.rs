//! Writes a set of files so that a reader sees the old set or the new one, never a mix: files go to a fresh
//! `..<stamp>` folder and the `..data` link is swapped by rename, as ConfigMap and Secret volumes promise.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path};

/// A file's content and mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Bytes.
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// Files by relative path.
pub type Payload = BTreeMap<String, File>;

/// Writes `payload` below `dir`; `true` when something changed.
pub fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    for path in payload.keys() {
        check(path)?;
    }
    std::fs::create_dir_all(dir)?;
    let data = dir.join("..data");
    let old = std::fs::read_link(&data).ok();
    if old.is_some() && same(&data, payload, group) {
        return Ok(false);
    }
    let stamp = format!("..{}_{:08x}", jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S"), rand::random::<u32>());
    let fresh = dir.join(&stamp);
    std::fs::create_dir(&fresh)?;
    own(&fresh, group, 0o755)?;
    for (path, file) in payload {
        let target = fresh.join(path);
        if let Some(parent) = target.parent() {
            make_folders(&fresh, parent, group)?;
        }
        std::fs::write(&target, &file.data)?;
        let mode = if group.is_some() { file.mode | 0o040 } else { file.mode };
        own(&target, group, mode)?;
    }
    let swap = dir.join("..data_tmp");
    let _ = std::fs::remove_file(&swap);
    symlink(&stamp, &swap)?;
    std::fs::rename(&swap, &data)?;
    link_names(dir, payload)?;
    if let Some(old) = old {
        let _ = std::fs::remove_dir_all(dir.join(old));
    }
    Ok(true)
}

fn check(path: &str) -> io::Result<()> {
    let plain = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    if !plain || path.is_empty() || path.starts_with("..") {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{path:?} is not a valid file path in a volume"),
        ));
    }
    Ok(())
}

fn same(data: &Path, payload: &Payload, group: Option<u32>) -> bool {
    let mut found = BTreeSet::new();
    list(data, data, &mut found);
    found.len() == payload.len()
        && payload.iter().all(|(path, file)| {
            let target = data.join(path);
            let mode = if group.is_some() { file.mode | 0o040 } else { file.mode };
            found.contains(path)
                && std::fs::metadata(&target).is_ok_and(|m| m.permissions().mode() & 0o7777 == mode)
                && std::fs::read(&target).is_ok_and(|d| d == file.data)
        })
}

fn list(root: &Path, dir: &Path, into: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            list(root, &path, into);
        } else if let Ok(relative) = path.strip_prefix(root) {
            into.insert(relative.to_string_lossy().into_owned());
        }
    }
}

fn make_folders(root: &Path, dir: &Path, group: Option<u32>) -> io::Result<()> {
    if dir == root || dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        make_folders(root, parent, group)?;
    }
    std::fs::create_dir(dir)?;
    own(dir, group, 0o755)
}

fn own(path: &Path, group: Option<u32>, mode: u32) -> io::Result<()> {
    if group.is_some() {
        chown(path, None, group)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// User-visible names are links into `..data`; names that are gone lose theirs.
fn link_names(dir: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|p| p.split('/').next()).collect();
    for name in &wanted {
        let link = dir.join(name);
        if std::fs::symlink_metadata(&link).is_err() {
            symlink(Path::new("..data").join(name), &link)?;
        }
    }
    for entry in std::fs::read_dir(dir)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !wanted.contains(name.as_str()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files.iter().map(|(p, d)| ((*p).to_owned(), File { data: d.as_bytes().to_vec(), mode: 0o644 })).collect()
    }

    #[test]
    fn swaps_and_forgets() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("v");
        assert!(write(&dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap());
        assert!(!write(&dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap());
        assert_eq!(std::fs::read_to_string(dir.join("sub/b")).unwrap(), "2");
        assert!(write(&dir, &payload(&[("a", "3")]), None).unwrap());
        assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(!dir.join("sub").exists());
        let folders = std::fs::read_dir(&dir).unwrap().flatten().filter(|e| e.file_type().unwrap().is_dir()).count();
        assert_eq!(folders, 1);
        assert!(write(&dir, &payload(&[("../x", "")]), None).is_err());
        assert!(write(&dir, &payload(&[("/x", "")]), None).is_err());
    }
}
