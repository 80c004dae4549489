//! The last known zone on disk, so that names go on resolving when DNS starts again while the API is away.

use crate::model::{Key, Records};
use crate::zone::Zone;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

/// What is written.
#[derive(Serialize)]
struct Saved<'a> {
    services: Vec<(&'a Key, &'a Records)>,
    namespaces: Vec<&'a str>,
}

/// What is read.
#[derive(Deserialize)]
struct Loaded {
    services: Vec<(Key, Records)>,
    namespaces: Vec<Box<str>>,
}

fn file(dir: &Path) -> PathBuf {
    dir.join("zone.json")
}

/// Fills the zone from the last snapshot; true when there was one.
pub(crate) fn load(dir: &Path, zone: &Zone) -> bool {
    let Ok(saved) = File::open(file(dir)) else { return false };
    match serde_json::from_reader::<_, Loaded>(BufReader::new(saved)) {
        Ok(all) => {
            for (key, records) in all.services {
                zone.set(&key, Some(records));
            }
            zone.set_namespaces(all.namespaces.into_iter().collect());
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
    let mut to = BufWriter::new(File::create(&next)?);
    zone.read(|services, namespaces| serde_json::to_writer(&mut to, &Saved { services, namespaces }))?;
    to.flush()?;
    std::fs::rename(next, file(dir))
}
