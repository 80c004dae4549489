//! Following, against a source by hand: who is asked, when, and what is served.

use super::source::{Found, Source};
use super::table::Table;
use super::{Objects, PodObjects};
use crate::inbox::Inbox;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret};
use parking_lot::Mutex;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// One object under every name; or an API that does not answer, where that is an error.
struct Hand<K> {
    now: Mutex<Found<K>>,
    watches: Mutex<Vec<mpsc::UnboundedSender<Found<K>>>>,
    opened: AtomicUsize,
    gets: AtomicUsize,
}

impl<K: Clone> Hand<K> {
    fn new(now: Found<K>) -> Arc<Self> {
        Arc::new(Self {
            now: Mutex::new(now),
            watches: Mutex::default(),
            opened: AtomicUsize::new(0),
            gets: AtomicUsize::new(0),
        })
    }

    /// Changes the object; watches have not heard of it yet.
    fn change(&self, now: Found<K>) {
        *self.now.lock() = now;
    }

    /// Tells the watches.
    fn tell(&self) {
        let now = self.now.lock().clone();
        self.watches.lock().retain(|w| w.send(now.clone()).is_ok());
    }

    fn watching(&self) -> usize {
        self.watches.lock().iter().filter(|w| !w.is_closed()).count()
    }

    /// (Watches opened, objects asked for) until now.
    fn asked(&self) -> (usize, usize) {
        (self.opened.load(Ordering::SeqCst), self.gets.load(Ordering::SeqCst))
    }
}

impl<K: Clone + Send + Sync + 'static> Source<K> for Hand<K> {
    fn states(&self, _: &str, _: &str) -> BoxStream<'static, Found<K>> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        let (told, hears) = mpsc::unbounded_channel();
        told.send(self.now.lock().clone()).unwrap();
        self.watches.lock().push(told);
        stream::unfold(hears, |mut hears| async { hears.recv().await.map(|state| (state, hears)) }).boxed()
    }

    fn get(&self, _: &str, _: &str) -> BoxFuture<'static, Found<K>> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        let now = self.now.lock().clone();
        Box::pin(async { now })
    }
}

fn map(version: u32, immutable: bool) -> ConfigMap {
    let object = json!({"metadata": {"name": "m", "uid": "u", "resourceVersion": version.to_string()},
        "data": {"k": version.to_string()}, "immutable": immutable});
    serde_json::from_value(object).unwrap()
}

fn version(object: Option<Arc<ConfigMap>>) -> Option<String> {
    object.and_then(|o| o.data.as_ref()?.get("k").cloned())
}

fn is(number: u32) -> Result<Option<String>, String> {
    Ok(Some(number.to_string()))
}

