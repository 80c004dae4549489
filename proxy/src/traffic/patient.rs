//! A backend's connection for a request that asks for another protocol (WebSocket). Pingora's HTTP/1.1 waits for the
//! answer and for the end of the request at once; should it see the answer first, it takes the request's end, which comes
//! next, for the end of the new protocol, and closes. So what has just been written is followed by one round in which
//! nothing can be read: in that round it sees the request's end, which has always been there by then.
//!
//! In: a connection. Out: the same bytes, those that are read one round later.

use super::wire::Wire;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection to a backend that may be answered before it is asked.
#[derive(Debug)]
pub struct Patient {
    wire: Wire,
    /// Something was written since the last read.
    written: bool,
}

impl Patient {
    /// Nothing was written yet.
    pub fn new(wire: Wire) -> Self {
        Self { wire, written: false }
    }
}

impl VirtualSocket for Patient {
    fn set_socket_option(&self, _option: VirtualSockOpt) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Patient {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if std::mem::take(&mut this.written) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut this.wire).poll_read(cx, buf)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let n = ready!(Pin::new(&mut this.wire).poll_write(cx, buf))?;
        this.written = true;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_shutdown(cx)
    }
}
