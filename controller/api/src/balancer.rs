//! Addresses of Services of type LoadBalancer: the pools they come from, and which Services they are for.
//!
//! In: configuration and Services. Out: one definition for the controller that gives the addresses out and the agents
//! that announce them. Pure.

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The `loadBalancerClass` we answer to; Services without a class are ours too.
pub const LOAD_BALANCER_CLASS: &str = "causeway.dev/load-balancer";
/// Annotation of a Service: the addresses it wishes, one a family, separated by commas.
pub const ADDRESSES_ANNOTATION: &str = "causeway.dev/load-balancer-ips";
/// Annotation of a Service: the pool its addresses come from.
pub const POOL_ANNOTATION: &str = "causeway.dev/load-balancer-pool";
/// Who made the IPAddress objects by which these addresses are claimed (label `ipaddress.kubernetes.io/managed-by`).
pub const CLAIM_MANAGER: &str = "load-balancer.causeway.dev";

/// Addresses that may be given to load balancers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pool {
    /// By which Services name it.
    pub name: String,
    /// `10.0.0.0/24`, `10.0.0.5-10.0.0.9` or one address, of both families.
    pub addresses: Vec<AddressRange>,
    /// Also for Services that name no pool. Default true.
    #[serde(default = "yes")]
    pub auto_assign: bool,
}

fn yes() -> bool {
    true
}

impl Pool {
    /// A pool of these ranges, for every Service.
    pub fn of(name: &str, ranges: &[&str]) -> Result<Self, InvalidRange> {
        let addresses = ranges.iter().map(|r| r.parse()).collect::<Result<_, _>>()?;
        Ok(Self { name: name.to_owned(), addresses, auto_assign: true })
    }

    /// Whether it has the address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|r| r.contains(ip))
    }

    /// Whether it shares an address with a range.
    pub fn meets(&self, net: &IpNet) -> bool {
        let ends = |r: &AddressRange| net.contains(&r.first) || net.contains(&r.last) || r.contains(net.network());
        self.addresses.iter().any(ends)
    }

    /// Its addresses of a family, in order.
    pub fn addresses(&self, v4: bool) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().filter(move |r| r.first.is_ipv4() == v4).flat_map(|r| r.iter())
    }
}

/// Consecutive addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

impl AddressRange {
    /// Whether the address is in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.first.is_ipv4() && (number(self.first)..=number(self.last)).contains(&number(ip))
    }

    fn iter(self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.first.is_ipv4();
        (number(self.first)..=number(self.last)).map(move |n| match u32::try_from(n) {
            Ok(n) if v4 => IpAddr::V4(Ipv4Addr::from(n)),
            _ => IpAddr::V6(Ipv6Addr::from(n)),
        })
    }
}

/// A range that is none; says why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidRange(String);

impl FromStr for AddressRange {
    type Err = InvalidRange;

    fn from_str(text: &str) -> Result<Self, InvalidRange> {
        let wrong = || InvalidRange(format!("{text:?} is neither an address, nor a CIDR, nor \"first-last\""));
        let address = |part: &str| part.trim().parse::<IpAddr>().map_err(|_| wrong());
        let (first, last) = if let Some((first, last)) = text.split_once('-') {
            (address(first)?, address(last)?)
        } else if text.contains('/') {
            let net: IpNet = text.trim().parse().map_err(|_| wrong())?;
            // Like any host's address: not the network's own, nor (IPv4) the broadcast address.
            let (mut first, mut last) = (net.network(), net.broadcast());
            if let IpNet::V4(net) = net
                && net.prefix_len() < 31
            {
                let at = |n: u32| IpAddr::V4(Ipv4Addr::from(n));
                first = at(u32::from(net.network()) + 1);
                last = at(u32::from(net.broadcast()) - 1);
            }
            (first, last)
        } else {
            (address(text)?, address(text)?)
        };
        if first.is_ipv4() != last.is_ipv4() || first > last {
            let why = "does not go from a lower to a higher address of one family";
            return Err(InvalidRange(format!("{text:?} {why}")));
        }
        Ok(Self { first, last })
    }
}

impl TryFrom<String> for AddressRange {
    type Error = InvalidRange;

    fn try_from(text: String) -> Result<Self, InvalidRange> {
        text.parse()
    }
}

impl From<AddressRange> for String {
    fn from(range: AddressRange) -> Self {
        range.to_string()
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// Whether we give this Service its load balancer addresses: type LoadBalancer, and no class or our class.
pub fn is_ours(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.type_.as_deref() == Some("LoadBalancer")
            && spec.load_balancer_class.as_deref().is_none_or(|class| class == LOAD_BALANCER_CLASS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, String> {
        text.parse::<AddressRange>().map(|r| r.to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn ranges() {
        assert_eq!(shown("10.0.0.0/29").unwrap(), "10.0.0.1-10.0.0.6");
        assert_eq!(shown("10.0.0.4/31").unwrap(), "10.0.0.4-10.0.0.5");
        assert_eq!(shown("10.0.0.5 - 10.0.0.9").unwrap(), "10.0.0.5-10.0.0.9");
        assert_eq!(shown("10.0.0.5").unwrap(), "10.0.0.5");
        assert_eq!(shown("fd00::/126").unwrap(), "fd00::-fd00::3");
        assert!(shown("10.0.0.9-10.0.0.5").unwrap_err().contains("lower to a higher"));
        assert!(shown("10.0.0.9-fd00::1").unwrap_err().contains("one family"));
        assert!(shown("ten").unwrap_err().contains("neither an address"));
    }

    #[test]
    fn pools() {
        let text = r#"{"name":"a","addresses":["10.0.0.1-10.0.0.2","fd00::1"]}"#;
        let pool: Pool = serde_json::from_str(text).unwrap();
        assert!(
            pool.auto_assign
                && pool.contains("fd00::1".parse().unwrap())
                && !pool.contains("10.0.0.3".parse().unwrap())
        );
        let all: Vec<String> = pool.addresses(true).map(|ip| ip.to_string()).collect();
        assert_eq!(all, ["10.0.0.1", "10.0.0.2"]);
        assert!(serde_json::from_str::<Pool>(r#"{"name":"a","addresses":["x"]}"#).is_err());
    }

    #[test]
    fn other_classes_are_for_others() {
        let service = |spec: &str| serde_json::from_str::<Service>(&format!("{{\"spec\":{spec}}}")).unwrap();
        assert!(is_ours(&service(r#"{"type":"LoadBalancer"}"#)));
        assert!(is_ours(&service(r#"{"type":"LoadBalancer","loadBalancerClass":"causeway.dev/load-balancer"}"#)));
        assert!(!is_ours(&service(r#"{"type":"LoadBalancer","loadBalancerClass":"x.dev/y"}"#)));
        assert!(!is_ours(&service(r#"{"type":"NodePort"}"#)));
    }
}
