//! The ports of Gateways at run time: opens a socket for every front that is wanted, serves it, swaps what is served
//! while the socket stays, and closes the sockets of fronts that are gone.
//!
//! In: [`Shared::fronts`]. Out: connections for the HTTP application or straight to backends, [`Shared::sockets`] by
//! which requests find their front, and [`Shared::opened`] by which others find the sockets.

use super::listen::{self, Kind, Server, accept};
use super::sni::{self, Ready};
use super::udp;
use crate::config::{Fronts, Shared, Socket};
use crate::route::front::{Front, FrontKey, FrontService};
use arc_swap::ArcSwap;
use causeway_handover::Sockets;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The pause after a socket could not be opened.
const RETRY: Duration = Duration::from_secs(1);

/// A socket and what serves it.
struct Open {
    socket: Arc<Socket>,
    tls: Arc<ArcSwap<Vec<Ready>>>,
    /// Ends the acceptance of connections.
    stop: CancellationToken,
    /// Tells connections to end.
    drain: watch::Sender<bool>,
}

/// Serves fronts until shutdown, then tells their connections to end.
pub(super) async fn run(server: Arc<Server>, address: IpAddr, sockets: Arc<Sockets>, shutdown: CancellationToken) {
    let shared = Arc::clone(&server.shared);
    let mut wanted = shared.fronts.subscribe();
    let mut open: BTreeMap<FrontKey, Open> = BTreeMap::new();
    loop {
        let fronts = Arc::clone(&wanted.borrow_and_update());
        let failed = follow(&server, address, &sockets, &fronts, &mut open).await;
        // Of Gateways that went while another program took over.
        sockets.close_unclaimed(FrontKey::names);
        tokio::select! {
            () = shutdown.cancelled() => break,
            changed = wanted.changed() => if changed.is_err() { break },
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
    for one in open.values() {
        one.stop.cancel();
        one.drain.send_replace(true);
    }
}

/// Brings the sockets to what is wanted. True when some could not be opened.
async fn follow(
    server: &Arc<Server>,
    address: IpAddr,
    sockets: &Sockets,
    fronts: &Fronts,
    open: &mut BTreeMap<FrontKey, Open>,
) -> bool {
    let shared = &server.shared;
    let mut failed = false;
    for (key, front) in fronts {
        if let Some(one) = open.get(key) {
            // TLS first: whoever is let in by the new terms finds the new routes a moment later at worst.
            let before = one.tls.load();
            one.tls.store(Arc::new(ready(front, &before)));
            one.socket.front.store(Arc::clone(front));
            continue;
        }
        match start(server, address, sockets, front) {
            Ok(new) => drop(open.insert(key.clone(), new)),
            Err(error) => {
                tracing::warn!(%error, front = %key, "cannot open a socket; trying again");
                failed = true;
            }
        }
    }
    let gone: Vec<FrontKey> = open.keys().filter(|k| !fronts.contains_key(*k)).cloned().collect();
    for key in gone {
        if let Some(one) = open.remove(&key) {
            sockets.forget(&format!("{key}/"));
            close(server, one);
        }
    }
    let now: BTreeMap<FrontKey, SocketAddr> = open.iter().map(|(k, o)| (k.clone(), o.socket.local)).collect();
    shared.opened.send_if_modified(|before| {
        let changed = **before != now;
        if changed {
            *before = Arc::new(now);
        }
        changed
    });
    failed
}

fn ready(front: &Front, before: &[Ready]) -> Vec<Ready> {
    match &front.service {
        FrontService::Tls(listeners) => sni::ready(listeners, before),
        _ => Vec::new(),
    }
}

fn start(server: &Arc<Server>, address: IpAddr, sockets: &Sockets, front: &Arc<Front>) -> io::Result<Open> {
    let tls = Arc::new(ArcSwap::from_pointee(ready(front, &[])));
    let stop = CancellationToken::new();
    let (drain, draining) = watch::channel(false);
    let at = |local| Arc::new(Socket { local, front: ArcSwap::new(Arc::clone(front)) });
    let socket = if front.key.udp {
        let udp = sockets.udp(&front.key.to_string(), || std::net::UdpSocket::bind((address, 0)))?;
        udp.set_nonblocking(true)?;
        let udp = Arc::new(UdpSocket::from_std(udp)?);
        let socket = at(udp.local_addr()?);
        server.connections.spawn(udp::serve(udp, Arc::clone(&socket), stop.clone()));
        socket
    } else {
        let tcp = sockets.tcp(&front.key.to_string(), || std::net::TcpListener::bind((address, 0)))?;
        let tcp = listen::open(tcp)?;
        let socket = at(tcp.local_addr()?);
        // Before the first connection is taken, its requests must be able to find the front.
        enter(&server.shared, &socket);
        let kind = Kind::Front { socket: Arc::clone(&socket), tls: Arc::clone(&tls) };
        tokio::spawn(accept(Arc::clone(server), tcp, kind, draining, stop.clone()));
        socket
    };
    Ok(Open { socket, tls, stop, drain })
}

fn enter(shared: &Shared, socket: &Arc<Socket>) {
    shared.sockets.rcu(|all| {
        let mut all = HashMap::clone(all);
        all.insert(socket.local, Arc::clone(socket));
        all
    });
}

/// Connections that are left find nothing any more, and the socket is forgotten when they have had time to end.
fn close(server: &Arc<Server>, one: Open) {
    let key = one.socket.front.load().key.clone();
    one.socket.front.store(Arc::new(Front { key, service: FrontService::Http(Vec::new()) }));
    one.stop.cancel();
    one.drain.send_replace(true);
    let server = Arc::clone(server);
    tokio::spawn(async move {
        tokio::select! {
            () = server.kill.cancelled() => return,
            () = tokio::time::sleep(server.limits.drain * 2) => {}
        }
        server.shared.sockets.rcu(|all| {
            let mut all = HashMap::clone(all);
            // The number may have been given to another front meanwhile.
            all.retain(|_, socket| !Arc::ptr_eq(socket, &one.socket));
            all
        });
    });
}
