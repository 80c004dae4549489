//! The dispatcher as a whole: who is classified as what, who waits for whom, and that no seat is ever lost.

mod classes;
mod cost;
mod fairness;
mod random;
mod reconfigure;

use crate::{Dispatcher, Facts, FlowCounters, LevelCounters, Rejected, Seat, Snapshot, Width};
use serde_json::{Value, json};
use std::task::Poll;
use std::time::Duration;

/// A level that lets requests wait.
fn queue(name: &str, shares: u32, lendable: u32, [queues, hand, length]: [u32; 3]) -> Value {
    let queuing = json!({"queues": queues, "handSize": hand, "queueLengthLimit": length});
    let limited = json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable,
        "limitResponse": {"type": "Queue", "queuing": queuing}});
    json!({"kind": "PriorityLevelConfiguration", "metadata": {"name": name, "uid": format!("uid-{name}")},
        "spec": {"type": "Limited", "limited": limited}})
}

/// A schema for the users of a group named as it is; each user is a flow.
fn schema(name: &str, level: &str) -> Value {
    let rule = json!({"subjects": [{"kind": "Group", "group": {"name": name}}],
        "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"],
            "clusterScope": true}]});
    json!({"kind": "FlowSchema", "metadata": {"name": name, "uid": format!("uid-{name}")},
        "spec": {"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": 100,
            "distinguisherMethod": {"type": "ByUser"}, "rules": [rule]}})
}

fn configured(seats: u32, schemas: &[Value], levels: &[Value]) -> Dispatcher {
    let dispatcher = Dispatcher::new(seats);
    let applied = dispatcher.configure(schemas, levels, seats);
    assert!(applied.ignored.is_empty() && !applied.dangling.values().any(|d| *d), "{applied:?}");
    dispatcher
}

/// Asks for seats as a user of a group, in a task of its own.
fn ask(
    dispatcher: &Dispatcher,
    group: &str,
    user: &str,
    seats: u32,
) -> tokio::task::JoinHandle<Result<Seat, Rejected>> {
    let (dispatcher, group, user) = (dispatcher.clone(), group.to_owned(), user.to_owned());
    tokio::spawn(async move { admit(&dispatcher, &group, &user, seats).await })
}

async fn admit(dispatcher: &Dispatcher, group: &str, user: &str, seats: u32) -> Result<Seat, Rejected> {
    let groups = [group.to_owned()];
    let facts = Facts { user, groups: &groups, verb: "get", resource: "pods", is_resource: true, ..Facts::default() };
    dispatcher.admit(&facts, Width { seats, ..Width::one() }).await
}

/// What is there without waiting.
fn at_once(dispatcher: &Dispatcher, group: &str, user: &str) -> Option<Result<Seat, Rejected>> {
    let future = std::pin::pin!(admit(dispatcher, group, user, 1));
    match poll_once(future) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}

fn poll_once<F: Future + ?Sized>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
}

fn level(snapshot: &Snapshot, name: &str) -> LevelCounters {
    snapshot.levels.iter().find(|l| &*l.level == name).cloned().unwrap_or_default()
}

fn flow(snapshot: &Snapshot, schema: &str) -> FlowCounters {
    snapshot.flows.iter().find(|f| &*f.schema == schema).cloned().unwrap_or_default()
}

/// Lets all tasks run as far as they get.
async fn settle() {
    tokio::time::sleep(Duration::from_nanos(1)).await;
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// What must hold at any time; at rest, nothing is used and nobody waits.
fn consistent(snapshot: &Snapshot) {
    let mut held = 0;
    for l in &snapshot.levels {
        held += l.executing_seats.max(l.lower);
        let flows = snapshot.flows.iter().filter(|f| f.level == l.level);
        let sums = flows.fold((0, 0, 0), |(q, e, s), f| (q + f.in_queue, e + f.executing, s + f.executing_seats));
        assert_eq!(sums, (l.in_queue, l.executing, l.executing_seats), "{}: flows and level", l.level);
    }
    assert_eq!(held, snapshot.held, "the pool's own sum");
}
