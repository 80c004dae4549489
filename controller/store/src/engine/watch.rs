//! Watches: each is a position in the history of the store. In: the index's changes. Out: events in order, and progress
//! while there are none.
//!
//! A watch holds nothing but the page of events that it is handing out, so the slowest of watchers costs no memory: it
//! is told so when what it has not seen is compacted.

use super::shared::{Shared, Signal};
use crate::{Result, Revision, StoreError, WatchEvent, WatchStream};
use futures::stream;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;

/// Idle watchers hear of progress this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// Changes are read in portions of this many.
const PORTION: usize = 500;

struct Watcher {
    /// Not a reason for the store to stay open.
    shared: Weak<Shared>,
    signal: watch::Receiver<Signal>,
    prefix: Arc<str>,
    seen: Revision,
    told: Signal,
    ready: VecDeque<WatchEvent>,
}

/// All changes of a prefix after a revision.
pub(crate) fn stream(shared: &Arc<Shared>, prefix: &str, after: Revision) -> Result<WatchStream> {
    let signal = shared.signal.subscribe();
    shared.readable(after, shared.revision())?;
    let told = Signal { revision: after, asked: signal.borrow().asked };
    let watcher = Watcher {
        shared: Arc::downgrade(shared),
        signal,
        prefix: prefix.into(),
        seen: after,
        told,
        ready: VecDeque::new(),
    };
    Ok(Box::pin(stream::unfold(Some(watcher), |watcher| async {
        let mut watcher = watcher?;
        match watcher.next().await {
            Some(Ok(event)) => Some((Ok(event), Some(watcher))),
            Some(Err(error)) => Some((Err(error), None)),
            None => None,
        }
    })))
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<WatchEvent>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            let signal = *self.signal.borrow_and_update();
            if signal.revision > self.seen {
                match self.read().await? {
                    Ok(()) => continue,
                    Err(error) => return Some(Err(error)),
                }
            }
            if signal.asked > self.told.asked {
                self.told = Signal { revision: self.seen, asked: signal.asked };
                return Some(Ok(WatchEvent::Progress(self.seen)));
            }
            match tokio::time::timeout(PROGRESS_EVERY, self.signal.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                // Everything up to here has been handed out.
                Err(_) if self.signal.has_changed().is_ok_and(|changed| !changed) => {
                    return Some(Ok(WatchEvent::Progress(self.seen)));
                }
                Err(_) => {}
            }
        }
    }

    /// `None` when the store is closed.
    async fn read(&mut self) -> Option<Result<()>> {
        let (shared, prefix, seen) = (self.shared.upgrade()?, self.prefix.clone(), self.seen);
        let read = tokio::task::spawn_blocking(move || shared.changes(&prefix, seen, PORTION)).await;
        let read = read
            .unwrap_or_else(|e| Err(StoreError::Engine { doing: "reading changes".to_owned(), detail: e.to_string() }));
        Some(read.map(|(events, seen)| {
            self.ready.extend(events);
            self.seen = seen;
        }))
    }
}
