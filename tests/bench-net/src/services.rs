//! kube-proxy: full synchronisation, a change, connections and memory over the number of Services, for all cases.
//!
//! Each case is a process of its own in a node of its own, fed by our API server over TLS; what is asked of one is asked of
//! all. Times are those that packets see, and those of the metric that all of them have. A case that does not
//! get ready within the bound is reported as such, and not tried with more Services.

use crate::cluster::{self, Cluster, ENDPOINTS, FLIP, FLIP_IP};
use crate::kubeproxy::{self, CASES, Case};
use crate::lab::{self, Lab};
use crate::{Options, packets, trace};
use anyhow::{Context, Result, bail};
use causeway_bench_net::process::{Peak, Server, memory};
use causeway_bench_net::stats::{latency, round};
use serde_json::{Map, Value, json};
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The metric that ours and the real one have.
const SYNC: &str = "kubeproxy_sync_proxy_rules_duration_seconds";
/// Changes of one endpoint, one after another.
const CHANGES: u32 = 30;
/// No more of them are begun after this.
const CHANGING: Duration = Duration::from_secs(2);
/// A single change is waited for as long as this.
const CHANGE_PATIENCE: Duration = Duration::from_secs(20);
/// Pairs of connections.
const CONNECTIONS: u32 = 3000;
const CONNECTING: Duration = Duration::from_millis(1000);
/// Changes a second, and for how long.
const RATE: u64 = 100;
const UNDER_CHANGES: Duration = Duration::from_secs(4);
/// With so many Services, changes at that rate are measured too.
const PROGRAMMING_AT: [u32; 2] = [1000, 10_000];

/// Measures all cases at all sizes.
pub fn run(options: &Options) -> Result<Value> {
    let mut cluster = Cluster::start(None)?;
    let mut cases: Map<String, Value> = Map::new();
    let mut fills = Map::new();
    let real = kubeproxy::program(&options.out).is_some();
    if !real {
        println!("    the real kube-proxy is left out: it is not built (see go_peers.sh)");
    }
    for size in &options.sizes {
        let begin = Instant::now();
        let before = cluster.services();
        cluster.grow(*size).with_context(|| format!("making {size} Services"))?;
        let per_second = f64::from(2 * (size - before)) / begin.elapsed().as_secs_f64();
        fills.insert(size.to_string(), json!({"objectsPerSecond": round(per_second)}));
        println!("    {size} Services in our API ({per_second:.0} objects created a second)");
        for case in CASES.iter().filter(|c| (c.ours || real) && options.wants(c.name)) {
            let gave_up = cases.get(case.name).is_some_and(|c| {
                c.as_object().is_some_and(|sizes| sizes.values().any(|v| v["gaveUpAfterSeconds"].is_number()))
            });
            if gave_up || *size > case.most {
                continue;
            }
            let begin = Instant::now();
            let mut figures = match measure(options, &cluster, case, *size) {
                Ok(figures) => figures,
                Err(error) => {
                    println!("      {}: {error:#}", case.name);
                    json!({"failed": format!("{error:#}")})
                }
            };
            println!("      {:<32} {}", case.name, short(&figures));
            figures["tookSeconds"] = json!(round(begin.elapsed().as_secs_f64()));
            cases.entry(case.name).or_insert_with(|| json!({}))[size.to_string()] = figures;
        }
    }
    Ok(json!({
        "sizes": options.sizes, "endpointsEach": ENDPOINTS, "boundSeconds": options.bound.as_secs(),
        "kubeProxy": kubeproxy::version(&options.out), "filling": fills, "cases": cases,
    }))
}

fn short(figures: &Value) -> String {
    if let Some(bound) = figures["gaveUpAfterSeconds"].as_f64() {
        return format!("not synchronised after {bound} s");
    }
    if figures["failed"].is_string() {
        return "failed".to_owned();
    }
    let change = &figures["change"];
    format!(
        "flows after {} s, sync {} s; change p50 {} ms, sync {} ms, CPU {} ms, {} bytes; connect p50 {} p99 {} µs (direct {} {}); {} MiB, peak {}",
        figures["secondsToFlow"],
        figures["syncSeconds"],
        change["sentToPacketsMilliseconds"]["p50"],
        change["syncMilliseconds"],
        change["cpuMilliseconds"],
        figures["changeBytes"],
        figures["connectMicroseconds"]["p50"],
        figures["connectMicroseconds"]["p99"],
        figures["directMicroseconds"]["p50"],
        figures["directMicroseconds"]["p99"],
        figures["rssMiB"],
        figures["peakMiB"],
    )
}

