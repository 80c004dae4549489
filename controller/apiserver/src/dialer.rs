//! The way from the API server to nodes and pods, which may be in another network than its own.

use async_trait::async_trait;
use std::io;
use std::net::SocketAddr;
use tokio::net::TcpStream;

/// Opens TCP connections into the network the nodes are in.
#[async_trait]
pub trait NodeDialer: Send + Sync {
    /// Connects to a kubelet's address.
    async fn dial(&self, addr: SocketAddr) -> io::Result<TcpStream>;
}

/// Dials from where the API server runs.
pub struct DirectDialer;

#[async_trait]
impl NodeDialer for DirectDialer {
    async fn dial(&self, addr: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(addr).await
    }
}
