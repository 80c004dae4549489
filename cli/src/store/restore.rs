//! `causeway store restore`: a cluster back from a backup. In: a file or an object, its key, a machine that may have
//! nothing. Out: the data folder with PKI, settings and store, from which `up` or `server` goes on.
//!
//! Everything is unpacked into the folder `restoring` first. Only when the backup has been read to its end, verified and
//! synced do the folders move to their places. While `restoring` is there, no cluster starts: one with half of the old
//! and half of the new would be worse than none.

use super::{BUMP, files, key_file, started};
use crate::data;
use crate::paths::Paths;
use anyhow::{Context, Result, bail};
use causeway_backup::contents::{FOLDERS, SinkResult};
use causeway_backup::files::{make_folder, place, sync, sync_folder};
use causeway_backup::{Contents, Destination, EntryPath, Key, Sink, container::Decrypt};
use causeway_store::offline;
use jiff::Timestamp;
use std::fs::{self, File};
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

/// `causeway store restore`.
#[derive(Debug, Clone, clap::Args)]
pub struct RestoreArgs {
    /// The backup: a file, or s3://BUCKET/PREFIX/NAME.causeway-backup.
    #[arg(value_name = "BACKUP")]
    pub backup: String,
    /// Its key [default: /etc/causeway/NAME.backup-key].
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Name of the cluster [default: as in the backup].
    #[arg(long, env = "CAUSEWAY_NAME")]
    pub name: Option<String>,
    /// Where the cluster's data is kept [default: /var/lib/causeway/NAME].
    #[arg(long, env = "CAUSEWAY_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where there is a cluster with data already, move its store, PKI and settings aside; nothing is deleted.
    #[arg(long)]
    pub force: bool,
}

/// What moves to its place at the end. The store comes last: without it no cluster is taken to be there.
const PARTS: [&str; 3] = ["pki", "settings", "store"];

/// Runs the command.
pub fn run(args: &RestoreArgs) -> Result<()> {
    let file = opened(&args.backup)?;
    let (key, named) = key_of(args, &file)?;
    let paths = Paths::new(args.name.as_deref().unwrap_or(&named), args.data_dir.as_deref())?;
    let existed = paths.data.exists();
    let outcome = into(&paths, &key, &file, args.force);
    if outcome.is_err() && !existed {
        // A refused backup leaves nothing on a machine that had nothing.
        data::forget_empty(&paths);
    }
    let contents = outcome?;
    println!(
        "cluster {:?} is as it was at revision {} ({}, version {}): {} files and the store are in {}",
        contents.about.cluster,
        contents.revision,
        contents.about.created,
        contents.about.program,
        contents.files,
        paths.data.display()
    );
    println!("start it with: {}", started::command(&paths, args.data_dir.is_none()));
    Ok(())
}

/// The backup as a file; one of a bucket is copied first, so that it is read once.
fn opened(backup: &str) -> Result<File> {
    if !Destination::is_remote(backup) {
        return files::open(Path::new(backup));
    }
    let (from, name) = Destination::parse_backup(backup)?;
    // It is encrypted, it loses its name here, and it is gone when it is closed.
    let staged = from.stage("restore", Path::new("/var/tmp"))?;
    let mut file = staged.file().try_clone().context("opening the file for the download")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(from.fetch(&name, &mut file))?;
    Ok(file)
}

/// The key, and the name of the cluster in the backup's header, which is genuine when the key opens the backup.
fn key_of(args: &RestoreArgs, mut file: &File) -> Result<(Key, String)> {
    let key = match (&args.key_file, &args.name) {
        (Some(path), _) => Key::read(path)?,
        (None, Some(name)) => Key::read(&key_file(None, &Paths::new(name, None)?.name))?,
        (None, None) => bail!("say which key opens the backup with --key-file, or which cluster it is of with --name"),
    };
    file.rewind().context("going to the beginning of the backup")?;
    let about =
        Decrypt::new(BufReader::new(file), &key).with_context(|| format!("in {}", args.backup))?.about().clone();
    Ok((key, about.cluster))
}

/// Restores into a cluster's data folder.
pub fn into(paths: &Paths, key: &Key, file: &File, force: bool) -> Result<Contents> {
    let _owned = data::claim_to_restore(paths)?;
    let restoring = paths.restoring();
    let has_data = PARTS.iter().any(|part| paths.data.join(part).exists());
    if has_data && !force {
        let unfinished = if restoring.exists() { " (an earlier restore did not finish)" } else { "" };
        bail!(
            "{} holds the data of a cluster{unfinished}; choose another --name or --data-dir, or move its store, PKI and \
             settings aside with --force",
            paths.data.display()
        );
    }
    if restoring.exists() {
        // Of a restore that was cut off: whole or not, the backup is there to be read again.
        fs::remove_dir_all(&restoring).with_context(|| format!("removing {}", restoring.display()))?;
    }
    make_folder(&restoring)?;
    let outcome = unpacked(&restoring, key, file);
    let contents = match outcome {
        Ok(contents) => contents,
        Err(error) => {
            // Nothing of it may be used, and nothing was moved yet.
            drop(fs::remove_dir_all(&restoring));
            return Err(error);
        }
    };
    if has_data {
        let aside = set_aside(paths)?;
        println!("what was there before is in {}", aside.display());
    }
    for part in PARTS {
        let (from, to) = (restoring.join(part), paths.data.join(part));
        if from.exists() {
            fs::rename(&from, &to).with_context(|| format!("moving {} to its place", from.display()))?;
        }
    }
    sync_folder(&paths.data)?;
    fs::remove_dir(&restoring).with_context(|| format!("removing {}", restoring.display()))?;
    sync_folder(&paths.data)?;
    Ok(contents)
}

/// Unpacks a backup into an empty folder, verifies all of it and syncs it.
fn unpacked(restoring: &Path, key: &Key, file: &File) -> Result<Contents> {
    let contents = files::read(file, key, &mut Place { root: restoring })?;
    for folder in FOLDERS.iter().map(|folder| restoring.join(folder)).filter(|folder| folder.exists()) {
        sync(&folder)?;
    }
    sync_folder(restoring)?;
    Ok(contents)
}

/// Moves what is there into a folder of its own.
fn set_aside(paths: &Paths) -> Result<PathBuf> {
    let parent = paths.data.join(data::BEFORE_RESTORE);
    let aside = parent.join(Timestamp::now().strftime("%Y%m%dT%H%M%S%.6fZ").to_string());
    if !parent.exists() {
        make_folder(&parent)?;
    }
    make_folder(&aside)?;
    // The store first: what is left without it is not taken for a whole cluster.
    for part in PARTS.iter().rev() {
        let from = paths.data.join(part);
        if from.exists() {
            fs::rename(&from, aside.join(part)).with_context(|| format!("moving {} aside", from.display()))?;
        }
    }
    sync_folder(&aside)?;
    sync_folder(&parent)?;
    Ok(aside)
}

/// Puts what it is given into a folder.
struct Place<'a> {
    root: &'a Path,
}

impl Sink for Place<'_> {
    fn file(&mut self, path: &EntryPath, mode: u32, bytes: &[u8]) -> SinkResult {
        place(self.root, path, mode, bytes)
    }

    fn store(&mut self, snapshot: &mut dyn Read) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
        let restored = offline::restore(&self.root.join("store"), snapshot, BUMP)?;
        restored.revision.checked_sub(BUMP).ok_or_else(|| "the store's revision is beyond all bounds".into())
    }
}
