//! Connections to backends: in clear text, or in TLS on a backend's terms (BackendTLSPolicy). In: an address, and perhaps
//! terms. Out: a stream of bytes.

use super::connect;
use super::upstream_tls;
use crate::route::upstream::BackendTls;
use pingora::{Error, ErrorType, Result};
use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A connection to a backend.
#[derive(Debug)]
pub enum Wire {
    /// In clear text.
    Clear(TcpStream),
    /// The backend has proven itself.
    Secure(Box<TlsStream<TcpStream>>),
}

impl Wire {
    /// Connects; with terms, HTTP/2 or HTTP/1.1 is agreed on.
    pub async fn open(address: SocketAddr, terms: Option<&BackendTls>, h2: bool) -> Result<Self> {
        let tcp = connect::own(address, None).await.map_err(|error| not_connected(address, error))?;
        Self::over(tcp, terms, h2).await
    }

    /// Over a connection that has come about.
    pub async fn over(tcp: TcpStream, terms: Option<&BackendTls>, h2: bool) -> Result<Self> {
        Ok(match terms {
            Some(terms) => Self::Secure(Box::new(upstream_tls::handshake(tcp, terms, h2).await?)),
            None => Self::Clear(tcp),
        })
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Clear(tcp) => tcp,
            Self::Secure(tls) => tls.get_ref().0,
        }
    }
}

/// What leads to a connection to `address`, given up after `time`. Its errors are the backend's.
pub async fn within<T>(time: Duration, address: SocketAddr, opening: impl Future<Output = Result<T>>) -> Result<T> {
    let opened = tokio::time::timeout(time, opening).await;
    opened.unwrap_or_else(|late| Err(not_connected(address, late.into()))).map_err(|error| error.into_up())
}

fn not_connected(address: SocketAddr, error: io::Error) -> Box<Error> {
    // Of what else it can be, a client is told the same.
    let late = error.kind() == ErrorKind::TimedOut;
    let kind = if late { ErrorType::ConnectTimedout } else { ErrorType::ConnectError };
    Error::because(kind, format!("connecting to {address}"), error)
}

impl AsRawFd for Wire {
    fn as_raw_fd(&self) -> RawFd {
        self.tcp().as_raw_fd()
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Secure(tls) => match Pin::new(tls).poll_read(cx, buf) {
                // HTTP has its own framing; many servers close without a TLS goodbye.
                Poll::Ready(Err(error)) if error.kind() == ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
                other => other,
            },
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Secure(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Secure(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Secure(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Secure(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
