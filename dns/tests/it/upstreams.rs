//! How upstreams are chosen, left out and asked again, and what is done with their answers.

use super::fake::{Fake, Manner};
use super::support::{Dns, dig, plain, start_with, upstreams};
use causeway_api::dns::{DnsCache, DnsSettings, UpstreamPolicy};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
const ONE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const TWO: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

async fn start(fakes: &[&Fake], change: impl FnOnce(&mut DnsSettings)) -> Dns {
    let addrs: Vec<_> = fakes.iter().map(|f| f.addr).collect();
    let mut settings = DnsSettings { policy: UpstreamPolicy::Sequential, ..upstreams(&addrs) };
    change(&mut settings);
    start_with("cluster.local", &settings, None).await
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !holds().await {
        assert!(begin.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_upstream_leaves_the_rotation_and_comes_back() {
    let (first, second) = (Fake::start(Manner::Silent).await, Fake::start(Manner::Address(TWO, 60)).await);
    let dns = start(&[&first, &second], |_| ()).await;
    // The second is asked when the first says nothing.
    assert!(dig(&dns, "a.example.org A").await.contains("192.0.2.2"));
    eventually("the first is left out", async || dns.counted("coredns_forward_healthcheck_failures_total", "") > 0.0)
        .await;
    let asked = first.count();
    for i in 0..5 {
        assert!(dig(&dns, &format!("b{i}.example.org A")).await.contains("192.0.2.2"));
    }
    assert_eq!(first.count(), asked, "who is left out is not asked");
    // It answers probes, so it is asked again, being the first.
    first.be(Manner::Address(ONE, 60));
    let mut i = 0;
    eventually("the first is asked again", async || {
        i += 1;
        dig(&dns, &format!("c{i}.example.org A")).await.contains("192.0.2.1")
    })
    .await;
    assert!(dns.counted("coredns_forward_requests_total", &second.addr.to_string()) >= 6.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_are_left_out_somebody_is_asked_still() {
    let only = Fake::start(Manner::Silent).await;
    let dns = start(&[&only], |_| ()).await;
    assert!(dig(&dns, "a.example.org A").await.contains("SERVFAIL"));
    eventually("it is left out", async || dns.counted("coredns_forward_healthcheck_failures_total", "") > 0.0).await;
    only.be(Manner::Address(ONE, 60));
    assert!(dig(&dns, "b.example.org A").await.contains("192.0.2.1"));
    assert_eq!(dns.counted("coredns_panics_total", ""), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_spread_questions() {
    for policy in [UpstreamPolicy::RoundRobin, UpstreamPolicy::Random, UpstreamPolicy::Sequential] {
        let (a, b) = (Fake::start(Manner::Address(ONE, 60)).await, Fake::start(Manner::Address(TWO, 60)).await);
        let dns = start(&[&a, &b], |s| s.policy = policy).await;
        for i in 0..20 {
            dig(&dns, &format!("n{i}.example.org A")).await;
        }
        let counts = (a.count(), b.count());
        match policy {
            UpstreamPolicy::RoundRobin => assert_eq!(counts, (10, 10)),
            UpstreamPolicy::Random => assert!(counts.0 > 0 && counts.1 > 0 && counts.0 + counts.1 == 20, "{counts:?}"),
            UpstreamPolicy::Sequential => assert_eq!(counts, (20, 0)),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_domain_wins_and_others_go_the_common_way() {
    let [root, corp, deep] = [ONE, TWO, Ipv4Addr::new(192, 0, 2, 3)].map(|ip| Fake::start(Manner::Address(ip, 60)));
    let (root, corp, deep) = tokio::join!(root, corp, deep);
    let dns = start(&[&root], |s| {
        s.stub_domains.insert("corp.example".into(), vec![corp.addr.to_string()]);
        s.stub_domains.insert("Deep.Corp.example.".into(), vec![deep.addr.to_string()]);
    })
    .await;
    for (name, ip) in [
        ("www.example", "192.0.2.1"),
        ("corp.example", "192.0.2.2"),
        ("a.CORP.example", "192.0.2.2"),
        ("xcorp.example", "192.0.2.1"),
        ("a.deep.corp.example", "192.0.2.3"),
    ] {
        let answer = dig(&dns, &format!("{name} A")).await;
        assert!(answer.contains(ip) && answer.contains(&format!("{name}.")), "{answer}");
    }
    // Without an upstream for the rest, the rest is refused.
    let stub = start(&[], |s| drop(s.stub_domains.insert("corp.example".into(), vec![corp.addr.to_string()]))).await;
    assert!(dig(&stub, "b.corp.example A").await.contains("192.0.2.2"));
    assert!(dig(&stub, "www.example A").await.contains("status: REFUSED"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_question_is_asked_once_at_a_time() {
    let slow = Fake::start(Manner::Late(ONE, Duration::from_millis(250))).await;
    let dns = start(&[&slow], |_| ()).await;
    let asks = (0..8).map(|_| dig(&dns, "a.example.org A"));
    for answer in futures::future::join_all(asks).await {
        assert!(answer.contains("192.0.2.1"), "{answer}");
    }
    assert_eq!(slow.count(), 1);
    // Of another type, or with signatures, it is another question.
    dig(&dns, "a.example.org AAAA").await;
    assert!(dig(&dns, "a.example.org A +dnssec").await.contains("flags: do"));
    assert_eq!(slow.count(), 3);
    assert!(slow.asked.lock()[2].edns.as_ref().unwrap().flags().dnssec_ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_questions_fail_at_once() {
    let slow = Fake::start(Manner::Late(ONE, Duration::from_millis(300))).await;
    let dns = start(&[&slow], |s| s.max_concurrent = 1).await;
    let (first, second) = tokio::join!(dig(&dns, "a.example.org A"), async {
        eventually("the first is under way", async || slow.count() == 1).await;
        dig(&dns, "b.example.org A").await
    });
    assert!(first.contains("192.0.2.1") && second.contains("status: SERVFAIL"), "{first}{second}");
    assert_eq!(dns.counted("coredns_forward_max_concurrent_rejects_total", ""), 1.0);
    // The place is free again.
    assert!(dig(&dns, "b.example.org A").await.contains("192.0.2.1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_kept_with_their_age_also_negative_ones() {
    let fake = Fake::start(Manner::Address(ONE, 3000)).await;
    let dns = start(&[&fake], |_| ()).await;
    dig(&dns, "a.example.org A").await;
    eventually("it ages", async || {
        let answer = plain(&dns, "A.example.org A").await;
        let ttl = answer.split(" A.example.org. ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u32>().ok());
        ttl.is_some_and(|ttl| (2900..3000).contains(&ttl))
    })
    .await;
    assert_eq!(fake.count(), 1);
    fake.be(Manner::NoName(100));
    for _ in 0..3 {
        let none = dig(&dns, "none.example.org A").await;
        assert!(none.contains("status: NXDOMAIN") && none.contains("SOA"), "{none}");
    }
    assert_eq!(fake.count(), 2);
    assert_eq!(dns.counted("coredns_cache_hits_total", "denial"), 2.0);
    assert!(dns.counted("coredns_cache_hits_total", "success") >= 1.0);
    assert_eq!(dns.counted("coredns_cache_entries", ""), 2.0);
    assert_eq!(dns.counted("coredns_cache_misses_total", ""), 2.0);
    // A failure of the upstream is passed on and not kept.
    fake.be(Manner::Fails);
    assert!(dig(&dns, "b.example.org A").await.contains("status: SERVFAIL"));
    fake.be(Manner::Address(TWO, 60));
    assert!(dig(&dns, "b.example.org A").await.contains("192.0.2.2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_past_their_end_are_given_when_upstreams_fail() {
    for stale_immediately in [false, true] {
        let fake = Fake::start(Manner::Address(ONE, 1)).await;
        let cache = DnsCache { min_ttl: 1, prefetch_amount: 0, stale_immediately, ..DnsCache::default() };
        let dns = start(&[&fake], |s| s.cache = cache).await;
        assert!(dig(&dns, "a.example.org A").await.contains("192.0.2.1"));
        fake.be(Manner::Silent);
        eventually("a stale answer", async || {
            let answer = plain(&dns, "a.example.org A").await;
            assert!(answer.contains("192.0.2.1"), "{answer}");
            answer.contains("a.example.org. 30 IN")
        })
        .await;
        assert!(dns.counted("coredns_cache_served_stale_total", "") > 0.0);
        // What never was known fails.
        let unknown = dig(&dns, "b.example.org A").await;
        assert!(unknown.contains("status: SERVFAIL"), "{unknown}");
        // A better answer takes its place.
        fake.be(Manner::Address(TWO, 60));
        eventually("the new answer", async || dig(&dns, "a.example.org A").await.contains("192.0.2.2")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn popular_answers_are_fetched_before_they_end() {
    let fake = Fake::start(Manner::Address(ONE, 60)).await;
    // From the first: all of its time counts as near its end.
    let cache = DnsCache { prefetch_amount: 3, prefetch_percentage: 100, ..DnsCache::default() };
    let dns = start(&[&fake], |s| s.cache = cache).await;
    for _ in 0..3 {
        dig(&dns, "a.example.org A").await;
    }
    assert_eq!(fake.count(), 1, "not popular yet");
    fake.be(Manner::Address(TWO, 60));
    assert!(dig(&dns, "a.example.org A").await.contains("192.0.2.1"), "who asks does not wait");
    eventually("the fetched answer", async || dig(&dns, "a.example.org A").await.contains("192.0.2.2")).await;
    assert!(dns.counted("coredns_cache_prefetch_total", "") >= 1.0);
}
