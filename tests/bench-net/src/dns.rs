//! Cluster DNS: queries a second, CPU time a query, latency and memory with 10,000 Services and 100,000 pods, next to
//! CoreDNS out of the same API and to servers of the same names out of a zone file.
//!
//! Every server has core 0, dnsperf has the other; a namespace with nothing but a loopback is all the network there is. The
//! load goes round in turns, so that a disturbance meets everybody. Of those that follow the API, the time from a change
//! of an EndpointSlice to the changed answer, while a hundred others change every second.

use crate::cluster::{Cluster, FLIP_HEADLESS, service_name};
use crate::lab::{self, run as said};
use crate::nameservers::{self, NameServer};
use crate::services::changing;
use crate::{Options, zonefile};
use anyhow::{Context, Result, bail, ensure};
use causeway_bench_net::process::{Server, inside, memory, pin};
use causeway_bench_net::stats::{latency, median, round, spread};
use causeway_network::NetNs;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SERVICES: u32 = 10_000;
/// Every tenth has no address of its own.
const HEADLESS: u32 = 10;
const QUERIES: u32 = 20_000;
/// A rate that all of them can serve with ease: latency is then not that of a queue.
const PACED: u32 = 5000;
const UNDER_CHANGES: Duration = Duration::from_secs(6);
const PATIENCE: Duration = Duration::from_secs(60);

/// What was seen of one server.
#[derive(Default)]
struct Samples {
    per_second: Vec<f64>,
    cpu_microseconds: Vec<f64>,
    lost: f64,
    p50: Vec<f64>,
    p99: Vec<f64>,
    codes: BTreeMap<String, f64>,
}

/// Measures all servers.
pub fn run(options: &Options) -> Result<Value> {
    let mut cluster = Cluster::start(Some(HEADLESS))?;
    cluster.grow(SERVICES)?;
    let dir = cluster.dir().join("dns");
    std::fs::create_dir_all(&dir)?;
    zonefile::write_zones(&cluster, &dir)?;
    let queries = dir.join("queries");
    zonefile::write_queries(&cluster, &queries, QUERIES)?;
    let network = Network::new()?;
    lab::connect(&cluster.netns, &network.0)?;
    let mut running = Vec::new();
    let mut figures = Map::new();
    for server in nameservers::all(&options.out, &cluster, &dir)? {
        if !options.wants(server.name) {
            continue;
        }
        match start(options, &network, &server) {
            Ok((process, ready)) => {
                println!("    {:<20} ready after {ready:.2} s", server.name);
                figures
                    .insert(server.name.to_owned(), json!({"version": server.version, "secondsToReady": round(ready)}));
                running.push((server, process, Samples::default()));
            }
            Err(error) => println!("    {} is left out: {error:#}", server.name),
        }
    }
    let count = running.len();
    for turn in 0..options.rounds {
        for place in 0..count {
            let (server, process, samples) = &mut running[(place + turn) % count];
            load(options, &network, server, process, &queries, samples).with_context(|| server.name.to_owned())?;
        }
    }
    for (server, process, samples) in &running {
        let of = &mut figures[server.name];
        of["queriesPerSecond"] = spread(&samples.per_second);
        of["cpuMicrosecondsPerQuery"] = spread(&samples.cpu_microseconds);
        of["lost"] = json!(samples.lost);
        of["p50Microseconds"] = spread(&samples.p50);
        of["p99Microseconds"] = spread(&samples.p99);
        of["answers"] = json!(samples.codes);
        of["rssMiB"] = json!(round(memory(i32::try_from(process.pid)?, "VmRSS")?));
        println!(
            "    {:<20} {:>8.0} queries/s, {:.2} µs CPU a query, p99 {:.0} µs at {PACED}/s, {} MiB",
            server.name,
            median(&samples.per_second),
            median(&samples.cpu_microseconds),
            median(&samples.p99),
            of["rssMiB"]
        );
    }
    for (server, process, _) in running.iter_mut().filter(|(s, ..)| s.follows) {
        let changes = under_changes(&cluster, &network, server.port).with_context(|| server.name.to_owned())?;
        process.alive()?;
        let sent = &changes["sentToAnswerMilliseconds"];
        println!("    {:<20} change to answer p50 {} ms, p99 {} ms", server.name, sent["p50"], sent["p99"]);
        figures[server.name]["underChanges"] = changes;
    }
    Ok(json!({
        "services": SERVICES, "headless": SERVICES / HEADLESS, "pods": SERVICES * crate::cluster::ENDPOINTS,
        "mix": zonefile::MIX_IN_WORDS, "rounds": options.rounds, "pacedPerSecond": PACED,
        "dnsperf": "2.10 (Debian)", "servers": figures,
    }))
}

/// A namespace with a loopback, gone with this value.
struct Network(NetNs);

impl Network {
    fn new() -> Result<Self> {
        let this = Self(NetNs::create(&format!("bn{}-dns", std::process::id()))?);
        said(Command::new("ip").args(["-n", this.0.name(), "link", "set", "lo", "up"]))?;
        Ok(this)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(NetNs::delete(self.0.name()));
    }
}

