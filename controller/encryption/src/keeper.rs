//! Who looks after the keys. In: the store, where the program's own configuration lies, and where the user's does if there
//! is one. Out: the encrypted store; old values brought over in the background, a changed file noticed within seconds, a new
//! key on demand, and old ones taken out when nothing is encrypted with them any more.

use crate::config::Configuration;
use crate::rewrite::has_encrypted;
use crate::{EncryptedStore, EncryptionError, Result, Rewritten, Usage, file};
use causeway_store::Store;
use parking_lot::Mutex;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The file is looked at this often.
const LOOK: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
/// Keys that may not be needed any more are looked for this often.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
/// A key stays so long after the last change of the file. A backup that was begun before a rotation reads the keys a moment
/// after it took its snapshot, and must still find the old one.
const PRUNE_AFTER: Duration = Duration::from_secs(3600);

/// Looks after the keys of a store.
pub struct Keeper {
    store: EncryptedStore,
    path: PathBuf,
    /// It is the program's own, and not a file of the user.
    is_own: bool,
    seen: Mutex<Option<file::Stamp>>,
    /// One change of keys at a time.
    busy: tokio::sync::Mutex<()>,
}

/// What a rotation did.
#[derive(Debug, Clone)]
pub struct Rotated {
    /// The new key.
    pub key: String,
    /// What was brought over to it.
    pub rewritten: Rewritten,
    /// Keys that were taken out, for nothing was encrypted with them.
    pub removed: Vec<String>,
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let failed = |_| EncryptionError::Cryptography("looking after the keys' file was cut off");
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

impl Keeper {
    /// Opens the configuration: the user's file where `named` is one, or else the program's own at `own`, which is made
    /// where there is none. Its folder must be there.
    ///
    /// # Errors
    /// A file that is not right, or that is missing while the store has encrypted values: a new key would not open them.
    pub async fn open(inner: Arc<dyn Store>, own: &Path, named: Option<&Path>) -> Result<Self> {
        let at = own.to_owned();
        let of_own = blocking(move || file::read(&at)).await?;
        let path = named.unwrap_or(own).to_owned();
        let (configuration, stamp) = match (named, of_own.clone()) {
            (None, Some(found)) => found,
            (None, None) if has_encrypted(&*inner).await? => return Err(missing(own)),
            (None, None) => {
                let at = own.to_owned();
                let make = move || {
                    file::write(&at, &Configuration::of_secrets(file::new_key(|_| false)?))?;
                    file::read(&at)
                };
                blocking(make).await?.ok_or_else(|| missing(own))?
            }
            (Some(named), _) => {
                let at = named.to_owned();
                blocking(move || file::read(&at)).await?.ok_or_else(|| missing(named))?
            }
        };
        let store = match of_own.filter(|_| named.is_some()) {
            // What the program's own key has encrypted is brought over to the user's.
            Some((own, _)) => {
                let store = EncryptedStore::new(inner, &own);
                store.set(&configuration).await;
                store
            }
            None => EncryptedStore::new(inner, &configuration),
        };
        let seen = Mutex::new(Some(stamp));
        Ok(Self { store, path, is_own: named.is_none(), seen, busy: tokio::sync::Mutex::default() })
    }

    /// The store to read and write through.
    pub fn store(&self) -> EncryptedStore {
        self.store.clone()
    }

    /// The file of the configuration.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Brings old values over, and then looks after the keys until `stop`.
    ///
    /// # Errors
    /// A changed file that is not right: the configuration before it stays in use. An error of the store. To be called again
    /// after a while.
    pub async fn run(&self, stop: impl Future<Output = ()> + Send) -> Result<()> {
        tokio::pin!(stop);
        tokio::select! {
            () = &mut stop => return Ok(()),
            done = self.bring_over() => drop(done?),
        }
        let mut pruned: Option<Instant> = None;
        loop {
            if pruned.is_none_or(|at| at.elapsed() >= PRUNE_EVERY) {
                pruned = Some(Instant::now());
                if self.is_own {
                    self.prune(PRUNE_AFTER).await?;
                }
            }
            tokio::select! {
                () = &mut stop => return Ok(()),
                () = tokio::time::sleep(LOOK) => self.reload().await?,
            }
        }
    }

