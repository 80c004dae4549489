//! The file of a configuration. In: a path. Out: the configuration, if nobody but its owner can read it; and a new one in
//! its place, whole or not at all. All of it blocks.

use crate::cipher::new_secret;
use crate::config::{Configuration, MAX_FILE, NamedKey, parse};
use crate::{EncryptionError, Result};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What changes with every new version of a file: when, how long, which one.
pub type Stamp = (i64, i64, u64, u64);

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> EncryptionError + 'a {
    move |cause| EncryptionError::File { doing, path: path.to_owned(), cause }
}

fn wrong(path: &Path, what: impl Into<String>) -> EncryptionError {
    EncryptionError::Configuration { path: path.to_owned(), what: what.into() }
}

/// Reads a file; `None` when it is not there.
pub fn read(path: &Path) -> Result<Option<(Configuration, Stamp)>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("opening", path)(e)),
    };
    let meta = file.metadata().map_err(failed("looking at", path))?;
    if !meta.is_file() || meta.len() > MAX_FILE as u64 {
        return Err(wrong(path, format!("it is no file of at most {MAX_FILE} bytes")));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(wrong(path, "it can be read by others than its owner; run chmod 600 on it"));
    }
    let mut text = String::new();
    file.take(MAX_FILE as u64 + 1).read_to_string(&mut text).map_err(failed("reading", path))?;
    let configuration = parse(&text).map_err(|what| wrong(path, what))?;
    Ok(Some((configuration, stamp_of(&meta))))
}

fn stamp_of(meta: &fs::Metadata) -> Stamp {
    (meta.mtime(), meta.mtime_nsec(), meta.len(), meta.ino())
}

/// Of a file that is there.
pub fn stamp(path: &Path) -> Option<Stamp> {
    fs::metadata(path).ok().map(|meta| stamp_of(&meta))
}

/// For how long a file has not changed; no time at all where that is not known.
pub fn age(path: &Path) -> Duration {
    let modified = fs::metadata(path).and_then(|meta| meta.modified()).ok();
    modified.and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default()
}

/// Replaces a file. It is on the device when this returns: what is encrypted with a key that is not would be lost.
pub fn write(path: &Path, configuration: &Configuration) -> Result<()> {
    let text = configuration.to_yaml().map_err(|what| wrong(path, what))?;
    let text = format!(
        "# The keys of what is encrypted in the store (docs/STORE.md). Without this file Secrets cannot be read, by \
         anybody.\n# Backups hold it. causeway store rotate-encryption-key changes it.\n{text}"
    );
    // Backups leave out what ends so.
    let next = path.with_extension("new");
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let replace = || {
        drop(fs::remove_file(&next));
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&next)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&next, path)?;
        File::open(parent)?.sync_all()
    };
    replace().map_err(failed("writing", path))
}

/// A new key, called after the time.
pub fn new_key(taken: impl Fn(&str) -> bool) -> Result<NamedKey> {
    let mut seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    while taken(&format!("key-{seconds}")) {
        seconds += 1;
    }
    Ok(NamedKey::new(format!("key-{seconds}"), &new_secret()?))
}

/// Puts a new key before the others, wherever one encrypts. Returns its name.
pub fn add_key(path: &Path) -> Result<String> {
    let Some((mut configuration, _)) = read(path)? else {
        return Err(wrong(path, "it is not there; the first start of the cluster makes it"));
    };
    let is_taken = |name: &str| all_keys(&configuration).iter().any(|taken| taken == name);
    let key = new_key(is_taken)?;
    let name = key.name.clone();
    let mut added = false;
    for entry in &mut configuration.resources {
        if let Some(aesgcm) = entry.providers.first_mut().and_then(|first| first.aesgcm.as_mut()) {
            aesgcm.keys.insert(0, key.clone());
            added = true;
        }
    }
    if !added {
        return Err(wrong(path, "nothing is encrypted: no entry begins with aesgcm"));
    }
    write(path, &configuration)?;
    Ok(name)
}

/// The names of all keys.
pub fn all_keys(configuration: &Configuration) -> Vec<String> {
    let providers = configuration.resources.iter().flat_map(|entry| &entry.providers);
    let keys = providers.filter_map(|provider| provider.aesgcm.as_ref()).flat_map(|aesgcm| &aesgcm.keys);
    keys.map(|key| key.name.clone()).collect()
}

/// Takes keys out of a file that are behind another and that nothing needs. Returns their names.
pub fn remove_keys(path: &Path, is_needed: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let Some((mut configuration, _)) = read(path)? else { return Ok(Vec::new()) };
    let mut removed = Vec::new();
    for entry in &mut configuration.resources {
        for aesgcm in entry.providers.iter_mut().filter_map(|provider| provider.aesgcm.as_mut()) {
            let mut first = true;
            aesgcm.keys.retain(|key| {
                let keep = std::mem::take(&mut first) || is_needed(&key.name);
                if !keep {
                    removed.push(key.name.clone());
                }
                keep
            });
        }
    }
    if !removed.is_empty() {
        write(path, &configuration)?;
    }
    removed.sort_unstable();
    removed.dedup();
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_come_and_go_and_only_the_owner_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("encryption.yaml");
        assert!(read(&path).unwrap().is_none());
        assert!(add_key(&path).unwrap_err().to_string().contains("first start"));
        write(&path, &Configuration::of_secrets(new_key(|_| false).unwrap())).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let first = all_keys(&read(&path).unwrap().unwrap().0);
        let (_, before) = read(&path).unwrap().unwrap();
        let second = add_key(&path).unwrap();
        assert_ne!(stamp(&path), Some(before));
        assert_ne!(first[0], second, "also within a second");
        assert_eq!(all_keys(&read(&path).unwrap().unwrap().0), [second.clone(), first[0].clone()]);
        assert_eq!(remove_keys(&path, |name| name == first[0]).unwrap(), Vec::<String>::new());
        assert_eq!(remove_keys(&path, |_| false).unwrap(), first);
        assert_eq!(all_keys(&read(&path).unwrap().unwrap().0), [second]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing half-written is left");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("chmod 600"));
        let identity = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: [{resources: \
                        [secrets], providers: [{identity: {}}]}]\n";
        fs::write(&path, identity).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(add_key(&path).unwrap_err().to_string().contains("nothing is encrypted"));
    }
}
