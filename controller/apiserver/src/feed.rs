//! The watch cache: one store watch feeds memory, all lists and watches are served from it.
//!
//! In: the store's ordered log below `/registry/`. Out: for every resource the objects at the newest revision and a
//! bounded window of recent changes. Watchers keep a cursor into the window instead of a buffer each: one that falls
//! out of the window is told so (410) and lists again, so no watcher can make memory grow. Those that watch one object, or
//! the objects of one field's value, are woken by these alone ([`topics`]).

mod topics;

use crate::object::Object;
use crate::status::{ApiError, ApiResult};
use causeway_store::{Revision, Store, StoreError, WatchEvent};
use futures::StreamExt;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use topics::Topics;

pub use topics::{Subscription, node_topic};

/// Changes kept for each resource.
const WINDOW: usize = 2048;
/// How long a read waits for the cache to reach the revision it needs.
const CATCH_UP: Duration = Duration::from_secs(5);

const ROOT: &str = "/registry/";
/// Keys that are no API objects.
pub const INTERNAL: &str = "/registry/causeway/";

/// One change of one object.
#[derive(Debug)]
pub struct Change {
    /// Its revision.
    pub revision: Revision,
    /// The new state, or the last one (stamped with the revision of the deletion).
    pub object: Arc<Object>,
    /// The state before.
    pub prev: Option<Arc<Object>>,
    /// It was deleted.
    pub deleted: bool,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Arc<Object>>,
    window: VecDeque<Arc<Change>>,
    /// Every change after this revision is in the window.
    start: Revision,
    last: Revision,
    topics: Topics,
}

/// The cache of one resource.
pub struct Cache {
    state: Mutex<State>,
    changed: watch::Sender<Revision>,
}

impl Cache {
    fn new(start: Revision) -> Self {
        Self { state: Mutex::new(State { start, ..State::default() }), changed: watch::Sender::new(start) }
    }

    fn put(&self, object: Arc<Object>) {
        let mut state = self.state.lock();
        let prev = state.objects.insert(object.key.clone(), object.clone());
        let revision = object.revision;
        Self::push(&mut state, Change { revision, object, prev, deleted: false });
        drop(state);
        self.changed.send_replace(revision);
    }

    fn remove(&self, key: &str, object: Arc<Object>) {
        let mut state = self.state.lock();
        let prev = state.objects.remove(key);
        let revision = object.revision;
        Self::push(&mut state, Change { revision, object, prev, deleted: true });
        drop(state);
        self.changed.send_replace(revision);
    }

    fn push(state: &mut State, change: Change) {
        state.last = change.revision;
        let change = Arc::new(change);
        state.topics.push(&change);
        state.window.push_back(change);
        while state.window.len() > WINDOW {
            if let Some(old) = state.window.pop_front() {
                state.start = old.revision;
            }
        }
    }

    /// After a gap in the log: a new state, and every watcher has to list again.
    fn reset(&self, objects: BTreeMap<String, Arc<Object>>, revision: Revision) {
        let mut state = self.state.lock();
        state.topics.reset(revision);
        (state.objects, state.window, state.start, state.last) = (objects, VecDeque::new(), revision, revision);
        drop(state);
        self.changed.send_replace(revision);
    }

    /// The object of a key.
    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.state.lock().objects.get(key).cloned()
    }

    /// The objects below a prefix in key order, and the revision of the newest change among all objects here.
    pub fn list(&self, prefix: &str) -> (Vec<Arc<Object>>, Revision) {
        let state = self.state.lock();
        let objects = state
            .objects
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, object)| object.clone())
            .collect();
        (objects, state.last)
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.state.lock().objects.len()
    }

    /// No objects.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// At most `max` changes after a revision, oldest first.
    pub fn changes(&self, after: Revision, max: usize) -> ApiResult<Vec<Arc<Change>>> {
        let state = self.state.lock();
        if after < state.start {
            return Err(ApiError::expired(after, state.start));
        }
        let from = state.window.partition_point(|c| c.revision <= after);
        Ok(state.window.range(from..).take(max).cloned().collect())
    }

    /// As [`Self::changes`], of one topic; there may be others among them.
    fn changes_of(&self, topic: &str, after: Revision, max: usize) -> ApiResult<Vec<Arc<Change>>> {
        if let Some(changes) = self.state.lock().topics.changes(topic, after, max) {
            return Ok(changes);
        }
        self.changes(after, max)
    }
}

