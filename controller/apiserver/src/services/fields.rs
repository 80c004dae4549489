//! What a Service wishes for, and what it keeps over an update. Pure.

use causeway_registry::Path;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::engine::text;

/// One cluster IP that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// This one.
    Ip(IpAddr),
    /// Any of a family (`IPv4`, `IPv6`).
    Any(String),
}

/// One node port that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePortWish {
    /// JSON pointer of the field.
    pub pointer: String,
    /// The number; 0 for any.
    pub port: u16,
}

impl NodePortWish {
    /// The field's path.
    pub fn path(&self) -> Path {
        let parts: Vec<&str> = self.pointer.split('/').skip(1).collect();
        match parts.as_slice() {
            ["spec", "ports", index, field] => {
                Path::new("spec").child("ports").index(index.parse().unwrap_or(0)).child(field)
            }
            other => Path::new(&other.join(".")),
        }
    }

    /// Writes the number that was found.
    pub fn set(&self, service: &mut Value, port: u16) {
        let parts: Vec<&str> = self.pointer.split('/').skip(1).collect();
        match parts.as_slice() {
            ["spec", "ports", index, field] => {
                let index: usize = index.parse().unwrap_or(0);
                service["spec"]["ports"][index][*field] = port.into();
            }
            _ => service["spec"]["healthCheckNodePort"] = port.into(),
        }
    }
}

pub(super) fn kind(service: &Value) -> &str {
    match text(service, "/spec/type") {
        "" => "ClusterIP",
        kind => kind,
    }
}

pub(super) fn is_headless(service: &Value) -> bool {
    text(service, "/spec/clusterIP") == "None" || service.pointer("/spec/clusterIPs/0").is_some_and(|ip| ip == "None")
}

fn needs_node_ports(service: &Value) -> bool {
    match kind(service) {
        "NodePort" => true,
        "LoadBalancer" => service.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)),
        _ => false,
    }
}

fn may_have_node_ports(service: &Value) -> bool {
    matches!(kind(service), "NodePort" | "LoadBalancer")
}

fn needs_health_port(service: &Value) -> bool {
    kind(service) == "LoadBalancer" && text(service, "/spec/externalTrafficPolicy") == "Local"
}

/// The cluster IPs a stored Service holds.
pub fn addresses(service: &Value) -> Vec<IpAddr> {
    if kind(service) == "ExternalName" {
        return Vec::new();
    }
    let list = service.pointer("/spec/clusterIPs").and_then(Value::as_array).cloned().unwrap_or_default();
    let list =
        if list.is_empty() { vec![service.pointer("/spec/clusterIP").cloned().unwrap_or_default()] } else { list };
    list.iter().filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}

/// The node ports a stored Service holds.
pub fn node_ports(service: &Value) -> BTreeSet<u16> {
    let number = |v: &Value| v.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0);
    let mut ports: BTreeSet<u16> = BTreeSet::new();
    if may_have_node_ports(service) {
        let list = service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
        ports.extend(list.filter_map(|p| number(&p["nodePort"])));
        ports.extend(number(&service["spec"]["healthCheckNodePort"]));
    }
    ports
}

/// The node ports a Service wishes for, in order.
pub fn node_port_wishes(service: &Value) -> Vec<NodePortWish> {
    let number = |v: &Value| v.as_u64().and_then(|n| u16::try_from(n).ok()).unwrap_or(0);
    let mut wishes = Vec::new();
    if !may_have_node_ports(service) {
        return wishes;
    }
    let list = service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
    for (i, port) in list.enumerate() {
        let wish = NodePortWish { pointer: format!("/spec/ports/{i}/nodePort"), port: number(&port["nodePort"]) };
        if wish.port != 0 || needs_node_ports(service) {
            wishes.push(wish);
        }
    }
    let health = number(&service["spec"]["healthCheckNodePort"]);
    if needs_health_port(service) {
        wishes.push(NodePortWish { pointer: "/spec/healthCheckNodePort".to_owned(), port: health });
    }
    wishes
}

/// The addresses that are wanted (none for headless and ExternalName), once families and policy are filled in.
pub fn address_wishes(service: &Value) -> Vec<Wish> {
    if kind(service) == "ExternalName" || is_headless(service) {
        return Vec::new();
    }
    let ips = strings(service, "clusterIPs");
    let wish = |(i, family): (usize, &String)| match ips.get(i).and_then(|ip| ip.parse().ok()) {
        Some(ip) => Wish::Ip(ip),
        None => Wish::Any(family.clone()),
    };
    strings(service, "ipFamilies").iter().enumerate().map(wish).collect()
}

