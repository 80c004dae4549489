//! The view: the API's objects as last seen. Events go in, and out comes what they made stale.

use super::Dirt;
use super::followed::{Followed, Found};
use super::references::Which;
use crate::gateway::expose::GATEWAY_LABEL;
use crate::gateway::view::{Gateways, Update as GatewayUpdate};
use crate::route::ObjectKey;
use causeway_api::endpoints::{self, ZONE_LABEL};
use k8s_openapi::api::core::v1::{Node, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::Resource;
use kube::runtime::watcher::Event;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// The type of Secrets with certificates.
pub const TLS: &str = "kubernetes.io/tls";
/// The type of Secrets without a type of their own.
pub const OPAQUE: &str = "Opaque";

/// Objects of one kind. A list that is under way is kept aside until it is complete.
#[derive(Debug)]
pub struct Store<K> {
    current: HashMap<ObjectKey, Arc<K>>,
    listing: HashMap<ObjectKey, Arc<K>>,
    synced: bool,
}

/// What an event changed in a store.
#[derive(Debug)]
pub enum Touch<K> {
    /// Nothing that can be seen.
    Nothing,
    /// One object, before and after.
    One(Option<Arc<K>>, Option<Arc<K>>),
    /// Possibly everything.
    All,
}

/// All objects the ingress looks at.
#[derive(Debug, Default)]
pub struct View {
    /// The node that we are on, and its zone: near endpoints come first where their Service says so.
    pub node: String,
    /// Its zone, when known.
    pub zone: Option<String>,
    /// IngressClasses.
    pub classes: Store<IngressClass>,
    /// Ingresses of every class.
    pub ingresses: Store<Ingress>,
    /// Services.
    pub services: Store<Service>,
    /// Secrets that Ingresses and Gateways refer to.
    pub secrets: Followed<Secret>,
    /// What Gateways need besides.
    pub gateways: Gateways,
    slices: Store<EndpointSlice>,
    by_service: HashMap<ObjectKey, HashMap<ObjectKey, Arc<EndpointSlice>>>,
}

/// An event of any of the kinds.
#[derive(Debug)]
pub enum Update {
    /// Of an IngressClass.
    Class(Event<IngressClass>),
    /// Of an Ingress.
    Ingress(Event<Ingress>),
    /// Of a Service.
    Service(Event<Arc<Service>>),
    /// What was found under the name of a Secret.
    Secret(ObjectKey, Found<Secret>),
    /// Of an EndpointSlice.
    Slice(Event<Arc<EndpointSlice>>),
    /// Of the node we are on.
    Node(Event<Arc<Node>>),
    /// Of a kind that only Gateways need.
    Gateway(Box<GatewayUpdate>),
}

impl Update {
    /// Of a Secret that is there.
    pub fn secret(secret: Secret) -> Self {
        Self::Secret(ObjectKey::of(&secret), Ok(Some(secret)))
    }
}

impl<K> Default for Store<K> {
    fn default() -> Self {
        Self { current: HashMap::new(), listing: HashMap::new(), synced: false }
    }
}

impl<K: Resource> Store<K> {
    /// An object by its key.
    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<K>> {
        self.current.get(key)
    }

    /// Their keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.current.keys()
    }

    /// All of them, in no order.
    pub fn values(&self) -> impl Iterator<Item = &Arc<K>> {
        self.current.values()
    }

    /// The first complete list has been seen.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// Takes an event in, of an object that is shared or our own.
    pub fn handle<O: Into<Arc<K>>>(&mut self, event: Event<O>) -> Touch<K> {
        match event {
            Event::Init => {
                self.listing = HashMap::new();
                Touch::Nothing
            }
            Event::InitApply(object) => {
                let object = object.into();
                self.listing.insert(ObjectKey::of(&*object), object);
                Touch::Nothing
            }
            Event::InitDone => {
                self.current = std::mem::take(&mut self.listing);
                self.synced = true;
                Touch::All
            }
            Event::Apply(object) => {
                let new = object.into();
                Touch::One(self.current.insert(ObjectKey::of(&*new), Arc::clone(&new)), Some(new))
            }
            Event::Delete(object) => match self.current.remove(&ObjectKey::of(&*object.into())) {
                None => Touch::Nothing,
                old => Touch::One(old, None),
            },
        }
    }
}

impl View {
    /// Every kind has been listed completely; of what is followed by name nothing need be known.
    pub fn synced(&self) -> bool {
        self.classes.synced() && self.ingresses.synced() && self.services.synced() && self.slices.synced()
    }

    /// A Secret, `None` when there is none of this type.
    ///
    /// # Errors
    /// Why that is not known.
    pub fn secret(&self, key: &ObjectKey, kind: &str) -> Result<Option<&Arc<Secret>>, &str> {
        Ok(self.secrets.get(key)?.filter(|secret| secret.type_.as_deref() == Some(kind)))
    }

    /// Nobody refers to this object any more.
    pub fn forget(&mut self, which: &Which) {
        match which {
            Which::Secret(key) => self.secrets.forget(key),
            Which::ConfigMap(key) => self.gateways.config_maps.forget(key),
        }
    }

    /// The EndpointSlices of a Service.
    pub fn slices_of(&self, service: &ObjectKey) -> impl Iterator<Item = &EndpointSlice> {
        self.by_service.get(service).into_iter().flat_map(|all| all.values().map(Arc::as_ref))
    }

