//! Connections to backends that begin with something else than HTTP: with who the client is (PROXY protocol), with TLS on
//! a backend's own terms, or with both; and those that are to become something else.
//! In: an address. Out: a stream for Pingora's HTTP.

use super::announced;
use super::patient::Patient;
use super::wire::Wire;
use crate::route::balance::ProxyVersion;
use crate::route::upstream::BackendTls;
use async_trait::async_trait;
use pingora::connectors::L4Connect;
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::VirtualSocketStream;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, OrErr as _};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// Whose connection a backend is told that it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Announced {
    /// How it is told.
    pub version: ProxyVersion,
    /// The client.
    pub client: SocketAddr,
    /// Where the client connected to.
    pub to: SocketAddr,
}

/// Connects to the endpoints of one backend.
#[derive(Debug)]
pub struct Connector {
    /// What is said first.
    pub announced: Option<Announced>,
    /// The terms for TLS, and whether it is for HTTP/2.
    pub terms: Option<(Arc<BackendTls>, bool)>,
    /// It is for a request that asks for another protocol.
    pub upgrade: bool,
}

impl Announced {
    /// The client of a request; none when it has no address.
    pub fn of(session: &Session, version: ProxyVersion) -> Option<Self> {
        let client = *session.client_addr()?.as_inet()?;
        let to = *session.server_addr()?.as_inet()?;
        Some(Self { version, client, to })
    }

    /// The pool of an endpoint's connections that begin like this: they are of this client and nobody else's.
    pub fn pool(&self, endpoint: u64) -> u64 {
        let mut hasher = DefaultHasher::new();
        (endpoint, self).hash(&mut hasher);
        hasher.finish()
    }
}

/// Connects for something of our own, such as a health check, which is told to backends that want to be told.
pub async fn own(address: SocketAddr, announce: Option<ProxyVersion>) -> io::Result<TcpStream> {
    open(address, announce.map(announced::own).transpose()?).await
}

/// Connects, and says something first.
async fn open(address: SocketAddr, first: Option<Vec<u8>>) -> io::Result<TcpStream> {
    let mut tcp = TcpStream::connect(address).await?;
    let _ = tcp.set_nodelay(true);
    if let Some(first) = first {
        tcp.write_all(&first).await?;
    }
    Ok(tcp)
}

#[async_trait]
impl L4Connect for Connector {
    async fn connect(&self, address: &PingoraAddr) -> pingora::Result<Stream> {
        let Some(address) = address.as_inet() else {
            return Error::e_explain(ErrorType::ConnectError, "no address to connect to");
        };
        let header = self.announced.map(|a| announced::header(a.version, a.client, a.to)).transpose();
        let header = header.or_err(ErrorType::InternalError, "telling the backend who the client is")?;
        let tcp = open(*address, header).await.or_err(ErrorType::ConnectError, "connecting to the backend")?;
        let terms = self.terms.as_ref();
        if terms.is_none() && !self.upgrade {
            return Ok(Stream::from(tcp));
        }
        let wire = Wire::over(tcp, terms.map(|(terms, _)| &**terms), terms.is_some_and(|(_, h2)| *h2)).await?;
        Ok(Stream::from(VirtualSocketStream::new(Box::new(Patient::new(wire)))))
    }
}
