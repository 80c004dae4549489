//! Backing up and restoring folders, without a cluster: what is moved, what is refused, and what is left after that.

use super::backup;
use super::files::{self, From};
use super::keys;
use super::restore::into;
use crate::data;
use crate::paths::Paths;
use bytes::Bytes;
use causeway_backup::contents::Writer;
use causeway_backup::{About, Destination, EntryPath, Key};
use causeway_store::{ListRequest, SledOptions, SledStore, Store, StoreError};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

struct Lab {
    dir: tempfile::TempDir,
    key: Key,
    runtime: tokio::runtime::Runtime,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = Key::make(&dir.path().join("key")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { dir, key, runtime }
    }

    fn paths(&self, folder: &str) -> Paths {
        Paths::new("prod", Some(&self.dir.path().join(folder))).unwrap()
    }

    /// A cluster that has run, with one object.
    fn cluster(&self, folder: &str) -> Paths {
        let paths = self.paths(folder);
        data::make(&paths).unwrap();
        for (file, text) in
            [("pki/ca.crt", "certificate"), ("pki/ca.key", "key"), ("settings/config.yaml", "name: prod")]
        {
            fs::create_dir_all(paths.data.join(file).parent().unwrap()).unwrap();
            fs::write(paths.data.join(file), text).unwrap();
        }
        let store = SledStore::open(&paths.store(), SledOptions::default()).unwrap();
        self.runtime.block_on(store.create("/registry/a", Bytes::from_static(b"one"))).unwrap();
        paths
    }

    fn backup(&self, paths: &Paths) -> File {
        let file = tempfile::tempfile_in(self.dir.path()).unwrap();
        files::write(paths, &self.key, &file, From::Stopped).unwrap();
        file
    }

