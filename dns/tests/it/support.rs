//! A server on loopback with a small zone, and `dig`.

use causeway_dns::DnsConfig;
use causeway_dns::forward::Forwarder;
use causeway_dns::metrics::Metrics;
use causeway_dns::model::{EndpointName, Key, Port, Records};
use causeway_dns::server::Handler;
use causeway_dns::zone::Zone;
use hickory_server::Server;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::net::{TcpListener, UdpSocket};

pub struct Dns {
    pub addr: SocketAddr,
    pub zone: Arc<Zone>,
    pub ready: Arc<AtomicBool>,
    _server: Server<Handler>,
}

pub fn key(namespace: &str, name: &str) -> Key {
    Key { namespace: namespace.into(), name: name.into() }
}

/// Starts a server whose other names go to `upstreams`.
pub async fn start(upstreams: Vec<SocketAddr>) -> Dns {
    start_for("cluster.local", upstreams).await
}

/// As [`start`], for another domain.
pub async fn start_for(domain: &str, upstreams: Vec<SocketAddr>) -> Dns {
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
    let config = DnsConfig {
        cluster: Default::default(),
        node_name: "node-1".into(),
        node_ips: vec![],
        udp: vec![],
        tcp: vec![],
        admin: None,
        upstreams,
        stub_domains: Default::default(),
        forward_on: None,
        publish: false,
        state_dir: None,
    };
    let ready = Arc::new(AtomicBool::new(true));
    let handler = Handler {
        zone: zone.clone(),
        forwarder: Forwarder::new(&config).unwrap(),
        ready: ready.clone(),
        metrics: Arc::new(Metrics::new().unwrap()),
    };
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(addr).await.unwrap();
    let mut server = Server::new(handler);
    server.register_socket(udp);
    server.register_listener(tcp, Duration::from_secs(5), 32);
    Dns { addr, zone, ready, _server: server }
}

/// Runs `dig` against the server and returns what it printed.
pub async fn dig(dns: &Dns, args: &str) -> String {
    let (port, args) = (dns.addr.port().to_string(), args.to_owned());
    tokio::task::spawn_blocking(move || {
        let output = Command::new("dig")
            .args(["@127.0.0.1", "-p", &port, "+time=5", "+tries=1", "+nocookie"])
            .args(args.split_whitespace())
            .output()
            .expect("dig is in Debian's bind9-dnsutils");
        String::from_utf8(output.stdout).unwrap()
    })
    .await
    .unwrap()
}
