//! Where followed objects come from. In: a name. Out: the object of this name, once or each time it has changed. Nothing but
//! the named object is ever asked for.

use super::Kind;
use causeway_api::watch::{states, strict};
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use kube::runtime::watcher::{Config, Error};
use kube::{Api, Client};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Watches at one time, of all kinds together. All of a node's requests share one connection, on which the API server allows
/// so many streams and no more (`max_concurrent_streams` in `apiserver/src/front/tls.rs`): the lease has to find room beside
/// them. 110 pods with a dozen objects each stay below; what is beyond is asked for now and then.
const MOST_WATCHES: usize = 1500;
/// How often that is.
const ASK: Duration = Duration::from_secs(60);
/// The same, after a failure.
const ASK_AGAIN: Duration = Duration::from_secs(4);
/// After this time, or up to twice of it, the server ends a watch and it is opened again. Long, as a full node has hundreds;
/// that a connection is cut is noticed by its pings.
const WATCH_SECONDS: u32 = 1800;

/// An object, `None` when there is none.
pub type Found<K> = Result<Option<K>, String>;

/// The API, or a test's hand.
pub trait Source<K>: Send + Sync {
    /// What the object is now, and each time it has changed; an error for each attempt that failed. Begins anew by itself,
    /// with a pause.
    fn states(&self, namespace: &str, name: &str) -> BoxStream<'static, Found<K>>;
    /// What the object is now.
    fn get(&self, namespace: &str, name: &str) -> BoxFuture<'static, Found<K>>;
}

/// The API.
#[derive(Clone)]
pub struct FromApi {
    client: Client,
    watches: Arc<Semaphore>,
}

impl FromApi {
    /// Through `client`.
    pub fn new(client: Client) -> Self {
        Self { client, watches: Arc::new(Semaphore::new(MOST_WATCHES)) }
    }
}

impl<K: Kind> Source<K> for FromApi {
    fn states(&self, namespace: &str, name: &str) -> BoxStream<'static, Found<K>> {
        let api = K::api(self.client.clone(), namespace);
        match self.watches.clone().try_acquire_owned() {
            Ok(permit) => {
                let states = watched(api, name).map(move |state| {
                    let _open = &permit;
                    state
                });
                states.boxed()
            }
            Err(_) => asked(api, name.to_owned()),
        }
    }

    fn get(&self, namespace: &str, name: &str) -> BoxFuture<'static, Found<K>> {
        let (api, name) = (K::api(self.client.clone(), namespace), name.to_owned());
        Box::pin(async move { get(api, &name).await })
    }
}

/// Reads an object once.
pub async fn get<K: Kind>(api: Api<K>, name: &str) -> Found<K> {
    api.get_opt(name).await.map_err(|e| failed::<K>(name, &e))
}

fn failed<K: Kind>(name: &str, error: &dyn std::fmt::Display) -> String {
    format!("failed to read {} \"{name}\": {error}", K::WHAT)
}

fn watched<K: Kind>(api: Api<K>, name: &str) -> BoxStream<'static, Found<K>> {
    let seconds = rand::random_range(WATCH_SECONDS..=2 * WATCH_SECONDS);
    // Bookmarks save a list when a watch is opened again. For watches of single objects, of which there are hundreds on a
    // node, they would be more than all the rest.
    let fields = format!("metadata.name={name}");
    let config = Config::default().fields(&fields).timeout(seconds).disable_bookmarks();
    let name = name.to_owned();
    // Strict: an object that cannot be read is not one that is gone, of which the files would be removed.
    let states = states(strict(api, config)).map(move |state| {
        state.map_err(|error| match error {
            // The user is told what the API said, not at which step of a watch.
            Error::InitialListFailed(e) | Error::WatchStartFailed(e) | Error::WatchFailed(e) => failed::<K>(&name, &e),
            other => failed::<K>(&name, &other),
        })
    });
    states.boxed()
}

/// As [`watched`], by asking again and again.
fn asked<K: Kind>(api: Api<K>, name: String) -> BoxStream<'static, Found<K>> {
    let states = stream::unfold(Duration::ZERO, move |pause| {
        let (api, name) = (api.clone(), name.clone());
        async move {
            tokio::time::sleep(pause).await;
            let found = get(api, &name).await;
            let next = if found.is_ok() { ASK } else { ASK_AGAIN };
            Some((found, next))
        }
    });
    states.boxed()
}