    async fn bring_over(&self) -> Result<Rewritten> {
        let _one = self.busy.lock().await;
        self.reread().await?;
        self.rewrite().await
    }

    /// Uses the file as it is now, if it has changed.
    async fn reload(&self) -> Result<()> {
        if file::stamp(&self.path) == *self.seen.lock() {
            return Ok(());
        }
        self.bring_over().await.map(drop)
    }

    async fn reread(&self) -> Result<()> {
        let path = self.path.clone();
        let (configuration, stamp) = blocking(move || file::read(&path)).await?.ok_or_else(|| missing(&self.path))?;
        self.store.set(&configuration).await;
        *self.seen.lock() = Some(stamp);
        Ok(())
    }

    async fn rewrite(&self) -> Result<Rewritten> {
        let done = self.store.rewrite().await?;
        if done.rewritten > 0 {
            tracing::info!(values = done.rewritten, "stored values were brought over to the newest key");
        }
        if done.unreadable > 0 {
            let reasons = done.reasons.join("; ");
            tracing::error!(
                values = done.unreadable,
                reasons,
                "stored values cannot be decrypted, and stay as they are"
            );
        }
        Ok(done)
    }

    /// Makes a new key, encrypts everything with it, and takes out keys from before the last rotation. Nobody is kept from
    /// reading or writing.
    pub async fn rotate(&self) -> Result<Rotated> {
        if !self.is_own {
            let what =
                "it is not the program's own; put a new key before the others in it: the running server notices \
                        that within seconds and encrypts everything with it"
                    .to_owned();
            return Err(EncryptionError::Configuration { path: self.path.clone(), what });
        }
        let _one = self.busy.lock().await;
        let path = self.path.clone();
        let age = file::age(&path);
        let key = blocking(move || file::add_key(&path)).await?;
        tracing::info!(key, "there is a new key for what is stored");
        self.reread().await?;
        let rewritten = self.rewrite().await?;
        // Of a rotation long ago. The one that was just replaced stays for a while.
        let before = match age >= PRUNE_AFTER {
            true => self.remove(1).await?,
            false => Vec::new(),
        };
        Ok(Rotated { key, rewritten, removed: before })
    }

    /// Takes out keys that nothing is encrypted with, if the file has not changed for so long. Returns their names.
    pub async fn prune(&self, after: Duration) -> Result<Vec<String>> {
        let _one = self.busy.lock().await;
        if !self.is_own || file::age(&self.path) < after {
            return Ok(Vec::new());
        }
        self.remove(0).await
    }

    /// All but the newest, and so many behind it, that nothing is encrypted with.
    async fn remove(&self, behind: usize) -> Result<Vec<String>> {
        let path = self.path.clone();
        let Some((configuration, _)) = blocking(move || file::read(&path)).await? else { return Ok(Vec::new()) };
        let keys = file::all_keys(&configuration);
        if keys.len() <= 1 + behind {
            return Ok(Vec::new());
        }
        let usage: Usage = self.store.usage().await?;
        let kept: Vec<String> = keys.into_iter().take(1 + behind).collect();
        let is_needed =
            move |name: &str| kept.iter().any(|k| k == name) || usage.contains_key(&format!("aesgcm:{name}"));
        let path = self.path.clone();
        let removed = blocking(move || file::remove_keys(&path, is_needed)).await?;
        if !removed.is_empty() {
            tracing::info!(keys = removed.join(", "), "keys that nothing is encrypted with were removed");
            self.reread().await?;
        }
        Ok(removed)
    }
}

fn missing(path: &Path) -> EncryptionError {
    let what =
        "it is not there, and the store has values that are encrypted with its keys; bring it back from a backup \
                (causeway store restore)"
            .to_owned();
    EncryptionError::Configuration { path: path.to_owned(), what }
}

#[cfg(test)]
mod tests;
