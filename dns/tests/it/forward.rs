//! The way out: on whose network upstreams are asked, and what is said when they are silent.

use super::support::{dig, start, start_for, start_with, upstreams};
use nix::sched::{CloneFlags, unshare};
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};

/// A runtime in a network of its own, which goes with its threads. Loopback is up, nothing else is there.
async fn elsewhere() -> Runtime {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        sender.send(Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()).unwrap();
    });
    receiver.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn upstreams_are_asked_from_the_network_of_the_given_runtime() {
    let other = elsewhere().await;
    let upstream = other.spawn(start_for("corp.example", vec![])).await.unwrap();
    let there = start_with("cluster.local", &upstreams(&[upstream.addr]), Some(other.handle().clone())).await;
    let found = dig(&there, "web.shop.svc.corp.example A").await;
    assert!(found.contains("status: NOERROR") && found.contains("10.96.0.7"), "{found}");
    // From here the same address is nobody's.
    let here = start(vec![upstream.addr]).await;
    let failed = dig(&here, "web.shop.svc.corp.example A").await;
    assert!(failed.contains("status: SERVFAIL"), "{failed}");
    // A runtime that has gone is a failure, not a fall.
    other.shutdown_background();
    let gone = dig(&there, "many.shop.svc.corp.example A").await;
    assert!(gone.contains("status: SERVFAIL"), "{gone}");
    assert!(dig(&there, "web.shop.svc.cluster.local A").await.contains("10.96.0.7"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_upstream_holds_up_nobody_else_and_fails_in_time() {
    // Takes questions and says nothing.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr: SocketAddr = silent.local_addr().unwrap();
    let dns = start(vec![addr]).await;
    let begin = Instant::now();
    let (failed, ours) = tokio::join!(dig(&dns, "www.example.org A"), async {
        let answer = dig(&dns, "web.shop.svc.cluster.local A").await;
        (answer, begin.elapsed())
    });
    assert!(failed.contains("status: SERVFAIL"), "{failed}");
    assert!(begin.elapsed() < Duration::from_secs(5), "a resolver has given up by then");
    assert!(ours.0.contains("10.96.0.7") && ours.1 < Duration::from_secs(2), "{ours:?}");
    // An alias of ours with a target nobody tells about: try again later.
    let alias = dig(&dns, "out.shop.svc.cluster.local A").await;
    assert!(alias.contains("status: SERVFAIL"), "{alias}");
}
