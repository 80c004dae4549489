//! What resolvers see: sections, codes, transports, aliases, forwarding.

use super::support::{dig, key, start, start_for};
use std::sync::atomic::Ordering;

#[tokio::test(flavor = "multi_thread")]
async fn answers_carry_flags_case_and_codes() {
    let dns = start(vec![]).await;
    let found = dig(&dns, "WeB.shop.svc.cluster.local A").await;
    assert!(found.contains("status: NOERROR") && found.contains("flags: qr aa rd ra"), "{found}");
    assert!(found.contains("WeB.shop.svc.cluster.local. 5\tIN\tA\t10.96.0.7"), "{found}");
    let nodata = dig(&dns, "web.shop.svc.cluster.local AAAA").await;
    assert!(nodata.contains("status: NOERROR") && nodata.contains("ANSWER: 0") && nodata.contains("SOA"), "{nodata}");
    let none = dig(&dns, "none.shop.svc.cluster.local A").await;
    assert!(none.contains("status: NXDOMAIN") && none.contains("SOA"), "{none}");
    let srv = dig(&dns, "_http._tcp.web.shop.svc.cluster.local SRV").await;
    assert!(srv.contains("0 100 80 web.shop.svc.cluster.local."), "{srv}");
    assert!(srv.contains("ADDITIONAL SECTION") && srv.contains("10.96.0.7"), "{srv}");
    let reverse = dig(&dns, "-x 10.96.0.7").await;
    assert!(reverse.contains("PTR\tweb.shop.svc.cluster.local."), "{reverse}");
    let transfer = dig(&dns, "cluster.local AXFR +tcp").await;
    assert!(transfer.contains("Transfer failed"), "{transfer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_are_truncated_and_come_whole_by_tcp() {
    let dns = start(vec![]).await;
    let cut = dig(&dns, "many.shop.svc.cluster.local A +ignore +noedns").await;
    assert!(cut.contains("flags: qr aa tc"), "{cut}");
    assert!(cut.contains("MSG SIZE  rcvd: ") && !cut.contains("ANSWER: 200"), "{cut}");
    // dig asks again by TCP on its own.
    let whole = dig(&dns, "many.shop.svc.cluster.local A").await;
    assert!(whole.contains("ANSWER: 200") && whole.contains("(TCP)"), "{whole}");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_names_are_refused_at_once_without_an_upstream() {
    let dns = start(vec![]).await;
    let refused = dig(&dns, "example.com A").await;
    assert!(refused.contains("status: REFUSED"), "{refused}");
    // Our own alias is still an answer.
    let alias = dig(&dns, "out.shop.svc.cluster.local A").await;
    assert!(alias.contains("status: NOERROR") && alias.contains("CNAME\twww.example.org."), "{alias}");
    let chased = dig(&dns, "inside.shop.svc.cluster.local A").await;
    assert!(chased.contains("CNAME\tweb.shop.svc.cluster.local.") && chased.contains("10.96.0.7"), "{chased}");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_names_are_forwarded_and_aliases_chased() {
    // The upstream is another server of ours, for another domain.
    let upstream = start_for("corp.example", vec![]).await;
    let dns = start(vec![upstream.addr]).await;
    let found = dig(&dns, "web.shop.svc.corp.example A").await;
    assert!(found.contains("status: NOERROR") && found.contains("10.96.0.7"), "{found}");
    let none = dig(&dns, "none.shop.svc.corp.example A").await;
    assert!(none.contains("status: NXDOMAIN") && none.contains("SOA"), "{none}");
    let nodata = dig(&dns, "web.shop.svc.corp.example AAAA").await;
    assert!(nodata.contains("status: NOERROR") && nodata.contains("ANSWER: 0"), "{nodata}");
    let far = causeway_dns::model::Records::External { target: "web.shop.svc.corp.example".into() };
    dns.zone.set(&key("shop", "far"), Some(far));
    let chased = dig(&dns, "far.shop.svc.cluster.local A").await;
    assert!(chased.contains("CNAME\tweb.shop.svc.corp.example.") && chased.contains("10.96.0.7"), "{chased}");
    // Answers are kept: the upstream may go.
    drop(upstream);
    let cached = dig(&dns, "web.shop.svc.corp.example A").await;
    assert!(cached.contains("10.96.0.7"), "{cached}");
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_list_cluster_names_fail_rather_than_not_exist() {
    let dns = start(vec![]).await;
    dns.ready.store(false, Ordering::Release);
    let early = dig(&dns, "none.shop.svc.cluster.local A").await;
    assert!(early.contains("status: SERVFAIL"), "{early}");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_show_at_once() {
    let dns = start(vec![]).await;
    dns.zone.set(&key("shop", "web"), None);
    assert!(dig(&dns, "web.shop.svc.cluster.local A").await.contains("status: NXDOMAIN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_and_sizes_of_edns() {
    let dns = start(vec![]).await;
    let newer = dig(&dns, "web.shop.svc.cluster.local A +edns=7 +noednsnegotiation").await;
    assert!(newer.contains("status: BADVERS") && newer.contains("ANSWER: 0"), "{newer}");
    let said = dig(&dns, "web.shop.svc.cluster.local A +bufsize=4096").await;
    assert!(said.contains("udp: 1232"), "{said}");
    let without = dig(&dns, "web.shop.svc.cluster.local A +noedns").await;
    assert!(!without.contains("OPT PSEUDOSECTION") && without.contains("10.96.0.7"), "{without}");
    // What is cut has answers as far as they fit, and the client's OPT.
    let cut = dig(&dns, "many.shop.svc.cluster.local A +ignore +bufsize=4096").await;
    assert!(cut.contains("flags: qr aa tc") && cut.contains("udp: 1232"), "{cut}");
    assert!(cut.contains("10.244.1.") && !cut.contains("ANSWER: 200"), "{cut}");
    let size: usize = cut.split("rcvd: ").nth(1).unwrap().trim().parse().unwrap();
    assert!((1100..=1232).contains(&size), "{size} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn aliases_end_where_their_targets_do() {
    use causeway_dns::model::Records;
    let dns = start(vec![]).await;
    let alias = |name: &str, to: &str| {
        dns.zone
            .set(&key("shop", name), Some(Records::External { target: format!("{to}.shop.svc.cluster.local").into() }));
    };
    for (name, to) in [("one", "two"), ("two", "web"), ("lost", "nowhere"), ("ring", "rong"), ("rong", "ring")] {
        alias(name, to);
    }
    let chain = dig(&dns, "one.shop.svc.cluster.local A").await;
    assert!(chain.contains("status: NOERROR") && chain.contains("ANSWER: 3") && chain.contains("10.96.0.7"), "{chain}");
    let only = dig(&dns, "one.shop.svc.cluster.local CNAME").await;
    assert!(only.contains("ANSWER: 1") && only.contains("CNAME\ttwo.shop"), "{only}");
    let none = dig(&dns, "one.shop.svc.cluster.local AAAA").await;
    assert!(none.contains("status: NOERROR") && none.contains("ANSWER: 2") && none.contains("SOA"), "{none}");
    let lost = dig(&dns, "lost.shop.svc.cluster.local A").await;
    assert!(lost.contains("status: NXDOMAIN") && lost.contains("CNAME\tnowhere"), "{lost}");
    let ring = dig(&dns, "ring.shop.svc.cluster.local A").await;
    assert!(ring.contains("status: SERVFAIL"), "{ring}");
}

#[tokio::test(flavor = "multi_thread")]
async fn negative_reverse_answers_are_from_the_reverse_zone() {
    let dns = start(vec![]).await;
    let none = dig(&dns, "-x 10.96.0.99").await;
    assert!(none.contains("status: NXDOMAIN") && none.contains("96.10.in-addr.arpa.\t5\tIN\tSOA"), "{none}");
    let above = dig(&dns, "0.96.10.in-addr.arpa PTR").await;
    assert!(above.contains("status: NOERROR") && above.contains("ANSWER: 0"), "{above}");
}
