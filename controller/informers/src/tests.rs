//! Copies against an API in memory, and against any history of a watch.

use super::*;
use futures::FutureExt;
use http::{Request, Response};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::client::Body;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

fn map(name: &str, version: u32) -> ConfigMap {
    let meta =
        serde_json::json!({ "metadata": { "name": name, "namespace": "n", "resourceVersion": version.to_string() } });
    serde_json::from_value(meta).unwrap()
}

fn item(name: &str, version: u32) -> Item {
    match erase(Event::Apply(map(name, version)), |_| {}) {
        Event::Apply(item) => item,
        _ => unreachable!(),
    }
}

/// A copy whose watch is played by the test.
fn played() -> (Informer<ConfigMap>, mpsc::UnboundedSender<Event<Item>>) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let events = futures::stream::poll_fn(move |context| receiver.poll_recv(context)).map(Ok);
    (Informer::of(Store::start("ConfigMap".to_owned(), events.boxed())), sender)
}

/// What a reader makes of what it is told.
#[derive(Default)]
struct Reader {
    objects: BTreeMap<String, String>,
    listing: BTreeMap<String, String>,
    lists: usize,
    changes: usize,
}

impl Reader {
    fn take(&mut self, event: Event<Arc<ConfigMap>>) {
        let read = |map: &ConfigMap| {
            (map.metadata.name.clone().unwrap(), map.metadata.resource_version.clone().unwrap_or_default())
        };
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(map) => self.listing.extend([read(&map)]),
            Event::InitDone => {
                self.objects = std::mem::take(&mut self.listing);
                self.lists += 1;
            }
            Event::Apply(map) => {
                self.changes += 1;
                self.objects.extend([read(&map)]);
            }
            Event::Delete(map) => {
                self.changes += 1;
                assert!(self.objects.remove(&read(&map).0).is_some(), "it was told of what goes");
            }
        }
    }

    /// Takes all that is there; returns whether the subscription goes on.
    fn take_all(&mut self, events: &mut Subscription<ConfigMap>) -> bool {
        while let Some(event) = events.next().now_or_never() {
            match event {
                Some(event) => self.take(event),
                None => return false,
            }
        }
        true
    }
}

fn known(informer: &Informer<ConfigMap>) -> BTreeMap<String, String> {
    let mut reader = Reader::default();
    informer.list().into_iter().for_each(|map| reader.take(Event::Apply(map)));
    reader.objects
}

/// Lets the copy's task run.
async fn settle() {
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
}

/// An API with an answer for each request, which counts them.
fn client(answer: fn(usize, &str) -> String) -> (Client, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let number = counted.fetch_add(1, Ordering::SeqCst);
        let text = answer(number, &request.uri().to_string());
        async move {
            if text.is_empty() {
                std::future::pending::<()>().await;
            }
            Ok::<_, std::io::Error>(Response::new(Body::from(text.into_bytes())))
        }
    });
    (Client::new(service, "default"), count)
}

#[tokio::test(start_paused = true)]
async fn many_readers_ask_once_and_share_what_is_read() {
    let (client, count) = client(|number, uri| match number {
        0 => {
            assert!(!uri.contains("watch"), "{uri}");
            r#"{"metadata":{"resourceVersion":"5"},"items":[{"metadata":{"name":"a","namespace":"n","resourceVersion":"3",
                "managedFields":[{"manager":"m"}]}}]}"#
                .to_owned()
        }
        // The watch stays open, without news.
        _ => String::new(),
    });
    let informers = Informers::new(client);
    let (first, second) = (informers.all::<ConfigMap>(), informers.clone().all::<ConfigMap>());
    assert!(first.synced().await && second.synced().await);
    let (mut one, mut two) = (first.subscribe(), second.subscribe());
    let mut told = Vec::new();
    for events in [&mut one, &mut two] {
        assert!(matches!(events.next().await, Some(Event::Init)));
        let Some(Event::InitApply(map)) = events.next().await else { panic!("a list has objects") };
        assert!(matches!(events.next().await, Some(Event::InitDone)));
        told.push(map);
    }
    assert!(Arc::ptr_eq(&told[0], &told[1]), "one copy");
    assert!(told[0].metadata.managed_fields.is_none());
    assert!(first.get("n", "a").is_some_and(|map| Arc::ptr_eq(&map, &told[0])));
    assert!(first.get("n", "b").is_none() && first.get("", "a").is_none());
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(count.load(Ordering::SeqCst), 2, "one list, one watch");
    // Nobody reads: the watch ends. Somebody does: there is one again.
    drop((first, second, one, two));
    settle().await;
    let _third = informers.all::<ConfigMap>();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(count.load(Ordering::SeqCst) > 2, "a new watch");
}

