//! Records through the log, as a reader of the file sees them.

use super::*;
use crate::log::Mode;
use crate::queue::QueueLimits;
use serde_json::{Value, json};
use std::path::Path;

static NO_EXTRA: BTreeMap<String, Vec<String>> = BTreeMap::new();

fn policy(rules: &str) -> Policy {
    Policy::parse(format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: {rules}").as_bytes()).unwrap()
}

fn auditor(path: &Path, rules: &str, mode: Mode) -> Auditor {
    let log = LogConfig { mode, ..LogConfig::new(path.to_owned()) };
    Auditor::start(Config { log: Some(log), max_body_bytes: 4096, ..Config::new(policy(rules)) }).unwrap()
}

fn facts() -> RequestFacts<'static> {
    RequestFacts {
        audit_id: "id-1",
        uri: "/api/v1/namespaces/shop/secrets?dryRun=All",
        path: "/api/v1/namespaces/shop/secrets",
        verb: "create",
        user: Some(User { name: "alice", uid: "u1", groups: &[], extra: &NO_EXTRA }),
        source_ips: &[IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)],
        user_agent: "kubectl",
        resource: Some(Resource { version: "v1", resource: "secrets", namespace: "shop", ..DEFAULT }),
        received: jiff::Timestamp::constant(1_800_000_000, 120_000_000),
        long_running: false,
    }
}

const DEFAULT: Resource<'static> =
    Resource { group: "", version: "", resource: "", subresource: "", namespace: "", name: "" };

fn events(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn stages(events: &[Value]) -> Vec<(&str, u64)> {
    events.iter().map(|e| (e["stage"].as_str().unwrap(), e["responseStatus"]["code"].as_u64().unwrap_or(0))).collect()
}

/// A folder that goes with the value, and the log in it.
struct Dir(#[allow(dead_code, reason = "kept")] tempfile::TempDir, std::path::PathBuf);

fn dir() -> Dir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    Dir(dir, path)
}

#[test]
fn an_event_is_as_upstream_writes_it() {
    let dir = dir();
    let auditor = auditor(&dir.1, "[{level: RequestResponse, omitManagedFields: true}]", Mode::Blocking);
    let groups = ["dev".to_owned()];
    let extra = BTreeMap::from([("scopes".to_owned(), vec!["a".to_owned()])]);
    let user = User { name: "alice", uid: "u1", groups: &groups, extra: &extra };
    let record = auditor.begin(&RequestFacts { user: Some(user), ..facts() }).unwrap().unwrap();
    assert!(record.wants_request() && record.wants_response() && record.level() == Level::RequestResponse);
    let object = json!({"kind": "Secret", "metadata": {"name": "tls", "managedFields": [1], "labels": {"a": "b"}}});
    record.request_object(&object);
    record.impersonated(&User { name: "bob", uid: "", groups: &[], extra: &NO_EXTRA });
    record.annotate("authorization.k8s.io/decision", "allow");
    record.annotate("authorization.k8s.io/decision", "forbid");
    record.response_started(201);
    record.complete(201, Some(&json!({"kind": "List", "items": [object, 1], "rows": [{"object": object}]})));
    record.complete(500, None);
    record.panic();
    drop(record);
    let mut events = events(&dir.1);
    assert_eq!(stages(&events), [("RequestReceived", 0), ("ResponseComplete", 201)]);
    assert_eq!(events[0]["stageTimestamp"], "2027-01-15T08:00:00.120000Z");
    let stamp = events[1].as_object_mut().unwrap().remove("stageTimestamp").unwrap();
    assert_eq!(stamp.as_str().unwrap().len(), "2027-01-15T08:00:00.120000Z".len());
    let lean = json!({"kind": "Secret", "metadata": {"name": "tls", "labels": {"a": "b"}}});
    assert_eq!(
        events[1],
        json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "RequestResponse", "auditID": "id-1",
            "stage": "ResponseComplete", "requestURI": "/api/v1/namespaces/shop/secrets?dryRun=All", "verb": "create",
            "user": {"username": "alice", "uid": "u1", "groups": ["dev"], "extra": {"scopes": ["a"]}},
            "impersonatedUser": {"username": "bob"}, "sourceIPs": ["127.0.0.1"], "userAgent": "kubectl",
            "objectRef": {"resource": "secrets", "namespace": "shop", "name": "tls", "apiVersion": "v1"},
            "responseStatus": {"metadata": {}, "code": 201}, "requestObject": lean,
            "responseObject": {"kind": "List", "items": [lean, 1], "rows": [{"object": lean}]},
            "requestReceivedTimestamp": "2027-01-15T08:00:00.120000Z",
            "annotations": {"authorization.k8s.io/decision": "allow"},
        })
    );
    let figures = auditor.figures();
    assert_eq!((figures.events, figures.logged, figures.requests), (2, 2, [0, 0, 0, 1]));
}

