//! The store with its values encrypted. In: the calls of [`Store`], an inner store. Out: the same answers; only ciphertext
//! reaches the inner one for keys that the rules name. Keys, revisions and counts are as they are.

use crate::cipher::Form;
use crate::config::Configuration;
use crate::rules::{Opened, Rules, outermost};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use causeway_store::{
    Health, KeyValue, ListRequest, Listing, Result, Revision, Snapshot, Store, StoreError, Streamed, WatchEvent,
    WatchStream, Write,
};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// This many configurations of before can be read by.
const MAX_RETIRED: usize = 16;
/// How often it is looked whether writes by an old configuration have ended.
const LOOK: Duration = Duration::from_millis(5);

/// The configuration of now, and those of before in this process: history and values that are not rewritten yet are read by
/// them.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    pub current: Rules,
    retired: Vec<Rules>,
}

impl Layers {
    pub fn open(&self, key: &str, stored: &[u8]) -> Result<Opened, StoreError> {
        let refused = match self.current.open(key, stored) {
            Ok(opened) => return Ok(opened),
            Err(detail) => detail,
        };
        let old = self.retired.iter().rev().find_map(|rules| rules.open(key, stored).ok());
        old.map(|opened| Opened { stale: true, ..opened })
            .ok_or_else(|| StoreError::Undecryptable { key: key.to_owned(), detail: refused })
    }

    pub fn prefixes(&self) -> Vec<String> {
        outermost(self.retired.iter().chain([&self.current]).flat_map(Rules::prefixes).collect())
    }

    fn read(&self, mut kv: KeyValue) -> Result<KeyValue> {
        if let Some(plain) = self.open(&kv.key, &kv.value)?.plain {
            kv.value = plain.into();
        }
        Ok(kv)
    }

    fn read_all(&self, items: Vec<KeyValue>) -> Result<Vec<KeyValue>> {
        items.into_iter().map(|kv| self.read(kv)).collect()
    }

    fn event(&self, event: WatchEvent) -> Result<WatchEvent> {
        Ok(match event {
            WatchEvent::Put { kv, prev } => {
                WatchEvent::Put { kv: self.read(kv)?, prev: prev.map(|prev| self.read(prev)).transpose()? }
            }
            WatchEvent::Delete { prev, revision } => WatchEvent::Delete { prev: self.read(prev)?, revision },
            progress @ WatchEvent::Progress(_) => progress,
        })
    }

    /// The value as it is to be stored.
    pub fn seal(&self, key: &str, plain: &Bytes) -> Result<Bytes> {
        let sealed = self.current.seal(key, plain);
        let sealed =
            sealed.map_err(|e| StoreError::Engine { doing: format!("encrypting {key}"), detail: e.to_string() })?;
        Ok(sealed.map_or_else(|| plain.clone(), Bytes::from))
    }
}

/// A store whose values are encrypted as a configuration says. Clones share it.
#[derive(Clone)]
pub struct EncryptedStore {
    inner: Arc<dyn Store>,
    layers: Arc<ArcSwap<Layers>>,
    /// One exchange at a time.
    changing: Arc<Mutex<()>>,
}

impl EncryptedStore {
    /// A store over another.
    pub fn new(inner: Arc<dyn Store>, configuration: &Configuration) -> Self {
        let layers = Layers { current: configuration.into(), retired: Vec::new() };
        Self { inner, layers: Arc::new(ArcSwap::from_pointee(layers)), changing: Arc::default() }
    }

    /// The store below, with values as they are stored.
    pub fn inner(&self) -> &Arc<dyn Store> {
        &self.inner
    }

    pub(crate) fn layers(&self) -> Arc<Layers> {
        self.layers.load_full()
    }

