//! The zone's answers made of several kinds of records: SRV, PTR and aliases, and the records themselves.

use super::{Answer, Manner, Zone};
use crate::model::{Endpoint, Port, Records};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;

impl Zone {
    pub(super) fn srv_cluster<'a>(
        &self,
        name: &Name,
        target: &Name,
        ips: &[IpAddr],
        ports: impl IntoIterator<Item = &'a Port>,
        ttl: u32,
    ) -> Answer {
        let target = target.to_lowercase();
        let answers: Vec<Record> = ports.into_iter().map(|p| srv(name, p.port, &target, ttl)).collect();
        if answers.is_empty() {
            return Answer::NoData;
        }
        let additionals = ips.iter().map(|ip| address(&target, *ip, ttl)).collect();
        Answer::Found { answers, additionals }
    }

    /// An SRV record for each endpoint and port (an endpoint may have several numbers under one name); `None` when there
    /// is no such port.
    pub(super) fn srv_headless(
        &self,
        name: &Name,
        base: &Name,
        endpoints: &[Endpoint],
        wanted: impl Fn(&Port) -> bool,
        ttl: u32,
    ) -> Option<Answer> {
        let (mut answers, mut additionals) = (Vec::new(), Vec::new());
        let base = base.to_lowercase();
        for endpoint in endpoints {
            let numbers: BTreeSet<u16> = endpoint.ports.iter().filter(|p| wanted(p)).map(|p| p.port).collect();
            if numbers.is_empty() {
                continue;
            }
            let target = prefix(&[&endpoint.label], &base);
            answers.extend(numbers.into_iter().map(|port| srv(name, port, &target, ttl)));
            additionals.extend(endpoint.ips.iter().map(|ip| address(&target, *ip, ttl)));
        }
        self.rotate(&mut answers);
        (!answers.is_empty()).then_some(Answer::Found { answers, additionals })
    }

    pub(super) fn backward(&self, name: &Name, net: IpNet, kind: RecordType, manner: Manner) -> Answer {
        let ours = self.ranges.iter().any(|r| r.contains(&net));
        if net.prefix_len() < net.max_prefix_len() {
            // Above addresses there is nothing, but it exists.
            return if ours { Answer::NoData } else { Answer::NotOurs };
        }
        let ip = net.addr();
        let mut names: Vec<Name> = Vec::new();
        {
            let tables = self.tables.read();
            // Endpoints may be anywhere: pods in the node's network, machines outside the cluster.
            let Some(owners) = tables.reverse.get(&ip) else {
                return if ours { Answer::NoName } else { Answer::NotOurs };
            };
            for key in owners.iter() {
                let service = prefix(&[&key.name, &key.namespace, "svc"], &self.domain);
                match tables.get(&key.name, &key.namespace) {
                    Some(Records::Headless { endpoints }) => {
                        let with = endpoints.iter().filter(|e| e.ips.contains(&ip));
                        names.extend(with.map(|e| prefix(&[&e.label], &service)));
                    }
                    _ => names.push(service),
                }
            }
        }
        if kind != RecordType::PTR {
            return Answer::NoData;
        }
        names.sort();
        let ptr = |n| Record::from_rdata(name.clone(), manner.ttl, RData::PTR(PTR(n)));
        found(names.into_iter().map(ptr).collect())
    }
}

pub(super) fn found(answers: Vec<Record>) -> Answer {
    Answer::Found { answers, additionals: Vec::new() }
}

fn srv(name: &Name, port: u16, target: &Name, ttl: u32) -> Record {
    Record::from_rdata(name.clone(), ttl, RData::SRV(SRV::new(0, 100, port, target.clone())))
}

/// An alias, and where it points.
pub(crate) fn cname(name: &Name, target: &Name, ttl: u32) -> Record {
    Record::from_rdata(name.clone(), ttl, RData::CNAME(CNAME(target.clone())))
}

pub(super) fn alias(name: &Name, target: &str, ttl: u32) -> Answer {
    match Name::from_str(target) {
        Ok(mut target) => {
            target.set_fqdn(true);
            Answer::Alias { record: Box::new(cname(name, &target, ttl)), target }
        }
        // The API refuses such names.
        Err(_) => Answer::NoData,
    }
}

pub(super) fn address(name: &Name, ip: IpAddr, ttl: u32) -> Record {
    let data = match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    };
    Record::from_rdata(name.clone(), ttl, data)
}

/// Puts labels in front of a name. Labels come from objects the API has validated, so they fit.
pub(super) fn prefix(labels: &[&str], base: &Name) -> Name {
    labels.iter().rev().fold(base.clone(), |name, label| name.prepend_label(*label).unwrap_or(name))
}
