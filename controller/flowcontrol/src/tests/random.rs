//! Storms of arrivals, cancellations, ends and reconfigurations by chance: no seat is lost, none is given twice.

use super::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::pin::Pin;

type Asking = Pin<Box<dyn Future<Output = Result<Seat, Rejected>> + Send>>;

struct Storm {
    rng: StdRng,
    dispatcher: Dispatcher,
    asking: Vec<Asking>,
    seats: Vec<Seat>,
    over: bool,
}

const GROUPS: [&str; 5] = ["a", "b", "c", "system:masters", "nobody"];

impl Storm {
    fn new(seed: u64) -> Self {
        let dispatcher = Dispatcher::new(1);
        let mut storm =
            Self { rng: StdRng::seed_from_u64(seed), dispatcher, asking: Vec::new(), seats: Vec::new(), over: false };
        storm.configure();
        storm.over = false;
        storm
    }

    fn configure(&mut self) {
        let rng = &mut self.rng;
        let total = rng.random_range(1..40);
        let mut levels = Vec::new();
        for name in ["a", "b", "c"] {
            if rng.random_bool(0.85) {
                let queues = rng.random_range(1..20);
                let hand = rng.random_range(1..=queues.min(6));
                let numbers = [queues, hand, rng.random_range(1..8)];
                let mut level = queue(name, rng.random_range(0..50), rng.random_range(0..=100), numbers);
                if rng.random_bool(0.3) {
                    level["spec"]["limited"]["borrowingLimitPercent"] = json!(rng.random_range(0..200));
                }
                if rng.random_bool(0.1) {
                    level["spec"]["limited"]["limitResponse"] = json!({"type": "Reject"});
                }
                levels.push(level);
            }
        }
        let schemas = ["a", "b", "c"].map(|n| schema(n, n));
        self.dispatcher.configure(&schemas, &levels, total);
        // Those who run stay, also above a limit that has become lower.
        self.over = true;
    }

    fn arrive(&mut self) {
        let group = GROUPS[self.rng.random_range(0..GROUPS.len())];
        let (user, seats) = (format!("u{}", self.rng.random_range(0..6)), self.rng.random_range(1..12));
        let dispatcher = self.dispatcher.clone();
        let mut asking: Asking = Box::pin(async move { admit(&dispatcher, group, &user, seats).await });
        match poll_once(asking.as_mut()) {
            Poll::Ready(Ok(seat)) => self.seats.push(seat),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.asking.push(asking),
        }
    }

    /// Some learn of what they were granted; others are cancelled though they were granted it.
    fn poll(&mut self) {
        let mut waiting = Vec::new();
        for mut asking in self.asking.drain(..) {
            match self.rng.random_range(0..10) {
                0 => drop(asking),
                1..4 => match poll_once(asking.as_mut()) {
                    Poll::Ready(Ok(seat)) => self.seats.push(seat),
                    Poll::Ready(Err(_)) => {}
                    Poll::Pending => waiting.push(asking),
                },
                _ => waiting.push(asking),
            }
        }
        self.asking = waiting;
    }

    fn end(&mut self) {
        for _ in 0..self.rng.random_range(1..6) {
            if !self.seats.is_empty() {
                let index = self.rng.random_range(0..self.seats.len());
                drop(self.seats.swap_remove(index));
            }
        }
    }

    fn check(&mut self) {
        let snapshot = self.dispatcher.snapshot();
        let known: Vec<_> = snapshot.flows.iter().map(|f| (&f.schema, &f.level)).collect();
        let mut held = 0;
        for l in &snapshot.levels {
            held += l.executing_seats.max(l.lower);
            let seats =
                self.seats.iter().filter(|s| s.flow().level == l.level).map(|s| u64::from(s.seats())).sum::<u64>();
            assert!(seats <= l.executing_seats, "{}: more seats than are counted", l.level);
            if &*l.level != "exempt" && !self.over {
                assert!(l.executing_seats <= l.upper.max(1), "{l:?}");
            }
            // Flows of a level that has been made anew are others.
            if !l.quiescing && known.iter().any(|(_, level)| **level == l.level) && &*l.level != "exempt" {
                let counted: u64 = snapshot.flows.iter().filter(|f| f.level == l.level).map(|f| f.in_queue).sum();
                assert!(counted <= l.in_queue, "{}: {counted} of {}", l.level, l.in_queue);
            }
        }
        assert_eq!(held, snapshot.held);
        let exempt = level(&snapshot, "exempt").executing_seats;
        if !self.over {
            // Those who borrow never take more than there is.
            assert!(snapshot.held <= snapshot.seats + exempt, "{snapshot:?}");
        }
        if snapshot.held <= snapshot.seats {
            self.over = false;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn storms_leave_nothing_behind() {
    for seed in 0..25 {
        let mut storm = Storm::new(seed);
        for step in 0..600 {
            match storm.rng.random_range(0..100) {
                0..50 => storm.arrive(),
                50..70 => storm.poll(),
                70..97 => storm.end(),
                97 => storm.configure(),
                _ => tokio::time::advance(Duration::from_millis(1000)).await,
            }
            if step % 5 == 0 {
                storm.check();
            }
        }
        // Every waiting request ends, one way or another, once the others are gone.
        while !storm.seats.is_empty() {
            storm.end();
            storm.poll();
            storm.check();
        }
        storm.asking.clear();
        let snapshot = storm.dispatcher.snapshot();
        consistent(&snapshot);
        for l in &snapshot.levels {
            let rest = (l.in_queue, l.executing, l.executing_seats, l.quiescing);
            assert_eq!(rest, (0, 0, 0, false), "seed {seed}: {}", l.level);
        }
        // And all seats can be had again.
        let mut levels = vec![queue("a", 30, 50, [8, 2, 10])];
        storm.dispatcher.configure(&[schema("a", "a")], &levels.split_off(0), 35);
        let all = std::iter::from_fn(|| at_once(&storm.dispatcher, "a", "u").and_then(Result::ok));
        assert_eq!(all.collect::<Vec<_>>().len(), 30, "seed {seed}: all but catch-all's five");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_lose_no_seat() {
    let levels = [queue("a", 20, 50, [8, 2, 200]), queue("b", 5, 0, [4, 2, 200])];
    let dispatcher = configured(10, &[schema("a", "a"), schema("b", "b")], &levels);
    let mut tasks = Vec::new();
    for i in 0..64_u64 {
        let dispatcher = dispatcher.clone();
        tasks.push(tokio::spawn(async move {
            let mut rng = StdRng::seed_from_u64(i);
            for _ in 0..200 {
                let (group, user) = (["a", "b"][rng.random_range(0..2)], format!("u{i}"));
                let asking = admit(&dispatcher, group, &user, rng.random_range(1..4));
                let patience = Duration::from_micros(rng.random_range(0..2000));
                if let Ok(Ok(seat)) = tokio::time::timeout(patience, asking).await {
                    if rng.random_bool(0.3) {
                        tokio::time::sleep(Duration::from_micros(100)).await;
                    }
                    drop(seat);
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let snapshot = dispatcher.snapshot();
    consistent(&snapshot);
    assert!(snapshot.levels.iter().all(|l| (l.in_queue, l.executing, l.executing_seats) == (0, 0, 0)), "{snapshot:?}");
    assert!(flow(&snapshot, "a").dispatched > 0 && flow(&snapshot, "a").cancelled > 0, "both happened");
}
