//! A backup is read as it was written, and one that was forged with the right key leads nowhere.

use causeway_backup::container::Encrypt;
use causeway_backup::contents::{MAX_FILE, SinkResult, Writer, read};
use causeway_backup::{About, BackupError, Contents, EntryPath, Key, Result, Sink};
use proptest::prelude::*;
use std::io::{Read, Write};

fn key() -> Key {
    Key::make(&tempfile::tempdir().unwrap().path().join("key")).unwrap()
}

fn about() -> About {
    About { cluster: "prod".into(), created: "2026-11-30T20:45:00Z".parse().unwrap(), program: "0.1.0".into() }
}

/// Keeps what it is given.
#[derive(Default)]
struct Kept {
    files: Vec<(String, u32, Vec<u8>)>,
    store: Vec<u8>,
    /// Reads only so much of the store.
    most: Option<u64>,
}

impl Sink for Kept {
    fn file(&mut self, path: &EntryPath, mode: u32, bytes: &[u8]) -> SinkResult {
        self.files.push((path.as_str().to_owned(), mode, bytes.to_vec()));
        Ok(())
    }

    fn store(&mut self, snapshot: &mut dyn Read) -> std::result::Result<u64, Box<dyn std::error::Error + Send + Sync>> {
        snapshot.take(self.most.unwrap_or(u64::MAX)).read_to_end(&mut self.store)?;
        Ok(47)
    }
}

fn file(writer: &mut Writer<Vec<u8>>, path: &str, bytes: &[u8]) -> Result<()> {
    writer.file(&EntryPath::parse(path).unwrap(), 0o600, bytes)
}

fn backup(key: &Key, store: &[u8]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), key, &about()).unwrap();
    file(&mut writer, "pki/ca.key", b"secret").unwrap();
    file(&mut writer, "settings/config.yaml", b"name: prod\n").unwrap();
    writer.store(|out| out.write_all(store)).unwrap();
    writer.finish(47).unwrap()
}

/// What anybody with the key could write.
fn forged(key: &Key, inside: &[u8]) -> Vec<u8> {
    let mut out = Encrypt::new(Vec::new(), key, &about()).unwrap();
    out.write_all(inside).unwrap();
    out.finish().unwrap()
}

fn entry(path: &[u8], mode: u32, length: u32, bytes: &[u8]) -> Vec<u8> {
    let mut entry = vec![1];
    entry.extend(u16::try_from(path.len()).unwrap().to_be_bytes());
    entry.extend(path);
    entry.extend(mode.to_be_bytes());
    entry.extend(length.to_be_bytes());
    entry.extend(bytes);
    entry
}

#[test]
fn what_was_put_in_comes_out() {
    let key = key();
    for length in [0, 1, 65_536, 300_000] {
        let store = vec![7; length];
        let bytes = backup(&key, &store);
        let mut kept = Kept::default();
        let contents = read(bytes.as_slice(), &key, &mut kept).unwrap();
        let expected = Contents { about: about(), revision: 47, files: 2, store_bytes: length as u64 };
        assert_eq!(contents, expected);
        assert_eq!(kept.store, store);
        assert_eq!(kept.files[0], ("pki/ca.key".to_owned(), 0o600, b"secret".to_vec()));
        assert!(!bytes.windows(6).any(|w| w == b"secret"));
    }
}

#[test]
fn what_is_not_whole_is_no_backup() {
    let key = key();
    let writer = Writer::new(Vec::new(), &key, &about()).unwrap();
    assert!(writer.finish(1).is_err(), "there is no store in it");
    let mut writer = Writer::new(Vec::new(), &key, &about()).unwrap();
    assert!(writer.store(|_| Err(std::io::Error::other("the store is damaged"))).is_err());
    let mut twice = Writer::new(Vec::new(), &key, &about()).unwrap();
    file(&mut twice, "pki/ca.key", b"1").unwrap();
    assert!(file(&mut twice, "pki/ca.key", b"2").is_err());
    assert!(file(&mut twice, "pki/big", &vec![0; MAX_FILE + 1]).is_err());
}

