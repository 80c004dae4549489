//! A server on loopback with a small zone, and `dig`.

use causeway_api::dns::DnsSettings;
use causeway_dns::DnsConfig;
use causeway_dns::listen;
use causeway_dns::metrics::Metrics;
use causeway_dns::model::{Endpoint, Key, Port, Ports, Protocol, Records};
use causeway_dns::pods::Pods;
use causeway_dns::server::Handler;
use causeway_dns::zone::Zone;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

pub struct Dns {
    pub addr: SocketAddr,
    pub zone: Arc<Zone>,
    pub pods: Arc<Pods>,
    pub ready: Arc<AtomicBool>,
    pub handler: Arc<Handler>,
    _serving: JoinSet<()>,
}

impl Dns {
    /// The value of a metric, over all its labels that hold `with`.
    pub fn counted(&self, name: &str, with: &str) -> f64 {
        let text = self.handler.render();
        let lines = text.lines().filter(|l| l.starts_with(name) && l.contains(with));
        lines
            .filter(|l| l[name.len()..].starts_with(['{', ' ']))
            .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

pub fn key(namespace: &str, name: &str) -> Key {
    Key { namespace: namespace.into(), name: name.into() }
}

/// Settings with these upstreams and no other change.
pub fn upstreams(addrs: &[SocketAddr]) -> DnsSettings {
    DnsSettings { upstreams: addrs.iter().map(ToString::to_string).collect(), ..DnsSettings::default() }
}

/// Starts a server whose other names go to `servers`.
pub async fn start(servers: Vec<SocketAddr>) -> Dns {
    start_with("cluster.local", &upstreams(&servers), None).await
}

/// As [`start`], for another domain.
pub async fn start_for(domain: &str, servers: Vec<SocketAddr>) -> Dns {
    start_with(domain, &upstreams(&servers), None).await
}

/// A configuration without sockets.
pub fn config() -> DnsConfig {
    DnsConfig {
        cluster: Default::default(),
        node_name: "node-1".into(),
        node_ips: vec![],
        udp: vec![],
        tcp: vec![],
        admin: None,
        forward_on: None,
        publish: false,
        state_dir: None,
    }
}

/// With these settings, and upstreams asked on another runtime.
pub async fn start_with(domain: &str, settings: &DnsSettings, forward_on: Option<Handle>) -> Dns {
    let pods = Arc::new(Pods::default());
    let ranges = ["10.96.0.0/12", "fd00:96::/108"].map(|r| r.parse().unwrap()).into();
    let zone = Arc::new(Zone::new(domain, ranges, pods.clone()).unwrap());
    let http: Ports = [Port { name: "http".into(), protocol: Protocol::Tcp, port: 80 }].into();
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    zone.set(&key("shop", "web"), Some(Records::Cluster { ips: [ip("10.96.0.7")].into(), ports: http.clone() }));
    let both = Records::Cluster { ips: [ip("10.96.0.8"), ip("fd00:96::8")].into(), ports: http.clone() };
    zone.set(&key("shop", "both"), Some(both));
    let endpoint = |label: String, ip| Endpoint { label: label.into(), ips: [ip].into(), ports: http.clone() };
    let many = (0..200u8).map(|i| endpoint(format!("pod-{i}"), IpAddr::from([10, 244, 1, i])));
    zone.set(&key("shop", "many"), Some(Records::headless(many)));
    let three = (1..4u8).map(|i| endpoint(format!("db-{i}"), IpAddr::from([10, 244, 2, i])));
    zone.set(&key("shop", "db"), Some(Records::headless(three)));
    let external = |target: &str| Some(Records::External { target: target.into() });
    zone.set(&key("shop", "out"), external("www.example.org"));
    zone.set(&key("shop", "inside"), external(&format!("web.shop.svc.{domain}")));
    let metrics = Arc::new(Metrics::new(domain).unwrap());
    let handler = Arc::new(Handler::new(zone.clone(), pods.clone(), metrics, settings, forward_on).unwrap());
    handler.ready.store(true, Ordering::Release);
    let (udp, tcp) = sockets();
    let addr = tcp.local_addr().unwrap();
    let (udp, tcp) = (UdpSocket::from_std(udp).unwrap(), TcpListener::from_std(tcp).unwrap());
    let mut serving = JoinSet::new();
    serving.spawn(listen::udp(udp, handler.clone()));
    serving.spawn(listen::tcp(tcp, handler.clone()));
    Dns { addr, zone, pods, ready: handler.ready.clone(), handler, _serving: serving }
}

/// A UDP and a TCP socket at one address.
pub fn sockets() -> (std::net::UdpSocket, std::net::TcpListener) {
    loop {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let Ok(udp) = std::net::UdpSocket::bind(tcp.local_addr().unwrap()) else { continue };
        tcp.set_nonblocking(true).unwrap();
        udp.set_nonblocking(true).unwrap();
        return (udp, tcp);
    }
}

/// Runs `dig` against the server and returns what it printed.
pub async fn dig(dns: &Dns, args: &str) -> String {
    dig_at(dns.addr, args).await
}

/// With one space between words: the columns of `dig` depend on how long the names are.
pub fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// As [`dig`], [`squeezed`].
pub async fn plain(dns: &Dns, args: &str) -> String {
    squeezed(&dig(dns, args).await)
}

/// As [`dig`], for any address.
pub async fn dig_at(addr: SocketAddr, args: &str) -> String {
    let args = args.to_owned();
    tokio::task::spawn_blocking(move || {
        let output = Command::new("dig")
            .args([format!("@{}", addr.ip()), "-p".to_owned(), addr.port().to_string()])
            .args(["+time=5", "+tries=1", "+nocookie"])
            .args(args.split_whitespace())
            .output()
            .expect("dig is in Debian's bind9-dnsutils");
        String::from_utf8(output.stdout).unwrap()
    })
    .await
    .unwrap()
}
