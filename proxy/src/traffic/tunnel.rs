//! Two connections joined: what comes on one is sent on the other, until both have said all. In: a client's and a
//! backend's stream. Out: how much went each way.
//!
//! Connections that wait hold no buffer: all of a thread read into the same one, and only what the other side did not
//! take at once is kept for it.

use super::alarm::Alarm;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is read at once, in bytes.
const PART: usize = 32 * 1024;
/// So many parts go one way before the other has its turn.
const TURN: usize = 16;

thread_local! {
    /// What all of this thread read into. Nothing stays in it.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; PART]);
}

/// Bytes that have gone each way; true while the connections are joined and after.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// From the client to the backend.
    pub up: u64,
    /// From the backend to the client.
    pub down: u64,
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    /// Read, but not taken by the other side.
    left: Vec<u8>,
    /// So much of it has been taken.
    taken: usize,
    /// Written, but not flushed.
    unflushed: bool,
    /// The side that is read has said all.
    ended: bool,
    /// And the other has been told so.
    closed: bool,
    bytes: u64,
}

/// Joins two streams until both have said all, or until neither has said anything for `silence`. `passed` tells how far
/// it came, also when it fails.
///
/// # Errors
/// One of the connections broke off, or both were silent for too long ([`io::ErrorKind::TimedOut`]).
pub async fn join(
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    backend: &mut (impl AsyncRead + AsyncWrite + Unpin),
    silence: Option<Duration>,
    passed: &mut Passed,
) -> io::Result<()> {
    let (mut up, mut down) = (Way::default(), Way::default());
    let mut alarm = silence.map(Alarm::new);
    poll_fn(|cx| {
        let before = up.bytes + down.bytes;
        let ended = BUFFER.with_borrow_mut(|buffer| {
            let sent = up.poll(cx, client, backend, buffer)?;
            let received = down.poll(cx, backend, client, buffer)?;
            io::Result::Ok(sent.is_ready() && received.is_ready())
        });
        (passed.up, passed.down) = (up.bytes, down.bytes);
        if ended? {
            return Poll::Ready(Ok(()));
        }
        if let (Some(alarm), Some(silence)) = (&mut alarm, silence) {
            if up.bytes + down.bytes > before {
                alarm.set(silence);
            }
            ready!(alarm.poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    })
    .await
}

impl Way {
    /// Passes on what there is. Ready: all has been said.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        buffer: &mut [u8],
    ) -> Poll<io::Result<()>> {
        for _ in 0..TURN {
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            while let rest @ [_, ..] = &self.left[self.taken..] {
                let n = ready!(Pin::new(&mut *to).poll_write(cx, rest))?;
                self.wrote(n)?;
                self.taken += n;
            }
            (self.left, self.taken) = (Vec::new(), 0);
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.closed = true;
                continue;
            }
            let mut part = ReadBuf::new(buffer);
            let Poll::Ready(()) = Pin::new(&mut *from).poll_read(cx, &mut part)? else {
                if self.unflushed {
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            };
            let part = part.filled();
            self.ended = part.is_empty();
            if self.ended {
                continue;
            }
            let taken = match Pin::new(&mut *to).poll_write(cx, part)? {
                Poll::Ready(n) => {
                    self.wrote(n)?;
                    n
                }
                Poll::Pending => 0,
            };
            self.left.extend_from_slice(&part[taken..]);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn wrote(&mut self, n: usize) -> io::Result<()> {
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.bytes += n as u64;
        self.unflushed = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::task::JoinHandle;

    type Joined = JoinHandle<(io::Result<()>, Passed)>;

    /// A client and a backend that are joined, each with `room` bytes between.
    fn joined(room: usize, silence: Option<Duration>) -> (DuplexStream, DuplexStream, Joined) {
        let (client, mut inner) = duplex(room);
        let (backend, mut outer) = duplex(room);
        let joined = tokio::spawn(async move {
            let mut passed = Passed::default();
            let ended = join(&mut inner, &mut outer, silence, &mut passed).await;
            (ended, passed)
        });
        (client, backend, joined)
    }

    #[tokio::test]
    async fn everything_goes_both_ways_and_each_end_on_its_own() {
        let (client, backend, joined) = joined(7, None);
        let (mut from_client, mut to_backend) = tokio::io::split(client);
        let (mut from_backend, mut to_client) = tokio::io::split(backend);
        let much: Vec<u8> = (0..3 * PART).map(|i| (i % 251) as u8).collect();
        let (mut up, mut down) = (Vec::new(), Vec::new());
        let (_, read, _, _) = tokio::join!(
            async {
                to_backend.write_all(&much).await.unwrap();
                to_backend.shutdown().await.unwrap();
            },
            from_backend.read_to_end(&mut up),
            async {
                to_client.write_all(&much[1..]).await.unwrap();
                to_client.write_all(b"the client has long said all").await.unwrap();
                to_client.shutdown().await.unwrap();
            },
            from_client.read_to_end(&mut down),
        );
        read.unwrap();
        assert!(up == much, "{} bytes", up.len());
        assert!(down == [&much[1..], b"the client has long said all"].concat(), "{} bytes", down.len());
        let (ended, passed) = joined.await.unwrap();
        ended.unwrap();
        assert_eq!(passed, Passed { up: up.len() as u64, down: down.len() as u64 });
    }

    #[tokio::test(start_paused = true)]
    async fn either_side_keeps_both_from_being_silent() {
        let silence = Duration::from_secs(60);
        let (mut client, mut backend, joined) = joined(64, Some(silence));
        let start = tokio::time::Instant::now();
        for _ in 0..5 {
            tokio::time::sleep(silence * 2 / 3).await;
            client.write_all(b"ping").await.unwrap();
            backend.read_exact(&mut [0; 4]).await.unwrap();
        }
        for _ in 0..5 {
            tokio::time::sleep(silence * 2 / 3).await;
            backend.write_all(b"pong").await.unwrap();
            client.read_exact(&mut [0; 4]).await.unwrap();
        }
        let (ended, passed) = joined.await.unwrap();
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(passed, Passed { up: 20, down: 20 });
        assert_eq!(start.elapsed().as_secs(), 40 * 10 + 60);
    }

    #[tokio::test]
    async fn who_never_stops_lets_the_other_speak() {
        let mut client = tokio::io::join(tokio::io::repeat(b'x'), tokio::io::sink());
        let mut backend = tokio::io::join(&b"pong"[..], tokio::io::sink());
        let mut passed = Passed::default();
        let joining = join(&mut client, &mut backend, None, &mut passed);
        assert!(tokio::time::timeout(Duration::from_millis(10), joining).await.is_err());
        assert_eq!(passed.down, 4);
        assert!(passed.up > 0);
    }

    #[tokio::test]
    async fn who_takes_nothing_is_sent_no_more_than_what_was_read() {
        let (mut client, backend, joined) = joined(16, None);
        let much = vec![b'x'; 4 * PART];
        let writing = tokio::time::timeout(Duration::from_millis(50), client.write_all(&much));
        assert!(writing.await.is_err(), "nobody has taken it");
        drop(backend);
        let (ended, passed) = joined.await.unwrap();
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(passed.up <= 16, "{passed:?}");
    }
}