#[tokio::test]
async fn who_falls_behind_gets_the_whole_anew() {
    let (informer, source) = played();
    let (mut quick, mut slow) = (informer.subscribe(), informer.subscribe());
    let (mut quickly, mut slowly) = (Reader::default(), Reader::default());
    for event in [Event::Init, Event::InitApply(item("a", 1)), Event::InitDone] {
        source.send(event).unwrap();
    }
    settle().await;
    quickly.take_all(&mut quick);
    slowly.take_all(&mut slow);
    for version in 2..10 + u32::try_from(BACKLOG).unwrap() {
        source.send(Event::Apply(item("b", version))).unwrap();
        settle().await;
        quickly.take_all(&mut quick);
    }
    source.send(Event::Delete(item("a", 1))).unwrap();
    while informer.get("n", "a").is_some() {
        tokio::task::yield_now().await;
    }
    quickly.take_all(&mut quick);
    slowly.take_all(&mut slow);
    assert_eq!((quickly.lists, quickly.changes), (1, 9 + BACKLOG));
    assert_eq!(slowly.lists, 2, "a second list instead of what did not fit");
    assert_eq!(quickly.objects, known(&informer));
    assert_eq!(slowly.objects, known(&informer));
}

#[tokio::test]
async fn some_objects_alone_can_be_followed() {
    let (informer, source) = played();
    let mut events = informer.subscribe_where(|map| map.metadata.resource_version.as_deref() < Some("5"));
    for event in [Event::Init, Event::InitApply(item("a", 1)), Event::InitApply(item("b", 7)), Event::InitDone] {
        source.send(event).unwrap();
    }
    assert!(matches!(events.next().await, Some(Event::Init)));
    source.send(Event::Apply(item("b", 8))).unwrap();
    source.send(Event::Apply(item("a", 6))).unwrap();
    source.send(Event::Apply(item("b", 2))).unwrap();
    source.send(Event::Delete(item("a", 6))).unwrap();
    source.send(Event::Delete(item("b", 2))).unwrap();
    let mut told = Vec::new();
    while told.len() < 5 {
        let name = |map: Arc<ConfigMap>| map.metadata.name.clone().unwrap();
        told.push(match events.next().await.unwrap() {
            Event::Init => "init".to_owned(),
            Event::InitDone => "done".to_owned(),
            Event::InitApply(map) => format!("({})", name(map)),
            Event::Apply(map) => format!("+{}", name(map)),
            Event::Delete(map) => format!("-{}", name(map)),
        });
    }
    assert_eq!(told, ["(a)", "done", "-a", "+b", "-b"]);
}

#[tokio::test]
async fn another_object_of_the_same_name_is_not_the_same_object() {
    let (informer, source) = played();
    let mut events = informer.subscribe();
    let of = |uid: &str, version| Item { uid: Some(uid.to_owned()), ..item("a", version) };
    for event in [Event::Init, Event::InitApply(of("one", 1)), Event::InitDone] {
        source.send(event).unwrap();
    }
    let mut reader = Reader::default();
    while reader.lists == 0 {
        reader.take(events.next().await.unwrap());
    }
    // Deleted and made anew while the watch was away.
    for event in [Event::Init, Event::InitApply(of("two", 5)), Event::InitDone] {
        source.send(event).unwrap();
    }
    let Some(Event::Delete(old)) = events.next().await else { panic!("the first is gone") };
    assert_eq!(old.metadata.resource_version.as_deref(), Some("1"));
    let Some(Event::Apply(new)) = events.next().await else { panic!("there is another") };
    assert_eq!(new.metadata.resource_version.as_deref(), Some("5"));
}

