//! Rotation on a real disk.

use super::*;
use std::os::unix::fs::symlink;

impl RotatingFile {
    /// From now on the disk is full.
    pub(crate) fn fill_up(&mut self) {
        self.file = OpenOptions::new().append(true).open("/dev/full").unwrap();
        self.options.max_bytes = 0;
    }
}

fn backups(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names.retain(|n| n != "audit.log");
    names
}

#[test]
fn rotates_by_size_and_keeps_so_many() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/folder/audit.log");
    let options = Options { max_bytes: 10, max_backups: 2, ..Options::default() };
    let mut file = RotatingFile::open(&path, options).unwrap();
    for line in ["aaaa\n", "bbbb\n", "cccc\n", "dddd\n", "longer than a whole file\n", "eeee\n", "ffff\n"] {
        assert_eq!(file.write(line.as_bytes()).unwrap(), line.len());
    }
    assert!(file.take_error().is_none());
    assert_eq!(fs::read_to_string(&path).unwrap(), "eeee\nffff\n");
    let folder = path.parent().unwrap();
    let kept = backups(folder);
    let contents: Vec<String> = kept.iter().map(|n| fs::read_to_string(folder.join(n)).unwrap()).collect();
    assert_eq!(contents, ["cccc\ndddd\n", "longer than a whole file\n"], "{kept:?}");
    assert_eq!(kept[0].len(), "audit-2026-12-01T00-31-32.250.log".len());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(folder), mode(folder.parent().unwrap()), mode(&path)), (0o700, 0o700, 0o600));
}

#[test]
fn goes_on_where_it_was_and_narrows_the_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    fs::write(&path, "12345678").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let mut file = RotatingFile::open(&path, Options { max_bytes: 10, ..Options::default() }).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    file.write_all(b"90").unwrap();
    assert!(backups(dir.path()).is_empty());
    file.write_all(b"1").unwrap();
    assert_eq!((backups(dir.path()).len(), fs::read_to_string(&path).unwrap().as_str()), (1, "1"));
}

#[test]
fn old_backups_go_and_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let at = |hours: i64| {
        timed_name(Path::new("audit.log"), jiff::Timestamp::now() - jiff::SignedDuration::from_hours(hours))
    };
    let foreign = [
        "audit-notes.log",
        "audit-2020-01-01.log",
        "audit-2020-01-01T00-00-00.000.log.gz",
        "other-2020-01-01T00-00-00.000.log",
    ];
    let (old, young) = (at(49), at(47));
    for name in foreign.map(OsString::from).iter().chain([&old, &young]) {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    let options = Options { max_age: Some(Duration::from_secs(48 * 3600)), max_backups: 0, ..Options::default() };
    let mut file = RotatingFile::open(&dir.path().join("audit.log"), options).unwrap();
    assert!(file.take_error().is_none());
    let mut expected: Vec<String> = foreign.map(str::to_owned).to_vec();
    expected.push(young.into_string().unwrap());
    expected.sort();
    assert_eq!(backups(dir.path()), expected);
}

#[test]
fn numbered_backups_shift() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let options = Options { max_bytes: 2, max_backups: 2, max_age: None, names: Names::Numbered };
    let mut file = RotatingFile::open(&path, options).unwrap();
    for line in ["1\n", "2\n", "3\n", "4\n"] {
        file.write_all(line.as_bytes()).unwrap();
    }
    assert!(file.take_error().is_none());
    let content = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(backups(dir.path()), ["audit.log.1", "audit.log.2"]);
    assert_eq!([content("audit.log"), content("audit.log.1"), content("audit.log.2")], ["4\n", "3\n", "2\n"]);
    let endless = Options { max_backups: 0, ..options };
    assert_eq!(RotatingFile::open(&path, endless).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn refuses_what_is_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link.log");
    symlink(dir.path().join("target"), &link).unwrap();
    for path in [link.as_path(), dir.path(), Path::new("/dev/null"), Path::new("/")] {
        assert_eq!(
            RotatingFile::open(path, Options::default()).unwrap_err().kind(),
            io::ErrorKind::InvalidInput,
            "{path:?}"
        );
    }
    assert!(!dir.path().join("target").exists());
}

#[test]
fn a_failed_rotation_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let options = Options { max_bytes: 2, max_backups: 1, max_age: None, names: Names::Numbered };
    let mut file = RotatingFile::open(&path, options).unwrap();
    file.write_all(b"1\n").unwrap();
    // A folder in the backup's place cannot be renamed over by a file.
    fs::create_dir_all(dir.path().join("audit.log.1/x")).unwrap();
    file.write_all(b"2\n").unwrap();
    assert!(file.take_error().is_some());
    file.write_all(b"3\n").unwrap();
    assert!(file.take_error().is_none(), "not tried again at once");
    assert_eq!(fs::read_to_string(&path).unwrap(), "1\n2\n3\n");
    fs::remove_dir_all(dir.path().join("audit.log.1")).unwrap();
    file.retry = None;
    file.write_all(b"4\n").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "4\n");
    assert_eq!(fs::read_to_string(dir.path().join("audit.log.1")).unwrap(), "1\n2\n3\n");
}

#[test]
fn a_full_disk_tears_no_second_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = RotatingFile::open(&dir.path().join("audit.log"), Options::default()).unwrap();
    file.write_all(b"half of a li").unwrap();
    file.torn = true;
    file.write_all(b"whole\n").unwrap();
    assert_eq!(fs::read_to_string(file.path()).unwrap(), "half of a li\nwhole\n");
}

#[test]
fn what_others_write_counts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let options = Options { max_bytes: 4, max_backups: 1, max_age: None, names: Names::Numbered };
    let mut file = RotatingFile::open(&path, options).unwrap();
    let mut other = file.file().try_clone().unwrap();
    other.write_all(b"1234").unwrap();
    assert!(!file.rotate_if_grown().unwrap());
    other.write_all(b"5").unwrap();
    assert!(file.rotate_if_grown().unwrap() && !file.rotate_if_grown().unwrap());
    file.file().write_all(b"6").unwrap();
    let content = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!([content("audit.log"), content("audit.log.1")], ["6", "12345"]);
}
