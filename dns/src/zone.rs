//! The cluster's zone: who asks for a name gets its records. In: [`Records`] service by service, queries. Out: an
//! [`Answer`]. No I/O; what is asked for is found in a few hash look-ups, however many services there are.
//!
//! Names follow Kubernetes' DNS-based service discovery 1.1.0: `svc.ns.svc.DOMAIN`, `endpoint.svc.ns.svc.DOMAIN`,
//! `_port._proto.svc.ns.svc.DOMAIN`, `1-2-3-4.ns.pod.DOMAIN`, `dns-version.DOMAIN`, and reverse names of addresses.

use crate::model::{EndpointName, Key, Port, Records, undashed};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Seconds an answer may be kept by who asked: CoreDNS' default.
pub const TTL: u32 = 5;
/// The version of the specification, served as TXT `dns-version`.
const SPEC_VERSION: &str = "1.1.0";

/// What the zone says to a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Records, and addresses of the names in them.
    Found {
        /// The answer section.
        answers: Vec<Record>,
        /// The additional section.
        additionals: Vec<Record>,
    },
    /// The name is an alias of a name that is not ours: the server chases it.
    Alias {
        /// The CNAME record.
        record: Box<Record>,
        /// Where it points.
        target: Name,
    },
    /// The name exists, records of this type do not.
    NoData,
    /// There is no such name.
    NoName,
    /// Not a name of this zone: somebody else knows.
    NotOurs,
}

#[derive(Default)]
struct Tables {
    services: HashMap<Key, Records>,
    /// How many services a namespace has.
    namespaces: HashMap<String, usize>,
    /// Addresses of services and of endpoints of headless services, with the service and the endpoint's label.
    reverse: HashMap<IpAddr, HashSet<(Key, Option<String>)>>,
}

/// The zone. Readers and the one writer share it.
pub struct Zone {
    domain: Name,
    origin: Vec<String>,
    ranges: Vec<IpNet>,
    tables: RwLock<Tables>,
    turn: AtomicUsize,
    serial: AtomicU32,
}

impl Zone {
    /// An empty zone for a domain such as `cluster.local`; `ranges` are the addresses whose reverse names are ours.
    pub fn new(domain: &str, ranges: Vec<IpNet>) -> Result<Self, String> {
        let mut name = Name::from_str(domain).map_err(|e| format!("cluster domain {domain:?}: {e}"))?;
        name.set_fqdn(true);
        let origin = labels(&name);
        Ok(Self {
            domain: name,
            origin,
            ranges,
            tables: RwLock::default(),
            turn: AtomicUsize::new(0),
            serial: AtomicU32::new(1),
        })
    }

