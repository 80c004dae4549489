//! Pipes between us and the shims: FIFOs with names, so that both sides find them again. In: a folder per process. Out:
//! readers that end when the process' output ends, and the pump from a container's output to its log and to whoever is
//! attached.

use super::logs::{LogFile, Output};
use bytes::Bytes;
use nix::sys::stat::Mode;
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::unix::pipe,
    sync::{broadcast, mpsc, oneshot, watch},
};
use tokio_util::sync::CancellationToken;

/// Chunks that an attached client may lag behind before it misses some.
const LIVE: usize = 256;

/// The named pipes of one process.
#[derive(Debug, Clone)]
pub(crate) struct Fifos {
    folder: PathBuf,
    pub(crate) stdin: Option<PathBuf>,
    pub(crate) stdout: Option<PathBuf>,
    pub(crate) stderr: Option<PathBuf>,
}

impl Fifos {
    pub(crate) fn new(folder: &Path, stdin: bool, stdout: bool, stderr: bool) -> Self {
        let pipe = |wanted: bool, name: &str| wanted.then(|| folder.join(name));
        Self {
            folder: folder.into(),
            stdin: pipe(stdin, "stdin"),
            stdout: pipe(stdout, "stdout"),
            stderr: pipe(stderr, "stderr"),
        }
    }

    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten()
    }

    /// Makes the pipes anew: what an earlier attempt left in them is not ours.
    pub(crate) fn make(&self) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        for path in self.all() {
            if let Err(error) = std::fs::remove_file(path)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
            nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        }
        Ok(())
    }

    pub(crate) fn remove(&self) {
        for path in self.all() {
            let _ = std::fs::remove_file(path);
        }
        // The folder of a container also holds its record: it stays then.
        let _ = std::fs::remove_dir(&self.folder);
    }

    /// Opens both outputs for reading. While the returned files live, the readers do not end although no shim has
    /// opened the other side yet: drop them as soon as it has.
    pub(crate) fn open_outputs(&self) -> io::Result<(Outputs, Vec<File>)> {
        let mut held = Vec::new();
        let mut open = |path: &Option<PathBuf>| -> io::Result<Option<pipe::Receiver>> {
            let Some(path) = path else { return Ok(None) };
            let receiver = pipe::OpenOptions::new().open_receiver(path)?;
            held.push(OpenOptions::new().write(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?);
            Ok(Some(receiver))
        };
        let outputs = Outputs { stdout: open(&self.stdout)?, stderr: open(&self.stderr)? };
        Ok((outputs, held))
    }

    /// Opens standard input for writing. The reading side is held too, as the shim may not be there yet.
    pub(crate) fn open_stdin(&self) -> io::Result<Option<pipe::Sender>> {
        let open = |path: &PathBuf| pipe::OpenOptions::new().read_write(true).open_sender(path);
        self.stdin.as_ref().map(open).transpose()
    }
}

/// Readers of a process' output.
pub(crate) struct Outputs {
    pub(crate) stdout: Option<pipe::Receiver>,
    pub(crate) stderr: Option<pipe::Receiver>,
}

/// A container's output on its way to the log.
#[derive(Clone)]
pub(crate) struct Pump {
    live: broadcast::Sender<(Output, Bytes)>,
    done: watch::Receiver<bool>,
}

impl Pump {
    pub(crate) fn start(outputs: Outputs, log: LogFile, cancel: CancellationToken) -> Self {
        let live = broadcast::Sender::new(LIVE);
        let (ended, done) = watch::channel(false);
        let sender = live.clone();
        tokio::spawn(async move {
            run(outputs, log, &sender, cancel).await;
            ended.send_replace(true);
        });
        Self { live, done }
    }

    /// Output from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<(Output, Bytes)> {
        self.live.subscribe()
    }

    /// Returns when all output is in the log.
    pub(crate) async fn drained(&self) {
        // An error means that the pump is gone: nothing more will come either.
        let _ = self.done.clone().wait_for(|done| *done).await;
    }
}

async fn run(outputs: Outputs, mut log: LogFile, live: &broadcast::Sender<(Output, Bytes)>, cancel: CancellationToken) {
    let Outputs { mut stdout, mut stderr } = outputs;
    let (mut a, mut b) = (vec![0_u8; 32 << 10], vec![0_u8; 32 << 10]);
    let mut ended = true;
    while stdout.is_some() || stderr.is_some() {
        let (from, n) = tokio::select! {
            () = cancel.cancelled() => { ended = false; break }
            n = read(&mut stdout, &mut a) => (Output::Stdout, n),
            n = read(&mut stderr, &mut b) => (Output::Stderr, n),
        };
        let bytes = match from {
            Output::Stdout => &a[..n],
            Output::Stderr => &b[..n],
        };
        if n == 0 {
            match from {
                Output::Stdout => stdout = None,
                Output::Stderr => stderr = None,
            }
            continue;
        }
        log.write(from, bytes);
        if live.receiver_count() > 0 {
            let _ = live.send((from, Bytes::copy_from_slice(bytes)));
        }
    }
    log.finish(ended);
}

async fn read(from: &mut Option<pipe::Receiver>, buffer: &mut [u8]) -> usize {
    match from {
        Some(reader) => reader.read(buffer).await.unwrap_or_default(),
        None => std::future::pending().await,
    }
}

/// A reader that tells when it has been read to its end, or dropped.
pub(crate) struct Watched<R> {
    inner: R,
    _alive: Option<mpsc::Sender<()>>,
}

impl<R> Watched<R> {
    pub(crate) fn new(inner: R, alive: mpsc::Sender<()>) -> Self {
        Self { inner, _alive: Some(alive) }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Watched<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        let ended = match &result {
            Poll::Ready(Ok(())) => buf.filled().len() == before && buf.remaining() > 0,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        if ended {
            self._alive = None;
        }
        result
    }
}

/// Standard input of a process; dropping it or shutting it down ends the process' input.
pub(crate) struct Stdin(Option<OpenStdin>);

struct OpenStdin {
    // Dropped in this order: the pipe must be closed before the shim is told.
    pipe: pipe::Sender,
    _open: Option<oneshot::Sender<()>>,
}

impl Stdin {
    /// The receiver resolves when the writer is dropped or shut down.
    pub(crate) fn new(pipe: pipe::Sender) -> (Self, oneshot::Receiver<()>) {
        let (open, closed) = oneshot::channel();
        (Self(Some(OpenStdin { pipe, _open: Some(open) })), closed)
    }
}

impl AsyncWrite for Stdin {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Some(open) => Pin::new(&mut open.pipe).poll_write(cx, buf),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0 = None;
        Poll::Ready(Ok(()))
    }
}
