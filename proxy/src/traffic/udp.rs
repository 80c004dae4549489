//! Datagrams at a Gateway's port (UDPRoute). Each client gets a flow: a socket to one endpoint, by which answers find
//! their way back, until it has been silent for a while. In: datagrams of clients. Out: datagrams of endpoints, from the
//! front's own socket.

use super::raw;
use crate::config::Socket;
use crate::route::balance;
use crate::route::front::FrontService;
use crate::route::upstream::InFlight;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Flows at a time; datagrams of further clients are dropped until one ends.
const MAX_FLOWS: usize = 4096;
/// A flow ends after this silence.
const SILENCE: Duration = Duration::from_secs(60);
/// Datagrams that wait for their flow.
const WAITING: usize = 64;
/// The largest datagram.
const LARGEST: usize = 65_535;

/// Serves one socket until it is to stop.
pub async fn serve(socket: Arc<UdpSocket>, front: Arc<Socket>, stop: CancellationToken) {
    let mut flows: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>> = HashMap::new();
    let (ended, mut endings) = mpsc::unbounded_channel();
    let mut buffer = vec![0; LARGEST];
    loop {
        let (length, client) = tokio::select! {
            () = stop.cancelled() => return,
            Some(client) = endings.recv() => {
                flows.remove(&client);
                continue;
            }
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                // Such as an endpoint's refusal, told to us by ICMP.
                Err(error) => {
                    tracing::trace!(%error, "datagram not received");
                    continue;
                }
            },
        };
        let datagram = buffer[..length].to_vec();
        if let Some(flow) = flows.get(&client).filter(|f| !f.is_closed()) {
            // A flow that cannot keep up loses datagrams, as a socket does.
            let _ = flow.try_send(datagram);
            continue;
        }
        if flows.len() >= MAX_FLOWS {
            continue;
        }
        let (sender, receiver) = mpsc::channel(WAITING);
        let _ = sender.try_send(datagram);
        flows.insert(client, sender);
        let (socket, front, ended, stop) = (Arc::clone(&socket), Arc::clone(&front), ended.clone(), stop.clone());
        tokio::spawn(async move {
            let result = tokio::select! {
                () = stop.cancelled() => Ok(()),
                result = flow(&socket, client, &front, receiver) => result,
            };
            if let Err(error) = result {
                tracing::debug!(%error, %client, "flow ended");
            }
            let _ = ended.send(client);
        });
    }
}

async fn flow(
    socket: &UdpSocket,
    client: SocketAddr,
    front: &Socket,
    mut datagrams: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    let endpoint = {
        let now = front.front.load();
        let FrontService::Udp(split) = &now.service else { return Ok(()) };
        raw::choose(split).and_then(|upstream| upstream.pick(&[], Some(&balance::key_of(client.ip()))))
    };
    let endpoint = endpoint.ok_or_else(|| io::Error::other("the route has no endpoint for this client"))?;
    let any: IpAddr =
        if endpoint.address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let backend = UdpSocket::bind((any, 0)).await?;
    backend.connect(endpoint.address).await?;
    let _in_flight = InFlight::start(endpoint);
    let mut buffer = vec![0; LARGEST];
    loop {
        tokio::select! {
            datagram = datagrams.recv() => match datagram {
                Some(datagram) => drop(backend.send(&datagram).await?),
                None => return Ok(()),
            },
            answer = backend.recv(&mut buffer) => drop(socket.send_to(&buffer[..answer?], client).await?),
            () = tokio::time::sleep(SILENCE) => return Ok(()),
        }
    }
}
