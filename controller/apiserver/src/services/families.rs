//! Address families of a Service (KEP-563): which it gets on creation, and how it goes from one to two and back.
//!
//! In: a Service, its former state, the cluster's families (the primary one first). Out: `ipFamilies` and
//! `ipFamilyPolicy` filled in, or what is wrong. Pure.

use super::fields::{is_headless, kind, strings};
use crate::engine::text;
use causeway_registry::{FieldErrors, Path};
use serde_json::{Value, json};
use std::net::IpAddr;

const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

/// Fills families and policy.
pub fn fill(service: &mut Value, old: Option<&Value>, cluster: &[&str], errors: &mut FieldErrors) {
    if !service.get("spec").is_some_and(Value::is_object) || kind(service) == "ExternalName" {
        return;
    }
    // A cluster that gets a second family does not touch Services that only prefer two: whoever wants it says so.
    if old.is_some_and(|old| untouched_prefer(service, old)) {
        return;
    }
    let headless = is_headless(service);
    let open =
        headless && service.pointer("/spec/selector").and_then(Value::as_object).is_none_or(serde_json::Map::is_empty);
    let policy = match (text(service, "/spec/ipFamilyPolicy"), old.map(|o| text(o, "/spec/ipFamilyPolicy"))) {
        ("", Some(before)) if !before.is_empty() => before,
        // Nobody knows which families its hand-made endpoints will have.
        ("", _) if open => REQUIRE,
        ("", _) => SINGLE,
        (given, _) => given,
    }
    .to_owned();
    let ips = strings(service, "clusterIPs");
    let mut families = strings(service, "ipFamilies");
    let path = Path::new("spec");
    if policy == SINGLE {
        for (count, what) in [(ips.len(), "cluster IPs"), (families.len(), "IP families")] {
            if count == 2 {
                let why = format!("must be RequireDualStack or PreferDualStack when multiple {what} are specified");
                errors.invalid(&path.child("ipFamilyPolicy"), policy.as_str(), why);
            }
        }
    }
    for (i, ip) in ips.iter().enumerate().skip(families.len()) {
        let Ok(ip) = ip.parse::<IpAddr>() else { break };
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        if !cluster.contains(&family) {
            let why = format!("may not use {family} on a cluster which is not configured for it");
            errors.invalid(&path.child("clusterIPs").index(i), json!(ips), why);
        }
        families.push(family.to_owned());
    }
    if !errors.is_empty() {
        return;
    }
    let other = |family: &str| if family == "IPv4" { "IPv6" } else { "IPv4" };
    let primary = cluster.first().copied().unwrap_or("IPv4").to_owned();
    if open {
        // Nobody has to route to it: any family will do, also one that the cluster does not have.
        if families.is_empty() {
            families.push(primary);
        }
        if policy != SINGLE && families.len() == 1 {
            families.push(other(&families[0]).to_owned());
        }
    } else {
        if policy == REQUIRE && cluster.len() < 2 {
            let why = "this cluster is not configured for dual-stack services";
            errors.invalid(&path.child("ipFamilyPolicy"), policy.as_str(), why);
        }
        for (i, family) in families.iter().enumerate() {
            if !cluster.contains(&family.as_str()) {
                errors.invalid(&path.child("ipFamilies").index(i), family.as_str(), "not configured on this cluster");
            }
        }
        if !errors.is_empty() {
            return;
        }
        if families.is_empty() {
            families.push(primary);
        }
        if policy != SINGLE && families.len() == 1 && cluster.len() == 2 {
            families.push(other(&families[0]).to_owned());
        }
    }
    service["spec"]["ipFamilies"] = json!(families);
    service["spec"]["ipFamilyPolicy"] = policy.into();
    if headless {
        service["spec"]["clusterIP"] = "None".into();
        service["spec"]["clusterIPs"] = json!(["None"]);
    }
}