    /// Takes an event in and says what it made stale.
    pub fn handle(&mut self, update: Update) -> Dirt {
        let routes = |changed: bool| Dirt { routes: changed, fronts: changed, ..Dirt::default() };
        match update {
            Update::Class(event) => {
                let touch = self.classes.handle(event);
                let changed =
                    differs(&touch, |a, b| a.spec == b.spec && a.metadata.annotations == b.metadata.annotations);
                Dirt { routes: changed, ..Dirt::default() }
            }
            Update::Service(event) => {
                let touch = self.services.handle(event);
                // Of Gateways' own Services the address counts too.
                let said = differs(&touch, |a, b| a.status == b.status && a.metadata.labels == b.metadata.labels);
                let same =
                    |a: &Service, b: &Service| a.spec == b.spec && a.metadata.annotations == b.metadata.annotations;
                let dirt = narrowed(&touch, same, |dirt| &mut dirt.backends);
                let services = dirt.backends.clone();
                Dirt { services, fronts: !dirt.is_empty(), front_reports: said, ..dirt }
            }
            Update::Gateway(update) => self.gateways.handle(*update),
            Update::Node(event) => {
                let zone = match event {
                    Event::Apply(node) | Event::InitApply(node) => {
                        node.metadata.labels.as_ref().and_then(|l| l.get(ZONE_LABEL).cloned())
                    }
                    _ => return Dirt::default(),
                };
                let changed = self.zone != zone;
                self.zone = zone;
                routes(changed)
            }
            Update::Secret(key, found) => {
                let same = |a: &Secret, b: &Secret| a.data == b.data && a.type_ == b.type_;
                // Whether Gateways need it is known to who finds out what they need: `References`.
                let secrets = self.secrets.put(key.clone(), found, same).then_some(key).into_iter().collect();
                Dirt { secrets, ..Dirt::default() }
            }
            Update::Ingress(event) => {
                let touch = self.ingresses.handle(event);
                let of = |i: &Ingress| i.metadata.creation_timestamp.clone();
                let same = |a: &Ingress, b: &Ingress| {
                    a.spec == b.spec && a.metadata.annotations == b.metadata.annotations && of(a) == of(b)
                };
                let mut dirt = narrowed(&touch, same, |dirt| &mut dirt.ingresses);
                if dirt.is_empty() {
                    dirt.reports.extend(touched(&touch));
                }
                dirt
            }
            Update::Slice(event) => self.handle_slice(event),
        }
    }

    fn handle_slice(&mut self, event: Event<Arc<EndpointSlice>>) -> Dirt {
        match self.slices.handle(event) {
            Touch::Nothing => Dirt::default(),
            Touch::All => {
                self.by_service.clear();
                for slice in self.slices.current.values() {
                    if let Some(service) = service_of(slice) {
                        self.by_service.entry(service).or_default().insert(ObjectKey::of(&**slice), Arc::clone(slice));
                    }
                }
                Dirt { routes: true, fronts: true, ..Dirt::default() }
            }
            Touch::One(old, new) => {
                let of_gateway =
                    |s: &Arc<EndpointSlice>| s.metadata.labels.as_ref().is_some_and(|l| l.contains_key(GATEWAY_LABEL));
                let front_reports = old.iter().chain(&new).any(of_gateway);
                let mut dirt = Dirt { front_reports, ..Dirt::default() };
                if let Some((slice, service)) = old.and_then(|s| service_of(&s).map(|service| (s, service))) {
                    if let Some(all) = self.by_service.get_mut(&service) {
                        all.remove(&ObjectKey::of(&*slice));
                        if all.is_empty() {
                            self.by_service.remove(&service);
                        }
                    }
                    dirt.services.insert(service);
                }
                if let Some((slice, service)) = new.and_then(|s| service_of(&s).map(|service| (s, service))) {
                    self.by_service.entry(service.clone()).or_default().insert(ObjectKey::of(&*slice), slice);
                    dirt.services.insert(service);
                }
                dirt
            }
        }
    }
}

/// Whether what an event touched is not the same as before.
pub fn differs<K>(touch: &Touch<K>, same: impl Fn(&K, &K) -> bool) -> bool {
    match touch {
        Touch::Nothing => false,
        Touch::All => true,
        Touch::One(Some(old), Some(new)) => !same(old, new),
        Touch::One(..) => true,
    }
}

/// The one object that an event touched.
pub fn touched<K: Resource>(touch: &Touch<K>) -> Option<ObjectKey> {
    match touch {
        Touch::One(old, new) => new.as_ref().or(old.as_ref()).map(|object| ObjectKey::of(&**object)),
        Touch::Nothing | Touch::All => None,
    }
}

/// What is stale for Ingresses: what depends on the one object, put into a `set`, or everything.
fn narrowed<K: Resource>(
    touch: &Touch<K>,
    same: impl Fn(&K, &K) -> bool,
    set: impl FnOnce(&mut Dirt) -> &mut BTreeSet<ObjectKey>,
) -> Dirt {
    let mut dirt = Dirt::default();
    if differs(touch, same) {
        match touched(touch) {
            Some(key) => drop(set(&mut dirt).insert(key)),
            None => dirt.routes = true,
        }
    }
    dirt
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = endpoints::service_name(slice)?;
    Some(ObjectKey::new(slice.metadata.namespace.as_deref().unwrap_or(""), name))
}
