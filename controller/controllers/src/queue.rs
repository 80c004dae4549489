//! A work queue: keys in, one reconcile a key at a time out. Keys are deduplicated while they wait, come back when
//! they were added while being worked on, and are retried with exponential back-off after a failure.

use crate::error::{Error, Result};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const FIRST_RETRY: Duration = Duration::from_millis(10);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Namespace and name of an object; the namespace of a cluster-wide one is empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Namespace, or empty.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key from its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// What can wait in a queue.
pub trait Work: Hash + Eq + Ord + Clone + Send + Sync + fmt::Display + 'static {}
impl<T: Hash + Eq + Ord + Clone + Send + Sync + fmt::Display + 'static> Work for T {}

struct State<T> {
    ready: VecDeque<T>,
    dirty: HashSet<T>,
    busy: HashSet<T>,
    later: BTreeSet<(Instant, T)>,
    due: HashMap<T, Instant>,
    failures: HashMap<T, u32>,
}

/// The queue. Bounded by the number of distinct keys.
pub struct Queue<T> {
    state: Mutex<State<T>>,
    wake: Notify,
}

impl<T: Work> Queue<T> {
    /// An empty queue.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: HashSet::new(),
                busy: HashSet::new(),
                later: BTreeSet::new(),
                due: HashMap::new(),
                failures: HashMap::new(),
            }),
            wake: Notify::new(),
        })
    }

    /// Asks for a reconcile of `key` soon.
    pub fn add(&self, key: T) {
        self.state.lock().add(key);
        self.wake.notify_one();
    }

    /// Asks for a reconcile of `key` after a while; the earliest wish counts.
    pub fn add_after(&self, key: T, delay: Duration) {
        {
            let mut state = self.state.lock();
            let at = Instant::now() + delay;
            if let Some(&earlier) = state.due.get(&key) {
                if earlier <= at {
                    return;
                }
                state.later.remove(&(earlier, key.clone()));
            }
            state.due.insert(key.clone(), at);
            state.later.insert((at, key));
        }
        self.wake.notify_one();
    }

    async fn next(&self) -> T {
        loop {
            let deadline = {
                let mut state = self.state.lock();
                state.promote(Instant::now());
                if let Some(key) = state.take() {
                    if !state.ready.is_empty() {
                        self.wake.notify_one();
                    }
                    return key;
                }
                state.later.first().map(|(at, _)| *at)
            };
            match deadline {
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    () = self.wake.notified() => {}
                },
                None => self.wake.notified().await,
            }
        }
    }

    fn done(&self, controller: &str, key: T, outcome: Result<Option<Duration>>) {
        let delay = match outcome {
            Ok(delay) => {
                self.state.lock().failures.remove(&key);
                delay
            }
            Err(error) => Some(self.failed(controller, &key, &error)),
        };
        let again = {
            let mut state = self.state.lock();
            state.busy.remove(&key);
            let again = state.dirty.contains(&key);
            if again {
                state.ready.push_back(key.clone());
            }
            again
        };
        if again {
            self.wake.notify_one();
        }
        if let Some(delay) = delay {
            self.add_after(key, delay);
        }
    }

    fn failed(&self, controller: &str, key: &T, error: &Error) -> Duration {
        let mut state = self.state.lock();
        let count = state.failures.entry(key.clone()).or_insert(0);
        *count += 1;
        if error.is_conflict() || *count < 3 {
            tracing::debug!(controller, %key, %error, "will try again");
        } else {
            tracing::warn!(controller, %key, %error, tries = *count, "will try again");
        }
        FIRST_RETRY.saturating_mul(1 << (*count - 1).min(12)).min(LAST_RETRY)
    }

    /// Works the queue with `workers` tasks until `shutdown`; a reconcile may ask to be called again after a while.
    pub async fn work<F, Fut>(
        self: Arc<Self>,
        controller: &'static str,
        workers: usize,
        shutdown: CancellationToken,
        reconcile: F,
    ) where
        F: Fn(T) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<Duration>>> + Send,
    {
        let mut tasks = JoinSet::new();
        for _ in 0..workers {
            let (queue, shutdown, reconcile) = (self.clone(), shutdown.clone(), reconcile.clone());
            tasks.spawn(async move {
                loop {
                    let key = tokio::select! {
                        key = queue.next() => key,
                        () = shutdown.cancelled() => return,
                    };
                    let outcome = tokio::select! {
                        outcome = reconcile(key.clone()) => outcome,
                        () = shutdown.cancelled() => return,
                    };
                    queue.done(controller, key, outcome);
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    }
}

impl<T: Work> State<T> {
    fn add(&mut self, key: T) {
        if self.dirty.insert(key.clone()) && !self.busy.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn promote(&mut self, now: Instant) {
        while self.later.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.later.pop_first() else { return };
            self.due.remove(&key);
            self.add(key);
        }
    }

    fn take(&mut self) -> Option<T> {
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.busy.insert(key.clone());
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_key_is_worked_once_at_a_time_and_comes_back() {
        let queue = Queue::new();
        let (running, most, runs) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let shutdown = CancellationToken::new();
        let work = {
            let (q, running, most, runs) = (queue.clone(), running.clone(), most.clone(), runs.clone());
            tokio::spawn(queue.clone().work("test", 4, shutdown.clone(), move |_: String| {
                let (q, running, most, runs) = (q.clone(), running.clone(), most.clone(), runs.clone());
                async move {
                    let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now, Ordering::SeqCst);
                    if runs.fetch_add(1, Ordering::SeqCst) == 0 {
                        for _ in 0..5 {
                            q.add("a".to_owned());
                        }
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    running.fetch_sub(1, Ordering::SeqCst);
                    Ok(None)
                }
            }))
        };
        queue.add("a".to_owned());
        tokio::time::sleep(Duration::from_secs(1)).await;
        shutdown.cancel();
        work.await.unwrap();
        assert_eq!(most.load(Ordering::SeqCst), 1, "never two at a time");
        assert_eq!(runs.load(Ordering::SeqCst), 2, "adds while busy are one further run");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_and_the_earliest_delay_counts() {
        let queue = Queue::new();
        let times = Arc::new(Mutex::new(Vec::new()));
        let start = Instant::now();
        let shutdown = CancellationToken::new();
        let work = {
            let times = times.clone();
            tokio::spawn(queue.clone().work("test", 1, shutdown.clone(), move |_: String| {
                let times = times.clone();
                async move {
                    let mut times = times.lock();
                    times.push(start.elapsed().as_millis());
                    if times.len() < 4 { Err(Error::Object("no".into())) } else { Ok(None) }
                }
            }))
        };
        queue.add_after("a".to_owned(), Duration::from_secs(9));
        queue.add_after("a".to_owned(), Duration::from_secs(1));
        tokio::time::sleep(Duration::from_secs(60)).await;
        shutdown.cancel();
        work.await.unwrap();
        let times = times.lock().clone();
        let gaps: Vec<_> = times.windows(2).map(|w| w[1] - w[0]).collect();
        assert_eq!(times.len(), 4, "{times:?}");
        assert!(gaps[0] < gaps[1] && gaps[1] < gaps[2], "{gaps:?}");
    }
}