#[test]
fn metadata_has_no_bodies_but_names_and_statuses() {
    let dir = dir();
    let auditor = auditor(&dir.1, "[{level: Metadata}]", Mode::Blocking);
    let record = auditor.begin(&facts()).unwrap().unwrap();
    assert!(!record.wants_request() && !record.wants_response());
    record.request_object(&json!({"metadata": {"name": "tls", "uid": "u"}, "data": {"key": "c2VjcmV0"}}));
    record.request_patch(&json!([{"op": "add", "path": "/data/key", "value": "c2VjcmV0"}]));
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "AlreadyExists",
        "message": "secrets \"tls\" already exists", "code": 409, "details": {"name": "tls", "kind": "secrets"}});
    record.complete(409, Some(&status));
    let record = auditor.begin(&facts()).unwrap().unwrap();
    record.complete(200, Some(&json!({"kind": "Secret", "message": "no Status", "data": {"key": "c2VjcmV0"}})));
    let text = std::fs::read_to_string(&dir.1).unwrap();
    assert!(
        !text.contains("c2VjcmV0") && !text.contains("requestObject") && !text.contains("responseObject"),
        "{text}"
    );
    let events = events(&dir.1);
    let expected = json!({"metadata": {}, "status": "Failure", "reason": "AlreadyExists", "code": 409,
        "message": "secrets \"tls\" already exists", "details": {"name": "tls", "kind": "secrets"}});
    assert_eq!(events[1]["responseStatus"], expected);
    assert_eq!(events[1]["objectRef"]["name"], "tls");
    assert_eq!(events[1]["objectRef"]["uid"], "u");
    assert_eq!(events[3]["responseStatus"], json!({"metadata": {}, "code": 200}));
}

#[test]
fn nothing_of_what_is_not_asked_for() {
    let dir = dir();
    let auditor = auditor(
        &dir.1,
        "[{level: None, verbs: [create]}, {level: Metadata, omitStages: [RequestReceived, ResponseStarted]}]",
        Mode::Blocking,
    );
    assert!(auditor.begin(&facts()).unwrap().is_none());
    assert!(events(&dir.1).is_empty());
    let watch = RequestFacts { verb: "watch", long_running: true, ..facts() };
    let record = auditor.begin(&watch).unwrap().unwrap();
    record.response_started(200);
    record.complete(200, None);
    assert_eq!(stages(&events(&dir.1)), [("ResponseComplete", 200)]);
    assert_eq!(auditor.figures().requests, [1, 1, 0, 0]);
}

