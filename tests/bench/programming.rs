//! How long a change of a Service's endpoints takes to reach the traffic: from the write of the EndpointSlice that makes
//! an endpoint ready (and the other one not) to the first real packet, answer or response that shows it.
//!
//! A running cluster; two servers in the node's own namespace stand for pods, so that nothing but programming is timed.
//! One prober at a time asks without pause, from the node's namespace (service address, DNS) or from the host (ingress),
//! as the write is sent. Two times each: since the write was sent, and since it was acknowledged.
//!
//! Last the whole chain, with a real pod that a readiness gate makes ready: the gate's condition written, the kubelet's
//! status, the controller's EndpointSlice, the node's rules, a connection.

use crate::Options;
use crate::startup::CLUSTER;
use crate::stats::{latency, round};
use anyhow::{Context, Result, bail, ensure};
use causeway_tests::Cluster;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Changes of each kind.
const CHANGES: usize = 200;
/// Addresses of the two servers, in the node's namespace only.
const SERVERS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 90, 0, 201), Ipv4Addr::new(10, 90, 0, 202)];
const PORT: u16 = 8080;
const DNS: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 96, 0, 10), 53);
const PATIENCE: Duration = Duration::from_secs(20);

const MANIFEST: &str = r"
apiVersion: v1
kind: Service
metadata: {name: flip}
spec: {ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: flip-headless}
spec: {clusterIP: None, ports: [{name: http, port: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: flip}
spec:
  rules: [{host: flip.localhost, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: flip, port: {number: 80}}}}]}}]
";

const POD: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: gated, labels: {app: gated}}
spec:
  terminationGracePeriodSeconds: 1
  readinessGates: [{conditionType: bench/ready}]
  containers: [{name: web, image: 'causeway.local/bench/httpd:1', imagePullPolicy: Never, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: gated}
spec: {selector: {app: gated}, ports: [{port: 80, targetPort: 8080}]}
";

/// Asks once which of the servers answers now.
type Probe = Box<dyn FnMut() -> Result<usize> + Send>;

/// What a prober saw of one change.
struct Seen {
    at: Instant,
    /// Probes that got no answer at all since the change was announced.
    failed: usize,
}

/// A thread that asks until it gets the answer that is wanted.
struct Prober {
    wanted: mpsc::Sender<usize>,
    begun: mpsc::Receiver<()>,
    seen: mpsc::Receiver<Result<Seen>>,
}

/// A client of the cluster, as its administrator.
pub async fn client(kubeconfig: &Path) -> Result<kube::Client> {
    let config = Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    Ok(kube::Client::try_from(config)?)
}

/// Measures all ways.
pub fn run(options: &Options) -> Result<Value> {
    let cluster = Cluster::start(CLUSTER)?;
    let namespace = format!("/run/netns/cw-{CLUSTER}-node-1");
    for address in SERVERS {
        cluster.on_node("node-1", &format!("ip address add {address}/32 dev lo")).ok()?;
    }
    inside(namespace.clone(), serve).join().map_err(|_| anyhow::anyhow!("the servers did not start"))??;
    cluster.apply(MANIFEST)?;
    for service in ["flip", "flip-headless"] {
        cluster.apply(&slice(service))?;
    }
    let address: Ipv4Addr = cluster.kubectl("get service flip -o jsonpath={.spec.clusterIP}").ok()?.parse()?;
    let ingress = SocketAddr::from(([127, 0, 0, 1], cluster.http));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = runtime.block_on(client(&cluster.dir.join("kubeconfig")))?;
    let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
    let mut result = json!({"changes": CHANGES});
    let probes: [(&str, &str, bool, Probe); 3] = [
        ("serviceAddress", "flip", true, Box::new(move || ask(SocketAddr::from((address, 80)), "flip.localhost"))),
        ("dns", "flip-headless", true, Box::new(resolver()?)),
        ("ingress", "flip", false, Box::new(move || ask(ingress, "flip.localhost"))),
    ];
    for (name, service, on_node, probe) in probes {
        let prober = prober(on_node.then(|| namespace.clone()), probe);
        let write = async |ready: usize| {
            let patch = Patch::Merge(json!({"endpoints": endpoints(ready)}));
            slices.patch(service, &PatchParams::default(), &patch).await?;
            Ok(())
        };
        // Which of the two becomes the one is the same.
        let [mut all, one] = runtime.block_on(changes(write, &prober, CHANGES / 2)).with_context(|| name.to_owned())?;
        all.sent.extend(one.sent);
        all.acknowledged.extend(one.acknowledged);
        all.writes.extend(one.writes);
        all.failed += one.failed;
        let figures = all.summary();
        tell(name, &figures);
        result[name] = figures;
    }
    let [unready, ready] = whole_chain(&cluster, options, &namespace, &runtime, client)?;
    for (name, samples) in [("podReadyToServiceAddress", ready), ("podUnreadyToServiceAddress", unready)] {
        result[name] = samples.summary();
        tell(name, &result[name]);
    }
    Ok(result)
}

fn tell(name: &str, figures: &Value) {
    let of = &figures["sinceSentMilliseconds"];
    println!("    {name:<14} p50 {} ms, p99 {} ms since the write was sent", of["p50"], of["p99"]);
}

/// A pod turns ready: 1 is a connection that is answered, 0 one that is refused.
fn whole_chain(
    cluster: &Cluster,
    options: &Options,
    namespace: &str,
    runtime: &tokio::runtime::Runtime,
    client: kube::Client,
) -> Result<[Samples; 2]> {
    let archive = crate::startup::pack(&options.out)?;
    cluster.command(&["image", "load", &archive.to_string_lossy()]).ok()?;
    cluster.apply(POD)?;
    cluster.kubectl("wait pod/gated --for=condition=ContainersReady --timeout=60s").ok()?;
    let address: Ipv4Addr = cluster.kubectl("get service gated -o jsonpath={.spec.clusterIP}").ok()?.parse()?;
    // Whole requests: connections that nobody waits for would fill the queue of the pod's socket.
    let probe = move || match fetch(SocketAddr::from((address, 80)), "gated") {
        Ok(_) => Ok(1),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(0),
        Err(error) => Err(error.into()),
    };
    let prober = prober(Some(namespace.to_owned()), Box::new(probe));
    let pods: Api<Pod> = Api::default_namespaced(client);
    let write = async |ready: usize| {
        let status = if ready == 1 { "True" } else { "False" };
        let patch = Patch::Strategic(json!({"status": {"conditions": [{"type": "bench/ready", "status": status}]}}));
        pods.patch_status("gated", &PatchParams::default(), &patch).await?;
        Ok(())
    };
    runtime.block_on(changes(write, &prober, CHANGES / 2)).context("a pod turning ready")
}

fn slice(service: &str) -> String {
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"name": "http", "port": PORT, "protocol": "TCP"}], "endpoints": endpoints(0),
    });
    object.to_string()
}