#[test]
fn a_store_that_leaves_bytes_unread_or_counts_otherwise_is_refused() {
    let key = key();
    let bytes = backup(&key, &[7; 1000]);
    let mut short = Kept { most: Some(999), ..Kept::default() };
    assert!(matches!(read(bytes.as_slice(), &key, &mut short), Err(BackupError::Contents(_))));
    let mut writer = Writer::new(Vec::new(), &key, &about()).unwrap();
    writer.store(|out| out.write_all(b"x")).unwrap();
    let other_revision = writer.finish(48).unwrap();
    assert!(matches!(read(other_revision.as_slice(), &key, &mut Kept::default()), Err(BackupError::Contents(_))));
}

#[test]
fn entries_that_lead_elsewhere_or_claim_too_much_are_refused() {
    let key = key();
    let paths: [&[u8]; 9] = [
        b"../../etc/passwd",
        b"/etc/passwd",
        b"pki/../../x",
        b"pki/./x",
        b"store/x",
        b"pki",
        b"",
        b"pki/\xff",
        b"pki/a\0b",
    ];
    let mut inside: Vec<Vec<u8>> = paths.iter().map(|path| entry(path, 0o600, 1, b"x")).collect();
    inside.push(entry(&[b'a'; 300], 0o600, 1, b"x"));
    inside.push(entry(b"pki/x", 0o4755, 1, b"x"));
    inside.push(entry(b"pki/x", 0o120_777, 1, b"x"));
    inside.push(entry(b"pki/x", 0o600, u32::MAX, b"x"));
    inside.push([entry(b"pki/x", 0o600, 1, b"x"), entry(b"pki/x", 0o600, 1, b"y")].concat());
    // A block of the store that is too long, a second store, a file after it, an unknown entry, an end too soon.
    inside.push(vec![2, 255, 255, 255, 255]);
    inside.push(vec![2, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
    inside.push([vec![2, 0, 0, 0, 0], entry(b"pki/x", 0o600, 1, b"x")].concat());
    inside.push(vec![9]);
    inside.push(vec![3, 0, 0, 0, 2, b'{', b'}']);
    inside.push(vec![3, 255, 255, 255, 255]);
    for inside in inside {
        let mut kept = Kept::default();
        let outcome = read(forged(&key, &inside).as_slice(), &key, &mut kept);
        assert!(outcome.is_err(), "{inside:?}");
        assert!(kept.files.iter().all(|(path, ..)| path == "pki/x"), "{:?}", kept.files);
    }
}

#[test]
fn files_without_end_do_not_fill_the_disk() {
    let key = key();
    let mut inside = Vec::new();
    for i in 0..5000 {
        inside.extend(entry(format!("pki/{i}").as_bytes(), 0o600, 1, b"x"));
    }
    assert!(matches!(
        read(forged(&key, &inside).as_slice(), &key, &mut Kept::default()),
        Err(BackupError::Contents(_))
    ));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_flipped_bit_or_cut_is_refused(length in 0_usize..140_000, at: prop::sample::Index, bit in 0_u8..9) {
        let key = key();
        let mut bytes = backup(&key, &vec![7; length]);
        let at = at.index(bytes.len());
        if bit == 8 { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        prop_assert!(read(bytes.as_slice(), &key, &mut Kept::default()).is_err());
    }

    #[test]
    fn anything_forged_ends_in_an_error_and_below_its_folders(inside in proptest::collection::vec(any::<u8>(), 0..400)) {
        let key = key();
        let mut kept = Kept::default();
        prop_assert!(read(forged(&key, &inside).as_slice(), &key, &mut kept).is_err());
        prop_assert!(kept.files.iter().all(|(path, ..)| path.starts_with("pki/") || path.starts_with("settings/")));
    }
}