/// The strings of a list in `spec`.
pub(super) fn strings(service: &Value, field: &str) -> Vec<String> {
    let list = service.pointer("/spec").and_then(|s| s.get(field)).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The node port of the same port under another protocol, if this port may have it too.
pub fn sibling_node_port(service: &Value, wish: &NodePortWish) -> Option<u16> {
    let index: usize = wish.pointer.split('/').nth(3)?.parse().ok()?;
    let ports = service.pointer("/spec/ports")?.as_array()?;
    let own = ports.get(index)?;
    let sibling = ports.iter().find(|p| {
        p["port"] == own["port"] && protocol(p) != protocol(own) && p["nodePort"].as_u64().is_some_and(|n| n != 0)
    })?;
    let number = &sibling["nodePort"];
    let clash = ports.iter().any(|p| protocol(p) == protocol(own) && p["nodePort"] == *number);
    number.as_u64().filter(|_| !clash).and_then(|n| u16::try_from(n).ok())
}

/// `clusterIP` and the first of `clusterIPs` are one thing: who changes one of them means both.
pub fn normalize(new: &mut Value, old: Option<&Value>) {
    if !new.get("spec").is_some_and(Value::is_object) {
        return;
    }
    let (single, list) = (text(new, "/spec/clusterIP").to_owned(), strings(new, "clusterIPs"));
    let Some(old) = old else {
        if !single.is_empty() && list.is_empty() {
            new["spec"]["clusterIPs"] = json!([single]);
        }
        return;
    };
    let (old_single, old_list) = (text(old, "/spec/clusterIP"), strings(old, "clusterIPs"));
    let spec = new.get_mut("spec").and_then(Value::as_object_mut);
    let Some(spec) = spec else { return };
    if single != old_single && list == old_list {
        if single.is_empty() {
            spec.remove("clusterIPs");
        } else if list.len() > 1 {
            spec.insert("clusterIPs".to_owned(), json!([single, list[1]]));
        } else {
            spec.insert("clusterIPs".to_owned(), json!([single]));
        }
    } else if single == old_single && list.is_empty() && !old_list.is_empty() {
        spec.remove("clusterIP");
    } else if !single.is_empty() && list.is_empty() {
        spec.insert("clusterIPs".to_owned(), json!([single]));
    }
}

/// An update that does not speak of allocated values keeps them; one that changes the type drops what the new type
/// does not have, unless it was changed too.
pub fn carry_over(new: &mut Value, old: &Value) {
    normalize(new, Some(old));
    let (was, is) = (kind(old).to_owned(), kind(new).to_owned());
    if was != "ExternalName" && is != "ExternalName" {
        if text(new, "/spec/clusterIP").is_empty() && strings(new, "clusterIPs").is_empty() {
            copy(new, old, "clusterIP");
            copy(new, old, "clusterIPs");
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if new["spec"].get(field).is_none_or(Value::is_null) {
                copy(new, old, field);
            }
        }
        trim_downgrade(new, old);
    }
    if is == "ExternalName" && was != "ExternalName" {
        drop_unchanged(new, old, &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"]);
    }
    if may_have_node_ports(old) && may_have_node_ports(new) {
        keep_node_ports(new, old);
    }
    if may_have_node_ports(old) && !may_have_node_ports(new) {
        let old_ports = old.pointer("/spec/ports").and_then(Value::as_array).cloned().unwrap_or_default();
        for (i, port) in new.pointer_mut("/spec/ports").and_then(Value::as_array_mut).into_iter().flatten().enumerate()
        {
            let same = old_ports.get(i).is_some_and(|old| old["nodePort"] == port["nodePort"]);
            if let Some(port) = port.as_object_mut().filter(|_| same) {
                port.remove("nodePort");
            }
        }
        drop_unchanged(new, old, &["externalTrafficPolicy"]);
    }
    let unset = |service: &Value| service["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0) == 0;
    if needs_health_port(old) && needs_health_port(new) && unset(new) && !unset(old) {
        copy(new, old, "healthCheckNodePort");
    }
    if needs_health_port(old) && !needs_health_port(new) {
        drop_unchanged(new, old, &["healthCheckNodePort"]);
    }
    if was == "LoadBalancer" && is != "LoadBalancer" {
        drop_unchanged(new, old, &["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
}

/// From two families to one by the policy alone: the second of what was not touched goes.
fn trim_downgrade(new: &mut Value, old: &Value) {
    let policy = |o: &Value| text(o, "/spec/ipFamilyPolicy").to_owned();
    if policy(new) != "SingleStack" || matches!(policy(old).as_str(), "" | "SingleStack") {
        return;
    }
    for field in ["clusterIPs", "ipFamilies"] {
        let list = strings(new, field);
        if list.len() == 2 && list == strings(old, field) {
            new["spec"][field] = json!([list[0]]);
        }
    }
}

/// Ports keep their number by name, unless it was given to another.
fn keep_node_ports(new: &mut Value, old: &Value) {
    let old_ports = old.pointer("/spec/ports").and_then(Value::as_array).cloned().unwrap_or_default();
    let number = |p: &Value| p["nodePort"].as_u64().filter(|n| *n != 0);
    let mut taken: BTreeSet<u64> = BTreeSet::new();
    for port in new.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten() {
        taken.extend(number(port));
    }
    let name = |p: &Value| p["name"].as_str().unwrap_or("").to_owned();
    for port in new.pointer_mut("/spec/ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if number(port).is_some() {
            continue;
        }
        let same = old_ports.iter().find(|o| name(o) == name(port));
        if let Some(number) = same.and_then(number).filter(|n| !taken.contains(n)) {
            port["nodePort"] = number.into();
        }
    }
}

fn protocol(port: &Value) -> &str {
    port["protocol"].as_str().unwrap_or("TCP")
}

fn copy(new: &mut Value, old: &Value, field: &str) {
    if let Some(value) = old.pointer("/spec").and_then(|s| s.get(field)) {
        new["spec"][field] = value.clone();
    }
}

fn drop_unchanged(new: &mut Value, old: &Value, fields: &[&str]) {
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for field in fields {
        if spec.get(*field) == old["spec"].get(*field) {
            spec.remove(*field);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_keeps_what_it_does_not_mention() {
        let old = json!({ "spec": {
            "type": "NodePort", "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"], "ipFamilies": ["IPv4"],
            "ports": [{ "name": "b", "port": 80, "nodePort": 30100 }],
        } });
        let mut new = json!({ "spec": { "type": "NodePort", "ports": [
            { "name": "a", "port": 81 }, { "name": "b", "port": 80 },
        ] } });
        carry_over(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.96.1.1");
        assert_eq!(new["spec"]["ports"][1]["nodePort"], 30100);
        assert_eq!(node_port_wishes(&new)[0].port, 0);
        let mut back = old.clone();
        back["spec"]["type"] = "ClusterIP".into();
        carry_over(&mut back, &old);
        assert!(back["spec"]["ports"][0].get("nodePort").is_none());
        assert_eq!(back["spec"]["clusterIP"], "10.96.1.1");
    }

    #[test]
    fn one_address_two_fields() {
        let spec = |single: Value, list: Value| json!({ "spec": { "clusterIP": single, "clusterIPs": list } });
        let old = spec(json!("10.0.0.1"), json!(["10.0.0.1", "fd00::1"]));
        for (new, want) in [
            (spec(json!("10.0.0.2"), json!(["10.0.0.1", "fd00::1"])), json!(["10.0.0.2", "fd00::1"])),
            (spec(json!("10.0.0.1"), json!(["10.0.0.1"])), json!(["10.0.0.1"])),
            (spec(Value::Null, json!(["10.0.0.1", "fd00::1"])), Value::Null),
            (spec(json!("10.0.0.1"), Value::Null), Value::Null),
        ] {
            let mut new = new;
            normalize(&mut new, Some(&old));
            assert_eq!(new["spec"]["clusterIPs"], want);
        }
        let mut fresh = json!({ "spec": { "clusterIP": "None" } });
        normalize(&mut fresh, None);
        assert_eq!(fresh["spec"]["clusterIPs"], json!(["None"]));
    }

    #[test]
    fn a_number_for_both_protocols() {
        let service = json!({ "spec": { "type": "NodePort", "ports": [
            { "name": "t", "port": 53, "protocol": "TCP", "nodePort": 30053 }, { "name": "u", "port": 53, "protocol": "UDP" },
            { "name": "o", "port": 54, "protocol": "UDP" },
        ] } });
        let wishes = node_port_wishes(&service);
        assert_eq!(sibling_node_port(&service, &wishes[1]), Some(30053));
        assert_eq!(sibling_node_port(&service, &wishes[2]), None);
    }

    #[test]
    fn a_downgrade_by_the_policy_alone_drops_the_second() {
        let old = json!({ "spec": { "type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack",
            "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"] } });
        let mut new = old.clone();
        new["spec"]["ipFamilyPolicy"] = "SingleStack".into();
        carry_over(&mut new, &old);
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.0.0.1"]));
        assert_eq!(new["spec"]["ipFamilies"], json!(["IPv4"]));
    }
}
