//! The ingress next to nginx, HAProxy, Envoy, Caddy and a bare Pingora proxy: the same loads, the same backends, the same
//! cores, one after another in several rounds. The proxy has core 0 for itself, load and backend share core 1.
//!
//! Two loads for each kind of requests: as much as goes, for the proxy's CPU time per request; and a fixed rate, about 60%
//! of what the slowest can do, for latencies. Ratios are to nginx of the same round, the middle one of all rounds.

use crate::Options;
use crate::peers::{Backends, Peers};
use crate::process::{Server, pin};
use crate::scenario::{self, Ports, Scenario};
use crate::stats::{median, round, spread};
use anyhow::{Context, Result, ensure};
use causeway_tests::cluster::free_port;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::Command;

pub const PROXY_CORE: usize = 0;
pub const LOAD_CORE: usize = 1;
/// All proxies; the first is what the others are compared with.
pub const NAMES: [&str; 6] = ["nginx", "haproxy", "envoy", "caddy", "pingora", "causeway"];

/// What one load gave, by name of the figure.
type Figures = BTreeMap<&'static str, f64>;
/// Of each kind of requests, in each round.
type Rounds = BTreeMap<(&'static str, &'static str), Vec<Figures>>;

/// Three free ports.
pub fn ports() -> Result<Ports> {
    Ok(Ports { http: free_port()?, https: free_port()?, grpc: free_port()? })
}

/// Starts one of them.
pub fn start(name: &str, peers: &Peers, mut ports: Ports, to: Backends) -> Result<(Server, Ports)> {
    let command = match name {
        "nginx" => peers.nginx_proxy(ports, to)?,
        "haproxy" => peers.haproxy(ports, to)?,
        "envoy" => peers.envoy(ports, to)?,
        "caddy" => peers.caddy(ports, to)?,
        "pingora" => serve(&["pingora", &ports.http.to_string(), &to.http.to_string()])?,
        _ => {
            ports.grpc = ports.http;
            let words = [ports.http, ports.https, to.http, to.grpc].map(|port| port.to_string());
            let dir = peers.dir.display().to_string();
            serve(&["causeway", &words[0], &words[1], &words[2], &words[3], &dir])?
        }
    };
    Ok((Server::start(PROXY_CORE, ports.http, &command)?, ports))
}

/// This program in another part.
pub fn serve(words: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("serve").args(words);
    Ok(command)
}

fn run_rounds(options: &Options, peers: &Peers) -> Result<Rounds> {
    let to = Backends { http: free_port()?, grpc: free_port()? };
    let _backend = Server::start(LOAD_CORE, to.http, &peers.backend(to.http)?)?;
    let _grpc = Server::start(LOAD_CORE, to.grpc, &serve(&["grpc", &to.grpc.to_string()])?)?;
    let mut all = Rounds::new();
    for number in 0..options.rounds {
        // Every round starts with another one, so that none is always the first or the last.
        for i in 0..NAMES.len() {
            let name = NAMES[(i + number) % NAMES.len()];
            let (server, ports) = start(name, peers, ports()?, to)?;
            for scenario in scenario::ALL {
                // The least that can be written with Pingora is HTTP/1.1 in clear text.
                if name == "pingora" && !matches!(scenario, Scenario::Keep | Scenario::Large | Scenario::Fresh) {
                    continue;
                }
                let figures = one(&server, scenario, ports, options.seconds, &peers.dir)
                    .with_context(|| format!("measuring {name}, {}", scenario.title()))?;
                println!(
                    "    {name:<9} {:<20} {:>7.2} µs CPU a request, {:>6.0} requests/s; at {:.0}/s: p50 {:>5.0} µs, p99 {:>6.0} µs, p99.9 {:>6.0} µs",
                    scenario.title(),
                    figures["cpuMicroseconds"],
                    figures["requestsPerSecond"],
                    scenario.rate(),
                    figures["p50Microseconds"],
                    figures["p99Microseconds"],
                    figures["p99.9Microseconds"]
                );
                all.entry((scenario.name(), name)).or_default().push(figures);
            }
        }
    }
    Ok(all)
}

/// Measures and sums up.
pub fn run(options: &Options) -> Result<Value> {
    let dir = tempfile::tempdir_in(&options.out)?;
    let peers = Peers::prepare(&options.out, dir.path())?;
    let all = run_rounds(options, &peers)?;
    let mut result = json!({"rounds": options.rounds, "seconds": options.seconds});
    for (name, version) in peers.versions() {
        result["versions"][name] = version.into();
    }
    for ((scenario, name), rounds) in &all {
        let reference = all.get(&(*scenario, NAMES[0])).map(Vec::as_slice).unwrap_or_default();
        for figure in rounds.first().map(|f| f.keys().copied().collect::<Vec<_>>()).unwrap_or_default() {
            let samples: Vec<f64> = rounds.iter().map(|f| f[figure]).collect();
            let ratios: Vec<f64> = rounds.iter().zip(reference).map(|(f, n)| f[figure] / n[figure]).collect();
            let mut summed = spread(&samples);
            summed["toNginx"] = round(median(&ratios)).into();
            result["scenarios"][scenario][name][figure] = summed;
        }
    }
    Ok(result)
}

fn one(server: &Server, scenario: Scenario, ports: Ports, seconds: u64, dir: &std::path::Path) -> Result<Figures> {
    scenario.saturate(LOAD_CORE, ports, 1, dir)?;
    let before = server.cpu()?;
    let (requests, rate) = scenario.saturate(LOAD_CORE, ports, seconds, dir)?;
    let used = server.cpu()?.saturating_sub(before);
    let mut figures =
        Figures::from([("requestsPerSecond", rate), ("cpuMicroseconds", used.as_secs_f64() * 1e6 / requests)]);
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("load").args(scenario.at_rate(ports, seconds));
    let before = server.cpu()?;
    let said: Value = serde_json::from_str(&causeway_tests::run(&mut pin(LOAD_CORE, &command))?.ok()?)?;
    let used = server.cpu()?.saturating_sub(before);
    let number = |field: &str| said[field].as_f64().context("the load said nothing");
    ensure!(number("failed")? == 0.0, "requests failed at a fixed rate: {said}");
    figures.insert("cpuMicrosecondsAtFixedRate", used.as_secs_f64() * 1e6 / number("n")?);
    figures.insert("p50Microseconds", number("p50")?);
    figures.insert("p99Microseconds", number("p99")?);
    figures.insert("p99.9Microseconds", number("p99.9")?);
    figures.insert("rssMiB", crate::process::memory(i32::try_from(server.pid)?, "VmRSS")?);
    Ok(figures)
}