/// A case that runs.
struct Running<'a> {
    cluster: &'a Cluster,
    case: &'a Case,
    lab: Lab,
    server: Server,
    /// Counts the pods that the changing Service has had.
    flips: AtomicU32,
}

fn measure(options: &Options, cluster: &Cluster, case: &Case, size: u32) -> Result<Value> {
    let lab = Lab::new(&cluster.netns)?;
    let first = lab::pod(0);
    cluster.runtime.block_on(cluster.flip(FLIP, first))?;
    let log = options.out.join("logs").join(format!("{} {size}.log", case.name));
    let command = case.command(options, cluster, &lab)?;
    let begin = Instant::now();
    let mut server = Server::spawn(command, Some(&log))?;
    let peak = Peak::of_group(server.pid);
    let flows = packets::until(&lab, flip_at(), first, options.bound)?;
    server.alive().with_context(|| format!("{}; see {}", case.name, log.display()))?;
    let Some(flows) = flows else {
        return Ok(json!({"gaveUpAfterSeconds": options.bound.as_secs(), "peakMiB": round(peak.mib()),
            "cpuSeconds": round(server.cpu_with_children()?.as_secs_f64())}));
    };
    let mut figures = json!({
        "secondsToFlow": round((flows - begin).as_secs_f64()),
        "cpuSecondsToFlow": round(server.cpu_with_children()?.as_secs_f64()),
    });
    let mut running = Running { cluster, case, lab, server, flips: AtomicU32::new(0) };
    let (count, sum) = running.settled()?;
    figures["syncSeconds"] = json!(round(sum / count));
    figures["change"] = running.changes()?;
    let measured = packets::latencies(&running.lab, CONNECTIONS, CONNECTING, |number| pair(number, size))?;
    figures["connectMicroseconds"] = latency(&measured.service);
    figures["directMicroseconds"] = latency(&measured.direct);
    figures["changeBytes"] = running.bytes()?;
    figures["rssMiB"] = json!(round(memory(i32::try_from(running.server.pid)?, "VmRSS")?));
    if PROGRAMMING_AT.contains(&size) {
        figures["underChanges"] = running.under_changes(size)?;
        let programming = &figures["underChanges"]["sentToPacketsMilliseconds"];
        println!(
            "      {:<32} at {RATE} changes/s p50 {} ms, p99 {} ms",
            case.name, programming["p50"], programming["p99"]
        );
    }
    running.server.alive().with_context(|| format!("{}; see {}", case.name, log.display()))?;
    figures["peakMiB"] = json!(round(peak.mib()));
    Ok(figures)
}

fn flip_at() -> SocketAddrV4 {
    SocketAddrV4::new(FLIP_IP, 80)
}

/// A Service anywhere in the list, and one of its pods.
fn pair(number: u32, size: u32) -> (SocketAddrV4, SocketAddrV4) {
    let service = anywhere(number, size);
    let pod = cluster::endpoint_ip(service, number % ENDPOINTS, false);
    (SocketAddrV4::new(cluster::service_ip(service), 80), SocketAddrV4::new(pod, lab::PORT))
}

/// The same disorder in every run.
fn anywhere(number: u32, size: u32) -> u32 {
    (number.wrapping_mul(2_654_435_761) >> 8) % size
}

