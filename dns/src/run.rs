//! The component: serves the sockets from the first moment, fills the zone, publishes itself once complete.

use crate::config::DnsConfig;
use crate::metrics::Metrics;
use crate::pods::Pods;
use crate::reload::{self, PodsWanted};
use crate::server::Handler;
use crate::zone::Zone;
use crate::{admin, listen, publish, snapshot, watch};
use anyhow::{Context, Result};
use causeway_informers::Informers;
use kube::Client;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The slice is written again this often, should somebody have changed it.
const REPUBLISH: Duration = Duration::from_secs(60);
/// Snapshots are written at most this often.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(2);

/// Runs cluster DNS until `shutdown`. `client` reads the settings and publishes this server; all else comes from the node's
/// copies.
pub async fn run(client: Client, informers: Informers, config: DnsConfig, shutdown: CancellationToken) -> Result<()> {
    let base = config.cluster.dns.clone();
    let settings = reload::last(config.state_dir.as_deref(), &base);
    let ranges = config.cluster.service_cidrs.iter().chain(&config.cluster.pod_cidrs).copied().collect();
    let pods = Arc::new(Pods::default());
    let zone = Arc::new(Zone::new(&config.cluster.domain, ranges, pods.clone()).map_err(anyhow::Error::msg)?);
    let metrics = Arc::new(Metrics::new(&config.cluster.domain)?);
    let handler = Handler::new(zone.clone(), pods.clone(), metrics.clone(), &settings, config.forward_on.clone());
    let handler = Arc::new(handler.map_err(anyhow::Error::msg)?);
    let ready = handler.ready.clone();
    if let Some(dir) = &config.state_dir
        && snapshot::load(dir, &zone)
    {
        ready.store(true, Ordering::Release);
    }
    // Serves until this function ends, which is after the endpoint has been taken out of use.
    let mut serving = JoinSet::new();
    for socket in config.udp {
        let socket = UdpSocket::from_std(socket).context("taking over a UDP socket for DNS")?;
        serving.spawn(listen::udp(socket, handler.clone()));
    }
    for listener in config.tcp {
        let listener = TcpListener::from_std(listener).context("taking over a TCP socket for DNS")?;
        serving.spawn(listen::tcp(listener, handler.clone()));
    }
    // Whatever ends us ends our tasks too: who starts us again would have them twice.
    let stop = shutdown.child_token();
    let _stop = stop.clone().drop_guard();
    // Health is told to the last: that of an ending server is "lameduck".
    let (ending, gone) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
    let _gone = gone.clone().drop_guard();
    if let Some(listener) = config.admin {
        let listener = TcpListener::from_std(listener).context("taking over the admin socket of DNS")?;
        tokio::spawn(admin::serve(listener, handler.clone(), ending.clone(), gone));
    }
    let synced = Arc::new(Notify::new());
    let publisher = config.publish.then(|| {
        let (client, synced, stop) = (client.clone(), synced.clone(), stop.clone());
        tokio::spawn(keep_published(client, config.node_name.clone(), config.node_ips, synced, stop))
    });
    let changed = Arc::new(Notify::new());
    let saver = config.state_dir.clone().map(|dir| {
        let (zone, ready, changed, stop) = (zone.clone(), ready.clone(), changed.clone(), stop.clone());
        tokio::spawn(save(dir, zone, ready, changed, stop))
    });
    let (wants, wanted) = tokio::sync::watch::channel(PodsWanted::from(&settings));
    tokio::spawn(watch::pods(informers.clone(), config.node_name.clone(), pods, wanted, stop.clone()));
    let reload = reload::Reload {
        handler: handler.clone(),
        base,
        inforce: settings,
        forward_on: config.forward_on,
        pods: wants,
        node: config.node_name,
        state_dir: config.state_dir,
        lameduck: Arc::default(),
    };
    let lameduck = reload.lameduck();
    tokio::spawn(reload.run(client.clone(), stop.clone()));
    let on_sync = || {
        ready.store(true, Ordering::Release);
        synced.notify_one();
        tracing::info!(services = zone.len(), "DNS is ready");
    };
    let on_change = || {
        metrics.services.set(i64::try_from(zone.len()).unwrap_or(i64::MAX));
        changed.notify_one();
    };
    let ended = tokio::select! {
        ended = watch::run(&informers, &zone, &metrics, on_sync, on_change, &shutdown) => ended,
        Some(ended) = serving.join_next() => Err(match ended {
            Err(panic) => anyhow::Error::new(panic).context("serving DNS"),
            Ok(()) => anyhow::anyhow!("serving DNS ended by itself"),
        }),
    };
    ending.store(true, Ordering::Release);
    stop.cancel();
    for task in [publisher, saver].into_iter().flatten() {
        task.await?;
    }
    if ended.is_ok() {
        // Out of use, but not everybody knows yet.
        tokio::time::sleep(Duration::from_secs(lameduck.load(Ordering::Acquire))).await;
    }
    ended
}

/// Keeps the node's endpoint in the API while we serve, and takes it out of use at the end.
async fn keep_published(
    client: Client,
    node: String,
    ips: Vec<std::net::IpAddr>,
    synced: Arc<Notify>,
    shutdown: CancellationToken,
) {
    tokio::select! {
        () = shutdown.cancelled() => return,
        () = synced.notified() => {}
    }
    loop {
        let wait = match publish::endpoint(&client, &node, &ips, true).await {
            Ok(()) => REPUBLISH,
            Err(error) => {
                tracing::warn!(%error, "the endpoint of DNS is not published; trying again");
                Duration::from_secs(1)
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(wait) => {}
        }
    }
    let last = publish::endpoint(&client, &node, &ips, false);
    if let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(2), last).await {
        tracing::debug!(%error, "the endpoint of DNS stays published");
    }
}

async fn save(
    dir: PathBuf,
    zone: Arc<Zone>,
    ready: Arc<AtomicBool>,
    changed: Arc<Notify>,
    shutdown: CancellationToken,
) {
    loop {
        let last = tokio::select! {
            () = shutdown.cancelled() => true,
            () = changed.notified() => false,
        };
        if last && !ready.load(Ordering::Acquire) {
            // Nothing is known; the next start must not take that for a cluster without services.
            return;
        }
        let (to, of) = (dir.clone(), zone.clone());
        match tokio::task::spawn_blocking(move || snapshot::save(&to, &of)).await {
            Ok(Err(error)) => tracing::warn!(%error, dir = %dir.display(), "the zone was not saved"),
            _ if last => return,
            _ => {}
        }
        if last {
            return;
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(SNAPSHOT_EVERY) => {}
        }
    }
}