/// Starts a server and waits until it knows the last Service; in how many seconds it did.
fn start(options: &Options, network: &Network, server: &NameServer) -> Result<(Server, f64)> {
    let log = options.out.join("logs").join(format!("{}.log", server.name));
    let begin = Instant::now();
    let command = inside(network.0.name(), &pin(0, &server.command));
    let mut process = Server::spawn(command, Some(&log))?;
    let (namespace, service) = service_name(SERVICES - 1);
    let mut prober = Prober::new(network, server.port, &format!("{service}.{namespace}.svc.cluster.local"))?;
    loop {
        process.alive().with_context(|| format!("see {}", log.display()))?;
        if prober.ask().is_ok_and(|records| records.len() > 4) {
            return Ok((process, begin.elapsed().as_secs_f64()));
        }
        ensure!(begin.elapsed() < PATIENCE, "it does not know the Services; see {}", log.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One turn of load, and one at a fixed rate.
fn load(
    options: &Options,
    network: &Network,
    server: &NameServer,
    process: &Server,
    queries: &Path,
    samples: &mut Samples,
) -> Result<()> {
    let dnsperf = |seconds: u64, more: &[&str]| {
        let mut command = Command::new("dnsperf");
        let port = server.port.to_string();
        command.args(["-s", "127.0.0.1", "-p", &port, "-c", "8", "-T", "1", "-l", &seconds.to_string(), "-d"]);
        command.arg(queries).args(more);
        said(&mut inside(network.0.name(), &pin(1, &command)))
    };
    // Warm, as it is in a cluster.
    dnsperf(1, &[])?;
    let cpu = process.cpu()?;
    let full = dnsperf(options.seconds, &[])?;
    let cpu = process.cpu()? - cpu;
    let completed = number(&full, "Queries completed:")?;
    samples.per_second.push(number(&full, "Queries per second:")?);
    samples.cpu_microseconds.push(cpu.as_secs_f64() * 1e6 / completed);
    samples.lost += number(&full, "Queries lost:")?;
    let codes = full.lines().find_map(|l| l.trim().strip_prefix("Response codes:")).unwrap_or_default();
    for code in codes.split("),") {
        let mut words = code.split_whitespace();
        if let (Some(code), Some(count)) = (words.next(), words.next()) {
            samples.codes.insert(code.to_owned(), round(count.parse::<f64>()? / completed));
        }
    }
    let paced = dnsperf(options.seconds, &["-v", "-Q", &PACED.to_string()])?;
    let times: Vec<f64> = paced
        .lines()
        .filter(|l| l.starts_with("> "))
        .filter_map(|l| Some(l.rsplit(' ').next()?.parse::<f64>().ok()? * 1e6))
        .collect();
    ensure!(times.len() > 1000, "dnsperf told of {} answers only", times.len());
    samples.p50.push(median(&times));
    samples.p99.push(causeway_bench_net::stats::percentile(&times, 0.99));
    Ok(())
}

fn number(text: &str, label: &str) -> Result<f64> {
    let line = text.lines().find_map(|l| l.trim().strip_prefix(label));
    let word =
        line.and_then(|l| l.split_whitespace().next()).with_context(|| format!("dnsperf did not say {label}"))?;
    Ok(word.parse()?)
}

/// Asks for the A records of one name.
struct Prober {
    socket: UdpSocket,
    question: Vec<u8>,
    id: u16,
}

impl Prober {
    fn new(network: &Network, port: u16, name: &str) -> Result<Self> {
        let socket = network.0.bind_udp((Ipv4Addr::LOCALHOST, 0).into())?;
        socket.connect((Ipv4Addr::LOCALHOST, port))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut question = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            question.push(u8::try_from(label.len())?);
            question.extend(label.as_bytes());
        }
        question.extend([0, 0, 1, 0, 1]);
        Ok(Self { socket, question, id: 0 })
    }

    /// The bytes behind the question of an answer without an error code.
    fn ask(&mut self) -> Result<Vec<u8>> {
        self.id = self.id.wrapping_add(1);
        self.question[..2].copy_from_slice(&self.id.to_be_bytes());
        self.socket.send(&self.question)?;
        let mut answer = [0; 1500];
        loop {
            let n = self.socket.recv(&mut answer)?;
            if n < self.question.len() || answer[..2] != self.question[..2] {
                // Of a question that was given up.
                continue;
            }
            if answer[3] & 15 != 0 || answer[7] == 0 {
                bail!("code {}, {} answers", answer[3] & 15, answer[7]);
            }
            return Ok(answer[self.question.len()..n].to_vec());
        }
    }
}

fn under_changes(cluster: &Cluster, network: &Network, port: u16) -> Result<Value> {
    let stop = AtomicBool::new(false);
    let mut prober = Prober::new(network, port, &format!("{FLIP_HEADLESS}.bench-0.svc.cluster.local"))?;
    let (mut sent, mut acked) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    let done = std::thread::scope(|scope| -> Result<u32> {
        let background = scope.spawn(|| cluster.runtime.block_on(changing(cluster, SERVICES, &stop)));
        let mut one = |round: u32| -> Result<()> {
            let pod = lab::pod(1000 + round);
            let from = Instant::now();
            cluster.runtime.block_on(cluster.flip(FLIP_HEADLESS, pod))?;
            let acknowledged = Instant::now();
            while !prober.ask().is_ok_and(|records| records.windows(4).any(|w| w == pod.octets())) {
                ensure!(from.elapsed() < Duration::from_secs(20), "a change was never answered with");
                std::thread::sleep(Duration::from_micros(100));
            }
            sent.push(from.elapsed().as_secs_f64() * 1e3);
            acked.push(acknowledged.elapsed().as_secs_f64() * 1e3);
            Ok(())
        };
        let mut measured = Ok(());
        for round in 0.. {
            if begin.elapsed() > UNDER_CHANGES || measured.is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(u64::from(11 + round * 7 % 23)));
            measured = one(round);
        }
        stop.store(true, Ordering::Relaxed);
        let done = background.join().map_err(|_| anyhow::anyhow!("the changes panicked"))??;
        measured.map(|()| done)
    })?;
    Ok(json!({
        "changesPerSecond": round((f64::from(done) + sent.len() as f64) / begin.elapsed().as_secs_f64()),
        "sentToAnswerMilliseconds": latency(&sent), "acknowledgedToAnswerMilliseconds": latency(&acked),
    }))
}
