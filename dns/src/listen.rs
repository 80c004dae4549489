//! The sockets. In: packets. Out: what the [`Handler`] answers. Everything a client can make us hold is bounded:
//! questions in work, connections in all and per client, and the time each may take. What can be answered at once is
//! answered in the loop that reads, many packets a system call; only what waits for an upstream gets a task.

mod batch;

use crate::kept::{Kept, Plain};
use crate::server::{Handler, Origin, Transport};
use batch::Batch;
use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{SinkExt, StreamExt};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

/// Questions by UDP in work at the same time; more are dropped, and asked again by who sent them.
const MAX_UDP: usize = 4096;
/// Connections at the same time.
const MAX_TCP: usize = 1024;
/// Connections at the same time from one address.
pub const MAX_TCP_PER_CLIENT: usize = 64;
/// Questions of one connection in work at the same time; more are not read.
const MAX_PIPELINED: usize = 32;
/// A connection is closed when nothing complete came, or nothing could be sent, for this long.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Pause after an error of the socket itself, such as too many open files.
const PAUSE: Duration = Duration::from_millis(50);

/// Answers packets for as long as it is polled.
pub async fn udp(socket: UdpSocket, handler: Arc<Handler>) {
    let (socket, slots) = (Arc::new(socket), Arc::new(Semaphore::new(MAX_UDP)));
    let (mut batch, mut kept) = (Batch::default(), Kept::default());
    loop {
        if let Err(error) = batch.receive(&socket).await {
            tracing::debug!(%error, "receiving packets for DNS");
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        let at = Instant::now();
        while let Some((packet, from, out)) = batch.next() {
            // Port 0 and unspecified addresses are nobody's.
            if from.port() == 0 || from.ip().is_unspecified() {
                continue;
            }
            let origin = Origin { transport: Transport::Udp, client: from.ip(), at };
            let plain = Plain::read(packet);
            if let Some(plain) = &plain
                && handler.again(&mut kept, plain, packet, origin, out)
            {
                continue;
            }
            let answer = {
                let (handler, packet) = (handler.clone(), packet.to_vec());
                async move { handler.answer(&packet, origin).await }
            };
            let mut answer = Box::pin(answer);
            match futures::poll!(&mut answer) {
                Poll::Ready(Some(answered)) => {
                    if let (Some(plain), Some((stamp, label))) = (plain, answered.keep) {
                        kept.keep(&plain, &answered.bytes, stamp, label);
                    }
                    *out = answered.bytes;
                }
                Poll::Ready(None) => {}
                Poll::Pending => {
                    let Ok(slot) = slots.clone().try_acquire_owned() else {
                        handler.metrics.dropped.with_label_values(&["udp"]).inc();
                        continue;
                    };
                    let socket = socket.clone();
                    tokio::spawn(async move {
                        let _slot = slot;
                        if let Some(answered) = answer.await
                            && let Err(error) = socket.send_to(&answered.bytes, from).await
                        {
                            tracing::debug!(%error, client = %from, "answer not sent");
                        }
                    });
                }
            }
        }
        batch.send(&socket).await;
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
            if let Err(error) = converse(stream, from.ip(), &handler).await {
                tracing::trace!(%error, client = %from, "connection ended");
            }
        });
    }
}

/// Questions on one connection, each answered when its answer is there (RFC 7766).
async fn converse(stream: TcpStream, client: IpAddr, handler: &Handler) -> io::Result<()> {
    let codec = LengthDelimitedCodec::builder().length_field_length(2).max_frame_length(u16::MAX.into()).new_codec();
    let (mut answers, mut questions) = Framed::new(stream, codec).split();
    let mut work = FuturesUnordered::new();
    let mut ended = false;
    loop {
        let answered = tokio::select! {
            biased;
            Some(answered) = work.next() => answered,
            question = timeout(TCP_IDLE, questions.next()), if !ended && work.len() < MAX_PIPELINED => {
                match question {
                    Ok(Some(question)) => {
                        let (question, at) = (question?, Instant::now());
                        let origin = Origin { transport: Transport::Tcp, client, at };
                        work.push(async move { handler.answer(&question, origin).await });
                    }
                    // What is in work is answered still.
                    Ok(None) => ended = true,
                    // Silence while answers are awaited is no idleness.
                    Err(_) if !work.is_empty() => {}
                    Err(_) => return Ok(()),
                }
                continue;
            }
            else => return Ok(()),
        };
        // No answer is for what is no question: there is nothing to talk about.
        let Some(answered) = answered else { return Ok(()) };
        timeout(TCP_IDLE, answers.send(Bytes::from(answered.bytes))).await??;
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