/// Both are there, one is ready.
fn endpoints(ready: usize) -> Value {
    SERVERS
        .iter()
        .enumerate()
        .map(|(i, address)| json!({"addresses": [address], "conditions": {"ready": i == ready, "serving": i == ready, "terminating": false}}))
        .collect()
}

/// What was seen of changes, in milliseconds.
#[derive(Default)]
struct Samples {
    sent: Vec<f64>,
    acknowledged: Vec<f64>,
    writes: Vec<f64>,
    failed: usize,
}

impl Samples {
    fn add(&mut self, begin: Instant, acked: Instant, seen: &Seen) {
        let milliseconds = |since: Instant| seen.at.saturating_duration_since(since).as_secs_f64() * 1e3;
        self.sent.push(milliseconds(begin));
        self.acknowledged.push(milliseconds(acked));
        self.writes.push((acked - begin).as_secs_f64() * 1e3);
        self.failed += seen.failed;
    }

    fn summary(&self) -> Value {
        let early = self.acknowledged.iter().filter(|m| **m == 0.0).count() as f64;
        json!({
            "sinceSentMilliseconds": latency(&self.sent),
            "sinceAcknowledgedMilliseconds": latency(&self.acknowledged),
            "writeMilliseconds": latency(&self.writes),
            "probesWithoutAnswer": self.failed,
            "seenBeforeAcknowledgedShare": round(early / self.sent.len().max(1) as f64),
        })
    }
}

/// Lets `write` make 1 and 0 the answer in turn, `each` times; gives what was seen by answer.
async fn changes(write: impl AsyncFn(usize) -> Result<()>, prober: &Prober, each: usize) -> Result<[Samples; 2]> {
    let mut samples = [Samples::default(), Samples::default()];
    // The first two only warm up.
    for number in 0..2 * (each + 1) {
        let goal = (number + 1) % 2;
        prober.wanted.send(goal)?;
        prober.begun.recv()?;
        let begin = Instant::now();
        write(goal).await?;
        let acked = Instant::now();
        let seen = prober.seen.recv()??;
        if number >= 2 {
            samples[goal].add(begin, acked, &seen);
        }
        // Not in step with anything.
        tokio::time::sleep(Duration::from_millis(20 + (number as u64 * 37) % 61)).await;
    }
    Ok(samples)
}

