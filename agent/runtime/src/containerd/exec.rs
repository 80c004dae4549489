//! Exec and attach. In: a command and the streams that are wanted. Out: an [`ExecSession`] whose exit code comes after
//! the last byte of output, and a process that is killed when nobody wants it any more.

use super::{
    Inner,
    io::{Fifos, Pump, Stdin, Watched},
    logs::Output,
    record::{STDIN, STDIN_ONCE, TTY, own_label},
    rpc::{LONG, SHORT, words},
    spec,
};
use crate::types::{BoxRead, BoxWrite, ExecOutput, ExecSession, ExecSpec, Result, RuntimeError, TerminalSize};
use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, ResizePtyRequest, StartRequest,
};
use oci_spec::runtime::Spec;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{broadcast, mpsc, oneshot},
};
use tonic::Status;

/// What probes and hooks may say.
const MAX_OUTPUT: usize = 64 << 10;

impl Inner {
    pub(super) async fn exec(self: Arc<Self>, id: &str, wish: &ExecSpec) -> Result<ExecSession> {
        let container = self.container(id).await?;
        let doing = || format!("exec in container {id}");
        let fail = |detail: String| RuntimeError::Other { doing: doing(), detail };
        if wish.command.is_empty() {
            return Err(fail("no command given".into()));
        }
        let built = container.spec.as_ref().map(|any| serde_json::from_slice::<Spec>(&any.value));
        let built = built.ok_or_else(|| fail("the container has no specification".into()))?;
        let built = built.map_err(|error| fail(error.to_string()))?;
        let process = built.process().as_ref().ok_or_else(|| fail("the container has no process".into()))?;
        let process = spec::exec_process(process, &wish.command, wish.tty);
        let exec_id = uuid::Uuid::new_v4().to_string();
        let folder = self.config.state_dir.join("exec").join(&exec_id);
        let fifos = Fifos::new(&folder, wish.stdin, wish.stdout, wish.stderr && !wish.tty);
        fifos.make().map_err(|error| fail(format!("making its pipes: {error}")))?;
        let session = Started { inner: self, id: id.into(), exec_id, fifos };
        let json = serde_json::to_vec(&process).map_err(|error| fail(error.to_string()))?;
        // A task of its own: a caller who goes away in the middle must not leave a process that nobody attends.
        let starting = tokio::spawn(session.start(wish.clone(), json));
        starting.await.map_err(|error| fail(error.to_string()))?
    }

    pub(super) async fn exec_sync(
        self: Arc<Self>,
        id: &str,
        command: &[String],
        limit: Duration,
    ) -> Result<ExecOutput> {
        let wish = ExecSpec { command: command.to_vec(), stdout: true, stderr: true, ..Default::default() };
        let work = async {
            let session = self.exec(id, &wish).await?;
            let text = Arc::new(parking_lot::Mutex::new(Vec::new()));
            Ok::<_, RuntimeError>((collect(session, text.clone()), text))
        };
        let deadline = tokio::time::Instant::now() + limit;
        // Starting it counts too: a probe's time-out is about the whole of it.
        let (collecting, text) = match tokio::time::timeout_at(deadline, work).await {
            Ok(started) => started?,
            Err(_) => return Ok(ExecOutput::default()),
        };
        let code = tokio::time::timeout_at(deadline, collecting).await.ok().flatten();
        let output = String::from_utf8_lossy(&text.lock()).into_owned();
        Ok(ExecOutput { code, output })
    }

