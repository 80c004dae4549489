//! The same names as a zone file and as queries, for servers that do not read the Kubernetes API and for dnsperf.

use crate::cluster::{Cluster, ENDPOINTS, endpoint_ip, service_ip, service_name};
use crate::lab::PORT;
use anyhow::Result;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::Path;

/// What a query asks for, of twenty; the mix of a cluster whose programs ask for both families and use search paths.
const MIX: [Ask; 20] = {
    use Ask::{Endpoints, Ipv6, Missing, Pod, Port, Reverse, Service};
    [
        Service, Missing, Service, Ipv6, Service, Endpoints, Service, Missing, Service, Ipv6, Service, Port, Service,
        Missing, Service, Ipv6, Service, Pod, Service, Reverse,
    ]
};

#[derive(Clone, Copy)]
enum Ask {
    Service,
    Ipv6,
    Missing,
    Endpoints,
    Port,
    Pod,
    Reverse,
}

/// In words, for the report.
pub const MIX_IN_WORDS: &str = "50% A of a service, 15% AAAA (no data), 15% a name of the search path (NXDOMAIN), 5% A of a \
                                headless service (10 records), 5% SRV, 5% pod A, 5% PTR";

const HEAD: &str = "$TTL 30\n@ SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 30\n@ NS \
                    ns.dns.cluster.local.\n";

fn dashed(ip: Ipv4Addr) -> String {
    ip.to_string().replace('.', "-")
}

fn reverse(ip: Ipv4Addr) -> String {
    let [a, b, c, d] = ip.octets();
    format!("{d}.{c}.{b}.{a}.in-addr.arpa.")
}

/// Writes `cluster.local.zone` and `10.in-addr.arpa.zone` into a folder.
pub fn write_zones(cluster: &Cluster, dir: &Path) -> Result<()> {
    let mut forward = format!("$ORIGIN cluster.local.\n{HEAD}ns.dns A 10.96.0.10\ndns-version TXT \"1.1.0\"\n");
    let mut backward = format!("$ORIGIN 10.in-addr.arpa.\n{HEAD}");
    for number in 0..cluster.services() {
        let (namespace, service) = service_name(number);
        let name = format!("{service}.{namespace}.svc");
        let ips = || (0..ENDPOINTS).map(|e| endpoint_ip(number, e, true));
        if cluster.is_headless(number) {
            for ip in ips() {
                let endpoint = format!("{}.{name}", dashed(ip));
                writeln!(forward, "{name} A {ip}\n{endpoint} A {ip}")?;
                writeln!(forward, "_http._tcp.{name} SRV 0 10 {PORT} {endpoint}.cluster.local.")?;
                writeln!(backward, "{} PTR {endpoint}.cluster.local.", reverse(ip))?;
            }
        } else {
            let ip = service_ip(number);
            writeln!(forward, "{name} A {ip}\n_http._tcp.{name} SRV 0 100 80 {name}.cluster.local.")?;
            writeln!(backward, "{} PTR {name}.cluster.local.", reverse(ip))?;
        }
        for ip in ips() {
            writeln!(forward, "{}.{namespace}.pod A {ip}", dashed(ip))?;
        }
    }
    std::fs::write(dir.join("cluster.local.zone"), forward)?;
    std::fs::write(dir.join("10.in-addr.arpa.zone"), backward)?;
    Ok(())
}

/// Writes queries as dnsperf reads them.
pub fn write_queries(cluster: &Cluster, file: &Path, how_many: u32) -> Result<()> {
    let mut text = String::new();
    for number in 0..how_many {
        // The same disorder in every run.
        let any = (number.wrapping_mul(2_654_435_761) >> 8) % cluster.services();
        let next = |headless: bool| (any..).find(|n| cluster.is_headless(n % cluster.services()) == headless);
        let of = |headless: bool| next(headless).unwrap_or(any) % cluster.services();
        let plain = of(false);
        let name = |number| {
            let (namespace, service) = service_name(number);
            (format!("{service}.{namespace}.svc.cluster.local"), namespace)
        };
        let (service, namespace) = name(plain);
        match MIX[number as usize % MIX.len()] {
            Ask::Service => writeln!(text, "{service} A")?,
            Ask::Ipv6 => writeln!(text, "{service} AAAA")?,
            Ask::Missing => writeln!(text, "{service}.{namespace}.svc.cluster.local A")?,
            Ask::Endpoints => writeln!(text, "{} A", name(of(true)).0)?,
            Ask::Port => writeln!(text, "_http._tcp.{service} SRV")?,
            Ask::Pod => writeln!(text, "{}.{namespace}.pod.cluster.local A", dashed(endpoint_ip(plain, 3, true)))?,
            Ask::Reverse => writeln!(text, "{} PTR", reverse(service_ip(plain)).trim_end_matches('.'))?,
        }
    }
    Ok(std::fs::write(file, text)?)
}
