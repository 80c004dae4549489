//! For which addresses a node gets a certificate.

use super::*;

fn ips(all: &[&str]) -> Vec<IpAddr> {
    all.iter().map(|ip| ip.parse().unwrap()).collect()
}

fn nets(all: &[&str]) -> Vec<IpNet> {
    all.iter().map(|net| net.parse().unwrap()).collect()
}

fn ask(node: &str, names: &[&str], addresses: &[&str], peer: &str, own: &[&str]) -> Result<Vec<IpAddr>, String> {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let (services, pods) = (nets(&["10.96.0.0/12", "fd96::/108"]), nets(&["10.244.0.0/16", "fd44::/48"]));
    let request = Request { node, dns_names: &names, ips: &ips(addresses), peer: peer.parse().ok() };
    let cluster = Cluster {
        services: &services,
        pods: &pods,
        domain: "cluster.local",
        api: &ips(&["10.0.0.100"]),
        api_names: &["api.example.com".to_owned()],
        own: &ips(own),
        others: &ips(&["10.0.0.2", "fd00::2"]).into_iter().collect(),
    };
    decide(&request, &cluster)
}

#[test]
fn own_addresses_are_those_seen_or_written_down() {
    assert_eq!(ask("n1", &["n1"], &["10.0.0.1"], "10.0.0.1", &[]), Ok(ips(&["10.0.0.1"])));
    assert_eq!(ask("n1", &["n1"], &["10.0.0.1"], "::ffff:10.0.0.1", &[]), Ok(ips(&["10.0.0.1"])));
    assert_eq!(ask("n1", &["n1"], &["::ffff:10.0.0.1"], "10.0.0.1", &[]), Ok(ips(&["10.0.0.1"])), "one address");
    assert_eq!(
        ask("n1", &["n1"], &["fd00::1", "10.0.0.1"], "10.0.0.1", &["fd00::1"]),
        Ok(ips(&["10.0.0.1", "fd00::1"]))
    );
    assert_eq!(ask("n1", &["n1"], &[], "", &[]), Ok(Vec::new()), "its name only");
    assert_eq!(ask("n1", &[], &["10.0.0.1"], "", &["10.0.0.1"]), Ok(ips(&["10.0.0.1"])));
}

#[test]
fn others_addresses_are_refused_wherever_the_request_came_from() {
    for (address, why) in [
        ("10.96.0.1", "in a range of service addresses"),
        ("::ffff:10.96.0.1", "in a range of service addresses"),
        ("fd96::1", "in a range of service addresses"),
        ("10.244.3.4", "in a range of pods"),
        ("fd44::9", "in a range of pods"),
        ("10.0.0.100", "an address of the API"),
        ("10.0.0.2", "written down for another node"),
        ("fd00::2", "written down for another node"),
        ("127.0.0.1", "no address that others reach a node by"),
        ("::1", "no address that others reach a node by"),
        ("0.0.0.0", "no address that others reach a node by"),
        ("169.254.169.254", "no address that others reach a node by"),
        ("fe80::1", "no address that others reach a node by"),
        ("224.0.0.1", "no address that others reach a node by"),
    ] {
        let refused = ask("n1", &["n1"], &[address], address, &[address]).unwrap_err();
        assert!(refused.contains(why), "{address}: {refused}");
    }
    for (peer, own) in [("", &[][..]), ("10.0.0.9", &[]), ("10.0.0.9", &["10.0.0.8"])] {
        let refused = ask("n1", &["n1"], &["10.0.0.1"], peer, own).unwrap_err();
        assert!(refused.contains("is not known to be an address of node n1"), "{refused}");
    }
    let many: Vec<String> = (0..17).map(|i| format!("10.0.1.{i}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(ask("n1", &["n1"], &many, "", &many).unwrap_err().contains("more than a node has"));
}

#[test]
fn names_are_the_nodes_own_and_nobody_elses() {
    for name in ["n2", "kubernetes", "kubernetes.default.svc", "localhost", "*.n1", "n1.", "N1", "api.example.com", ""]
    {
        assert!(ask("n1", &["n1", name], &["10.0.0.1"], "10.0.0.1", &[]).is_err(), "{name}");
    }
    // Nodes that were given a name with a meaning.
    for node in [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "x.default.svc",
        "x.default.svc.cluster.local",
        "x.y.svc.example.com",
        "x.cluster.local",
        "cluster.local",
        "localhost",
        "a.localhost",
        "api.example.com",
        "10.0.0.1",
    ] {
        assert!(ask(node, &[node], &["10.0.0.1"], "10.0.0.1", &[]).is_err(), "{node}");
    }
    for node in ["n1", "n1.example.com", "kubernetes-node-1", "svc-1.example.com"] {
        assert!(ask(node, &[node], &["10.0.0.1"], "10.0.0.1", &[]).is_ok(), "{node}");
    }
}

#[test]
fn the_annotation_is_read_as_it_is_written() {
    let all = ips(&["10.0.0.1", "fd00::1"]);
    assert_eq!(write(&all), "10.0.0.1,fd00::1");
    assert_eq!(read(&write(&all)), all);
    assert_eq!(read(" ::ffff:10.0.0.1 , nonsense,,fd00::1"), all);
    assert_eq!(read(&"10.0.0.1,".repeat(1000)).len(), MOST);
    assert!(read("").is_empty());
}
