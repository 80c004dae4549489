//! What waits to be told: the newest for each object, until somebody takes all of it. So whoever writes to the API may be
//! as slow as it likes, and what waits meanwhile is bounded by the number of objects.

use crate::route::ObjectKey;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use tokio::sync::Notify;

/// The newest for each object.
#[derive(Debug)]
pub struct Outbox<V> {
    waiting: Mutex<BTreeMap<ObjectKey, V>>,
    rung: Notify,
}

impl<V> Default for Outbox<V> {
    fn default() -> Self {
        Self { waiting: Mutex::default(), rung: Notify::new() }
    }
}

impl<V> Outbox<V> {
    /// Puts something in, in place of what is there for the same objects.
    pub fn put(&self, new: impl IntoIterator<Item = (ObjectKey, V)>) {
        let mut waiting = self.waiting.lock();
        waiting.extend(new);
        if !waiting.is_empty() {
            self.rung.notify_one();
        }
    }

    /// Waits until there is something, and takes all of it. Only one may wait at a time.
    pub async fn take(&self) -> BTreeMap<ObjectKey, V> {
        loop {
            let taken = std::mem::take(&mut *self.waiting.lock());
            if !taken.is_empty() {
                return taken;
            }
            self.rung.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn the_newest_of_each_is_taken_once() {
        let (outbox, key) = (Outbox::default(), |name: &str| ObjectKey::new("n", name));
        assert!(outbox.take().now_or_never().is_none());
        outbox.put([(key("a"), 1), (key("b"), 2)]);
        outbox.put([(key("a"), 3)]);
        assert_eq!(outbox.take().now_or_never(), Some([(key("a"), 3), (key("b"), 2)].into()));
        assert!(outbox.take().now_or_never().is_none());
    }
}
