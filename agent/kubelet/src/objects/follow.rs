//! Keeps one followed object's copy up to date. In: what the API says of the object. Out: the [`Entry`]'s copy.
//!
//! The object is watched, except one that is immutable: its watch ends as soon as it was read. When somebody new comes, the
//! object is asked for once; only if it is not what the copy says, it is read and watched anew.

use super::Kind;
use super::source::{Found, Source};
use super::table::{Entry, Key};
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use std::sync::Arc;
use std::time::Duration;

/// Before a source that has ended is opened again; the API's does not end.
const AGAIN: Duration = Duration::from_secs(1);

/// Until it is aborted.
pub async fn follow<K: Kind>(source: Arc<dyn Source<K>>, key: Key, entry: Arc<Entry<K>>) {
    let (namespace, name) = key;
    let mut newest = entry.newest.subscribe();
    loop {
        // All that this watch says was read after these came.
        let number = *newest.borrow_and_update();
        let mut states = source.states(&namespace, &name);
        let mut read = false;
        let mut check: Option<(u64, BoxFuture<'static, Found<K>>)> = None;
        loop {
            if read && check.is_none() {
                let newest = *newest.borrow_and_update();
                check = (newest > entry.fresh()).then(|| (newest, source.get(&namespace, &name)));
            }
            tokio::select! {
                state = states.next() => match state {
                    Some(Ok(object)) => {
                        if object.as_ref().is_some_and(K::immutable) {
                            states = stream::pending().boxed();
                        }
                        entry.put(number, object);
                        read = true;
                    }
                    Some(Err(error)) if read => tracing::debug!(error, "the last copy serves"),
                    Some(Err(error)) => entry.fail(error),
                    None => {
                        tokio::time::sleep(AGAIN).await;
                        break;
                    }
                },
                (number, found) = checked(&mut check) => {
                    check = None;
                    match found {
                        Ok(found) if entry.confirm(number, found.as_ref()) => {}
                        Ok(_) => break,
                        // The watch is made anew, which waits between its attempts, and tells those who wait.
                        Err(error) => {
                            tracing::debug!(error, "reading anew");
                            break;
                        }
                    }
                }
                _ = newest.changed(), if read && check.is_none() => {}
            }
        }
    }
}

async fn checked<K>(check: &mut Option<(u64, BoxFuture<'static, Found<K>>)>) -> (u64, Found<K>) {
    match check {
        Some((number, found)) => (*number, found.await),
        None => std::future::pending().await,
    }
}
