//! The files every container of a pod gets: `/etc/hosts` and `/etc/resolv.conf`, and the pod's host name. Pure text.

use k8s_openapi::api::core::v1::{HostAlias, Pod};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

const HOSTS_HEADER: &str = "# Kubernetes-managed hosts file.\n";
const LOCAL: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";
/// Linux refuses longer ones.
const MAX_HOSTNAME: usize = 63;

/// The pod's host name, and its full name when `subdomain` gives it one.
pub fn hostname(pod: &Pod, node_name: &str, domain: &str) -> (String, Option<String>) {
    let spec = pod.spec.as_ref();
    if spec.is_some_and(|s| s.host_network == Some(true)) {
        return (node_name.to_owned(), None);
    }
    let own = spec.and_then(|s| s.hostname.as_ref()).filter(|h| !h.is_empty());
    let mut name = own.or(pod.metadata.name.as_ref()).cloned().unwrap_or_default();
    if name.len() > MAX_HOSTNAME {
        name.truncate(MAX_HOSTNAME);
        name = name.trim_end_matches(['-', '.']).to_owned();
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
    let subdomain = spec.and_then(|s| s.subdomain.as_ref()).filter(|s| !s.is_empty());
    let fqdn = subdomain.map(|s| format!("{name}.{s}.{namespace}.svc.{domain}"));
    if let (Some(full), Some(true)) = (&fqdn, spec.and_then(|s| s.set_hostname_as_fqdn)) {
        return (full.clone(), fqdn.clone());
    }
    (name, fqdn)
}

/// `/etc/hosts` of a pod with a network of its own; `host` is the node's file for pods without.
pub fn hosts(host: Option<&str>, ips: &[IpAddr], hostname: &str, fqdn: Option<&str>, aliases: &[HostAlias]) -> String {
    let mut text = HOSTS_HEADER.to_owned();
    match host {
        Some(host) => text.push_str(host),
        None => {
            text.push_str(LOCAL);
            for ip in ips {
                let _ = match fqdn.filter(|f| *f != hostname) {
                    Some(fqdn) => writeln!(text, "{ip}\t{fqdn}\t{hostname}"),
                    None => writeln!(text, "{ip}\t{hostname}"),
                };
            }
        }
    }
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let _ = writeln!(text, "{}\t{}", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t"));
        }
    }
    text
}

/// Servers, search paths, bytes of one and of all search paths that resolvers read.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH: usize = 255;
const MAX_SEARCH_LINE: usize = 2048;

/// A name service configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Resolv {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<(String, Option<String>)>,
}

/// `/etc/resolv.conf` of a pod, and what had to be left out of it; `upstream` is the text of the node's own.
pub fn resolv_conf(pod: &Pod, dns_ip: IpAddr, domain: &str, upstream: Option<&str>) -> (String, Vec<String>) {
    let spec = pod.spec.as_ref();
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let host_network = spec.is_some_and(|s| s.host_network == Some(true));
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
    let host = upstream.map(parse);
    let mut r = match policy {
        "None" => Resolv::default(),
        "ClusterFirst" if !host_network => cluster(namespace, dns_ip, domain, host),
        "ClusterFirstWithHostNet" => cluster(namespace, dns_ip, domain, host),
        // Without servers a resolver would ask 127.0.0.1 for everything, and complete names with the host's domain.
        _ => host.unwrap_or_else(|| Resolv {
            servers: vec![Ipv4Addr::LOCALHOST.to_string()],
            searches: vec![".".to_owned()],
            options: Vec::new(),
        }),
    };
    if let Some(config) = spec.and_then(|s| s.dns_config.as_ref()) {
        extend(&mut r.servers, config.nameservers.iter().flatten());
        extend(&mut r.searches, config.searches.iter().flatten());
        for option in config.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            r.options.retain(|(n, _)| *n != name);
            r.options.push((name, option.value.clone()));
        }
    }
    let omitted = r.fit();
    (render(&r), omitted)
}

impl Resolv {
    /// Cuts it to what resolvers read; what was left out, in Kubernetes' words.
    fn fit(&mut self) -> Vec<String> {
        let mut omitted = Vec::new();
        if self.servers.len() > MAX_SERVERS {
            self.servers.truncate(MAX_SERVERS);
            omitted.push(format!(
                "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
                self.servers.join(" ")
            ));
        }
        let (before, mut length) = (self.searches.len(), 0);
        self.searches.retain(|s| s.len() <= MAX_SEARCH);
        let fitting = self.searches.iter().take(MAX_SEARCHES).take_while(|s| {
            length += s.len() + 1;
            length <= MAX_SEARCH_LINE + 1
        });
        let fitting = fitting.count();
        self.searches.truncate(fitting);
        if fitting < before {
            omitted.push(format!(
                "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
                self.searches.join(" ")
            ));
        }
        omitted
    }
}

fn extend<'a>(list: &mut Vec<String>, more: impl Iterator<Item = &'a String>) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

/// The cluster's, with the search paths of the node behind.
fn cluster(namespace: &str, dns_ip: IpAddr, domain: &str, host: Option<Resolv>) -> Resolv {
    let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
    extend(&mut searches, host.unwrap_or_default().searches.iter());
    Resolv { servers: vec![dns_ip.to_string()], searches, options: vec![("ndots".to_owned(), Some("5".to_owned()))] }
}

