//! Whose a data folder is. In: a folder. Out: the folder marked as a cluster's and locked for one process, or a refusal
//! to touch what is somebody else's.

use crate::paths::Paths;
use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, umask};
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// What marks a folder as a cluster's data; it holds the cluster's name.
const MARK: &str = "causeway-cluster";
/// The mode of the folder.
const PRIVATE: u32 = 0o700;
/// What was there before a restore, in a folder each.
pub const BEFORE_RESTORE: &str = "before-restore";
/// Everything a cluster keeps in its data folder.
const ENTRIES: &[&str] = &[
    "store",
    "pki",
    "settings",
    "staging",
    "restoring",
    BEFORE_RESTORE,
    "identity",
    "segment",
    "nodes",
    "volumes",
    "containerd",
    "containerd.log",
    "kubeconfig",
    "causeway.log",
    "causeway.log.1",
];

/// Makes the folder, or accepts one that is empty or a cluster's.
pub fn make(paths: &Paths) -> Result<()> {
    let dir = &paths.data;
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    }
    match fs::DirBuilder::new().mode(PRIVATE).create(dir) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists || !dir.is_dir() => {
            return Err(e).with_context(|| format!("making {}", dir.display()));
        }
        _ => {}
    }
    let mark = dir.join(MARK);
    match fs::read_to_string(&mark) {
        Ok(name) if name.trim() == paths.name => return keep_private(dir),
        Ok(name) => bail!("{} holds the data of cluster {:?}; choose another --data-dir", dir.display(), name.trim()),
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("reading {}", mark.display()));
        }
        Err(_) => {}
    }
    if fs::read_dir(dir)?.next().is_some() {
        bail!("{} is not empty and not a cluster's data; choose another --data-dir", dir.display());
    }
    keep_private(dir)?;
    fs::write(&mark, format!("{}\n", paths.name)).with_context(|| format!("writing {}", mark.display()))
}

/// Keeps all but root away from everything in the folder: the store's Secrets, keys, pods' volumes, logs. What is mounted
/// into containers needs no way through it. One that an older version made is closed too.
fn keep_private(dir: &Path) -> Result<()> {
    let closing = || format!("keeping others from {}", dir.display());
    let mode = fs::metadata(dir).with_context(closing)?.permissions().mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    fs::set_permissions(dir, Permissions::from_mode(PRIVATE)).with_context(closing)
}

/// For a process that runs containers, and containerd as its child: the roots of containers and the folders that
/// `DirectoryOrCreate` makes are for their users too, whatever umask a unit or a shell has. What is private has a mode of
/// its own, and lies in a folder that nobody else enters.
pub fn share_what_containers_see() {
    umask(Mode::from_bits_truncate(0o022));
}

/// Makes the folder ours for the life of the process: two `up` of one cluster cannot meet. One in which a restore was cut
/// off holds half of one cluster and half of another, and is refused.
pub fn claim(paths: &Paths) -> Result<Flock<File>> {
    let owned = claim_to_restore(paths)?;
    if paths.restoring().exists() {
        bail!("a restore into {} did not finish; run it again: causeway store restore --force", paths.data.display());
    }
    Ok(owned)
}

/// As [`claim`], also in the middle of a restore.
pub fn claim_to_restore(paths: &Paths) -> Result<Flock<File>> {
    make(paths)?;
    let mark = paths.data.join(MARK);
    let mut file = File::options().read(true).write(true).open(&mark)?;
    file.write_all(format!("{}\n", paths.name).as_bytes())?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| {
        anyhow::anyhow!("cluster {:?} is being started or stopped by another process ({e})", paths.name)
    })
}

/// Removes a folder in which a failed start left nothing but its mark and its log; true when it did.
pub fn forget_empty(paths: &Paths) -> bool {
    let Ok(entries) = fs::read_dir(&paths.data) else { return false };
    let mut names = entries.flatten().map(|e| e.file_name());
    let bare = names.all(|n| n == MARK || n == "causeway.log");
    bare && delete(paths).is_ok()
}

/// Removes what a cluster keeps, and the folder when nothing else is in it.
pub fn delete(paths: &Paths) -> Result<()> {
    let dir = &paths.data;
    if !dir.exists() {
        return Ok(());
    }
    match fs::read_to_string(dir.join(MARK)) {
        Ok(name) if name.trim() == paths.name => {}
        _ => bail!("{} is not the data of cluster {:?}: it is left alone", dir.display(), paths.name),
    }
    for entry in ENTRIES.iter().chain([&MARK]) {
        let path = dir.join(entry);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("removing {}", path.display()));
            }
            _ => {}
        }
    }
    if fs::remove_dir(dir).is_err() {
        println!("{} holds more than the cluster's data: the rest is left there", dir.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(dir: &std::path::Path) -> Paths {
        Paths::new("data", Some(dir)).unwrap()
    }

    #[test]
    fn foreign_folders_are_never_deleted() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("store")).unwrap();
        fs::write(dir.path().join("precious"), "mine").unwrap();
        assert!(make(&paths(dir.path())).is_err());
        assert!(delete(&paths(dir.path())).is_err());
        assert!(dir.path().join("precious").exists() && dir.path().join("store").exists());
    }

    #[test]
    fn only_our_own_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let ours = dir.path().join("x");
        make(&paths(&ours)).unwrap();
        fs::create_dir_all(ours.join("store/sled")).unwrap();
        fs::write(ours.join("precious"), "mine").unwrap();
        delete(&paths(&ours)).unwrap();
        assert!(!ours.join("store").exists() && ours.join("precious").exists());
    }

    #[test]
    fn nobody_else_looks_into_it() {
        let dir = tempfile::tempdir().unwrap();
        let ours = dir.path().join("parent/x");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        make(&paths(&ours)).unwrap();
        assert_eq!(mode(&ours), 0o700);
        // As a version before made it, and as a user did.
        let empty = dir.path().join("y");
        fs::create_dir(&empty).unwrap();
        for made in [&ours, &empty] {
            fs::set_permissions(made, Permissions::from_mode(0o755)).unwrap();
            drop(claim(&paths(made)).unwrap());
            assert_eq!(mode(made), 0o700, "{}", made.display());
        }
        // What is not ours stays as it is.
        let foreign = dir.path().join("parent");
        fs::set_permissions(&foreign, Permissions::from_mode(0o755)).unwrap();
        assert!(make(&paths(&foreign)).is_err());
        assert_eq!(mode(&foreign), 0o755);
    }

    #[test]
    fn nothing_starts_in_the_middle_of_a_restore() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        make(&paths).unwrap();
        fs::create_dir(paths.restoring()).unwrap();
        assert!(claim(&paths).unwrap_err().to_string().contains("store restore"));
        claim_to_restore(&paths).unwrap();
    }

    #[test]
    fn two_processes_cannot_own_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = claim(&paths(dir.path())).unwrap();
        assert!(claim(&paths(dir.path())).is_err());
        drop(first);
        claim(&paths(dir.path())).unwrap();
    }
}