    pub(super) async fn attach(self: Arc<Self>, id: &str, wish: &ExecSpec) -> Result<ExecSession> {
        let container = self.container(id).await?;
        let fail = |detail: String| RuntimeError::Other { doing: format!("attaching to container {id}"), detail };
        let pump = self.pumps.lock().get(id).cloned().ok_or_else(|| fail("it is not running".into()))?;
        let is = |name: &str| own_label(&container, name) == Some("true");
        let stdin = if wish.stdin && is(STDIN) {
            let fifos = Fifos::new(&self.folder(id), true, false, false);
            fifos.open_stdin().map_err(|error| fail(error.to_string()))?
        } else {
            None
        };
        let (stdout, stdout_end) = wish.stdout.then(|| tokio::io::duplex(MAX_OUTPUT)).unzip();
        let (stderr, stderr_end) = (wish.stderr && !is(TTY)).then(|| tokio::io::duplex(MAX_OUTPUT)).unzip();
        let (alive, mut read_out) = mpsc::channel(1);
        let watched = |half: tokio::io::DuplexStream| Box::new(Watched::new(half, alive.clone())) as BoxRead;
        let (stdout, stderr) = (stdout.map(watched), stderr.map(watched));
        drop(alive);
        let (resize, sizes) = mpsc::channel(8);
        let (exit, exited) = oneshot::channel();
        let live = pump.subscribe();
        let id = id.to_string();
        let (stdin, closed) = stdin.map(Stdin::new).unzip();
        // Otherwise the container's input stays open for the next who attaches.
        if let Some(closed) = closed.filter(|_| is(STDIN_ONCE)) {
            let (inner, id) = (self.clone(), id.clone());
            tokio::spawn(async move {
                let _ = closed.await;
                inner.close_stdin(&id, "").await;
            });
        }
        tokio::spawn(async move {
            let (mut exit, inner) = (exit, self);
            let resizing = tokio::spawn(inner.clone().resize(id.clone(), String::new(), sizes));
            let ended = async {
                relay(&pump, live, stdout_end, stderr_end).await;
                inner.wait(&id, "").await.map_or(255, |(code, _)| code)
            };
            let code = tokio::select! { code = ended => Some(code), () = exit.closed() => None };
            if let Some(code) = code {
                let _ = read_out.recv().await;
                let _ = exit.send(code);
            }
            resizing.abort();
        });
        let stdin = stdin.map(|stdin| Box::new(stdin) as BoxWrite);
        Ok(ExecSession { stdin, stdout, stderr, resize, exit: exited })
    }

    async fn resize(self: Arc<Self>, id: String, exec_id: String, mut sizes: mpsc::Receiver<TerminalSize>) {
        while let Some(size) = sizes.recv().await {
            let request = ResizePtyRequest {
                container_id: id.clone(),
                exec_id: exec_id.clone(),
                width: size.width.into(),
                height: size.height.into(),
            };
            if let Err(status) = self.api.tasks().resize_pty(self.api.ask(request, SHORT)).await {
                tracing::debug!(container = id, error = words(&status), "resizing a terminal");
            }
        }
    }

    async fn close_stdin(&self, id: &str, exec_id: &str) {
        let request = CloseIoRequest { container_id: id.into(), exec_id: exec_id.into(), stdin: true };
        if let Err(status) = self.api.tasks().close_io(self.api.ask(request, SHORT)).await {
            tracing::debug!(container = id, error = words(&status), "closing standard input");
        }
    }
}

/// An exec on its way; its pipes are removed with it.
struct Started {
    inner: Arc<Inner>,
    id: String,
    exec_id: String,
    fifos: Fifos,
}

impl Drop for Started {
    fn drop(&mut self) {
        self.fifos.remove();
    }
}

impl Started {
    async fn start(self, wish: ExecSpec, process: Vec<u8>) -> Result<ExecSession> {
        let doing = format!("exec in container {}", self.id);
        let fail = |detail: String| RuntimeError::Other { doing: doing.clone(), detail };
        let (outputs, held) = self.fifos.open_outputs().map_err(|error| fail(error.to_string()))?;
        let stdin = self.fifos.open_stdin().map_err(|error| fail(error.to_string()))?;
        self.request(&wish, process).await.map_err(|status| self.inner.api.fail(doing.clone(), &status))?;
        drop(held);
        let (alive, drained) = mpsc::channel(1);
        let watched = |pipe| Box::new(Watched::new(pipe, alive.clone())) as BoxRead;
        let (stdout, stderr) = (outputs.stdout.map(watched), outputs.stderr.map(watched));
        drop(alive);
        let (resize, sizes) = mpsc::channel(8);
        let (exit, exited) = oneshot::channel();
        let (stdin, closed) = stdin.map(Stdin::new).unzip();
        let session =
            ExecSession { stdin: stdin.map(|s| Box::new(s) as BoxWrite), stdout, stderr, resize, exit: exited };
        tokio::spawn(self.attend(sizes, closed, drained, exit));
        Ok(session)
    }

