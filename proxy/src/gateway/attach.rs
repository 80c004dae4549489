//! Which listeners a route is attached to: by its parent references, the listeners' `allowedRoutes`, and the hosts of
//! both. Pure.

use super::listeners::{Entry, Parent, lets_in};
use super::refs::Problem;
use super::types::{GROUP, Reference};
use crate::config::view::View;
use crate::route::{HostPattern, ObjectKey};
use std::collections::HashMap;

/// The Gateways of ours, by what routes name.
#[derive(Debug, Default)]
pub struct Parents {
    /// Where a Gateway's listeners are.
    pub at: HashMap<Parent, usize>,
}

/// A listener that a route is attached to: the Gateway's number, the listener's number in it, and for which hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Number of the Gateway.
    pub gateway: usize,
    /// Number of the listener.
    pub entry: usize,
    /// Hosts that both are for.
    pub hosts: Vec<HostPattern>,
}

/// A route as it asks to be attached.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its parents.
    pub parents: &'a [Reference],
    /// Its hosts, where its kind has some.
    pub hosts: Option<&'a [String]>,
}

/// Follows one parent reference. None: it is not about an object of ours.
pub fn follow(
    view: &View,
    parents: &Parents,
    gateways: &[Vec<Entry<'_>>],
    asking: Asking<'_>,
    to: &Reference,
) -> Option<Result<Vec<Attached>, Problem>> {
    let set = match to.kind.as_deref().unwrap_or("Gateway") {
        "Gateway" => false,
        "ListenerSet" => true,
        _ => return None,
    };
    if to.group.as_deref().unwrap_or(GROUP) != GROUP {
        return None;
    }
    let parent = Parent { set, key: ObjectKey::new(to.namespace_or(asking.namespace), &to.name) };
    let gateway = *parents.at.get(&parent)?;
    let own = gateways[gateway].iter().enumerate().filter(|(_, e)| e.parent == parent);
    let named: Vec<_> = own
        .filter(|(_, e)| to.section_name.as_deref().is_none_or(|n| n == e.spec.name))
        .filter(|(_, e)| to.port.is_none_or(|p| p == e.spec.port))
        .collect();
    if named.is_empty() {
        let message = match (&to.section_name, to.port) {
            (None, None) => format!("{} has no listeners", parent.key),
            (name, port) => format!(
                "{} has no listener with {}{}",
                parent.key,
                name.as_ref().map(|n| format!("name {n} ")).unwrap_or_default(),
                port.map(|p| format!("port {p}")).unwrap_or_default()
            ),
        };
        return Some(Err(Problem::new("NoMatchingParent", message)));
    }
    let allowed: Vec<_> = named
        .into_iter()
        .filter(|(_, e)| {
            let rule = e.spec.allowed_routes.as_ref().and_then(|a| a.namespaces.as_ref());
            e.kinds.contains(&asking.kind) && lets_in(view, rule, "Same", &e.parent.key.namespace, asking.namespace)
        })
        .collect();
    if allowed.is_empty() {
        let message = format!(
            "no listener of {} allows a {} from namespace {}; see their allowedRoutes",
            parent.key, asking.kind, asking.namespace
        );
        return Some(Err(Problem::new("NotAllowedByListeners", message)));
    }
    let attached: Vec<_> = allowed
        .into_iter()
        .filter_map(|(entry, e)| {
            let hosts = match asking.hosts {
                None => vec![HostPattern::Any],
                Some(hosts) => common(&e.host, hosts),
            };
            (!hosts.is_empty()).then_some(Attached { gateway, entry, hosts })
        })
        .collect();
    if attached.is_empty() {
        let message = format!("none of the route's hostnames is one of a listener of {}", parent.key);
        return Some(Err(Problem::new("NoMatchingListenerHostname", message)));
    }
    Some(Ok(attached))
}

/// The hosts that a listener and a route are both for; a route without hosts takes the listener's.
fn common(listener: &HostPattern, route: &[String]) -> Vec<HostPattern> {
    if route.is_empty() {
        return vec![listener.clone()];
    }
    let hosts = route.iter().filter_map(|h| HostPattern::parse(Some(h)).ok());
    hosts.filter_map(|host| intersection(listener, &host)).collect()
}

fn intersection(a: &HostPattern, b: &HostPattern) -> Option<HostPattern> {
    use HostPattern::{Any, Exact, Wildcard};
    let below = |name: &str, suffix: &str| name.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'));
    match (a, b) {
        (Any, other) | (other, Any) => Some(other.clone()),
        (Exact(x), Exact(y)) => (x == y).then(|| a.clone()),
        (Exact(name), Wildcard(suffix)) | (Wildcard(suffix), Exact(name)) => {
            below(name, suffix).then(|| Exact(name.clone()))
        }
        (Wildcard(x), Wildcard(y)) if x == y || below(x, y) => Some(a.clone()),
        (Wildcard(x), Wildcard(y)) => below(y, x).then(|| b.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_both_are_for() {
        let both = |listener: &str, route: &[&str]| {
            let listener = HostPattern::parse(Some(listener)).unwrap();
            let route: Vec<String> = route.iter().map(|h| (*h).to_owned()).collect();
            common(&listener, &route).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(both("", &[]), "*");
        assert_eq!(both("", &["a.example", "*.b.example"]), "a.example *.b.example");
        assert_eq!(both("*.example", &["a.example", "example", "a.b.example", "other"]), "a.example a.b.example");
        assert_eq!(both("*.example", &["*.b.example", "*.example", "*.other"]), "*.b.example *.example");
        assert_eq!(both("*.b.example", &["*.example"]), "*.b.example");
        assert_eq!(both("a.example", &["*.example", "b.example"]), "a.example");
        assert_eq!(both("a.example", &["*.a.example", "b.example"]), "");
        assert_eq!(both("xexample", &["*.example"]), "");
    }
}
