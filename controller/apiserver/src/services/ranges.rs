//! The ranges cluster IPs come from: those of the ServiceCIDR objects (KEP-1880).
//!
//! In: the ServiceCIDRs in the watch cache. Out: the ranges that give out addresses (ready, not going away), the
//! default one first, and those in which an address may already lie.

use crate::catalog::prefix;
use crate::engine::{Engine, text};
use ipnet::IpNet;
use serde_json::Value;

/// The object the configuration's ranges are in.
pub const DEFAULT: &str = "kubernetes";

/// One range of a ServiceCIDR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The range.
    pub net: IpNet,
    /// Gives out addresses.
    pub open: bool,
}

/// All ranges, in the order in which they are tried.
pub fn all(engine: &Engine) -> Vec<Range> {
    let prefix = prefix("networking.k8s.io", "servicecidrs");
    let (objects, _) = engine.feed.cache(&prefix).list(&prefix);
    of(objects.iter().map(|o| o.value()).collect())
}

fn of(mut objects: Vec<Value>) -> Vec<Range> {
    let created = |o: &Value| text(o, "/metadata/creationTimestamp").to_owned();
    let name = |o: &Value| text(o, "/metadata/name").to_owned();
    objects.sort_by_key(|o| (name(o) != DEFAULT, created(o), name(o)));
    let mut ranges: Vec<Range> = Vec::new();
    for object in &objects {
        let open = is_ready(object) && object.pointer("/metadata/deletionTimestamp").is_none_or(Value::is_null);
        let cidrs = object.pointer("/spec/cidrs").and_then(Value::as_array).into_iter().flatten();
        for net in cidrs.filter_map(|c| c.as_str()?.parse::<IpNet>().ok()) {
            // Several objects may name one range: it is open as long as one of them is.
            match ranges.iter_mut().find(|r| r.net == net) {
                Some(known) => known.open |= open,
                None => ranges.push(Range { net, open }),
            }
        }
    }
    ranges
}

/// Nobody has spoken yet counts as yes, so that a cluster whose controllers are down still gives out addresses.
fn is_ready(object: &Value) -> bool {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().find(|c| c["type"] == "Ready").is_none_or(|c| c["status"] == "True")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_default_comes_first_and_what_goes_away_is_closed() {
        let object = |name: &str, created: &str, cidrs: &[&str]| json!({ "metadata": { "name": name, "creationTimestamp": created }, "spec": { "cidrs": cidrs } });
        let mut going = object("a-going", "2026-01-01T00:00:00Z", &["10.1.0.0/24", "10.2.0.0/24"]);
        going["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z".into();
        let mut unready = object("b", "2026-01-01T00:00:00Z", &["10.3.0.0/24"]);
        unready["status"] = json!({ "conditions": [{ "type": "Ready", "status": "False" }] });
        let ranges = of(vec![
            unready,
            going,
            object("c", "2026-01-03T00:00:00Z", &["10.2.0.0/24"]),
            object("kubernetes", "2026-01-09T00:00:00Z", &["10.96.0.0/12", "fd00:96::/112"]),
        ]);
        let shown: Vec<String> = ranges.iter().map(|r| format!("{} {}", r.net, r.open)).collect();
        let want =
            ["10.96.0.0/12 true", "fd00:96::/112 true", "10.1.0.0/24 false", "10.2.0.0/24 true", "10.3.0.0/24 false"];
        assert_eq!(shown, want);
    }
}
