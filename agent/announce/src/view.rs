//! Whose name is on which address, with what this node wrote itself before the watch tells of it. Pure.
//!
//! In: the Leases of addresses as watched, and this node's own writes. Out: for every address the name on its Lease and
//! the Lease. A write replaces exactly the version it was based on, so whatever else the watch shows comes after it.

use crate::lease::{self, Said};
use k8s_openapi::api::coordination::v1::Lease;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// The name on an address (empty for none), and its Lease.
pub type Signed = (String, Arc<Lease>);

/// Own writes of which the watch has not told yet: the versions that they replaced (`None`: no Lease), and the last of
/// them.
#[derive(Debug, Default)]
pub struct View(HashMap<IpAddr, (Vec<Option<String>>, Option<Signed>)>);

impl View {
    /// A Lease was written (`None`: deleted), based on another one or on there being none.
    pub fn wrote(&mut self, ip: IpAddr, before: Option<&Lease>, after: Option<Lease>) {
        let after = after.map(|lease| (lease::holder(&lease), Arc::new(lease)));
        let before = before.map(lease::version);
        // The watch may be more than one write behind.
        let mut replaced = match self.0.remove(&ip) {
            Some((replaced, last)) if last.as_ref().map(|(_, l)| lease::version(l)) == before => replaced,
            _ => Vec::new(),
        };
        replaced.push(before);
        self.0.insert(ip, (replaced, after));
    }

    /// Somebody else was faster: only the watch is believed.
    pub fn doubt(&mut self, ip: IpAddr) {
        self.0.remove(&ip);
    }

    /// What holds now.
    pub fn look(&mut self, told: &[Arc<Lease>]) -> HashMap<IpAddr, Signed> {
        let mut all: HashMap<IpAddr, Signed> = HashMap::new();
        for lease in told {
            if let Some(Said::Address(ip, holder)) = lease::read(lease) {
                all.insert(ip, (holder, lease.clone()));
            }
        }
        self.0.retain(|ip, (replaced, _)| replaced.contains(&all.get(ip).map(|(_, lease)| lease::version(lease))));
        for (ip, (_, after)) in &self.0 {
            match after {
                Some(signed) => drop(all.insert(*ip, signed.clone())),
                None => drop(all.remove(ip)),
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lease(version: &str, holder: &str) -> Lease {
        serde_json::from_value(json!({
            "metadata": {
                "name": "x", "resourceVersion": version,
                "labels": { lease::LABEL: "address" }, "annotations": { "causeway.dev/address": "10.9.0.1" },
            },
            "spec": { "holderIdentity": holder },
        }))
        .unwrap()
    }

    fn holder(view: &mut View, told: &[Lease]) -> Option<String> {
        let told: Vec<Arc<Lease>> = told.iter().cloned().map(Arc::new).collect();
        view.look(&told).remove(&"10.9.0.1".parse().unwrap()).map(|(holder, _)| holder)
    }

    #[test]
    fn own_writes_count_until_the_watch_is_past_them() {
        let (ip, mut view) = ("10.9.0.1".parse().unwrap(), View::default());
        view.wrote(ip, None, Some(lease("1", "a")));
        assert_eq!(holder(&mut view, &[]).as_deref(), Some("a"), "nothing told yet");
        view.wrote(ip, Some(&lease("1", "a")), Some(lease("2", "")));
        assert_eq!(holder(&mut view, &[]).as_deref(), Some(""), "two writes ahead");
        assert_eq!(holder(&mut view, &[lease("1", "a")]).as_deref(), Some(""), "one write ahead");
        assert_eq!(holder(&mut view, &[lease("2", "")]).as_deref(), Some(""));
        assert_eq!(holder(&mut view, &[lease("3", "b")]).as_deref(), Some("b"));
        view.wrote(ip, Some(&lease("3", "b")), None);
        assert_eq!(holder(&mut view, &[lease("3", "b")]), None, "deleted");
        assert_eq!(holder(&mut view, &[]), None);
        assert_eq!(holder(&mut view, &[lease("5", "c")]).as_deref(), Some("c"));
    }

    #[test]
    fn a_write_that_lost_is_not_believed() {
        let (ip, mut view) = ("10.9.0.1".parse().unwrap(), View::default());
        view.wrote(ip, None, Some(lease("1", "a")));
        view.doubt(ip);
        assert_eq!(holder(&mut view, &[]), None);
    }
}