impl Running<'_> {
    /// Synchronisations so far, and the seconds they took.
    fn synced(&self) -> Option<(f64, f64)> {
        let of = |what: &str| self.lab.metric(self.case.metrics_port(), &format!("{SYNC}_{what}"));
        Some((of("count")?, of("sum")?)).filter(|(count, _)| *count > 0.0)
    }

    /// The same, when it does not change any more.
    fn settled(&self) -> Result<(f64, f64)> {
        let begin = Instant::now();
        let mut last = None;
        while begin.elapsed() < CHANGE_PATIENCE {
            let now = self.synced();
            if now.is_some() && now == last {
                return now.context("it just was there");
            }
            last = now;
            std::thread::sleep(Duration::from_millis(300));
        }
        bail!("{} of {} never settles", SYNC, self.case.name)
    }

    /// Gives the changing Service another pod and waits for packets to arrive there. Milliseconds since the write was
    /// sent, and since it was acknowledged.
    fn flip(&self) -> Result<(f64, f64)> {
        let pod = lab::pod(1 + self.flips.fetch_add(1, Ordering::Relaxed));
        let begin = Instant::now();
        self.cluster.runtime.block_on(self.cluster.flip(FLIP, pod))?;
        let acked = Instant::now();
        let seen = packets::until(&self.lab, flip_at(), pod, CHANGE_PATIENCE)?;
        let seen = seen.with_context(|| format!("a change was not seen after {CHANGE_PATIENCE:?}"))?;
        let milliseconds = |since: Instant| (seen - since).as_secs_f64() * 1e3;
        Ok((milliseconds(begin), milliseconds(acked)))
    }

    /// One change after another.
    fn changes(&self) -> Result<Value> {
        let (count, sum) = self.settled()?;
        let cpu = self.server.cpu_with_children()?;
        let begin = Instant::now();
        let (mut sent, mut acked) = (Vec::new(), Vec::new());
        while sent.len() < CHANGES as usize && (sent.len() < 3 || begin.elapsed() < CHANGING) {
            let (one, other) = self.flip()?;
            sent.push(one);
            acked.push(other);
            std::thread::sleep(Duration::from_millis(20));
        }
        let cpu = self.server.cpu_with_children()? - cpu;
        let (count, sum) = self.settled().map(|(c, s)| (c - count, s - sum))?;
        Ok(json!({
            "sentToPacketsMilliseconds": latency(&sent), "acknowledgedToPacketsMilliseconds": latency(&acked),
            "syncMilliseconds": round(sum / count.max(1.0) * 1e3),
            "cpuMilliseconds": round(cpu.as_secs_f64() * 1e3 / sent.len() as f64),
        }))
    }

    /// What a change of one endpoint makes it hand to the kernel, until packets follow.
    fn bytes(&self) -> Result<Value> {
        self.settled()?;
        let trace = trace::Trace::attach(self.lab.node.name(), self.server.pid, &self.cluster.dir().join("trace"))?;
        self.flip()?;
        std::thread::sleep(Duration::from_millis(300));
        Ok(json!(trace.bytes()?))
    }

    /// Many changes of other Services, and among them those that packets are waited for.
    fn under_changes(&self, size: u32) -> Result<Value> {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut sent, mut acked) = (Vec::new(), Vec::new());
        let begin = Instant::now();
        let cpu = self.server.cpu_with_children()?;
        let done = std::thread::scope(|scope| -> Result<u32> {
            let until = stop.clone();
            let background = scope.spawn(move || self.cluster.runtime.block_on(changing(self.cluster, size, &until)));
            let measured = (|| -> Result<()> {
                while begin.elapsed() < UNDER_CHANGES {
                    // Not in step with the others.
                    let wait = 11 + sent.len() as u64 * 7 % 23;
                    std::thread::sleep(Duration::from_millis(wait));
                    let (one, other) = self.flip()?;
                    sent.push(one);
                    acked.push(other);
                }
                Ok(())
            })();
            stop.store(true, Ordering::Relaxed);
            let done = background.join().map_err(|_| anyhow::anyhow!("the changes panicked"))??;
            measured.map(|()| done)
        })?;
        let seconds = begin.elapsed().as_secs_f64();
        let cpu = self.server.cpu_with_children()? - cpu;
        Ok(json!({
            "changesPerSecond": round((f64::from(done) + sent.len() as f64) / seconds),
            "sentToPacketsMilliseconds": latency(&sent), "acknowledgedToPacketsMilliseconds": latency(&acked),
            "cpuShare": round(cpu.as_secs_f64() / seconds),
        }))
    }
}

/// Changes Services at the rate until told to stop; how many it made.
pub async fn changing(cluster: &Cluster, size: u32, stop: &AtomicBool) -> Result<u32> {
    let mut tick = tokio::time::interval(Duration::from_micros(1_000_000 / RATE));
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        cluster.change(anywhere(number, size), number).await?;
        number += 1;
    }
    Ok(number)
}
