//! The cluster's zone: who asks for a name gets its records. In: [`Records`] service by service, queries. Out: an
//! [`Answer`]. No I/O; what is asked for is found in a few hash look-ups, however many services there are.
//!
//! Names follow Kubernetes' DNS-based service discovery 1.1.0: `svc.ns.svc.DOMAIN`, `endpoint.svc.ns.svc.DOMAIN`,
//! `_port._proto.svc.ns.svc.DOMAIN`, `1-2-3-4.ns.pod.DOMAIN`, `dns-version.DOMAIN`, and reverse names of addresses.

mod answers;
mod labels;
mod tables;

use crate::model::{Key, Port, Protocol, Records, undashed};
use crate::pods::Pods;
pub(crate) use answers::cname;
use answers::{address, alias, found, prefix};
use causeway_api::dns::{DnsSettings, PodRecords};
use hickory_proto::rr::rdata::{HINFO, NS, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;
use labels::Labels;
use parking_lot::RwLock;
use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use tables::Tables;

/// The version of the specification, served as TXT `dns-version`.
const SPEC_VERSION: &str = "1.1.0";
/// Changes are counted by service in this many lanes, so that a change spoils few kept answers.
const LANES: usize = 1024;

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
    /// What it depends on has not been seen yet.
    NotKnown,
}

/// The state of the zone that an answer came from: it may be given again for as long as [`Zone::is_current`] says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Counted changes of one lane; of everything with `None`.
    lane: Option<u16>,
    count: u32,
}

/// What is said in general; see [`DnsSettings`].
#[derive(Debug, Clone, Copy)]
struct Manner {
    ttl: u32,
    pods: PodRecords,
}

/// The zone. Readers and the one writer share it.
pub struct Zone {
    domain: Name,
    origin: Labels,
    ranges: Vec<IpNet>,
    tables: RwLock<Tables>,
    manner: RwLock<Manner>,
    pods: Arc<Pods>,
    turn: AtomicUsize,
    serial: AtomicU32,
    lanes: Box<[AtomicU32]>,
}

impl Zone {
    /// An empty zone for a domain such as `cluster.local`; `ranges` are the addresses whose reverse names are ours, and
    /// `pods` who has which address, for names of pods.
    pub fn new(domain: &str, ranges: Vec<IpNet>, pods: Arc<Pods>) -> Result<Self, String> {
        let mut name = Name::from_str(domain).map_err(|e| format!("cluster domain {domain:?}: {e}"))?;
        name.set_fqdn(true);
        let origin = Labels::of(&name).ok_or_else(|| format!("cluster domain {domain:?} is no host name"))?;
        let settings = DnsSettings::default();
        Ok(Self {
            domain: name.to_lowercase(),
            origin,
            ranges,
            tables: RwLock::default(),
            manner: RwLock::new(Manner { ttl: settings.ttl, pods: settings.pods }),
            pods,
            turn: AtomicUsize::new(0),
            serial: AtomicU32::new(1),
            lanes: (0..LANES).map(|_| AtomicU32::new(0)).collect(),
        })
    }

    /// The cluster's domain.
    pub fn domain(&self) -> &Name {
        &self.domain
    }

    /// Seconds an answer may be kept.
    pub fn ttl(&self) -> u32 {
        self.manner.read().ttl
    }

    /// Takes over what answers are like.
    pub fn configure(&self, settings: &DnsSettings) {
        *self.manner.write() = Manner { ttl: settings.ttl, pods: settings.pods };
        for lane in &self.lanes {
            lane.fetch_add(1, Ordering::Release);
        }
        self.serial.fetch_add(1, Ordering::Release);
    }

    /// Puts a service's records in place of what was there; `None` removes it. True when something changed.
    pub fn set(&self, key: &Key, records: Option<Records>) -> bool {
        // What was there is freed after the lock.
        let Some(_old) = self.tables.write().set(key, records) else { return false };
        self.lanes[lane(&key.name, &key.namespace)].fetch_add(1, Ordering::Release);
        self.serial.fetch_add(1, Ordering::Release);
        true
    }

    /// Takes over which namespaces exist, besides those that have services. True when that is news.
    pub fn set_namespaces(&self, names: HashSet<Box<str>>) -> bool {
        let mut tables = self.tables.write();
        if tables.known == names {
            return false;
        }
        tables.known = names;
        self.serial.fetch_add(1, Ordering::Release);
        true
    }

    /// Reads every service with its records, and the namespaces.
    pub fn read<T>(&self, with: impl FnOnce(Vec<(&Key, &Records)>, Vec<&str>) -> T) -> T {
        let tables = self.tables.read();
        let services = tables.services.values().flat_map(|ns| ns.values()).map(|s| (&*s.key, &s.records)).collect();
        with(services, tables.known.iter().map(|n| &**n).collect())
    }

