//! The PROXY protocol (versions 1 and 2), by which a load balancer in front tells whose connection it passes on. In: the
//! first bytes of a trusted peer's connection. Out: the client's address, and what has been read beyond.

use crate::route::balance::ProxyVersion;
use ppp::{HeaderResult, PartialResult as _, v1, v2};
use std::io;
use std::net::SocketAddr;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// The most bytes of a header: version 2 says its length in two bytes, but nobody needs more.
const MAX_HEADER: usize = 4096;

/// Reads the header. The address is none where the peer speaks for itself (`LOCAL`, `UNKNOWN`).
///
/// # Errors
/// When there is no header, or a broken or too long one.
pub async fn read(stream: &mut TcpStream) -> io::Result<(Option<SocketAddr>, Vec<u8>)> {
    let mut bytes = Vec::with_capacity(256);
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !may_be_one(&bytes) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not begin with a PROXY header"));
        }
        let result = HeaderResult::parse(&bytes);
        if result.is_complete() || bytes.ends_with(b"\r\n") && bytes.starts_with(V1) {
            let (source, length) = match result {
                HeaderResult::V1(header) => {
                    let header = header.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
                    (of_v1(&header.addresses), header.header.len())
                }
                HeaderResult::V2(header) => {
                    let header = header.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
                    let local = header.command == v2::Command::Local;
                    (if local { None } else { of_v2(&header.addresses) }, header.len())
                }
            };
            return Ok((source, bytes.split_off(length.min(bytes.len()))));
        }
        if bytes.len() > MAX_HEADER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the PROXY header is too long"));
        }
    }
}

/// The header by which we tell a backend whose connection this is, and where the client made it to.
pub fn header(version: ProxyVersion, client: SocketAddr, to: SocketAddr) -> io::Result<Vec<u8>> {
    let plain = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
    let addresses = (plain(client), plain(to));
    match version {
        ProxyVersion::V1 => Ok(v1::Addresses::from(addresses).to_string().into_bytes()),
        ProxyVersion::V2 => {
            v2::Builder::with_addresses(v2::Version::Two | v2::Command::Proxy, v2::Protocol::Stream, addresses).build()
        }
    }
}

/// The header of a connection that we make for ourselves, such as a health check.
pub fn own(version: ProxyVersion) -> io::Result<Vec<u8>> {
    match version {
        ProxyVersion::V1 => Ok(v1::Addresses::Unknown.to_string().into_bytes()),
        ProxyVersion::V2 => v2::Builder::new(
            v2::Version::Two | v2::Command::Local,
            v2::AddressFamily::Unspecified | v2::Protocol::Unspecified,
        )
        .build(),
    }
}

/// What a header of version 1 begins with.
const V1: &[u8] = b"PROXY ";

/// Whether what has come so far can begin a header.
fn may_be_one(bytes: &[u8]) -> bool {
    [V1, v2::PROTOCOL_PREFIX].iter().any(|start| {
        let length = start.len().min(bytes.len());
        start[..length] == bytes[..length]
    })
}

fn of_v1(addresses: &v1::Addresses) -> Option<SocketAddr> {
    match addresses {
        v1::Addresses::Tcp4(a) => Some(SocketAddr::from((a.source_address, a.source_port))),
        v1::Addresses::Tcp6(a) => Some(SocketAddr::from((a.source_address, a.source_port))),
        v1::Addresses::Unknown => None,
    }
}

fn of_v2(addresses: &v2::Addresses) -> Option<SocketAddr> {
    match addresses {
        v2::Addresses::IPv4(a) => Some(SocketAddr::from((a.source_address, a.source_port))),
        v2::Addresses::IPv6(a) => Some(SocketAddr::from((a.source_address, a.source_port))),
        v2::Addresses::Unspecified | v2::Addresses::Unix(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    async fn told(bytes: &[u8]) -> io::Result<(Option<SocketAddr>, Vec<u8>)> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let bytes = bytes.to_vec();
        let writer = tokio::spawn(async move {
            // In two parts, as a network may cut it.
            let (first, second) = bytes.split_at(bytes.len() / 2);
            client.write_all(first).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            client.write_all(second).await.unwrap();
            client
        });
        let result = read(&mut server).await;
        drop(writer.await);
        result
    }

    #[tokio::test]
    async fn both_versions() {
        let client: SocketAddr = "192.0.2.7:5555".parse().unwrap();
        let (from, rest) = told(b"PROXY TCP4 192.0.2.7 10.0.0.1 5555 80\r\nGET").await.unwrap();
        assert_eq!(from, Some(client));
        assert!(b"GET".starts_with(&rest[..]), "{rest:?}");
        let addresses = v2::IPv4::new([192, 0, 2, 7], [10, 0, 0, 1], 5555, 80);
        let header =
            v2::Builder::with_addresses(v2::Version::Two | v2::Command::Proxy, v2::Protocol::Stream, addresses)
                .build()
                .unwrap();
        assert_eq!(told(&header).await.unwrap().0, Some(client));
        assert_eq!(told(b"PROXY UNKNOWN\r\n").await.unwrap().0, None);
    }

    #[tokio::test]
    async fn our_own_headers_are_read_as_they_are_meant() {
        let (client, to) = ("192.0.2.7:5555".parse().unwrap(), "192.0.2.1:80".parse().unwrap());
        for version in [ProxyVersion::V1, ProxyVersion::V2] {
            assert_eq!(told(&own(version).unwrap()).await.unwrap().0, None);
            assert_eq!(told(&header(version, client, to).unwrap()).await.unwrap().0, Some(client));
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        assert!(told(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.is_err());
        assert!(told(b"PROXY TCP4 nonsense\r\n").await.is_err());
    }
}
