//! `causeway store`: what an operator does with a cluster's store. In: the command line. Out: backups and what is brought
//! back from them; what is damaged, and what is whole.
//!
//! A backup is made of a cluster that runs (the process is asked for a snapshot) or is stopped (the store is opened here);
//! everything else wants it stopped.

mod backup;
mod files;
pub mod keys;
mod look;
mod restore;
pub mod schedule;
pub mod started;
#[cfg(test)]
mod tests;

use crate::args::{Cluster, known, require_root};
use crate::paths::Paths;
use anyhow::{Context, Result};
use causeway_backup::Key;
use clap::Subcommand;
use restore::RestoreArgs;
use std::path::{Path, PathBuf};

/// `causeway store`.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Make the key that backups are encrypted with. Keep a copy of it away from this machine.
    BackupKey {
        /// The file to make [default: /etc/causeway/NAME.backup-key].
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        /// Name of the cluster.
        #[arg(long, default_value = "default", env = "CAUSEWAY_NAME")]
        name: String,
    },
    /// Back up objects, certificates and settings into one encrypted file, while the cluster runs or is stopped.
    Backup {
        /// A folder, or s3://BUCKET/PREFIX (with AWS_REGION, AWS_ACCESS_KEY_ID and so on).
        #[arg(long, value_name = "PLACE", default_value = ".")]
        to: String,
        /// The key [default: /etc/causeway/NAME.backup-key].
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Bring a cluster back from a backup, on this machine or on one that has nothing.
    Restore(RestoreArgs),
    /// Read all of a stopped cluster's store, or of a backup, and tell what is there and what is damaged.
    Check {
        /// A backup, instead of the store.
        #[arg(value_name = "BACKUP")]
        backup: Option<PathBuf>,
        /// The backup's key [default: /etc/causeway/NAME.backup-key].
        #[arg(long, value_name = "FILE", requires = "backup")]
        key_file: Option<PathBuf>,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Make a new key for what is encrypted in the store (Secrets), and encrypt all of it anew, while the cluster runs; one that
    /// is stopped does the second part when it starts.
    RotateEncryptionKey(Cluster),
    /// Make the files of a stopped cluster's store as small as they can be.
    Defrag(Cluster),
    /// Go on with what is whole before the first damage of a stopped cluster's store. What comes after it is lost.
    Salvage(Cluster),
}

/// What revisions go on by after a restore: more than any client has seen since the backup was made, and room for two
/// restores in what a signed number of 32 bits holds.
const BUMP: u64 = 1_000_000_000;

/// The key file of a cluster that is not told of another. It is not in the data folder: who loses the data, or deletes
/// it, must not lose what opens the backups with it.
fn key_file(given: Option<&Path>, name: &str) -> PathBuf {
    given.map_or_else(|| Path::new("/etc/causeway").join(format!("{name}.backup-key")), Path::to_owned)
}

/// Runs the command.
pub fn run(command: &StoreCommand) -> Result<()> {
    match command {
        StoreCommand::BackupKey { file, name } => make_key(file.as_deref(), name),
        StoreCommand::Backup { to, key_file: key, cluster } => {
            require_root("reading a cluster's keys")?;
            let paths = known(cluster)?;
            backup::run(&paths, to, &key_file(key.as_deref(), &paths.name))
        }
        StoreCommand::Restore(args) => {
            require_root("placing a cluster's keys")?;
            restore::run(args)
        }
        StoreCommand::Check { backup: Some(file), key_file: key, cluster } => {
            look::check_backup(file, &key_file(key.as_deref(), &cluster.name))
        }
        StoreCommand::Check { backup: None, cluster, .. } => look::check(&known(cluster)?),
        StoreCommand::RotateEncryptionKey(cluster) => {
            require_root("changing a cluster's keys")?;
            keys::rotate(&known(cluster)?)
        }
        StoreCommand::Defrag(cluster) => look::defrag(&known(cluster)?),
        StoreCommand::Salvage(cluster) => look::salvage(&known(cluster)?),
    }
}

fn make_key(file: Option<&Path>, name: &str) -> Result<()> {
    // The name becomes part of a path.
    let path = key_file(file, &Paths::new(name, None)?.name);
    if file.is_none()
        && let Some(parent) = path.parent()
    {
        std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    }
    let key = Key::make(&path)?;
    println!("{} holds the key {}", path.display(), key.fingerprint());
    println!("Keep a copy of the file away from this machine: without it no backup can be read, by anybody.");
    Ok(())
}
