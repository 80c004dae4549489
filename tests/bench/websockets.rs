//! What a WebSocket connection weighs in a proxy: ten thousand that say nothing, and a thousand that talk. In: ours, and
//! nginx beside it. Out: memory (RSS) each, of the proxy's process.

use crate::Options;
use crate::ingress::{LOAD_CORE, ports, serve, start};
use crate::peers::{Backends, Peers};
use crate::process::{Server, memory};
use crate::servers::open_many;
use crate::stats::round;
use anyhow::{Context, Result};
use causeway_tests::cluster::free_port;
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use std::time::Duration;
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
    for name in PROXIES {
        // A process each, so that none has memory left from the other part.
        let weight = |many: usize, talks: usize| {
            let (server, ports) = start(name, &peers, ports()?, Backends { http: echo, grpc: echo })?;
            let kib = || Ok::<_, anyhow::Error>(memory(i32::try_from(server.pid)?, "VmRSS")? * 1024.0);
            runtime.block_on(async {
                // What the first connections bring with them is not what one weighs.
                let first = open(ports.http, 10).await?;
                let before = kib()?;
                let mut sockets = open(ports.http, many).await?;
                for _ in 0..talks {
                    talk(&mut sockets).await?;
                }
                let each = (kib()? - before) / many as f64;
                drop(first);
                anyhow::Ok(each)
            })
        };
        let idle = weight(idle_ones, 0).with_context(|| format!("idle connections through {name}"))?;
        let active = weight(ACTIVE, TALKS).with_context(|| format!("active connections through {name}"))?;
        println!("    {name:<9} {idle:>6.1} KiB an idle connection, {active:>6.1} KiB an active one");
        result["proxies"][name] = json!({"idleKiB": round(idle), "activeKiB": round(active)});
    }
    Ok(result)
}

async fn open(port: u16, many: usize) -> Result<Vec<WebSocketStream<TcpStream>>> {
    let mut all = Vec::new();
    for _ in 0..many {
        let request = "ws://bench.localhost/".into_client_request()?;
        let opening = async {
            let stream = TcpStream::connect(("127.0.0.1", port)).await?;
            anyhow::Ok(tokio_tungstenite::client_async(request, stream).await?.0)
        };
        let opened = tokio::time::timeout(Duration::from_secs(10), opening).await;
        all.push(opened.context("no answer within 10 s")?.with_context(|| format!("connection {}", all.len()))?);
    }
    Ok(all)
}

/// Each says something and hears it back, all at the same time.
async fn talk(sockets: &mut [WebSocketStream<TcpStream>]) -> Result<()> {
    for socket in &mut *sockets {
        socket.send(Message::binary(vec![b'x'; MESSAGE])).await?;
    }
    for socket in sockets {
        socket.next().await.context("the connection ended")??;
    }
    Ok(())
}
