//! Services: type, addresses, ports, policies, and the cluster IP that stays.

use super::{container, meta, names, probe};
use crate::field::{FieldErrors, Path, dns_1035_label, dns_label, dns_subdomain};
use crate::json::{at, has, int, list, same, text};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::net::IpAddr;

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const POLICIES: [&str; 2] = ["Cluster", "Local"];
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
    let cluster = path.child("clusterIPs");
    let single = text(spec, "clusterIP");
    let mut ips: Vec<&str> = list(spec, "clusterIPs").iter().filter_map(Value::as_str).collect();
    match ips.first() {
        Some(first) if !single.is_empty() && *first != single => {
            errors.invalid(&cluster, json!(ips), "first value must match `clusterIP`");
        }
        None if !single.is_empty() => ips.push(single),
        _ => {}
    }
    if headless(spec) && matches!(type_, "NodePort" | "LoadBalancer") {
        errors.invalid(&cluster.index(0), "None", format!("may not be set to 'None' for {type_} services"));
    }
    for (i, ip) in ips.iter().enumerate() {
        let path = cluster.index(i);
        if type_ == "ExternalName" {
            errors.forbidden(&path, "may not be set for ExternalName services");
        } else if *ip == "None" {
            if i > 0 || ips.len() > 1 {
                errors.invalid(&cluster, json!(ips), "'None' must be the first and only value");
            }
        } else if ip.parse::<IpAddr>().is_err() {
            errors.invalid(&path, *ip, "must be empty, 'None', or a valid IP address");
        }
    }
    if ips.len() > 2 {
        errors.invalid(&cluster, json!(ips), "may only hold up to 2 values");
    }
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
}

/// Why an address is no place to send traffic to.
pub(crate) fn unusable(ip: IpAddr) -> Option<&'static str> {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.octets()[0] == 224 && v4.octets()[1] == 0 && v4.octets()[2] == 0,
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80 || v6.segments()[0] == 0xff02,
    };
    if ip.is_unspecified() {
        return Some("may not be unspecified");
    }
    if ip.is_loopback() {
        return Some("may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    link_local.then_some("may not be in the link-local range (169.254.0.0/16, fe80::/10)")
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

/// The cluster IP stays as long as the Service has one.
pub(crate) fn service_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let allocated = |o: &Value| text(o, "spec.type") != "ExternalName" && !text(o, "spec.clusterIP").is_empty();
    if !allocated(old) || text(new, "spec.type") == "ExternalName" {
        return;
    }
    let path = Path::new("spec").child("clusterIPs");
    if text(new, "spec.clusterIP") != text(old, "spec.clusterIP") {
        let shown = match at(new, "spec.clusterIPs") {
            Value::Null => json!([text(new, "spec.clusterIP")]),
            ips => ips.clone(),
        };
        errors.invalid(&path.index(0), shown, "may not change once set");
    }
    let families = (list(new, "spec.ipFamilies").first(), list(old, "spec.ipFamilies").first());
    if let (Some(now), Some(before)) = families
        && !same(now, before)
    {
        let detail = "may not change once set";
        errors.invalid(&Path::new("spec").child("ipFamilies").index(0), now.clone(), detail);
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
