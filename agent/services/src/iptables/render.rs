//! Which rules a service needs, and the rules that no service changes. Pure.
//!
//! In: a service's model and the ranges. Out: the service's own chains, and its rules in the shared ones, written as
//! `iptables-save` writes them, so that what is read back can be compared.
//!
//! A connection's way: in `nat`, KUBE-SERVICES knows its destination (node ports: KUBE-NODEPORTS) and goes on to the
//! endpoints, KUBE-SVC-… (of the cluster) or KUBE-SVL-… (of this node), by way of KUBE-FW-… where sources are limited
//! and KUBE-EXT-… where it may come from outside. KUBE-SEP-… translates to one endpoint. What was not translated is
//! refused or dropped in `filter`.

use super::names::{
    CLUSTER, CLUSTER_IPS, ChainId, EXTERNAL, EXTERNAL_SERVICES, FIREWALL, FORWARD, LOCAL, MARK_MASQ, MARK_REMOTE,
    NODE_PORTS, POSTROUTING, RANGES, SERVICES, Table, UNSERVED, of_endpoint, of_port, protocol,
};
use crate::{
    family::Family,
    model::{Choice, Front, Kind, ServiceModel, TCP, Target, Wanted},
    renderer::Ranges,
};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// The mark of connections that need the node's source address; kube-proxy's, and other programs know to keep off it.
pub const MASQ_MARK: &str = "0x4000";

/// Chains whose rules come from many services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SharedChain {
    /// nat: by address, to a service's chains.
    Services,
    /// nat: by port, to a service's chains.
    NodePorts,
    /// filter: refuses at cluster IPs.
    ClusterIps,
    /// filter: refuses at node ports, external and balancers' addresses.
    External,
    /// filter: drops sources that are not let in.
    Firewall,
    /// filter: lets health checks of balancers in.
    HealthChecks,
}

impl SharedChain {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Services, Self::NodePorts, Self::ClusterIps, Self::External, Self::Firewall, Self::HealthChecks];

    /// Table and name of the chain that is always there.
    pub fn base(self) -> (Table, &'static str) {
        match self {
            Self::Services => (Table::Nat, SERVICES),
            Self::NodePorts => (Table::Nat, NODE_PORTS),
            Self::ClusterIps => (Table::Filter, CLUSTER_IPS),
            Self::External => (Table::Filter, EXTERNAL_SERVICES),
            Self::Firewall => (Table::Filter, FIREWALL),
            Self::HealthChecks => (Table::Filter, NODE_PORTS),
        }
    }
}

/// A rule in a shared chain. Rules of a lower rank come first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedRule {
    /// Which chain.
    pub chain: SharedChain,
    /// Whom it is for.
    pub front: Front,
    /// Its order among those of an address.
    pub rank: u16,
    /// Its text.
    pub rule: String,
}

/// All that one service needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rendered {
    /// Chains of its own.
    pub chains: BTreeMap<ChainId, Vec<String>>,
    /// Its rules in shared ones.
    pub shared: Vec<SharedRule>,
}

/// Rules of a service at the fronts that it `owns`; should two services want the same, only one has it.
pub fn service(name: &str, model: &ServiceModel, ranges: &Ranges, owns: impl Fn(&Front) -> bool) -> Rendered {
    let mut out = Renderer { model, ranges, rendered: Rendered::default() };
    /// Family, protocol, name.
    type PortOf<'a> = (Family, &'static str, &'a Arc<str>);
    let mut ports: BTreeMap<PortOf<'_>, Vec<(&Front, &Wanted)>> = BTreeMap::new();
    for (front, wanted) in model.fronts.iter().filter(|(f, _)| owns(f)) {
        if let Some(protocol) = protocol(front.protocol) {
            ports.entry((Family::of(&front.ip), protocol, &wanted.port)).or_default().push((front, wanted));
        }
    }
    for ((family, protocol, port), mut fronts) in ports {
        // What comes from outside names the chains: the cluster's endpoints are KUBE-SVC-…, also when inside only
        // local ones are used.
        fronts.sort_by_key(|(f, w)| (w.kind == Kind::ClusterIp, **f));
        out.port(family, protocol, port, &fronts);
    }
    for ip in &model.cluster_ips {
        out.other_ports(name, *ip);
    }
    if let Some(health) = &model.health {
        let what = comment(name, " health check node port");
        for ip in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
            let front = Front { ip, protocol: TCP, port: health.port };
            let rule = format!("-p tcp {what} -m tcp --dport {} -j ACCEPT", health.port);
            out.share(SharedChain::HealthChecks, &front, 0, rule);
        }
    }
    out.rendered
}

struct Renderer<'a> {
    model: &'a ServiceModel,
    ranges: &'a Ranges,
    rendered: Rendered,
}

