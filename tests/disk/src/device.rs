//! The device: files, names, room, faults, and whether it has power.
//!
//! In: file operations in order, faults to switch on, power cuts. Out: answers and errors, and the state after a cut.
//! Everything that is left to chance comes from the seed of the cut or of the device.

use crate::contents::Contents;
use crate::dice::Dice;
use crate::names::{Ino, NameLoss, Names, ROOT};
use fuser::{Errno, FileType};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What room is handed out in.
pub(crate) const BLOCK: u64 = 4096;

/// Syncs that fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SyncFailure {
    /// None does.
    #[default]
    Never,
    /// The next one does.
    Once,
    /// All do from now on.
    Always,
}

/// A write that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteFailure {
    /// The next write takes only this many bytes and says so, as POSIX allows.
    Short(usize),
    /// The next write takes this many bytes and answers EIO.
    Error(usize),
}

/// What is wrong with the device. Everything can be changed while it runs.
#[derive(Debug, Clone)]
pub struct Faults {
    /// Each sync takes this long more.
    pub sync_delay: Duration,
    /// Which syncs fail.
    pub sync_failure: SyncFailure,
    /// The next write that goes wrong.
    pub write_failure: Option<WriteFailure>,
    /// Bytes that fit on the device; it answers ENOSPC beyond.
    pub capacity: u64,
    /// What `statvfs` tells, where it is not the capacity: a thin volume tells of room that is not there.
    pub told_capacity: Option<u64>,
    /// What a cut may do to names.
    pub name_loss: NameLoss,
    /// Whether a cut takes writes that no sync covered. Without, it is no worse than the end of all processes.
    pub write_loss: bool,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            sync_delay: Duration::ZERO,
            sync_failure: SyncFailure::Never,
            write_failure: None,
            capacity: 1 << 30,
            told_capacity: None,
            name_loss: NameLoss::Any,
            write_loss: true,
        }
    }
}

/// What was in flight when the power went, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InFlight {
    /// Writes and changes of length that no sync covered.
    pub writes: usize,
    /// Changes of names that no sync covered.
    pub names: usize,
    /// Operations that changed anything since the device was made.
    pub operations: u64,
}

#[derive(Debug, Clone)]
struct Node {
    is_dir: bool,
    contents: Contents,
    /// How many programs have it open.
    open: u64,
    /// Bits that the device reads wrongly: byte and mask.
    flips: Vec<(u64, u8)>,
}

/// What `stat` tells.
pub(crate) struct Stat {
    pub ino: Ino,
    pub kind: FileType,
    pub size: u64,
}

/// The device's whole state.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    nodes: BTreeMap<Ino, Node>,
    names: Names,
    next: Ino,
    /// Counts what changes anything.
    operations: u64,
    /// Goes up with each cut: what was mounted before gets no answer any more.
    epoch: u64,
    cut_at: Option<(u64, u64)>,
    in_flight: InFlight,
    dice: Dice,
    pub faults: Faults,
}

type Answer<T> = Result<T, Errno>;

impl Device {
    pub fn new(seed: u64) -> Self {
        let root = Node { is_dir: true, contents: Contents::default(), open: 0, flips: Vec::new() };
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            names: Names::new(),
            next: ROOT + 1,
            operations: 0,
            epoch: 0,
            cut_at: None,
            in_flight: InFlight::default(),
            dice: Dice::new(seed),
            faults: Faults::default(),
        }
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Makes this state a later one than `epoch`, and closes every file.
    pub fn pass_epoch(&mut self, epoch: u64) {
        self.epoch = epoch + 1;
        self.nodes.values_mut().for_each(|node| node.open = 0);
    }

    /// The power goes, and what is found afterwards is decided. Whoever was mounted gets no answer from now on.
    pub fn cut(&mut self, seed: u64) -> InFlight {
        let mut dice = Dice::new(seed);
        self.in_flight = InFlight {
            writes: self.nodes.values().map(|n| n.contents.pending()).sum(),
            names: self.names.pending(),
            operations: self.operations,
        };
        let found = self.names.cut(self.faults.name_loss, &mut dice);
        self.nodes.retain(|ino, _| found.contains(ino));
        for node in self.nodes.values_mut() {
            node.open = 0;
            if !self.faults.write_loss {
                node.contents.sync(self.operations);
            }
            node.contents.cut(&mut dice);
        }
        self.epoch += 1;
        self.cut_at = None;
        self.in_flight
    }

