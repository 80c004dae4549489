//! One owner at a time: a lock on the store's folder, with the owner's process id in it for whoever meets it.

use super::private;
use crate::{Result, StoreError};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// A dying process may still hold the lock for a moment.
const PATIENCE: Duration = Duration::from_secs(5);

/// The lock, held until it is dropped.
pub(crate) struct Lock(#[expect(dead_code, reason = "held, not read")] Flock<File>);

impl Lock {
    /// Takes the lock of a folder that is there.
    pub fn take(dir: &Path) -> Result<Self> {
        let path = dir.join("lock");
        let locked = |detail: String| StoreError::Locked { path: dir.display().to_string(), detail };
        let begin = Instant::now();
        loop {
            let file = private().truncate(false).open(&path);
            let file = file.map_err(|e| locked(e.to_string()))?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut lock) => {
                    // Who holds it is a courtesy: a full disk must not keep the store closed.
                    let _ = lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id()));
                    return Ok(Self(lock));
                }
                Err(_) if begin.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(50)),
                Err((_, error)) => {
                    let holder = fs::read_to_string(&path).unwrap_or_default();
                    return Err(locked(format!("process {} holds it ({error}); stop it first", holder.trim())));
                }
            }
        }
    }
}