    async fn request(&self, wish: &ExecSpec, process: Vec<u8>) -> Result<(), Status> {
        let (api, path) = (&self.inner.api, |p: &Option<PathBuf>| {
            p.as_ref().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default()
        });
        let request = ExecProcessRequest {
            container_id: self.id.clone(),
            exec_id: self.exec_id.clone(),
            stdin: path(&self.fifos.stdin),
            stdout: path(&self.fifos.stdout),
            stderr: path(&self.fifos.stderr),
            terminal: wish.tty,
            spec: Some(prost_types::Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
                value: process,
            }),
        };
        api.tasks().exec(api.ask(request, SHORT)).await?;
        let start = StartRequest { container_id: self.id.clone(), exec_id: self.exec_id.clone() };
        if let Err(status) = api.tasks().start(api.ask(start, LONG)).await {
            self.delete().await;
            return Err(status);
        }
        Ok(())
    }

    async fn delete(&self) {
        let request = DeleteProcessRequest { container_id: self.id.clone(), exec_id: self.exec_id.clone() };
        let _ = self.inner.api.tasks().delete_process(self.inner.api.ask(request, SHORT)).await;
    }

    /// Sees the process to its end.
    async fn attend(
        self,
        sizes: mpsc::Receiver<TerminalSize>,
        closed: Option<oneshot::Receiver<()>>,
        mut drained: mpsc::Receiver<()>,
        mut exit: oneshot::Sender<i32>,
    ) {
        let inner = &self.inner;
        let resizing = tokio::spawn(inner.clone().resize(self.id.clone(), self.exec_id.clone(), sizes));
        let closing = async {
            if let Some(closed) = closed {
                let _ = closed.await;
                inner.close_stdin(&self.id, &self.exec_id).await;
            }
            std::future::pending::<()>().await;
        };
        // containerd may cut the output of a process that is deleted: all of it must have been read before.
        let ended = async {
            let code = inner.wait(&self.id, &self.exec_id).await.map_or(255, |(code, _)| code);
            let _ = drained.recv().await;
            code
        };
        tokio::select! {
            code = ended => {
                self.delete().await;
                let _ = exit.send(code);
            }
            () = closing => {}
            () = exit.closed() => self.abandon().await,
        }
        resizing.abort();
    }

    async fn abandon(&self) {
        let _ = self.inner.kill(&self.id, &self.exec_id, nix::libc::SIGKILL as u32, true).await;
        let _ = tokio::time::timeout(Duration::from_secs(10), self.inner.wait(&self.id, &self.exec_id)).await;
        self.delete().await;
    }
}

async fn collect(session: ExecSession, text: Arc<parking_lot::Mutex<Vec<u8>>>) -> Option<i32> {
    let ExecSession { stdout, stderr, exit, stdin: _stdin, resize: _resize } = session;
    let drain = async |reader: Option<BoxRead>| {
        let Some(mut reader) = reader else { return };
        let mut buffer = vec![0_u8; 8 << 10];
        while let Ok(n @ 1..) = reader.read(&mut buffer).await {
            let mut text = text.lock();
            let room = MAX_OUTPUT - text.len();
            text.extend_from_slice(&buffer[..n.min(room)]);
        }
    };
    let ((), (), code) = tokio::join!(drain(stdout), drain(stderr), exit);
    code.ok()
}

/// From the pump to one attached client. A client that reads too slowly misses output; the log has it.
async fn relay(
    pump: &Pump,
    mut live: broadcast::Receiver<(Output, bytes::Bytes)>,
    mut stdout: Option<tokio::io::DuplexStream>,
    mut stderr: Option<tokio::io::DuplexStream>,
) {
    loop {
        // We hold the pump, so the live stream does not end by itself; what is queued comes first.
        let next = tokio::select! {
            biased;
            next = live.recv() => next,
            () = pump.drained() => return,
        };
        match next {
            Ok((from, bytes)) => {
                let end = match from {
                    Output::Stdout => &mut stdout,
                    Output::Stderr => &mut stderr,
                };
                if let Some(stream) = end
                    && stream.write_all(&bytes).await.is_err()
                {
                    *end = None;
                }
            }
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}
