//! What one reader of a copy is told, with the type of its objects. In: a [`Store`]'s changes. Out: the events that a watch
//! of the reader's own would bring: consumers need not know the difference.

use crate::Kind;
use crate::store::{Change, Key, Next, Object, Store};
use futures::Stream;
use kube::runtime::watcher::Event;
use std::collections::HashSet;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// An event before its object has a type.
type Erased = Event<(Key, Object)>;

/// An event with the key of its object, where it has one.
type Keyed<K> = (Option<Key>, Event<Arc<K>>);
/// A kind of event with an object.
type Make<K> = fn(Arc<K>) -> Event<Arc<K>>;

/// The changes of all objects of a kind. Ends only when the watch itself does, which a panic alone brings about: start anew.
pub struct Subscription<K> {
    changes: Changes,
    kind: PhantomData<fn() -> K>,
}

/// As [`Subscription`], of some objects.
pub struct Selected<K> {
    events: Subscription<K>,
    keep: Box<dyn Fn(&K) -> bool + Send>,
    told: HashSet<Key>,
}

/// One reader's place in a store.
struct Changes {
    store: Arc<Store>,
    number: u64,
    /// The rest of a list that is being told.
    list: Option<std::vec::IntoIter<(Key, Object)>>,
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.store.leave(self.number);
    }
}

impl Changes {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Erased>> {
        if let Some(list) = &mut self.list {
            return Poll::Ready(Some(match list.next() {
                Some(item) => Event::InitApply(item),
                None => {
                    self.list = None;
                    Event::InitDone
                }
            }));
        }
        Poll::Ready(match ready!(self.store.next(self.number, context.waker())) {
            Next::Change(Change::Set(key, object)) => Some(Event::Apply((key, object))),
            Next::Change(Change::Gone(key, object)) => Some(Event::Delete((key, object))),
            Next::Whole(list) => {
                self.list = Some(list.into_iter());
                Some(Event::Init)
            }
            Next::End => None,
        })
    }
}

impl<K: Kind> Subscription<K> {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        let number = store.join();
        Self { changes: Changes { store, number, list: None }, kind: PhantomData }
    }

    fn poll_keyed(&mut self, context: &mut Context<'_>) -> Poll<Option<Keyed<K>>> {
        loop {
            let Some(event) = ready!(self.changes.poll(context)) else { return Poll::Ready(None) };
            let (make, (key, object)): (Make<K>, _) = match event {
                Event::Init => return Poll::Ready(Some((None, Event::Init))),
                Event::InitDone => return Poll::Ready(Some((None, Event::InitDone))),
                Event::InitApply(item) => (Event::InitApply, item),
                Event::Apply(item) => (Event::Apply, item),
                Event::Delete(item) => (Event::Delete, item),
            };
            // A store holds objects of one type: that by which it was found.
            if let Ok(object) = object.downcast::<K>() {
                return Poll::Ready(Some((Some(key), make(object))));
            }
        }
    }
}

impl<K: Kind> Stream for Subscription<K> {
    type Item = Event<Arc<K>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_keyed(context).map(|event| event.map(|(_, event)| event))
    }
}

impl<K: Kind> Selected<K> {
    pub(crate) fn new(events: Subscription<K>, keep: Box<dyn Fn(&K) -> bool + Send>) -> Self {
        Self { events, keep, told: HashSet::new() }
    }
}

impl<K: Kind> Stream for Selected<K> {
    type Item = Event<Arc<K>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let Some((key, event)) = ready!(self.events.poll_keyed(context)) else { return Poll::Ready(None) };
            let event = match (key, event) {
                (Some(key), Event::InitApply(object)) => (self.keep)(&object).then(|| {
                    self.told.insert(key);
                    Event::InitApply(object)
                }),
                (Some(key), Event::Apply(object)) => {
                    if (self.keep)(&object) {
                        self.told.insert(key);
                        Some(Event::Apply(object))
                    } else {
                        self.told.remove(&key).then_some(Event::Delete(object))
                    }
                }
                (Some(key), Event::Delete(object)) => self.told.remove(&key).then_some(Event::Delete(object)),
                (_, Event::Init) => {
                    self.told.clear();
                    Some(Event::Init)
                }
                (_, other) => Some(other),
            };
            if event.is_some() {
                return Poll::Ready(event);
            }
        }
    }
}
