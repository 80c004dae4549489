//! What controllers know of a kind: the process' copy of it, with change handlers.
//!
//! In: a subscription to the shared copy. Out: objects by key and namespace, `(old, new)` calls to handlers for every
//! difference, also those found by a relist, and the newest resource version seen (see [`crate::fence`]).

use crate::queue::Key;
use causeway_informers::{Informer, Kind};
use futures::StreamExt;
use kube::Resource;
use kube::runtime::watcher::Event;
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// An object that can be cached: a typed kind with static names.
pub trait Cached: Kind + Clone + Debug {}
impl<K: Kind + Clone + Debug> Cached for K {}

type Handler<K> = Box<dyn Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync>;

/// What an object is found by, besides its key.
type By<K> = fn(&K) -> Option<String>;

struct Index<K> {
    name: &'static str,
    by: By<K>,
    keys: HashMap<String, BTreeSet<Key>>,
}

/// The objects, and where to find which.
struct Objects<K> {
    by_key: BTreeMap<Key, Arc<K>>,
    indexes: Vec<Index<K>>,
}

struct Inner<K> {
    objects: RwLock<Objects<K>>,
    handlers: RwLock<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
    newest: AtomicU64,
}

/// The local copy of a kind. Cheap to clone.
pub struct Cache<K>(Arc<Inner<K>>);

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self(Arc::new(Inner {
            objects: RwLock::new(Objects { by_key: BTreeMap::new(), indexes: Vec::new() }),
            handlers: RwLock::default(),
            synced: watch::Sender::new(false),
            newest: AtomicU64::new(0),
        }))
    }
}

/// Namespace and name of an object.
pub fn key_of<K: Resource>(object: &K) -> Key {
    let meta = object.meta();
    Key { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
}

/// The resource version as the number it is (KEP-5504); 0 when it is not one.
pub fn version_of<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

impl<K: Cached> Objects<K> {
    fn set(&mut self, key: Key, object: Arc<K>) -> Option<Arc<K>> {
        let old = self.remove(&key);
        for index in &mut self.indexes {
            if let Some(value) = (index.by)(&object) {
                index.keys.entry(value).or_default().insert(key.clone());
            }
        }
        self.by_key.insert(key, object);
        old
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        let old = self.by_key.remove(key)?;
        for index in &mut self.indexes {
            let Some(value) = (index.by)(&old) else { continue };
            if let Some(keys) = index.keys.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    index.keys.remove(&value);
                }
            }
        }
        Some(old)
    }
}

impl<K: Cached> Cache<K> {
    /// Keeps an index of the objects by what `by` says of each. To be called before [`Self::run`].
    pub fn index(&self, name: &'static str, by: By<K>) {
        self.0.objects.write().indexes.push(Index { name, by, keys: HashMap::new() });
    }

    /// The objects of which an index says this, by key. Costs as much as there are of these.
    pub fn found_by(&self, name: &str, value: &str) -> Vec<Arc<K>> {
        let objects = self.0.objects.read();
        let index = objects.indexes.iter().find(|index| index.name == name);
        debug_assert!(index.is_some(), "no index {name}");
        let keys = index.and_then(|index| index.keys.get(value)).into_iter().flatten();
        keys.filter_map(|key| objects.by_key.get(key).cloned()).collect()
    }

    /// Calls `handler` with the old and the new state at every change. To be registered before [`Self::run`].
    pub fn on_change(&self, handler: impl Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync + 'static) {
        self.0.handlers.write().push(Box::new(handler));
    }

