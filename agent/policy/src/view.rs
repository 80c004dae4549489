//! A consistent local view of one kind, reduced to what policies need of it.
//!
//! In: watch events, also whole relists. Out: what has changed, by `namespace/name`.

use kube::runtime::watcher::Event;
use std::collections::HashMap;
use std::sync::Arc;

/// The objects of one kind. A relist is taken over when it is complete.
#[derive(Debug)]
pub struct View<T> {
    objects: HashMap<String, T>,
    listing: Option<HashMap<String, T>>,
    complete: bool,
}

impl<T> Default for View<T> {
    fn default() -> Self {
        Self { objects: HashMap::new(), listing: None, complete: false }
    }
}

impl<T: Clone + PartialEq> View<T> {
    /// What it holds, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &T)> {
        self.objects.iter()
    }

    /// Forgets everything, as if nothing had ever been heard; returns the keys of what was there.
    pub fn clear(&mut self) -> Vec<String> {
        std::mem::take(self).objects.into_keys().collect()
    }

    /// Whether the first list has come to its end. Before, nothing may be programmed.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Takes an event; returns what it changes, and those that are gone without a value.
    pub fn take<K: kube::Resource>(
        &mut self,
        event: Event<Arc<K>>,
        read: impl Fn(&K) -> T,
    ) -> Vec<(String, Option<T>)> {
        match event {
            Event::Init => {
                self.listing = Some(HashMap::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                self.listing.get_or_insert_default().insert(key(&*object), read(&object));
                Vec::new()
            }
            Event::InitDone => {
                self.complete = true;
                let new = self.listing.take().unwrap_or_default();
                let old = std::mem::replace(&mut self.objects, new);
                let gone = old.keys().filter(|k| !self.objects.contains_key(*k)).map(|k| (k.clone(), None));
                let differs = self.objects.iter().filter(|(k, v)| old.get(*k) != Some(*v));
                gone.chain(differs.map(|(k, v)| (k.clone(), Some(v.clone())))).collect()
            }
            Event::Apply(object) => {
                let (key, new) = (key(&*object), read(&object));
                if self.objects.get(&key) == Some(&new) {
                    return Vec::new();
                }
                self.objects.insert(key.clone(), new.clone());
                vec![(key, Some(new))]
            }
            Event::Delete(object) => {
                let key = key(&*object);
                self.objects.remove(&key);
                vec![(key, None)]
            }
        }
    }
}

fn key<K: kube::Resource>(object: &K) -> String {
    let meta = object.meta();
    format!("{}/{}", meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Namespace;
    use serde_json::json;

    #[test]
    fn a_relist_reports_only_differences() {
        let mut view = View::default();
        let ns = |name: &str, value: &str| -> Arc<Namespace> {
            Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "labels": {"a": value}}})).unwrap())
        };
        let mut take = |event| {
            let mut all = view.take(event, |n: &Namespace| n.metadata.labels.clone().unwrap()["a"].clone());
            all.sort();
            (all, view.is_complete())
        };
        let some = |name: &str, value: &str| (format!("/{name}"), Some(value.to_owned()));
        for event in [Event::Init, Event::InitApply(ns("x", "1")), Event::InitApply(ns("y", "1"))] {
            assert_eq!(take(event), (vec![], false));
        }
        assert_eq!(take(Event::InitDone), (vec![some("x", "1"), some("y", "1")], true));
        assert_eq!(take(Event::Apply(ns("x", "1"))).0, []);
        assert_eq!(take(Event::Apply(ns("x", "2"))).0, [some("x", "2")]);
        for event in [Event::Init, Event::InitApply(ns("x", "2")), Event::InitApply(ns("z", "1"))] {
            assert_eq!(take(event).0, []);
        }
        assert_eq!(take(Event::InitDone).0, [("/y".to_owned(), None), some("z", "1")]);
        assert_eq!(take(Event::Delete(ns("z", "1"))).0, [("/z".to_owned(), None)]);
    }
}
