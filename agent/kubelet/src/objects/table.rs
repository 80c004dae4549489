//! The objects of one kind that pods of this node name, each followed once. In: who names what ([`Table::hold`]), and what
//! the follower finds ([`Entry`]). Out: the object as it is now ([`Handle::read`]), and a ring for all who hold it.
//!
//! Who comes is never served what was read before: an object may have been deleted and made again since, or changed a moment
//! ago with the change still under way. So each handle has a number, and a copy says up to which number it is fresh.

use super::Kind;
use super::follow::follow;
use super::source::Source;
use crate::inbox::Inbox;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// How long a read waits for the first look: the operation tries again, and can be given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Namespace (empty for a kind without) and name.
pub type Key = (String, String);

/// All followed objects of one kind.
pub struct Table<K> {
    pub(super) source: Arc<dyn Source<K>>,
    slots: Mutex<HashMap<Key, Slot<K>>>,
}

struct Slot<K> {
    entry: Arc<Entry<K>>,
    follower: AbortHandle,
}

/// One followed object.
pub struct Entry<K> {
    copy: watch::Sender<Copy<K>>,
    /// The number of the newest handle.
    pub(super) newest: watch::Sender<u64>,
    /// By number of their handles.
    holders: Mutex<HashMap<u64, Weak<Inbox>>>,
}

struct Copy<K> {
    object: Option<Arc<K>>,
    /// It was read after the handle of this number came; 0 when it was not read yet.
    fresh: u64,
    /// It could not be read, for handles up to this number that have not been served yet.
    failed: Option<(u64, String)>,
}

impl<K> Default for Entry<K> {
    fn default() -> Self {
        let copy = Copy { object: None, fresh: 0, failed: None };
        Self { copy: watch::Sender::new(copy), newest: watch::Sender::new(0), holders: Mutex::default() }
    }
}

impl<K: Kind> Entry<K> {
    /// Up to which handle the copy is fresh.
    pub fn fresh(&self) -> u64 {
        self.copy.borrow().fresh
    }

    /// Takes over what the object is now, read after handle `number` came.
    pub fn put(&self, number: u64, object: Option<K>) {
        let mut news = false;
        self.copy.send_modify(|copy| {
            // Who waits for the first copy gets it without a ring.
            let first = copy.fresh == 0 && copy.failed.is_none();
            news = !first && (copy.failed.is_some() || !same(copy.object.as_deref(), object.as_ref()));
            *copy = Copy { object: object.map(Arc::new), fresh: copy.fresh.max(number), failed: None };
        });
        if news {
            self.holders.lock().values().filter_map(Weak::upgrade).for_each(|inbox| inbox.objects());
        }
    }

    /// Whether the copy is what was found now; if so, it is fresh up to handle `number`.
    pub fn confirm(&self, number: u64, found: Option<&K>) -> bool {
        let agrees = same(self.copy.borrow().object.as_deref(), found);
        if agrees {
            self.copy.send_modify(|copy| {
                copy.fresh = copy.fresh.max(number);
                copy.failed = None;
            });
        }
        agrees
    }

    /// The object cannot be read. Only those who wait for it are told: the others have a copy.
    pub fn fail(&self, error: String) {
        let newest = *self.newest.borrow();
        self.copy.send_modify(|copy| copy.failed = Some((newest, error)));
    }
}

/// The same object in the same state.
fn same<K: Kind>(a: Option<&K>, b: Option<&K>) -> bool {
    let state = |o: &K| (o.meta().uid.clone(), o.meta().resource_version.clone());
    a.map(state) == b.map(state)
}

impl<K: Kind> Table<K> {
    /// An empty one.
    pub fn new(source: Arc<dyn Source<K>>) -> Arc<Self> {
        Arc::new(Self { source, slots: Mutex::default() })
    }

    /// Follows an object until the handle is dropped. `inbox` is rung when it has changed.
    pub fn hold(self: &Arc<Self>, namespace: &str, name: &str, inbox: Weak<Inbox>) -> Handle<K> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut slots = self.slots.lock();
        // The number is given before the follower begins, so that its first look serves the first handle.
        let entry = slots.get(&key).map_or_else(Arc::<Entry<K>>::default, |slot| slot.entry.clone());
        let mut number = 0;
        entry.newest.send_modify(|newest| {
            *newest += 1;
            number = *newest;
        });
        entry.holders.lock().insert(number, inbox);
        // One that has broken is replaced by the next who comes.
        if slots.get(&key).is_none_or(|slot| slot.follower.is_finished()) {
            let follower = tokio::spawn(follow(self.source.clone(), key.clone(), entry.clone()));
            slots.insert(key.clone(), Slot { entry: entry.clone(), follower: follower.abort_handle() });
        }
        drop(slots);
        Handle { table: self.clone(), key, number, entry }
    }
}

/// Somebody's wish to know an object.
pub struct Handle<K> {
    table: Arc<Table<K>>,
    key: Key,
    number: u64,
    entry: Arc<Entry<K>>,
}

impl<K: Kind> Handle<K> {
    /// The object as it is now, `None` when there is none. Waits only until the object was read once since the handle came;
    /// while the API is away the last copy serves.
    pub async fn read(&self) -> Result<Option<Arc<K>>, String> {
        let mut copy = self.entry.copy.subscribe();
        let done = |c: &Copy<K>| c.fresh >= self.number || c.failed.as_ref().is_some_and(|(n, _)| *n >= self.number);
        let read = tokio::time::timeout(PATIENCE, copy.wait_for(done)).await;
        let state = read.map_err(|_| format!("failed to read {} \"{}\": no answer", K::WHAT, self.key.1))?;
        let state = state.map_err(|e| e.to_string())?;
        match &state.failed {
            Some((_, error)) if state.fresh < self.number => Err(error.clone()),
            _ => Ok(state.object.clone()),
        }
    }
}

impl<K> Drop for Handle<K> {
    fn drop(&mut self) {
        let mut slots = self.table.slots.lock();
        let mut holders = self.entry.holders.lock();
        holders.remove(&self.number);
        if holders.is_empty()
            && let Some(slot) = slots.remove(&self.key)
        {
            slot.follower.abort();
        }
    }
}

#[cfg(test)]
impl<K> Table<K> {
    /// How many objects are followed.
    pub fn len(&self) -> usize {
        self.slots.lock().len()
    }
}
