//! The keys of what is encrypted in the store. In: a cluster's folders, the file that the settings name, if they name one. Out:
//! the encrypted store of a process, a component that looks after its keys, and `causeway store rotate-encryption-key`.

use crate::paths::Paths;
use crate::tasks::Tasks;
use crate::{control, data, instance};
use anyhow::{Context, Result, bail};
use causeway_encryption::{Keeper, Rotated, file};
use causeway_store::{SledOptions, SledStore};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a backup has the user's file.
pub const COPY: &str = "pki/encryption-configuration.yaml";
/// In the settings folder: where the user's file is, for backups of a stopped cluster.
const PLACE: &str = "encryption-configuration";

/// Opens the store and the keys of what is encrypted in it.
pub async fn open(paths: &Paths, named: Option<&Path>) -> Result<Arc<Keeper>> {
    let store_dir = paths.store();
    let store = tokio::task::spawn_blocking(move || SledStore::open(&store_dir, SledOptions::default())).await??;
    let pki = paths.pki();
    let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(&pki);
    made.with_context(|| format!("making {}", pki.display()))?;
    let restored = paths.data.join(COPY);
    let keeper = Keeper::open(Arc::new(store), &paths.encryption(), named).await;
    let keeper = keeper.with_context(|| match named.is_some_and(|named| !named.exists()) && restored.exists() {
        true => {
            format!("a copy of it as of the backup that was restored is {}: put it in its place", restored.display())
        }
        false => "opening the keys of what is encrypted in the store".to_owned(),
    })?;
    remember(paths, named)?;
    Ok(Arc::new(keeper))
}

fn place(paths: &Paths) -> PathBuf {
    paths.settings().join(PLACE)
}

/// Keeps where the user's file is.
fn remember(paths: &Paths, named: Option<&Path>) -> Result<()> {
    let place = place(paths);
    let kept = match named {
        Some(named) => fs::write(&place, named.as_os_str().as_bytes()),
        None => match fs::remove_file(&place) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        },
    };
    kept.with_context(|| format!("writing {}", place.display()))
}

fn remembered(paths: &Paths) -> Result<Option<PathBuf>> {
    let place = place(paths);
    match fs::read(&place) {
        Ok(named) => Ok(Some(PathBuf::from(std::ffi::OsString::from_vec(named)))),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("reading {}", place.display())),
    }
}

/// The user's file, for a backup: without it nobody could read what is encrypted in it.
pub fn elsewhere(paths: &Paths) -> Result<Option<Vec<u8>>> {
    let Some(named) = remembered(paths)? else { return Ok(None) };
    let reading = || format!("reading {}, without which a backup would be of no use", named.display());
    file::read(&named)
        .with_context(reading)?
        .with_context(|| format!("{} is not there", named.display()))
        .with_context(reading)?;
    fs::read(&named).map(Some).with_context(reading)
}

/// Brings old values over in the background, notices changed files, drops keys that are not needed any more.
pub fn look_after(keys: &Arc<Keeper>, control: &mut Tasks) {
    let (keys, token) = (keys.clone(), control.token());
    control.supervise("encryption", move || {
        let (keys, token) = (keys.clone(), token.clone());
        async move { Ok(keys.run(token.cancelled_owned()).await?) }
    });
}

/// What a rotation is told as.
pub fn said(rotated: &Rotated) -> String {
    let Rotated { key, rewritten, removed } = rotated;
    let mut said = format!("new key {key}; {} values were encrypted with it", rewritten.rewritten);
    if rewritten.expiring > 0 {
        said += &format!("; {} events keep their old keys until they go", rewritten.expiring);
    }
    if rewritten.unreadable > 0 {
        said += &format!("; {} CANNOT BE DECRYPTED: {}", rewritten.unreadable, rewritten.reasons.join("; "));
    }
    if !removed.is_empty() {
        said += &format!("; removed, for nothing is encrypted with them: {}", removed.join(", "));
    }
    said
}

/// `causeway store rotate-encryption-key`.
pub fn rotate(paths: &Paths) -> Result<()> {
    if instance::running(paths)?.is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        println!("{}", runtime.block_on(control::ask_rotate(paths))?);
        return Ok(());
    }
    if !paths.store().is_dir() {
        bail!("there is no store of cluster {:?}: {} is not there", paths.name, paths.store().display());
    }
    let _owned = data::claim(paths)?;
    if let Some(named) = remembered(paths)? {
        bail!("the keys are in {}: put a new one before the others in it; the next start uses it", named.display());
    }
    let key = file::add_key(&paths.encryption())?;
    println!("new key {key}; the next start encrypts everything with it");
    Ok(())
}