    /// The object, if it is there.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.0.objects.read().by_key.get(key).cloned()
    }

    /// All objects of a namespace, by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let objects = self.0.objects.read();
        objects
            .by_key
            .range(Key::new(namespace, "")..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// All objects.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.0.objects.read().by_key.values().cloned().collect()
    }

    /// The newest resource version that came in.
    pub fn newest(&self) -> u64 {
        self.0.newest.load(Ordering::Acquire)
    }

    /// Waits until the first complete list is in.
    pub async fn synced(&self) {
        let mut synced = self.0.synced.subscribe();
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = synced.wait_for(|yes| *yes).await;
    }

    /// Keeps the copy current until `shutdown`.
    pub async fn run(self, copy: impl Fn() -> Informer<K>, shutdown: CancellationToken) {
        let mut listing = BTreeMap::new();
        loop {
            let copy = copy();
            let mut events = copy.subscribe();
            loop {
                let event = tokio::select! {
                    event = events.next() => event,
                    () = shutdown.cancelled() => return,
                };
                match event {
                    Some(event) => self.apply(event, &mut listing),
                    // Only a panic ends a copy: there will be a new one.
                    None => break,
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn apply(&self, event: Event<Arc<K>>, listing: &mut BTreeMap<Key, Arc<K>>) {
        match event {
            Event::Init => listing.clear(),
            Event::InitApply(object) => {
                listing.insert(key_of(&*object), object);
            }
            Event::InitDone => {
                self.replace(std::mem::take(listing));
                self.0.synced.send_replace(true);
            }
            Event::Apply(object) => {
                let old = self.0.objects.write().set(key_of(&*object), object.clone());
                // After the insert: who sees the version must also find the object.
                self.seen(version_of(&*object));
                self.tell(old.as_ref(), Some(&object));
            }
            Event::Delete(object) => {
                let old = self.0.objects.write().remove(&key_of(&*object));
                self.seen(version_of(&*object));
                if let Some(old) = old {
                    self.tell(Some(&old), None);
                }
            }
        }
    }

    /// Takes a complete list: what is not in it is gone.
    fn replace(&self, list: BTreeMap<Key, Arc<K>>) {
        let old = {
            let mut objects = self.0.objects.write();
            let old = objects.by_key.clone();
            old.keys().filter(|key| !list.contains_key(*key)).for_each(|key| drop(objects.remove(key)));
            for (key, object) in &list {
                objects.set(key.clone(), object.clone());
            }
            old
        };
        self.seen(list.values().map(|o| version_of(&**o)).max().unwrap_or(0));
        for (key, before) in &old {
            if !list.contains_key(key) {
                self.tell(Some(before), None);
            }
        }
        for (key, after) in &list {
            let before = old.get(key);
            let same = before.is_some_and(|b| b.meta().resource_version == after.meta().resource_version);
            if !same {
                self.tell(before, Some(after));
            }
        }
    }

    fn seen(&self, version: u64) {
        self.0.newest.fetch_max(version, Ordering::AcqRel);
    }

    fn tell(&self, old: Option<&Arc<K>>, new: Option<&Arc<K>>) {
        for handler in self.0.handlers.read().iter() {
            handler(old, new);
        }
    }

    /// Puts an object in as the watch would, for tests of handlers and controllers.
    #[cfg(test)]
    pub fn insert(&self, object: K) {
        self.apply(Event::Apply(Arc::new(object)), &mut BTreeMap::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::ResourceExt;
    use parking_lot::Mutex;

    fn map(namespace: &str, name: &str, version: &str) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.namespace = Some(namespace.to_owned());
        map.metadata.name = Some(name.to_owned());
        map.metadata.resource_version = Some(version.to_owned());
        map
    }

    #[test]
    fn a_relist_reports_only_differences() {
        let cache = Cache::<ConfigMap>::default();
        let log = Arc::new(Mutex::new(Vec::new()));
        let sink = log.clone();
        cache.on_change(move |old, new| {
            let text = |o: Option<&Arc<ConfigMap>>| o.map(|o| format!("{}@{}", o.name_any(), version_of(&**o)));
            sink.lock().push((text(old), text(new)));
        });
        cache.insert(map("a", "x", "1"));
        cache.insert(map("a", "y", "2"));
        cache.insert(map("b", "z", "3"));
        log.lock().clear();
        let mut listing = BTreeMap::new();
        cache.apply(Event::Init, &mut listing);
        cache.apply(Event::InitApply(Arc::new(map("a", "x", "1"))), &mut listing);
        cache.apply(Event::InitApply(Arc::new(map("b", "z", "9"))), &mut listing);
        assert_eq!(cache.all().len(), 3, "nothing changes before the list is complete");
        cache.apply(Event::InitDone, &mut listing);
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(*log.lock(), [(some("y@2"), None), (some("z@3"), some("z@9"))]);
        assert_eq!(cache.newest(), 9);
        assert_eq!(cache.in_namespace("a").len(), 1);
    }

    #[test]
    fn an_index_follows_every_change() {
        let cache = Cache::<ConfigMap>::default();
        cache.index("kind", |map| map.metadata.labels.as_ref()?.get("kind").cloned());
        let of = |name: &str, kind: &str| {
            let mut map = map("n", name, "1");
            map.metadata.labels = (!kind.is_empty()).then(|| [("kind".to_owned(), kind.to_owned())].into());
            map
        };
        let names = |kind: &str| cache.found_by("kind", kind).iter().map(|m| m.name_any()).collect::<Vec<_>>();
        cache.insert(of("a", "x"));
        cache.insert(of("b", "x"));
        cache.insert(of("c", ""));
        assert_eq!(names("x"), ["a", "b"]);
        cache.insert(of("a", "y"));
        cache.insert(of("c", "x"));
        assert_eq!((names("x"), names("y")), (vec!["b".to_owned(), "c".to_owned()], vec!["a".to_owned()]));
        let mut listing = BTreeMap::new();
        for event in [Event::Init, Event::InitApply(Arc::new(of("b", "y"))), Event::InitDone] {
            cache.apply(event, &mut listing);
        }
        assert_eq!((names("x"), names("y")), (vec![], vec!["b".to_owned()]));
        cache.apply(Event::Delete(Arc::new(of("b", "y"))), &mut listing);
        assert!(names("y").is_empty());
        assert!(cache.0.objects.read().indexes[0].keys.is_empty(), "nothing is left over");
    }
}
