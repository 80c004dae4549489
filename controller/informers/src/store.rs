//! The copy of one kind, of objects whose type is not known here. In: events of a watch. Out: for each subscriber a bounded
//! queue of changes, or the word that it must take the whole anew.
//!
//! One lock holds objects and queues, so that a list and the changes after it fit together. Nothing waits while holding it.

use futures::stream::{BoxStream, StreamExt};
use kube::Resource;
use kube::runtime::watcher::{Event, Result};
use parking_lot::Mutex;
use std::any::Any;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::task::{Poll, Waker};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// So many changes wait for a subscriber; who is further behind gets a complete list instead.
pub const BACKLOG: usize = if cfg!(test) { 8 } else { 4096 };

/// An object of a type that only its readers know.
pub type Object = Arc<dyn Any + Send + Sync>;

/// Namespace (empty for cluster-wide kinds) and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    namespace: Box<str>,
    name: Box<str>,
}

impl Key {
    /// From its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Of an object.
    pub fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""))
    }
}

/// An object and what must be known of it.
#[derive(Clone)]
pub struct Item {
    /// Which it is.
    pub key: Key,
    /// `metadata.uid`: another one under the same key is another object.
    pub uid: Option<String>,
    /// `metadata.resourceVersion`.
    pub version: Option<String>,
    /// Compares two objects of the kind.
    pub equal: fn(&Object, &Object) -> bool,
    /// Itself.
    pub object: Object,
}

/// What a subscriber is told.
pub enum Change {
    /// It is so now.
    Set(Key, Object),
    /// It is gone; so it was last, as far as is known.
    Gone(Key, Object),
}

/// What a subscriber finds when it looks.
pub enum Next {
    /// A change.
    Change(Change),
    /// Everything there is; changes after that follow.
    Whole(Vec<(Key, Object)>),
    /// Nothing will come any more.
    End,
}

/// A subscriber's changes.
#[derive(Default)]
struct Queue {
    changes: VecDeque<Change>,
    /// It has the whole, and the queue continues it.
    current: bool,
    waker: Option<Waker>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Item>,
    /// The list that is coming in.
    listing: Option<BTreeMap<Key, Item>>,
    complete: bool,
    ended: bool,
    queues: HashMap<u64, Queue>,
    /// The number of the next subscriber.
    number: u64,
}

/// The copy.
pub struct Store {
    kind: String,
    state: Mutex<State>,
    /// `Some(true)` when complete, `Some(false)` when ended before.
    synced: watch::Sender<Option<bool>>,
    task: Mutex<Option<AbortHandle>>,
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
    }
}

/// Says that the watch is over, however it ended.
struct Ending(Weak<Store>);

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(store) = self.0.upgrade() {
            store.end();
        }
    }
}

impl Store {
    /// Follows a watch on the current runtime, until the store is dropped.
    pub fn start(kind: String, mut events: BoxStream<'static, Result<Event<Item>>>) -> Arc<Self> {
        let store =
            Arc::new(Self { kind, state: Mutex::default(), synced: watch::Sender::new(None), task: Mutex::default() });
        let ending = Ending(Arc::downgrade(&store));
        let task = tokio::spawn(async move {
            let mut failing = false;
            while let Some(event) = events.next().await {
                let Some(store) = ending.0.upgrade() else { return };
                match event {
                    Ok(event) => {
                        failing &= matches!(event, Event::Init);
                        store.take(event);
                    }
                    // Said once, until it is well again.
                    Err(error) if !failing => {
                        failing = true;
                        tracing::warn!(kind = store.kind, %error, "watching a kind; what is known of it stays in force");
                    }
                    Err(error) => tracing::debug!(kind = store.kind, %error, "watching a kind, once more"),
                }
            }
        });
        *store.task.lock() = Some(task.abort_handle());
        store
    }

    /// Whether the watch is over.
    pub fn has_ended(&self) -> bool {
        self.state.lock().ended
    }

    /// Waits until the first list is in; false when the watch ended before.
    pub async fn synced(&self) -> bool {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as `self`.
        synced.wait_for(Option::is_some).await.is_ok_and(|synced| *synced == Some(true))
    }

    /// An object.
    pub fn get(&self, key: &Key) -> Option<Object> {
        self.state.lock().objects.get(key).map(|item| item.object.clone())
    }

