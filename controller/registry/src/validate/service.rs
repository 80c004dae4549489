//! Services: type, addresses, ports, policies, and the cluster IP that stays.

use super::{container, meta, names, probe};
use crate::field::{FieldErrors, Path, dns_1035_label, dns_label, dns_subdomain};
use crate::json::{at, has, int, list, same, text};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::net::IpAddr;

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const POLICIES: [&str; 2] = ["Cluster", "Local"];
/// Opened on every node by the kubelet itself.
const KUBELET_PORT: i64 = 10_250;
/// One day.
const LONGEST_AFFINITY: i64 = 86_400;

pub(crate) fn service(o: &Value, errors: &mut FieldErrors) {
    let (spec, path) = (at(o, "spec"), Path::new("spec"));
    let type_ = text(spec, "type");
    if type_.is_empty() {
        errors.required(&path.child("type"), "");
    } else if !TYPES.contains(&type_) {
        errors.not_supported(&path.child("type"), type_, &TYPES);
    }
    ports(spec, &path, errors);
    meta::labels(at(spec, "selector"), &path.child("selector"), errors);
    affinity(spec, &path, errors);
    addresses(spec, &path, errors);
    policies(spec, &path, errors);
    load_balancer(spec, &path, errors);
    if type_ == "ExternalName" {
        external_name(spec, &path, errors);
    }
    for (i, range) in list(spec, "loadBalancerSourceRanges").iter().enumerate() {
        let path = path.child("loadBalancerSourceRanges");
        if type_ != "LoadBalancer" {
            errors.forbidden(&path, "may only be used when `type` is 'LoadBalancer'");
            break;
        }
        if range.as_str().unwrap_or("").trim().parse::<ipnet::IpNet>().is_err() {
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.invalid(&path.index(i), range.clone(), detail);
        }
    }
}

fn headless(spec: &Value) -> bool {
    text(spec, "clusterIP") == "None" || list(spec, "clusterIPs").first().is_some_and(|ip| ip == "None")
}

fn ports(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let (all, path) = (list(spec, "ports"), path.child("ports"));
    let type_ = text(spec, "type");
    if all.is_empty() && !headless(spec) && type_ != "ExternalName" {
        errors.required(&path, "");
    }
    let (mut used_names, mut used, mut node_ports) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (i, p) in all.iter().enumerate() {
        let path = path.index(i);
        let name = text(p, "name");
        if name.is_empty() {
            if all.len() > 1 {
                errors.required(&path.child("name"), "");
            }
        } else if let Err(why) = dns_label(name) {
            errors.invalid(&path.child("name"), name, why);
        } else if !used_names.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
        let number = int(p, "port").unwrap_or(0);
        if let Err(why) = names::port_number(number) {
            errors.invalid(&path.child("port"), number, why);
        }
        let protocol = text(p, "protocol");
        container::protocol(protocol, &path.child("protocol"), errors);
        if has(p, "targetPort") {
            probe::port(at(p, "targetPort"), &path.child("targetPort"), errors);
        }
        if !used.insert((protocol, number)) {
            errors.duplicate(&path, json!({"protocol": protocol, "port": number}));
        }
        let node_port = int(p, "nodePort").unwrap_or(0);
        if node_port == 0 {
            continue;
        }
        if matches!(type_, "ClusterIP" | "ExternalName") {
            let detail = format!("may not be used when `type` is '{type_}'");
            errors.forbidden(&path.child("nodePort"), detail);
        } else if !node_ports.insert((protocol, node_port)) {
            errors.duplicate(&path.child("nodePort"), node_port);
        }
    }
}

fn affinity(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    match text(spec, "sessionAffinity") {
        "" => errors.required(&path.child("sessionAffinity"), ""),
        "None" => {
            if has(spec, "sessionAffinityConfig") {
                let detail = "must not be set when session affinity is None";
                errors.forbidden(&path.child("sessionAffinityConfig"), detail);
            }
        }
        "ClientIP" => {
            let seconds = int(spec, "sessionAffinityConfig.clientIP.timeoutSeconds").unwrap_or(0);
            if !(1..=LONGEST_AFFINITY).contains(&seconds) {
                let path = path.child("sessionAffinityConfig").child("clientIP").child("timeoutSeconds");
                let detail = format!("must be greater than 0 and less than {LONGEST_AFFINITY}");
                errors.invalid(&path, seconds, detail);
            }
        }
        other => errors.not_supported(&path.child("sessionAffinity"), other, &["ClientIP", "None"]),
    }
}

