//! The Pods of other nodes: watched only while a policy asks for them, for in most clusters none does.
//!
//! In: whether they are wanted. Out: their watch events. Of each Pod no more is kept than [`crate::model::PodInfo`].

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{self, Config, Event};
use kube::{Api, Client};

type Events = Vec<watcher::Result<Event<Pod>>>;

/// The watch, and whether there is one.
pub struct Peers {
    client: Client,
    node: String,
    batch: usize,
    events: Option<BoxStream<'static, Events>>,
}

impl Peers {
    /// Of all nodes but this one; `batch` events at a time.
    pub fn new(client: Client, node: &str, batch: usize) -> Self {
        Self { client, node: node.to_owned(), batch, events: None }
    }

    /// Begins or ends the watch; returns whether that is a change. A watch that begins lists all Pods first.
    pub fn want(&mut self, wanted: bool) -> bool {
        if wanted == self.events.is_some() {
            return false;
        }
        self.events = wanted.then(|| {
            let others = Config::default().fields(&format!("spec.nodeName!={}", self.node));
            let events = causeway_api::watch::watch(Api::<Pod>::all(self.client.clone()), others);
            events.ready_chunks(self.batch).boxed()
        });
        true
    }

    /// Whether there is one.
    pub fn is_wanted(&self) -> bool {
        self.events.is_some()
    }

    /// The next events; none for as long as there is no watch.
    pub async fn next(&mut self) -> Events {
        let events = match &mut self.events {
            Some(events) => events.next().await,
            None => None,
        };
        match events {
            Some(events) => events,
            None => std::future::pending().await,
        }
    }
}