    /// The object and the revision of a folder's store.
    fn object(&self, paths: &Paths) -> (Bytes, u64) {
        let store = SledStore::open(&paths.store(), SledOptions::default()).unwrap();
        let request = ListRequest { prefix: "/registry/".into(), ..ListRequest::default() };
        let listing = self.runtime.block_on(store.list(request)).unwrap();
        (listing.items[0].value.clone(), listing.revision)
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

#[test]
fn a_folder_comes_back_and_revisions_go_on_higher() {
    let lab = Lab::new();
    let old = lab.cluster("old");
    let (file, before) = (lab.backup(&old), lab.object(&old).1);
    let new = lab.paths("new");
    let contents = into(&new, &lab.key, &file, false).unwrap();
    assert_eq!((contents.revision, contents.files), (before, 3));
    assert_eq!(names(&new.data), ["causeway-cluster", "pki", "settings", "store"]);
    assert_eq!(fs::read_to_string(new.pki().join("ca.key")).unwrap(), "key");
    assert_eq!(lab.object(&new), (Bytes::from_static(b"one"), before + super::BUMP));
}

/// A cluster with a Secret, encrypted as the settings or nobody says.
fn with_secret(lab: &Lab, paths: &Paths, named: Option<&Path>) {
    fs::create_dir_all(paths.settings()).unwrap();
    let keys = lab.runtime.block_on(keys::open(paths, named)).unwrap();
    lab.runtime.block_on(keys.store().create(SECRET, Bytes::from_static(b"hunter2"))).unwrap();
}

const SECRET: &str = "/registry/core/secrets/default/a";

#[test]
fn secrets_come_back_with_their_keys_wherever_those_were() {
    let lab = Lab::new();
    let mine = lab.dir.path().join("mine.yaml");
    let text = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: [{resources: [secrets], \
                providers: [{aesgcm: {keys: [{name: mine, secret: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=}]}}]}]";
    fs::write(&mine, text).unwrap();
    fs::set_permissions(&mine, fs::Permissions::from_mode(0o600)).unwrap();
    for (name, named) in [("own", None), ("user", Some(mine.as_path()))] {
        let old = lab.cluster(name);
        with_secret(&lab, &old, named);
        let file = lab.backup(&old);
        let new = lab.paths(&format!("{name}-new"));
        into(&new, &lab.key, &file, false).unwrap();
        if let Some(named) = named {
            // On the new machine there is only what came out of the backup.
            fs::remove_file(named).unwrap();
            let error = format!("{:#}", lab.runtime.block_on(keys::open(&new, Some(named))).err().unwrap());
            assert!(error.contains(keys::COPY), "{error}");
            fs::copy(new.data.join(keys::COPY), named).unwrap();
            // And the next backup holds the file once.
            drop(lab.runtime.block_on(keys::open(&new, Some(named))).unwrap());
            lab.backup(&new);
        }
        let keys = lab.runtime.block_on(keys::open(&new, named)).unwrap();
        let kv = lab.runtime.block_on(keys.store().get(SECRET, None)).unwrap().0.unwrap();
        assert_eq!(kv.value, "hunter2", "{name}");
    }
    // A backup without the keys would be of no use.
    fs::remove_file(&mine).unwrap();
    let file = tempfile::tempfile_in(lab.dir.path()).unwrap();
    let error = format!("{:#}", files::write(&lab.paths("user"), &lab.key, &file, From::Stopped).unwrap_err());
    assert!(error.contains("mine.yaml"), "{error}");
}

#[test]
fn a_stopped_cluster_gets_a_new_key() {
    let lab = Lab::new();
    let paths = lab.cluster("old");
    with_secret(&lab, &paths, None);
    let before = fs::read_to_string(paths.encryption()).unwrap();
    keys::rotate(&paths).unwrap();
    assert_ne!(fs::read_to_string(paths.encryption()).unwrap(), before);
    let keys = lab.runtime.block_on(keys::open(&paths, None)).unwrap();
    let kv = lab.runtime.block_on(keys.store().get(SECRET, None)).unwrap().0.unwrap();
    assert_eq!(kv.value, "hunter2");
    assert_eq!(lab.runtime.block_on(keys.store().rewrite()).unwrap().rewritten, 1);
}

#[test]
fn a_running_store_is_backed_up_as_of_one_revision() {
    let lab = Lab::new();
    let paths = lab.cluster("old");
    let folder = lab.dir.path().join("backups");
    fs::create_dir(&folder).unwrap();
    let store = SledStore::open(&paths.store(), SledOptions::default()).unwrap();
    let made = lab.runtime.block_on(async {
        let snapshot = store.snapshot().await.unwrap();
        // After the snapshot: not in the backup.
        store.create("/registry/b", Bytes::from_static(b"two")).await.unwrap();
        let to = Destination::parse(folder.to_str().unwrap()).unwrap();
        backup::make(&paths, &lab.key, &to, Some(snapshot)).await.unwrap()
    });
    assert_eq!(names(&folder), [made.name.to_string()]);
    assert_eq!(made.name.revision, made.contents.revision);
    let new = lab.paths("new");
    into(&new, &lab.key, &File::open(&made.address).unwrap(), false).unwrap();
    assert_eq!(lab.object(&new).1, made.name.revision + super::BUMP);
}

#[test]
fn what_is_there_is_kept_until_it_is_told_otherwise_and_then_set_aside() {
    let lab = Lab::new();
    let old = lab.cluster("old");
    let file = lab.backup(&old);
    fs::write(old.pki().join("ca.key"), "another key").unwrap();
    let refused = into(&old, &lab.key, &file, false).unwrap_err().to_string();
    assert!(refused.contains("--force"), "{refused}");
    assert_eq!(fs::read_to_string(old.pki().join("ca.key")).unwrap(), "another key");
    into(&old, &lab.key, &file, true).unwrap();
    assert_eq!(fs::read_to_string(old.pki().join("ca.key")).unwrap(), "key");
    let aside = old.data.join(data::BEFORE_RESTORE);
    let aside = aside.join(names(&aside).pop().unwrap());
    assert_eq!(fs::read_to_string(aside.join("pki/ca.key")).unwrap(), "another key");
    assert!(aside.join("store").is_dir());
    // Whoever owns the folder is not disturbed.
    let _owned = data::claim(&old).unwrap();
    assert!(into(&old, &lab.key, &file, true).is_err());
}

#[test]
fn a_restore_that_was_cut_off_is_done_again() {
    let lab = Lab::new();
    let file = lab.backup(&lab.cluster("old"));
    // Cut off before anything was moved, and in the middle of it.
    let new = lab.paths("new");
    data::make(&new).unwrap();
    fs::create_dir_all(new.restoring().join("pki")).unwrap();
    fs::write(new.restoring().join("pki/ca.key"), "half").unwrap();
    assert!(data::claim(&new).is_err());
    into(&new, &lab.key, &file, false).unwrap();
    fs::create_dir(new.restoring()).unwrap();
    fs::rename(new.store(), new.restoring().join("store")).unwrap();
    assert!(data::claim(&new).is_err());
    assert!(into(&new, &lab.key, &file, false).unwrap_err().to_string().contains("did not finish"));
    into(&new, &lab.key, &file, true).unwrap();
    drop(data::claim(&new).unwrap());
    assert_eq!(lab.object(&new).0, Bytes::from_static(b"one"));
}

#[test]
fn what_is_damaged_forged_or_not_whole_leaves_nothing() {
    let lab = Lab::new();
    let old = lab.cluster("old");
    let mut good = Vec::new();
    let mut file = lab.backup(&old);
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_end(&mut good).unwrap();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let about =
        || About { cluster: "prod".into(), created: "2026-11-30T20:45:00Z".parse().unwrap(), program: "0".into() };
    // With the right key, and yet no backup: without an authority, and with a store that is none.
    let forged = |path: &str, whole: bool| {
        let mut writer = Writer::new(Vec::new(), &lab.key, &about()).unwrap();
        writer.file(&EntryPath::parse(path).unwrap(), 0o600, b"key").unwrap();
        let write = |out: &mut dyn Write| match whole {
            true => causeway_store::offline::snapshot(&old.store(), out).map(drop),
            false => out
                .write_all(b"not a snapshot")
                .map_err(|e| StoreError::Engine { doing: String::new(), detail: e.to_string() }),
        };
        writer.store(write).unwrap();
        writer.finish(2).unwrap()
    };
    let bad = [good[..good.len() - 1].to_vec(), flipped, forged("pki/other.key", true), forged("pki/ca.key", false)];
    for (at, bytes) in bad.into_iter().enumerate() {
        let mut file = tempfile::tempfile_in(lab.dir.path()).unwrap();
        file.write_all(&bytes).unwrap();
        let new = lab.paths("new");
        into(&new, &lab.key, &file, false).unwrap_err();
        assert_eq!(names(&new.data), ["causeway-cluster"], "{at}");
        assert!(data::forget_empty(&new) && !new.data.exists());
    }
    let never_ran = lab.paths("never");
    data::make(&never_ran).unwrap();
    let error = files::write(&never_ran, &lab.key, &file, From::Stopped).unwrap_err();
    assert!(error.to_string().contains("never run"), "{error}");
}
