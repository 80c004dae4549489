//! Objects by name. In: a name. Out: what the API has under it, each time that is another, and nothing but that object is
//! ever asked for. Of a Secret or ConfigMap only those parts are kept that are served.

use super::asked::AUTH_KEY;
use super::certs::{CERTIFICATE, KEY};
use super::followed::Found;
use super::references::Which;
use super::staple::STAPLE;
use super::view::{OPAQUE, TLS, Update};
use crate::gateway::refs::CA_KEY;
use crate::gateway::view::Update as GatewayUpdate;
use crate::route::ObjectKey;
use causeway_api::watch::{states, strict};
use futures::stream::{self, BoxStream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::ObjectMeta;
use kube::runtime::watcher::Config;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// After this time, or up to twice of it, the server ends a watch and it is opened again. Long, as there may be hundreds.
const WATCH_SECONDS: u32 = 1800;
/// How often an object is asked for that is not watched, or up to twice of that.
const ASK: Duration = Duration::from_secs(60);
/// The same, after a failure.
const ASK_AGAIN: Duration = Duration::from_secs(4);
/// So many are asked for at the same time.
const ASKED_AT_ONCE: usize = 8;

/// How an object is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// By a watch of its own.
    Watched,
    /// By asking now and then.
    Asked,
}

/// Where followed objects come from.
#[derive(Clone)]
pub struct Named {
    client: Client,
    asks: Arc<Semaphore>,
}

impl Named {
    /// Read through `client`.
    pub fn new(client: Client) -> Self {
        Self { client, asks: Arc::new(Semaphore::new(ASKED_AT_ONCE)) }
    }

    /// What an object is, and each time it has changed. Begins anew by itself, with pauses; does not end.
    pub fn updates(&self, which: &Which, how: How) -> BoxStream<'static, Update> {
        match which.clone() {
            Which::Secret(key) => {
                let found = self.found::<Secret>(&key, how);
                found.map(move |found| Update::Secret(key.clone(), found.map(|o| o.map(served_secret)))).boxed()
            }
            Which::ConfigMap(key) => {
                let found = self.found::<ConfigMap>(&key, how);
                let wrap = move |found: Found<ConfigMap>| {
                    GatewayUpdate::ConfigMap(key.clone(), found.map(|o| o.map(served_config_map)))
                };
                found.map(move |found| Update::Gateway(Box::new(wrap(found)))).boxed()
            }
        }
    }

    fn found<K>(&self, key: &ObjectKey, how: How) -> BoxStream<'static, Found<K>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        let api = Api::<K>::namespaced(self.client.clone(), &key.namespace);
        match how {
            How::Watched => watched(api, &key.name),
            How::Asked => asked(api, key.name.to_string(), Arc::clone(&self.asks)),
        }
    }
}

fn failed(error: &dyn std::fmt::Display) -> String {
    format!("it cannot be read: {error}")
}

fn watched<K>(api: Api<K>, name: &str) -> BoxStream<'static, Found<K>>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Send + 'static,
{
    let seconds = rand::random_range(WATCH_SECONDS..=2 * WATCH_SECONDS);
    // Bookmarks save a list when a watch is opened again. For watches of single objects they would be more than the rest.
    let config = Config::default().fields(&format!("metadata.name={name}")).timeout(seconds).disable_bookmarks();
    // Strict: an object that cannot be read is not one that is gone.
    states(strict(api, config)).map(|state| state.map_err(|error| failed(&error))).boxed()
}

fn asked<K>(api: Api<K>, name: String, asks: Arc<Semaphore>) -> BoxStream<'static, Found<K>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let found = stream::unfold(Duration::ZERO, move |pause| {
        let (api, name, asks) = (api.clone(), name.clone(), Arc::clone(&asks));
        async move {
            tokio::time::sleep(pause).await;
            let _turn = asks.acquire().await.ok()?;
            let found = api.get_opt(&name).await.map_err(|error| failed(&error));
            let pause = if found.is_ok() { ASK } else { ASK_AGAIN };
            // So that those who came together do not come together for ever.
            Some((found, pause.mul_f64(rand::random_range(1.0..2.0))))
        }
    });
    found.boxed()
}

/// Name and labels: an annotation may have all of the object in it once more.
fn served_meta(meta: ObjectMeta) -> ObjectMeta {
    ObjectMeta { name: meta.name, namespace: meta.namespace, labels: meta.labels, ..ObjectMeta::default() }
}

fn served_secret(mut secret: Secret) -> Secret {
    let keys: &[&str] = match secret.type_.as_deref() {
        Some(TLS) => &[CERTIFICATE, KEY, STAPLE],
        Some(OPAQUE) => &[AUTH_KEY],
        _ => &[],
    };
    if let Some(data) = &mut secret.data {
        data.retain(|key, _| keys.contains(&key.as_str()));
    }
    secret.string_data = None;
    secret.metadata = served_meta(secret.metadata);
    secret
}

fn served_config_map(mut map: ConfigMap) -> ConfigMap {
    map.binary_data = None;
    if let Some(data) = &mut map.data {
        data.retain(|key, _| key == CA_KEY);
    }
    map.metadata = served_meta(map.metadata);
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_is_served_is_kept() {
        let kept = |kind: &str| {
            let data = json!({"tls.crt": "", "tls.key": "", "auth": "", "password": ""});
            let object = json!({"type": kind, "data": data, "metadata": {"name": "s", "namespace": "n",
                "labels": {"a": "b"}, "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "all"}}});
            let secret = served_secret(serde_json::from_value(object).unwrap());
            assert!(secret.metadata.annotations.is_none() && secret.metadata.labels.is_some());
            secret.data.unwrap().into_keys().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            (kept(TLS).as_str(), kept(OPAQUE).as_str(), kept("other").as_str()),
            ("tls.crt tls.key", "auth", "")
        );
        let map = json!({"metadata": {"name": "m"}, "data": {"ca.crt": "", "other": ""}, "binaryData": {"b": ""}});
        let map = served_config_map(serde_json::from_value(map).unwrap());
        assert_eq!(
            (map.data.unwrap().into_keys().collect::<Vec<_>>(), map.binary_data),
            (vec!["ca.crt".to_owned()], None)
        );
    }
}