fn addresses(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let type_ = text(spec, "type");
    for (i, ip) in list(spec, "externalIPs").iter().enumerate() {
        let (path, ip) = (path.child("externalIPs").index(i), ip.as_str().unwrap_or(""));
        match ip.parse::<IpAddr>() {
            Err(_) => errors.invalid(&path, ip, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
            Ok(parsed) => {
                if let Some(why) = unusable(parsed) {
                    errors.invalid(&path, ip, why);
                }
            }
        }
    }
    if headless(spec) && matches!(type_, "NodePort" | "LoadBalancer") {
        let why = format!("may not be set to 'None' for {type_} services");
        errors.invalid(&path.child("clusterIPs").index(0), "None", why);
    }
    if type_ == "ExternalName" {
        let why = "may not be set for ExternalName services";
        for field in ["clusterIPs", "ipFamilies"] {
            if !list(spec, field).is_empty() {
                errors.forbidden(&path.child(field), why);
            }
        }
        if !text(spec, "ipFamilyPolicy").is_empty() {
            errors.forbidden(&path.child("ipFamilyPolicy"), why);
        }
        return;
    }
    cluster_ips(spec, &path.child("clusterIPs"), errors);
}

fn cluster_ips(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let single = text(spec, "clusterIP");
    let mut ips: Vec<&str> = list(spec, "clusterIPs").iter().filter_map(Value::as_str).collect();
    match ips.first() {
        Some(_) if single.is_empty() => {
            errors.invalid(path, json!(ips), "must be empty when `clusterIP` is not specified")
        }
        Some(first) if *first != single => errors.invalid(path, json!(ips), "first value must match `clusterIP`"),
        // The server fills the list in after this.
        None if !single.is_empty() => ips.push(single),
        _ => {}
    }
    let mut malformed = false;
    for (i, ip) in ips.iter().enumerate() {
        if i == 0 && *ip == "None" {
            if ips.len() > 1 {
                malformed = true;
                errors.invalid(path, json!(ips), "'None' must be the first and only value");
            }
        } else if ip.parse::<IpAddr>().is_err() {
            malformed = true;
            let detail = match i {
                0 => "must be empty, 'None', or a valid IP address",
                _ => "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            };
            errors.invalid(&path.index(i), *ip, detail);
        }
    }
    if ips.len() > 2 {
        errors.invalid(path, json!(ips), "may only hold up to 2 values");
    }
    if malformed {
        return;
    }
    let parsed: Vec<IpAddr> = ips.iter().filter_map(|ip| ip.parse().ok()).collect();
    if parsed.len() == 2 && parsed[0].is_ipv4() == parsed[1].is_ipv4() {
        errors.invalid(path, json!(ips), "may specify no more than one IP for each IP family");
    }
    for (i, (ip, family)) in parsed.iter().zip(list(spec, "ipFamilies")).enumerate() {
        let family = family.as_str().unwrap_or("");
        if matches!(family, "IPv4" | "IPv6") && ip.is_ipv4() != (family == "IPv4") {
            let detail = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
            errors.invalid(&path.index(i), ips[i], detail);
        }
    }
}

/// Why an address is no place to send traffic to.
pub(crate) fn unusable(ip: IpAddr) -> Option<&'static str> {
    let (link_local, multicast) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), matches!(v4.octets(), [224, 0, 0, _])),
        IpAddr::V6(v6) => (v6.segments()[0] & 0xffc0 == 0xfe80, v6.segments()[0] == 0xff02),
    };
    if ip.is_unspecified() {
        return Some("may not be unspecified");
    }
    if ip.is_loopback() {
        return Some("may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if link_local {
        return Some("may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    multicast.then_some("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
}

/// What only a Service of type LoadBalancer may have.
fn load_balancer(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let only = "may only be used when `type` is 'LoadBalancer'";
    if text(spec, "type") != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if has(spec, field) {
                errors.forbidden(&path.child(field), only);
            }
        }
        return;
    }
    if !has(spec, "allocateLoadBalancerNodePorts") {
        errors.required(&path.child("allocateLoadBalancerNodePorts"), "");
    }
    if has(spec, "loadBalancerClass") {
        let class = text(spec, "loadBalancerClass");
        if let Err(why) = names::qualified_name(class) {
            errors.invalid(&path.child("loadBalancerClass"), class, why);
        }
    }
    for (i, port) in list(spec, "ports").iter().enumerate() {
        if int(port, "port") == Some(KUBELET_PORT) {
            let why = format!("may not expose port {KUBELET_PORT} externally since it is used by kubelet");
            errors.invalid(&path.child("ports").index(i), KUBELET_PORT, why);
        }
    }
}

