//! A server on loopback with a small zone, and `dig`.

use causeway_dns::DnsConfig;
use causeway_dns::forward::Forwarder;
use causeway_dns::listen;
use causeway_dns::metrics::Metrics;
use causeway_dns::model::{EndpointName, Key, Port, Records};
use causeway_dns::server::Handler;
use causeway_dns::zone::Zone;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

pub struct Dns {
    pub addr: SocketAddr,
    pub zone: Arc<Zone>,
    pub ready: Arc<AtomicBool>,
    _serving: JoinSet<()>,
}

pub fn key(namespace: &str, name: &str) -> Key {
    Key { namespace: namespace.into(), name: name.into() }
}

/// Starts a server whose other names go to `upstreams`.
pub async fn start(upstreams: Vec<SocketAddr>) -> Dns {
    start_with("cluster.local", upstreams, None).await
}

/// As [`start`], for another domain.
pub async fn start_for(domain: &str, upstreams: Vec<SocketAddr>) -> Dns {
    start_with(domain, upstreams, None).await
}

/// A configuration without sockets.
pub fn config(upstreams: Vec<SocketAddr>, forward_on: Option<Handle>) -> DnsConfig {
    DnsConfig {
        cluster: Default::default(),
        node_name: "node-1".into(),
        node_ips: vec![],
        udp: vec![],
        tcp: vec![],
        admin: None,
        upstreams,
        stub_domains: Default::default(),
        forward_on,
        publish: false,
        state_dir: None,
    }
}

/// As [`start_for`], with the upstreams asked on another runtime.
pub async fn start_with(domain: &str, upstreams: Vec<SocketAddr>, forward_on: Option<Handle>) -> Dns {
    let zone = Arc::new(Zone::new(domain, vec!["10.96.0.0/12".parse().unwrap()]).unwrap());
    let port = Port { name: "http".into(), protocol: "tcp".into(), port: 80 };
    let web = Records::Cluster { ips: vec!["10.96.0.7".parse().unwrap()], ports: [port].into() };
    zone.set(&key("shop", "web"), Some(web));
    let many = (0..200u8).map(|i| {
        let ip = std::net::IpAddr::from([10, 244, 1, i]);
        (format!("pod-{i}"), EndpointName { ips: [ip].into(), ports: Default::default() })
    });
    zone.set(&key("shop", "many"), Some(Records::Headless { endpoints: many.collect::<BTreeMap<_, _>>() }));
    zone.set(&key("shop", "out"), Some(Records::External { target: "www.example.org".into() }));
    zone.set(&key("shop", "inside"), Some(Records::External { target: "web.shop.svc.cluster.local".into() }));
    let config = config(upstreams, forward_on);
    let ready = Arc::new(AtomicBool::new(true));
    let handler = Handler {
        zone: zone.clone(),
        forwarder: Forwarder::new(&config).unwrap(),
        ready: ready.clone(),
        metrics: Arc::new(Metrics::new().unwrap()),
    };
    let (udp, tcp) = sockets();
    let addr = tcp.local_addr().unwrap();
    let (udp, tcp) = (UdpSocket::from_std(udp).unwrap(), TcpListener::from_std(tcp).unwrap());
    let handler = Arc::new(handler);
    let mut serving = JoinSet::new();
    serving.spawn(listen::udp(udp, handler.clone()));
    serving.spawn(listen::tcp(tcp, handler));
    Dns { addr, zone, ready, _serving: serving }
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
