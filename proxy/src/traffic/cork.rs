//! A write buffer. For HTTP/2 it lets what many streams write leave together.
//!
//! The HTTP/2 library flushes after every frame, so that each answer costs a TLS record and a system call, however many
//! are ready. Here a flush is put off until the connection's task has run again, behind the tasks that can run already: it
//! wakes itself for that. Whatever they have to send comes along, and nobody waits for anything but work to be done.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is written together at most, in bytes: as much as a TLS record holds.
const TOGETHER: usize = 16 * 1024;
/// What is allocated for it at first, and what is kept.
const USUALLY: usize = 4096;

/// A stream with a write buffer.
#[derive(Debug)]
pub struct Corked<S> {
    stream: S,
    buffer: Vec<u8>,
    /// So much of the buffer has been written.
    written: usize,
    /// Flushes are put off.
    putting_off: bool,
    owed: Owed,
    /// The next flush is left out.
    skipping: bool,
    /// Nothing is buffered but what such a flush was for.
    through: bool,
}

/// How far a flush has been put off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owed {
    /// Not at all.
    Nothing,
    /// Until the task has run again.
    Run,
    /// It runs again: until it has taken what the others have to send. There were so many bytes before.
    Since(usize),
    /// It has taken some: until the next read, when all of it is here.
    Read,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Corked<S> {
    /// One that writes when it is told to.
    pub fn new(stream: S) -> Self {
        let owed = Owed::Nothing;
        Self { stream, buffer: Vec::new(), written: 0, putting_off: false, owed, skipping: false, through: false }
    }

    /// One that is written to in large parts: it buffers only what is to leave with the next part.
    pub fn through(stream: S) -> Self {
        Self { through: true, ..Self::new(stream) }
    }

    /// From here on flushes are put off. Whoever uses it has to ask for something to read whenever its task runs, as
    /// HTTP/2 connections do.
    pub fn put_off(&mut self) {
        self.putting_off = true;
    }

    /// From here on it is written to in large parts, and holds nothing for them.
    pub fn pass_through(&mut self) {
        self.through = true;
        self.rest();
    }

    /// The next flush does nothing, as more is written at once and flushed.
    pub fn skip_flush(&mut self) {
        self.skipping = true;
    }

    /// The stream below.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The stream below, to be read from.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Nothing is written for a while: holds no memory for it.
    pub fn rest(&mut self) {
        self.buffer.shrink_to(0);
    }

    /// Nothing waits to be written.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Writes what is in the buffer, and has it sent.
    pub fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_empty(cx))?;
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.owed = Owed::Nothing;
        Poll::Ready(Ok(()))
    }

    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let rest @ [_, ..] = &self.buffer[self.written..] {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.written += n,
            }
        }
        self.written = 0;
        self.buffer.clear();
        // What was more is not kept for connections that wait.
        self.buffer.shrink_to(USUALLY);
        Poll::Ready(Ok(()))
    }

    /// What has not been written, in bytes.
    fn waiting(&self) -> usize {
        self.buffer.len() - self.written
    }

    /// Makes room for `bytes` more; false: they go past the buffer, which is empty.
    fn poll_room(&mut self, cx: &mut Context<'_>, bytes: usize) -> Poll<io::Result<bool>> {
        if self.waiting() + bytes > TOGETHER {
            ready!(self.poll_empty(cx))?;
        }
        if bytes >= TOGETHER || (self.through && !self.skipping && self.buffer.is_empty()) {
            return Poll::Ready(Ok(false));
        }
        self.buffer.drain(..std::mem::take(&mut self.written));
        if self.buffer.capacity() == 0 {
            self.buffer.reserve(USUALLY.max(bytes));
        }
        Poll::Ready(Ok(true))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Corked<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.owed {
            Owed::Nothing => {}
            Owed::Run => this.owed = Owed::Since(this.waiting()),
            Owed::Since(_) | Owed::Read => match this.poll_send(cx) {
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => {}
                // The socket says when there is room; until then this is what everything waits for.
                Poll::Pending => this.owed = Owed::Read,
            },
        }
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !ready!(this.poll_room(cx, buf.len()))? {
            return Pin::new(&mut this.stream).poll_write(cx, buf);
        }
        this.buffer.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let all = bufs.iter().map(|buf| buf.len()).sum();
        if !ready!(this.poll_room(cx, all))? {
            return Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        }
        for buf in bufs {
            this.buffer.extend_from_slice(buf);
        }
        Poll::Ready(Ok(all))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if std::mem::take(&mut this.skipping) {
            return Poll::Ready(Ok(()));
        }
        if !this.putting_off || this.buffer.is_empty() {
            return this.poll_send(cx);
        }
        this.owed = match this.owed {
            Owed::Nothing => Owed::Run,
            Owed::Since(before) if before == this.waiting() => return this.poll_send(cx),
            Owed::Since(_) => Owed::Read,
            Owed::Run | Owed::Read => return Poll::Ready(Ok(())),
        };
        cx.waker().wake_by_ref();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_empty(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::{Wake, Waker};

    /// Takes note of what is written together, takes up to `room` bytes, and has nothing to read.
    #[derive(Default)]
    struct Wire {
        written: Vec<Vec<u8>>,
        room: usize,
        broken: bool,
    }

    impl AsyncRead for Wire {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Wire {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            if self.broken {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let n = buf.len().min(self.room);
            if n == 0 {
                return Poll::Pending;
            }
            self.room -= n;
            self.written.push(buf[..n].to_vec());
            Poll::Ready(Ok(n))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[derive(Default)]
    struct Woken(AtomicU32);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A connection's task, driven by hand as the HTTP/2 library does it: reads, then writes and flushes each frame.
    struct Task {
        io: Corked<Wire>,
        woken: Arc<Woken>,
        waker: Waker,
        /// What the last read failed with.
        failed: Option<io::ErrorKind>,
    }

    impl Task {
        fn new(room: usize) -> Self {
            let mut io = Corked::new(Wire { room, ..Wire::default() });
            io.put_off();
            let woken = Arc::new(Woken::default());
            Self { io, waker: Waker::from(Arc::clone(&woken)), woken, failed: None }
        }

        /// Runs once. Whether it woke itself.
        fn run(&mut self, frames: &[&[u8]]) -> bool {
            let before = self.woken.0.load(Ordering::Relaxed);
            let cx = &mut Context::from_waker(&self.waker);
            self.failed = match Pin::new(&mut self.io).poll_read(cx, &mut ReadBuf::new(&mut [0; 8])) {
                Poll::Ready(Err(error)) => Some(error.kind()),
                _ => None,
            };
            for frame in frames {
                assert!(matches!(Pin::new(&mut self.io).poll_write(cx, frame), Poll::Ready(Ok(n)) if n == frame.len()));
                assert!(matches!(Pin::new(&mut self.io).poll_flush(cx), Poll::Ready(Ok(()))));
            }
            let _ = Pin::new(&mut self.io).poll_flush(cx);
            self.woken.0.load(Ordering::Relaxed) > before
        }

        fn written(&self) -> Vec<&[u8]> {
            self.io.stream.written.iter().map(Vec::as_slice).collect()
        }
    }

    #[test]
    fn what_is_there_to_be_sent_leaves_together() {
        let mut task = Task::new(usize::MAX);
        assert!(task.run(&[b"one ", b"two "]), "it has to run again");
        assert!(task.written().is_empty());
        assert!(task.run(&[b"three ", b"four"]), "others had something to send as well");
        assert!(task.written().is_empty());
        assert!(!task.run(&[]));
        assert_eq!(task.written(), [b"one two three four"]);
        assert!(!task.run(&[]), "nothing is left to be done");
        assert_eq!(task.io.waiting(), 0, "nothing waits");
    }

    #[test]
    fn nothing_waits_for_what_does_not_come() {
        let mut task = Task::new(usize::MAX);
        assert!(task.run(&[b"alone"]));
        assert!(!task.run(&[]));
        assert_eq!(task.written(), [b"alone"], "sent the next time that it ran");
        // The next time it runs right after that.
        assert!(task.run(&[b"a"]));
        assert!(task.run(&[b"b"]));
        assert!(task.run(&[b"c"]), "the former are sent, and this one waits for others");
        assert_eq!(task.written(), [&b"alone"[..], b"ab"]);
        assert!(!task.run(&[]));
        assert_eq!(task.written(), [&b"alone"[..], b"ab", b"c"]);
    }

    #[test]
    fn a_client_that_takes_nothing_holds_it_up_within_bounds() {
        let mut task = Task::new(3);
        task.run(&[b"abcdef"]);
        assert!(!task.run(&[]));
        assert_eq!(task.written(), [b"abc"]);
        task.io.stream.room = 1;
        assert!(!task.run(&[]), "the socket says when there is room again");
        let cx = &mut Context::from_waker(&task.waker);
        let frame = vec![b'x'; TOGETHER - 4];
        assert!(Pin::new(&mut task.io).poll_write(cx, &frame).is_ready(), "two bytes are still in the buffer");
        assert!(Pin::new(&mut task.io).poll_write(cx, &frame).is_pending());
        for _ in 0..100 {
            task.io.stream.room = 1000;
            task.run(&[]);
            let _ = Pin::new(&mut task.io).poll_write(&mut Context::from_waker(&task.waker), &[b'y'; 1000]);
        }
        assert!(task.io.buffer.capacity() <= 2 * TOGETHER, "{}", task.io.buffer.capacity());
        task.io.stream.room = usize::MAX;
        assert!(!task.run(&[]));
        let written = task.written().concat();
        assert!(written.starts_with(b"abcdefxx") && written.ends_with(b"yy"));
        assert!(task.io.is_empty());
    }

    #[test]
    fn much_is_written_at_once_and_in_order() {
        let mut task = Task::new(usize::MAX);
        let frame = vec![b'x'; TOGETHER];
        let cx = &mut Context::from_waker(&task.waker);
        assert!(Pin::new(&mut task.io).poll_write(cx, b"head").is_ready());
        assert!(Pin::new(&mut task.io).poll_write(cx, &frame).is_ready());
        assert_eq!(task.written(), [&b"head"[..], &frame]);
        let two = [IoSlice::new(b"a"), IoSlice::new(b"b")];
        assert!(matches!(Pin::new(&mut task.io).poll_write_vectored(cx, &two), Poll::Ready(Ok(2))));
        assert!(Pin::new(&mut task.io).poll_shutdown(cx).is_ready());
        assert_eq!(task.written()[2..], [b"ab"], "with the end");
    }

    #[test]
    fn a_broken_connection_is_told_by_the_next_read() {
        let mut task = Task::new(usize::MAX);
        task.run(&[b"lost"]);
        task.io.stream.broken = true;
        task.run(&[b" too"]);
        assert_eq!(task.failed, None);
        task.run(&[]);
        assert_eq!(task.failed, Some(io::ErrorKind::BrokenPipe));
    }

    #[tokio::test]
    async fn without_putting_off_it_writes_when_it_is_told_to() {
        let mut io = Corked::new(Wire { room: usize::MAX, ..Wire::default() });
        poll_fn(|cx| Pin::new(&mut io).poll_write(cx, b"head ")).await.unwrap();
        poll_fn(|cx| Pin::new(&mut io).poll_write(cx, b"body")).await.unwrap();
        assert!(io.stream.written.is_empty());
        poll_fn(|cx| Pin::new(&mut io).poll_flush(cx)).await.unwrap();
        assert_eq!(io.stream.written, [b"head body"]);
    }

    #[tokio::test]
    async fn a_head_waits_for_its_body_only_where_there_is_one() {
        let mut io = Corked::through(Wire { room: usize::MAX, ..Wire::default() });
        for (skipping, parts) in [(false, &["alone"][..]), (true, &["head ", "body"]), (false, &["a", "b"])] {
            if skipping {
                io.skip_flush();
            }
            for part in parts {
                poll_fn(|cx| Pin::new(&mut io).poll_write(cx, part.as_bytes())).await.unwrap();
                poll_fn(|cx| Pin::new(&mut io).poll_flush(cx)).await.unwrap();
            }
        }
        assert_eq!(io.stream.written, [&b"alone"[..], b"head body", b"a", b"b"]);
    }
}
