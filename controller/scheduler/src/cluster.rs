//! Pods and nodes as the scheduler knows them, and which pods wait. In: events of watches, what became of decisions, the
//! time. Out: the picture ([`Snapshot`]), kept up to date change by change, and the next pod to place. Pure.
//!
//! A pod that cannot be placed is parked until something changes that may make room for it. One that was just placed is
//! taken to be on its node until the watch shows it there.

use crate::pod::PodInfo;
use crate::snapshot::Snapshot;
use causeway_api::pod as podutil;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::watcher::Event;
use std::borrow::Borrow;
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What failed is tried again after this, doubled each time up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// What was placed but never shows in the watch is placed anew after this.
const ASSUMED_FOR: Duration = Duration::from_secs(30);
/// A parked pod is looked at again, when something has changed, this long after the last time, doubled each time up to
/// [`PARKED_MAX`]: thousands of pods that wait for room must not be gone through at each change.
const PARKED_MIN: Duration = Duration::from_millis(20);
const PARKED_MAX: Duration = Duration::from_secs(5);
/// Another reason why a pod cannot be placed is told this long after the last one: reasons count nodes, and nodes change.
const TELL_AGAIN: Duration = Duration::from_secs(5);

/// In which order pods are placed: priority, age, name.
type Rank = (Reverse<i32>, Option<Timestamp>, String, String);

/// All pods and nodes.
pub struct Cluster {
    /// Pods that name this scheduler are placed.
    scheduler: String,
    snapshot: Snapshot,
    /// By uid.
    pods: HashMap<String, Known>,
    queue: BTreeSet<Rank>,
    /// Parked pods, and how many of them depend on where others are.
    parked: HashSet<String>,
    parked_that_look: usize,
    /// Pods to look at again at a time.
    alarms: BTreeSet<(Instant, String)>,
    /// Something has changed that may make room for parked pods.
    moved: bool,
    pod_list: List,
    node_list: List,
}

/// A list that is being read: what was not in it is gone at its end.
#[derive(Default)]
struct List {
    seen: HashSet<String>,
    complete: bool,
}

struct Known {
    info: Arc<PodInfo>,
    created: Option<Timestamp>,
    place: Place,
    /// After the next failure.
    delay: Duration,
    /// After the next time that there is no node for it.
    rest: Duration,
    /// Parked, and not looked at before this.
    rests_until: Option<Instant>,
    /// A decision on it is being written; the next one waits for the outcome.
    writing: bool,
    /// It is to be looked at again after that.
    again: bool,
    /// Where room was held for it: its claims may have been told.
    held: Option<String>,
    /// What was last told about why it cannot be placed, and when.
    told: Option<(String, Instant)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Place {
    /// On no node and not ours to place: finished, going away, another scheduler's.
    Nowhere,
    Queued,
    /// Being decided on.
    InHand,
    Parked,
    /// Not before this.
    Later(Instant),
    /// We have placed it, and the watch does not show it yet.
    Assumed(String, Instant),
    /// Room is kept while its claims are bound.
    Held(String, Instant),
    On(String),
}

impl Place {
    fn node(&self) -> Option<&str> {
        match self {
            Self::Assumed(node, _) | Self::Held(node, _) | Self::On(node) => Some(node),
            _ => None,
        }
    }
}

impl Known {
    fn rank(&self) -> Rank {
        (Reverse(self.info.priority), self.created, self.info.name.clone(), self.info.uid.clone())
    }
}

impl Cluster {
    /// An empty one.
    pub fn new(scheduler: &str) -> Self {
        Self {
            scheduler: scheduler.to_owned(),
            snapshot: Snapshot::default(),
            pods: HashMap::new(),
            queue: BTreeSet::new(),
            parked: HashSet::new(),
            parked_that_look: 0,
            alarms: BTreeSet::new(),
            moved: false,
            pod_list: List::default(),
            node_list: List::default(),
        }
    }

