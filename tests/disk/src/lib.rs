//! A disk that lies like hardware, for tests of what must outlive a power cut.
//!
//! In: ordinary file calls on a mounted folder; power cuts and faults from the test. Out: what a disk with a volatile
//! cache answers and is found with. Writes, changes of length and names are volatile until a sync of the file (its
//! bytes and length) or of the directory (its names). A cut keeps what was synced, and of the rest whatever its seed
//! says: single sectors of 512 bytes, later ones without earlier ones, lengths without data, some of the names.
//!
//! It is a FUSE file system in this process, which keeps everything in memory; it needs `/dev/fuse` and root, and
//! nothing installed. `device.rs` is the model, `contents.rs` and `names.rs` its two halves, `fuse.rs` what the kernel
//! asks.

mod contents;
mod device;
mod dice;
mod fuse;
mod names;

pub use device::{Faults, InFlight, SyncFailure, WriteFailure};
pub use dice::Dice;
pub use names::NameLoss;

use device::Device;
use fuser::{BackgroundSession, Config, MountOption};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use parking_lot::Mutex;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// The disk, mounted while it has power. Dropping it unmounts.
pub struct Disk {
    device: Arc<Mutex<Device>>,
    mounted: Option<Mounted>,
    folder: TempDir,
}

/// What a disk held at one moment; see [`Disk::snapshot`].
pub struct Snapshot(Device);

struct Mounted {
    point: PathBuf,
    session: Option<BackgroundSession>,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Whoever has files open still gets an answer, and holds nobody up. The session ends with the last of them.
        let _ = umount2(&self.point, MntFlags::MNT_DETACH);
        drop(self.session.take());
    }
}

impl Disk {
    /// An empty disk, mounted in a temporary folder. The seed decides what the faults leave to chance.
    pub fn new(seed: u64) -> io::Result<Self> {
        let mut disk =
            Self { device: Arc::new(Mutex::new(Device::new(seed))), mounted: None, folder: tempfile::tempdir()? };
        disk.mount()?;
        Ok(disk)
    }

    /// The mounted folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The power goes: from now on every call answers EIO, and what will be found is decided by the seed.
    pub fn cut(&self, seed: u64) -> InFlight {
        self.device.lock().cut(seed)
    }

    /// The power goes by itself when `operations` more have changed something.
    pub fn cut_after(&self, operations: u64, seed: u64) {
        self.device.lock().cut_after(operations, seed);
    }

    /// How often the power has gone.
    pub fn cuts(&self) -> u64 {
        self.device.lock().epoch()
    }

    /// What was in flight at the last cut.
    pub fn last_cut(&self) -> InFlight {
        self.device.lock().last_cut()
    }

    /// The power is back: mounts what is found. Programs that had files open get EIO for them for ever.
    pub fn mount(&mut self) -> io::Result<()> {
        self.mounted = None;
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("causeway-test-disk".to_owned()), MountOption::NoAtime];
        let front = fuse::Front::new(self.device.clone());
        let session = fuser::spawn_mount(front, self.folder.path(), &config).map_err(|e| {
            io::Error::new(e.kind(), format!("mounting the test disk, which needs root and /dev/fuse: {e}"))
        })?;
        self.mounted = Some(Mounted { point: self.folder.path().to_owned(), session: Some(session) });
        Ok(())
    }

    /// Changes what is wrong with the device, from the next request on.
    pub fn set<T>(&self, change: impl FnOnce(&mut Faults) -> T) -> T {
        change(&mut self.device.lock().faults)
    }

    /// Bytes that files take, in whole blocks.
    pub fn used(&self) -> u64 {
        self.device.lock().used()
    }

    /// Every file by its path below the mounted folder, and its length.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        self.device.lock().files()
    }

    /// Reads of a byte of a file have these bits wrong from now on. False when there is no such file.
    pub fn flip(&self, file: &Path, byte: u64, mask: u8) -> bool {
        self.device.lock().flip(file, byte, mask)
    }

    /// All that the disk holds now, synced or not.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.device.lock().clone())
    }

    /// Puts the disk back and mounts it; without whoever had it open.
    pub fn restore(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.mounted = None;
        {
            let mut device = self.device.lock();
            let epoch = device.epoch();
            *device = snapshot.0.clone();
            device.pass_epoch(epoch);
        }
        self.mount()
    }
}

/// Gives the calling thread, and threads and processes it starts, mounts of their own: however the test ends, the
/// mounts end with it.
pub fn own_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    Ok(())
}
