//! Follows what is referred to, each object by its own watch. In: which objects are needed now. Out: streams of what they
//! are, into the one that the view is fed from; and how long a change should wait for what it refers to.
//!
//! What is needed no longer is followed a little longer, as it often comes back at once. There are so many watches and no
//! more: what is beyond is asked for now and then, and takes a watch's place when one ends.

use super::followed::Found;
use super::named::How;
use super::references::Which;
use super::view::{Update, View};
use crate::gateway::view::Update as GatewayUpdate;
use futures::stream::{AbortHandle, BoxStream, SelectAll, StreamExt, abortable};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// Watches at one time. All requests of the ingress share a connection, on which the API server allows so many streams and
/// no more (`max_concurrent_streams` in `apiserver/src/front/tls.rs`): what it watches and writes besides has to find room.
const MOST_WATCHES: usize = 1500;
/// How long an object is followed that nobody refers to any more.
const LINGER: Duration = Duration::from_secs(10);
/// How long a change waits for an object that it refers to. Usually that is there after a few milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same, while nothing is served yet.
const FIRST_PATIENCE: Duration = Duration::from_secs(10);

/// So many objects that cannot be read at the same time are named in the log.
const TOLD: usize = 3;

/// Says what an object is.
pub type Source = Box<dyn Fn(&Which, How) -> BoxStream<'static, Update> + Send>;

/// All that is followed.
pub struct Follower {
    source: Source,
    most: usize,
    all: HashMap<Which, Follow>,
    /// Needed and not read yet, since then.
    unread: HashMap<Which, Instant>,
    /// What is not watched.
    asked: BTreeSet<Which>,
    /// When what is not needed any more ends, in order.
    ends: VecDeque<(Instant, Which)>,
    /// What could not be read when it was last asked for.
    failing: HashSet<Which>,
}

/// One object that is followed.
struct Follow {
    stop: AbortHandle,
    /// It has been read.
    is_read: bool,
    /// Not needed any more; followed until then.
    until: Option<Instant>,
}

impl Follower {
    /// Nothing is followed yet.
    pub fn new(source: Source) -> Self {
        Self::bounded(source, MOST_WATCHES)
    }

    fn bounded(source: Source, most: usize) -> Self {
        Self {
            source,
            most,
            all: HashMap::new(),
            unread: HashMap::new(),
            asked: BTreeSet::new(),
            ends: VecDeque::new(),
            failing: HashSet::new(),
        }
    }

    /// From now on these are needed and no others.
    pub fn follow(&mut self, needed: &BTreeSet<Which>, now: Instant, into: &mut SelectAll<BoxStream<'static, Update>>) {
        for which in needed {
            match self.all.get_mut(which) {
                Some(follow) => {
                    if follow.until.take().is_some() && !follow.is_read {
                        self.unread.insert(which.clone(), now);
                    }
                }
                None => {
                    let is_full = self.all.len() - self.asked.len() >= self.most;
                    self.start(which, if is_full { How::Asked } else { How::Watched }, into);
                    self.unread.insert(which.clone(), now);
                }
            }
        }
        for (which, follow) in self.all.iter_mut().filter(|(which, f)| f.until.is_none() && !needed.contains(*which)) {
            let until = now + LINGER;
            follow.until = Some(until);
            self.ends.push_back((until, which.clone()));
            self.unread.remove(which);
        }
    }

    fn start(&mut self, which: &Which, how: How, into: &mut SelectAll<BoxStream<'static, Update>>) {
        let (updates, stop) = abortable((self.source)(which, how));
        into.push(updates.boxed());
        let before = self.all.insert(which.clone(), Follow { stop, is_read: false, until: None });
        if let Some(before) = before {
            before.stop.abort();
            if let Some(follow) = self.all.get_mut(which) {
                (follow.is_read, follow.until) = (before.is_read, before.until);
            }
        }
        if how == How::Asked {
            if self.asked.is_empty() {
                let most = self.most;
                tracing::warn!(
                    most,
                    "more Secrets and ConfigMaps are referred to than are watched; changes of those beyond are seen within \
                     two minutes"
                );
            }
            self.asked.insert(which.clone());
        } else {
            self.asked.remove(which);
        }
    }

    /// What was read of a followed object.
    pub fn heard(&mut self, update: &Update) {
        fn sort<K>(found: &Found<K>) -> Result<(), &str> {
            found.as_ref().map(drop).map_err(String::as_str)
        }
        let (which, found) = match update {
            Update::Secret(key, found) => (Which::Secret(key.clone()), sort(found)),
            Update::Gateway(update) => match &**update {
                GatewayUpdate::ConfigMap(key, found) => (Which::ConfigMap(key.clone()), sort(found)),
                _ => return,
            },
            _ => return,
        };
        match found {
            Ok(()) => {
                self.unread.remove(&which);
                self.failing.remove(&which);
                if let Some(follow) = self.all.get_mut(&which) {
                    follow.is_read = true;
                }
            }
            Err(error) => {
                // When the API is away, a few words are enough for all.
                if self.failing.insert(which.clone()) && self.failing.len() <= TOLD {
                    tracing::warn!(%which, error, "cannot follow what is referred to; the last that is known of it serves");
                } else {
                    tracing::debug!(%which, error, "cannot follow what is referred to");
                }
            }
        }
    }

    /// Until when changes, the first of which came at `stale_since`, wait for what they refer to; none when all is read, or
    /// was waited for long enough.
    pub fn waits_until(&self, now: Instant, stale_since: Instant, is_first: bool) -> Option<Instant> {
        let patience = if is_first { FIRST_PATIENCE } else { PATIENCE };
        let newest = self.unread.values().max()?;
        // However fast references come that nobody can read, changes are applied.
        let until = stale_since.min(*newest) + patience;
        (until > now).then_some(until)
    }

    /// When the next one may end.
    pub fn next_end(&self) -> Option<Instant> {
        self.ends.front().map(|(until, _)| *until)
    }

    /// Lets go of what is not needed any more.
    pub fn end(&mut self, now: Instant, view: &mut View, into: &mut SelectAll<BoxStream<'static, Update>>) {
        while let Some((until, which)) = self.ends.pop_front_if(|(until, _)| *until <= now) {
            // It may have been needed again since, and be on its way out for another time.
            if self.all.get(&which).is_none_or(|follow| follow.until != Some(until)) {
                continue;
            }
            if let Some(follow) = self.all.remove(&which) {
                follow.stop.abort();
            }
            self.asked.remove(&which);
            self.failing.remove(&which);
            view.forget(&which);
        }
        while self.all.len() - self.asked.len() < self.most
            && let Some(which) = self.asked.first().cloned()
        {
            self.start(&which, How::Watched, into);
        }
    }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