/// Chains of one port.
struct Port<'a> {
    family: Family,
    protocol: &'static str,
    name: &'a str,
    affinity: Option<u32>,
    /// Which endpoints a chain has.
    spread: Vec<(String, &'a BTreeSet<Target>)>,
}

impl<'a> Renderer<'a> {
    fn port(&mut self, family: Family, protocol: &'static str, name: &'a str, fronts: &[(&'a Front, &'a Wanted)]) {
        let affinity = fronts.iter().find_map(|(_, w)| w.affinity);
        let mut port = Port { family, protocol, name, affinity, spread: Vec::new() };
        for (front, wanted) in fronts {
            let to = match wanted.kind {
                Kind::ClusterIp => port.chain_of(&wanted.choice, CLUSTER),
                _ => self.external(&mut port, wanted),
            };
            let limited = wanted.sources.is_some();
            let to = match &wanted.sources {
                Some(sources) => self.limit(&port, sources, to),
                None => to,
            };
            let what = comment(
                name,
                match wanted.kind {
                    Kind::ClusterIp => " cluster IP",
                    Kind::ExternalIp => " external IP",
                    Kind::LoadBalancer => " loadbalancer IP",
                    Kind::NodePort => "",
                },
            );
            let at = format!("-p {protocol} {what} -m {protocol} --dport {}", front.port);
            if let Some(to) = to {
                let address = net(front.ip.into());
                let chain = match wanted.kind {
                    Kind::NodePort => SharedChain::NodePorts,
                    _ => SharedChain::Services,
                };
                self.share(chain, front, 0, format!("-d {address} {at} -j {to}"));
            }
            self.refuse(&port, front, wanted, limited);
        }
        for (chain, targets) in &port.spread {
            let id = ChainId::new(family, Table::Nat, chain.clone());
            self.rendered.chains.insert(id, spread(&port, targets));
            for target in *targets {
                self.endpoint(&port, target);
            }
        }
    }

    /// The chain for connections that may come from outside.
    fn external(&mut self, port: &mut Port<'a>, wanted: &'a Wanted) -> Option<String> {
        let all = port.chain_of(&wanted.choice, CLUSTER);
        let Some(external) = &wanted.external else {
            let name = of_port(EXTERNAL, port.name, port.protocol);
            let what = comment(port.name, " external destinations");
            let rules = vec![format!("{what} -j {}", all?)];
            self.rendered.chains.insert(ChainId::new(port.family, Table::Nat, name.clone()), rules);
            return Some(name);
        };
        let local = port.chain_of(external, LOCAL);
        if all.is_none() && local.is_none() {
            return None;
        }
        let name = of_port(EXTERNAL, port.name, port.protocol);
        let mut rules = Vec::new();
        if let Some(all) = all {
            let pods = self.ranges.pods.iter().filter(|r| Family::of(&r.addr()) == port.family);
            let what = comment(port.name, " pod traffic for external destinations");
            rules.extend(pods.map(|range| format!("-s {} {what} -j {all}", net(*range))));
            let what = comment(port.name, " local traffic for external destinations");
            rules.push(format!("{what} -m addrtype --src-type LOCAL -j {all}"));
        }
        rules.extend(local.map(|local| format!("-j {local}")));
        self.rendered.chains.insert(ChainId::new(port.family, Table::Nat, name.clone()), rules);
        Some(name)
    }

    /// The chain that lets only these sources on.
    fn limit(&mut self, port: &Port<'_>, sources: &BTreeSet<IpNet>, to: Option<String>) -> Option<String> {
        let to = to?;
        let name = of_port(RANGES, port.name, port.protocol);
        let what = comment(port.name, " loadbalancer IP");
        let rules = sources.iter().map(|range| format!("-s {} {what} -j {to}", net(*range))).collect();
        self.rendered.chains.insert(ChainId::new(port.family, Table::Nat, name.clone()), rules);
        Some(name)
    }

    /// What becomes of connections that were not translated.
    fn refuse(&mut self, port: &Port<'_>, front: &Front, wanted: &Wanted, limited: bool) {
        let at = |text: &str| {
            let what = comment(port.name, text);
            format!(
                "-d {} -p {} {what} -m {} --dport {}",
                net(front.ip.into()),
                port.protocol,
                port.protocol,
                front.port
            )
        };
        if limited {
            let chain = of_port(RANGES, port.name, port.protocol);
            for (rank, source) in (0..u16::MAX).zip(wanted.sources.iter().flatten()) {
                let rule = format!("-s {} {} -j RETURN", net(*source), at(" loadbalancer IP"));
                self.share(SharedChain::Firewall, front, rank, rule);
            }
            let rule = format!("{} -j DROP", at(&format!(" traffic not accepted by {chain}")));
            self.share(SharedChain::Firewall, front, u16::MAX, rule);
        }
        // Sources inside were translated if their choice has endpoints; then it is for those outside.
        let choice = match &wanted.external {
            Some(external) if matches!(wanted.choice, Choice::Spread(_)) => external,
            _ => &wanted.choice,
        };
        let chain = if wanted.kind == Kind::ClusterIp { SharedChain::ClusterIps } else { SharedChain::External };
        let rule = match choice {
            Choice::Spread(_) => return,
            Choice::Drop => format!("{} -j DROP", at(" has no local endpoints")),
            Choice::Refuse => format!("{} -j {}", at(" has no endpoints"), reject(port.family, port.protocol)),
        };
        self.share(chain, front, 0, rule);
    }

