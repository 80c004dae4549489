//! Who waits for whom.

use super::*;
use crate::Reason;
use tokio::time::Instant;

/// Keeps as many requests under way as it can; each takes `took`.
fn flood(
    dispatcher: &Dispatcher,
    group: &str,
    user: &str,
    requests: usize,
    took: Duration,
) -> Vec<tokio::task::JoinHandle<()>> {
    let one = || {
        let (dispatcher, group, user) = (dispatcher.clone(), group.to_owned(), user.to_owned());
        tokio::spawn(async move {
            loop {
                match admit(&dispatcher, &group, &user, 1).await {
                    Ok(seat) => {
                        tokio::time::sleep(took).await;
                        drop(seat);
                    }
                    Err(e) => tokio::time::sleep(Duration::from_secs(e.retry_after_seconds.into())).await,
                }
            }
        })
    };
    (0..requests).map(|_| one()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_thousand_requests_of_one_user_do_not_delay_another() {
    let levels = [queue("level", 100, 0, [64, 6, 1000])];
    let dispatcher = configured(20, &[schema("level", "level")], &levels);
    let seats = level(&dispatcher.snapshot(), "level").nominal;
    let took = Duration::from_millis(100);
    let tasks = flood(&dispatcher, "level", "mallory", 1000, took);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(level(&dispatcher.snapshot(), "level").in_queue > 900);
    let mut worst = Duration::ZERO;
    for _ in 0..20 {
        let start = Instant::now();
        let seat = admit(&dispatcher, "level", "alice", 1).await.unwrap();
        worst = worst.max(start.elapsed());
        tokio::time::sleep(took).await;
        drop(seat);
    }
    // A seat comes free at least every 100 ms; behind a thousand others at 19 seats it would be five seconds.
    assert!(worst <= took, "{worst:?} with {seats} seats");
    consistent(&dispatcher.snapshot());
    tasks.iter().for_each(|t| t.abort());
    for t in tasks {
        let _ = t.await;
    }
    let snapshot = dispatcher.snapshot();
    assert_eq!((level(&snapshot, "level").in_queue, level(&snapshot, "level").executing), (0, 0));
    consistent(&snapshot);
}

#[tokio::test(start_paused = true)]
async fn flows_share_by_seats_and_time() {
    let levels = [queue("level", 1000, 0, [1000, 1, 1000])];
    let dispatcher = configured(60, &[schema("level", "level")], &levels);
    // One takes three times as long for each: it gets a third of the requests, and the same seat-time.
    let long = flood(&dispatcher, "level", "long", 200, Duration::from_millis(300));
    let short = flood(&dispatcher, "level", "short", 200, Duration::from_millis(100));
    tokio::time::sleep(Duration::from_secs(60)).await;
    // 60 seats over 60 s: 3600 seat-seconds, half for each.
    for t in long.iter().chain(&short) {
        t.abort();
    }
    let flow = flow(&dispatcher.snapshot(), "level");
    let (total, seat_seconds) = (flow.dispatched as f64, flow.executed.as_secs_f64());
    assert!((3400.0..=3700.0).contains(&seat_seconds), "{seat_seconds}");
    // Half of the time in long ones and half in short ones: 1800 / 0.3 + 1800 / 0.1.
    assert!((total - 24_000.0).abs() < 1500.0, "{total}");
}

#[tokio::test(start_paused = true)]
async fn nodes_do_not_wait_behind_workloads() {
    let dispatcher = Dispatcher::new(600);
    let mut floods = Vec::new();
    for i in 0..40 {
        let user = format!("system:serviceaccount:ns{i}:bad");
        floods.extend(flood(&dispatcher, "system:serviceaccounts", &user, 100, Duration::from_secs(5)));
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    let busy = dispatcher.snapshot();
    let low = level(&busy, "workload-low");
    // All that is lent, and no more.
    let kept: u64 = busy.levels.iter().filter(|l| &*l.level != "workload-low").map(|l| l.lower).sum();
    assert_eq!((low.executing_seats, low.in_queue > 500), (busy.seats - kept, true), "{low:?}");
    // Half of what node-high is never without, at once and together; then a lease of each of many nodes.
    let groups = ["system:nodes".to_owned()];
    for node in 0..500 {
        let user = format!("system:node:{node}");
        let facts = Facts {
            user: &user,
            groups: &groups,
            verb: "update",
            api_group: "coordination.k8s.io",
            resource: "leases",
            namespace: "kube-node-lease",
            is_resource: true,
            ..Facts::default()
        };
        let start = Instant::now();
        let seat = dispatcher.admit(&facts, Width::one()).await.unwrap();
        assert_eq!((&*seat.flow().level, start.elapsed()), ("node-high", Duration::ZERO));
    }
    floods.iter().for_each(|t| t.abort());
}

#[tokio::test(start_paused = true)]
async fn what_was_lent_comes_back_first() {
    // Two levels of 10 that lend everything.
    let levels = [queue("a", 10, 100, [8, 1, 100]), queue("b", 10, 100, [8, 1, 100])];
    let dispatcher = configured(25, &[schema("a", "a"), schema("b", "b")], &levels);
    let own = level(&dispatcher.snapshot(), "a").nominal;
    let mut held = Vec::new();
    while let Some(Ok(seat)) = at_once(&dispatcher, "b", "u") {
        held.push(seat);
    }
    assert_eq!(held.len() as u64, own * 2, "all but what catch-all keeps");
    let greedy: Vec<_> = (0..20).map(|_| ask(&dispatcher, "b", "u", 1)).collect();
    settle().await;
    let lender: Vec<_> = (0..20).map(|_| ask(&dispatcher, "a", "u", 1)).collect();
    settle().await;
    assert_eq!(level(&dispatcher.snapshot(), "a").executing, 0);
    // Whatever b frees goes to a, until a has its own.
    for i in 1..=own {
        held.pop();
        settle().await;
        let snapshot = dispatcher.snapshot();
        assert_eq!(level(&snapshot, "a").executing, i);
        assert_eq!(level(&snapshot, "b").executing, held.len() as u64);
        consistent(&snapshot);
    }
    held.pop();
    settle().await;
    // Now both wait with their own in use; b has one less of it.
    assert_eq!(
        (level(&dispatcher.snapshot(), "a").executing, level(&dispatcher.snapshot(), "b").executing),
        (own, own)
    );
    greedy.iter().chain(&lender).for_each(|t| t.abort());
}

#[tokio::test(start_paused = true)]
async fn full_queues_and_long_waits_are_rejected_with_their_reason() {
    let levels = [queue("level", 5, 0, [1, 1, 3])];
    let dispatcher = configured(2, &[schema("level", "level")], &levels);
    assert_eq!(level(&dispatcher.snapshot(), "level").nominal, 1);
    let seat = at_once(&dispatcher, "level", "u").unwrap().unwrap();
    assert_eq!((&*seat.flow().schema_uid, &*seat.flow().level_uid), ("uid-level", "uid-level"));
    let waiting: Vec<_> = (0..3).map(|_| ask(&dispatcher, "level", "u", 1)).collect();
    settle().await;
    let rejected = at_once(&dispatcher, "level", "u").unwrap().unwrap_err();
    assert_eq!((rejected.reason, rejected.retry_after_seconds), (Reason::QueueFull, 1));
    assert_eq!(rejected.to_string(), "rejected by priority level \"level\" (flow schema \"level\"): queue-full");
    let start = Instant::now();
    for w in waiting {
        assert_eq!(w.await.unwrap().unwrap_err().reason, Reason::TimeOut);
    }
    assert!((Duration::from_secs(14)..Duration::from_secs(16)).contains(&start.elapsed()), "{:?}", start.elapsed());
    // A level without queues: catch-all.
    let one = at_once(&dispatcher, "nobody", "u").unwrap().unwrap();
    assert_eq!(at_once(&dispatcher, "nobody", "u").unwrap().unwrap_err().reason, Reason::ConcurrencyLimit);
    drop((one, seat));
    let snapshot = dispatcher.snapshot();
    let f = flow(&snapshot, "level");
    assert_eq!((f.dispatched, f.queue_full, f.time_out, f.cancelled, f.in_queue), (1, 1, 3, 0, 0));
    assert!(f.waited >= Duration::from_secs(45), "{:?}", f.waited);
    assert_eq!(flow(&snapshot, "catch-all").concurrency_limit, 1);
    consistent(&snapshot);
}

#[tokio::test(start_paused = true)]
async fn a_wide_request_gets_its_seats_in_the_end() {
    let levels = [queue("level", 95, 0, [16, 2, 1000])];
    let dispatcher = configured(100, &[schema("level", "level")], &levels);
    // 95 seats: 15 % of them is the widest.
    let tasks = flood(&dispatcher, "level", "narrow", 500, Duration::from_millis(100));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = Instant::now();
    let seat = admit(&dispatcher, "level", "wide", 100).await.unwrap();
    assert_eq!(seat.seats(), 15);
    assert!(start.elapsed() <= Duration::from_millis(200), "{:?}", start.elapsed());
    tasks.iter().for_each(|t| t.abort());
}

#[tokio::test(start_paused = true)]
async fn exempt_requests_never_wait() {
    let dispatcher = Dispatcher::new(10);
    let seats: Vec<_> = (0..1000).map(|_| at_once(&dispatcher, "system:masters", "admin").unwrap().unwrap()).collect();
    let snapshot = dispatcher.snapshot();
    assert_eq!(level(&snapshot, "exempt").executing, 1000);
    consistent(&snapshot);
    // Others keep what they never lend.
    let node = at_once(&dispatcher, "system:nodes", "system:node:a").unwrap().unwrap();
    drop((seats, node));
    assert_eq!(level(&dispatcher.snapshot(), "exempt").executing_seats, 0);
}
