//! The loop: watch → model → plan → apply, whenever something changes or is due.

use crate::announcer::Announcer;
use crate::lease::{self, Leases};
use crate::link::Uplink;
use crate::model;
use anyhow::{Context, Result};
use causeway_api::balancer::Pool;
use causeway_informers::{Informer, Informers, Kind};
use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher;
use kube::{Api, Client};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What the announcer must know.
#[derive(Debug, Clone)]
pub struct AnnounceConfig {
    /// The node.
    pub node_name: String,
    /// An address of the node: the link that has it is the uplink.
    pub node_ip: IpAddr,
    /// The addresses that may be announced.
    pub pools: Vec<Pool>,
}

/// Runs until shutdown, in the node's network namespace: every thread of the runtime must live there. On shutdown the
/// addresses are given up, and other nodes take them at once.
///
/// `client` reads and writes Leases; all else comes from the node's copies.
pub async fn run(
    client: Client,
    informers: Informers,
    config: AnnounceConfig,
    shutdown: CancellationToken,
) -> Result<()> {
    if config.pools.is_empty() {
        shutdown.cancelled().await;
        return Ok(());
    }
    let uplink = Uplink::find(config.node_ip).await.context("the announcer needs the node's uplink")?;
    let leases = Leases::new(client.clone(), &config.node_name);
    let mut watches = Watches { tasks: JoinSet::new(), news: Arc::default() };
    let (services, slices, nodes) = (informers.services(), informers.slices(), informers.nodes());
    watches.follow(&services);
    watches.follow(&slices);
    watches.follow(&nodes);
    let signed = watches.leases(leases.api());
    let mut announcer = Announcer::new(client, config, uplink, leases);
    announcer.clean().await;
    let complete = async {
        let copies = services.synced().await && slices.synced().await && nodes.synced().await;
        anyhow::ensure!(copies, "a copy of the node's ended");
        signed.wait_until_ready().await.context("a watch of the announcer ended")
    };
    tokio::select! {
        ready = complete => ready?,
        () = shutdown.cancelled() => return Ok(()),
    }
    watches.news.changed.store(true, Ordering::Release);
    loop {
        if watches.news.changed.swap(false, Ordering::AcqRel) {
            let pools = announcer.pools();
            let wanted = model::wanted(&services.list(), &slices.list(), &nodes.list(), pools);
            announcer.want(wanted);
        }
        let wake = announcer.round(&signed.state()).await;
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = watches.news.ring.notified() => {}
            Some(_) = watches.tasks.join_next() => anyhow::bail!("a watch of the announcer ended"),
            () = announcer.news(wake) => {}
        }
    }
    announcer.leave(&signed.state()).await;
    Ok(())
}

#[derive(Default)]
struct News {
    ring: Notify,
    changed: AtomicBool,
}

struct Watches {
    tasks: JoinSet<()>,
    news: Arc<News>,
}

impl Watches {
    /// Rings whenever a copy has changed.
    fn follow<K: Kind>(&mut self, copy: &Informer<K>) {
        let (mut changes, news) = (copy.subscribe(), self.news.clone());
        self.tasks.spawn(async move {
            while changes.next().await.is_some() {
                news.changed.store(true, Ordering::Release);
                news.ring.notify_one();
            }
        });
    }

    /// The Leases of addresses. Who may announce what does not depend on them.
    fn leases(&mut self, api: Api<Lease>) -> Store<Lease> {
        let (reader, writer) = reflector::store();
        let addresses = watcher::Config::default().labels(lease::ADDRESSES);
        let mut events = reflector::reflector(writer, causeway_api::watch::watch(api, addresses)).boxed();
        let news = self.news.clone();
        self.tasks.spawn(async move {
            while let Some(event) = events.next().await {
                match event {
                    Ok(_) => news.ring.notify_one(),
                    Err(error) => tracing::debug!(%error, "watching the Leases of addresses"),
                }
            }
        });
        reader
    }
}
