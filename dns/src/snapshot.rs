//! The last known zone on disk, so that names go on resolving when DNS starts again while the API is away.

use crate::model::{Key, Records};
use crate::zone::Zone;
use std::io;
use std::path::{Path, PathBuf};

fn file(dir: &Path) -> PathBuf {
    dir.join("zone.json")
}

/// Fills the zone from the last snapshot; true when there was one.
pub(crate) fn load(dir: &Path, zone: &Zone) -> bool {
    let Ok(bytes) = std::fs::read(file(dir)) else { return false };
    match serde_json::from_slice::<Vec<(Key, Records)>>(&bytes) {
        Ok(all) => {
            for (key, records) in all {
                zone.set(&key, Some(records));
            }
            true
        }
        Err(error) => {
            tracing::warn!(%error, path = %file(dir).display(), "the saved zone is damaged and passed over");
            false
        }
    }
}

/// Writes the zone, whole or not at all. Blocks.
pub(crate) fn save(dir: &Path, zone: &Zone) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let next = dir.join("zone.next");
    std::fs::write(&next, serde_json::to_vec(&zone.all())?)?;
    std::fs::rename(next, file(dir))
}