async fn until(what: &str, check: impl Fn() -> bool) {
    for _ in 0..2000 {
        if check() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("waited in vain until {what}");
}

/// One pod for each call, of the same node.
struct Pods {
    maps: Arc<Hand<ConfigMap>>,
    table: Arc<Table<ConfigMap>>,
    all: Arc<Objects>,
}

impl Pods {
    fn new(now: Found<ConfigMap>) -> Self {
        let maps = Hand::new(now);
        let table = Table::new(maps.clone());
        let all = Objects {
            config_maps: table.clone(),
            secrets: Table::new(Hand::<Secret>::new(Ok(None))),
            claims: Table::new(Hand::<PersistentVolumeClaim>::new(Ok(None))),
            volumes: Table::new(Hand::<PersistentVolume>::new(Ok(None))),
        };
        Self { maps, table, all: Arc::new(all) }
    }

    fn pod(&self) -> (PodObjects, Arc<Inbox>) {
        let inbox = Arc::new(Inbox::default());
        (PodObjects::new(self.all.clone(), &inbox, "default"), inbox)
    }
}

async fn read(pod: &PodObjects) -> Result<Option<String>, String> {
    tokio::time::timeout(Duration::from_secs(5), pod.read::<ConfigMap>("m")).await.unwrap().map(version)
}

#[tokio::test]
async fn one_watch_serves_all_pods_and_ends_with_the_last() {
    let pods = Pods::new(Ok(Some(map(1, false))));
    let ((a, a_inbox), (b, b_inbox)) = (pods.pod(), pods.pod());
    for _ in 0..10 {
        assert_eq!(read(&a).await, is(1));
        assert_eq!(read(&b).await, is(1));
    }
    // The second pod asked once whether what is known still is so.
    assert_eq!(pods.maps.asked(), (1, 1));
    assert!(!a_inbox.take().objects, "who waited for the object has it already");

    pods.maps.change(Ok(Some(map(2, false))));
    pods.maps.tell();
    until("both hear of it", || a_inbox.take().objects).await;
    until("both hear of it", || b_inbox.take().objects).await;
    assert_eq!((read(&a).await, read(&b).await), (is(2), is(2)));
    pods.maps.tell();
    pods.maps.change(Ok(None));
    pods.maps.tell();
    until("the end is told", || b_inbox.take().objects).await;
    assert_eq!(read(&b).await, Ok(None));
    assert_eq!(pods.maps.asked(), (1, 1));

    drop(a);
    assert_eq!((pods.table.len(), pods.maps.watching()), (1, 1));
    b.close();
    assert_eq!(pods.table.len(), 0);
    until("the watch ends", || pods.maps.watching() == 0).await;
    assert_eq!(read(&b).await, Err("failed to read configmap \"m\": the pod has ended".to_owned()));
}

#[tokio::test]
async fn many_pods_at_once_ask_a_few_times() {
    let pods = Pods::new(Ok(Some(map(1, false))));
    let all: Vec<PodObjects> = (0..110).map(|_| pods.pod().0).collect();
    let versions = futures::future::join_all(all.iter().map(read)).await;
    assert!(versions.iter().all(|v| *v == is(1)));
    let (opened, gets) = pods.maps.asked();
    assert!(opened == 1 && gets < 5, "{opened} watches, {gets} GETs");
}

#[tokio::test]
async fn what_is_immutable_is_not_watched() {
    let pods = Pods::new(Ok(Some(map(1, true))));
    let (a, inbox) = pods.pod();
    assert_eq!(read(&a).await, is(1));
    until("the watch ends", || pods.maps.watching() == 0).await;
    let (b, _) = pods.pod();
    assert_eq!(read(&b).await, is(1));
    assert_eq!(pods.maps.asked(), (1, 1), "it is as it was: not read anew");

    // Deleted and made again: nobody hears of it, but who comes now sees it.
    pods.maps.change(Ok(Some(map(2, true))));
    assert_eq!(read(&b).await, is(1));
    let (c, _) = pods.pod();
    assert_eq!(read(&c).await, is(2));
    until("the others hear of it then", || inbox.take().objects).await;
    until("the watch ends", || pods.maps.watching() == 0).await;

    // And one that may change again is watched again.
    pods.maps.change(Ok(Some(map(3, false))));
    let (d, _) = pods.pod();
    assert_eq!(read(&d).await, is(3));
    assert_eq!(pods.maps.watching(), 1);
}

#[tokio::test]
async fn a_new_pod_is_not_served_what_a_slow_watch_still_shows() {
    let pods = Pods::new(Ok(Some(map(1, false))));
    let (a, inbox) = pods.pod();
    assert_eq!(read(&a).await, is(1));
    pods.maps.change(Ok(Some(map(2, false))));
    assert_eq!(read(&a).await, is(1));
    let (b, _) = pods.pod();
    assert_eq!(read(&b).await, is(2));
    assert!(inbox.take().objects);
    assert_eq!(pods.maps.watching(), 1);
    pods.maps.change(Ok(None));
    let (c, _) = pods.pod();
    assert_eq!(read(&c).await, Ok(None));
}

#[tokio::test]
async fn while_the_api_is_away_the_last_copy_serves() {
    let pods = Pods::new(Err("away".to_owned()));
    let (a, a_inbox) = pods.pod();
    assert_eq!(read(&a).await, Err("away".to_owned()));
    assert_eq!(read(&a).await, Err("away".to_owned()));
    pods.maps.change(Ok(Some(map(1, false))));
    pods.maps.tell();
    until("it is back", || a_inbox.take().objects).await;
    assert_eq!(read(&a).await, is(1));

    pods.maps.change(Err("away".to_owned()));
    pods.maps.tell();
    let (b, b_inbox) = pods.pod();
    assert_eq!(read(&b).await, Err("away".to_owned()), "a new pod is told");
    assert_eq!(read(&a).await, is(1), "the other has its copy");
    pods.maps.change(Ok(Some(map(1, false))));
    pods.maps.tell();
    until("it is back", || b_inbox.take().objects).await;
    assert_eq!(read(&b).await, is(1));
    assert_eq!(pods.table.len(), 1);
}

#[tokio::test]
async fn what_is_needed_once_is_followed_only_while_it_is_missing() {
    let pods = Pods::new(Ok(Some(map(1, false))));
    let (a, _) = pods.pod();
    assert_eq!(a.once::<ConfigMap>("m").await.map(version), is(1));
    assert_eq!((pods.table.len(), pods.maps.asked()), (0, (0, 1)));
    pods.maps.change(Ok(None));
    assert_eq!(a.once::<ConfigMap>("m").await, Ok(None));
    for _ in 0..10 {
        assert_eq!(a.once::<ConfigMap>("m").await, Ok(None));
    }
    assert_eq!((pods.table.len(), pods.maps.asked()), (1, (1, 2)));
}

#[tokio::test]
async fn claims_are_followed_until_the_volumes_are_made() {
    let claims = Hand::<PersistentVolumeClaim>::new(Ok(None));
    let table = Table::new(claims.clone());
    let pods = Pods::new(Ok(Some(map(1, false))));
    let all = Objects {
        config_maps: pods.table.clone(),
        secrets: pods.all.secrets.clone(),
        claims: table.clone(),
        volumes: pods.all.volumes.clone(),
    };
    let inbox = Arc::new(Inbox::default());
    let pod = PodObjects::new(Arc::new(all), &inbox, "default");
    assert_eq!(pod.read::<PersistentVolumeClaim>("c").await, Ok(None));
    assert_eq!(read(&pod).await, is(1));
    claims.change(Ok(Some(PersistentVolumeClaim::default())));
    claims.tell();
    until("the claim is there", || inbox.take().objects).await;
    pod.settled();
    assert_eq!((table.len(), pods.table.len()), (0, 1));
}

#[test]
fn a_broken_worker_is_seen_by_its_inbox() {
    let pods = Pods::new(Ok(None));
    let (_pod, inbox) = pods.pod();
    assert_eq!(Arc::strong_count(&inbox), 1, "the manager counts who has it");
}