    /// The picture.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Both kinds have been listed once.
    pub fn is_complete(&self) -> bool {
        self.pod_list.complete && self.node_list.complete
    }

    /// Takes over what a watch of Nodes says.
    pub fn take_node(&mut self, event: Event<impl Borrow<Node>>) {
        match event {
            Event::Init => self.node_list.seen.clear(),
            Event::InitApply(node) => {
                let node = node.borrow();
                self.node_list.seen.insert(node.metadata.name.clone().unwrap_or_default());
                self.set_node(node);
            }
            Event::Apply(node) => self.set_node(node.borrow()),
            Event::Delete(node) => self.remove_node(node.borrow().metadata.name.as_deref().unwrap_or_default()),
            Event::InitDone => {
                let seen = std::mem::take(&mut self.node_list.seen);
                let names = self.snapshot.nodes.iter().map(|n| n.name.clone());
                for gone in names.filter(|n| !seen.contains(n)).collect::<Vec<_>>() {
                    self.remove_node(&gone);
                }
                self.node_list.complete = true;
            }
        }
    }

    fn set_node(&mut self, node: &Node) {
        let count = self.snapshot.nodes.len();
        self.moved |= self.snapshot.set_node(node);
        if self.snapshot.nodes.len() > count {
            // Its pods may have been heard of before it.
            let name = node.metadata.name.as_deref();
            for pod in self.pods.values().filter(|p| p.place.node() == name) {
                self.snapshot.place(name.unwrap_or_default(), pod.info.clone());
            }
        }
    }

    fn remove_node(&mut self, name: &str) {
        self.snapshot.remove_node(name);
        self.moved = true;
    }

    /// Takes over what a watch of Pods says.
    pub fn take_pod(&mut self, event: Event<impl Borrow<Pod>>) {
        match event {
            Event::Init => self.pod_list.seen.clear(),
            Event::InitApply(pod) => {
                let pod = pod.borrow();
                self.pod_list.seen.insert(uid(pod).to_owned());
                self.set_pod(pod);
            }
            Event::Apply(pod) => self.set_pod(pod.borrow()),
            Event::Delete(pod) => self.remove_pod(uid(pod.borrow())),
            Event::InitDone => {
                let seen = std::mem::take(&mut self.pod_list.seen);
                for gone in self.pods.keys().filter(|p| !seen.contains(*p)).cloned().collect::<Vec<_>>() {
                    self.remove_pod(&gone);
                }
                self.pod_list.complete = true;
            }
        }
    }