fn parse(text: &str) -> Resolv {
    let mut r = Resolv::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => r.servers.extend(words.next().map(str::to_owned)),
            Some("search") => r.searches = words.map(str::to_owned).collect(),
            Some("options") => {
                r.options = words
                    .map(|w| match w.split_once(':') {
                        Some((n, v)) => (n.to_owned(), Some(v.to_owned())),
                        None => (w.to_owned(), None),
                    })
                    .collect();
            }
            _ => {}
        }
    }
    r
}

fn render(r: &Resolv) -> String {
    let mut text = String::new();
    if !r.searches.is_empty() {
        let _ = writeln!(text, "search {}", r.searches.join(" "));
    }
    for server in &r.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !r.options.is_empty() {
        let word = |(n, v): &(String, Option<String>)| v.as_ref().map_or_else(|| n.clone(), |v| format!("{n}:{v}"));
        let _ = writeln!(text, "options {}", r.options.iter().map(word).collect::<Vec<_>>().join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec})).unwrap()
    }

    #[test]
    fn resolv_conf_by_policy() {
        let dns = "10.96.0.10".parse().unwrap();
        let up = "nameserver 9.9.9.9\nsearch lan\n";
        let text = |spec| resolv_conf(&pod(spec), dns, "cluster.local", Some(up)).0;
        let cluster = "search shop.svc.cluster.local svc.cluster.local cluster.local lan\nnameserver 10.96.0.10\n\
            options ndots:5\n";
        assert_eq!(text(json!({"containers": []})), cluster);
        assert_eq!(text(json!({"containers": [], "hostNetwork": true})), "search lan\nnameserver 9.9.9.9\n");
        assert_eq!(
            text(json!({"containers": [], "dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true})),
            cluster
        );
        let none = json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"],
            "searches": ["a.b"], "options": [{"name": "ndots", "value": "1"}, {"name": "edns0"}]}});
        assert_eq!(text(none), "search a.b\nnameserver 1.1.1.1\noptions ndots:1 edns0\n");
        let more = json!({"containers": [], "dnsConfig": {"nameservers": ["10.96.0.10", "1.1.1.1"],
            "searches": ["lan", "a.b"], "options": [{"name": "ndots", "value": "2"}]}});
        assert_eq!(
            text(more),
            "search shop.svc.cluster.local svc.cluster.local cluster.local lan a.b\nnameserver 10.96.0.10\n\
             nameserver 1.1.1.1\noptions ndots:2\n"
        );
        // A node without servers has none to give, and a resolver must not look elsewhere.
        let default = pod(json!({"containers": [], "dnsPolicy": "Default"}));
        assert_eq!(resolv_conf(&default, dns, "cluster.local", None).0, "search .\nnameserver 127.0.0.1\n");
    }

    #[test]
    fn resolv_conf_within_what_resolvers_read() {
        let up = format!("nameserver 9.9.9.9\nsearch {}\n", vec!["a".repeat(100); 30].join(" "));
        let searches: Vec<String> = (0..30).map(|i| format!("s{i}.example")).collect();
        let conf = |config| {
            let spec = json!({"containers": [], "dnsConfig": config});
            resolv_conf(&pod(spec), "10.96.0.10".parse().unwrap(), "cluster.local", None)
        };
        let (text, omitted) = conf(json!({"nameservers": ["10.0.0.1", "10.0.0.2", "10.0.0.3"], "searches": searches}));
        assert_eq!(text.lines().filter(|l| l.starts_with("nameserver")).count(), 3);
        assert_eq!(text.lines().next().map(|l| l.split(' ').count()), Some(1 + 32));
        assert_eq!(omitted.len(), 2);
        assert!(omitted[0].ends_with("the applied nameserver line is: 10.96.0.10 10.0.0.1 10.0.0.2"), "{omitted:?}");
        assert!(omitted[1].starts_with("Search Line limits were exceeded"), "{omitted:?}");
        let default = pod(json!({"containers": [], "dnsPolicy": "Default"}));
        let (text, omitted) = resolv_conf(&default, "10.96.0.10".parse().unwrap(), "cluster.local", Some(&up));
        assert!(omitted.len() == 1 && text.lines().next().is_some_and(|l| l.len() <= "search ".len() + 2048), "{text}");
    }

    #[test]
    fn host_names() {
        let p = pod(json!({"containers": [], "hostname": "web-0", "subdomain": "web"}));
        let (name, fqdn) = hostname(&p, "node-1", "cluster.local");
        assert_eq!((name.as_str(), fqdn.as_deref()), ("web-0", Some("web-0.web.shop.svc.cluster.local")));
        let alias = HostAlias { ip: "1.2.3.4".to_owned(), hostnames: Some(vec!["a".to_owned(), "b".to_owned()]) };
        let text = hosts(None, &["10.0.0.9".parse().unwrap()], &name, fqdn.as_deref(), &[alias]);
        assert!(text.contains("10.0.0.9\tweb-0.web.shop.svc.cluster.local\tweb-0\n"), "{text}");
        assert!(text.ends_with("1.2.3.4\ta\tb\n"), "{text}");
    }
}
