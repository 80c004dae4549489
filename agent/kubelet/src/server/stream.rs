//! exec and attach over WebSocket, in Kubernetes' channel protocols v4 and v5: the first byte of a message is the
//! channel (0 stdin, 1 stdout, 2 stderr, 3 the final Status, 4 terminal size; in v5 255 closes a channel).

use super::Api;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use causeway_runtime::{BoxRead, BoxWrite, ContainerState, ExecSession, ExecSpec, TerminalSize};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Mutex, mpsc};

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;
type Names = Path<(String, String, String)>;

/// `GET /exec/…`.
pub async fn exec(api: State<Api>, names: Names, query: RawQuery, ws: Upgrade) -> Response {
    upgrade(api, names, query, ws, true).await
}

/// `GET /attach/…`.
pub async fn attach(api: State<Api>, names: Names, query: RawQuery, ws: Upgrade) -> Response {
    upgrade(api, names, query, ws, false).await
}

async fn upgrade(
    State(api): State<Api>,
    Path((namespace, pod, container)): Names,
    RawQuery(query): RawQuery,
    ws: Upgrade,
    exec: bool,
) -> Response {
    let spec = spec(query.as_deref().unwrap_or(""));
    if exec && spec.command.is_empty() {
        return (StatusCode::BAD_REQUEST, "you must specify at least one command for the container").into_response();
    }
    let all = match api.find(&namespace, &pod, &container).await {
        Ok((_, all)) => all,
        Err(response) => return response,
    };
    let Some(running) = all.iter().rev().find(|i| matches!(i.state, ContainerState::Running { .. })) else {
        let text = format!("container {container} of pod {pod} is not running");
        return (StatusCode::BAD_REQUEST, text).into_response();
    };
    // Last: clients that fall back to SPDY show only what their second attempt is told, which must be the real trouble.
    let Ok(ws) = ws else {
        let text = "this server streams over WebSocket only: use a client that offers it (kubectl 1.31 or newer does)";
        return (StatusCode::BAD_REQUEST, text).into_response();
    };
    let id = running.id.clone();
    ws.protocols(PROTOCOLS).on_upgrade(move |socket| async move {
        let begun = match exec {
            true => api.ctx.runtime.exec(&id, &spec).await,
            false => api.ctx.runtime.attach(&id, &spec).await,
        };
        match begun {
            Ok(session) => serve(socket, session).await,
            Err(error) => {
                let sender = Sender::new(socket.split().0);
                sender.finish(internal(&error.to_string())).await;
            }
        }
    })
}

/// `command=…&command=…&input=1&output=1&error=1&tty=1`; also with the API server's names (`stdin`, `stdout`, …).
fn spec(query: &str) -> ExecSpec {
    let mut spec = ExecSpec::default();
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        let on = matches!(&*value, "1" | "true");
        match &*key {
            "command" => spec.command.push(value.into_owned()),
            "input" | "stdin" => spec.stdin = on,
            "output" | "stdout" => spec.stdout = on,
            "error" | "stderr" => spec.stderr = on,
            "tty" => spec.tty = on,
            _ => {}
        }
    }
    if spec.tty {
        spec.stderr = false;
    }
    spec
}

async fn serve(socket: WebSocket, session: ExecSession) {
    let v5 = socket.protocol().is_some_and(|p| p.as_bytes().starts_with(b"v5"));
    let (sink, source) = socket.split();
    let sender = Sender::new(sink);
    let ExecSession { stdin, stdout, stderr, resize, exit } = session;
    // When the client goes, everything below is dropped and with it the session: that ends an exec.
    let work = async {
        let output = async {
            tokio::join!(pump(stdout, STDOUT, &sender), pump(stderr, STDERR, &sender));
        };
        let (code, ()) = tokio::join!(exit, output);
        sender.finish(code.map_or_else(|_| internal("the process was lost"), exit_status)).await;
    };
    let mut input = tokio::spawn(input(source, stdin, resize, v5));
    tokio::pin!(work);
    tokio::select! {
        () = &mut work => {}
        client = &mut input => {
            // The client may close its half early and still wait for output.
            if client.is_ok_and(|gone| !gone) {
                work.await;
            }
        }
    }
    input.abort();
}

struct Sender(Arc<Mutex<SplitSink<WebSocket, Message>>>);

impl Sender {
    fn new(sink: SplitSink<WebSocket, Message>) -> Self {
        Self(Arc::new(Mutex::new(sink)))
    }

    async fn send(&self, channel: u8, data: &[u8]) -> bool {
        let mut frame = Vec::with_capacity(data.len() + 1);
        frame.push(channel);
        frame.extend_from_slice(data);
        self.0.lock().await.send(Message::Binary(frame.into())).await.is_ok()
    }

    async fn finish(&self, status: Value) {
        self.send(ERROR, status.to_string().as_bytes()).await;
        let mut sink = self.0.lock().await;
        // Without the code of a normal end, clients take the end of the stream for a failure.
        let normal = CloseFrame { code: close_code::NORMAL, reason: "".into() };
        let _ = sink.send(Message::Close(Some(normal))).await;
        let _ = sink.close().await;
    }
}

async fn pump(from: Option<BoxRead>, channel: u8, to: &Sender) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => {
                if !to.send(channel, buffer.get(..n).unwrap_or_default()).await {
                    return;
                }
            }
        }
    }
}

/// Carries input until the client ends; `true` when it went without a word.
async fn input(
    mut from: SplitStream<WebSocket>,
    mut stdin: Option<BoxWrite>,
    resize: mpsc::Sender<TerminalSize>,
    v5: bool,
) -> bool {
    while let Some(Ok(message)) = from.next().await {
        let data = match message {
            Message::Binary(data) => data,
            Message::Text(text) => text.as_bytes().to_vec().into(),
            Message::Close(_) => return true,
            Message::Ping(_) | Message::Pong(_) => continue,
        };
        let Some((channel, data)) = data.split_first() else { continue };
        match *channel {
            0 => {
                let Some(writer) = stdin.as_mut() else { continue };
                let written = async {
                    writer.write_all(data).await?;
                    writer.flush().await
                };
                if written.await.is_err() {
                    stdin = None;
                }
            }
            RESIZE => {
                if let Some(size) = terminal_size(data) {
                    let _ = resize.send(size).await;
                }
            }
            CLOSE if v5 && data.first() == Some(&0) => {
                if let Some(mut writer) = stdin.take() {
                    let _ = writer.shutdown().await;
                }
            }
            _ => {}
        }
    }
    true
}

fn terminal_size(data: &[u8]) -> Option<TerminalSize> {
    let value: Value = serde_json::from_slice(data).ok()?;
    let number = |key: &str| value.get(key).and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok());
    Some(TerminalSize { width: number("Width")?, height: number("Height")? })
}

fn exit_status(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

fn internal(message: &str) -> Value {
    json!({"metadata": {}, "status": "Failure", "message": message, "reason": "InternalError", "code": 500})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_and_sizes() {
        let s = spec("command=sh&command=-c&command=echo%20a%26b&input=1&output=true&error=1");
        assert_eq!(s.command, ["sh", "-c", "echo a&b"]);
        assert!(s.stdin && s.stdout && s.stderr && !s.tty);
        assert!(!spec("tty=1&error=1").stderr);
        assert_eq!(terminal_size(br#"{"Width":80,"Height":24}"#), Some(TerminalSize { width: 80, height: 24 }));
        assert_eq!(exit_status(3)["details"]["causes"][0]["message"], "3");
    }
}