    /// Ports that a cluster IP does not have.
    fn other_ports(&mut self, service: &str, ip: IpAddr) {
        let family = Family::of(&ip);
        let (address, what) = (net(ip.into()), comment(service, " cluster IP has no such port"));
        // Where this stands matters only among those of the address.
        let front = Front { ip, protocol: 0, port: 0 };
        let tcp = format!("-d {address} -p tcp {what} -j {}", reject(family, "tcp"));
        self.share(SharedChain::ClusterIps, &front, 1, tcp);
        let others = format!("-d {address} {what} -j {}", reject(family, "udp"));
        self.share(SharedChain::ClusterIps, &front, 2, others);
    }

    fn endpoint(&mut self, port: &Port<'_>, target: &Target) {
        let id = ChainId::new(port.family, Table::Nat, of_endpoint(port.name, port.protocol, target));
        let (what, protocol) = (comment(port.name, ""), port.protocol);
        let mut rules = Vec::new();
        if self.model.local.contains(&target.ip) {
            rules.push(format!("-s {} {what} -j {MARK_MASQ}", net(target.ip.into())));
        }
        if !self.ranges.local.iter().any(|range| range.contains(&target.ip)) {
            rules.push(format!("{what} -j {MARK_REMOTE}"));
        }
        let remember = match port.affinity {
            Some(_) => format!(" -m recent --set --name {} --mask {} --rsource", id.name, mask(port.family)),
            None => String::new(),
        };
        let to = SocketAddr::new(target.ip, target.port);
        rules.push(format!("-p {protocol} {what}{remember} -m {protocol} -j DNAT --to-destination {to}"));
        self.rendered.chains.insert(id, rules);
    }

    fn share(&mut self, chain: SharedChain, front: &Front, rank: u16, rule: String) {
        self.rendered.shared.push(SharedRule { chain, front: *front, rank, rule });
    }
}

impl<'a> Port<'a> {
    /// The chain with a choice's endpoints; the name is new when no chain has the same ones yet.
    fn chain_of(&mut self, choice: &'a Choice, prefix: &'static str) -> Option<String> {
        let Choice::Spread(targets) = choice else { return None };
        if let Some((name, _)) = self.spread.iter().find(|(_, t)| *t == targets) {
            return Some(name.clone());
        }
        let is_taken = |name: &String| self.spread.iter().any(|(n, _)| n == name);
        let plain = [prefix, LOCAL].map(|p| of_port(p, self.name, self.protocol));
        let more = (2..).map(|n| of_port(LOCAL, self.name, &format!("{}#{n}", self.protocol)));
        let name = plain.into_iter().chain(more).find(|name| !is_taken(name))?;
        self.spread.push((name.clone(), targets));
        Some(name)
    }
}

/// The rules that choose one of these endpoints.
fn spread(port: &Port<'_>, targets: &BTreeSet<Target>) -> Vec<String> {
    let mut rules = Vec::new();
    let to = |target: &Target| {
        let chain = of_endpoint(port.name, port.protocol, target);
        let what = comment(port.name, &format!(" -> {}", SocketAddr::new(target.ip, target.port)));
        (chain, what)
    };
    if let Some(seconds) = port.affinity {
        for target in targets {
            let (chain, what) = to(target);
            let who = format!("--name {chain} --mask {} --rsource", mask(port.family));
            rules.push(format!("{what} -m recent --rcheck --seconds {seconds} --reap {who} -j {chain}"));
        }
    }
    for (left, target) in (1..=targets.len()).rev().zip(targets) {
        let (chain, what) = to(target);
        let chance = match left {
            1 => String::new(),
            left => format!(" -m statistic --mode random --probability {}", probability(left)),
        };
        rules.push(format!("{what}{chance} -j {chain}"));
    }
    rules
}

/// One in `n`, as the kernel keeps it (in 2^-31) and `iptables-save` prints it.
fn probability(n: usize) -> String {
    let unit = f64::from(1_u32 << 31);
    format!("{:.11}", (unit / n as f64).round() / unit)
}

fn mask(family: Family) -> &'static str {
    match family {
        Family::V4 => "255.255.255.255",
        Family::V6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    }
}

fn comment(name: &str, more: &str) -> String {
    format!("-m comment --comment \"{name}{more}\"")
}

