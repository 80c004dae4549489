//! Watches of kinds. In: an [`Api`] and what of it to watch. Out: kube's events ([`Event`]), complete lists first, for ever.
//!
//! The machinery of a watch (list, watch, resume, list anew, wait) is compiled once, for objects that are still text; only
//! the last step, from text to an object, is there for each kind. A generic watcher would be compiled for each kind in each
//! crate: that was a third of the program's code and more of the time to build it. It is no slower either: a watch event of a
//! typed watcher is parsed twice, as the enum that it is comes with its tag in front.
//!
//! How long a watch waits before its next attempt: pauses that double up to a few seconds, with jitter, so that a thousand
//! nodes do not come back in one moment. The bound is what makes a node come back soon after its link does. They begin anew
//! only when a watch has been well for a while: a refused one is asked ever more slowly.
//!
//! An object that cannot be read is an error of its own, told in the log by name; all others come. The API server stores
//! nothing of the kind: it may be of another version of the API. Where to pass over an object would be to allow something,
//! [`strict`] waits for it.

mod pace;

use futures::stream::{BoxStream, Stream, StreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::{DynamicResourceScope, NamespaceResourceScope, PartialObjectMeta};
use kube::runtime::watcher::{Config, Error, Event, Result, watcher};
use kube::{Client, Resource};
use pace::Paced;
use serde::de::{DeserializeOwned, Deserializer};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Watches a kind; never ends, and waits by itself between attempts. An error is told once for each attempt.
pub fn watch<K>(api: Api<K>, config: Config) -> BoxStream<'static, Result<Event<K>>>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Send + 'static,
{
    Box::pin(Objects { texts: texts(api, config), strict: false, kind: PhantomData })
}

/// As [`watch`], for kinds that forbid something: while an object cannot be read, no list is complete, and all is listed anew
/// after a pause. To pass over it would be to allow what it forbids.
pub fn strict<K>(api: Api<K>, config: Config) -> BoxStream<'static, Result<Event<K>>>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Send + 'static,
{
    Box::pin(Objects { texts: texts(api, config), strict: true, kind: PhantomData })
}

fn texts<K: Resource<DynamicType = ()>>(api: Api<K>, config: Config) -> Texts {
    let resource = ApiResource::erase::<K>(&());
    let namespace = api.namespace().map(str::to_owned);
    Texts::new(Source { client: api.into_client(), resource, namespace, config })
}

/// The objects of [`watch`] that are there or have changed; those that are gone are not told.
pub fn applied<K>(api: Api<K>, config: Config) -> BoxStream<'static, Result<K>>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Send + 'static,
{
    let events = watch(api, config).filter_map(|event| async {
        match event {
            Ok(Event::InitApply(object) | Event::Apply(object)) => Some(Ok(object)),
            Ok(Event::Init | Event::InitDone | Event::Delete(_)) => None,
            Err(error) => Some(Err(error)),
        }
    });
    Box::pin(events)
}

/// Watches what all objects have, of a kind known by its names; as [`watch`].
pub fn metadata(
    client: Client,
    kind: &ApiResource,
) -> BoxStream<'static, Result<Event<PartialObjectMeta<DynamicObject>>>> {
    let api = Api::<PartialObjectMeta<DynamicObject>>::all_with(client, kind);
    Box::pin(Paced::new(watcher(api, Config::default()).boxed()))
}

/// Watches one object of `namespace`: what it is now, and each time it has changed; `None` when it is not there.
pub fn one<K>(client: Client, namespace: &str, name: &str) -> BoxStream<'static, Result<Option<K>>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + DeserializeOwned + Send + 'static,
{
    let config = Config::default().fields(&format!("metadata.name={name}"));
    states(watch(Api::<K>::namespaced(client, namespace), config))
}

/// The states of the one object that a watch is about.
pub fn states<K: Send + 'static>(
    events: BoxStream<'static, Result<Event<K>>>,
) -> BoxStream<'static, Result<Option<K>>> {
    let mut listed = None;
    let states = events.filter_map(move |event| {
        let state = match event {
            Ok(Event::Init) => {
                listed = None;
                None
            }
            Ok(Event::InitApply(object)) => {
                listed = Some(object);
                None
            }
            Ok(Event::InitDone) => Some(Ok(listed.take())),
            Ok(Event::Apply(object)) => Some(Ok(Some(object))),
            Ok(Event::Delete(_)) => Some(Ok(None)),
            Err(error) => Some(Err(error)),
        };
        std::future::ready(state)
    });
    states.boxed()
}

/// The same event of what `read` makes of its object.
pub fn map<K, T>(event: Event<K>, read: impl FnOnce(K) -> T) -> Event<T> {
    match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(object) => Event::InitApply(read(object)),
        Event::Apply(object) => Event::Apply(read(object)),
        Event::Delete(object) => Event::Delete(read(object)),
    }
}

