//! From nothing to the first answer: `causeway up --detach` with an empty data directory, an image loaded, a deployment
//! behind an Ingress, the first 200; and what the process weighs then.

use crate::stats::{round, spread};
use crate::{Options, process};
use anyhow::{Context, Result, bail};
use causeway_tests::Cluster;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// The bench's cluster; also in the names of everything it makes.
pub const CLUSTER: &str = "bench";
/// An HTTP server and its page.
const IMAGE: &str = "causeway.local/bench/httpd:1";
const HOST: &str = "bench.localhost";
/// What follows a start settles within this time.
const IDLE: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(120);

const MANIFEST: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: web, image: 'causeway.local/bench/httpd:1', imagePullPolicy: Never, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  rules: [{host: bench.localhost, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]
";

/// What one start gave; times in seconds, memory in MiB.
#[derive(Default)]
struct Samples {
    api: Vec<f64>,
    ready: Vec<f64>,
    load: Vec<f64>,
    deploy: Vec<f64>,
    total: Vec<f64>,
    peak: Vec<f64>,
    idle: Vec<f64>,
    idle_private: Vec<f64>,
    containerd: Vec<f64>,
    shims: Vec<f64>,
}

/// Measures starts, each with an empty data directory.
pub fn run(options: &Options) -> Result<Value> {
    let archive = pack(&options.out)?;
    let mut s = Samples::default();
    for round in 0..options.rounds.clamp(1, 5) {
        one(&archive, &mut s).with_context(|| format!("start {}", round + 1))?;
    }
    Ok(json!({
        "rounds": s.api.len(),
        "secondsToApiReady": spread(&s.api),
        "secondsToEverythingReady": spread(&s.ready),
        "secondsToLoadTheImage": spread(&s.load),
        "secondsFromApplyToFirst200": spread(&s.deploy),
        "secondsFromUpToFirst200": spread(&s.total),
        "peakMiB": spread(&s.peak),
        "idleMiB": spread(&s.idle),
        "idleAnonymousMiB": spread(&s.idle_private),
        "containerdIdleMiB": spread(&s.containerd),
        "shimsIdleMiB": spread(&s.shims),
    }))
}

/// The image, as an archive.
pub fn pack(out: &Path) -> Result<std::path::PathBuf> {
    let (page, archive) = (out.join("index.html"), out.join("httpd.tar"));
    std::fs::write(&page, "<title>bench</title>\n")?;
    let mut command = Command::new(causeway_tests::cluster::program()?);
    command.args(["image", "pack", IMAGE, "--file", "/bin/busybox:/bin/busybox"]);
    command.arg("--file").arg(format!("{}:/srv/index.html", page.display()));
    command.args(["--entrypoint", "/bin/busybox", "--cmd", "httpd", "--cmd=-f", "--cmd=-p", "--cmd", "8080"]);
    command.args(["--cmd=-h", "--cmd", "/srv", "--expose", "8080", "--output"]).arg(&archive);
    causeway_tests::run(&mut command)?.ok()?;
    Ok(archive)
}

fn one(archive: &Path, s: &mut Samples) -> Result<()> {
    let cluster = Cluster::new(CLUSTER)?;
    let begin = Instant::now();
    let api = std::thread::scope(|scope| -> Result<Duration> {
        let waiting = scope.spawn(|| api_ready(&cluster, begin));
        cluster.up()?;
        s.ready.push(begin.elapsed().as_secs_f64());
        waiting.join().map_err(|_| anyhow::anyhow!("waiting for the API panicked"))?
    })?;
    s.api.push(api.as_secs_f64());
    let loading = Instant::now();
    cluster.command(&["image", "load", &archive.to_string_lossy()]).ok()?;
    s.load.push(loading.elapsed().as_secs_f64());
    let applying = Instant::now();
    cluster.apply(MANIFEST)?;
    first_200(cluster.http)?;
    s.deploy.push(applying.elapsed().as_secs_f64());
    s.total.push(begin.elapsed().as_secs_f64());
    std::thread::sleep(IDLE);
    let pid = cluster.pid()?;
    s.peak.push(process::memory(pid, "VmHWM")?);
    s.idle.push(process::memory(pid, "VmRSS")?);
    s.idle_private.push(process::memory(pid, "RssAnon")?);
    let sum = |name: &str, word: &str| -> Result<f64> {
        process::named(name, word).into_iter().map(|pid| process::memory(pid, "VmRSS")).sum()
    };
    s.containerd.push(sum("containerd", &format!("/{CLUSTER}/"))?);
    s.shims.push(sum("containerd-shim", &format!("/{CLUSTER}/"))?);
    let last = |v: &[f64]| round(v.last().copied().unwrap_or_default());
    println!(
        "    API {} s, ready {} s, first 200 after {} s, idle {} MiB",
        last(&s.api),
        last(&s.ready),
        last(&s.total),
        last(&s.idle)
    );
    Ok(())
}

/// Until `/readyz` says ok to the administrator.
fn api_ready(cluster: &Cluster, begin: Instant) -> Result<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = None;
        while begin.elapsed() < PATIENCE {
            if client.is_none() {
                client = crate::programming::client(&cluster.dir.join("kubeconfig")).await.ok();
            }
            if let Some(client) = &client {
                let request = http::Request::get("/readyz").body(Vec::new())?;
                if client.request_text(request).await.is_ok() {
                    return Ok(begin.elapsed());
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("the API did not become ready")
    })
}

fn first_200(port: u16) -> Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
            let mut answer = String::new();
            let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
            let asked = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
            if asked.is_ok() && answer.starts_with("HTTP/1.1 200") {
                return Ok(());
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    bail!("the ingress never answered 200 for {HOST}")
}