    /// Puts a service's records in place of what was there; `None` removes it. True when something changed.
    pub fn set(&self, key: &Key, records: Option<Records>) -> bool {
        let mut tables = self.tables.write();
        if tables.services.get(key) == records.as_ref() {
            return false;
        }
        tables.remove(key);
        if let Some(records) = records {
            tables.insert(key.clone(), records);
        }
        self.serial.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Every service with its records.
    pub fn all(&self) -> Vec<(Key, Records)> {
        self.tables.read().services.iter().map(|(k, r)| (k.clone(), r.clone())).collect()
    }

    /// How many services have records.
    pub fn len(&self) -> usize {
        self.tables.read().services.len()
    }

    /// True before the first service.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Answers a question. `name` keeps the case it was asked in, which the answer repeats.
    pub fn lookup(&self, name: &Name, kind: RecordType) -> Answer {
        let labels = labels(name);
        if let Some(relative) = strip(&labels, &self.origin) {
            return self.forward(name, relative, kind);
        }
        match name.parse_arpa_name() {
            Ok(net) => self.backward(name, net, kind),
            Err(_) => Answer::NotOurs,
        }
    }

    /// The start of authority that a negative answer about `name` carries. Resolvers keep such an answer only when its
    /// owner is the name or above it.
    pub fn soa_of(&self, name: &Name) -> Record {
        let mut soa = self.soa();
        if self.domain.zone_of(name) {
            return soa;
        }
        let range = name.parse_arpa_name().ok().and_then(|net| self.ranges.iter().find(|r| r.contains(&net)));
        // Reverse names have a label an octet (IPv6: half of one): the zone begins at the first whole one.
        let bits = range.map(|r| (usize::from(r.prefix_len()), if r.addr().is_ipv4() { 8 } else { 4 }));
        soa.name = bits.map_or(name.clone(), |(length, step)| name.trim_to(length.div_ceil(step) + 2)).to_lowercase();
        soa
    }

    fn soa(&self) -> Record {
        let ns = prefix(&["ns", "dns"], &self.domain);
        let mail = prefix(&["hostmaster"], &self.domain);
        let serial = self.serial.load(Ordering::Relaxed);
        let soa = SOA::new(ns, mail, serial, 7200, 1800, 86400, TTL);
        Record::from_rdata(self.domain.clone(), TTL, RData::SOA(soa))
    }

    fn forward(&self, name: &Name, relative: &[String], kind: RecordType) -> Answer {
        let relative: Vec<&str> = relative.iter().map(String::as_str).collect();
        match relative.as_slice() {
            [] => match kind {
                RecordType::SOA => found(vec![self.soa()]),
                RecordType::NS => {
                    let ns = RData::NS(NS(prefix(&["ns", "dns"], &self.domain)));
                    found(vec![Record::from_rdata(name.clone(), TTL, ns)])
                }
                _ => Answer::NoData,
            },
            ["dns-version"] if kind == RecordType::TXT => {
                let text = RData::TXT(TXT::new(vec![SPEC_VERSION.to_owned()]));
                found(vec![Record::from_rdata(name.clone(), TTL, text)])
            }
            ["dns-version"] | ["svc" | "pod"] => Answer::NoData,
            [namespace, "svc" | "pod"] => match self.tables.read().namespaces.contains_key(*namespace) {
                true => Answer::NoData,
                false => Answer::NoName,
            },
            [label, namespace, "pod"] => self.pod(name, label, namespace, kind),
            [service, namespace, "svc"] => self.service(name, service, namespace, kind),
            [port, protocol, service, namespace, "svc"] if port.starts_with('_') && protocol.starts_with('_') => {
                self.port(name, (&port[1..], &protocol[1..]), service, namespace, kind)
            }
            [protocol, service, namespace, "svc"] if protocol.starts_with('_') => {
                // Nothing is here, but it exists when a port's name is below.
                let below = |p: &Port| p.protocol == protocol[1..];
                let exists = match self.tables.read().services.get(&key(service, namespace)) {
                    Some(Records::Cluster { ports, .. }) => ports.iter().any(below),
                    Some(Records::Headless { endpoints }) => endpoints.values().flat_map(|e| &e.ports).any(below),
                    Some(Records::External { .. }) | None => false,
                };
                if exists { Answer::NoData } else { Answer::NoName }
            }
            [endpoint, service, namespace, "svc"] => {
                let tables = self.tables.read();
                let Some(Records::Headless { endpoints }) = tables.services.get(&key(service, namespace)) else {
                    return Answer::NoName;
                };
                endpoints.get(*endpoint).map_or(Answer::NoName, |e| self.addresses(name, e.ips.iter().copied(), kind))
            }
            _ => Answer::NoName,
        }
    }

    fn pod(&self, name: &Name, label: &str, namespace: &str, kind: RecordType) -> Answer {
        // The address is in the name: it is answered when it can be a pod's, without knowing the pod.
        match undashed(label) {
            Some(ip) if self.tables.read().namespaces.contains_key(namespace) => {
                self.addresses(name, [ip].into_iter(), kind)
            }
            _ => Answer::NoName,
        }
    }

    fn service(&self, name: &Name, service: &str, namespace: &str, kind: RecordType) -> Answer {
        let tables = self.tables.read();
        match tables.services.get(&key(service, namespace)) {
            None => Answer::NoName,
            Some(Records::Cluster { ips, ports }) if kind == RecordType::SRV => {
                self.srv_cluster(name, name, ips, ports)
            }
            Some(Records::Cluster { ips, .. }) => self.addresses(name, ips.iter().copied(), kind),
            Some(Records::Headless { endpoints }) if endpoints.is_empty() => Answer::NoName,
            // Beyond the specification, as CoreDNS has it: peers of a StatefulSet find each other so.
            Some(Records::Headless { endpoints }) if kind == RecordType::SRV => {
                self.srv_headless(name, name, endpoints, |_| true).unwrap_or(Answer::NoData)
            }
            Some(Records::Headless { endpoints }) => {
                let ips: BTreeSet<IpAddr> = endpoints.values().flat_map(|e| e.ips.iter().copied()).collect();
                self.addresses(name, ips.into_iter(), kind)
            }
            Some(Records::External { target }) => alias(name, target),
        }
    }

    fn srv_cluster<'a>(
        &self,
        name: &Name,
        target: &Name,
        ips: &[IpAddr],
        ports: impl IntoIterator<Item = &'a Port>,
    ) -> Answer {
        let srv =
            |p: &Port| Record::from_rdata(name.clone(), TTL, RData::SRV(SRV::new(0, 100, p.port, target.clone())));
        let answers: Vec<Record> = ports.into_iter().map(srv).collect();
        if answers.is_empty() {
            return Answer::NoData;
        }
        let additionals = ips.iter().map(|ip| address(target, *ip)).collect();
        Answer::Found { answers, additionals }
    }

