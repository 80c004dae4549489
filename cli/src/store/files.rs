//! A whole backup as a file. In: a cluster's folders, the store's snapshot, a key. Out: a file that has been read again and
//! verified, to the last byte of the store in it.

use super::keys;
use crate::paths::Paths;
use anyhow::{Context, Result, bail};
use causeway_backup::contents::{self, SinkResult, Writer};
use causeway_backup::{About, Contents, EntryPath, Key, Name, Sink, files};
use causeway_store::offline;
use jiff::Timestamp;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek};
use std::path::Path;

/// Where the store's snapshot comes from.
pub enum From {
    /// The store of a stopped cluster.
    Stopped,
    /// A running one, as of this revision.
    Running(u64, Box<dyn Read + Send>),
}

/// Writes a backup into a new file, and reads it again. Blocks. Returns its name and what is in it.
pub fn write(paths: &Paths, key: &Key, file: &File, from: From) -> Result<(Name, Contents)> {
    // To the second, as in its name.
    let created = Timestamp::from_second(Timestamp::now().as_second())?;
    let about = About { cluster: paths.name.clone(), created, program: env!("CARGO_PKG_VERSION").to_owned() };
    let mut writer = Writer::new(BufWriter::new(file), key, &about)?;
    let all = files::find(&paths.data)?;
    if !all.iter().any(|found| is_authority(&found.path)) {
        bail!("{} has no ca.key: the cluster has never run", paths.pki().display());
    }
    // Keys that lie elsewhere are as needed as those that lie here.
    let elsewhere = keys::elsewhere(paths)?.map(|bytes| Ok::<_, anyhow::Error>((EntryPath::parse(keys::COPY)?, bytes)));
    let elsewhere = elsewhere.transpose()?;
    for found in all.iter().filter(|found| elsewhere.as_ref().is_none_or(|(path, _)| found.path != *path)) {
        let (mode, bytes) = found.read()?;
        writer.file(&found.path, mode, &bytes)?;
    }
    if let Some((path, bytes)) = &elsewhere {
        writer.file(path, 0o600, bytes)?;
    }
    let revision = match from {
        From::Running(revision, mut snapshot) => {
            writer.store(|out| io::copy(&mut snapshot, out).map(drop))?;
            revision
        }
        From::Stopped => {
            let mut revision = 0;
            writer.store(|out| {
                revision = offline::snapshot(&paths.store(), out)?.revision;
                Ok::<(), causeway_store::StoreError>(())
            })?;
            revision
        }
    };
    drop(writer.finish(revision)?);
    let contents = verify(file, key).context("the backup that was just written is not used")?;
    Ok((Name { at: created, revision, cluster: paths.name.clone() }, contents))
}

/// Reads a backup from its beginning to its end, and the store in it. Blocks.
pub fn verify(file: &File, key: &Key) -> Result<Contents> {
    read(file, key, &mut Verify)
}

/// Reads a backup from its beginning to its end; what is in it goes to `into`. Blocks.
pub fn read(mut file: &File, key: &Key, into: &mut dyn Sink) -> Result<Contents> {
    file.rewind().context("going to the beginning of the backup")?;
    let mut whole = Whole { into, has_ca: false };
    let contents = contents::read(BufReader::new(file), key, &mut whole)?;
    if !whole.has_ca {
        bail!("there is no certificate authority in the backup");
    }
    Ok(contents)
}

/// Opens a backup that a user has named.
pub fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("opening the backup {}", path.display()))
}

/// The key without which no cluster is one.
fn is_authority(path: &EntryPath) -> bool {
    path.as_str() == "pki/ca.key"
}

/// Hands on what is in a backup, and sees whether it is a cluster.
struct Whole<'a> {
    into: &'a mut dyn Sink,
    has_ca: bool,
}

impl Sink for Whole<'_> {
    fn file(&mut self, path: &EntryPath, mode: u32, bytes: &[u8]) -> SinkResult {
        self.has_ca |= is_authority(path);
        self.into.file(path, mode, bytes)
    }

    fn store(&mut self, snapshot: &mut dyn Read) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
        self.into.store(snapshot)
    }
}

/// Keeps nothing of what it looks at.
struct Verify;

impl Sink for Verify {
    fn file(&mut self, _: &EntryPath, _: u32, _: &[u8]) -> SinkResult {
        Ok(())
    }

    fn store(&mut self, snapshot: &mut dyn Read) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
        Ok(offline::verify(snapshot)?.revision)
    }
}
