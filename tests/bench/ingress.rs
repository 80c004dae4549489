//! The ingress next to nginx, HAProxy and a bare Pingora proxy: the same load, the same backend, the same cores, one
//! after another in several rounds. The proxy has core 0 for itself, load and backend share core 1.
//!
//! Two loads: as much as goes (wrk), for the proxy's CPU time per request; and a fixed rate well below that, for
//! latencies. Ratios are to nginx of the same round, the middle one of all rounds.

use crate::peers::Peers;
use crate::process::{Server, pin};
use crate::stats::{median, round, spread};
use crate::{Options, load};
use anyhow::{Context, Result, bail};
use causeway_tests::cluster::free_port;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::Command;

const PROXY_CORE: usize = 0;
const LOAD_CORE: usize = 1;
/// Requests a second of the second load.
const RATE: u32 = 6000;
const NAMES: [&str; 4] = ["nginx", "haproxy", "pingora", "causeway"];

/// What one load gave, by name of the figure.
type Figures = BTreeMap<&'static str, f64>;

/// Measures all proxies.
pub fn run_rounds(options: &Options, peers: &Peers) -> Result<BTreeMap<&'static str, Vec<Figures>>> {
    let dir = tempfile::tempdir_in(&options.out)?;
    let backend_port = free_port()?;
    let _backend = Server::start(LOAD_CORE, backend_port, &peers.backend(dir.path(), backend_port)?)?;
    let mut all: BTreeMap<&'static str, Vec<Figures>> = BTreeMap::new();
    for number in 0..options.rounds {
        // Every round starts with another one, so that none is always the first or the last.
        for i in 0..NAMES.len() {
            let name = NAMES[(i + number) % NAMES.len()];
            let port = free_port()?;
            let command = match name {
                "nginx" => peers.nginx_proxy(dir.path(), port, backend_port)?,
                "haproxy" => peers.haproxy(dir.path(), port, backend_port)?,
                own => serve(own, port, backend_port)?,
            };
            let server = Server::start(PROXY_CORE, port, &command)?;
            let figures = one(&server, port, options.seconds).with_context(|| format!("measuring {name}"))?;
            println!(
                "    {name:<9} {:>7.2} µs CPU a request, {:>6.0} requests/s, p50 {:>5.0} µs, p99 {:>5.0} µs",
                figures["cpuMicroseconds"],
                figures["requestsPerSecond"],
                figures["p50Microseconds"],
                figures["p99Microseconds"]
            );
            all.entry(name).or_default().push(figures);
        }
    }
    Ok(all)
}

/// Measures and sums up.
pub fn run(options: &Options) -> Result<Value> {
    let peers = Peers::prepare(&options.out)?;
    let all = run_rounds(options, &peers)?;
    let (nginx, haproxy) = peers.versions()?;
    let mut result = json!({
        "rounds": options.rounds, "seconds": options.seconds, "connections": load::CONNECTIONS, "bodyBytes": 1024,
        "ratePerSecond": RATE, "nginxVersion": nginx, "haproxyVersion": haproxy,
        "wrkVersion": wrk_version(),
    });
    let reference = all.get("nginx").cloned().unwrap_or_default();
    for (name, rounds) in &all {
        let mut of = json!({});
        for figure in rounds.first().map(|f| f.keys().copied().collect::<Vec<_>>()).unwrap_or_default() {
            let samples: Vec<f64> = rounds.iter().map(|f| f[figure]).collect();
            let ratios: Vec<f64> = rounds.iter().zip(&reference).map(|(f, n)| f[figure] / n[figure]).collect();
            of[figure] = spread(&samples);
            of[figure]["toNginx"] = round(median(&ratios)).into();
        }
        result[*name] = of;
    }
    Ok(result)
}

fn serve(which: &str, port: u16, backend: u16) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["serve", which, &format!("127.0.0.1:{port}"), &format!("127.0.0.1:{backend}")]);
    Ok(command)
}

fn one(server: &Server, port: u16, seconds: u64) -> Result<Figures> {
    wrk(port, 1)?;
    let before = server.cpu()?;
    let mut figures = wrk(port, seconds)?;
    let used = server.cpu()?.saturating_sub(before);
    figures.insert("cpuMicroseconds", used.as_secs_f64() * 1e6 / figures["requests"]);
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["load", &format!("127.0.0.1:{port}"), &RATE.to_string(), &seconds.to_string()]);
    let before = server.cpu()?;
    let said: Value = serde_json::from_str(&causeway_tests::run(&mut pin(LOAD_CORE, &command))?.ok()?)?;
    let used = server.cpu()?.saturating_sub(before);
    let number = |field: &str| said[field].as_f64().context("the load said nothing");
    figures.insert("cpuMicrosecondsAtFixedRate", used.as_secs_f64() * 1e6 / number("n")?);
    figures.insert("p50Microseconds", number("p50")?);
    figures.insert("p99Microseconds", number("p99")?);
    figures.insert("rssMiB", crate::process::memory(i32::try_from(server.pid)?, "VmRSS")?);
    Ok(figures)
}

/// As many requests as go over the connections.
fn wrk(port: u16, seconds: u64) -> Result<Figures> {
    let mut command = Command::new("wrk");
    command.args(["-t1", &format!("-c{}", load::CONNECTIONS), &format!("-d{seconds}s"), "--latency"]);
    command.args(["-H", "Host: bench.localhost", &format!("http://127.0.0.1:{port}/")]);
    let said = causeway_tests::run(&mut pin(LOAD_CORE, &command))?.ok()?;
    if said.contains("Non-2xx") || said.contains("Socket errors") {
        bail!("not every request was answered with 200:\n{said}");
    }
    let first = |what: &str| {
        said.lines()
            .find(|l| l.contains(what))
            .and_then(|l| l.split_whitespace().next())
            .and_then(|w| w.parse::<f64>().ok())
    };
    let after = |what: &str| said.lines().find_map(|l| l.trim().strip_prefix(what)).map(str::trim).unwrap_or_default();
    Ok(Figures::from([
        ("requests", first("requests in").with_context(|| format!("wrk said: {said}"))?),
        ("requestsPerSecond", after("Requests/sec:").parse()?),
        ("saturatedP50Microseconds", microseconds(after("50%"))?),
        ("saturatedP99Microseconds", microseconds(after("99%"))?),
    ]))
}

/// wrk's way of writing times: 950.00us, 1.23ms, 1.00s.
fn microseconds(text: &str) -> Result<f64> {
    for (unit, factor) in [("us", 1.0), ("ms", 1e3), ("s", 1e6)] {
        if let Some(number) = text.strip_suffix(unit) {
            return Ok(number.parse::<f64>()? * factor);
        }
    }
    bail!("not a time: {text:?}")
}

fn wrk_version() -> String {
    let said =
        causeway_tests::run(Command::new("wrk").arg("-v")).map(|o| format!("{}{}", o.out, o.err)).unwrap_or_default();
    said.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_wrk() {
        let parsed = ["950.00us", "1.23ms", "1.00s"].map(|t| microseconds(t).unwrap_or_default());
        assert_eq!(parsed, [950.0, 1230.0, 1_000_000.0]);
        assert!(microseconds("").is_err());
    }
}
