//! Pods reach one another, keep their addresses over a crash, and leave nothing behind.

use crate::support::{Cluster, ask, echo, host, pod};
use causeway_network::{NetNs, PodNetwork, routes::Routes};
use std::{net::SocketAddr, process::Command, time::Instant};

#[tokio::test(flavor = "multi_thread")]
async fn pods_reach_each_other_on_a_node_and_across_nodes() {
    let before = host();
    let cluster = Cluster::new();
    let segment = cluster.segment().await;
    let one = segment.add_node("one").await.unwrap();
    let two = segment.add_node("two").await.unwrap();
    let nets = [cluster.pods(&one, "one", "10.244.1.0/24").await, cluster.pods(&two, "two", "10.244.2.0/24").await];
    let to_one = ("10.244.1.0/24".parse().unwrap(), one.ip);
    let to_two = ("10.244.2.0/24".parse().unwrap(), two.ip);
    assert_eq!(Routes::inside(&one.netns).unwrap().sync(&[to_two]).await.unwrap(), 1);
    assert_eq!(Routes::inside(&two.netns).unwrap().sync(&[to_one]).await.unwrap(), 1);
    assert_eq!(Routes::inside(segment.lan()).unwrap().sync(&[to_one, to_two]).await.unwrap(), 2);
    assert_eq!(Routes::inside(segment.lan()).unwrap().sync(&[to_one, to_two]).await.unwrap(), 0);

    let a = nets[0].set_up(&pod("a")).await.unwrap();
    let b = nets[0].set_up(&pod("b")).await.unwrap();
    let c = nets[1].set_up(&pod("c")).await.unwrap();
    let open = |p: &causeway_network::PodAddress| NetNs::open(&p.netns).unwrap();
    let (in_a, in_b, in_c) = (open(&a), open(&b), open(&c));
    for (target, netns) in [(&b, &in_b), (&c, &in_c)] {
        let at = echo(netns, SocketAddr::new(target.ips[0], 8080));
        assert_eq!(ask(&in_a, at).await.unwrap(), a.ips[0], "pods see each other's own address");
        assert_eq!(ask(segment.lan(), at).await.unwrap(), segment.ip(), "the API server reaches pods");
        ask(&one.netns, at).await.unwrap();
        ask(&two.netns, at).await.unwrap();
    }
    assert_eq!(ask(&in_a, echo(&in_a, SocketAddr::new(a.ips[0], 81))).await.unwrap(), a.ips[0]);
    assert_eq!(host(), before, "the host's namespace is not touched");

    nets[0].tear_down("a").await.unwrap();
    nets[0].tear_down("a").await.unwrap();
    nets[0].tear_down("b").await.unwrap();
    nets[1].tear_down("c").await.unwrap();
    let pods: Vec<_> = cluster.left_over().into_iter().filter(|n| n.contains("one-") || n.contains("two-")).collect();
    assert_eq!(pods, Vec::<String>::new());
    let links = one.netns.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
    assert!(!links.contains("cwp"), "{links}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dual_stack_pods_have_an_address_of_each_family() {
    let cluster = Cluster::new();
    let node = cluster.segment().await.add_node("one").await.unwrap();
    let net = cluster.pods(&node, "one", "10.244.1.0/24,fd12:244::/64").await;
    let a = net.set_up(&pod("a")).await.unwrap();
    let b = net.set_up(&pod("b")).await.unwrap();
    let (in_a, in_b) = (NetNs::open(&a.netns).unwrap(), NetNs::open(&b.netns).unwrap());
    for i in 0..2 {
        let at = echo(&in_b, SocketAddr::new(b.ips[i], 80));
        assert_eq!(ask(&in_a, at).await.unwrap(), a.ips[i]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_is_adopted_or_repaired() {
    let cluster = Cluster::new();
    let node = cluster.segment().await.add_node("one").await.unwrap();
    let net = cluster.pods(&node, "one", "10.244.1.0/24").await;
    let mut before = Vec::new();
    for uid in ["whole", "no-link", "no-namespace", "no-route"] {
        before.push((uid.to_owned(), net.set_up(&pod(uid)).await.unwrap()));
    }
    drop(net);
    let in_ns = |name: &NetNs, args: &[&str]| {
        assert!(Command::new("ip").args(["-n", name.name()]).args(args).status().unwrap().success(), "{args:?}");
    };
    let inside = |i: usize| NetNs::open(&before[i].1.netns).unwrap();
    in_ns(&inside(1), &["link", "delete", "eth0"]);
    in_ns(&inside(3), &["route", "delete", "default"]);
    // A reboot leaves a plain file, or none.
    let gone = inside(2).name().to_owned();
    NetNs::delete(&gone).unwrap();
    std::fs::write(format!("/run/netns/{gone}"), "").unwrap();
    // And what has no record: a namespace and a port.
    let stray = format!("cw-{}-one-0123456789abcdef", cluster.name);
    NetNs::create(&stray).unwrap();
    in_ns(&node.netns, &["link", "add", "cwp0123456789ab", "type", "veth", "peer", "name", "strayed"]);
    in_ns(&node.netns, &["link", "set", "cwp0123456789ab", "master", "cw0"]);

    let net = cluster.pods(&node, "one", "10.244.1.0/24").await;
    assert!(!NetNs::exists(&stray));
    let mut pods = net.pods().await.unwrap();
    pods.sort_by(|a, b| a.1.ips.cmp(&b.1.ips));
    assert_eq!(pods, before);
    for (uid, address) in &before {
        assert_eq!(&net.set_up(&pod(uid)).await.unwrap(), address, "{uid}");
        let inside = NetNs::open(&address.netns).unwrap();
        let at = echo(&inside, SocketAddr::new(address.ips[0], 80));
        ask(&node.netns, at).await.unwrap_or_else(|e| panic!("{uid}: {e}"));
    }
    let next = net.set_up(&pod("next")).await.unwrap();
    assert!(before.iter().all(|(_, p)| p.ips != next.ips));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_get_addresses_of_their_own_until_the_range_is_full() {
    let cluster = Cluster::new();
    let node = cluster.segment().await.add_node("one").await.unwrap();
    let net = std::sync::Arc::new(cluster.pods(&node, "one", "10.244.1.0/28").await);
    let started = Instant::now();
    let all = (0..13).map(|i| {
        let net = net.clone();
        tokio::spawn(async move { net.set_up(&pod(&format!("p{i}"))).await.unwrap() })
    });
    let mut ips: Vec<_> = futures::future::join_all(all).await.into_iter().map(|p| p.unwrap().ips[0]).collect();
    println!("13 pods at once: {:?}", started.elapsed());
    ips.sort();
    ips.dedup();
    assert_eq!(ips.len(), 13);
    let words = net.set_up(&pod("too-many")).await.unwrap_err().to_string();
    assert_eq!(words, "no free pod address in 10.244.1.0/28: 13 pods use it all; give the node a larger pod CIDR");
    net.tear_down("p7").await.unwrap();
    let started = Instant::now();
    net.set_up(&pod("fits")).await.unwrap();
    println!("one pod: {:?}", started.elapsed());
    // The same pod from several sides is made once.
    net.tear_down("fits").await.unwrap();
    let p = pod("same");
    let (a, b, c) = tokio::join!(net.set_up(&p), net.set_up(&p), net.set_up(&p));
    assert!(a.as_ref().unwrap() == b.as_ref().unwrap() && b.unwrap() == c.unwrap());
    assert_eq!(net.pods().await.unwrap().len(), 13);
}