    /// All objects, by key.
    pub fn list(&self) -> Vec<Object> {
        self.state.lock().objects.values().map(|item| item.object.clone()).collect()
    }

    /// A new subscriber's number.
    pub fn join(&self) -> u64 {
        let mut state = self.state.lock();
        state.number += 1;
        let number = state.number;
        state.queues.insert(number, Queue::default());
        number
    }

    /// Forgets a subscriber.
    pub fn leave(&self, number: u64) {
        self.state.lock().queues.remove(&number);
    }

    /// What comes next for a subscriber.
    pub fn next(&self, number: u64, waker: &Waker) -> Poll<Next> {
        let mut state = self.state.lock();
        let State { objects, complete, ended, queues, .. } = &mut *state;
        let Some(queue) = queues.get_mut(&number) else { return Poll::Ready(Next::End) };
        if let Some(change) = queue.changes.pop_front() {
            return Poll::Ready(Next::Change(change));
        }
        if !queue.current && *complete {
            queue.current = true;
            let whole = objects.iter().map(|(key, item)| (key.clone(), item.object.clone())).collect();
            return Poll::Ready(Next::Whole(whole));
        }
        if *ended {
            return Poll::Ready(Next::End);
        }
        match &mut queue.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        Poll::Pending
    }

    fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        state.queues.values_mut().for_each(Queue::wake);
        drop(state);
        self.synced.send_if_modified(|synced| {
            let unknown = synced.is_none();
            *synced = synced.or(Some(false));
            unknown
        });
    }

    /// Takes an event of the watch over.
    pub fn take(&self, event: Event<Item>) {
        let mut state = self.state.lock();
        match event {
            Event::Init => state.listing = Some(BTreeMap::new()),
            Event::InitApply(item) => {
                let State { objects, listing, .. } = &mut *state;
                // What has not changed is not kept twice, also not while the list comes in.
                let known = objects.get(&item.key).filter(|known| known.is(&item)).cloned();
                listing.get_or_insert_default().insert(item.key.clone(), known.unwrap_or(item));
            }
            Event::InitDone => {
                let list = state.listing.take().unwrap_or_default();
                state.replace(list);
                if !std::mem::replace(&mut state.complete, true) {
                    state.queues.values_mut().for_each(Queue::wake);
                    drop(state);
                    self.synced.send_replace(Some(true));
                }
            }
            Event::Apply(item) => state.set(item),
            Event::Delete(item) => state.remove(&item.key, Some(&item.object)),
        }
    }
}

impl Item {
    /// Whether it is the same state of the same object. The version alone does not say so: a store that was set back to an
    /// older state gives versions anew.
    fn is(&self, other: &Self) -> bool {
        self.version == other.version && (self.equal)(&self.object, &other.object)
    }
}

impl State {
    /// What is not in a complete list is gone.
    fn replace(&mut self, list: BTreeMap<Key, Item>) {
        let gone: Vec<Key> = self.objects.keys().filter(|key| !list.contains_key(*key)).cloned().collect();
        gone.iter().for_each(|key| self.remove(key, None));
        for (key, item) in list {
            if !self.objects.get(&key).is_some_and(|known| known.is(&item)) {
                self.set(item);
            }
        }
    }

    fn set(&mut self, item: Item) {
        // The old one went and nobody has said so: readers that know objects by their uid must hear of it.
        if self.objects.get(&item.key).is_some_and(|known| known.uid != item.uid) {
            self.remove(&item.key, None);
        }
        for queue in self.queues.values_mut() {
            queue.push(|| Change::Set(item.key.clone(), item.object.clone()));
        }
        self.objects.insert(item.key.clone(), item);
    }

    /// `end` is how the object was when it went, where that is known: it has the version of the deletion.
    fn remove(&mut self, key: &Key, end: Option<&Object>) {
        let Some(last) = self.objects.remove(key) else { return };
        let end = end.unwrap_or(&last.object);
        for queue in self.queues.values_mut() {
            queue.push(|| Change::Gone(last.key.clone(), end.clone()));
        }
    }
}

impl Queue {
    fn push(&mut self, change: impl FnOnce() -> Change) {
        if !self.current {
            // It takes the whole when it looks.
            return;
        }
        if self.changes.len() >= BACKLOG {
            self.changes = VecDeque::new();
            self.current = false;
        } else {
            self.changes.push_back(change());
        }
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
