//! The files of a cluster that go into a backup. In: its data folder. Out: those below `pki` and `settings`, read without
//! following links; and the way back, into a folder that nobody else has touched.

use crate::contents::{EntryPath, FOLDERS, MAX_FILE, MAX_FILES, SinkResult};
use crate::error::{BackupError, Result, at};
use nix::libc::O_NOFOLLOW;
use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file, to be read when its turn comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its path in the backup.
    pub path: EntryPath,
    /// Where it is.
    pub at: PathBuf,
}

/// What is half-written: the PKI writes a file under this ending and renames it.
const HALF_WRITTEN: &str = "new";

/// The files of a data folder, by path.
pub fn find(data: &Path) -> Result<Vec<Found>> {
    let mut all = Vec::new();
    for folder in FOLDERS {
        walk(&data.join(folder), folder, &mut all)?;
    }
    all.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(all)
}

fn walk(dir: &Path, path: &str, into: &mut Vec<Found>) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(at("reading the folder", dir))?,
    };
    for entry in entries {
        let entry = entry.map_err(at("reading the folder", dir))?;
        let (place, name) = (entry.path(), entry.file_name());
        let kind = entry.file_type().map_err(at("looking at", &place))?;
        let refused = |what: &str| {
            BackupError::Contents(format!(
                "{}, which {what}; move it away, or back it up by other means",
                place.display()
            ))
        };
        let path = format!("{path}/{}", name.to_str().ok_or_else(|| refused("has a name that is no text"))?);
        if kind.is_dir() {
            // The depth of a path is bounded, so this ends.
            EntryPath::parse(&format!("{path}/x"))?;
            walk(&place, &path, into)?;
        } else if !kind.is_file() {
            return Err(refused("is neither a file nor a folder"));
        } else if place.extension().is_none_or(|e| e != HALF_WRITTEN) {
            if into.len() == MAX_FILES {
                return Err(refused("is one file too many"));
            }
            into.push(Found { path: EntryPath::parse(&path)?, at: place });
        }
    }
    Ok(())
}

impl Found {
    /// Its mode and bytes.
    pub fn read(&self) -> Result<(u32, Vec<u8>)> {
        let opened = File::options().read(true).custom_flags(O_NOFOLLOW).open(&self.at);
        let file = opened.map_err(at("opening", &self.at))?;
        let mode = file.metadata().map_err(at("looking at", &self.at))?.mode() & 0o777;
        let mut bytes = Vec::new();
        file.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes).map_err(at("reading", &self.at))?;
        Ok((mode, bytes))
    }
}

/// Makes a folder that must not be there yet, for its owner only.
pub fn make_folder(path: &Path) -> Result<()> {
    DirBuilder::new().mode(0o700).create(path).map_err(at("making the folder", path))
}

/// Writes a file of a backup below `root`, which [`make_folder`] has made: whatever is in there is of this backup.
/// Never executable, never for others to write.
pub fn place(root: &Path, path: &EntryPath, mode: u32, bytes: &[u8]) -> SinkResult {
    let target = root.join(path.as_str());
    if let Some(parent) = target.parent() {
        DirBuilder::new().mode(0o700).recursive(true).create(parent).map_err(at("making the folder", parent))?;
    }
    let mut options = File::options();
    let options = options.write(true).create_new(true).mode(mode & 0o644).custom_flags(O_NOFOLLOW);
    let mut file = options.open(&target).map_err(at("making the file", &target))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(at("writing", &target))?;
    Ok(())
}

/// Syncs a folder and all folders below it.
pub fn sync(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(at("reading the folder", dir))? {
        let entry = entry.map_err(at("reading the folder", dir))?;
        if entry.file_type().map_err(at("looking at", &entry.path()))?.is_dir() {
            sync(&entry.path())?;
        }
    }
    sync_folder(dir)
}

/// Syncs the names in a folder.
pub fn sync_folder(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(at("syncing the folder", dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_makes_up_a_cluster_is_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["pki", "settings", "volumes", "store"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
            fs::write(dir.path().join(folder).join("a.key"), folder).unwrap();
        }
        fs::write(dir.path().join("pki/b.new"), "half").unwrap();
        let found = find(dir.path()).unwrap();
        let paths: Vec<&str> = found.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(paths, ["pki/a.key", "settings/a.key"]);
        assert_eq!(found[0].read().unwrap().1, b"pki");
        symlink("/etc/shadow", dir.path().join("pki/c.key")).unwrap();
        assert!(find(dir.path()).is_err(), "a link is not followed");
    }

    #[test]
    fn no_file_of_a_backup_leaves_its_folder_or_replaces_another() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("staging");
        make_folder(&root).unwrap();
        assert!(make_folder(&root).is_err());
        let path = EntryPath::parse("pki/x/ca.key").unwrap();
        place(&root, &path, 0o777, b"1").unwrap();
        assert_eq!(fs::metadata(root.join("pki/x/ca.key")).unwrap().mode() & 0o777, 0o644);
        assert!(place(&root, &path, 0o600, b"2").is_err());
        for bad in
            ["../x", "/etc/passwd", "pki/../../x", "pki", "pki/", "pki//x", "pki/.", "store/x", "pki/a/b/c/d", ""]
        {
            assert!(EntryPath::parse(bad).is_err(), "{bad}");
        }
        for bad in ["pki/a\0b", "pki/a\nb", "pki/a\\b", "pki/\u{202e}x", "pki/a b"] {
            assert!(EntryPath::parse(bad).is_err(), "{bad:?}");
        }
        sync(&root).unwrap();
    }
}
