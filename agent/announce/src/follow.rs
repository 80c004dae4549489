//! The Leases of single nodes, each watched by its name while it is needed.
//!
//! In: which nodes to follow. Out: for each change the version of the node's Lease, and when it was seen. A Lease that
//! is renewed all the time is news only to those who follow it.

use crate::lease;
use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use std::collections::{BTreeSet, HashMap};
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::task::AbortOnDropHandle;

/// What was seen of a node's Lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The node.
    pub node: String,
    /// The version of its Lease; `None` when there is none.
    pub version: Option<String>,
    /// When it came.
    pub at: Instant,
}

/// The watches.
pub struct Follow {
    client: Client,
    watches: HashMap<String, AbortOnDropHandle<()>>,
    tell: UnboundedSender<Seen>,
    told: UnboundedReceiver<Seen>,
}

impl Follow {
    /// Follows nobody yet.
    pub fn new(client: Client) -> Self {
        let (tell, told) = unbounded_channel();
        Self { client, watches: HashMap::new(), tell, told }
    }

    /// Follows these nodes and no others.
    pub fn only(&mut self, nodes: &BTreeSet<String>) {
        self.watches.retain(|node, _| nodes.contains(node));
        for node in nodes {
            if !self.watches.contains_key(node) {
                let task = tokio::spawn(follow(self.client.clone(), node.clone(), self.tell.clone()));
                self.watches.insert(node.clone(), AbortOnDropHandle::new(task));
            }
        }
    }

    /// Whether a node is followed.
    pub fn is_followed(&self, node: &str) -> bool {
        self.watches.contains_key(node)
    }

    /// What is seen next. Nothing is lost when the wait is given up.
    pub async fn next(&mut self) -> Seen {
        loop {
            match self.told.recv().await {
                // A last word of a watch that has ended is passed over.
                Some(seen) if self.watches.contains_key(&seen.node) => return seen,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// What has been seen already.
    pub fn ready(&mut self) -> Vec<Seen> {
        let all = std::iter::from_fn(|| self.told.try_recv().ok()).collect::<Vec<_>>();
        all.into_iter().filter(|seen| self.watches.contains_key(&seen.node)).collect()
    }
}

async fn follow(client: Client, node: String, tell: UnboundedSender<Seen>) {
    let mut states = causeway_api::watch::one::<Lease>(client, lease::NAMESPACE, &lease::node_lease(&node));
    while let Some(state) = states.next().await {
        match state {
            Ok(lease) => {
                let version = lease.as_ref().map(lease::version);
                if tell.send(Seen { node: node.clone(), version, at: Instant::now() }).is_err() {
                    return;
                }
            }
            Err(error) => tracing::debug!(node, %error, "watch of a node's Lease interrupted"),
        }
    }
}
