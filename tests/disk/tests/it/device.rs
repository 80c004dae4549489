//! The device itself, through `std::fs`: what outlives a cut, what need not, and each fault.

use causeway_test_disk::{Disk, NameLoss, SyncFailure, WriteFailure, own_mounts};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const SEEDS: u64 = 60;

fn disk() -> Disk {
    own_mounts().unwrap();
    Disk::new(1).unwrap()
}

/// Runs `work` on a new disk, cuts the power, and looks at what is found: for many seeds.
fn after_cuts(work: impl Fn(&Path), mut look: impl FnMut(u64, &Path)) {
    own_mounts().unwrap();
    for seed in 0..SEEDS {
        let mut disk = Disk::new(seed).unwrap();
        work(disk.path());
        disk.cut(seed);
        disk.mount().unwrap();
        look(seed, disk.path());
    }
}

fn sync(dir: &Path) {
    File::open(dir).unwrap().sync_all().unwrap();
}

#[test]
fn what_was_synced_survives() {
    let work = |dir: &Path| {
        let mut file = File::create(dir.join("a")).unwrap();
        file.write_all(&[7; 100_000]).unwrap();
        file.sync_data().unwrap();
        fs::create_dir(dir.join("sub")).unwrap();
        sync(dir);
        let mut file = File::create(dir.join("sub/b")).unwrap();
        file.write_all(b"in a folder").unwrap();
        file.sync_all().unwrap();
        sync(&dir.join("sub"));
    };
    after_cuts(work, |seed, dir| {
        assert_eq!(fs::read(dir.join("a")).unwrap(), [7; 100_000], "seed {seed}");
        assert_eq!(fs::read(dir.join("sub/b")).unwrap(), b"in a folder", "seed {seed}");
    });
}

#[test]
fn what_was_not_synced_may_be_lost_in_parts() {
    let work = |dir: &Path| {
        let mut file = File::create(dir.join("a")).unwrap();
        file.write_all(&[1; 4096]).unwrap();
        file.sync_all().unwrap();
        sync(dir);
        // Over synced sectors, and beyond.
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(&[2; 8192]).unwrap();
    };
    let (mut old, mut new, mut mixed, mut holes) = (false, false, false, false);
    after_cuts(work, |seed, dir| {
        let found = fs::read(dir.join("a")).unwrap();
        assert!([4096, 8192].contains(&found.len()), "seed {seed}");
        assert!(found.chunks(512).all(|sector| sector.iter().all(|b| *b == sector[0])), "seed {seed}");
        assert!(found[..4096].iter().all(|b| [1, 2].contains(b)), "seed {seed}");
        old |= found == [1; 4096];
        new |= found == [2; 8192];
        mixed |= found.contains(&1) && found.contains(&2);
        holes |= found.contains(&0);
    });
    assert!(old && new && mixed && holes);
}

