//! The byte stream below Pingora's HTTP: a TCP or TLS connection with a write buffer, and with the limits on a
//! request's head that Pingora leaves to the transport (its time-out starts anew with every byte, its head may be a
//! mebibyte).

use super::Limits;
use super::alarm::Alarm;
use super::cork::Corked;
use super::io::{Io, Rewind};
use super::upgrade::{Heir, Upgraded};
use async_trait::async_trait;
use futures::FutureExt as _;
use http::HeaderValue;
use parking_lot::Mutex;
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::SystemTime;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::server::TlsStream;

/// What an HTTP/2 client says first.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Waiting for the first byte of the first request.
const FIRST: u8 = 0;
/// The first byte of a further request has not been asked for yet.
const ANSWERED: u8 = 3;
/// Waiting for it.
const IDLE: u8 = 4;
/// Inside a request's head.
const HEAD: u8 = 1;
/// Behind the head: Pingora's own time-outs hold.
const BODY: u8 = 2;

/// A client's connection.
#[derive(Debug)]
pub struct Conn {
    /// Behind a lock for [`Conn::leave`] only: all else has the connection for itself, and takes none.
    io: Mutex<Corked<Io>>,
    /// Gets what it becomes.
    heir: Heir,
    fd: RawFd,
    /// Bytes that were read ahead and come first.
    ahead: Vec<u8>,
    h2: bool,
    tls: Option<Arc<SslDigest>>,
    socket: Option<Arc<SocketDigest>>,
    /// The client's address, as backends are told.
    client: Option<HeaderValue>,
    /// The port of ours that the client connected to.
    port: u16,
    established: SystemTime,
    phase: AtomicU8,
    head_bytes: usize,
    alarm: Alarm,
    limits: Arc<Limits>,
}

impl Conn {
    /// A connection in clear text, of a client (first) to a socket that listens at the second address.
    pub fn plain(stream: Rewind, ends: (SocketAddr, SocketAddr), limits: Arc<Limits>) -> Self {
        let fd = stream.tcp().as_raw_fd();
        Self::new(Io::Plain(stream), fd, ends, None, limits)
    }

    /// A connection whose TLS handshake is done.
    pub fn tls(stream: TlsStream<Rewind>, ends: (SocketAddr, SocketAddr), limits: Arc<Limits>) -> Self {
        let session = stream.get_ref().1;
        let version = session.protocol_version().and_then(|v| v.as_str()).unwrap_or_default();
        let cipher = session.negotiated_cipher_suite().and_then(|c| c.suite().as_str()).unwrap_or_default();
        // Pingora leaves no place of its own for the server name, and nothing here needs a client's organization.
        let name = session.server_name().map(str::to_ascii_lowercase);
        let digest = SslDigest::new(cipher, version, name, None, Vec::new());
        let fd = stream.get_ref().0.tcp().as_raw_fd();
        Self::new(Io::Tls(Box::new(stream)), fd, ends, Some(Arc::new(digest)), limits)
    }

    fn new(
        io: Io,
        fd: RawFd,
        (peer, local): (SocketAddr, SocketAddr),
        tls: Option<Arc<SslDigest>>,
        limits: Arc<Limits>,
    ) -> Self {
        let socket = SocketDigest::from_raw_fd(fd);
        // A cell that is new is empty.
        let _ = socket.peer_addr.set(Some(PingoraAddr::Inet(peer)));
        if !local.ip().is_unspecified() {
            let _ = socket.local_addr.set(Some(PingoraAddr::Inet(local)));
        }
        Self {
            io: Mutex::new(Corked::new(io)),
            heir: Heir::default(),
            fd,
            ahead: Vec::new(),
            h2: false,
            tls,
            socket: Some(Arc::new(socket)),
            client: address(peer.ip()),
            port: local.port(),
            established: SystemTime::now(),
            phase: AtomicU8::new(FIRST),
            head_bytes: 0,
            alarm: Alarm::new(limits.head_timeout),
            limits,
        }
    }