#[tokio::test]
async fn a_watch_that_ends_ends_its_readers() {
    let (informer, source) = played();
    let mut events = informer.subscribe();
    let waiting = informer.clone();
    let synced = tokio::spawn(async move { waiting.synced().await });
    settle().await;
    drop(source);
    assert!(events.next().await.is_none());
    assert!(!synced.await.unwrap(), "there will be no list");
    assert!(informer.subscribe().next().await.is_none(), "nor for those who come later");
}

/// What happens to a copy and its readers.
#[derive(Debug, Clone)]
enum Step {
    Set(u8),
    Gone(u8),
    /// The watch lists anew; meanwhile these were set and those went.
    Relist(Vec<u8>),
    /// A list that breaks off.
    Broken(Vec<u8>),
    /// A reader looks for so many events.
    Look(usize, u8),
    /// A reader goes, and another comes.
    Replace(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let names = || prop::collection::vec(0u8..6, 0..6);
    let step = prop_oneof![
        4 => (0u8..6).prop_map(Step::Set),
        2 => (0u8..6).prop_map(Step::Gone),
        1 => names().prop_map(Step::Relist),
        1 => names().prop_map(Step::Broken),
        4 => (0usize..3, 0u8..6).prop_map(|(reader, count)| Step::Look(reader, count)),
        1 => (0usize..3).prop_map(Step::Replace),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_history_leaves_readers_with_what_is_there(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (informer, source) = played();
            settle().await;
            let take = |event| informer.store.take(event);
            let mut readers: Vec<_> = (0..3).map(|_| (informer.subscribe(), Reader::default())).collect();
            let mut version = 0;
            let mut next = || { version += 1; version };
            let mut complete = false;
            for step in steps {
                match step {
                    Step::Set(n) if complete => take(Event::Apply(item(&n.to_string(), next()))),
                    Step::Gone(n) if complete => take(Event::Delete(item(&n.to_string(), next()))),
                    Step::Set(_) | Step::Gone(_) => {}
                    Step::Relist(names) | Step::Broken(names) if names.len() % 2 == 1 && !complete => drop(names),
                    Step::Relist(names) => {
                        let before = informer.list();
                        take(Event::Init);
                        names.iter().for_each(|n| take(Event::InitApply(item(&n.to_string(), next()))));
                        // Half of what was there is still there, as it was.
                        for map in before.iter().step_by(2) {
                            take(Event::InitApply(item(
                                map.metadata.name.as_deref().unwrap(),
                                map.metadata.resource_version.as_deref().unwrap().parse().unwrap(),
                            )));
                        }
                        take(Event::InitDone);
                        complete = true;
                    }
                    Step::Broken(names) => {
                        let before = known(&informer);
                        take(Event::Init);
                        names.iter().for_each(|n| take(Event::InitApply(item(&n.to_string(), next()))));
                        assert_eq!(before, known(&informer), "nothing changes before a list is complete");
                    }
                    Step::Look(reader, count) => {
                        let (events, reader) = &mut readers[reader];
                        for _ in 0..count {
                            if let Some(event) = events.next().now_or_never() {
                                reader.take(event.unwrap());
                            }
                        }
                    }
                    Step::Replace(reader) => readers[reader] = (informer.subscribe(), Reader::default()),
                }
            }
            for (events, reader) in &mut readers {
                assert!(reader.take_all(events));
                assert_eq!(reader.objects, known(&informer));
                assert_eq!(reader.lists > 0, complete);
            }
            drop(source);
        });
    }
}