    /// From now on values are written by another configuration, and read by it and those of before. When this returns, no
    /// write by an older one is under way here; one whose caller has gone may still be in the inner store's queue, until
    /// that has answered what was asked of it afterwards.
    pub async fn set(&self, configuration: &Configuration) {
        let rules = Rules::from(configuration);
        let old = {
            let _one = self.changing.lock();
            let old = self.layers.load_full();
            if old.current == rules {
                return;
            }
            let mut retired = old.retired.clone();
            retired.retain(|r| *r != rules && *r != old.current);
            retired.push(old.current.clone());
            let many = retired.len().saturating_sub(MAX_RETIRED);
            retired.drain(..many);
            self.layers.store(Arc::new(Layers { current: rules, retired }));
            old
        };
        // Who writes holds it until the answer is there.
        while Arc::strong_count(&old) > 1 {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What a value says of itself: provider and key.
    pub fn label(stored: &[u8]) -> String {
        Form::of(stored).label()
    }
}

/// The plain values of a transaction.
fn plain_of(writes: &[Write]) -> Vec<Option<Bytes>> {
    let plain = |write: &Write| match write {
        Write::Create { value, .. } | Write::Update { value, .. } => Some(value.clone()),
        Write::Delete { .. } => None,
    };
    writes.iter().map(plain).collect()
}

fn sealed(layers: &Layers, write: Write) -> Result<Write> {
    Ok(match write {
        Write::Create { key, value, ttl } => {
            let value = layers.seal(&key, &value)?;
            Write::Create { key, value, ttl }
        }
        Write::Update { key, value, ttl, expected } => {
            let value = layers.seal(&key, &value)?;
            Write::Update { key, value, ttl, expected }
        }
        delete @ Write::Delete { .. } => delete,
    })
}

#[async_trait]
impl Store for EncryptedStore {
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<(Option<KeyValue>, Revision)> {
        let (kv, revision) = self.inner.get(key, at).await?;
        Ok((kv.map(|kv| self.layers().read(kv)).transpose()?, revision))
    }

    async fn list(&self, request: ListRequest) -> Result<Listing> {
        let listing = self.inner.list(request).await?;
        Ok(Listing { items: self.layers().read_all(listing.items)?, ..listing })
    }

    async fn count(&self, prefix: &str) -> Result<(usize, Revision)> {
        self.inner.count(prefix).await
    }

    async fn stream(&self, prefix: &str) -> Result<Streamed> {
        let Streamed { revision, pages } = self.inner.stream(prefix).await?;
        let layers = self.layers.clone();
        let read = move |page: Result<Vec<KeyValue>>| layers.load_full().read_all(page?);
        Ok(Streamed { revision, pages: until_error(pages.map(read).boxed()) })
    }

    async fn write(&self, writes: Vec<Write>) -> Result<Vec<(KeyValue, Revision)>> {
        let layers = self.layers();
        let plain = plain_of(&writes);
        let writes = writes.into_iter().map(|write| sealed(&layers, write)).collect::<Result<Vec<_>>>()?;
        let answers = match self.inner.write(writes).await {
            Ok(answers) => answers,
            Err(StoreError::Conflict { key, expected, current }) => {
                let current = Box::new(self.layers().read(*current)?);
                return Err(StoreError::Conflict { key, expected, current });
            }
            Err(error) => return Err(error),
        };
        // By the newest: what is deleted may have been written since this began.
        let newest = self.layers();
        let answer = |((kv, revision), plain): ((KeyValue, Revision), Option<Bytes>)| match plain {
            Some(value) => Ok((KeyValue { value, ..kv }, revision)),
            None => match newest.read(kv) {
                Ok(kv) => Ok((kv, revision)),
                // It has happened, and nobody may take it for refused.
                Err(error) => {
                    Err(StoreError::OutcomeUnknown { doing: "deleting".to_owned(), detail: error.to_string() })
                }
            },
        };
        let answers = answers.into_iter().zip(plain).map(answer).collect();
        drop(layers);
        answers
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream> {
        let events = self.inner.watch(prefix, after).await?;
        let layers = self.layers.clone();
        Ok(until_error(events.map(move |event| layers.load_full().event(event?)).boxed()))
    }

    async fn request_progress(&self) -> Result<()> {
        self.inner.request_progress().await
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.inner.compact(revision).await
    }

    async fn scrub(&self, upto: Revision) -> Result<()> {
        self.inner.scrub(upto).await
    }

    /// As it is stored: a backup holds ciphertext.
    async fn snapshot(&self) -> Result<Snapshot> {
        self.inner.snapshot().await
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    fn collectors(&self) -> Vec<Box<dyn prometheus::core::Collector>> {
        self.inner.collectors()
    }

    async fn revision(&self) -> Result<Revision> {
        self.inner.revision().await
    }

    async fn compacted(&self) -> Result<Revision> {
        self.inner.compacted().await
    }
}

/// A stream that ends with its first error, so that nobody takes what follows for complete.
fn until_error<T: Send + 'static>(
    items: stream::BoxStream<'static, Result<T>>,
) -> stream::BoxStream<'static, Result<T>> {
    let next = |items: Option<stream::BoxStream<'static, Result<T>>>| async move {
        let mut items = items?;
        let item = items.next().await?;
        let rest = item.is_ok().then_some(items);
        Some((item, rest))
    };
    stream::unfold(Some(items), next).boxed()
}
