//! Shared informers: one watch and one copy of a kind for all components of a process.
//!
//! In: a client, with the name under which the copies are read. Out: [`Informer`]s, each the copy of one kind; what has
//! changed comes by [`Informer::subscribe`], in the events of kube's watchers.
//!
//! ```text
//!  API ── watch ──> decode, slim ──> store (one a kind) ──┬──> Subscription of kube-proxy
//!                                                         ├──> Subscription of DNS
//!                                                         └──> get, all
//! ```
//!
//! What holds for every subscription:
//! - It begins with a complete list: `Init`, one `InitApply` an object, `InitDone`. The list is the state of one moment, and
//!   every change after that moment follows, in order.
//! - It holds a bounded number of changes ([`BACKLOG`]). Who falls behind gets a complete list again, as after a relist.
//! - Losing any event of the API is safe: a relist of the watch comes out as the differences that it makes. An object that
//!   has gone is told as deleted, also when another has its name by then.
//! - [`Informer::get`] is never older than what a subscription told last.
//!
//! A watch begins with the first [`Informer`] of its kind and ends with the last. Kinds that not everybody may read (Secrets)
//! have no place here: who serves some of them watches those under its own name. The machinery is compiled once, for objects
//! whose type is not known; the type is named at both ends only.

mod slim;
mod store;
mod subscription;

use causeway_api::watch;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::{Config, Event};
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use std::any::TypeId;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::{Arc, Weak};
use store::{Item, Key, Object, Store};

pub use store::BACKLOG;
pub use subscription::{Selected, Subscription};

/// A kind that can be shared.
pub trait Kind: Resource<DynamicType = ()> + DeserializeOwned + PartialEq + Send + Sync + 'static {}
impl<K: Resource<DynamicType = ()> + DeserializeOwned + PartialEq + Send + Sync + 'static> Kind for K {}

/// The informers of a process (or of one node of a process that holds several). Cheap to clone.
#[derive(Clone)]
pub struct Informers(Arc<Process>);

struct Process {
    client: Client,
    /// By kind, and by what of it and how much of each object.
    stores: Mutex<HashMap<(TypeId, String), Weak<Store>>>,
}

impl Informers {
    /// Watches will be made with this client, on the runtime of whoever is first to ask for a kind.
    pub fn new(client: Client) -> Self {
        Self(Arc::new(Process { client, stores: Mutex::default() }))
    }

    /// All objects of a kind, as they are but for their managed fields.
    pub fn all<K: Kind>(&self) -> Informer<K> {
        self.selected("whole", "", |_| {})
    }

    /// All Pods, without what only their kubelet needs (commands, environment, probes, mounts).
    pub fn pods(&self) -> Informer<Pod> {
        self.selected("slim", "", slim::pod)
    }

    /// The Pods bound to a node, whole.
    pub fn pods_of(&self, node: &str) -> Informer<Pod> {
        self.selected("whole", &format!("spec.nodeName={node}"), |_| {})
    }

    /// All Nodes, without the images that they have.
    pub fn nodes(&self) -> Informer<Node> {
        self.selected("slim", "", slim::node)
    }

    /// All Services, without what `kubectl apply` was given.
    pub fn services(&self) -> Informer<Service> {
        self.selected("slim", "", slim::service)
    }

    /// All EndpointSlices, without the Pods' names: for data planes.
    pub fn slices(&self) -> Informer<EndpointSlice> {
        self.selected("slim", "", slim::slice)
    }

    /// All Namespaces.
    pub fn namespaces(&self) -> Informer<Namespace> {
        self.all()
    }

    fn selected<K: Kind>(&self, form: &str, fields: &str, slim: fn(&mut K)) -> Informer<K> {
        let mut stores = self.0.stores.lock();
        stores.retain(|_, store| store.strong_count() > 0);
        let key = (TypeId::of::<K>(), format!("{form} {fields}"));
        if let Some(store) = stores.get(&key).and_then(Weak::upgrade).filter(|s| !s.has_ended()) {
            return Informer::of(store);
        }
        let config = if fields.is_empty() { Config::default() } else { Config::default().fields(fields) };
        let events = watch::watch(Api::<K>::all(self.0.client.clone()), config);
        let items = events.map(move |event| event.map(|event| erase(event, slim)));
        let store = Store::start(K::kind(&()).into_owned(), items.boxed());
        stores.insert(key, Arc::downgrade(&store));
        Informer::of(store)
    }
}

/// Forgets the type of an event's object.
fn erase<K: Kind>(event: Event<K>, slim: fn(&mut K)) -> Event<Item> {
    let item = |mut object: K| {
        object.meta_mut().managed_fields = None;
        slim(&mut object);
        let meta = object.meta();
        let (uid, version) = (meta.uid.clone(), meta.resource_version.clone());
        Item { key: Key::of(&object), uid, version, equal: equal::<K>, object: Arc::new(object) }
    };
    watch::map(event, item)
}

fn equal<K: Kind>(one: &Object, other: &Object) -> bool {
    one.downcast_ref::<K>() == other.downcast_ref::<K>()
}

/// The copy of a kind. Cheap to clone; the watch runs as long as there is one, or a subscription.
pub struct Informer<K> {
    store: Arc<Store>,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), kind: PhantomData }
    }
}

impl<K: Kind> Informer<K> {
    fn of(store: Arc<Store>) -> Self {
        Self { store, kind: PhantomData }
    }

    /// What is there and what changes from now on.
    pub fn subscribe(&self) -> Subscription<K> {
        Subscription::new(self.store.clone())
    }

    /// As [`Self::subscribe`], of the objects that `keep` is true for. One that becomes another's counts as deleted.
    pub fn subscribe_where(&self, keep: impl Fn(&K) -> bool + Send + 'static) -> Selected<K> {
        Selected::new(self.subscribe(), Box::new(keep))
    }

    /// As [`Self::subscribe`], of the objects of this name: of a cluster-wide kind, one.
    pub fn subscribe_to(&self, name: &str) -> Selected<K> {
        let name = name.to_owned();
        self.subscribe_where(move |object| object.meta().name.as_deref() == Some(&name))
    }

    /// An object, as the watch told last; of a cluster-wide kind, `namespace` is empty.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.store.get(&Key::new(namespace, name))?.downcast().ok()
    }

    /// All objects, by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.store.list().into_iter().filter_map(|object| object.downcast().ok()).collect()
    }

    /// Waits until the first complete list is in; false when the watch ended before.
    pub async fn synced(&self) -> bool {
        self.store.synced().await
    }
}

#[cfg(test)]
mod tests;
