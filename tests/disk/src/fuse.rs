//! What the kernel asks, handed to the device. In: FUSE requests. Out: replies; EIO for all once the power is gone.
//!
//! Files are opened with direct I/O and without the kernel's write-back cache. The device then sees every write when it
//! is made, in the order of the program, and models page cache and disk cache itself, so that it alone decides what a
//! cut takes. With write-back the kernel would hold an amount of data that depends on its moods and is lost as a whole;
//! no seed would bring that back. `sync_file_range` asks the device for nothing, as on hardware. Shared writable
//! mappings do not work.

use crate::device::{BLOCK, Device, Stat};
use crate::names::ROOT;
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Nobody but the kernel changes anything, so it may remember what it knows.
const TTL: Duration = Duration::from_secs(3600);
/// `fallocate` that only reserves room.
const KEEP_SIZE: i32 = 1;

type Listed = Vec<(u64, FileType, OsString)>;

/// One mounting of the device.
pub(crate) struct Front {
    device: Arc<Mutex<Device>>,
    epoch: u64,
    /// Directories as they were when they were opened: what is removed meanwhile shifts nothing.
    folders: Mutex<HashMap<u64, Listed>>,
    next_handle: AtomicU64,
}

impl Front {
    pub fn new(device: Arc<Mutex<Device>>) -> Self {
        let epoch = device.lock().epoch();
        Self { device, epoch, folders: Mutex::default(), next_handle: AtomicU64::new(1) }
    }

    /// The device, if it still has the power it had when this was mounted.
    fn device(&self) -> Result<MutexGuard<'_, Device>, Errno> {
        powered(&self.device, self.epoch)
    }

    fn entry(reply: ReplyEntry, answer: Result<Stat, Errno>) {
        match answer {
            Ok(stat) => reply.entry(&TTL, &attributes(&stat), Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn empty(reply: ReplyEmpty, answer: Result<(), Errno>) {
        match answer {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn sync(&self, ino: u64, reply: ReplyEmpty) {
        let begun = self.device().and_then(|mut d| d.begin_sync());
        let (delay, up_to) = match begun {
            Ok(begun) => begun,
            Err(error) => return reply.error(error),
        };
        let (device, epoch) = (self.device.clone(), self.epoch);
        let end = move || powered(&device, epoch).and_then(|mut d| d.end_sync(ino, up_to));
        if delay.is_zero() {
            return Self::empty(reply, end());
        }
        // Others are served meanwhile.
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            Self::empty(reply, end());
        });
    }
}

fn powered(device: &Mutex<Device>, epoch: u64) -> Result<MutexGuard<'_, Device>, Errno> {
    let device = device.lock();
    if device.epoch() == epoch { Ok(device) } else { Err(Errno::EIO) }
}

fn attributes(stat: &Stat) -> FileAttr {
    let is_dir = stat.kind == FileType::Directory;
    let then = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(stat.ino),
        size: stat.size,
        blocks: stat.size.next_multiple_of(BLOCK) / 512,
        atime: then,
        mtime: then,
        ctime: then,
        crtime: then,
        kind: stat.kind,
        perm: if is_dir { 0o755 } else { 0o644 },
        nlink: if is_dir { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Front {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        Self::entry(reply, self.device().and_then(|d| d.lookup(parent.0, name)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.device().and_then(|d| d.stat(ino.0)) {
            Ok(stat) => reply.attr(&TTL, &attributes(&stat)),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let answer = self.device().and_then(|mut d| {
            size.map_or(Ok(()), |size| d.resize(ino.0, size))?;
            d.stat(ino.0)
        });
        match answer {
            Ok(stat) => reply.attr(&TTL, &attributes(&stat)),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        Self::entry(reply, self.device().and_then(|mut d| d.make(parent.0, name, true)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        Self::empty(reply, self.device().and_then(|mut d| d.remove(parent.0, name, false)));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        Self::empty(reply, self.device().and_then(|mut d| d.remove(parent.0, name, true)));
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        Self::entry(reply, self.device().and_then(|mut d| d.link(ino.0, parent.0, name)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if flags.contains(RenameFlags::RENAME_EXCHANGE) {
            return reply.error(Errno::EINVAL);
        }
        let replace = !flags.contains(RenameFlags::RENAME_NOREPLACE);
        Self::empty(reply, self.device().and_then(|mut d| d.rename((parent.0, name), (newparent.0, newname), replace)));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.device().and_then(|mut d| {
            let stat = d.make(parent.0, name, false)?;
            d.opened(stat.ino)?;
            Ok(stat)
        });
        match made {
            Ok(stat) => {
                let attributes = attributes(&stat);
                reply.created(&TTL, &attributes, Generation(0), FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.device().and_then(|mut d| d.opened(ino.0)) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(error),
        }
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if let Ok(mut device) = self.device() {
            device.closed(ino.0);
        }
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.device().and_then(|d| d.read(ino.0, offset, size as usize)) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.device().and_then(|mut d| d.write(ino.0, offset, data)) {
            // Never longer than the request, which says its own length in 32 bits.
            Ok(taken) => reply.written(taken as u32),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Closing is no sync.
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(ino.0, reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(ino.0, reply);
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let end = offset.saturating_add(length);
        let answer = match mode {
            0 => self.device().and_then(|mut d| if end > d.stat(ino.0)?.size { d.resize(ino.0, end) } else { Ok(()) }),
            KEEP_SIZE => Ok(()),
            _ => Err(Errno::EOPNOTSUPP),
        };
        Self::empty(reply, answer);
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.device().and_then(|d| d.entries(ino.0)) {
            Ok(entries) => {
                let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
                let dots =
                    [".", ".."].map(|dot| (if dot == "." { ino.0 } else { ROOT }, FileType::Directory, dot.into()));
                self.folders.lock().insert(handle, dots.into_iter().chain(entries).collect());
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if let Err(error) = self.device() {
            return reply.error(error);
        }
        let folders = self.folders.lock();
        let entries = folders.get(&fh.0).map(Vec::as_slice).unwrap_or_default();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, (ino, kind, name)) in entries.iter().enumerate().skip(from) {
            if reply.add(INodeNo(*ino), place as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.folders.lock().remove(&fh.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match self.device() {
            Ok(device) => {
                let (blocks, free) = device.room();
                reply.statfs(blocks, free, free, 1 << 20, 1 << 20, BLOCK as u32, 255, BLOCK as u32);
            }
            Err(error) => reply.error(error),
        }
    }
}