#[test]
fn every_end_has_its_event() {
    let watch = RequestFacts { verb: "watch", long_running: true, ..facts() };
    type End = fn(crate::Record);
    let started: End = |r| r.response_started(200);
    let twice: End = |r| {
        r.response_started(200);
        r.response_started(500);
        let other = r.clone();
        drop(r);
        other.complete(200, None);
    };
    let panics: End = |r| {
        let unwound = std::thread::spawn(move || {
            let _held = r;
            panic!("as asked");
        });
        assert!(unwound.join().is_err());
    };
    type Case<'a> = (&'a str, RequestFacts<'a>, End, &'a [(&'a str, u64)]);
    let cases: [Case<'_>; 8] = [
        ("left before an answer", facts(), drop, &[("ResponseComplete", 200)]),
        ("left in the middle", facts(), started, &[("ResponseComplete", 200)]),
        ("a watch left before an answer", watch, drop, &[("ResponseStarted", 200), ("ResponseComplete", 200)]),
        ("a watch left", watch, started, &[("ResponseStarted", 200), ("ResponseComplete", 200)]),
        ("a watch through", watch, twice, &[("ResponseStarted", 200), ("ResponseComplete", 200)]),
        ("a watch refused", watch, |r| r.complete(410, None), &[("ResponseStarted", 410), ("ResponseComplete", 410)]),
        ("told to have panicked", facts(), |r| r.panic(), &[("Panic", 500)]),
        ("unwinding", facts(), panics, &[("Panic", 500)]),
    ];
    for (name, facts, end, expected) in cases {
        let dir = dir();
        let auditor = auditor(&dir.1, "[{level: Metadata}]", Mode::Blocking);
        end(auditor.begin(&facts).unwrap().unwrap());
        assert_eq!(stages(&events(&dir.1))[1..], *expected, "{name}");
    }
}

#[test]
fn failed_authentication_has_one_event_without_a_user() {
    let dir = dir();
    let auditor = auditor(&dir.1, "[{level: Request, users: [alice]}, {level: Metadata}]", Mode::Blocking);
    auditor.authentication_failed(&facts(), 401, "bearer");
    auditor.authentication_failed(&facts(), 401, "");
    let events = events(&dir.1);
    assert_eq!(stages(&events), [("ResponseStarted", 401), ("ResponseStarted", 401)]);
    assert_eq!(events[0]["responseStatus"]["message"], "Authentication failed, attempted: bearer");
    assert_eq!(events[1]["responseStatus"]["message"], "Authentication failed, no credentials provided");
    assert_eq!((&events[0]["user"], &events[0]["level"]), (&json!({}), &json!("Metadata")));
}

#[test]
fn whatever_a_client_sends_the_event_is_written_and_small() {
    let dir = dir();
    let auditor = auditor(&dir.1, "[{level: RequestResponse}]", Mode::Blocking);
    // A control character takes six bytes as JSON.
    let huge = "\u{1}".repeat(1 << 20);
    let groups = vec!["g".repeat(100); 100_000];
    let extra: BTreeMap<_, _> = (0..10_000).map(|i| (format!("k{i}"), vec![huge[..64].to_owned(); 4])).collect();
    let resource =
        Resource { group: &huge, version: &huge, resource: &huge, subresource: &huge, namespace: &huge, name: &huge };
    let user = User { name: &huge, uid: &huge, groups: &groups, extra: &extra };
    let addresses: Vec<IpAddr> = (0..100_000).map(|i| IpAddr::from(std::net::Ipv4Addr::from(i))).collect();
    let hostile = RequestFacts {
        audit_id: &huge,
        uri: &huge,
        verb: &huge,
        user_agent: &huge,
        user: Some(user),
        source_ips: &addresses,
        resource: Some(resource),
        ..facts()
    };
    let record = auditor.begin(&hostile).unwrap().unwrap();
    record.impersonated(&user);
    for i in 0..1000 {
        record.annotate(&format!("{i}{huge}"), &huge);
    }
    let object = json!({"kind": "Status", "apiVersion": "v1", "status": huge, "message": huge, "reason": huge,
        "details": huge, "metadata": {"name": huge, "uid": huge, "resourceVersion": huge}});
    record.request_object(&object);
    record.complete(u16::MAX, Some(&object));
    let text = std::fs::read_to_string(&dir.1).unwrap();
    let longest = text.lines().map(str::len).max().unwrap();
    assert!(longest < 1 << 20, "{longest}");
    let events = events(&dir.1);
    assert_eq!(events.len(), 2);
    assert_eq!(events[1]["annotations"]["audit.k8s.io/truncated"], "true");
    assert!(events[1].get("requestObject").is_none() && events[1].get("responseObject").is_none());
    assert_eq!(events[1]["userAgent"].as_str().unwrap(), format!("{}...TRUNCATED", &huge[..1024]));
    assert_eq!(events[1]["sourceIPs"].as_array().unwrap().last().unwrap(), "0.1.134.159", "the connection's own");
    assert_eq!(events[1]["auditID"].as_str().unwrap().len(), 36, "another was made up");
}

#[test]
fn audit_ids() {
    for id in ["a", &"x".repeat(64), "f5c0-1"] {
        assert_eq!(audit_id(Some(id)), id);
    }
    for id in [None, Some(""), Some("a b"), Some("a\nb"), Some("é"), Some(&*"x".repeat(65))] {
        assert_eq!(audit_id(id).len(), 36, "{id:?}");
    }
}

#[test]
fn a_strict_log_that_fails_refuses_requests() {
    for (mode, refused) in [(Mode::BlockingStrict, true), (Mode::Blocking, false)] {
        let dir = dir();
        let log = LogConfig {
            mode,
            // The first event fills the file, the second has to rotate it.
            rotation: crate::rotate::Options { max_bytes: 1, ..Default::default() },
            ..LogConfig::new(dir.1.clone())
        };
        let auditor = Auditor::start(Config { log: Some(log), ..Config::new(policy("[{level: Metadata}]")) }).unwrap();
        drop(auditor.begin(&facts()).unwrap());
        assert_eq!((auditor.figures().log_failed, auditor.figures().logged), (0, 2));
        // The descriptor cannot be made to fail without a full disk: /dev/full is one.
        auditor.0.log.as_ref().unwrap().fill_up();
        let begun = auditor.begin(&facts());
        assert_eq!(matches!(begun, Err(AuditError::NotStored)), refused, "{mode:?}");
        drop(begun);
        let figures = auditor.figures();
        assert_eq!((figures.rejected, figures.log_failed), if refused { (1, 1) } else { (0, 2) }, "{mode:?}");
    }
}

#[tokio::test]
async fn batches_are_written_until_shutdown_and_not_after() {
    let dir = dir();
    let auditor = auditor(&dir.1, "[{level: Metadata, omitStages: [RequestReceived]}]", Mode::Batch);
    for _ in 0..1000 {
        auditor.begin(&facts()).unwrap().unwrap().complete(200, None);
    }
    assert_eq!(auditor.shutdown(Duration::from_secs(10)).await, 0);
    assert_eq!(events(&dir.1).len(), 1000);
    auditor.begin(&facts()).unwrap().unwrap().complete(200, None);
    assert_eq!(auditor.shutdown(Duration::from_secs(10)).await, 0);
    let figures = auditor.figures();
    assert_eq!((figures.logged, figures.log_overflowed, figures.log_failed, figures.events), (1000, 1, 0, 1001));
}

#[tokio::test]
#[allow(clippy::await_holding_lock, reason = "only the log's own thread waits for it")]
async fn a_full_queue_never_holds_a_request() {
    let dir = dir();
    let log = LogConfig { queue: QueueLimits { events: 8, bytes: 1 << 20 }, ..LogConfig::new(dir.1.clone()) };
    let rules = policy("[{level: Metadata, omitStages: [RequestReceived]}]");
    let auditor = Auditor::start(Config { log: Some(log), ..Config::new(rules) }).unwrap();
    // As a disk that hangs.
    let held = auditor.0.log.as_ref().unwrap().hold();
    for _ in 0..100 {
        auditor.begin(&facts()).unwrap().unwrap().complete(200, None);
    }
    let lost = auditor.figures().log_overflowed;
    assert!((83..=92).contains(&lost), "eight wait, some are in the worker's hands: {lost}");
    let left = auditor.shutdown(Duration::from_millis(50)).await;
    assert_eq!(left + lost, 100);
    assert_eq!(auditor.figures().log_failed, left);
    drop(held);
}