/// What a load balancer's controller may say.
pub(crate) fn service_status(new: &Value, _old: &Value, errors: &mut FieldErrors) {
    let path = Path::new("status").child("loadBalancer").child("ingress");
    let ingress = list(new, "status.loadBalancer.ingress");
    if !ingress.is_empty() && text(new, "spec.type") != "LoadBalancer" {
        errors.forbidden(&path, "may only be used when `spec.type` is LoadBalancer");
    }
    for (i, one) in ingress.iter().enumerate() {
        let (path, ip, name) = (path.index(i), text(one, "ip"), text(one, "hostname"));
        if !ip.is_empty() && ip.parse::<IpAddr>().is_err() {
            let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.invalid(&path.child("ip"), ip, why);
        }
        match text(one, "ipMode") {
            "" if !ip.is_empty() => errors.required(&path.child("ipMode"), "must be specified when `ip` is set"),
            "" => {}
            _ if ip.is_empty() => errors.forbidden(&path.child("ipMode"), "may not be specified when `ip` is not set"),
            "VIP" | "Proxy" => {}
            other => errors.not_supported(&path.child("ipMode"), other, &["Proxy", "VIP"]),
        }
        if !name.is_empty() {
            if let Err(why) = dns_subdomain(name) {
                errors.invalid(&path.child("hostname"), name, why);
            }
            if name.parse::<IpAddr>().is_ok() {
                errors.invalid(&path.child("hostname"), name, "must be a DNS name, not an IP address");
            }
        }
    }
}

fn policies(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let type_ = text(spec, "type");
    let external = matches!(type_, "NodePort" | "LoadBalancer") || !list(spec, "externalIPs").is_empty();
    let policy = text(spec, "externalTrafficPolicy");
    if !policy.is_empty() {
        let path = path.child("externalTrafficPolicy");
        if !external {
            errors.invalid(&path, policy, "may only be set for externally-accessible services");
        } else if !POLICIES.contains(&policy) {
            errors.not_supported(&path, policy, &POLICIES);
        }
    }
    let policy = text(spec, "internalTrafficPolicy");
    if !policy.is_empty() && !POLICIES.contains(&policy) {
        errors.not_supported(&path.child("internalTrafficPolicy"), policy, &POLICIES);
    }
    let health = int(spec, "healthCheckNodePort").unwrap_or(0);
    if health != 0 && (type_ != "LoadBalancer" || text(spec, "externalTrafficPolicy") != "Local") {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.invalid(&path.child("healthCheckNodePort"), health, detail);
    }
    let families = list(spec, "ipFamilies");
    for (i, family) in families.iter().enumerate() {
        let (path, family) = (path.child("ipFamilies"), family.as_str().unwrap_or(""));
        if !matches!(family, "IPv4" | "IPv6") {
            errors.not_supported(&path.index(i), family, &["IPv4", "IPv6"]);
        } else if families[..i].iter().any(|f| f == family) {
            errors.duplicate(&path.index(i), family);
        }
    }
    let policy = text(spec, "ipFamilyPolicy");
    if !matches!(policy, "" | "SingleStack" | "PreferDualStack" | "RequireDualStack") {
        let supported = ["PreferDualStack", "RequireDualStack", "SingleStack"];
        errors.not_supported(&path.child("ipFamilyPolicy"), policy, &supported);
    }
    let distribution = text(spec, "trafficDistribution");
    if !matches!(distribution, "" | "PreferClose" | "PreferSameZone" | "PreferSameNode") {
        let supported = ["PreferClose", "PreferSameNode", "PreferSameZone"];
        errors.not_supported(&path.child("trafficDistribution"), distribution, &supported);
    }
}

fn external_name(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let (name, path) = (text(spec, "externalName").trim_end_matches('.'), path.child("externalName"));
    if name.is_empty() {
        errors.required(&path, "");
    } else if let Err(why) = dns_subdomain(&name.to_lowercase()) {
        errors.invalid(&path, name, why);
    }
}

