//! A program that syncs as it should loses nothing on the device: what fails elsewhere is not the device's fault.

use super::bench::{rounds, seed};
use causeway_test_disk::{Dice, Disk, own_mounts};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Records in one segment of the log.
const SEGMENT: u64 = 15;

/// A log in segments, by the book: bytes synced before they are acknowledged, names before they are needed, a torn end
/// cut off and synced before anything follows it.
struct Log {
    dir: PathBuf,
    file: File,
    next: u64,
}

impl Log {
    fn open(dir: &Path) -> io::Result<Self> {
        let mut names: Vec<PathBuf> = fs::read_dir(dir)?.map(|e| Ok(e?.path())).collect::<io::Result<_>>()?;
        names.retain(|p| p.extension().is_none());
        names.sort();
        let (mut next, mut last) = (0, None);
        for (i, path) in names.iter().enumerate() {
            let bytes = fs::read(path)?;
            let mut at = 0;
            while let Some(length) = record(&bytes[at..], next) {
                at += length;
                next += 1;
            }
            assert!(at == bytes.len() || i + 1 == names.len(), "{} is torn in the middle", path.display());
            let file = OpenOptions::new().append(true).open(path)?;
            file.set_len(at as u64)?;
            file.sync_all()?;
            last = Some(file);
        }
        let file = match last {
            Some(file) => file,
            None => segment(dir, 0)?,
        };
        Ok(Self { dir: dir.to_owned(), file, next })
    }

    fn append(&mut self, dice: &mut Dice) -> io::Result<()> {
        if self.next.is_multiple_of(SEGMENT) && self.next > 0 {
            self.file = segment(&self.dir, self.next)?;
        }
        let mut bytes = vec![0; dice.below(4000) as usize];
        bytes.fill(self.next as u8 % 3);
        let mut frame = (bytes.len() as u32).to_le_bytes().to_vec();
        frame.extend(self.next.to_le_bytes());
        frame.extend(bytes);
        let sum = crc32fast::hash(&frame);
        frame.extend(sum.to_le_bytes());
        self.file.write_all(&frame)?;
        self.file.sync_data()?;
        self.next += 1;
        // How far it has come, in a file that is replaced.
        let (new, old) = (self.dir.join("head.new"), self.dir.join("head.at"));
        let mut head = File::create(&new)?;
        head.write_all(self.next.to_string().as_bytes())?;
        head.sync_all()?;
        fs::rename(new, old)?;
        File::open(&self.dir)?.sync_all()
    }
}

fn segment(dir: &Path, first: u64) -> io::Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(dir.join(format!("{first:08}")))?;
    File::open(dir)?.sync_all()?;
    Ok(file)
}

/// The length of a whole record with this number.
fn record(bytes: &[u8], number: u64) -> Option<usize> {
    let length = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize + 12;
    let sum = u32::from_le_bytes(bytes.get(length..length + 4)?.try_into().ok()?);
    let whole = crc32fast::hash(&bytes[..length]) == sum && bytes[4..12] == number.to_le_bytes();
    whole.then_some(length + 4)
}

#[test]
fn a_program_that_syncs_as_it_should_loses_nothing() {
    own_mounts().unwrap();
    let mut dice = Dice::new(seed());
    let mut disk = Disk::new(seed()).unwrap();
    let dir = disk.path().join("log");
    fs::create_dir(&dir).unwrap();
    File::open(disk.path()).unwrap().sync_all().unwrap();
    let (mut acknowledged, mut head) = (0, 0);
    for cut in 0..rounds(150) {
        disk.cut_after(dice.below(200), dice.roll());
        let mut run = || -> io::Result<()> {
            let mut log = Log::open(&dir)?;
            assert!(log.next >= acknowledged, "cut {cut}: {acknowledged} were acknowledged, {} are found", log.next);
            acknowledged = log.next;
            if head > 0 {
                let found: u64 = fs::read_to_string(dir.join("head.at"))?.parse().unwrap();
                assert!(found >= head, "cut {cut}: the head is at {found} and was at {head}");
            }
            loop {
                log.append(&mut dice)?;
                (acknowledged, head) = (log.next, log.next);
            }
        };
        let error = run().unwrap_err();
        assert_eq!(disk.cuts(), cut + 1, "{error}");
        disk.mount().unwrap();
    }
    assert!(acknowledged > rounds(150));
}
