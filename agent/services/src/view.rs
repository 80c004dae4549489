//! A consistent local view of Services and EndpointSlices, and which Services a change touches.
//!
//! In: watch events, also whole relists. Out: the names of Services to look at again.

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::runtime::watcher::Event;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// The objects of one kind, by `namespace/name`. A relist is taken over when it is complete.
#[derive(Debug)]
struct Cache<K> {
    objects: HashMap<String, Arc<K>>,
    listing: Option<HashMap<String, Arc<K>>>,
    complete: bool,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self { objects: HashMap::new(), listing: None, complete: false }
    }
}

/// A key, what was there, and what is.
type Changed<K> = (String, Option<Arc<K>>, Option<Arc<K>>);

impl<K: kube::Resource + PartialEq> Cache<K> {
    /// Returns what has changed.
    fn take(&mut self, event: Event<Arc<K>>) -> Vec<Changed<K>> {
        match event {
            Event::Init => {
                self.listing = Some(HashMap::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                self.listing.get_or_insert_default().insert(key(&*object), object);
                Vec::new()
            }
            Event::InitDone => {
                self.complete = true;
                let new = self.listing.take().unwrap_or_default();
                let mut old = std::mem::replace(&mut self.objects, new);
                let mut changed: Vec<_> = Vec::new();
                for (key, object) in &self.objects {
                    let before = old.remove(key);
                    if before.as_ref() != Some(object) {
                        changed.push((key.clone(), before, Some(object.clone())));
                    }
                }
                changed.extend(old.into_iter().map(|(key, object)| (key, Some(object), None)));
                changed
            }
            Event::Apply(object) => {
                let key = key(&*object);
                let before = self.objects.insert(key.clone(), object.clone());
                vec![(key, before, Some(object))]
            }
            Event::Delete(object) => {
                let key = key(&*object);
                let before = self.objects.remove(&key);
                vec![(key, before, None)]
            }
        }
    }
}

/// All that is known.
#[derive(Debug, Default)]
pub struct View {
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
    /// The keys of a Service's slices.
    of_service: HashMap<String, BTreeSet<String>>,
    dirty: BTreeSet<String>,
}

impl View {
    /// Whether the first list of both kinds has come to its end. Before, nothing may be programmed.
    pub fn is_complete(&self) -> bool {
        self.services.complete && self.slices.complete
    }

    /// Takes an event of Services; returns how many objects it changed.
    pub fn service(&mut self, event: Event<Arc<Service>>) -> usize {
        let changed = self.services.take(event);
        let count = changed.len();
        self.dirty.extend(changed.into_iter().map(|(key, _, _)| key));
        count
    }

    /// Takes an event of EndpointSlices; returns the changed ones that are there.
    pub fn slice(&mut self, event: Event<Arc<EndpointSlice>>) -> Vec<Arc<EndpointSlice>> {
        let mut present = Vec::new();
        for (key, old, new) in self.slices.take(event) {
            for (slice, is_there) in old.iter().map(|s| (s, false)).chain(new.iter().map(|s| (s, true))) {
                let Some(service) = service_key(slice) else { continue };
                let keys = self.of_service.entry(service.clone()).or_default();
                if is_there {
                    keys.insert(key.clone());
                } else {
                    keys.remove(&key);
                }
                if keys.is_empty() {
                    self.of_service.remove(&service);
                }
                self.dirty.insert(service);
            }
            present.extend(new);
        }
        present
    }

    /// Marks all Services for another look.
    pub fn touch_all(&mut self) {
        self.dirty.extend(self.services.objects.keys().cloned());
    }

    /// The Services to look at, once each, with their slices; those that are gone without.
    pub fn take_dirty(&mut self) -> BTreeMap<String, Option<(&Service, Vec<&EndpointSlice>)>> {
        let dirty = std::mem::take(&mut self.dirty);
        let look = |key: &String| {
            let service = self.services.objects.get(key)?;
            let keys = self.of_service.get(key).into_iter().flatten();
            Some((&**service, keys.filter_map(|k| self.slices.objects.get(k).map(|s| &**s)).collect()))
        };
        dirty.into_iter().map(|key| (key.clone(), look(&key))).collect()
    }
}

fn key<K: kube::Resource>(object: &K) -> String {
    let meta = object.meta();
    format!("{}/{}", meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""))
}

fn service_key(slice: &EndpointSlice) -> Option<String> {
    let service = causeway_api::endpoints::service_name(slice)?;
    Some(format!("{}/{service}", slice.metadata.namespace.as_deref().unwrap_or("")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(name: &str) -> Arc<Service> {
        Arc::new(serde_json::from_value(json!({"metadata": {"namespace": "d", "name": name}})).unwrap())
    }

    fn slice(name: &str, of: &str) -> Arc<EndpointSlice> {
        let object = json!({"metadata": {"namespace": "d", "name": name, "labels": {"kubernetes.io/service-name": of}},
            "addressType": "IPv4", "endpoints": []});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn dirty(view: &mut View) -> Vec<(String, Option<usize>)> {
        view.take_dirty().into_iter().map(|(k, v)| (k, v.map(|(_, slices)| slices.len()))).collect()
    }

    #[test]
    fn a_relist_finds_what_was_missed() {
        let mut v = View::default();
        for e in [Event::Init, Event::InitApply(service("a")), Event::InitApply(service("b")), Event::InitDone] {
            v.service(e);
        }
        assert!(!v.is_complete());
        for e in [Event::Init, Event::InitApply(slice("a-1", "a")), Event::InitDone] {
            v.slice(e);
        }
        assert!(v.is_complete());
        assert_eq!(dirty(&mut v), [("d/a".into(), Some(1)), ("d/b".into(), Some(0))]);
        v.slice(Event::Apply(slice("a-2", "a")));
        v.slice(Event::Apply(slice("a-1", "b")));
        assert_eq!(dirty(&mut v), [("d/a".into(), Some(1)), ("d/b".into(), Some(1))]);
        // While a new list comes in, the old one counts; then what is gone is gone.
        v.service(Event::Init);
        v.service(Event::InitApply(service("a")));
        assert_eq!(dirty(&mut v), []);
        v.service(Event::InitDone);
        assert_eq!(dirty(&mut v), [("d/b".into(), None)]);
    }
}
