//! The local segment has no way out, comes back after a crash, and goes away without a trace.

use crate::support::{Cluster, ask, echo, host, unique};
use causeway_network::{NetNs, local::LocalSegment};
use std::{net::SocketAddr, os::unix::fs::MetadataExt, time::Duration};

#[tokio::test(flavor = "multi_thread")]
async fn nodes_talk_and_nothing_leads_out() {
    let before = host();
    let cluster = Cluster::new();
    let segment = cluster.segment().await;
    let one = segment.add_node("one").await.unwrap();
    let two = segment.add_node("two").await.unwrap();
    assert_eq!(segment.ip().to_string(), "10.90.0.1");
    assert_eq!([one.ip, two.ip].map(|ip| ip.to_string()), ["10.90.0.11", "10.90.0.12"]);
    let at = echo(&two.netns, SocketAddr::new(two.ip, 80));
    assert_eq!(ask(&one.netns, at).await.unwrap(), one.ip);
    assert_eq!(ask(segment.lan(), at).await.unwrap(), segment.ip());
    for out in ["10.96.0.1:443", "10.244.3.4:80", "198.51.100.1:80"] {
        for netns in [&one.netns, segment.lan()] {
            let e = ask(netns, out.parse().unwrap()).await.unwrap_err();
            assert_ne!(e.kind(), std::io::ErrorKind::TimedOut, "{out} is refused at once");
        }
    }
    assert_eq!(host(), before);

    // A restart finds all of it, and a name keeps its address whatever the order.
    drop(segment);
    let segment = cluster.segment().await;
    assert_eq!(segment.add_node("two").await.unwrap().ip, two.ip);
    assert_eq!(ask(&one.netns, at).await.unwrap(), one.ip, "adopting does not cut connections");
    segment.remove_node("one").await.unwrap();
    assert_eq!(segment.add_node("three").await.unwrap().ip.to_string(), "10.90.0.13");
    assert_eq!(segment.add_node("one").await.unwrap().ip, one.ip);
    LocalSegment::delete(&cluster.name).await.unwrap();
    assert_eq!(cluster.left_over(), Vec::<String>::new());
    assert_eq!(host(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_takes_half_made_ones_and_spares_others() {
    let (short, mut long) = (Cluster::new(), Cluster::new());
    long.name = format!("{}-more", short.name);
    short.segment().await.add_node("one").await.unwrap();
    long.segment().await.add_node("one").await.unwrap();
    NetNs::delete(&format!("cw-{}-lan", short.name)).unwrap();
    std::fs::write(format!("/run/netns/cw-{}-half", short.name), "").unwrap();
    LocalSegment::delete(&short.name).await.unwrap();
    let left = short.left_over();
    assert_eq!(left.len(), 2, "only the other cluster's: {left:?}");
    assert!(NetNs::exists(&format!("cw-{}-one", long.name)));
    LocalSegment::delete(&short.name).await.unwrap();
    for bad in ["", "a/b", "x-lan", "Upper"] {
        assert!(LocalSegment::delete(bad).await.is_err(), "{bad:?}");
    }
}

#[test]
fn every_thread_of_a_runtime_lives_in_its_namespace() {
    let cluster = Cluster::new();
    let netns = NetNs::create(&format!("cw-{}-{}", cluster.name, unique())).unwrap();
    let inode = || std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
    let (outside, inside) = (inode(), std::fs::metadata(netns.path()).unwrap().ino());
    let runtime = netns.runtime("test", 2).unwrap();
    let handle = runtime.handle();
    let outer = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    outer.block_on(async {
        for _ in 0..20 {
            assert_eq!(handle.spawn(async move { inode() }).await.unwrap(), inside);
            // Started from outside, on purpose.
            assert_eq!(handle.spawn_blocking(inode).await.unwrap(), inside);
        }
    });
    assert_eq!(inode(), outside, "the caller stays where it is");
    assert_eq!(netns.run(inode).unwrap(), inside);
    runtime.shutdown(Duration::from_secs(1));
}

/// `ip` makes the folder of names a mount of its own when it is none. Names made before that must not be lost.
#[test]
fn names_can_be_removed_after_others_have_used_ip() {
    use nix::mount::{MsFlags, mount};
    let (ours, theirs) = (unique(), unique());
    let alone = std::thread::spawn(move || {
        // A machine on which nobody has used either yet.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        NetNs::create(&ours).unwrap();
        for verb in ["add", "delete"] {
            let done = std::process::Command::new("ip").args(["netns", verb, &theirs]).status().unwrap();
            assert!(done.success(), "ip netns {verb}");
        }
        NetNs::delete(&ours).unwrap();
        assert!(NetNs::list().is_empty());
    });
    alone.join().unwrap();
}