fn net(net: IpNet) -> String {
    net.trunc().to_string()
}

fn reject(family: Family, protocol: &str) -> &'static str {
    match (protocol, family) {
        ("tcp", _) => "REJECT --reject-with tcp-reset",
        (_, Family::V4) => "REJECT --reject-with icmp-port-unreachable",
        (_, Family::V6) => "REJECT --reject-with icmp6-port-unreachable",
    }
}

/// Rules in the kernel's own chains, in the order in which they are put before what is there.
pub fn hooks() -> Vec<(Table, &'static str, String)> {
    let new = |what: &str, to: &str| format!("-m conntrack --ctstate NEW -m comment --comment \"{what}\" -j {to}");
    let all = |what: &str, to: &str| format!("-m comment --comment \"{what}\" -j {to}");
    let portals = "kubernetes service portals";
    let outside = "kubernetes externally-visible service portals";
    let firewall = "kubernetes load balancer firewall";
    let health = "kubernetes health check service ports";
    let unserved = "kubernetes service addresses without a rule";
    vec![
        (Table::Nat, "PREROUTING", all(portals, SERVICES)),
        (Table::Nat, "OUTPUT", all(portals, SERVICES)),
        (Table::Nat, "POSTROUTING", all("kubernetes postrouting rules", POSTROUTING)),
        (Table::Filter, "INPUT", new(firewall, FIREWALL)),
        (Table::Filter, "INPUT", all(health, NODE_PORTS)),
        (Table::Filter, "INPUT", new(outside, EXTERNAL_SERVICES)),
        (Table::Filter, "FORWARD", new(firewall, FIREWALL)),
        (Table::Filter, "FORWARD", new(portals, SERVICES)),
        (Table::Filter, "FORWARD", new(outside, EXTERNAL_SERVICES)),
        (Table::Filter, "FORWARD", all(unserved, UNSERVED)),
        (Table::Filter, "FORWARD", all("kubernetes forwarding rules", FORWARD)),
        (Table::Filter, "OUTPUT", new(firewall, FIREWALL)),
        (Table::Filter, "OUTPUT", new(portals, SERVICES)),
        (Table::Filter, "OUTPUT", new(outside, EXTERNAL_SERVICES)),
        (Table::Filter, "OUTPUT", all(unserved, UNSERVED)),
    ]
}

/// Chains that depend on ranges alone. `strays` are cluster IPs outside of the service ranges.
pub fn fixed(family: Family, ranges: &Ranges, strays: &BTreeSet<IpAddr>) -> BTreeMap<ChainId, Vec<String>> {
    let of = |nets: &[IpNet]| -> Vec<String> {
        let nets: Vec<IpNet> = nets.iter().filter(|n| Family::of(&n.addr()) == family).copied().collect();
        IpNet::aggregate(&nets).into_iter().map(net).collect()
    };
    let mut mark_remote: Vec<String> = of(&ranges.local).iter().map(|range| format!("-s {range} -j RETURN")).collect();
    mark_remote.push(format!("-j {MARK_MASQ}"));
    let masquerade = "-m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully";
    let postrouting = vec![
        format!("-m mark ! --mark {MASQ_MARK}/{MASQ_MARK} -j RETURN"),
        format!("-j MARK --set-xmark {MASQ_MARK}/0x0"),
        masquerade.to_owned(),
    ];
    let what = comment("kubernetes", " cluster IPs");
    let mut services: Vec<String> =
        of(&ranges.services).iter().map(|range| format!("-d {range} {what} -j {CLUSTER_IPS}")).collect();
    let strays = strays.iter().filter(|ip| Family::of(ip) == family);
    services.extend(strays.map(|ip| format!("-d {} {what} -j {CLUSTER_IPS}", net((*ip).into()))));
    let what = comment("kubernetes", " service address without a rule");
    let unserved = of(&ranges.services).iter().map(|range| format!("-d {range} {what} -j DROP")).collect();
    let what = comment("kubernetes", " forwarding rules");
    let forward = vec![
        "-m conntrack --ctstate INVALID -j DROP".to_owned(),
        format!("{what} -m mark --mark {MASQ_MARK}/{MASQ_MARK} -j ACCEPT"),
        format!("{what} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
    ];
    let chains = [
        (Table::Nat, MARK_MASQ, vec![format!("-j MARK --set-xmark {MASQ_MARK}/{MASQ_MARK}")]),
        (Table::Nat, MARK_REMOTE, mark_remote),
        (Table::Nat, POSTROUTING, postrouting),
        (Table::Filter, SERVICES, services),
        (Table::Filter, UNSERVED, unserved),
        (Table::Filter, FORWARD, forward),
    ];
    chains.into_iter().map(|(table, name, rules)| (ChainId::new(family, table, name), rules)).collect()
}
