//! Bringing stored values to the form that new ones have. In: an [`EncryptedStore`] that others read and write meanwhile.
//! Out: its values, each replaced only where nobody has written it since it was read; and how many there are of each form.

use crate::cipher::{ENCRYPTED, Form};
use crate::rules::ROOT;
use crate::store::{EncryptedStore, Layers};
use causeway_store::{Result, Store, StoreError, Write};
use futures::StreamExt;
use std::collections::BTreeMap;
use std::time::Duration;

/// So many values, or bytes, are one transaction.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 256 << 10;
/// Names of values that cannot be decrypted are told up to this many.
const NAMED: usize = 10;
/// Events go by themselves, after a time that the store does not tell; written again they would stay.
const EXPIRING: &str = "/registry/core/events/";
/// It is there from before the first value is replaced until the old ones are gone from the files.
const SCRUB: &str = "/registry/causeway/encryption/scrub";
/// Watches get so long to have seen what is compacted.
const SETTLE: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 2 });
/// So many times all is looked at; more than two are needed only while clients that have gone left writes behind.
const PASSES: usize = 5;

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// So many values were replaced.
    pub rewritten: u64,
    /// So many are left as they are, for they go by themselves (events).
    pub expiring: u64,
    /// So many cannot be decrypted; they are left as they are.
    pub unreadable: u64,
    /// Why, of the first ten.
    pub reasons: Vec<String>,
}

/// How many values there are of each form: `identity`, `aesgcm:NAME`.
pub type Usage = BTreeMap<String, u64>;

impl EncryptedStore {
    /// Brings all values to the newest key, and leaves nothing of what they were in the store's files. What others write
    /// meanwhile stays. Does nothing where nothing is to be done.
    pub async fn rewrite(&self) -> Result<Rewritten> {
        let mut all = Rewritten::default();
        for _ in 0..PASSES {
            let pass = self.pass().await?;
            let upto = self.inner().revision().await?;
            all = Rewritten { rewritten: all.rewritten + pass.rewritten, ..pass };
            // Of an earlier process too, that was killed between the two.
            let Some(mark) = self.inner().get(SCRUB, None).await?.0 else { return Ok(all) };
            tokio::time::sleep(SETTLE).await;
            // Whatever was queued before this has happened when it is answered, so the next pass sees it.
            self.inner().scrub(upto).await?;
            match self.inner().delete(SCRUB, Some(mark.mod_revision)).await {
                Ok(_) | Err(StoreError::NotFound { .. } | StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    async fn pass(&self) -> Result<Rewritten> {
        let (layers, mut done) = (self.layers(), Rewritten::default());
        let mut batch = Batch { store: self, writes: Vec::new(), bytes: 0 };
        for prefix in layers.prefixes() {
            let mut pages = self.inner().stream(&prefix).await?.pages;
            while let Some(page) = pages.next().await {
                for kv in page? {
                    match renewed(&layers, &kv.key, &kv.value) {
                        Ok(None) => {}
                        Ok(Some(_)) if kv.key.starts_with(EXPIRING) => done.expiring += 1,
                        Ok(Some(value)) => {
                            let expected = kv.mod_revision;
                            let write = Write::Update { key: kv.key, value: value.into(), ttl: None, expected };
                            done.rewritten += batch.push(write).await?;
                        }
                        Err(error) => {
                            done.unreadable += 1;
                            if done.reasons.len() < NAMED {
                                done.reasons.push(error.to_string());
                            }
                        }
                    }
                }
            }
        }
        done.rewritten += batch.flush().await?;
        Ok(done)
    }

    /// How many values are stored in which form. Reads all of the store.
    pub async fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::new();
        let mut pages = self.inner().stream(ROOT).await?.pages;
        while let Some(page) = pages.next().await {
            for kv in page? {
                *usage.entry(Form::of(&kv.value).label()).or_default() += 1;
            }
        }
        Ok(usage)
    }
}

/// Whether anything in a store is encrypted.
pub async fn has_encrypted(store: &dyn Store) -> Result<bool> {
    let mut pages = store.stream(ROOT).await?.pages;
    while let Some(page) = pages.next().await {
        if page?.iter().any(|kv| kv.value.starts_with(ENCRYPTED)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The value as it would be written now, where that is not how it is.
fn renewed(layers: &Layers, key: &str, stored: &[u8]) -> Result<Option<Vec<u8>>> {
    let opened = layers.open(key, stored)?;
    if !opened.stale {
        return Ok(None);
    }
    let plain = opened.plain.unwrap_or_else(|| stored.to_vec());
    let sealed = layers.seal(key, &plain.into())?;
    Ok(Some(sealed.into()).filter(|sealed: &Vec<u8>| sealed != stored))
}

/// Values on their way into the store.
struct Batch<'a> {
    store: &'a EncryptedStore,
    writes: Vec<Write>,
    bytes: usize,
}

impl Batch<'_> {
    /// Returns how many were written.
    async fn push(&mut self, write: Write) -> Result<u64> {
        self.bytes += write.bytes();
        self.writes.push(write);
        if self.writes.len() < BATCH && self.bytes < BATCH_BYTES { Ok(0) } else { self.flush().await }
    }

    async fn flush(&mut self) -> Result<u64> {
        self.bytes = 0;
        let writes = std::mem::take(&mut self.writes);
        if writes.is_empty() {
            return Ok(0);
        }
        let inner = self.store.inner();
        match inner.create(SCRUB, "1".into()).await {
            Ok(_) | Err(StoreError::AlreadyExists { .. }) => {}
            Err(error) => return Err(error),
        }
        let count = writes.len() as u64;
        match inner.write(writes.clone()).await {
            Ok(_) => return Ok(count),
            // Somebody was quicker with one of them, or they do not fit together.
            Err(StoreError::Conflict { .. } | StoreError::NotFound { .. } | StoreError::TooLarge { .. }) => {}
            Err(error) => return Err(error),
        }
        let mut written = 0;
        for write in writes {
            match inner.write_one(write).await {
                Ok(_) => written += 1,
                Err(StoreError::Conflict { .. } | StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }
}