/// Preferred two families before, still does, and nothing of it was changed.
fn untouched_prefer(new: &Value, old: &Value) -> bool {
    let prefers = |o: &Value| text(o, "/spec/ipFamilyPolicy") == PREFER;
    let had_families = !strings(old, "ipFamilies").is_empty();
    let same = |field: &str| strings(new, field) == strings(old, field);
    had_families && prefers(new) && prefers(old) && same("clusterIPs") && same("ipFamilies")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::fields::{Wish, address_wishes, carry_over, normalize};

    fn filled(spec: Value, cluster: &[&str]) -> (Value, Vec<String>) {
        let mut service = json!({ "spec": spec });
        normalize(&mut service, None);
        let mut errors = FieldErrors::default();
        fill(&mut service, None, cluster, &mut errors);
        (service, errors.0.iter().map(ToString::to_string).collect())
    }

    /// (families, policy) of a Service that is accepted.
    fn families(spec: Value, cluster: &[&str]) -> (Value, Value) {
        let (service, errors) = filled(spec, cluster);
        assert!(errors.is_empty(), "{errors:?}");
        (service["spec"]["ipFamilies"].clone(), service["spec"]["ipFamilyPolicy"].clone())
    }

    #[test]
    fn creation() {
        let (one, two) = (["IPv4"].as_slice(), ["IPv6", "IPv4"].as_slice());
        let selector = json!({ "a": "b" });
        for (spec, cluster, want, policy) in [
            (json!({ "selector": selector }), one, json!(["IPv4"]), SINGLE),
            (json!({ "selector": selector }), two, json!(["IPv6"]), SINGLE),
            (json!({ "clusterIP": "10.96.0.10" }), two, json!(["IPv4"]), SINGLE),
            (json!({ "ipFamilyPolicy": PREFER }), one, json!(["IPv4"]), PREFER),
            (json!({ "ipFamilyPolicy": PREFER }), two, json!(["IPv6", "IPv4"]), PREFER),
            (json!({ "ipFamilyPolicy": REQUIRE, "ipFamilies": ["IPv4"] }), two, json!(["IPv4", "IPv6"]), REQUIRE),
            (json!({ "clusterIP": "None" }), one, json!(["IPv4", "IPv6"]), REQUIRE),
            (json!({ "clusterIP": "None", "selector": selector }), one, json!(["IPv4"]), SINGLE),
            (
                json!({ "clusterIP": "None", "ipFamilies": ["IPv6"], "ipFamilyPolicy": SINGLE }),
                one,
                json!(["IPv6"]),
                SINGLE,
            ),
        ] {
            let shown = spec.to_string();
            assert_eq!(families(spec, cluster), (want, json!(policy)), "{shown}");
        }
    }

    #[test]
    fn refusals_have_kubernetes_words() {
        let (one, two) = (["IPv4"].as_slice(), ["IPv4", "IPv6"].as_slice());
        for (spec, cluster, want) in [
            (
                json!({ "ipFamilyPolicy": REQUIRE }),
                one,
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
            ),
            (
                json!({ "ipFamilies": ["IPv6"] }),
                one,
                "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
            ),
            (
                json!({ "ipFamilies": ["IPv4", "IPv6"] }),
                two,
                "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be RequireDualStack or PreferDualStack when multiple IP families are specified",
            ),
            (
                json!({ "clusterIP": "fd00::5" }),
                one,
                "spec.clusterIPs[0]: Invalid value: [\"fd00::5\"]: may not use IPv6 on a cluster which is not configured for it",
            ),
        ] {
            assert_eq!(filled(spec, cluster).1, [want]);
        }
    }

    #[test]
    fn up_and_down_again() {
        let two = ["IPv4", "IPv6"];
        let old = json!({ "spec": { "type": "ClusterIP", "ipFamilyPolicy": SINGLE, "ipFamilies": ["IPv4"],
            "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "selector": { "a": "b" } } });
        let mut new = old.clone();
        new["spec"]["ipFamilyPolicy"] = PREFER.into();
        carry_over(&mut new, &old);
        let mut errors = FieldErrors::default();
        fill(&mut new, Some(&old), &two, &mut errors);
        assert_eq!(address_wishes(&new), [Wish::Ip("10.0.0.1".parse().unwrap()), Wish::Any("IPv6".into())]);
        new["spec"]["clusterIPs"] = json!(["10.0.0.1", "fd00::1"]);
        let mut down = new.clone();
        down["spec"]["ipFamilyPolicy"] = SINGLE.into();
        carry_over(&mut down, &new);
        fill(&mut down, Some(&new), &two, &mut errors);
        assert!(errors.is_empty());
        assert_eq!(address_wishes(&down), [Wish::Ip("10.0.0.1".parse().unwrap())]);
    }

    #[test]
    fn a_second_family_of_the_cluster_leaves_services_alone() {
        let old = json!({ "spec": { "ipFamilyPolicy": PREFER, "ipFamilies": ["IPv4"],
            "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"] } });
        let mut new = old.clone();
        fill(&mut new, Some(&old), &["IPv4", "IPv6"], &mut FieldErrors::default());
        assert_eq!(new, old);
        new["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
        fill(&mut new, Some(&old), &["IPv4", "IPv6"], &mut FieldErrors::default());
        assert_eq!(address_wishes(&new).len(), 2);
    }
}
