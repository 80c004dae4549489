//! Connections that are passed on as bytes: TCP, and TLS that is not HTTP. In: a client's stream and a split. Out: a
//! backend's stream, joined to it until both have said all.

use super::tunnel::{self, Passed};
use super::{Limits, announced};
use crate::route::Endpoint;
use crate::route::balance::{self, ProxyVersion};
use crate::route::rule::Split;
use crate::route::upstream::InFlight;
use rand::Rng as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Why a connection leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum NoWay {
    /// No backend, or one whose reference leads nowhere.
    #[error("the route has no backend for this connection")]
    NoBackend,
    /// The Service has as many connections as it may.
    #[error("the service has as many connections as it may have")]
    Busy,
    /// No endpoint took the connection.
    #[error("no endpoint took the connection")]
    NoEndpoint,
}

/// The upstream a new connection or flow goes to.
pub fn choose(split: &Split) -> Option<&Arc<crate::route::Upstream>> {
    let total = split.total();
    if total == 0 {
        return None;
    }
    split.choose(rand::rng().random_range(0..total)).and_then(|share| share.target.as_ref().ok())
}

/// Joins a client to a backend. `ahead` has been read from the client and is sent first.
///
/// # Errors
/// Before anything was sent: no way. Afterwards: the connection broke off.
pub async fn relay(
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ahead: &[u8],
    split: &Split,
    limits: &Limits,
    (peer, local): (SocketAddr, SocketAddr),
) -> io::Result<()> {
    let (mut backend, _in_flight, announce) = connect(split, limits, peer).await.map_err(io::Error::other)?;
    let _ = backend.set_nodelay(true);
    if let Some(version) = announce {
        backend.write_all(&announced::header(version, peer, local)?).await?;
    }
    backend.write_all(ahead).await?;
    tunnel::join(client, &mut backend, None, &mut Passed::default()).await
}

async fn connect(
    split: &Split,
    limits: &Limits,
    peer: SocketAddr,
) -> Result<(TcpStream, InFlight, Option<ProxyVersion>), NoWay> {
    let upstream = choose(split).ok_or(NoWay::NoBackend)?;
    if !upstream.admit() {
        return Err(NoWay::Busy);
    }
    let key = balance::key_of(peer.ip());
    let mut tried = Vec::new();
    while tried.len() < limits.attempts {
        let Some(endpoint) = upstream.pick(&tried, Some(&key)) else { break };
        let connecting = TcpStream::connect(endpoint.address);
        match tokio::time::timeout(limits.connect_timeout, connecting).await {
            Ok(Ok(stream)) => {
                endpoint.succeeded();
                return Ok((stream, InFlight::start(endpoint), upstream.announce()));
            }
            Ok(Err(_)) | Err(_) => failed(&endpoint, &mut tried),
        }
    }
    Err(NoWay::NoEndpoint)
}

fn failed(endpoint: &Endpoint, tried: &mut Vec<u64>) {
    endpoint.failed();
    tried.push(endpoint.id);
}
