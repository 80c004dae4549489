//! `causeway store backup`: one backup now. In: a cluster that runs or is stopped, a key, a place. Out: a file or an object
//! that is there whole or not at all.

use super::files::{self, From};
use crate::instance::{self, Role};
use crate::paths::Paths;
use crate::{control, data};
use anyhow::{Context, Result, bail};
use causeway_backup::{Contents, Destination, Key, Name};
use causeway_store::Snapshot;
use futures::TryStreamExt;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use tokio_util::io::{StreamReader, SyncIoBridge};

/// A backup that was made.
pub struct Made {
    /// Its name.
    pub name: Name,
    /// Where it is.
    pub address: String,
    /// How long it is.
    pub bytes: u64,
    /// What is in it.
    pub contents: Contents,
}

/// Runs the command.
pub fn run(paths: &Paths, to: &str, key_file: &Path) -> Result<()> {
    // First what fails without having done anything.
    let key = Key::read(key_file)?;
    let to = if Destination::is_remote(to) { to.to_owned() } else { std::path::absolute(to)?.display().to_string() };
    let to = Destination::parse(&to)?;
    let running = instance::running(paths)?;
    if running.as_ref().is_some_and(|record| record.role == Role::Agent) {
        bail!("{:?} is a node: the store is on its cluster's server, and is backed up there", paths.name);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let made = runtime.block_on(async {
        match running {
            Some(_) => make(paths, &key, &to, Some(control::ask_snapshot(paths).await?)).await,
            None if !paths.store().is_dir() => {
                bail!("cluster {:?} does not run, and {} is not there", paths.name, paths.store().display())
            }
            None => {
                // Nobody starts it meanwhile.
                let _owned = data::claim(paths)?;
                make(paths, &key, &to, None).await
            }
        }
    })?;
    println!("{}", made.address);
    println!(
        "revision {}, {} files, {} bytes of the store; {} bytes, verified; key {}",
        made.contents.revision,
        made.contents.files,
        made.contents.store_bytes,
        made.bytes,
        key.fingerprint()
    );
    Ok(())
}

/// Makes a backup of a snapshot, or of the store of a stopped cluster, and puts it in its place once it is verified.
pub async fn make(paths: &Paths, key: &Key, to: &Destination, snapshot: Option<Snapshot>) -> Result<Made> {
    let staging = paths.staging();
    if matches!(to, Destination::S3 { .. }) {
        let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(&staging);
        made.with_context(|| format!("making {}", staging.display()))?;
    }
    let staged = to.stage(&paths.name, &staging)?;
    let from = match snapshot {
        Some(Snapshot { revision, bytes }) => {
            let reader = StreamReader::new(bytes.map_err(io::Error::other));
            From::Running(revision, Box::new(SyncIoBridge::new(reader)))
        }
        None => From::Stopped,
    };
    let (own_paths, own_key) = (paths.clone(), key.clone());
    let work = tokio::task::spawn_blocking(move || {
        let written = files::write(&own_paths, &own_key, staged.file(), from);
        written.map(|written| (staged, written))
    });
    let (staged, (name, contents)) = work.await.context("writing the backup")??;
    let bytes = staged.file().metadata().context("looking at the backup")?.len();
    let address = to.put(staged, &name).await?;
    Ok(Made { name, address, bytes, contents })
}