    fn port(&self, name: &Name, asked: (&str, &str), service: &str, namespace: &str, kind: RecordType) -> Answer {
        let tables = self.tables.read();
        let base = name.trim_to(name.num_labels().saturating_sub(2).into());
        let is = |p: &Port| p.name == asked.0 && p.protocol == asked.1;
        match tables.services.get(&key(service, namespace)) {
            Some(Records::Cluster { ips, ports }) => match ports.iter().find(|p| is(p)) {
                None => Answer::NoName,
                Some(_) if kind != RecordType::SRV => Answer::NoData,
                Some(port) => self.srv_cluster(name, &base, ips, [port]),
            },
            Some(Records::Headless { endpoints }) => match self.srv_headless(name, &base, endpoints, is) {
                None => Answer::NoName,
                Some(_) if kind != RecordType::SRV => Answer::NoData,
                Some(answer) => answer,
            },
            _ => Answer::NoName,
        }
    }

    /// An SRV record for each endpoint and port (an endpoint may have several numbers under one name); `None` when there
    /// is no such port.
    fn srv_headless(
        &self,
        name: &Name,
        base: &Name,
        endpoints: &BTreeMap<String, EndpointName>,
        wanted: impl Fn(&Port) -> bool,
    ) -> Option<Answer> {
        let (mut answers, mut additionals) = (Vec::new(), Vec::new());
        for (label, endpoint) in endpoints {
            let target = prefix(&[label], base);
            let numbers: BTreeSet<u16> = endpoint.ports.iter().filter(|p| wanted(p)).map(|p| p.port).collect();
            if numbers.is_empty() {
                continue;
            }
            let srv = |port| Record::from_rdata(name.clone(), TTL, RData::SRV(SRV::new(0, 100, port, target.clone())));
            answers.extend(numbers.into_iter().map(srv));
            additionals.extend(endpoint.ips.iter().map(|ip| address(&target, *ip)));
        }
        self.rotate(&mut answers);
        (!answers.is_empty()).then_some(Answer::Found { answers, additionals })
    }

