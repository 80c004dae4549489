//! A load at a fixed rate over keep-alive connections, for latencies: what a saturated proxy answers late says how much
//! it was asked, not how fast it is.
//!
//! Every connection has its own timetable. A request that is due while the former one is still waited for counts from
//! when it was due, so that a pause of the server is seen by all requests it delayed, not by one.

use anyhow::{Context, Result, bail};
use serde_json::json;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Connections of every load.
pub const CONNECTIONS: u32 = 64;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench.localhost\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";

/// `load ADDRESS RATE SECONDS`: prints percentiles in microseconds as JSON.
pub fn run(args: &[String]) -> Result<()> {
    let [address, rate, seconds] = args else { bail!("load ADDRESS RATE SECONDS") };
    let (address, rate, seconds): (SocketAddr, u32, u64) = (address.parse()?, rate.parse()?, seconds.parse()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let samples = runtime.block_on(async {
        let interval = Duration::from_secs(1) * CONNECTIONS / rate;
        let begin = Instant::now() + Duration::from_millis(50);
        let end = begin + Duration::from_secs(seconds);
        let tasks = (0..CONNECTIONS)
            .map(|i| tokio::spawn(connection(address, begin + interval / CONNECTIONS * i, interval, end)));
        let mut samples = Vec::new();
        for task in tasks.collect::<Vec<_>>() {
            samples.extend(task.await??);
        }
        anyhow::Ok(samples)
    })?;
    println!("{}", json!(crate::stats::latency(&samples)));
    Ok(())
}

/// Latencies in microseconds.
async fn connection(address: SocketAddr, mut due: Instant, interval: Duration, end: Instant) -> Result<Vec<f64>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut samples = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    while due < end {
        let now = Instant::now();
        // The timer is exact to a millisecond only; that is ours, not the server's.
        let from = if now < due {
            tokio::time::sleep_until(due.into()).await;
            Instant::now()
        } else {
            due
        };
        stream.write_all(REQUEST).await?;
        answer(&mut stream, &mut buffer).await?;
        samples.push(from.elapsed().as_secs_f64() * 1e6);
        due += interval;
    }
    Ok(samples)
}

async fn answer(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<()> {
    let mut filled = 0;
    loop {
        let n = stream.read(&mut buffer[filled..]).await?;
        if n == 0 {
            bail!("the server closed the connection");
        }
        filled += n;
        let Some(head) = buffer[..filled].windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let text = std::str::from_utf8(&buffer[..head])?;
        if !text.starts_with("HTTP/1.1 200") {
            bail!("not 200: {text}");
        }
        let length = text.lines().find_map(|l| {
            let (name, value) = l.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
        });
        let length = length.context("an answer without Content-Length")?;
        if filled >= head + 4 + length {
            return Ok(());
        }
    }
}
