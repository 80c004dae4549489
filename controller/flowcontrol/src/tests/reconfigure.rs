//! The configuration changes under requests that run and wait.

use super::*;
use crate::dangling_condition;

#[tokio::test(start_paused = true)]
async fn who_waits_keeps_its_place() {
    let schemas = [schema("a", "a"), schema("b", "b")];
    let levels = [queue("a", 5, 0, [64, 6, 50]), queue("b", 5, 0, [64, 6, 50])];
    let dispatcher = configured(3, &schemas, &levels);
    let first = at_once(&dispatcher, "a", "u").unwrap().unwrap();
    let waiting = ask(&dispatcher, "a", "u", 1);
    settle().await;
    // Fewer and other queues, other shares: it still waits.
    let changed = [queue("a", 1, 0, [2, 1, 1]), levels[1].clone()];
    dispatcher.configure(&schemas, &changed, 3);
    settle().await;
    assert!(!waiting.is_finished());
    // The level goes away altogether: it waits on, and newcomers belong to catch-all.
    let applied = dispatcher.configure(&schemas[1..], &levels[1..], 3);
    assert_eq!(applied.ignored, []);
    let l = level(&dispatcher.snapshot(), "a");
    assert_eq!((l.quiescing, l.in_queue, l.executing), (true, 1, 1));
    let class =
        dispatcher.classify(&Facts { user: "u", groups: &["a".to_owned()], is_resource: true, ..Facts::default() });
    assert_eq!(&*class.flow.level, "catch-all");
    drop(first);
    let seat = waiting.await.unwrap().unwrap();
    assert_eq!(&*seat.flow().level, "a");
    drop(seat);
    let snapshot = dispatcher.snapshot();
    assert!(snapshot.levels.iter().all(|l| &*l.level != "a"), "gone with its last request: {snapshot:?}");
    consistent(&snapshot);
}

#[tokio::test(start_paused = true)]
async fn more_seats_let_more_in_at_once() {
    let (schemas, levels) = ([schema("a", "a")], [queue("a", 95, 0, [64, 6, 50])]);
    let dispatcher = configured(10, &schemas, &levels);
    let tasks: Vec<_> = (0..50).map(|_| ask(&dispatcher, "a", "u", 1)).collect();
    settle().await;
    let before = level(&dispatcher.snapshot(), "a");
    assert_eq!((before.executing, before.in_queue), (10, 40));
    dispatcher.configure(&schemas, &levels, 100);
    settle().await;
    let after = level(&dispatcher.snapshot(), "a");
    assert_eq!((after.executing, after.in_queue), (50, 0));
    // Fewer: nobody is thrown out, and nobody let in.
    dispatcher.configure(&schemas, &levels, 20);
    assert_eq!(level(&dispatcher.snapshot(), "a").executing, 50);
    assert!(at_once(&dispatcher, "a", "v").is_none());
    for t in tasks {
        drop(t.await.unwrap());
    }
    assert!(at_once(&dispatcher, "a", "v").is_some());
    let counters = flow(&dispatcher.snapshot(), "a");
    assert_eq!((counters.dispatched, counters.cancelled), (51, 1), "counters outlive a change");
}

#[test]
fn what_cannot_be_used_is_told() {
    let dispatcher = Dispatcher::new(600);
    let mut tampered = schema("catch-all", "catch-all");
    tampered["spec"]["rules"] = json!([]);
    let mut odd = queue("odd", 1, 0, [2, 1, 1]);
    odd["spec"]["limited"]["limitResponse"]["type"] = json!("Perhaps");
    let mut negative = queue("negative", 1, 0, [2, 1, 1]);
    negative["spec"]["limited"]["nominalConcurrencyShares"] = json!(-1);
    let levels =
        [odd, negative, queue("wide", 1, 0, [1024, 8, 1]), queue("good", 1, 0, [2, 1, 1]), json!({}), json!(3)];
    let applied =
        dispatcher.configure(&[schema("lost", "nowhere"), schema("ok", "good"), tampered, json!([])], &levels, 600);
    let ignored: Vec<_> = applied.ignored.iter().map(|i| (i.name.as_str(), i.kind)).collect();
    let kind = "PriorityLevelConfiguration";
    assert_eq!(ignored, [("odd", kind), ("negative", kind), ("wide", kind), ("", kind), ("", kind)], "{applied:?}");
    assert_eq!((applied.dangling["lost"], applied.dangling["ok"]), (true, false));
    // What is mandatory stays as it is.
    let class = dispatcher.classify(&Facts { user: "u", ..Facts::default() });
    assert_eq!((&*class.flow.schema, &*class.flow.schema_uid), ("catch-all", "uid-catch-all"));
    let condition = dangling_condition(&schema("lost", "nowhere"), true, "2026-01-01T00:00:00Z").unwrap();
    assert_eq!(
        condition["message"],
        "This FlowSchema references the PriorityLevelConfiguration object named \"nowhere\" but there is no such object"
    );
    let mut written = schema("lost", "nowhere");
    written["status"] = json!({"conditions": [condition]});
    assert_eq!(dangling_condition(&written, true, "2026-01-01T00:00:01Z"), None);
    assert_eq!(dangling_condition(&written, false, "2026-01-01T00:00:01Z").unwrap()["status"], "False");
}

#[tokio::test(start_paused = true)]
async fn ten_million_queues_take_no_memory() {
    let level = queue("huge", 5, 0, [10_000_000, 2, 1]);
    let dispatcher = configured(2, &[schema("huge", "huge")], &[level]);
    let _seat = at_once(&dispatcher, "huge", "u").unwrap().unwrap();
    assert!(at_once(&dispatcher, "huge", "v").is_none(), "waits, in one of two queues that exist");
    let names: Vec<Value> = (0..300).map(|i| queue(&format!("l{i}"), 1, 0, [2, 1, 1])).collect();
    let applied = dispatcher.configure(&[], &names, 600);
    assert_eq!(applied.ignored.len(), 100);
    assert!(at_once(&dispatcher, "nobody", "u").unwrap().is_ok());
}