    /// The keys of all services.
    pub fn keys(&self) -> Vec<Key> {
        self.read(|services, _| services.into_iter().map(|(key, _)| key.clone()).collect())
    }

    /// How many services have records.
    pub fn len(&self) -> usize {
        self.tables.read().services.values().map(|ns| ns.len()).sum()
    }

    /// True before the first service.
    pub fn is_empty(&self) -> bool {
        self.tables.read().services.is_empty()
    }

    /// The state that an answer to `name` with records, or without, comes from. To be asked for before the answer is.
    pub fn stamp(&self, name: &Name, positive: bool) -> Stamp {
        let of = |lane: usize| self.lanes[lane].load(Ordering::Acquire);
        if positive
            && let Some(labels) = Labels::of(name)
            && let Some([.., service, namespace, "svc"]) = labels.before(&self.origin).as_deref()
        {
            let lane = lane(service, namespace);
            return Stamp { lane: u16::try_from(lane).ok(), count: of(lane) };
        }
        Stamp { lane: None, count: self.serial.load(Ordering::Acquire) }
    }

    /// Whether nothing that the answer depends on has changed since.
    pub fn is_current(&self, stamp: Stamp) -> bool {
        let counter = stamp.lane.and_then(|lane| self.lanes.get(usize::from(lane))).unwrap_or(&self.serial);
        counter.load(Ordering::Acquire) == stamp.count
    }

    /// Answers a question. `name` keeps the case it was asked in, which the answer repeats.
    pub fn lookup(&self, name: &Name, kind: RecordType) -> Answer {
        let manner = *self.manner.read();
        if self.domain.zone_of(name) {
            let Some(labels) = Labels::of(name) else { return Answer::NoName };
            let Some(relative) = labels.before(&self.origin) else { return Answer::NoName };
            let answer = self.forward(name, &relative, kind, manner);
            return self.any(name, &relative, kind, manner, answer);
        }
        match name.parse_arpa_name() {
            Ok(net) => self.backward(name, net, kind, manner),
            Err(_) => Answer::NotOurs,
        }
    }

