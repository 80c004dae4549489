//! Serves a synthetic zone without an API server, for measurements: `dns-serve ADDRESS:PORT SERVICES PODS [SOCKETS]`.
//!
//! SERVICES services have an address and a port `http`: `svc-I.ns-J.svc.cluster.local`. PODS pods are in headless services
//! of 100 each with a port `sql`: `pod-N.db-K.ns-J.svc.cluster.local`. `J` is the service's number modulo 100. `ready` is
//! printed once it answers.
#![allow(clippy::print_stdout)]

use anyhow::{Context, Result};
use causeway_api::dns::DnsSettings;
use causeway_dns::listen;
use causeway_dns::metrics::Metrics;
use causeway_dns::model::{Endpoint, Key, Port, Ports, Protocol, Records};
use causeway_dns::server::Handler;
use causeway_dns::zone::Zone;
use nix::sys::socket::{setsockopt, sockopt};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::task::JoinSet;

/// Namespaces of the zone.
const NAMESPACES: u32 = 100;
/// Pods of each headless service.
const PODS_EACH: u32 = 100;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, services, pods, rest @ ..] = args.as_slice() else {
        anyhow::bail!("usage: dns-serve ADDRESS:PORT SERVICES PODS [SOCKETS]");
    };
    let address: SocketAddr = address.parse().context("reading ADDRESS:PORT")?;
    let (services, pods) = (services.parse().context("reading SERVICES")?, pods.parse().context("reading PODS")?);
    let sockets: usize = rest.first().map_or(Ok(1), |n| n.parse()).context("reading SOCKETS")?;
    tokio::runtime::Builder::new_multi_thread().worker_threads(sockets.max(1)).enable_all().build()?.block_on(async {
        let settings = DnsSettings::default();
        let ranges = ["10.96.0.0/12", "10.0.0.0/9"].map(|r| r.parse()).into_iter().collect::<Result<_, _>>()?;
        let zone = Arc::new(Zone::new("cluster.local", ranges, Arc::default()).map_err(anyhow::Error::msg)?);
        fill(&zone, services, pods);
        let metrics = Arc::new(Metrics::new("cluster.local")?);
        let handler = Handler::new(zone, Arc::default(), metrics, &settings, None).map_err(anyhow::Error::msg)?;
        handler.ready.store(true, Ordering::Release);
        let handler = Arc::new(handler);
        let mut serving = JoinSet::new();
        for _ in 0..sockets.max(1) {
            let socket = tokio::net::UdpSocket::from_std(udp(address)?)?;
            serving.spawn(listen::udp(socket, handler.clone()));
        }
        serving.spawn(listen::tcp(tokio::net::TcpListener::bind(address).await?, handler));
        println!("ready");
        serving.join_next().await;
        Ok(())
    })
}

/// A socket that shares its address with others.
fn udp(address: SocketAddr) -> Result<UdpSocket> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, socket};
    use std::os::fd::AsRawFd;
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address)).with_context(|| format!("listening on {address}"))?;
    Ok(fd.into())
}

fn fill(zone: &Zone, services: u32, pods: u32) {
    let port = |name: &str, port| Ports::from([Port { name: name.into(), protocol: Protocol::Tcp, port }]);
    let ip = |base: [u8; 4], n: u32| IpAddr::V4(Ipv4Addr::from(u32::from(Ipv4Addr::from(base)) + n));
    let key = |name: String, n: u32| Key { namespace: format!("ns-{}", n % NAMESPACES).into(), name: name.into() };
    let http = port("http", 80);
    for n in 0..services {
        let records = Records::Cluster { ips: [ip([10, 96, 1, 0], n)].into(), ports: http.clone() };
        zone.set(&key(format!("svc-{n}"), n), Some(records));
    }
    let sql = port("sql", 5432);
    for n in 0..pods.div_ceil(PODS_EACH) {
        let of = n * PODS_EACH..pods.min((n + 1) * PODS_EACH);
        let each = of.map(|pod| Endpoint {
            label: format!("pod-{pod}").into(),
            ips: [ip([10, 0, 0, 1], pod)].into(),
            ports: sql.clone(),
        });
        zone.set(&key(format!("db-{n}"), n), Some(Records::headless(each)));
    }
}