fn prober(namespace: Option<String>, mut probe: Probe) -> Prober {
    let (wanted, goals) = mpsc::channel();
    let (begin, begun) = mpsc::channel();
    let (results, seen) = mpsc::channel();
    let work = move || -> Result<()> {
        while let Ok(goal) = goals.recv() {
            results.send(until(goal, &mut probe, &begin))?;
        }
        Ok(())
    };
    match namespace {
        Some(namespace) => drop(inside(namespace, work)),
        None => drop(std::thread::spawn(work)),
    }
    Prober { wanted, begun, seen }
}

fn until(goal: usize, probe: &mut Probe, begin: &mpsc::Sender<()>) -> Result<Seen> {
    let start = Instant::now();
    let mut failed = 0;
    let mut told = false;
    loop {
        let answer = probe();
        // Whoever changes it waits until we are asking.
        if !told {
            begin.send(())?;
            told = true;
            ensure!(!matches!(&answer, Ok(who) if *who == goal), "server {goal} answers before the change");
        }
        match answer {
            Ok(who) if who == goal => return Ok(Seen { at: Instant::now(), failed }),
            Ok(_) => {}
            Err(_) if start.elapsed() < PATIENCE => failed += 1,
            Err(error) => return Err(error.context("no answer since the change")),
        }
        if start.elapsed() > PATIENCE {
            bail!("the change was never seen");
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// A thread in a network namespace.
fn inside(
    namespace: String,
    work: impl FnOnce() -> Result<()> + Send + 'static,
) -> std::thread::JoinHandle<Result<()>> {
    std::thread::spawn(move || {
        setns(std::fs::File::open(&namespace)?, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("entering {namespace}"))?;
        work()
    })
}

/// Two servers that answer with their number. Threads they start are in the namespace of the one that calls this.
fn serve() -> Result<()> {
    for (number, address) in SERVERS.into_iter().enumerate() {
        let listener = TcpListener::bind((address, PORT))?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that went away needs no answer.
                drop(answer(stream, number));
            }
        });
    }
    Ok(())
}

fn answer(mut stream: TcpStream, number: usize) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut head = [0; 2048];
    let mut filled = 0;
    while !head[..filled].windows(4).any(|w| w == b"\r\n\r\n") && filled < head.len() {
        match stream.read(&mut head[filled..])? {
            0 => return Ok(()),
            n => filled += n,
        }
    }
    stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n{number}").as_bytes())
}

/// A new connection and a request.
fn fetch(address: SocketAddr, host: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    if text.starts_with("HTTP/1.1 200") { Ok(text) } else { Err(std::io::Error::other(text)) }
}

/// Which server answers.
fn ask(address: SocketAddr, host: &str) -> Result<usize> {
    let text = fetch(address, host)?;
    Ok(text.chars().last().and_then(|c| c.to_digit(10)).context("no number")? as usize)
}

/// Asks cluster DNS at its service address for the headless Service.
fn resolver() -> Result<impl FnMut() -> Result<usize> + Send> {
    let mut question = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["flip-headless", "default", "svc", "cluster", "local"] {
        question.push(u8::try_from(label.len())?);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let mut socket: Option<UdpSocket> = None;
    let mut id = 0u16;
    Ok(move || {
        // Made here, on the thread that is in the node's namespace.
        if socket.is_none() {
            let new = UdpSocket::bind("0.0.0.0:0")?;
            new.connect(DNS)?;
            new.set_read_timeout(Some(Duration::from_secs(1)))?;
            socket = Some(new);
        }
        let socket = socket.as_ref().context("no socket")?;
        id = id.wrapping_add(1);
        question[..2].copy_from_slice(&id.to_be_bytes());
        socket.send(&question)?;
        let mut answer = [0; 512];
        let n = socket.recv(&mut answer)?;
        ensure!(n > question.len() && answer[..2] == id.to_be_bytes(), "an answer to another question");
        let records = &answer[question.len()..n];
        let found: Vec<usize> =
            (0..SERVERS.len()).filter(|i| records.windows(4).any(|w| w == SERVERS[*i].octets())).collect();
        let [one] = found.as_slice() else { bail!("answered with {} of the addresses", found.len()) };
        Ok(*one)
    })
}