    /// The power goes before the operation that changes something for the `after`th time from now.
    pub fn cut_after(&mut self, after: u64, seed: u64) {
        self.cut_at = Some((self.operations + after, seed));
    }

    pub fn last_cut(&self) -> InFlight {
        self.in_flight
    }

    /// Counts an operation that changes something; a cut that was ordered for now comes first.
    fn step(&mut self) -> Answer<u64> {
        if let Some((at, seed)) = self.cut_at
            && self.operations >= at
        {
            self.cut(seed);
            return Err(Errno::EIO);
        }
        self.operations += 1;
        Ok(self.operations)
    }

    fn node(&self, ino: Ino) -> Answer<&Node> {
        self.nodes.get(&ino).ok_or(Errno::ENOENT)
    }

    fn node_mut(&mut self, ino: Ino) -> Answer<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(Errno::ENOENT)
    }

    pub fn stat(&self, ino: Ino) -> Answer<Stat> {
        let node = self.node(ino)?;
        let kind = if node.is_dir { FileType::Directory } else { FileType::RegularFile };
        Ok(Stat { ino, kind, size: node.contents.len() as u64 })
    }

    pub fn lookup(&self, dir: Ino, name: &OsStr) -> Answer<Stat> {
        self.stat(self.names.find(dir, name).ok_or(Errno::ENOENT)?)
    }

    pub fn entries(&self, dir: Ino) -> Answer<Vec<(Ino, FileType, OsString)>> {
        self.names.entries(dir).map(|(name, ino)| Ok((ino, self.stat(ino)?.kind, name.clone()))).collect()
    }

    /// A new file or folder.
    pub fn make(&mut self, dir: Ino, name: &OsStr, is_dir: bool) -> Answer<Stat> {
        self.step()?;
        if self.names.find(dir, name).is_some() {
            return Err(Errno::EEXIST);
        }
        if self.used() >= self.faults.capacity {
            return Err(Errno::ENOSPC);
        }
        let ino = self.next;
        self.next += 1;
        self.nodes.insert(ino, Node { is_dir, contents: Contents::default(), open: 0, flips: Vec::new() });
        if is_dir {
            self.names.make_directory(ino);
        }
        self.names.link((dir, name.to_owned()), ino);
        self.stat(ino)
    }

    pub fn link(&mut self, ino: Ino, dir: Ino, name: &OsStr) -> Answer<Stat> {
        self.step()?;
        if self.names.find(dir, name).is_some() {
            return Err(Errno::EEXIST);
        }
        self.names.link((dir, name.to_owned()), ino);
        self.stat(ino)
    }

    pub fn remove(&mut self, dir: Ino, name: &OsStr, is_dir: bool) -> Answer<()> {
        self.step()?;
        let found = self.lookup(dir, name)?;
        match (found.kind == FileType::Directory, is_dir) {
            (true, false) => return Err(Errno::EISDIR),
            (false, true) => return Err(Errno::ENOTDIR),
            (true, true) if self.names.entries(found.ino).next().is_some() => return Err(Errno::ENOTEMPTY),
            (true, true) => self.names.remove_directory(found.ino),
            (false, false) => {}
        }
        self.names.unlink((dir, name.to_owned()));
        self.tidy();
        Ok(())
    }

    pub fn rename(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr), replace: bool) -> Answer<()> {
        self.step()?;
        let moved = self.lookup(from.0, from.1)?;
        if let Ok(target) = self.lookup(to.0, to.1) {
            if !replace {
                return Err(Errno::EEXIST);
            }
            if target.kind == FileType::Directory && self.names.entries(target.ino).next().is_some() {
                return Err(Errno::ENOTEMPTY);
            }
        }
        self.names.rename((from.0, from.1.to_owned()), (to.0, to.1.to_owned()), moved.ino);
        self.tidy();
        Ok(())
    }

    pub fn opened(&mut self, ino: Ino) -> Answer<()> {
        self.node_mut(ino)?.open += 1;
        Ok(())
    }

    pub fn closed(&mut self, ino: Ino) {
        if let Ok(node) = self.node_mut(ino) {
            node.open = node.open.saturating_sub(1);
        }
        self.tidy();
    }

    /// Drops files that neither a program nor a power cut could bring to light.
    fn tidy(&mut self) {
        let used = self.names.in_use();
        self.nodes.retain(|ino, node| node.open > 0 || used.contains(ino));
    }

    pub fn read(&self, ino: Ino, at: u64, size: usize) -> Answer<Vec<u8>> {
        let node = self.node(ino)?;
        let bytes = node.contents.live();
        let at = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
        let end = at.saturating_add(size).min(bytes.len());
        let mut out = bytes[at..end].to_vec();
        for (byte, mask) in &node.flips {
            if let Some(place) = (*byte as usize).checked_sub(at).and_then(|i| out.get_mut(i)) {
                *place ^= mask;
            }
        }
        Ok(out)
    }

    /// Takes what fits. Returns how much that was.
    pub fn write(&mut self, ino: Ino, at: u64, data: &[u8]) -> Answer<usize> {
        let number = self.step()?;
        let at = usize::try_from(at).map_err(|_| Errno::EFBIG)?;
        let length = self.node(ino)?.contents.len();
        // What is within the file's blocks has its room.
        let room = self.faults.capacity.saturating_sub(self.used()) / BLOCK * BLOCK;
        let most = (length as u64).next_multiple_of(BLOCK) + room;
        let fits = usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(at).min(data.len());
        if fits == 0 && !data.is_empty() {
            return Err(Errno::ENOSPC);
        }
        let (taken, failed) = match self.faults.write_failure.take() {
            None => (fits, false),
            Some(WriteFailure::Short(n)) => (fits.min(n.max(1)), false),
            Some(WriteFailure::Error(n)) => (fits.min(n), true),
        };
        self.node_mut(ino)?.contents.write(number, at, &data[..taken]);
        if failed { Err(Errno::EIO) } else { Ok(taken) }
    }

    pub fn resize(&mut self, ino: Ino, length: u64) -> Answer<()> {
        let number = self.step()?;
        let old = self.node(ino)?.contents.len() as u64;
        let more = length.next_multiple_of(BLOCK).saturating_sub(old.next_multiple_of(BLOCK));
        if more > 0 && self.used() + more > self.faults.capacity {
            return Err(Errno::ENOSPC);
        }
        let length = usize::try_from(length).map_err(|_| Errno::EFBIG)?;
        self.node_mut(ino)?.contents.resize(number, length);
        Ok(())
    }

    /// A sync begins: how long it takes, and up to which change it goes.
    pub fn begin_sync(&mut self) -> Answer<(Duration, u64)> {
        let number = self.step()?;
        Ok((self.faults.sync_delay, number))
    }

    /// A sync of a file or directory ends: from here on a power cut takes nothing of what it covers.
    pub fn end_sync(&mut self, ino: Ino, up_to: u64) -> Answer<()> {
        let fails = self.faults.sync_failure != SyncFailure::Never;
        if self.faults.sync_failure == SyncFailure::Once {
            self.faults.sync_failure = SyncFailure::Never;
        }
        let mut dice = if fails { self.dice.fork() } else { Dice::new(0) };
        let node = self.node_mut(ino)?;
        match (fails, node.is_dir) {
            (true, is_dir) => {
                if !is_dir {
                    node.contents.fail_sync(up_to, &mut dice);
                }
                return Err(Errno::EIO);
            }
            (false, true) => self.names.sync(ino),
            (false, false) => node.contents.sync(up_to),
        }
        Ok(())
    }

    /// Bytes that files take, in whole blocks.
    pub fn used(&self) -> u64 {
        let live: BTreeSet<Ino> = self.names.walk().into_iter().map(|(_, ino)| ino).collect();
        let counts = |(ino, node): &(&Ino, &Node)| node.open > 0 || live.contains(ino);
        let files = self.nodes.iter().filter(counts);
        files.map(|(_, node)| (node.contents.len() as u64).next_multiple_of(BLOCK)).sum()
    }

    /// Blocks in all and free, as `statvfs` tells them.
    pub fn room(&self) -> (u64, u64) {
        let capacity = self.faults.told_capacity.unwrap_or(self.faults.capacity);
        (capacity / BLOCK, capacity.saturating_sub(self.used()) / BLOCK)
    }

    /// Every file by its path, and its length.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let files = self.names.walk().into_iter().filter_map(|(path, ino)| Some((path, self.nodes.get(&ino)?)));
        files.filter(|(_, node)| !node.is_dir).map(|(path, node)| (path, node.contents.len() as u64)).collect()
    }

    /// Reads of this byte have these bits wrong from now on. False when there is no such file.
    pub fn flip(&mut self, path: &Path, byte: u64, mask: u8) -> bool {
        let found = self.names.walk().into_iter().find(|(p, _)| p == path);
        let Some(node) = found.and_then(|(_, ino)| self.nodes.get_mut(&ino)) else { return false };
        node.flips.push((byte, mask));
        true
    }
}
