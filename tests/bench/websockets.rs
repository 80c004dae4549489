//! What a client's connection weighs in a proxy: ten thousand WebSockets that say nothing, a thousand that talk, and ten
//! thousand of HTTP/1.1 that have had an answer and are kept. In: ours, and nginx beside it. Out: memory (RSS) each, of the
//! proxy's process.

use crate::Options;
use crate::ingress::{LOAD_CORE, ports, serve, start};
use crate::peers::{Backends, Peers};
use crate::process::{Server, memory};
use crate::servers::open_many;
use crate::stats::round;
use anyhow::{Context, Result, ensure};
use causeway_tests::cluster::free_port;
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _};

const IDLE: usize = 10_000;
const ACTIVE: usize = 1_000;
/// What the active ones say, each in turn; an answer is waited for.
const MESSAGE: usize = 1024;
const TALKS: usize = 20;
const PROXIES: [&str; 2] = ["nginx", "causeway"];

/// Measures.
pub fn run(options: &Options) -> Result<Value> {
    // Two files a connection in the proxy, and some for itself.
    let many = usize::try_from(open_many()?)?.saturating_sub(200) / 2;
    let idle_ones = IDLE.min(many);
    let dir = tempfile::tempdir_in(&options.out)?;
    let peers = Peers::prepare(&options.out, dir.path())?;
    let echo = free_port()?;
    let _echo = Server::start(LOAD_CORE, echo, &serve(&["echo", &echo.to_string()])?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut result = json!({"idle": idle_ones, "active": ACTIVE, "messageBytes": MESSAGE, "talks": TALKS});
    let web = free_port()?;
    let _web = Server::start(LOAD_CORE, web, &peers.backend(web)?)?;
    for name in PROXIES {
        // A process each, so that none has memory left from the other part.
        let weight = |kind: Kind, many: usize, talks: usize| {
            let to = if kind == Kind::Kept { web } else { echo };
            let (server, ports) = start(name, &peers, ports()?, Backends { http: to, grpc: to })?;
            let kib = || Ok::<_, anyhow::Error>(memory(i32::try_from(server.pid)?, "VmRSS")? * 1024.0);
            runtime.block_on(async {
                // What the first connections bring with them is not what one weighs.
                let first = open(kind, ports.http, 10).await?;
                let before = kib()?;
                let mut clients = open(kind, ports.http, many).await?;
                for _ in 0..talks {
                    talk(&mut clients).await?;
                }
                let each = (kib()? - before) / many as f64;
                drop(first);
                anyhow::Ok(each)
            })
        };
        let idle = weight(Kind::Socket, idle_ones, 0).with_context(|| format!("idle WebSockets through {name}"))?;
        let active = weight(Kind::Socket, ACTIVE, TALKS).with_context(|| format!("WebSockets through {name}"))?;
        let kept = weight(Kind::Kept, idle_ones, 0).with_context(|| format!("kept connections to {name}"))?;
        println!(
            "    {name:<9} {idle:>6.1} KiB an idle WebSocket, {active:>6.1} KiB an active one, {kept:>6.1} KiB a kept connection"
        );
        result["proxies"][name] = json!({"idleKiB": round(idle), "activeKiB": round(active), "keptKiB": round(kept)});
    }
    Ok(result)
}

/// What is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// WebSockets.
    Socket,
    /// Connections of HTTP/1.1 that have had one answer.
    Kept,
}

enum Client {
    Socket(Box<WebSocketStream<TcpStream>>),
    /// Only held.
    Kept {
        _stream: TcpStream,
    },
}

async fn open(kind: Kind, port: u16, many: usize) -> Result<Vec<Client>> {
    let mut all = Vec::new();
    for _ in 0..many {
        let opening = async {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
            if kind == Kind::Kept {
                answered(&mut stream).await?;
                return anyhow::Ok(Client::Kept { _stream: stream });
            }
            let request = "ws://bench.localhost/".into_client_request()?;
            let (socket, _) = tokio_tungstenite::client_async(request, stream).await?;
            anyhow::Ok(Client::Socket(Box::new(socket)))
        };
        let opened = tokio::time::timeout(Duration::from_secs(10), opening).await;
        all.push(opened.context("no answer within 10 s")?.with_context(|| format!("connection {}", all.len()))?);
    }
    Ok(all)
}

/// Asks for 1 KiB and reads it.
async fn answered(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench.localhost\r\n\r\n").await?;
    let mut answer = Vec::new();
    while !answer.ends_with(&[b'x'; MESSAGE]) {
        ensure!(stream.read_buf(&mut answer).await? > 0, "the connection ended: {}", answer.escape_ascii());
    }
    Ok(())
}

/// Each says something and hears it back, all at the same time.
async fn talk(clients: &mut [Client]) -> Result<()> {
    let mut sockets: Vec<_> = clients
        .iter_mut()
        .filter_map(|client| match client {
            Client::Socket(socket) => Some(socket),
            Client::Kept { .. } => None,
        })
        .collect();
    for socket in &mut sockets {
        socket.send(Message::binary(vec![b'x'; MESSAGE])).await?;
    }
    for socket in sockets {
        socket.next().await.context("the connection ended")??;
    }
    Ok(())
}