    /// "Everything there is" is answered with next to nothing (RFC 8482).
    fn any(&self, name: &Name, relative: &[&str], kind: RecordType, manner: Manner, answer: Answer) -> Answer {
        if kind != RecordType::ANY || matches!(answer, Answer::NoName | Answer::NotKnown) {
            return answer;
        }
        let exists =
            answer != Answer::NoData || self.forward(name, relative, RecordType::SRV, manner) != Answer::NoName;
        let hinfo = RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()));
        if exists { found(vec![Record::from_rdata(name.clone(), manner.ttl, hinfo)]) } else { answer }
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
        let (serial, ttl) = (self.serial.load(Ordering::Relaxed), self.manner.read().ttl);
        let soa = SOA::new(ns, mail, serial, 7200, 1800, 86400, ttl);
        Record::from_rdata(self.domain.clone(), ttl, RData::SOA(soa))
    }

    fn forward(&self, name: &Name, relative: &[&str], kind: RecordType, manner: Manner) -> Answer {
        let ttl = manner.ttl;
        match relative {
            [] => match kind {
                RecordType::SOA => found(vec![self.soa()]),
                RecordType::NS => {
                    let ns = RData::NS(NS(prefix(&["ns", "dns"], &self.domain)));
                    found(vec![Record::from_rdata(name.clone(), ttl, ns)])
                }
                _ => Answer::NoData,
            },
            // Where the zone's server is: who delegates to it asks.
            ["ns", "dns"] => {
                let tables = self.tables.read();
                match tables.get("kube-dns", "kube-system") {
                    Some(Records::Cluster { ips, .. }) => self.addresses(name, ips.iter().copied(), kind, ttl),
                    _ => Answer::NoData,
                }
            }
            ["dns-version"] if kind == RecordType::TXT => {
                let text = RData::TXT(TXT::new(vec![SPEC_VERSION.to_owned()]));
                found(vec![Record::from_rdata(name.clone(), ttl, text)])
            }
            ["dns-version"] | ["svc" | "pod" | "dns"] => Answer::NoData,
            [namespace, "svc" | "pod"] => match self.tables.read().has_namespace(namespace) {
                true => Answer::NoData,
                false => Answer::NoName,
            },
            [label, namespace, "pod"] => self.pod(name, label, namespace, kind, manner),
            [service, namespace, "svc"] => self.service(name, service, namespace, kind, ttl),
            [port, protocol, service, namespace, "svc"] if port.starts_with('_') && protocol.starts_with('_') => {
                let Some(protocol) = Protocol::of(&protocol[1..]) else { return Answer::NoName };
                self.port(name, (&port[1..], protocol), (service, namespace), kind, ttl)
            }
            [protocol, service, namespace, "svc"] if protocol.starts_with('_') => {
                // Nothing is here, but it exists when a port's name is below.
                let Some(protocol) = Protocol::of(&protocol[1..]) else { return Answer::NoName };
                let below = |p: &Port| p.protocol == protocol;
                let exists = match self.tables.read().get(service, namespace) {
                    Some(Records::Cluster { ports, .. }) => ports.iter().any(below),
                    Some(Records::Headless { endpoints }) => endpoints.iter().flat_map(|e| e.ports.iter()).any(below),
                    Some(Records::External { .. }) | None => false,
                };
                if exists { Answer::NoData } else { Answer::NoName }
            }
            [endpoint, service, namespace, "svc"] => {
                let tables = self.tables.read();
                let Some(Records::Headless { endpoints }) = tables.get(service, namespace) else {
                    return Answer::NoName;
                };
                match endpoints.binary_search_by(|e| (*e.label).cmp(endpoint)) {
                    Ok(at) => self.addresses(name, endpoints[at].ips.iter().copied(), kind, ttl),
                    Err(_) => Answer::NoName,
                }
            }
            _ => Answer::NoName,
        }
    }

    fn pod(&self, name: &Name, label: &str, namespace: &str, kind: RecordType, manner: Manner) -> Answer {
        let Some(ip) = undashed(label) else { return Answer::NoName };
        let exists = match manner.pods {
            PodRecords::Disabled => false,
            // The address is in the name: it is answered when it can be a pod's, without knowing the pod.
            PodRecords::Insecure => self.tables.read().has_namespace(namespace),
            PodRecords::Verified if !self.pods.is_complete() => return Answer::NotKnown,
            PodRecords::Verified => self.pods.is_in(ip, namespace),
        };
        if exists { self.addresses(name, [ip].into_iter(), kind, manner.ttl) } else { Answer::NoName }
    }

    fn service(&self, name: &Name, service: &str, namespace: &str, kind: RecordType, ttl: u32) -> Answer {
        let tables = self.tables.read();
        match tables.get(service, namespace) {
            None => Answer::NoName,
            Some(Records::Cluster { ips, ports }) if kind == RecordType::SRV => {
                self.srv_cluster(name, name, ips, ports.iter(), ttl)
            }
            Some(Records::Cluster { ips, .. }) => self.addresses(name, ips.iter().copied(), kind, ttl),
            Some(Records::Headless { endpoints }) if endpoints.is_empty() => Answer::NoName,
            // Beyond the specification, as CoreDNS has it: peers of a StatefulSet find each other so.
            Some(Records::Headless { endpoints }) if kind == RecordType::SRV => {
                self.srv_headless(name, name, endpoints, |_| true, ttl).unwrap_or(Answer::NoData)
            }
            Some(Records::Headless { endpoints }) => {
                // Endpoints of two labels may share an address: it is said once.
                let mut seen = HashSet::new();
                let ips = endpoints.iter().flat_map(|e| e.ips.iter().copied());
                self.addresses(name, ips.filter(|ip| seen.insert(*ip)), kind, ttl)
            }
            Some(Records::External { target }) => alias(name, target, ttl),
        }
    }

    fn port(
        &self,
        name: &Name,
        asked: (&str, Protocol),
        (service, namespace): (&str, &str),
        kind: RecordType,
        ttl: u32,
    ) -> Answer {
        let tables = self.tables.read();
        let base = name.trim_to(name.num_labels().saturating_sub(2).into());
        let is = |p: &Port| *p.name == *asked.0 && p.protocol == asked.1;
        match tables.get(service, namespace) {
            Some(Records::Cluster { ips, ports }) => match ports.iter().find(|p| is(p)) {
                None => Answer::NoName,
                Some(_) if kind != RecordType::SRV => Answer::NoData,
                Some(port) => self.srv_cluster(name, &base, ips, [port], ttl),
            },
            Some(Records::Headless { endpoints }) => match self.srv_headless(name, &base, endpoints, is, ttl) {
                None => Answer::NoName,
                Some(_) if kind != RecordType::SRV => Answer::NoData,
                Some(answer) => answer,
            },
            _ => Answer::NoName,
        }
    }

    fn addresses(&self, name: &Name, ips: impl Iterator<Item = IpAddr>, kind: RecordType, ttl: u32) -> Answer {
        let wanted = |ip: &IpAddr| match kind {
            RecordType::A => ip.is_ipv4(),
            RecordType::AAAA => ip.is_ipv6(),
            _ => false,
        };
        let mut answers: Vec<Record> = ips.filter(wanted).map(|ip| address(name, ip, ttl)).collect();
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

/// The lane in which a service's changes are counted.
fn lane(service: &str, namespace: &str) -> usize {
    let mut hasher = DefaultHasher::new();
    (service, namespace).hash(&mut hasher);
    usize::try_from(hasher.finish() % LANES as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests;
