//! The network of a case: a client, the node whose rules are measured, and a place where every pod's address answers.
//!
//! ```text
//!                           API 10.92.0.1
//!                                 │
//!   client 10.244.200.2 ──── node 10.90.0.11 ──── pods: all of 10.244.0.0/17
//! ```
//!
//! Namespaces without a default route. The API's lives as long as the API server, the others for one case.

use anyhow::{Context, Result, bail};
use causeway_network::NetNs;
use nix::sys::socket::{Backlog, listen};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// Where the API is, for everybody.
pub const API: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 92, 0, 1)), 6443);
/// Where the API is asked from.
const ASKING: &str = "10.92.0.2";
/// The node's name in the API.
pub const NODE: &str = "node-1";
/// Its address there.
pub const NODE_IP: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 11);
/// Every pod takes connections on this port.
pub const PORT: u16 = 8080;
/// And on this one says which address it was asked at.
pub const NAMED_PORT: u16 = 8081;
/// Pods' addresses, all answered.
const PODS: u32 = 30_000;

/// The namespaces of one case.
pub struct Lab {
    /// Where connections come from.
    pub client: NetNs,
    /// Where the rules are.
    pub node: NetNs,
    /// Where they go to.
    pub pods: NetNs,
    stop: Arc<AtomicBool>,
}

/// The address of a pod by its number; numbers may be as large as one likes, addresses begin again after a while.
pub fn pod(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 1, 0)) + number % PODS)
}

impl Lab {
    /// Makes them, and lets all pods answer.
    pub fn new(api: &NetNs) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("bn{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let make = |part: &str| NetNs::create(&format!("{name}-{part}"));
        let this = Self { client: make("client")?, node: make("node")?, pods: make("pods")?, stop: Arc::default() };
        let (client, node, pods) = (this.client.name(), this.node.name(), this.pods.name());
        let lines = [
            (node, format!("link add c0 type veth peer name eth0 netns {client}")),
            (node, format!("link add p0 type veth peer name eth0 netns {pods}")),
            (node, "address add 10.244.200.1/24 dev c0".to_owned()),
            (node, format!("address add {NODE_IP}/32 dev c0")),
            (node, "address add 10.91.0.1/30 dev p0".to_owned()),
            (node, "link set lo up".to_owned()),
            (node, "link set c0 up".to_owned()),
            (node, "link set p0 up".to_owned()),
            (client, "address add 10.244.200.2/24 dev eth0".to_owned()),
            (client, "link set lo up".to_owned()),
            (client, "link set eth0 up".to_owned()),
            (client, "route add 10.244.0.0/17 via 10.244.200.1".to_owned()),
            (client, "route add 10.96.0.0/12 via 10.244.200.1".to_owned()),
            (pods, "address add 10.91.0.2/30 dev eth0".to_owned()),
            (pods, "link set lo up".to_owned()),
            (pods, "link set eth0 up".to_owned()),
            (pods, "route add local 10.244.0.0/17 dev lo".to_owned()),
            (pods, "route add 10.244.200.0/24 via 10.91.0.1".to_owned()),
            (node, "route add 10.244.0.0/17 via 10.91.0.2".to_owned()),
        ];
        for (netns, line) in lines {
            run(Command::new("ip").args(["-n", netns]).args(line.split(' ')))?;
        }
        connect(api, &this.node)?;
        this.node.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))??;
        this.serve()?;
        Ok(this)
    }

    fn serve(&self) -> Result<()> {
        let any = Ipv4Addr::UNSPECIFIED;
        let (silent, named) = (self.pods.bind_tcp((any, PORT).into())?, self.pods.bind_tcp((any, NAMED_PORT).into())?);
        for listener in [&silent, &named] {
            // Connections come faster than a thread is woken up.
            listen(listener, Backlog::new(4096)?)?;
        }
        // A socket keeps its namespace alive: the threads end with the lab.
        let (stop, stopped) = (self.stop.clone(), self.stop.clone());
        std::thread::spawn(move || silent.incoming().take_while(|_| !stop.load(Ordering::Relaxed)).for_each(drop));
        std::thread::spawn(move || {
            let all = named.incoming().take_while(|_| !stopped.load(Ordering::Relaxed));
            for mut stream in all.flatten() {
                if let Ok(SocketAddr::V4(own)) = stream.local_addr() {
                    // A client that went away needs no answer.
                    drop(stream.write_all(&own.ip().octets()));
                }
            }
        });
        Ok(())
    }

    /// A body of an HTTP server inside the node.
    pub fn get(&self, port: u16, path: &str) -> Result<String> {
        let text = self.node.run(|| -> std::io::Result<String> {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })??;
        let (head, body) = text.split_once("\r\n\r\n").context("an answer without a head")?;
        if !head.contains(" 200 ") {
            bail!("{path} said {}", head.lines().next().unwrap_or_default());
        }
        Ok(body.to_owned())
    }

    /// The sum of a metric over its labels, as Prometheus text has it; none when it is not there. Of both IP families
    /// only the one that is in use here counts.
    pub fn metric(&self, port: u16, name: &str) -> Option<f64> {
        let text = self.get(port, "/metrics").ok()?;
        let lines = text.lines().filter(|l| !l.contains("ip_family=\"IPv6\"")).filter_map(|l| {
            let rest = l.strip_prefix(name).filter(|r| r.starts_with(['{', ' ']))?;
            rest.rsplit(' ').next()?.parse::<f64>().ok()
        });
        let values: Vec<f64> = lines.collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for port in [PORT, NAMED_PORT] {
            // One last connection makes each of them look.
            drop(self.pods.run(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port))));
        }
        for netns in [&self.client, &self.pods, &self.node] {
            // Deleting what is in the kernel still takes as long as it takes, whether or not it succeeds at once.
            if let Err(error) = NetNs::delete(netns.name()) {
                eprintln!("bench-net: {error}");
            }
        }
    }
}

/// A namespace for the API server, with a socket for it.
pub fn api_namespace() -> Result<(NetNs, TcpListener)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let made = NetNs::create(&format!("bn{}a{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))?;
    for line in [format!("address add {}/32 dev lo", API.ip()), "link set lo up".to_owned()] {
        run(Command::new("ip").args(["-n", made.name()]).args(line.split(' ')))?;
    }
    let listener = made.bind_tcp(API).context("opening the API's socket")?;
    listener.set_nonblocking(true)?;
    Ok((made, listener))
}

/// Connects a namespace with that of the API, instead of whichever was connected before.
pub fn connect(api: &NetNs, other: &NetNs) -> Result<()> {
    let (api, other) = (api.name(), other.name());
    // What is being deleted may be there for a while yet.
    drop(Command::new("ip").args(["-n", api, "link", "delete", "n0"]).output());
    let lines = [
        (api, format!("link add n0 type veth peer name a0 netns {other}")),
        (api, "link set n0 up".to_owned()),
        (api, format!("route add {ASKING}/32 dev n0")),
        (other, format!("address add {ASKING}/32 dev a0")),
        (other, "link set a0 up".to_owned()),
        (other, format!("route add {}/32 dev a0", API.ip())),
    ];
    for (netns, line) in lines {
        run(Command::new("ip").args(["-n", netns]).args(line.split(' ')))?;
    }
    Ok(())
}

/// Runs a command that must succeed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