/// What stays over an update, and what may come and go.
pub(crate) fn service_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let (path, once) = (Path::new("spec"), "may not change once set");
    let balancer = |o: &Value| text(o, "spec.type") == "LoadBalancer";
    if balancer(new) && balancer(old) {
        let class = "spec.loadBalancerClass";
        if !same(at(new, class), at(old, class)) {
            errors.invalid(&path.child("loadBalancerClass"), at(new, class).clone(), once);
        }
        let local = |o: &Value| text(o, "spec.externalTrafficPolicy") == "Local";
        let (now, before) = (int(new, "spec.healthCheckNodePort"), int(old, "spec.healthCheckNodePort"));
        if local(new) && local(old) && before.unwrap_or(0) != 0 && now != before {
            let why =
                "cannot change healthCheckNodePort on loadBalancer service with externalTraffic=Local during update";
            errors.invalid(&path.child("healthCheckNodePort"), now.unwrap_or(0), why);
        }
    }
    let external = |o: &Value| text(o, "spec.type") == "ExternalName";
    if external(new) || external(old) || headless(at(new, "spec")) && headless(at(old, "spec")) {
        return;
    }
    for (field, what, noun) in
        [("clusterIPs", "primary clusterIP", "clusterIP"), ("ipFamilies", "primary ipFamily", "ipFamily")]
    {
        let values = |o: &Value| {
            let list = list(o, &format!("spec.{field}")).to_vec();
            let single = text(o, "spec.clusterIP");
            if list.is_empty() && field == "clusterIPs" && !single.is_empty() { vec![json!(single)] } else { list }
        };
        let (now, before) = (values(new), values(old));
        let (path, shown) = (path.child(field), json!(now));
        if before.is_empty() {
            continue;
        }
        if now.is_empty() {
            errors.invalid(&path.index(0), shown, format!("{what} can not be unset"));
            continue;
        }
        for i in 0..now.len().min(before.len()) {
            if now[i] != before[i] {
                errors.invalid(&path.index(i), shown.clone(), once);
            }
        }
        if now.len() < before.len() && text(new, "spec.ipFamilyPolicy") != "SingleStack" {
            let why = format!("`ipFamilyPolicy` must be set to 'SingleStack' when releasing the secondary {noun}");
            errors.invalid(&path.index(0), shown, why);
        }
    }
}

/// A Service's name, where another object refers to it.
pub(crate) fn name(name: &str, path: &Path, errors: &mut FieldErrors) {
    if name.is_empty() {
        errors.required(path, "");
    } else if let Err(why) = dns_1035_label(name) {
        errors.invalid(path, name, why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::builtin;

    fn words(spec: Value) -> Vec<String> {
        let r = builtin().into_iter().find(|r| r.plural == "services").unwrap();
        let mut o = json!({"spec": spec});
        r.strategy.default(&mut o);
        r.strategy.validate_create(&o).0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn kubernetes_words() {
        assert!(words(json!({"ports": [{"port": 80}]})).is_empty());
        assert!(words(json!({"clusterIP": "None"})).is_empty());
        assert!(words(json!({"type": "ExternalName", "externalName": "Db.example.com."})).is_empty());
        assert_eq!(words(json!({})), ["spec.ports: Required value"]);
        assert_eq!(
            words(
                json!({"ports": [{"port": 80, "nodePort": 30000}, {"port": 80, "name": "b", "targetPort": "no_good"}],
                         "clusterIP": "x", "sessionAffinity": "Cookie"})
            ),
            [
                "spec.ports[0].name: Required value",
                "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
                "spec.ports[1].targetPort: Invalid value: \"no_good\": must contain only alpha-numeric characters \
                 (a-z, 0-9), and hyphens (-)",
                "spec.ports[1]: Duplicate value: {\"protocol\":\"TCP\",\"port\":80}",
                "spec.sessionAffinity: Unsupported value: \"Cookie\": supported values: \"ClientIP\", \"None\"",
                "spec.clusterIPs[0]: Invalid value: \"x\": must be empty, 'None', or a valid IP address"
            ]
        );
    }

    #[test]
    fn the_address_stays() {
        let old = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"]}});
        let mut new = old.clone();
        new["spec"]["clusterIP"] = json!("10.96.0.6");
        new["spec"]["clusterIPs"] = json!(["10.96.0.6"]);
        let mut errors = FieldErrors::default();
        service_update(&new, &old, &mut errors);
        let want = "spec.clusterIPs[0]: Invalid value: [\"10.96.0.6\"]: may not change once set";
        assert_eq!(errors.0[0].to_string(), want);
        let mut errors = FieldErrors::default();
        service_update(&json!({"spec": {"type": "ExternalName"}}), &old, &mut errors);
        assert!(errors.is_empty());
    }
}
