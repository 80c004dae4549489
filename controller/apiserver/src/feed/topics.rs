//! Whom a change concerns besides those who watch a whole kind. In: changes of a kind, in order. Out: for each topic (the key
//! of an object, or a field's value) its own short window of changes, and a ring for those who watch it.
//!
//! Without topics a change wakes every watcher of its kind: every kubelet for each Pod of the cluster, and everybody who
//! follows one ConfigMap for each of all. A topic is there as long as somebody watches it.

use super::{Cache, Change};
use crate::object::Object;
use crate::status::ApiResult;
use causeway_store::Revision;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::watch;

/// Changes kept for each topic. Who is further behind looks in the window of the kind.
const WINDOW: usize = 16;

struct Topic {
    window: VecDeque<Arc<Change>>,
    /// Every change after this revision is in the window.
    start: Revision,
    changed: watch::Sender<Revision>,
    watchers: usize,
}

/// All topics of a kind.
#[derive(Default)]
pub struct Topics(HashMap<String, Topic>);

impl Topics {
    /// Takes a change over.
    pub fn push(&mut self, change: &Arc<Change>) {
        if self.0.is_empty() {
            return;
        }
        let prev = change.prev.iter().flat_map(|prev| topics_of(prev));
        let mut all: Vec<String> = topics_of(&change.object).chain(prev).collect();
        all.sort_unstable();
        all.dedup();
        for topic in all {
            let Some(topic) = self.0.get_mut(&topic) else { continue };
            topic.window.push_back(change.clone());
            while topic.window.len() > WINDOW {
                if let Some(old) = topic.window.pop_front() {
                    topic.start = old.revision;
                }
            }
            topic.changed.send_replace(change.revision);
        }
    }

    /// After a gap in the log: every watcher has to list again.
    pub fn reset(&mut self, revision: Revision) {
        for topic in self.0.values_mut() {
            (topic.window, topic.start) = (VecDeque::new(), revision);
            topic.changed.send_replace(revision);
        }
    }

    /// At most `max` changes of a topic after a revision, oldest first; `None` when they are not all here.
    pub fn changes(&self, topic: &str, after: Revision, max: usize) -> Option<Vec<Arc<Change>>> {
        let topic = self.0.get(topic).filter(|topic| after >= topic.start)?;
        let from = topic.window.partition_point(|c| c.revision <= after);
        Some(topic.window.range(from..).take(max).cloned().collect())
    }
}

/// What an object is about.
fn topics_of(object: &Object) -> impl Iterator<Item = String> {
    let node = object.field("spec.nodeName").filter(|node| !node.is_empty());
    [Some(object.key.clone()), node.map(node_topic)].into_iter().flatten()
}

/// The topic of the Pods of a node.
pub fn node_topic(node: &str) -> String {
    format!("spec.nodeName={node}")
}

/// A watcher's place at a kind, or at one of its topics.
pub struct Subscription {
    cache: Arc<Cache>,
    topic: Option<String>,
    changed: watch::Receiver<Revision>,
}

impl Subscription {
    /// Of the whole kind, or of a topic: the key of an object, or [`node_topic`].
    pub fn new(cache: Arc<Cache>, topic: Option<String>) -> Self {
        let Some(topic) = topic else {
            let changed = cache.changed.subscribe();
            return Self { cache, topic: None, changed };
        };
        let mut state = cache.state.lock();
        let start = state.last.max(state.start);
        let found = state.topics.0.entry(topic.clone()).or_insert_with(|| Topic {
            window: VecDeque::new(),
            start,
            changed: watch::Sender::new(start),
            watchers: 0,
        });
        found.watchers += 1;
        let changed = found.changed.subscribe();
        drop(state);
        Self { cache, topic: Some(topic), changed }
    }

    /// What was told so far counts as heard.
    pub fn mark_unchanged(&mut self) {
        self.changed.mark_unchanged();
    }

