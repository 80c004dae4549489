//! The Pods of other nodes: watched only while a policy that speaks of them selects a Pod of this node.
//!
//! In: whether they are wanted. Out: their watch events. Of each Pod no more is kept than [`crate::model::PodInfo`]. A watch
//! that is not wanted any more goes on for a while, so that policies that come and go do not list all Pods each time.

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{self, Config, Event};
use kube::{Api, Client};
use std::time::{Duration, Instant};

type Events = Vec<watcher::Result<Event<Pod>>>;

/// How long a watch outlives its use.
const LINGER: Duration = Duration::from_secs(300);

/// The watch, if there is one.
pub struct Peers {
    client: Client,
    node: String,
    batch: usize,
    watch: Option<Watch>,
}

struct Watch {
    events: BoxStream<'static, Events>,
    begun: Instant,
    /// Since when nobody has wanted it.
    unused: Option<Instant>,
}

impl Peers {
    /// Of all nodes but this one; `batch` events at a time.
    pub fn new(client: Client, node: &str, batch: usize) -> Self {
        Self { client, node: node.to_owned(), batch, watch: None }
    }

    /// Begins the watch, or ends it when it has not been wanted for a while; returns whether it does either. A watch that
    /// begins lists all Pods first. To be called now and then, also without a change.
    pub fn want(&mut self, wanted: bool, now: Instant) -> bool {
        match (&mut self.watch, wanted) {
            (None, false) => false,
            (None, true) => {
                let others = Config::default().fields(&format!("spec.nodeName!={}", self.node));
                let events = causeway_api::watch::watch(Api::<Pod>::all(self.client.clone()), others);
                let events = events.ready_chunks(self.batch).boxed();
                self.watch = Some(Watch { events, begun: now, unused: None });
                true
            }
            (Some(watch), true) => {
                watch.unused = None;
                false
            }
            (Some(watch), false) => {
                let over = now.duration_since(*watch.unused.get_or_insert(now)) >= LINGER;
                if over {
                    self.watch = None;
                }
                over
            }
        }
    }

    /// How long the watch has been there, where it is wanted.
    pub fn wanted_for(&self, now: Instant) -> Option<Duration> {
        let watch = self.watch.as_ref().filter(|watch| watch.unused.is_none())?;
        Some(now.duration_since(watch.begun))
    }

    /// The next events; none for as long as there is no watch.
    pub async fn next(&mut self) -> Events {
        let events = match &mut self.watch {
            Some(watch) => watch.events.next().await,
            None => None,
        };
        match events {
            Some(events) => events,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_watch_begins_when_it_is_wanted_and_ends_a_while_after() {
        let nobody = tower::service_fn(|_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, std::io::Error>>()
        });
        let mut peers = Peers::new(Client::new(nobody, "default"), "n", 1);
        let t = Instant::now();
        let after = |s| t + Duration::from_secs(s);
        assert!(!peers.want(false, t) && peers.wanted_for(t).is_none());
        assert!(peers.want(true, t));
        assert_eq!(peers.wanted_for(after(7)), Some(Duration::from_secs(7)));
        assert!(!peers.want(false, after(10)) && peers.wanted_for(after(10)).is_none());
        assert!(!peers.want(true, after(300)), "it is still there");
        assert!(!peers.want(false, after(310)) && !peers.want(false, after(609)));
        assert!(peers.want(false, after(610)));
        assert!(!peers.want(false, after(611)));
    }
}
