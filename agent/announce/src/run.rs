//! The loop: watch → model → plan → apply, whenever something changes or is due.

use crate::announcer::Announcer;
use crate::lease::{self, Leases};
use crate::link::Uplink;
use crate::model;
use anyhow::{Context, Result};
use causeway_api::balancer::Pool;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use std::fmt::Debug;
use std::hash::Hash;
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
pub async fn run(client: Client, config: AnnounceConfig, shutdown: CancellationToken) -> Result<()> {
    if config.pools.is_empty() {
        shutdown.cancelled().await;
        return Ok(());
    }
    let uplink = Uplink::find(config.node_ip).await.context("the announcer needs the node's uplink")?;
    let leases = Leases::new(client.clone(), &config.node_name);
    let mut watches = Watches { tasks: JoinSet::new(), news: Arc::default() };
    let all = watcher::Config::default;
    let services = watches.start(Api::<Service>::all(client.clone()), all());
    let slices = watches.start(Api::<EndpointSlice>::all(client.clone()), all());
    let nodes = watches.start(Api::<Node>::all(client.clone()), all());
    let signed = watches.start(leases.api(), all().labels(lease::ADDRESSES));
    let mut announcer = Announcer::new(client, config, uplink, leases);
    announcer.clean().await;
    let complete = async {
        services.wait_until_ready().await?;
        slices.wait_until_ready().await?;
        nodes.wait_until_ready().await?;
        signed.wait_until_ready().await
    };
    tokio::select! {
        ready = complete => ready.context("a watch of the announcer ended")?,
        () = shutdown.cancelled() => return Ok(()),
    }
    watches.news.changed.store(true, Ordering::Release);
    loop {
        if watches.news.changed.swap(false, Ordering::AcqRel) {
            let pools = announcer.pools();
            let wanted = model::wanted(&services.state(), &slices.state(), &nodes.state(), pools);
            announcer.want(wanted);
        }
        let wake = announcer.round(&signed.state()).await;
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = watches.news.ring.notified() => {}
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
    fn start<K>(&mut self, api: Api<K>, config: watcher::Config) -> Store<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + serde::de::DeserializeOwned + 'static,
        K::DynamicType: Eq + Hash + Clone,
    {
        let (reader, writer) = reflector::store();
        let stream = reflector::reflector(writer, causeway_api::watch::watch(api, config));
        let news = self.news.clone();
        self.tasks.spawn(async move {
            let mut stream = std::pin::pin!(stream);
            while let Some(event) = stream.next().await {
                match event {
                    Ok(_) => {
                        // Who may announce what does not depend on Leases.
                        if K::kind(&()) != "Lease" {
                            news.changed.store(true, Ordering::Release);
                        }
                        news.ring.notify_one();
                    }
                    Err(error) => tracing::debug!(kind = %K::kind(&()), %error, "watch interrupted"),
                }
            }
        });
        reader
    }
}
