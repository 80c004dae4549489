//! NetworkPolicy: selectors, peers, ports.

use super::{container, probe, selector};
use crate::field::{FieldErrors, Path};
use crate::json::{at, existing, has, int, list, text};
use ipnet::IpNet;
use serde_json::Value;

pub(crate) fn policy(o: &Value, errors: &mut FieldErrors) {
    let (spec, path) = (at(o, "spec"), Path::new("spec"));
    selector::label_selector(at(spec, "podSelector"), &path.child("podSelector"), errors);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in list(spec, direction).iter().enumerate() {
            let path = path.child(direction).index(i);
            for (j, p) in list(rule, "ports").iter().enumerate() {
                port(p, &path.child("ports").index(j), errors);
            }
            for (j, p) in list(rule, peers).iter().enumerate() {
                peer(p, &path.child(peers).index(j), errors);
            }
        }
    }
    let types = list(spec, "policyTypes");
    if types.len() > 2 {
        let detail = "may not specify more than two policyTypes";
        errors.invalid(&path.child("policyTypes"), Value::Array(types.to_vec()), detail);
        return;
    }
    for (i, t) in types.iter().enumerate() {
        if t != "Ingress" && t != "Egress" {
            errors.not_supported(&path.child("policyTypes").index(i), t.clone(), &["Egress", "Ingress"]);
        }
    }
}

fn port(p: &Value, path: &Path, errors: &mut FieldErrors) {
    container::protocol(text(p, "protocol"), &path.child("protocol"), errors);
    if has(p, "port") {
        probe::port(at(p, "port"), &path.child("port"), errors);
    }
    let Some(end) = int(p, "endPort") else { return };
    let path = path.child("endPort");
    match int(p, "port") {
        None if has(p, "port") => errors.invalid(&path, end, "may not be specified when `port` is non-numeric"),
        None => errors.invalid(&path, end, "must be specified when `endPort` is specified"),
        Some(start) if end < start => errors.invalid(&path, end, "must be greater than or equal to `port`"),
        Some(_) => {}
    }
}

fn peer(p: &Value, path: &Path, errors: &mut FieldErrors) {
    let selectors = ["podSelector", "namespaceSelector"];
    for key in selectors {
        selector::label_selector(at(p, key), &path.child(key), errors);
    }
    let selects = selectors.iter().any(|k| existing(p, k));
    if !existing(p, "ipBlock") {
        if !selects {
            errors.required(path, "must specify a peer");
        }
        return;
    }
    if selects {
        errors.forbidden(path, "may not specify both ipBlock and another peer");
    }
    block(at(p, "ipBlock"), &path.child("ipBlock"), errors);
}

fn block(block: &Value, path: &Path, errors: &mut FieldErrors) {
    const DETAIL: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let cidr = text(block, "cidr");
    if cidr.is_empty() {
        errors.required(&path.child("cidr"), "");
        return;
    }
    let Ok(net) = cidr.parse::<IpNet>() else {
        errors.invalid(&path.child("cidr"), cidr, DETAIL);
        return;
    };
    for (i, except) in list(block, "except").iter().enumerate() {
        let path = path.child("except").index(i);
        match except.as_str().unwrap_or("").parse::<IpNet>() {
            Err(_) => errors.invalid(&path, except.clone(), DETAIL),
            Ok(hole) if !net.contains(&hole) || hole.prefix_len() <= net.prefix_len() => {
                errors.invalid(&path, except.clone(), "must be a strict subset of `cidr`");
            }
            Ok(_) => {}
        }
    }
}