    fn set_pod(&mut self, pod: &Pod) {
        let info = Arc::new(PodInfo::new(pod));
        let uid = info.uid.clone();
        let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty());
        let placed = node.filter(|_| !podutil::is_finished(pod));
        let waits = node.is_none() && podutil::is_active(pod) && {
            let named = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref());
            named.unwrap_or("default-scheduler") == self.scheduler
        };
        let known = self.pods.entry(uid.clone()).or_insert_with(|| Known {
            info: info.clone(),
            created: pod.metadata.creation_timestamp.as_ref().map(|t| t.0),
            place: Place::Nowhere,
            delay: RETRY_MIN,
            rest: PARKED_MIN,
            rests_until: None,
            writing: false,
            again: false,
            held: None,
            told: None,
        });
        let changed = known.info != info;
        match (&known.place, placed) {
            (Place::On(before) | Place::Assumed(before, _), Some(now)) if !changed && before == now => {
                known.place = Place::On(now.to_owned());
            }
            (before, Some(now)) => {
                // Room may be left behind, or be where others want to be near.
                let leaves = before.node().is_some_and(|n| n != now) || changed;
                let arrives = before.node().is_none();
                self.replace(&uid, info, Place::On(now.to_owned()));
                self.moved |= leaves || arrives && self.parked_that_look > 0;
            }
            // What we have decided is on its way. Should it fail, the pod is looked at as it is now.
            (Place::Assumed(..) | Place::Held(..) | Place::InHand, None) if waits => {
                if changed {
                    let place = known.place.clone();
                    self.replace(&uid, info, place);
                }
            }
            (Place::Queued | Place::Parked | Place::Later(_), None) if waits && !changed => {}
            (_, None) => {
                self.moved |= known.place.node().is_some();
                self.replace(&uid, info, if waits { Place::Parked } else { Place::Nowhere });
                if waits {
                    self.look_again(&uid);
                }
            }
        }
    }

    fn remove_pod(&mut self, uid: &str) {
        self.moved |= self.pods.get(uid).is_some_and(|p| p.place.node().is_some());
        self.put(uid, Place::Nowhere);
        self.pods.remove(uid);
    }

    /// A pod has changed, and with it perhaps its place: queue and picture know it by what it was.
    fn replace(&mut self, uid: &str, info: Arc<PodInfo>, place: Place) {
        self.put(uid, Place::Nowhere);
        if let Some(known) = self.pods.get_mut(uid) {
            known.info = info;
        }
        self.put(uid, place);
    }

    /// The only place where a pod changes its place: queue, picture and what is parked stay in step with it.
    fn put(&mut self, uid: &str, place: Place) {
        let Some(known) = self.pods.get_mut(uid) else { return };
        match &known.place {
            Place::Queued => drop(self.queue.remove(&known.rank())),
            Place::Parked => {
                self.parked.remove(uid);
                self.parked_that_look -= usize::from(known.info.looks_at_others());
            }
            Place::Assumed(node, _) | Place::Held(node, _) | Place::On(node) => self.snapshot.remove(node, uid),
            Place::Nowhere | Place::InHand | Place::Later(_) => {}
        }
        match &place {
            Place::Queued => drop(self.queue.insert(known.rank())),
            Place::Parked => {
                self.parked.insert(uid.to_owned());
                self.parked_that_look += usize::from(known.info.looks_at_others());
            }
            Place::Assumed(node, _) | Place::Held(node, _) | Place::On(node) => {
                self.snapshot.place(node, known.info.clone());
            }
            Place::Nowhere | Place::InHand | Place::Later(_) => {}
        }
        known.place = place;
    }

    /// Queues a pod, or sees to it that it is when what was decided before has been written.
    fn look_again(&mut self, uid: &str) {
        let Some(known) = self.pods.get_mut(uid) else { return };
        if known.writing {
            known.again = true;
        } else {
            self.put(uid, Place::Queued);
        }
    }

    /// Claims, volumes or classes have changed.
    pub fn storage_changed(&mut self) {
        self.moved = true;
        let held = self.pods.iter().filter(|(_, p)| matches!(p.place, Place::Held(..)));
        for uid in held.map(|(uid, _)| uid.clone()).collect::<Vec<_>>() {
            self.look_again(&uid);
        }
    }

    /// Parked pods are looked at even though nothing has changed.
    pub fn look_around(&mut self) {
        self.moved = true;
    }

    /// Where room was held for a pod whose claims are not bound yet: they may have been told of that node.
    pub fn held_on(&self, uid: &str) -> Option<&str> {
        let node = self.pods.get(uid)?.held.as_deref()?;
        self.snapshot.has(node).then_some(node)
    }

    /// A decision on the pod is being written; [`Cluster::written`] or [`Cluster::retry`] follows.
    pub fn writing(&mut self, uid: &str) {
        if let Some(known) = self.pods.get_mut(uid) {
            known.writing = true;
        }
    }

    /// The decision was written.
    pub fn written(&mut self, uid: &str) {
        let Some(known) = self.pods.get_mut(uid) else { return };
        known.writing = false;
        if std::mem::take(&mut known.again) && matches!(known.place, Place::Parked | Place::Held(..)) {
            self.put(uid, Place::Queued);
        }
    }

    /// Whether [`Cluster::take_next`] has a pod.
    pub fn has_next(&mut self, now: Instant) -> bool {
        while let Some((at, _)) = self.alarms.first()
            && *at <= now
            && let Some((_, uid)) = self.alarms.pop_first()
        {
            // An alarm may be of something that has passed since.
            let due = self.pods.get(&uid).is_some_and(|pod| match &pod.place {
                Place::Parked => pod.rests_until.is_none_or(|until| until <= now),
                Place::Later(until) => *until <= now,
                Place::Assumed(_, since) | Place::Held(_, since) => now.duration_since(*since) >= ASSUMED_FOR,
                Place::Nowhere | Place::Queued | Place::InHand | Place::On(_) => false,
            });
            if due && let Some(known) = self.pods.get_mut(&uid) {
                if known.place.node().is_some() {
                    if known.writing {
                        self.alarms.insert((now + ASSUMED_FOR, uid));
                        continue;
                    }
                    known.held = None;
                    self.moved = true;
                }
                self.look_again(&uid);
            }
        }
        if std::mem::take(&mut self.moved) {
            for uid in self.parked.iter().cloned().collect::<Vec<_>>() {
                match self.pods.get(&uid).and_then(|p| p.rests_until).filter(|until| *until > now) {
                    Some(until) => drop(self.alarms.insert((until, uid))),
                    None => self.look_again(&uid),
                }
            }
        }
        !self.queue.is_empty()
    }

    /// The pod to place now. What becomes of it is to be told by one of the functions below.
    pub fn take_next(&mut self) -> Option<Arc<PodInfo>> {
        let (.., uid) = self.queue.first().cloned()?;
        self.put(&uid, Place::InHand);
        self.pods.get(&uid).map(|p| p.info.clone())
    }

    /// When there is something to look at without any change.
    pub fn wakes_at(&self) -> Option<Instant> {
        self.alarms.first().map(|(at, _)| *at)
    }

    /// The pod goes to a node.
    pub fn assume(&mut self, uid: &str, node: &str, now: Instant) {
        self.put(uid, Place::Assumed(node.to_owned(), now));
        self.alarms.insert((now + ASSUMED_FOR, uid.to_owned()));
        if self.parked_that_look > 0 {
            self.moved = true;
        }
    }

    /// Room on a node is kept for the pod while its claims are bound.
    pub fn hold(&mut self, uid: &str, node: &str, now: Instant) {
        self.put(uid, Place::Held(node.to_owned(), now));
        if let Some(known) = self.pods.get_mut(uid) {
            known.held = Some(node.to_owned());
        }
        self.alarms.insert((now + ASSUMED_FOR, uid.to_owned()));
    }

    /// The pod cannot be placed for now. Whether that is to be told.
    pub fn park(&mut self, uid: &str, message: &str, now: Instant) -> bool {
        self.put(uid, Place::Parked);
        let Some(known) = self.pods.get_mut(uid) else { return false };
        known.held = None;
        let rests_until = now + known.rest;
        known.rests_until = Some(rests_until);
        known.rest = (known.rest * 2).min(PARKED_MAX);
        match &known.told {
            Some((told, _)) if told == message => false,
            Some((_, at)) if now.duration_since(*at) < TELL_AGAIN => {
                self.alarms.insert(((*at + TELL_AGAIN).max(rests_until), uid.to_owned()));
                false
            }
            _ => {
                known.told = Some((message.to_owned(), now));
                true
            }
        }
    }

    /// What was decided could not be written: again, after a while.
    pub fn retry(&mut self, uid: &str, now: Instant) {
        let Some(known) = self.pods.get_mut(uid) else { return };
        known.writing = false;
        known.again = false;
        if matches!(known.place, Place::On(_) | Place::Nowhere) {
            return;
        }
        let at = now + known.delay;
        known.delay = (known.delay * 2).min(RETRY_MAX);
        known.told = None;
        self.moved |= known.place.node().is_some();
        self.put(uid, Place::Later(at));
        self.alarms.insert((at, uid.to_owned()));
    }
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests;
