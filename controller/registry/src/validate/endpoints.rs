//! Endpoints and EndpointSlices: addresses that traffic may be sent to.

use super::{container, names, service};
use crate::field::{FieldErrorType, FieldErrors, Path, dns_label, dns_subdomain};
use crate::json::{at, has, int, list, text};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::net::IpAddr;

const MOST_ENDPOINTS: usize = 1000;
const MOST_ADDRESSES: usize = 100;
const MOST_PORTS: usize = 20_000;

pub(crate) fn endpoints(o: &Value, errors: &mut FieldErrors) {
    for (i, subset) in list(o, "subsets").iter().enumerate() {
        let path = Path::new("subsets").index(i);
        if list(subset, "addresses").is_empty() && list(subset, "notReadyAddresses").is_empty() {
            errors.required(&path, "must specify `addresses` or `notReadyAddresses`");
        }
        for key in ["addresses", "notReadyAddresses"] {
            for (j, address) in list(subset, key).iter().enumerate() {
                ip(text(address, "ip"), None, &path.child(key).index(j).child("ip"), errors);
            }
        }
        let ports = list(subset, "ports");
        for (j, p) in ports.iter().enumerate() {
            let path = path.child("ports").index(j);
            let name = text(p, "name");
            if name.is_empty() {
                if ports.len() > 1 {
                    errors.required(&path.child("name"), "");
                }
            } else if let Err(why) = dns_label(name) {
                errors.invalid(&path.child("name"), name, why);
            }
            let number = int(p, "port").unwrap_or(0);
            if let Err(why) = names::port_number(number) {
                errors.invalid(&path.child("port"), number, why);
            }
            container::protocol(text(p, "protocol"), &path.child("protocol"), errors);
        }
    }
}

pub(crate) fn slice(o: &Value, errors: &mut FieldErrors) {
    let family = text(o, "addressType");
    match family {
        "" => errors.required(&Path::new("addressType"), ""),
        "IPv4" | "IPv6" | "FQDN" => {}
        other => errors.not_supported(&Path::new("addressType"), other, &["FQDN", "IPv4", "IPv6"]),
    }
    let path = Path::new("endpoints");
    too_many(list(o, "endpoints").len(), MOST_ENDPOINTS, &path, errors);
    for (i, e) in list(o, "endpoints").iter().enumerate() {
        endpoint(e, family, &path.index(i), errors);
    }
    let (path, mut seen) = (Path::new("ports"), HashSet::new());
    too_many(list(o, "ports").len(), MOST_PORTS, &path, errors);
    for (i, p) in list(o, "ports").iter().enumerate() {
        let path = path.index(i);
        let name = text(p, "name");
        if !name.is_empty()
            && let Err(why) = dns_label(name)
        {
            errors.invalid(&path.child("name"), name, why);
        }
        if !seen.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
        container::protocol(text(p, "protocol"), &path.child("protocol"), errors);
        if let Some(number) = int(p, "port")
            && let Err(why) = names::port_number(number)
        {
            errors.invalid(&path.child("port"), number, why);
        }
    }
}

fn endpoint(e: &Value, family: &str, path: &Path, errors: &mut FieldErrors) {
    let (addresses, at_addresses) = (list(e, "addresses"), path.child("addresses"));
    if addresses.is_empty() {
        errors.required(&at_addresses, "must contain at least 1 address");
    }
    too_many(addresses.len(), MOST_ADDRESSES, &at_addresses, errors);
    for (i, address) in addresses.iter().enumerate() {
        let (address, path) = (address.as_str().unwrap_or(""), at_addresses.index(i));
        match family {
            "IPv4" | "IPv6" => ip(address, Some(family), &path, errors),
            "FQDN" => {
                if let Err(why) = dns_subdomain(address.trim_end_matches('.')) {
                    errors.invalid(&path, address, why);
                }
            }
            _ => {}
        }
    }
    let checks = [
        ("nodeName", dns_subdomain as fn(&str) -> names::Check),
        ("hostname", dns_label),
        ("zone", names::label_value),
    ];
    for (key, check) in checks {
        if has(e, key)
            && let Err(why) = check(text(e, key))
        {
            errors.invalid(&path.child(key), text(e, key), why);
        }
    }
    if has(e, "deprecatedTopology") {
        super::meta::labels(at(e, "deprecatedTopology"), &path.child("deprecatedTopology"), errors);
    }
}

fn ip(address: &str, family: Option<&str>, path: &Path, errors: &mut FieldErrors) {
    let parsed = address.parse::<IpAddr>().ok().filter(|ip| family.is_none_or(|f| (f == "IPv4") == ip.is_ipv4()));
    match parsed {
        None => match family {
            Some(family) => errors.invalid(path, address, format!("must be a valid {family} address")),
            None => errors.invalid(path, address, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
        },
        Some(ip) => {
            if let Some(why) = service::unusable(ip) {
                errors.invalid(path, address, why);
            }
        }
    }
}

fn too_many(count: usize, most: usize, path: &Path, errors: &mut FieldErrors) {
    if count > most {
        let detail = format!("must have at most {most} items");
        errors.push(FieldErrorType::TooMany, path, Some(json!(count)), detail);
    }
}

pub(crate) fn slice_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    if text(new, "addressType") != text(old, "addressType") {
        errors.invalid(&Path::new("addressType"), new["addressType"].clone(), "field is immutable");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubernetes_words() {
        let many: Vec<Value> = (0..1001).map(|_| json!({"addresses": ["10.0.0.1"]})).collect();
        let mut errors = FieldErrors::default();
        slice(&json!({"addressType": "IPv4", "endpoints": many}), &mut errors);
        assert_eq!(errors.0[0].to_string(), "endpoints: Too many: 1001: must have at most 1000 items");
        let mut errors = FieldErrors::default();
        let bad = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["::1", "127.0.0.1"]}, {}],
                         "ports": [{"name": "", "protocol": "TCP", "port": 0}]});
        slice(&bad, &mut errors);
        let words: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(
            words,
            [
                "endpoints[0].addresses[0]: Invalid value: \"::1\": must be a valid IPv4 address",
                "endpoints[0].addresses[1]: Invalid value: \"127.0.0.1\": may not be in the loopback range \
                 (127.0.0.0/8, ::1/128)",
                "endpoints[1].addresses: Required value: must contain at least 1 address",
                "ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"
            ]
        );
    }
}