#[test]
fn without_a_sync_of_the_folder_names_may_be_lost() {
    let work = |dir: &Path| {
        let put = |name: &str, text: &str| {
            let mut file = File::create(dir.join(name)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file.sync_all().unwrap();
        };
        put("current", "old");
        put("gone", "x");
        sync(dir);
        put("next", "new");
        fs::rename(dir.join("next"), dir.join("current")).unwrap();
        fs::remove_file(dir.join("gone")).unwrap();
    };
    let (mut renamed, mut not, mut back, mut removed) = (0, 0, 0, 0);
    after_cuts(work, |seed, dir| {
        match fs::read_to_string(dir.join("current")).unwrap().as_str() {
            "new" => renamed += 1,
            "old" => not += 1,
            other => panic!("seed {seed}: {other:?}"),
        }
        *(if dir.join("gone").exists() { &mut back } else { &mut removed }) += 1;
    });
    assert!(renamed > 0 && not > 0 && back > 0 && removed > 0, "{renamed} {not} {back} {removed}");
}

#[test]
fn a_seed_brings_the_same_state_back() {
    own_mounts().unwrap();
    let found = |seed| {
        let mut disk = Disk::new(0).unwrap();
        for i in 0..20u8 {
            let mut file = File::create(disk.path().join(format!("f{i}"))).unwrap();
            file.write_all(&vec![i; 3000]).unwrap();
            if i % 3 == 0 {
                file.sync_all().unwrap();
            }
        }
        disk.cut(seed);
        disk.mount().unwrap();
        let files = disk.files();
        files.iter().map(|(p, _)| (p.clone(), fs::read(disk.path().join(p)).unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(found(5), found(5));
    assert!((0..10).any(|seed| found(seed) != found(5)));
}

#[test]
fn without_power_nothing_answers_and_old_handles_stay_dead() {
    let mut disk = disk();
    let mut file = File::create(disk.path().join("a")).unwrap();
    file.write_all(b"kept").unwrap();
    file.sync_all().unwrap();
    sync(disk.path());
    disk.cut(1);
    let dead = |e: io::Error| e.raw_os_error() == Some(nix::errno::Errno::EIO as i32);
    assert!(dead(file.write_all(b"more").unwrap_err()));
    assert!(dead(file.sync_all().unwrap_err()));
    assert!(dead(File::create(disk.path().join("b")).unwrap_err()));
    disk.mount().unwrap();
    assert!(dead(file.write_all(b"more").unwrap_err()));
    assert_eq!(fs::read(disk.path().join("a")).unwrap(), b"kept");
    // At a chosen operation: the write is the second one, and does not happen.
    disk.cut_after(1, 3);
    let mut file = File::create(disk.path().join("c")).unwrap();
    assert!(dead(file.write_all(b"x").unwrap_err()));
    assert_eq!(disk.cuts(), 2);
}

#[test]
fn a_slow_sync_promises_nothing_before_it_ends() {
    let mut disk = disk();
    disk.set(|f| f.sync_delay = Duration::from_millis(300));
    let mut file = File::create(disk.path().join("a")).unwrap();
    file.write_all(&[1; 512]).unwrap();
    let begin = Instant::now();
    file.sync_all().unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(300));
    sync(disk.path());
    file.write_all(&[2; 512]).unwrap();
    let waiting = std::thread::spawn(move || file.sync_all());
    std::thread::sleep(Duration::from_millis(100));
    // Others are served meanwhile.
    assert_eq!(fs::read(disk.path().join("a")).unwrap().len(), 1024);
    disk.cut(1);
    assert!(waiting.join().unwrap().is_err());
    disk.set(|f| f.sync_delay = Duration::ZERO);
    disk.mount().unwrap();
    assert_eq!(fs::read(disk.path().join("a")).unwrap()[..512], [1; 512]);
}

#[test]
fn a_failed_sync_is_told_once() {
    let disk = disk();
    let mut file = File::create(disk.path().join("a")).unwrap();
    file.write_all(b"x").unwrap();
    disk.set(|f| f.sync_failure = SyncFailure::Once);
    assert!(file.sync_all().is_err());
    file.sync_all().unwrap();
    disk.set(|f| f.sync_failure = SyncFailure::Always);
    assert!(file.sync_all().is_err() && file.sync_data().is_err());
}

#[test]
fn a_full_disk_says_so_and_has_room_again() {
    let disk = disk();
    disk.set(|f| f.capacity = 1 << 20);
    let stat = nix::sys::statvfs::statvfs(disk.path()).unwrap();
    assert_eq!(stat.blocks_available() * stat.fragment_size(), 1 << 20);
    fs::write(disk.path().join("a"), vec![1; 1_000_000]).unwrap();
    let error = fs::write(disk.path().join("b"), vec![1; 100_000]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    let stat = nix::sys::statvfs::statvfs(disk.path()).unwrap();
    assert_eq!(stat.blocks_available(), 0);
    // What has its room can be written over.
    File::options().write(true).open(disk.path().join("a")).unwrap().write_all(&[2; 1000]).unwrap();
    fs::remove_file(disk.path().join("a")).unwrap();
    fs::write(disk.path().join("b"), vec![1; 100_000]).unwrap();
}

#[test]
fn writes_can_be_short_or_fail() {
    let disk = disk();
    let mut file = File::create(disk.path().join("a")).unwrap();
    disk.set(|f| f.write_failure = Some(WriteFailure::Short(10)));
    assert_eq!(file.write(&[1; 100]).unwrap(), 10);
    disk.set(|f| f.write_failure = Some(WriteFailure::Error(5)));
    assert!(file.write(&[2; 100]).is_err());
    assert_eq!(fs::read(disk.path().join("a")).unwrap(), [[1; 5], [1; 5], [2; 5]].concat());
}

#[test]
fn a_flipped_bit_is_read_from_then_on_and_put_back_by_a_snapshot() {
    let mut disk = disk();
    fs::write(disk.path().join("a"), [0; 1000]).unwrap();
    let mut open = File::open(disk.path().join("a")).unwrap();
    let before = disk.snapshot();
    assert!(disk.flip(Path::new("a"), 700, 1 << 3));
    assert!(!disk.flip(Path::new("b"), 700, 1));
    let mut read = Vec::new();
    open.read_to_end(&mut read).unwrap();
    assert_eq!(read.iter().position(|b| *b != 0), Some(700));
    assert_eq!(read[700], 8);
    disk.restore(&before).unwrap();
    assert_eq!(fs::read(disk.path().join("a")).unwrap(), [0; 1000]);
}

#[test]
fn ordinary_files_behave() {
    let disk = disk();
    let at = |name: &str| disk.path().join(name);
    fs::create_dir_all(at("x/y")).unwrap();
    fs::write(at("x/y/a"), b"0123456789").unwrap();
    let file = OpenOptions::new().read(true).write(true).open(at("x/y/a")).unwrap();
    file.set_len(5).unwrap();
    file.write_all_at(b"AB", 7).unwrap();
    assert_eq!(fs::read(at("x/y/a")).unwrap(), b"01234\0\0AB");
    OpenOptions::new().append(true).open(at("x/y/a")).unwrap().write_all(b"+").unwrap();
    assert_eq!(file.metadata().unwrap().len(), 10);
    fs::copy(at("x/y/a"), at("copy")).unwrap();
    fs::hard_link(at("copy"), at("link")).unwrap();
    fs::remove_file(at("copy")).unwrap();
    assert_eq!(fs::read(at("link")).unwrap(), b"01234\0\0AB+");
    assert!(File::create_new(at("link")).is_err() && fs::remove_dir(at("x")).is_err());
    File::create(at("link")).unwrap();
    assert_eq!(fs::metadata(at("link")).unwrap().len(), 0);
    // Open files outlive their names.
    fs::remove_file(at("x/y/a")).unwrap();
    let mut left = [0; 2];
    file.read_exact_at(&mut left, 7).unwrap();
    assert_eq!(&left, b"AB");
    for i in 0..300 {
        fs::write(at(&format!("x/y/{i}")), [1]).unwrap();
    }
    assert_eq!(fs::read_dir(at("x/y")).unwrap().count(), 300);
    fs::remove_dir_all(at("x")).unwrap();
    assert!(!at("x").exists());
    // Several requests for one call.
    let large: Vec<u8> = (0..3_000_000u32).map(|i| i as u8).collect();
    fs::write(at("large"), &large).unwrap();
    assert!(fs::read(at("large")).unwrap() == large);
}

#[test]
fn locks_exclude_each_other() {
    let disk = disk();
    let open = || File::create(disk.path().join("lock")).unwrap();
    let first = Flock::lock(open(), FlockArg::LockExclusiveNonblock).unwrap();
    assert!(Flock::lock(open(), FlockArg::LockExclusiveNonblock).is_err());
    drop(first);
    assert!(Flock::lock(open(), FlockArg::LockExclusiveNonblock).is_ok());
}

#[test]
fn a_journal_can_be_asked_for() {
    own_mounts().unwrap();
    for seed in 0..SEEDS {
        let mut disk = Disk::new(seed).unwrap();
        disk.set(|f| f.name_loss = NameLoss::Ordered);
        for name in ["a", "b", "c"] {
            File::create(disk.path().join(name)).unwrap();
        }
        disk.cut(seed);
        disk.mount().unwrap();
        let found = disk.files().len();
        assert!(["a", "b", "c"][..found].iter().all(|n| disk.path().join(n).exists()), "seed {seed}");
    }
}
