//! Keeps a controller from acting on a copy that does not show its own last writes yet.
//!
//! A controller that creates objects under generated names would create them twice if it looked at a stale copy.
//! After a create or a delete it raises a fence for the owner's key; until the copy has caught up, the key is left
//! alone (the watch event that lowers the fence also brings the key back). A fence falls by itself after a while.

use crate::cache::{Cache, Cached, version_of};
use crate::queue::Key;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// An event this late was skipped by a relist.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Fence {
    /// Versions of created objects: the copy must have come this far.
    version: u64,
    /// Objects whose deletion must show: key and uid.
    deleted: Vec<(Key, Option<String>)>,
    until: Option<Instant>,
}

/// The fences of one controller over one kind.
#[derive(Default)]
pub struct Fences(Mutex<HashMap<Key, Fence>>);

impl Fences {
    /// `object` was created (or changed) for `owner`.
    pub fn wrote<K: Cached>(&self, owner: &Key, object: &K) {
        let mut all = self.0.lock();
        let fence = all.entry(owner.clone()).or_default();
        fence.version = fence.version.max(version_of(object));
        fence.until = Some(Instant::now() + PATIENCE);
    }

    /// `object` of `owner` was deleted.
    pub fn deleted(&self, owner: &Key, object: &Key, uid: Option<&str>) {
        let mut all = self.0.lock();
        let fence = all.entry(owner.clone()).or_default();
        fence.deleted.push((object.clone(), uid.map(str::to_owned)));
        fence.until = Some(Instant::now() + PATIENCE);
    }

    /// Whether the copy shows everything that was written for `owner`; if not, how long to wait at most.
    pub fn wait<K: Cached>(&self, owner: &Key, cache: &Cache<K>) -> Option<Duration> {
        let mut all = self.0.lock();
        let fence = all.get(owner)?;
        let shown = fence.version <= cache.newest()
            && fence.deleted.iter().all(|(key, uid)| {
                cache
                    .get(key)
                    .is_none_or(|o| o.meta().uid.as_deref() != uid.as_deref() || o.meta().deletion_timestamp.is_some())
            });
        let left = fence.until.map(|t| t.saturating_duration_since(Instant::now())).unwrap_or_default();
        if shown || left.is_zero() {
            all.remove(owner);
            return None;
        }
        Some(left)
    }

    /// The owner is gone.
    pub fn forget(&self, owner: &Key) {
        self.0.lock().remove(owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::key_of;
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    fn object(name: &str, version: &str) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.namespace = Some("n".to_owned());
        map.metadata.name = Some(name.to_owned());
        map.metadata.uid = Some(name.to_owned());
        map.metadata.resource_version = Some(version.to_owned());
        map
    }

    #[tokio::test(start_paused = true)]
    async fn holds_until_the_copy_shows_it_or_patience_ends() {
        let (cache, fences, owner) = (Cache::<ConfigMap>::default(), Fences::default(), Key::new("n", "o"));
        assert_eq!(fences.wait(&owner, &cache), None);
        fences.wrote(&owner, &object("a", "5"));
        assert!(fences.wait(&owner, &cache).is_some());
        cache.insert(object("z", "4"));
        assert!(fences.wait(&owner, &cache).is_some());
        cache.insert(object("a", "5"));
        assert_eq!(fences.wait(&owner, &cache), None);

        let mut a = object("a", "6");
        fences.deleted(&owner, &key_of(&a), Some("a"));
        assert!(fences.wait(&owner, &cache).is_some());
        a.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        cache.insert(a);
        assert_eq!(fences.wait(&owner, &cache), None);

        fences.wrote(&owner, &object("a", "99"));
        tokio::time::advance(PATIENCE).await;
        assert_eq!(fences.wait(&owner, &cache), None);
    }
}