/// Is told every change before a reader can see it, in order: for what must be as new as the caches.
pub trait Observer: Send + Sync {
    /// Whether objects below a storage prefix matter to it.
    fn concerns(&self, prefix: &str) -> bool;

    /// A new object, or a new state of one.
    fn put(&self, prefix: &str, object: &Object, prev: Option<&Object>);

    /// An object that is gone, in its last state.
    fn removed(&self, prefix: &str, object: &Object);
}

/// All caches.
pub struct Feed {
    store: Arc<dyn Store>,
    observers: Vec<Arc<dyn Observer>>,
    caches: RwLock<HashMap<String, Arc<Cache>>>,
    revision: watch::Sender<Revision>,
    start: RwLock<Revision>,
}

/// `/registry/<group>/<plural>/` of a key.
fn prefix_of(key: &str) -> Option<&str> {
    if key.starts_with(INTERNAL) {
        return None;
    }
    let slashes = key.char_indices().filter(|(_, c)| *c == '/').nth(3)?;
    Some(&key[..=slashes.0])
}

impl Feed {
    /// Reads everything and follows the log until shutdown.
    pub async fn start(
        store: Arc<dyn Store>,
        observers: Vec<Arc<dyn Observer>>,
        shutdown: CancellationToken,
    ) -> ApiResult<Arc<Self>> {
        let feed = Arc::new(Self {
            store,
            observers,
            caches: RwLock::default(),
            revision: watch::Sender::new(0),
            start: RwLock::new(0),
        });
        let revision = feed.load().await?;
        let task = feed.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = task.follow(revision) => {}
                () = shutdown.cancelled() => {}
            }
        });
        Ok(feed)
    }

    /// The cache of a storage prefix.
    pub fn cache(&self, prefix: &str) -> Arc<Cache> {
        if let Some(cache) = self.caches.read().get(prefix) {
            return cache.clone();
        }
        let mut caches = self.caches.write();
        caches.entry(prefix.to_owned()).or_insert_with(|| Arc::new(Cache::new(*self.start.read()))).clone()
    }

    /// The revision up to which all changes are in the caches.
    pub fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    /// Waits until the caches contain everything up to a revision.
    pub async fn wait_for(&self, revision: Revision) -> ApiResult<()> {
        let mut receiver = self.revision.subscribe();
        let reached = tokio::time::timeout(CATCH_UP, receiver.wait_for(|r| *r >= revision)).await;
        match reached {
            Ok(Ok(_)) => Ok(()),
            _ => Err(ApiError::future_version(revision, self.revision())),
        }
    }

    /// Waits until the caches contain every write acknowledged before the call.
    pub async fn catch_up(&self) -> ApiResult<()> {
        let newest = self.store.revision().await?;
        self.wait_for(newest).await
    }

    /// Objects by storage prefix, for the metrics.
    pub fn counts(&self) -> Vec<(String, usize)> {
        self.caches.read().iter().map(|(prefix, cache)| (prefix.clone(), cache.len())).collect()
    }

    async fn load(&self) -> Result<Revision, StoreError> {
        let mut grouped: HashMap<String, BTreeMap<String, Arc<Object>>> = HashMap::new();
        let mut streamed = self.store.stream(ROOT).await?;
        let revision = streamed.revision;
        while let Some(page) = streamed.pages.next().await {
            for kv in page? {
                let Some(prefix) = prefix_of(&kv.key) else { continue };
                match Object::decode(&kv) {
                    Ok(object) => {
                        grouped.entry(prefix.to_owned()).or_default().insert(kv.key.clone(), Arc::new(object));
                    }
                    Err(error) => tracing::error!(key = kv.key, %error, "stored value is no JSON object; passed over"),
                }
            }
        }
        *self.start.write() = revision;
        let known: Vec<String> = self.caches.read().keys().cloned().collect();
        for prefix in known {
            grouped.entry(prefix).or_default();
        }
        for (prefix, objects) in grouped {
            let cache = self.cache(&prefix);
            for observer in self.observers(&prefix) {
                let before = cache.list(&prefix).0;
                before.iter().filter(|o| !objects.contains_key(&o.key)).for_each(|o| observer.removed(&prefix, o));
                objects.values().for_each(|o| observer.put(&prefix, o, None));
            }
            cache.reset(objects, revision);
        }
        self.revision.send_replace(revision);
        Ok(revision)
    }

    async fn follow(&self, mut after: Revision) {
        let mut resumed = None;
        loop {
            let lost = match self.store.watch(ROOT, after).await {
                Ok(mut events) => loop {
                    match events.next().await {
                        Some(Ok(event)) => after = self.apply(event),
                        Some(Err(error)) => break Some(error),
                        None => break None,
                    }
                },
                Err(error) => Some(error),
            };
            let Some(error) = lost else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            // One that fell behind can go on from where it is, as long as the log reaches back that far.
            if resumed.replace(after) != Some(after) {
                tracing::debug!(%error, after, "the watch on the store ended; watching again from there");
                continue;
            }
            tracing::warn!(%error, "the store's log does not reach back far enough; reading all again");
            after = loop {
                match self.load().await {
                    Ok(revision) => break revision,
                    Err(error) => {
                        tracing::error!(%error, "the store cannot be read; trying again");
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                }
            };
        }
    }

    fn observers<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Arc<dyn Observer>> {
        self.observers.iter().filter(move |o| o.concerns(prefix))
    }

    fn put(&self, prefix: &str, object: Object) {
        let cache = self.cache(prefix);
        let mut observers = self.observers(prefix).peekable();
        if observers.peek().is_some() {
            let prev = cache.get(&object.key);
            observers.for_each(|o| o.put(prefix, &object, prev.as_deref()));
        }
        cache.put(Arc::new(object));
    }

    fn apply(&self, event: WatchEvent) -> Revision {
        let revision = match &event {
            WatchEvent::Put { kv, .. } => {
                if let Some(prefix) = prefix_of(&kv.key) {
                    match Object::decode(kv) {
                        Ok(object) => self.put(prefix, object),
                        Err(error) => tracing::error!(key = kv.key, %error, "stored value is no JSON object"),
                    }
                }
                kv.mod_revision
            }
            WatchEvent::Delete { prev, revision } => {
                if let Some(prefix) = prefix_of(&prev.key) {
                    match Object::at(&prev.key, &prev.value, *revision) {
                        Ok(object) => {
                            self.observers(prefix).for_each(|o| o.removed(prefix, &object));
                            self.cache(prefix).remove(&prev.key, Arc::new(object));
                        }
                        Err(error) => tracing::error!(key = prev.key, %error, "stored value is no JSON object"),
                    }
                }
                *revision
            }
            WatchEvent::Progress(revision) => *revision,
        };
        self.revision.send_if_modified(|current| {
            let newer = revision > *current;
            *current = (*current).max(revision);
            newer
        });
        self.revision()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        assert_eq!(prefix_of("/registry/core/pods/default/a"), Some("/registry/core/pods/"));
        assert_eq!(prefix_of("/registry/core/nodes/a"), Some("/registry/core/nodes/"));
        assert_eq!(prefix_of("/registry/causeway/nodeports/30000"), None);
    }

    #[test]
    fn a_cursor_that_leaves_the_window_expires() {
        let cache = Cache::new(10);
        let object = |n: usize, revision| {
            let value = serde_json::json!({ "metadata": { "name": format!("o{n}") } });
            Arc::new(Object::from_value(&format!("/registry/core/pods/d/o{n}"), &value, revision).unwrap())
        };
        for i in 0..WINDOW + 5 {
            cache.put(object(i % 7, 11 + i as u64));
        }
        assert_eq!(cache.len(), 7);
        assert_eq!(cache.changes(10, 1).unwrap_err().code(), 410);
        let oldest = cache.changes(15, 1).unwrap();
        assert_eq!(oldest[0].revision, 16);
        assert!(cache.changes(11 + WINDOW as u64 + 5, 10).unwrap().is_empty());
    }
}
