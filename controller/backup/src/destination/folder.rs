//! Backups in a folder. In: a path. Out: files that are whole, synced and named, or that look like nothing.

use crate::error::{Result, at};
use crate::key::random;
use crate::retention::Name;
use data_encoding::HEXLOWER;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What the names of files that are being written end in.
const PARTIAL: &str = ".causeway-backup-partial";
/// One that is older than this was left by a program that was killed.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// A file that is deleted again unless it is kept.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Staged {
    /// Makes one, for its owner only. The folder has to be there: one that is not may be a disk that is not mounted.
    pub(super) fn new(dir: &Path, cluster: &str) -> Result<Self> {
        sweep(dir, cluster);
        let path = dir.join(format!(".{cluster}-{}{PARTIAL}", HEXLOWER.encode(&random::<8>()?)));
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path);
        Ok(Self { file: file.map_err(at("making the file (make its folder first)", &path))?, path, kept: false })
    }

    /// The file, to be written and read.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name, for good.
    pub(super) fn keep(mut self, to: &Path) -> Result<PathBuf> {
        self.file.sync_all().map_err(at("syncing", &self.path))?;
        fs::rename(&self.path, to).map_err(at("naming the backup", to))?;
        self.kept = true;
        crate::files::sync_folder(to.parent().unwrap_or(Path::new("/")))?;
        Ok(to.to_owned())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.kept {
            drop(fs::remove_file(&self.path));
        }
    }
}

/// Removes what a killed program left. What fails here fails again, and louder, when the folder is used.
fn sweep(dir: &Path, cluster: &str) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_ours = name.strip_prefix(&format!(".{cluster}-")).and_then(|n| n.strip_suffix(PARTIAL));
        let is_ours = is_ours.is_some_and(|n| n.len() == 16 && n.bytes().all(|b| b.is_ascii_hexdigit()));
        let age =
            || entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| SystemTime::now().duration_since(t).ok());
        if is_ours && age().is_some_and(|age| age > ABANDONED) {
            drop(fs::remove_file(entry.path()));
        }
    }
}

/// The backups in a folder.
pub(super) fn list(dir: &Path) -> Result<Vec<Name>> {
    let entries = fs::read_dir(dir).map_err(at("reading the folder (make it first)", dir))?;
    let entries: Vec<_> = entries.collect::<io::Result<_>>().map_err(at("reading the folder", dir))?;
    let files = entries.iter().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    Ok(files.filter_map(|entry| Name::parse(entry.file_name().to_str()?)).collect())
}

pub(super) fn delete(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(at("deleting the backup", path))
}

pub(super) fn fetch(path: &Path, into: &mut File) -> Result<()> {
    let mut from = File::open(path).map_err(at("opening the backup", path))?;
    io::copy(&mut from, into).map(drop).map_err(at("copying the backup", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_backup_is_there_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let names = || -> Vec<String> {
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
        };
        let staged = Staged::new(dir.path(), "prod").unwrap();
        staged.file().write_all(b"half").unwrap();
        assert_eq!(list(dir.path()).unwrap(), []);
        drop(staged);
        assert_eq!(names(), Vec::<String>::new());
        let name = "prod-20261130T204500Z-r7.causeway-backup";
        let staged = Staged::new(dir.path(), "prod").unwrap();
        staged.keep(&dir.path().join(name)).unwrap();
        assert_eq!(names(), [name]);
        assert_eq!(list(dir.path()).unwrap(), [Name::parse(name).unwrap()]);
        assert!(Staged::new(&dir.path().join("none"), "prod").is_err(), "no folder is made");
    }

    #[test]
    fn only_old_leftovers_of_ours_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let old = SystemTime::now() - ABANDONED * 2;
        let put = |name: &str, time: Option<SystemTime>| {
            let file = File::create(dir.path().join(name)).unwrap();
            if let Some(time) = time {
                file.set_modified(time).unwrap();
            }
        };
        put(".prod-0123456789abcdef.causeway-backup-partial", Some(old));
        put(".prod-0123456789abcde0.causeway-backup-partial", None);
        put(".other-0123456789abcdef.causeway-backup-partial", Some(old));
        put(".prod-precious.causeway-backup-partial", Some(old));
        sweep(dir.path(), "prod");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        assert!(!dir.path().join(".prod-0123456789abcdef.causeway-backup-partial").exists());
    }
}
