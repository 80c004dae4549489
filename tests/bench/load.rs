//! A load at a fixed rate, for latencies: what a saturated proxy answers late says how much it was asked, not how fast it
//! is. The generator is that of `causeway bench`, which counts from when a request was due.

use anyhow::{Result, bail};
use bytes::Bytes;
use causeway_load::Plan;
use http::{HeaderName, HeaderValue, Method};
use serde_json::json;
use std::time::Duration;

/// Connections of every load; with HTTP/2 a quarter of them with four requests at a time each.
pub const CONNECTIONS: usize = 64;
/// Requests at a time on one connection of HTTP/2.
pub const STREAMS: usize = 4;

/// What a gRPC client sends: one message of 64 bytes.
pub fn message() -> Bytes {
    [&[0, 0, 0, 0, 64][..], &[b'm'; 64]].concat().into()
}

/// `load URL RATE SECONDS http1|fresh|http2|grpc`: prints percentiles in microseconds as JSON.
pub fn run(args: &[String]) -> Result<()> {
    let [url, rate, seconds, how] = args else { bail!("load URL RATE SECONDS http1|fresh|http2|grpc") };
    let mut plan = Plan::new(url)?;
    (plan.rate, plan.duration) = (Some(rate.parse()?), Duration::from_secs(seconds.parse()?));
    (plan.insecure, plan.connections, plan.fresh) = (true, CONNECTIONS, how == "fresh");
    plan.http2 = how == "http2" || how == "grpc";
    if plan.http2 {
        (plan.connections, plan.streams) = (CONNECTIONS / STREAMS, STREAMS);
    }
    if how == "grpc" {
        plan.method = Method::POST;
        plan.body = message();
        plan.headers.push((http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc")));
        plan.headers.push((HeaderName::from_static("te"), HeaderValue::from_static("trailers")));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(causeway_load::run(plan, |_| ()))?;
    let stats = &report.stats;
    println!(
        "{}",
        json!({"n": stats.answered(), "failed": stats.failed(), "p50": stats.percentile(50.0),
            "p99": stats.percentile(99.0), "p99.9": stats.percentile(99.9)})
    );
    Ok(())
}
