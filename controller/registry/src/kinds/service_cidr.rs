//! networking.k8s.io/v1 ServiceCIDR: a range that cluster IPs come from.

use crate::field::{FieldErrors, Path};
use crate::json::{list, same};
use crate::rules::{Kind, Rules, Status};
use crate::{Resource, age, cell};
use ipnet::IpNet;
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs")
        .cluster()
        .columns(&[("Name", "string", 0), ("CIDRs", "string", 0), ("Age", "string", 0)])
        .rules(Rules {
            status: Status::Cleared(|_| Value::Null),
            generation: true,
            validate,
            validate_update,
            cells,
            ..Rules::default()
        })
}

fn validate(o: &Value, errors: &mut FieldErrors) {
    let path = Path::new("spec").child("cidrs");
    let cidrs = list(o, "spec.cidrs");
    if cidrs.is_empty() {
        errors.required(&path, "at least one CIDR required");
    }
    let mut families = Vec::new();
    for (i, cidr) in cidrs.iter().enumerate() {
        let cidr = cidr.as_str().unwrap_or("");
        match cidr.parse::<IpNet>() {
            Ok(net) if net.trunc() == net => families.push(matches!(net, IpNet::V4(_))),
            Ok(net) => {
                let detail = format!("must be in canonical form (\"{}\")", net.trunc());
                errors.invalid(&path.index(i), cidr, detail);
            }
            Err(_) => {
                let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                errors.invalid(&path.index(i), cidr, detail);
            }
        }
    }
    if cidrs.len() > 2 || families.len() == 2 && families[0] == families[1] {
        let detail = "may only hold one value for each IP family";
        errors.invalid(&path, o["spec"]["cidrs"].clone(), detail);
    }
}

/// A second family may be added or taken away; the ranges themselves stay.
fn validate_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let (path, why) = (Path::new("spec").child("cidrs"), "field is immutable");
    let (now, before) = (list(new, "spec.cidrs"), list(old, "spec.cidrs"));
    let common = now.len().min(before.len());
    if common == 0 || now.len() > 2 {
        if !same(&new["spec"]["cidrs"], &old["spec"]["cidrs"]) {
            errors.invalid(&path, new["spec"]["cidrs"].clone(), why);
        }
        return;
    }
    for i in (0..common).filter(|i| now[*i] != before[*i]) {
        errors.invalid(&path.index(i), now[i].clone(), why);
    }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    let cidrs: Vec<&str> = list(o, "spec.cidrs").iter().filter_map(Value::as_str).collect();
    vec![cell::name(o), json!(cidrs.join(",")), age::age(o, now)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_second_family_comes_and_goes() {
        let cidrs = |list: &[&str]| json!({"spec": {"cidrs": list}});
        let words = |new: &[&str], old: &[&str]| {
            let mut errors = FieldErrors::default();
            validate_update(&cidrs(new), &cidrs(old), &mut errors);
            errors.0.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(words(&["10.0.0.0/24", "fd00::/64"], &["10.0.0.0/24"]).is_empty());
        assert!(words(&["10.0.0.0/24"], &["10.0.0.0/24", "fd00::/64"]).is_empty());
        assert_eq!(
            words(&["10.0.1.0/24", "fd00::/64"], &["10.0.0.0/24"]),
            ["spec.cidrs[0]: Invalid value: \"10.0.1.0/24\": field is immutable"]
        );
        assert_eq!(words(&[], &["10.0.0.0/24"]).len(), 1);
    }
}
