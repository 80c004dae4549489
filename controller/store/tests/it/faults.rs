//! A full disk, and two owners.

use bytes::Bytes;
use causeway_store::{SledOptions, SledStore, Store, StoreError};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::path::Path;

/// A small file system that is unmounted when dropped.
struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    fn new(path: &'a Path, options: &str) -> Self {
        mount(Some("causeway-test"), path, Some("tmpfs"), MsFlags::empty(), Some(options)).expect("needs root");
        Self(path)
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_keeps_serving_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let _mount = Tmpfs::new(dir.path(), "size=24m");
    let options = SledOptions { reserve: 8 << 20, cache: 1 << 20, ..SledOptions::default() };
    let store_dir = dir.path().join("store");
    let store = SledStore::open(&store_dir, options.clone()).unwrap();
    let first = store.create("/r/first", "kept".into()).await.unwrap();
    // Somebody else fills the disk.
    let ballast = dir.path().join("ballast");
    std::fs::write(&ballast, vec![0u8; 18 << 20]).unwrap();
    let error = store.create("/r/second", Bytes::from(vec![b'x'; 1000])).await.unwrap_err();
    assert!(matches!(error, StoreError::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("free space"), "{error}");
    assert_eq!(store.get("/r/first", None).await.unwrap().0, Some(first.clone()));
    std::fs::remove_file(&ballast).unwrap();
    let second = store.create("/r/second", "now".into()).await.unwrap();
    assert_eq!(second.mod_revision, first.mod_revision + 1);
    drop(store);
    let store = SledStore::open(&store_dir, options).unwrap();
    assert_eq!(store.get("/r/second", None).await.unwrap().0, Some(second));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_owner_is_told_who_holds_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path(), SledOptions::default()).unwrap();
    let error = SledStore::open(dir.path(), SledOptions::default()).err().unwrap();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    drop(store);
    SledStore::open(dir.path(), SledOptions::default()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_about_to_go_is_waited_for() {
    use nix::fcntl::{Flock, FlockArg};
    let dir = tempfile::tempdir().unwrap();
    drop(SledStore::open(dir.path(), SledOptions::default()).unwrap());
    // As a child has it that was forked and is not another program yet.
    let file = std::fs::File::open(dir.path().join("values-1/db")).unwrap();
    let held = Flock::lock(file, FlockArg::LockExclusive).unwrap();
    let letting_go = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        drop(held);
    });
    SledStore::open(dir.path(), SledOptions::default()).unwrap();
    letting_go.join().unwrap();
}