    /// Finds out, within the time a head may take, whether the client speaks HTTP/2 (by its preface).
    pub async fn detect(&mut self) -> io::Result<()> {
        let agreed = match self.io.get_mut().get_ref() {
            Io::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2".as_slice()),
            Io::Plain(_) => true,
            Io::Gone => false,
        };
        if !agreed {
            return Ok(());
        }
        let mut ahead = Vec::with_capacity(1024);
        while ahead.len() < H2_PREFACE.len() && H2_PREFACE.starts_with(&ahead) {
            if self.read_buf(&mut ahead).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.h2 = ahead.starts_with(H2_PREFACE);
        if self.tls.is_some() && !self.h2 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "agreed on HTTP/2, but did not speak it"));
        }
        if self.h2 {
            // From here on HTTP/2 has its own idle time-out and limits.
            self.phase.store(BODY, Ordering::Relaxed);
            self.io.get_mut().put_off();
        } else {
            // What is read again counts again.
            self.head_bytes = 0;
        }
        self.ahead = ahead;
        Ok(())
    }

    /// Of a stream of Pingora's, which has lost the type.
    pub fn of(stream: &Stream) -> Option<&Self> {
        (**stream).as_any().downcast_ref()
    }

    /// Speaks HTTP/2.
    pub fn is_h2(&self) -> bool {
        self.h2
    }

    /// The client's address, as backends are told.
    pub fn client(&self) -> Option<&HeaderValue> {
        self.client.as_ref()
    }

    /// The port of ours that the client connected to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The head of the request has been read.
    pub fn head_done(&self) {
        self.phase.store(BODY, Ordering::Relaxed);
    }

    /// Waits for the next request, with nothing of what one takes. False: the client has had its time, or is gone.
    pub async fn next(&mut self) -> bool {
        if *self.phase.get_mut() == BODY {
            *self.phase.get_mut() = ANSWERED;
        }
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if !self.ahead.is_empty() {
            return Poll::Ready(true);
        }
        if let Poll::Ready(more) = self.io.get_mut().get_mut().poll_more(cx) {
            return Poll::Ready(more);
        }
        self.pause();
        self.alarm.poll(cx).map(|()| false)
    }

    /// Nothing has come: behind an answer the idle time begins, in which nothing is held for writing.
    fn pause(&mut self) {
        if *self.phase.get_mut() == ANSWERED {
            *self.phase.get_mut() = IDLE;
            self.alarm.set(self.limits.idle_timeout);
            self.io.get_mut().rest();
        }
    }

    /// Nothing but the request's head, which is so long, has been read.
    pub fn has_read_only(&self, head: usize) -> bool {
        self.ahead.is_empty() && self.head_bytes == head
    }

    /// Where to look for what it has become, once it is over for HTTP.
    pub fn heir(&self) -> Heir {
        Arc::clone(&self.heir)
    }

    /// It is no more for HTTP: leaves the connection as what it has become.
    pub fn leave(&self, into: impl FnOnce(Corked<Io>) -> Upgraded) {
        let mut client = std::mem::replace(&mut *self.io.lock(), Corked::new(Io::Gone));
        client.pass_through();
        *self.heir.lock() = Some(Box::new(into(client)));
    }

    /// Passes `n` bytes that were read, unless the head has become too long.
    fn account(&mut self, n: usize, cx: &mut Context<'_>) -> io::Result<()> {
        if *self.phase.get_mut() != HEAD {
            *self.phase.get_mut() = HEAD;
            self.head_bytes = 0;
            self.alarm.set(self.limits.head_timeout);
        }
        self.head_bytes += n;
        if self.head_bytes > self.limits.max_head {
            self.refuse(
                cx,
                b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the request's head is too long"));
        }
        Ok(())
    }

    /// Answers without Pingora, as far as the socket takes it at once.
    fn refuse(&mut self, cx: &mut Context<'_>, answer: &[u8]) {
        if Pin::new(self.io.get_mut()).poll_write(cx, answer).is_ready() {
            let _ = self.io.get_mut().poll_send(cx);
        }
    }
}

/// An address as the value of a header.
pub fn address(ip: IpAddr) -> Option<HeaderValue> {
    HeaderValue::try_from(ip.to_canonical().to_string()).ok()
}

impl AsyncRead for Conn {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() {
            let n = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead[..n]);
            this.ahead.drain(..n);
            if this.ahead.is_empty() {
                this.ahead = Vec::new();
            }
            let counted = *this.phase.get_mut() != BODY;
            return Poll::Ready(if counted { this.account(n, cx) } else { Ok(()) });
        }
        if *this.phase.get_mut() == BODY {
            return Pin::new(this.io.get_mut()).poll_read(cx, buf);
        }
        let before = buf.filled().len();
        match Pin::new(this.io.get_mut()).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => match buf.filled().len() - before {
                0 => Poll::Ready(Ok(())),
                n => Poll::Ready(this.account(n, cx)),
            },
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                this.pause();
                ready!(this.alarm.poll(cx));
                if *this.phase.get_mut() == IDLE {
                    // As if the client had closed it.
                    return Poll::Ready(Ok(()));
                }
                if *this.phase.get_mut() == HEAD && !this.h2 {
                    this.refuse(cx, b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
                }
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.io.get_mut()).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.io.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.io.get_mut()).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.io.get_mut()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        // What Pingora wrote last may still be in the buffer; the socket usually takes it at once.
        if !self.io.get_mut().is_empty() {
            let _ = poll_fn(|cx| self.io.get_mut().poll_send(cx)).now_or_never();
        }
    }
}

#[async_trait]
impl Shutdown for Conn {
    async fn shutdown(&mut self) {
        if let Err(error) = AsyncWriteExt::shutdown(self).await {
            tracing::trace!(%error, "connection already gone");
        }
    }
}

impl UniqueID for Conn {
    fn id(&self) -> UniqueIDType {
        self.fd
    }
}

impl Ssl for Conn {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.tls.clone()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        Some(if self.h2 { ALPN::H2 } else { ALPN::H1 })
    }
}

impl GetTimingDigest for Conn {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        vec![Some(TimingDigest { established_ts: self.established, ..TimingDigest::default() })]
    }
}

impl GetProxyDigest for Conn {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Conn {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.socket.clone()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.socket = Some(Arc::new(digest));
    }
}

impl Peek for Conn {}
