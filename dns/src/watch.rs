//! From the API to the zone. Three watches; a change of a Service or a slice works the records of that one service out
//! again. The zone is complete once all first lists are in; until then nothing is removed from what a snapshot held. A
//! fourth watch, of pods, runs while settings want it.

use crate::metrics::Metrics;
use crate::model::{self, Key, ServicePart, SlicePart};
use crate::pods::{PodPart, Pods};
use crate::reload::PodsWanted;
use crate::zone::Zone;
use anyhow::{Result, bail};
use causeway_informers::{Informer, Informers, Kind};
use futures::stream::{BoxStream, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::watcher::Event;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// When the pods behind a slice changed, as the controller of slices says.
const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Events of a kind's copy.
type Events<K> = BoxStream<'static, Event<Arc<K>>>;

/// What the API says, as far as names depend on it.
#[derive(Default)]
pub(crate) struct View {
    services: HashMap<Key, ServicePart>,
    slices: HashMap<Key, BTreeMap<Box<str>, SlicePart>>,
    /// Which service a slice belonged to when last seen.
    owners: HashMap<Key, Key>,
    namespaces: HashSet<Box<str>>,
}

/// What one step of a watch means.
enum Step<K> {
    Set(Arc<K>),
    Remove(Arc<K>),
    /// The list is complete: everything not seen in it is gone.
    Complete(HashSet<Key>),
}

/// Follows a watch, collecting which keys a list brought.
struct Follow<K> {
    events: Events<K>,
    seen: HashSet<Key>,
}

impl<K: Kind> Follow<K> {
    fn new(copy: &Informer<K>) -> Self {
        Self { events: copy.subscribe().boxed(), seen: HashSet::new() }
    }

    async fn next(&mut self) -> Option<Step<K>> {
        loop {
            match self.events.next().await? {
                Event::Init => self.seen.clear(),
                Event::InitApply(object) => {
                    self.seen.insert(key_of(&*object));
                    return Some(Step::Set(object));
                }
                Event::Apply(object) => return Some(Step::Set(object)),
                Event::InitDone => return Some(Step::Complete(std::mem::take(&mut self.seen))),
                Event::Delete(object) => return Some(Step::Remove(object)),
            }
        }
    }
}

fn key_of<K: ResourceExt>(object: &K) -> Key {
    Key { namespace: object.namespace().unwrap_or_default().into(), name: object.name_any().into() }
}

/// Keeps the zone up to date until `shutdown`. `synced` is called once, when the zone is first complete, and `changed`
/// after every change.
pub(crate) async fn run(
    informers: &Informers,
    zone: &Zone,
    metrics: &Metrics,
    mut synced: impl FnMut(),
    mut changed: impl FnMut(),
    shutdown: &CancellationToken,
) -> Result<()> {
    let mut services = Follow::new(&informers.services());
    let mut slices = Follow::new(&informers.slices());
    let mut namespaces = Follow::new(&informers.namespaces());
    let mut view = View::default();
    let mut have = [false; 3];
    loop {
        let complete_before = have == [true; 3];
        let mut triggered = None;
        let touched = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            step = services.next() => match step {
                Some(step) => {
                    have[0] |= matches!(step, Step::Complete(_));
                    view.service(step)
                }
                None => bail!("a watch for DNS ended by itself"),
            },
            step = slices.next() => match step {
                Some(step) => {
                    have[1] |= matches!(step, Step::Complete(_));
                    triggered = complete_before.then(|| triggered_at(&step)).flatten();
                    view.slice(step)
                }
                None => bail!("a watch for DNS ended by itself"),
            },
            step = namespaces.next() => match step {
                Some(step) => {
                    have[2] |= matches!(step, Step::Complete(_));
                    view.namespace(step);
                    if complete_before && zone.set_namespaces(view.namespaces.clone()) {
                        changed();
                    }
                    Vec::new()
                }
                None => bail!("a watch for DNS ended by itself"),
            },
        };
        if have != [true; 3] {
            continue;
        }
        if complete_before {
            let mut any = false;
            for key in &touched {
                any |= zone.set(key, view.records(key));
                programmed(metrics, view.services.get(key), triggered);
            }
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

fn triggered_at(step: &Step<EndpointSlice>) -> Option<Timestamp> {
    let Step::Set(slice) = step else { return None };
    slice.metadata.annotations.as_ref()?.get(TRIGGERED)?.parse().ok()
}

/// As CoreDNS, only headless services are counted: the names of others do not change with their endpoints.
fn programmed(metrics: &Metrics, service: Option<&ServicePart>, triggered: Option<Timestamp>) {
    if let (Some(ServicePart::Headless(_)), Some(at)) = (service, triggered)
        && let Ok(took) = Duration::try_from(Timestamp::now().duration_since(at))
    {
        metrics.programming.with_label_values(&["headless_with_selector"]).observe(took.as_secs_f64());
    }
}

/// Follows the pods that settings want, until `shutdown`.
pub(crate) async fn pods(
    informers: Informers,
    node: String,
    pods: Arc<Pods>,
    mut wanted: tokio::sync::watch::Receiver<PodsWanted>,
    shutdown: CancellationToken,
) {
    loop {
        let now = *wanted.borrow_and_update();
        let copy = match now {
            PodsWanted::None => None,
            PodsWanted::OfNode => Some(informers.pods_of(&node)),
            PodsWanted::All => Some(informers.pods()),
        };
        let follow = async {
            match copy {
                None => {
                    pods.clear();
                    std::future::pending().await
                }
                Some(copy) => follow_pods(Follow::new(&copy), &pods).await,
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        // Settings that want the same pods change nothing here.
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = follow => tracing::debug!("the watch of pods for DNS ended; it begins anew"),
            changed = wanted.wait_for(|w| *w != now) => if changed.is_err() { return },
        }
    }
}

async fn follow_pods(mut follow: Follow<Pod>, pods: &Pods) {
    while let Some(step) = follow.next().await {
        match step {
            Step::Set(pod) => pods.set(PodPart::from(&*pod)),
            Step::Remove(pod) => pods.remove(&key_of(&*pod)),
            Step::Complete(seen) => pods.retain(&seen),
        }
    }
}

impl View {
    fn records(&self, key: &Key) -> Option<model::Records> {
        model::records(self.services.get(key)?, self.slices.get(key).into_iter().flat_map(BTreeMap::values))
    }

    /// Makes the zone what the view is, whatever it held.
    fn replace(&self, zone: &Zone) {
        for key in zone.keys() {
            if !self.services.contains_key(&key) {
                zone.set(&key, None);
            }
        }
        for key in self.services.keys() {
            zone.set(key, self.records(key));
        }
        zone.set_namespaces(self.namespaces.clone());
    }

    fn namespace(&mut self, step: Step<Namespace>) {
        match step {
            Step::Set(namespace) => drop(self.namespaces.insert(namespace.name_any().into())),
            Step::Remove(namespace) => drop(self.namespaces.remove(namespace.name_any().as_str())),
            Step::Complete(seen) => self.namespaces = seen.into_iter().map(|key| key.name).collect(),
        }
    }

    fn service(&mut self, step: Step<Service>) -> Vec<Key> {
        match step {
            Step::Set(service) => {
                let key = key_of(&*service);
                self.services.insert(key.clone(), ServicePart::from(&*service));
                vec![key]
            }
            Step::Remove(service) => {
                let key = key_of(&*service);
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
                let key = key_of(&*slice);
                let owner = causeway_api::endpoints::service_name(&slice)
                    .map(|name| Key { namespace: key.namespace.clone(), name: name.into() });
                let mut touched = Vec::new();
                if self.owners.get(&key) != owner.as_ref() {
                    touched.extend(self.forget_slice(&key));
                }
                if let Some(owner) = owner {
                    self.owners.insert(key.clone(), owner.clone());
                    self.slices.entry(owner.clone()).or_default().insert(key.name, SlicePart::from(&*slice));
                    touched.push(owner);
                }
                touched
            }
            Step::Remove(slice) => self.forget_slice(&key_of(&*slice)).into_iter().collect(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(name: &str) -> Arc<Service> {
        let value = json!({ "metadata": { "name": name, "namespace": "n" },
            "spec": { "clusterIP": "None", "clusterIPs": ["None"] } });
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn slice(name: &str, owner: &str, ip: &str) -> Arc<EndpointSlice> {
        let value = json!({ "addressType": "IPv4", "endpoints": [{ "addresses": [ip] }],
            "metadata": { "name": name, "namespace": "n", "labels": { "kubernetes.io/service-name": owner } } });
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn key(name: &str) -> Key {
        Key { namespace: "n".into(), name: name.into() }
    }

    fn labels(view: &View, name: &str) -> Option<Vec<String>> {
        match view.records(&key(name))? {
            model::Records::Headless { endpoints } => Some(endpoints.iter().map(|e| e.label.to_string()).collect()),
            other => panic!("{other:?}"),
        }
    }

    /// Feeds a list as the watcher reports it.
    async fn list<K: Kind>(objects: Vec<Arc<K>>) -> Follow<K> {
        let begin = std::iter::once(Event::Init);
        let each = objects.into_iter().map(Event::InitApply);
        let events: Vec<_> = begin.chain(each).chain([Event::InitDone]).collect();
        Follow { events: Box::pin(futures::stream::iter(events)), seen: HashSet::new() }
    }

    #[tokio::test]
    async fn what_went_while_the_watch_was_down_goes_with_the_next_list() {
        let mut view = View::default();
        let mut follow = list(vec![service("a"), service("b")]).await;
        while let Some(step) = follow.next().await {
            view.service(step);
        }
        let mut follow = list(vec![slice("a-1", "a", "10.0.0.1"), slice("a-2", "a", "10.0.0.2")]).await;
        while let Some(step) = follow.next().await {
            view.slice(step);
        }
        assert_eq!(labels(&view, "a").unwrap(), ["10-0-0-1", "10-0-0-2"]);
        assert_eq!(labels(&view, "b").unwrap().len(), 0);

        // Meanwhile b went, slice a-1 went, and a-2 became another service's.
        let mut touched = HashSet::new();
        let mut follow = list(vec![service("a"), service("c")]).await;
        while let Some(step) = follow.next().await {
            touched.extend(view.service(step));
        }
        let mut follow = list(vec![slice("a-2", "c", "10.0.0.2")]).await;
        while let Some(step) = follow.next().await {
            touched.extend(view.slice(step));
        }
        assert_eq!(touched, HashSet::from([key("a"), key("b"), key("c")]));
        assert_eq!(labels(&view, "a").unwrap().len(), 0);
        assert_eq!(labels(&view, "b"), None);
        assert_eq!(labels(&view, "c").unwrap(), ["10-0-0-2"]);
    }

    #[tokio::test]
    async fn a_list_that_broke_off_removes_nothing() {
        let mut view = View::default();
        let mut follow = list(vec![service("a"), service("b")]).await;
        while let Some(step) = follow.next().await {
            view.service(step);
        }
        let broken = vec![
            Event::Init,
            Event::InitApply(service("b")),
            Event::Init,
            Event::InitApply(service("a")),
            Event::InitDone,
        ];
        let mut follow = Follow { events: Box::pin(futures::stream::iter(broken)), seen: HashSet::new() };
        view.service(follow.next().await.unwrap());
        assert!(view.records(&key("a")).is_some());
        while let Some(step) = follow.next().await {
            view.service(step);
        }
        // The second list had a alone.
        assert!(view.records(&key("a")).is_some() && view.records(&key("b")).is_none());
    }

    #[test]
    fn the_first_complete_view_replaces_a_snapshot() {
        let zone = Zone::new("cluster.local", vec![], Arc::default()).unwrap();
        let old = model::Records::External { target: "x.example".into() };
        zone.set(&key("gone"), Some(old.clone()));
        zone.set(&key("a"), Some(old));
        let mut view = View::default();
        view.service(Step::Set(service("a")));
        view.slice(Step::Set(slice("a-1", "a", "10.0.0.1")));
        view.replace(&zone);
        zone.read(|services, _| assert_eq!(services, [(&key("a"), &view.records(&key("a")).unwrap())]));
    }
}