    /// Waits for news; an error when there will be none.
    pub async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.changed.changed().await
    }

    /// At most `max` changes after a revision, oldest first, that may concern the watcher.
    pub fn changes(&self, after: Revision, max: usize) -> ApiResult<Vec<Arc<Change>>> {
        match &self.topic {
            Some(topic) => self.cache.changes_of(topic, after, max),
            None => self.cache.changes(after, max),
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let Some(topic) = &self.topic else { return };
        let mut state = self.cache.state.lock();
        if let Some(found) = state.topics.0.get_mut(topic) {
            found.watchers -= 1;
            if found.watchers == 0 {
                state.topics.0.remove(topic);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, node: &str, revision: Revision) -> Arc<Object> {
        let value = json!({ "metadata": { "name": name }, "spec": { "nodeName": node } });
        Arc::new(Object::from_value(&format!("/registry/core/pods/d/{name}"), &value, revision).unwrap())
    }

    fn revisions(subscription: &Subscription, after: Revision) -> Vec<Revision> {
        subscription.changes(after, 1000).unwrap().iter().map(|c| c.revision).collect()
    }

    #[test]
    fn a_change_wakes_those_whom_it_concerns() {
        let cache = Arc::new(Cache::new(10));
        let mut all = Subscription::new(cache.clone(), None);
        let mut one = Subscription::new(cache.clone(), Some("/registry/core/pods/d/a".to_owned()));
        let mut here = Subscription::new(cache.clone(), Some(node_topic("n1")));
        let mut there = Subscription::new(cache.clone(), Some(node_topic("n2")));
        let mut woken = || {
            let every = [&mut all, &mut one, &mut here, &mut there];
            every.map(|s| {
                let news = s.changed.has_changed().unwrap();
                s.mark_unchanged();
                news
            })
        };
        cache.put(pod("a", "", 11));
        assert_eq!(woken(), [true, true, false, false]);
        cache.put(pod("a", "n1", 12));
        assert_eq!(woken(), [true, true, true, false]);
        cache.put(pod("b", "n2", 13));
        assert_eq!(woken(), [true, false, false, true]);
        // It leaves one and comes to the other: both hear of it.
        cache.put(pod("b", "n1", 14));
        assert_eq!(woken(), [true, false, true, true]);
        cache.remove("/registry/core/pods/d/a", pod("a", "n1", 15));
        assert_eq!(woken(), [true, true, true, false]);
        assert_eq!(revisions(&one, 10), [11, 12, 15]);
        assert_eq!(revisions(&here, 10), [12, 14, 15]);
        assert_eq!(revisions(&there, 13), [14]);
        drop((one, here, there));
        assert!(cache.state.lock().topics.0.is_empty(), "nobody watches them");
    }

    #[test]
    fn who_comes_late_or_falls_behind_finds_it_in_the_window_of_the_kind() {
        let cache = Arc::new(Cache::new(10));
        for revision in 11..20 {
            cache.put(pod("a", "n1", revision));
        }
        // It resumes from before the topic was there.
        let here = Subscription::new(cache.clone(), Some(node_topic("n1")));
        assert_eq!(revisions(&here, 15), [16, 17, 18, 19]);
        for revision in 20..60 {
            cache.put(pod("a", "n1", revision));
        }
        assert_eq!(revisions(&here, 25), (26..60).collect::<Vec<_>>(), "more than a topic keeps");
        assert_eq!(revisions(&here, 50), (51..60).collect::<Vec<_>>());
        // However many changes of others there are meanwhile, a watcher at rest is not told to list again.
        for revision in 60..60 + 2 * super::super::WINDOW as u64 {
            cache.put(pod("b", "n2", revision));
        }
        assert_eq!(revisions(&here, 59), Vec::<Revision>::new());
        assert!(cache.changes(59, 1).is_err());
        cache.reset(Default::default(), 9_000);
        assert!(here.changes(59, 1).is_err(), "a gap in the log is told to all");
    }
}
