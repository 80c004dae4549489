//! Following, against sources by hand: what is followed, how, how long, and what is waited for.

use super::*;
use crate::route::ObjectKey;
use futures::FutureExt;
use parking_lot::Mutex;
use std::sync::Arc;

/// The streams that are open, with how they were asked for.
type Open = Arc<Mutex<Vec<(Which, How, futures::channel::mpsc::UnboundedSender<Update>)>>>;

struct Case {
    follower: Follower,
    into: SelectAll<BoxStream<'static, Update>>,
    open: Open,
    view: View,
    start: Instant,
}

fn secret(name: &str) -> Which {
    Which::Secret(ObjectKey::new("n", name))
}

fn names(all: &[&str]) -> BTreeSet<Which> {
    all.iter().map(|name| secret(name)).collect()
}

impl Case {
    fn new(most: usize) -> Self {
        let open = Open::default();
        let to = Arc::clone(&open);
        let source: Source = Box::new(move |which, how| {
            let (sender, receiver) = futures::channel::mpsc::unbounded();
            to.lock().push((which.clone(), how, sender));
            receiver.boxed()
        });
        let follower = Follower::bounded(source, most);
        Self { follower, into: SelectAll::new(), open, view: View::default(), start: Instant::now() }
    }

    fn follow(&mut self, needed: &[&str], seconds: u64) {
        let now = self.at(seconds);
        self.follower.follow(&names(needed), now, &mut self.into);
        self.follower.end(now, &mut self.view, &mut self.into);
        self.poll();
    }

    fn at(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    /// Takes in what has come.
    fn poll(&mut self) {
        while let Some(Some(update)) = self.into.next().now_or_never() {
            self.follower.heard(&update);
            self.view.handle(update);
        }
        self.open.lock().retain(|(.., sender)| !sender.is_closed());
    }

    fn tell(&mut self, name: &str, found: Result<(), &str>) {
        for (which, _, sender) in self.open.lock().iter() {
            if *which == secret(name) {
                let found = found.map(|()| None).map_err(str::to_owned);
                sender.unbounded_send(Update::Secret(ObjectKey::new("n", name), found)).unwrap();
            }
        }
        self.poll();
    }

    /// What is followed by which means.
    fn open(&self) -> String {
        let open = self.open.lock();
        let mut all: Vec<_> = open.iter().map(|(which, how, _)| format!("{which} {how:?}")).collect();
        all.sort();
        all.join(", ").replace("Secret n/", "")
    }
}

#[test]
fn a_watch_lives_from_the_first_reference_to_a_little_after_the_last() {
    let mut case = Case::new(10);
    case.follow(&["a", "b"], 0);
    case.follow(&["a", "b"], 1);
    assert_eq!(case.open(), "a Watched, b Watched");
    case.tell("a", Ok(()));
    case.follow(&["b"], 2);
    assert_eq!(case.open(), "a Watched, b Watched", "it may come back");
    case.follow(&["a", "b"], 3);
    case.follow(&["b"], 4);
    case.follow(&["b"], 12);
    assert_eq!(case.open(), "a Watched, b Watched", "ten seconds from the last time");
    assert_eq!(case.view.secrets.get(&ObjectKey::new("n", "a")), Ok(None));
    assert_eq!(case.follower.next_end(), Some(case.at(14)));
    case.follow(&["b"], 14);
    assert_eq!((case.open().as_str(), case.follower.next_end()), ("b Watched", None));
    assert!(case.view.secrets.get(&ObjectKey::new("n", "a")).is_err(), "what is not followed is not known");
}

#[test]
fn changes_wait_for_what_they_name_but_not_for_ever() {
    let mut case = Case::new(10);
    let waits = |case: &Case, now, since, first| {
        let until = case.follower.waits_until(case.at(now), case.at(since), first);
        until.map(|until| (until - case.start).as_secs())
    };
    assert_eq!(waits(&case, 0, 0, true), None);
    case.follow(&["a", "b"], 5);
    assert_eq!((waits(&case, 5, 5, true), waits(&case, 5, 5, false)), (Some(15), Some(7)));
    case.tell("a", Ok(()));
    case.tell("b", Err("refused"));
    assert_eq!(waits(&case, 6, 5, false), Some(7), "the next attempt may go well");
    assert_eq!(waits(&case, 7, 5, false), None);
    // Others that come one after the other hold up nobody for longer.
    case.follow(&["a", "b", "c"], 6);
    assert_eq!((waits(&case, 6, 5, false), waits(&case, 7, 5, false)), (Some(7), None));
    // What is named no more is not waited for; named once more, it is.
    case.follow(&["a"], 7);
    assert_eq!(waits(&case, 7, 7, false), None);
    case.follow(&["a", "c"], 8);
    assert_eq!(waits(&case, 8, 8, false), Some(10));
    case.tell("c", Ok(()));
    assert_eq!(waits(&case, 8, 8, false), None);
}

#[test]
fn beyond_the_bound_is_asked_and_moves_up() {
    let mut case = Case::new(2);
    case.follow(&["a", "b", "c", "d"], 0);
    assert_eq!(case.open(), "a Watched, b Watched, c Asked, d Asked");
    for name in ["a", "b", "c", "d"] {
        case.tell(name, Ok(()));
    }
    assert_eq!(case.follower.waits_until(case.at(0), case.at(0), false), None, "what is asked for is served as well");
    case.follow(&["b", "c", "d"], 1);
    case.follow(&["b", "c", "d"], 11);
    assert_eq!(case.open(), "b Watched, c Watched, d Asked");
    assert_eq!(case.view.secrets.get(&ObjectKey::new("n", "c")), Ok(None), "known all the while");
    case.follow(&["c"], 12);
    case.follow(&["c"], 22);
    assert_eq!(case.open(), "c Watched");
}