/// An object as text, with what a watch needs to know of it.
#[derive(Clone, Debug)]
struct Text {
    meta: ObjectMeta,
    json: Box<RawValue>,
}

/// What is read of every object.
#[derive(Deserialize, Default)]
struct Head {
    #[serde(default)]
    metadata: HeadMeta,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct HeadMeta {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let json = Box::<RawValue>::deserialize(deserializer)?;
        let head: Head = serde_json::from_str(json.get()).map_err(serde::de::Error::custom)?;
        let meta = ObjectMeta { resource_version: head.metadata.resource_version, ..ObjectMeta::default() };
        Ok(Self { meta, json })
    }
}

impl Serialize for Text {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.json.serialize(serializer)
    }
}

impl Resource for Text {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

/// What is watched.
struct Source {
    client: Client,
    resource: ApiResource,
    namespace: Option<String>,
    config: Config,
}

impl Source {
    fn open(&self) -> BoxStream<'static, Result<Event<Text>>> {
        let client = self.client.clone();
        let api = match &self.namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &self.resource),
            None => Api::all_with(client, &self.resource),
        };
        watcher::<Text>(api, self.config.clone()).boxed()
    }
}

/// The watch itself.
struct Texts {
    source: Source,
    paced: Paced<Text>,
}

impl Texts {
    fn new(source: Source) -> Self {
        let paced = Paced::new(source.open());
        Self { source, paced }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Event<Text>>>> {
        let event = ready!(self.paced.poll_next_unpin(context));
        if event.is_none() {
            // kube's watcher does not end; should it, a new one follows.
            self.again();
            return self.poll(context);
        }
        Poll::Ready(event)
    }

    /// Lists anew, after a pause.
    fn again(&mut self) {
        self.paced.events = self.source.open();
        self.paced.wait();
    }
}

/// The same, as objects.
struct Objects<K> {
    texts: Texts,
    /// An object that cannot be read stops all.
    strict: bool,
    kind: PhantomData<fn() -> K>,
}

impl<K: DeserializeOwned> Stream for Objects<K> {
    type Item = Result<Event<K>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(event) = ready!(self.texts.poll(context)) else { return Poll::Ready(None) };
        let event = event.and_then(|event| {
            let (make, text): (fn(K) -> Event<K>, Text) = match event {
                Event::Init => return Ok(Event::Init),
                Event::InitDone => return Ok(Event::InitDone),
                Event::InitApply(text) => (Event::InitApply, text),
                Event::Apply(text) => (Event::Apply, text),
                Event::Delete(text) => (Event::Delete, text),
            };
            read(text.json.get()).map(make).map_err(|error| {
                let Head { metadata, .. } = serde_json::from_str(text.json.get()).unwrap_or_default();
                let kind = &self.texts.source.resource.kind;
                let (namespace, name) = (metadata.namespace.unwrap_or_default(), metadata.name.unwrap_or_default());
                tracing::warn!(kind, namespace, name, %error, "an object cannot be read; correct or delete it");
                if self.strict {
                    self.texts.again();
                }
                Error::WatchFailed(kube::Error::SerdeError(error))
            })
        });
        Poll::Ready(Some(event))
    }
}

/// What nearly every crate watches: said here, so that the code to read these kinds is compiled in this crate and shared by
/// the others (the compiler shares generic code of crates below it where neither is compiled for speed).
pub static COMMON: &[fn(&str) -> bool] = &[
    reads::<ConfigMap>,
    reads::<EndpointSlice>,
    reads::<Lease>,
    reads::<Namespace>,
    reads::<Node>,
    reads::<Pod>,
    reads::<Secret>,
    reads::<Service>,
];

fn reads<K: DeserializeOwned>(text: &str) -> bool {
    serde_json::from_str::<K>(text).is_ok()
}

/// An object from its text. Nulls in maps and lists, which another API server or an older one may have stored, are left out:
/// an object that cannot be read counts as deleted to who lists.
fn read<K: DeserializeOwned>(text: &str) -> serde_json::Result<K> {
    serde_json::from_str(text).or_else(|error| match without_nulls(text) {
        Some(text) => serde_json::from_str(&text),
        None => Err(error),
    })
}

fn without_nulls(text: &str) -> Option<String> {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|_, value| !value.is_null());
                fields.values_mut().for_each(strip);
            }
            Value::Array(items) => {
                items.retain(|item| !item.is_null());
                items.iter_mut().for_each(strip);
            }
            _ => {}
        }
    }
    let mut value: Value = serde_json::from_str(text).ok()?;
    strip(&mut value);
    serde_json::to_string(&value).ok()
}

#[cfg(test)]
mod tests;
