//! The sockets. In: packets. Out: what the [`Handler`] answers. Everything a client can make us hold is bounded:
//! questions in work, connections in all and per client, and the time each may take.

use crate::server::{Handler, Transport};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Questions by UDP in work at the same time; more are dropped, and asked again by who sent them.
const MAX_UDP: usize = 4096;
/// Connections at the same time.
const MAX_TCP: usize = 1024;
/// Connections at the same time from one address.
pub const MAX_TCP_PER_CLIENT: usize = 64;
/// A connection is closed when nothing complete came, or nothing could be sent, for this long.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Pause after an error of the socket itself, such as too many open files.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest question we take by UDP.
const MAX_PACKET: usize = 4096;

/// Answers packets for as long as it is polled.
pub async fn udp(socket: UdpSocket, handler: Arc<Handler>) {
    let (socket, slots) = (Arc::new(socket), Arc::new(Semaphore::new(MAX_UDP)));
    let mut buffer = [0u8; MAX_PACKET];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "receiving a packet for DNS");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Port 0 and unspecified addresses are nobody's.
        if from.port() == 0 || from.ip().is_unspecified() {
            continue;
        }
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            handler.metrics.dropped.with_label_values(&["udp"]).inc();
            continue;
        };
        let (packet, socket, handler) = (buffer[..length].to_vec(), socket.clone(), handler.clone());
        tokio::spawn(async move {
            let _slot = slot;
            if let Some(answer) = handler.answer(&packet, Transport::Udp).await
                && let Err(error) = socket.send_to(&answer, from).await
            {
                tracing::debug!(%error, client = %from, "answer not sent");
            }
        });
    }
}

/// Answers connections for as long as it is polled.
pub async fn tcp(listener: TcpListener, handler: Arc<Handler>) {
    let clients = Arc::new(Clients::default());
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "accepting a connection for DNS");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Who has too many is closed rather than queued: the others' connections wait behind nothing.
        let Some(place) = Place::take(&clients, from) else {
            handler.metrics.dropped.with_label_values(&["tcp"]).inc();
            continue;
        };
        let handler = handler.clone();
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = converse(stream, &handler).await {
                tracing::trace!(%error, client = %from, "connection ended");
            }
        });
    }
}

/// Questions on one connection, one after another.
async fn converse(mut stream: TcpStream, handler: &Handler) -> io::Result<()> {
    loop {
        let question = async {
            let length = stream.read_u16().await?;
            let mut packet = vec![0u8; length.into()];
            stream.read_exact(&mut packet).await.map(|_| packet)
        };
        let packet = timeout(TCP_IDLE, question).await??;
        let Some(answer) = handler.answer(&packet, Transport::Tcp).await else { return Ok(()) };
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        let framed = [&length.to_be_bytes()[..], &answer].concat();
        timeout(TCP_IDLE, stream.write_all(&framed)).await??;
    }
}

/// Connections by client.
#[derive(Default)]
struct Clients(Mutex<HashMap<IpAddr, usize>>);

/// One connection's place among them; given back when dropped.
struct Place {
    clients: Arc<Clients>,
    ip: IpAddr,
}

impl Place {
    fn take(clients: &Arc<Clients>, from: SocketAddr) -> Option<Self> {
        let mut counts = clients.0.lock();
        if counts.values().sum::<usize>() >= MAX_TCP {
            return None;
        }
        let count = counts.entry(from.ip()).or_default();
        if *count >= MAX_TCP_PER_CLIENT {
            return None;
        }
        *count += 1;
        Some(Self { clients: clients.clone(), ip: from.ip() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.clients.0.lock();
        if let Some(count) = counts.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.ip);
            }
        }
    }
}
