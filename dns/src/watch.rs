//! From the API to the zone. Two watches; a change of a Service or a slice works the records of that one service out
//! again. The zone is complete once both first lists are in; until then nothing is removed from what a snapshot held.

use crate::model::{self, Key};
use crate::zone::Zone;
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

type Events<K> = Pin<Box<dyn Stream<Item = watcher::Result<watcher::Event<K>>> + Send>>;

/// What the API says, as far as names depend on it.
#[derive(Default)]
pub(crate) struct View {
    services: HashMap<Key, Arc<Service>>,
    slices: HashMap<Key, BTreeMap<String, Arc<EndpointSlice>>>,
    /// Which service a slice belonged to when last seen.
    owners: HashMap<Key, Key>,
}

/// What one step of a watch means.
enum Step<K> {
    Set(K),
    Remove(K),
    /// The list is complete: everything not seen in it is gone.
    Complete(HashSet<Key>),
}

/// Follows a watch, collecting which keys a list brought.
struct Follow<K> {
    events: Events<K>,
    seen: HashSet<Key>,
}

impl<K> Follow<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    fn new(client: &Client) -> Self {
        let events = watcher(Api::<K>::all(client.clone()), watcher::Config::default()).default_backoff();
        Self { events: Box::pin(events), seen: HashSet::new() }
    }

    async fn next(&mut self) -> Option<Step<K>> {
        loop {
            match self.events.next().await? {
                Ok(watcher::Event::Init) => self.seen.clear(),
                Ok(watcher::Event::InitApply(object)) => {
                    self.seen.insert(key_of(&object));
                    return Some(Step::Set(object));
                }
                Ok(watcher::Event::Apply(object)) => return Some(Step::Set(object)),
                Ok(watcher::Event::InitDone) => return Some(Step::Complete(std::mem::take(&mut self.seen))),
                Ok(watcher::Event::Delete(object)) => return Some(Step::Remove(object)),
                Err(error) => tracing::debug!(%error, kind = %K::kind(&()), "watch interrupted; the zone stays"),
            }
        }
    }
}

fn key_of<K: ResourceExt>(object: &K) -> Key {
    Key { namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
}

/// Keeps the zone up to date until `shutdown`. `synced` is called once, when the zone is first complete, and `changed`
/// after every change.
pub(crate) async fn run(
    client: &Client,
    zone: &Zone,
    mut synced: impl FnMut(),
    mut changed: impl FnMut(),
    shutdown: &CancellationToken,
) {
    let mut services = Follow::<Service>::new(client);
    let mut slices = Follow::<EndpointSlice>::new(client);
    let mut view = View::default();
    let (mut have_services, mut have_slices) = (false, false);
    loop {
        let complete_before = have_services && have_slices;
        let touched = tokio::select! {
            () = shutdown.cancelled() => return,
            step = services.next() => match step {
                Some(step) => {
                    have_services |= matches!(step, Step::Complete(_));
                    view.service(step)
                }
                None => return,
            },
            step = slices.next() => match step {
                Some(step) => {
                    have_slices |= matches!(step, Step::Complete(_));
                    view.slice(step)
                }
                None => return,
            },
        };
        if !(have_services && have_slices) {
            continue;
        }
        if complete_before {
            let any = touched.iter().fold(false, |any, key| zone.set(key, view.records(key)) || any);
            if any {
                changed();
            }
        } else {
            view.replace(zone);
            synced();
            changed();
        }
    }
}

impl View {
    fn records(&self, key: &Key) -> Option<model::Records> {
        let service = self.services.get(key)?;
        let slices: Vec<&Arc<EndpointSlice>> = self.slices.get(key).into_iter().flat_map(BTreeMap::values).collect();
        let slices: Vec<Arc<EndpointSlice>> = slices.into_iter().cloned().collect();
        model::records(service, &slices)
    }

    /// Makes the zone what the view is, whatever it held.
    fn replace(&self, zone: &Zone) {
        for (key, _) in zone.all() {
            if !self.services.contains_key(&key) {
                zone.set(&key, None);
            }
        }
        for key in self.services.keys() {
            zone.set(key, self.records(key));
        }
    }

    fn service(&mut self, step: Step<Service>) -> Vec<Key> {
        match step {
            Step::Set(service) => {
                let key = key_of(&service);
                self.services.insert(key.clone(), Arc::new(service));
                vec![key]
            }
            Step::Remove(service) => {
                let key = key_of(&service);
                self.services.remove(&key);
                vec![key]
            }
            Step::Complete(seen) => {
                let gone: Vec<Key> = self.services.keys().filter(|k| !seen.contains(k)).cloned().collect();
                gone.iter().for_each(|k| drop(self.services.remove(k)));
                gone
            }
        }
    }

    fn slice(&mut self, step: Step<EndpointSlice>) -> Vec<Key> {
        match step {
            Step::Set(slice) => {
                let key = key_of(&slice);
                let owner = causeway_api::endpoints::service_name(&slice)
                    .map(|name| Key { namespace: key.namespace.clone(), name: name.to_owned() });
                let mut touched = Vec::new();
                if self.owners.get(&key) != owner.as_ref() {
                    touched.extend(self.forget_slice(&key));
                }
                if let Some(owner) = owner {
                    self.owners.insert(key.clone(), owner.clone());
                    self.slices.entry(owner.clone()).or_default().insert(key.name, Arc::new(slice));
                    touched.push(owner);
                }
                touched
            }
            Step::Remove(slice) => self.forget_slice(&key_of(&slice)).into_iter().collect(),
            Step::Complete(seen) => {
                let gone: Vec<Key> = self.owners.keys().filter(|k| !seen.contains(k)).cloned().collect();
                gone.iter().filter_map(|k| self.forget_slice(k)).collect()
            }
        }
    }

    fn forget_slice(&mut self, key: &Key) -> Option<Key> {
        let owner = self.owners.remove(key)?;
        if let Some(slices) = self.slices.get_mut(&owner) {
            slices.remove(&key.name);
            if slices.is_empty() {
                self.slices.remove(&owner);
            }
        }
        Some(owner)
    }
}
