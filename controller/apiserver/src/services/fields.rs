//! What a Service wishes for, and what it keeps over an update. Pure.

use causeway_registry::{FieldErrors, Path};
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

fn kind(service: &Value) -> &str {
    match text(service, "/spec/type") {
        "" => "ClusterIP",
        kind => kind,
    }
}

fn is_headless(service: &Value) -> bool {
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

/// Fills families and policy, and says which addresses are wanted (none for headless and ExternalName).
pub fn address_wishes(service: &mut Value, families: &[&str], errors: &mut FieldErrors) -> Vec<Wish> {
    let Some(spec) = service.get("spec").filter(|s| s.is_object()) else { return Vec::new() };
    if kind(service) == "ExternalName" {
        return Vec::new();
    }
    let headless = is_headless(service);
    let selectorless = spec.get("selector").and_then(Value::as_object).is_none_or(serde_json::Map::is_empty);
    let own = |v: &Value| v.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let mut ips: Vec<String> = own(&spec["clusterIPs"]);
    let mut wanted: Vec<String> = own(&spec["ipFamilies"]);
    let single = text(service, "/spec/clusterIP").to_owned();
    if ips.is_empty() && !single.is_empty() {
        ips.push(single);
        service["spec"]["clusterIPs"] = json!(ips);
    }
    let policy = text(service, "/spec/ipFamilyPolicy").to_owned();
    if headless && selectorless && policy.is_empty() && wanted.is_empty() {
        // Nobody knows which families its hand-made endpoints will have.
        let (first, second) = if families.first() == Some(&"IPv6") { ("IPv6", "IPv4") } else { ("IPv4", "IPv6") };
        service["spec"]["clusterIP"] = "None".into();
        service["spec"]["clusterIPs"] = json!(["None"]);
        service["spec"]["ipFamilies"] = json!([first, second]);
        service["spec"]["ipFamilyPolicy"] = "RequireDualStack".into();
        return Vec::new();
    }
    let by_address = |ip: &String| ip.parse::<IpAddr>().ok().map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" });
    if wanted.is_empty() {
        wanted = ips.iter().filter_map(by_address).map(str::to_owned).collect();
    }
    if wanted.is_empty() {
        wanted.extend(families.first().map(|f| (*f).to_owned()));
    }
    let policy = match policy.as_str() {
        "" if wanted.len() > 1 => "RequireDualStack".to_owned(),
        "" => "SingleStack".to_owned(),
        _ => policy,
    };
    let path = Path::new("spec");
    // Nobody has to route to a headless Service without a selector: any family will do.
    let open = headless && selectorless;
    if policy == "RequireDualStack" && families.len() < 2 && !open {
        let why = "this cluster is not configured for dual-stack services";
        errors.invalid(&path.child("ipFamilyPolicy"), policy.as_str(), why);
    }
    for (i, family) in wanted.iter().enumerate() {
        if !open && !families.contains(&family.as_str()) {
            errors.invalid(&path.child("ipFamilies").index(i), family.as_str(), "not configured on this cluster");
        }
    }
    if policy != "SingleStack" && wanted.len() == 1 {
        wanted.extend(families.iter().find(|f| **f != wanted[0]).map(|f| (*f).to_owned()));
    }
    service["spec"]["ipFamilies"] = json!(wanted);
    service["spec"]["ipFamilyPolicy"] = policy.into();
    if headless {
        service["spec"]["clusterIP"] = "None".into();
        service["spec"]["clusterIPs"] = json!(["None"]);
        return Vec::new();
    }
    wanted
        .iter()
        .enumerate()
        .map(|(i, family)| match ips.get(i).and_then(|ip| ip.parse().ok()) {
            Some(ip) => Wish::Ip(ip),
            None => Wish::Any(family.clone()),
        })
        .collect()
}

/// An update that does not speak of allocated values keeps them; one that changes the type drops what the new type
/// does not have, unless it was changed too.
pub fn carry_over(new: &mut Value, old: &Value) {
    let (was, is) = (kind(old).to_owned(), kind(new).to_owned());
    if was != "ExternalName" && is != "ExternalName" {
        let unset = |pointer: &str| new.pointer(pointer).is_none_or(|v| v.is_null() || v == "");
        let no_list = |pointer: &str| new.pointer(pointer).and_then(Value::as_array).is_none_or(Vec::is_empty);
        let keep_ip = unset("/spec/clusterIP") && no_list("/spec/clusterIPs");
        let fill_list =
            !keep_ip && no_list("/spec/clusterIPs") && text(new, "/spec/clusterIP") == text(old, "/spec/clusterIP");
        let fill_single = !keep_ip && unset("/spec/clusterIP");
        if keep_ip || fill_single {
            copy(new, old, "clusterIP");
        }
        if keep_ip || fill_list {
            copy(new, old, "clusterIPs");
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if new["spec"].get(field).is_none_or(Value::is_null) {
                copy(new, old, field);
            }
        }
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
    if needs_health_port(old) && needs_health_port(new) && new["spec"].get("healthCheckNodePort").is_none() {
        copy(new, old, "healthCheckNodePort");
    }
    if needs_health_port(old) && !needs_health_port(new) {
        drop_unchanged(new, old, &["healthCheckNodePort"]);
    }
    if was == "LoadBalancer" && is != "LoadBalancer" {
        drop_unchanged(new, old, &["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
}

fn keep_node_ports(new: &mut Value, old: &Value) {
    let old_ports = old.pointer("/spec/ports").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut used: BTreeSet<u64> = BTreeSet::new();
    for port in new.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten() {
        used.extend(port["nodePort"].as_u64());
    }
    for port in new.pointer_mut("/spec/ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if port["nodePort"].as_u64().unwrap_or(0) != 0 {
            continue;
        }
        let same = old_ports.iter().find(|o| o["port"] == port["port"] && protocol(o) == protocol(port));
        if let Some(number) = same.and_then(|o| o["nodePort"].as_u64()).filter(|n| !used.contains(n)) {
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

    fn wishes(spec: Value) -> (Vec<Wish>, Value, FieldErrors) {
        let mut service = json!({ "spec": spec });
        let mut errors = FieldErrors::default();
        let wishes = address_wishes(&mut service, &["IPv4"], &mut errors);
        (wishes, service, errors)
    }

    #[test]
    fn families_and_addresses() {
        let (w, s, _) = wishes(json!({ "selector": { "a": "b" } }));
        assert_eq!(w, [Wish::Any("IPv4".into())]);
        assert_eq!(s["spec"]["ipFamilyPolicy"], "SingleStack");
        let (w, _, _) = wishes(json!({ "clusterIP": "10.96.0.10" }));
        assert_eq!(w, [Wish::Ip("10.96.0.10".parse().unwrap())]);
        let (w, s, e) = wishes(json!({ "clusterIP": "None" }));
        assert!(w.is_empty() && e.is_empty());
        assert_eq!(s["spec"]["ipFamilyPolicy"], "RequireDualStack");
        let (w, s, _) = wishes(json!({ "clusterIP": "None", "selector": { "a": "b" } }));
        assert!(w.is_empty());
        assert_eq!(s["spec"]["ipFamilies"], json!(["IPv4"]));
        let (w, _, _) = wishes(json!({ "type": "ExternalName", "externalName": "x.y" }));
        assert!(w.is_empty());
        let (_, _, e) = wishes(json!({ "ipFamilyPolicy": "RequireDualStack", "selector": { "a": "b" } }));
        assert_eq!(e.0[0].field, "spec.ipFamilyPolicy");
    }

    #[test]
    fn an_update_keeps_what_it_does_not_mention() {
        let old = json!({ "spec": {
            "type": "NodePort", "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"], "ipFamilies": ["IPv4"],
            "ports": [{ "port": 80, "nodePort": 30100 }],
        } });
        let mut new = json!({ "spec": { "type": "NodePort", "ports": [{ "port": 81 }, { "port": 80 }] } });
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
}
