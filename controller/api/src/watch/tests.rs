//! A watch against an API that refuses, answers and sends what cannot be read.

use super::*;
use http::{Request, Response};
use kube::client::Body;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A client whose requests are answered by `answer`, which is told how many there were before.
fn client(answer: fn(usize, &str) -> (u16, String)) -> (Client, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let number = counted.fetch_add(1, Ordering::SeqCst);
        let (code, text) = answer(number, &request.uri().to_string());
        async move {
            let body = Body::from(text.into_bytes());
            Ok::<_, std::io::Error>(Response::builder().status(code).body(body).unwrap())
        }
    });
    (Client::new(service, "default"), count)
}

#[test]
fn common_kinds_are_read() {
    assert!(COMMON.iter().all(|reads| reads(r#"{"metadata":{"name":"x"}}"#) && !reads("[7]")));
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_asked_ever_more_slowly() {
    let (client, count) = client(|_, _| {
        let refused = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}"#;
        (403, refused.to_owned())
    });
    let watched = watch(Api::<ConfigMap>::all(client), Config::default());
    let minute = tokio::time::timeout(Duration::from_secs(60), watched.for_each(|_| async {}));
    assert!(minute.await.is_err(), "a watch never ends");
    let asked = count.load(Ordering::SeqCst);
    assert!((12..=28).contains(&asked), "{asked} requests in a minute");
}

/// Attempts in a minute at an API that cannot be reached: `after` so long, each attempt fails.
async fn attempts(after: Duration) -> usize {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let service = tower::service_fn(move |_: Request<Body>| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            tokio::time::sleep(after).await;
            Err::<Response<Body>, _>(std::io::Error::from(std::io::ErrorKind::ConnectionRefused))
        }
    });
    let watched = watch(Api::<ConfigMap>::all(Client::new(service, "default")), Config::default());
    let minute = tokio::time::timeout(Duration::from_secs(60), watched.for_each(|_| async {}));
    assert!(minute.await.is_err(), "a watch never ends");
    count.load(Ordering::SeqCst)
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_reached_is_asked_ever_more_slowly() {
    // Nobody listens there: refused at once.
    let refused = attempts(Duration::ZERO).await;
    assert!((12..=28).contains(&refused), "{refused} attempts in a minute");
    // The network is cut: the connection's pings find that out after some seconds.
    let cut = attempts(Duration::from_secs(5)).await;
    assert!((5..=9).contains(&cut), "{cut} attempts in a minute");
}

#[tokio::test(start_paused = true)]
async fn metadata_is_asked_for_as_slowly() {
    let (client, count) = client(|_, _| (500, String::new()));
    let kind = ApiResource::erase::<ConfigMap>(&());
    let minute = tokio::time::timeout(Duration::from_secs(60), metadata(client, &kind).for_each(|_| async {}));
    assert!(minute.await.is_err(), "a watch never ends");
    let asked = count.load(Ordering::SeqCst);
    assert!((12..=28).contains(&asked), "{asked} requests in a minute");
}

#[tokio::test(start_paused = true)]
async fn one_object_is_there_or_not() {
    let (client, _) = client(|number, uri| match number {
        0 => {
            assert!(uri.contains("metadata.name%3Da"), "{uri}");
            (200, r#"{"metadata":{"resourceVersion":"5"},"items":[]}"#.to_owned())
        }
        1 => {
            let lines = [
                r#"{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"6"}}}"#,
                r#"{"type":"DELETED","object":{"metadata":{"name":"a","resourceVersion":"7"}}}"#,
                r#"{"type":"ERROR","object":{"status":"Failure","reason":"Expired","code":410}}"#,
            ];
            (200, lines.join("\n") + "\n")
        }
        _ => (200, r#"{"metadata":{"resourceVersion":"9"},"items":[{"metadata":{"name":"a"}}]}"#.to_owned()),
    });
    let mut states = one::<ConfigMap>(client, "n", "a");
    let mut there = Vec::new();
    while there.len() < 4 {
        if let Ok(state) = states.next().await.unwrap() {
            there.push(state.is_some());
        }
    }
    assert_eq!(there, [false, true, false, true]);
}

#[tokio::test(start_paused = true)]
async fn lists_and_changes_come_as_objects() {
    let (client, _) = client(|number, uri| match number {
        0 => {
            let list = r#"{"kind":"ConfigMapList","apiVersion":"v1","metadata":{"resourceVersion":"5"},
                "items":[{"metadata":{"name":"a","resourceVersion":"3"},"data":{"k":"v"}}]}"#;
            (200, list.to_owned())
        }
        1 => {
            assert!(uri.contains("resourceVersion=5"), "{uri}");
            let lines = [
                r#"{"type":"ADDED","object":{"metadata":{"name":"b","resourceVersion":"6"}}}"#,
                r#"{"type":"DELETED","object":{"metadata":{"name":"a","resourceVersion":"7"}}}"#,
            ];
            (200, lines.join("\n") + "\n")
        }
        _ => {
            assert!(uri.contains("resourceVersion=7"), "{uri}");
            (200, String::new())
        }
    });
    let mut watched = watch(Api::<ConfigMap>::namespaced(client, "n"), Config::default());
    let mut said = Vec::new();
    while said.len() < 5 {
        said.push(match watched.next().await.unwrap().unwrap() {
            Event::Init => "init".to_owned(),
            Event::InitApply(map) => format!("{:?} {:?}", map.metadata.name, map.data.unwrap().get("k")),
            Event::InitDone => "done".to_owned(),
            Event::Apply(map) => format!("+{:?}", map.metadata.name),
            Event::Delete(map) => format!("-{:?}", map.metadata.name),
        });
    }
    let wanted = ["init", r#"Some("a") Some("v")"#, "done", r#"+Some("b")"#, r#"-Some("a")"#];
    assert_eq!(said, wanted);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_keeps_nothing_else_away() {
    let (client, count) = client(|number, _| match number {
        0 => {
            let list = r#"{"metadata":{"resourceVersion":"5"},"items":[
                {"metadata":{"name":"a"}},{"metadata":{"name":"b"},"data":["no map"]},{"metadata":{"name":"c"}}]}"#;
            (200, list.to_owned())
        }
        1 => {
            let lines = [
                r#"{"type":"MODIFIED","object":{"metadata":{"name":"a","resourceVersion":"6","labels":{"x":7}}}}"#,
                r#"{"type":"MODIFIED","object":{"metadata":{"name":"c","resourceVersion":"7"}}}"#,
            ];
            (200, lines.join("\n") + "\n")
        }
        _ => (200, String::new()),
    });
    let mut watched = watch(Api::<ConfigMap>::all(client), Config::default());
    let mut said = Vec::new();
    while said.len() < 7 {
        said.push(match watched.next().await.unwrap() {
            Ok(Event::InitApply(map)) => map.metadata.name.unwrap(),
            Ok(Event::Apply(map)) => format!("+{}", map.metadata.name.unwrap()),
            Ok(Event::Init) => "init".to_owned(),
            Ok(Event::InitDone) => "done".to_owned(),
            Ok(Event::Delete(_)) => "-".to_owned(),
            Err(_) => "unreadable".to_owned(),
        });
    }
    assert_eq!(said, ["init", "a", "unreadable", "c", "done", "unreadable", "+c"]);
    assert!(count.load(Ordering::SeqCst) <= 3, "nothing is listed anew for it");
}

#[test]
fn nulls_in_maps_and_lists_are_left_out() {
    let text = r#"{"metadata":{"name":"a","labels":{"x":null,"y":"z"},"finalizers":[null,"f"]},"data":{"k":null}}"#;
    let map: ConfigMap = read(text).unwrap();
    assert_eq!(map.metadata.labels.unwrap().into_iter().collect::<Vec<_>>(), [("y".to_owned(), "z".to_owned())]);
    assert_eq!((map.metadata.finalizers.unwrap(), map.data.unwrap().len()), (vec!["f".to_owned()], 0));
}

#[tokio::test(start_paused = true)]
async fn what_forbids_is_not_passed_over() {
    let (client, count) = client(|number, _| {
        let data = if number < 3 { r#"["no map"]"# } else { r#"{"k":"v"}"# };
        let list = format!(
            r#"{{"metadata":{{"resourceVersion":"5"}},"items":[{{"metadata":{{"name":"a"}},"data":{data}}}]}}"#
        );
        (200, list)
    });
    let mut watched = strict(Api::<ConfigMap>::all(client), Config::default());
    for _ in 0..3 {
        assert!(matches!(watched.next().await, Some(Ok(Event::Init))));
        assert!(matches!(watched.next().await, Some(Err(_))));
    }
    assert!(matches!(watched.next().await, Some(Ok(Event::Init))));
    assert!(matches!(watched.next().await, Some(Ok(Event::InitApply(_)))));
    assert!(matches!(watched.next().await, Some(Ok(Event::InitDone))));
    assert_eq!(count.load(Ordering::SeqCst), 4);
}