    fn backward(&self, name: &Name, net: IpNet, kind: RecordType) -> Answer {
        let ours = self.ranges.iter().any(|r| r.contains(&net));
        if net.prefix_len() < net.max_prefix_len() {
            // Above addresses there is nothing, but it exists.
            return if ours { Answer::NoData } else { Answer::NotOurs };
        }
        let tables = self.tables.read();
        // Endpoints may be anywhere: pods in the node's network, machines outside the cluster.
        let Some(owners) = tables.reverse.get(&net.addr()) else {
            return if ours { Answer::NoName } else { Answer::NotOurs };
        };
        if kind != RecordType::PTR {
            return Answer::NoData;
        }
        let mut names: Vec<Name> = owners
            .iter()
            .map(|(key, label)| {
                let labels = [label.as_deref().unwrap_or_default(), &key.name, &key.namespace, "svc"];
                prefix(&labels[usize::from(label.is_none())..], &self.domain)
            })
            .collect();
        names.sort();
        let ptr = |n| Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(n)));
        found(names.into_iter().map(ptr).collect())
    }

    fn addresses(&self, name: &Name, ips: impl Iterator<Item = IpAddr>, kind: RecordType) -> Answer {
        let wanted = |ip: &IpAddr| match kind {
            RecordType::A => ip.is_ipv4(),
            RecordType::AAAA => ip.is_ipv6(),
            _ => false,
        };
        let mut answers: Vec<Record> = ips.filter(wanted).map(|ip| address(name, ip)).collect();
        if answers.is_empty() {
            return Answer::NoData;
        }
        self.rotate(&mut answers);
        found(answers)
    }

    /// Round robin: each answer starts with another record.
    fn rotate(&self, records: &mut [Record]) {
        if records.len() > 1 {
            let by = self.turn.fetch_add(1, Ordering::Relaxed) % records.len();
            records.rotate_left(by);
        }
    }
}

impl Tables {
    fn remove(&mut self, key: &Key) {
        let Some(old) = self.services.remove(key) else { return };
        for (ip, label) in reverse_of(&old) {
            if let Some(owners) = self.reverse.get_mut(&ip) {
                owners.remove(&(key.clone(), label));
                if owners.is_empty() {
                    self.reverse.remove(&ip);
                }
            }
        }
        if let Some(count) = self.namespaces.get_mut(&key.namespace) {
            *count -= 1;
            if *count == 0 {
                self.namespaces.remove(&key.namespace);
            }
        }
    }

    fn insert(&mut self, key: Key, records: Records) {
        for (ip, label) in reverse_of(&records) {
            self.reverse.entry(ip).or_default().insert((key.clone(), label));
        }
        *self.namespaces.entry(key.namespace.clone()).or_default() += 1;
        self.services.insert(key, records);
    }
}

fn reverse_of(records: &Records) -> Vec<(IpAddr, Option<String>)> {
    match records {
        Records::Cluster { ips, .. } => ips.iter().map(|ip| (*ip, None)).collect(),
        Records::Headless { endpoints } => {
            let each = endpoints.iter().flat_map(|(label, e)| e.ips.iter().map(move |ip| (*ip, Some(label.clone()))));
            each.collect()
        }
        Records::External { .. } => Vec::new(),
    }
}

fn key(service: &str, namespace: &str) -> Key {
    Key { namespace: namespace.to_owned(), name: service.to_owned() }
}

fn found(answers: Vec<Record>) -> Answer {
    Answer::Found { answers, additionals: Vec::new() }
}

fn alias(name: &Name, target: &str) -> Answer {
    match Name::from_str(target) {
        Ok(mut target) => {
            target.set_fqdn(true);
            let record = Record::from_rdata(name.clone(), TTL, RData::CNAME(CNAME(target.clone())));
            Answer::Alias { record: Box::new(record), target }
        }
        // The API refuses such names.
        Err(_) => Answer::NoData,
    }
}

fn address(name: &Name, ip: IpAddr) -> Record {
    let data = match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    };
    Record::from_rdata(name.clone(), TTL, data)
}

/// The labels of a name, lower case, most specific first.
fn labels(name: &Name) -> Vec<String> {
    name.iter().map(|l| String::from_utf8_lossy(l).to_ascii_lowercase()).collect()
}

/// The labels in front of an origin.
fn strip<'a>(labels: &'a [String], origin: &[String]) -> Option<&'a [String]> {
    let split = labels.len().checked_sub(origin.len())?;
    (labels[split..] == *origin).then(|| &labels[..split])
}

/// Puts labels in front of a name. Labels come from objects the API has validated, so they fit.
fn prefix(labels: &[&str], base: &Name) -> Name {
    labels.iter().rev().fold(base.clone(), |name, label| name.prepend_label(*label).unwrap_or(name))
}

#[cfg(test)]
mod tests;
