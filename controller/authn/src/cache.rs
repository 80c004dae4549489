//! Answers about tokens, kept for a while.
//!
//! In: a token with what it is asked for. Out: the answer, from memory or found out once however many ask at the same
//! time. Keys are HMAC-SHA-256 under a key that is random for each cache, so neither tokens nor digests that somebody
//! could compare with other places are held. Refusals are kept like any answer; errors are shared by those who wait,
//! and not kept.

use crate::user::AuthnError;
use lru::LruCache;
use parking_lot::Mutex;
use ring::hmac;
use ring::rand::SystemRandom;
use std::collections::HashMap;
use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How many answers may be being found out at once.
const MAX_FLIGHTS: usize = 1024;

type Key = [u8; 32];
type Outcome<V> = Result<V, AuthnError>;

/// Answers by token; see the module. Clones share it.
pub struct Cache<V>(Arc<Inner<V>>);

struct Inner<V> {
    key: hmac::Key,
    /// Longest time for finding an answer out.
    limit: Duration,
    state: Mutex<State<V>>,
}

struct State<V> {
    kept: LruCache<Key, (V, Instant)>,
    flights: HashMap<Key, watch::Receiver<Option<Outcome<V>>>>,
}

/// An answer and how long it may be kept; not at all when that is zero.
pub struct Fresh<V> {
    /// The answer.
    pub value: V,
    /// Its life.
    pub ttl: Duration,
}

impl<V> Clone for Cache<V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<V: Clone + Send + Sync + 'static> Cache<V> {
    /// For at most `capacity` answers (the one not used for longest goes first); finding one out takes at most `limit`.
    /// An error when the system has no randomness.
    pub fn new(capacity: NonZeroUsize, limit: Duration) -> Result<Self, AuthnError> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        let key = key.map_err(|_| AuthnError::Unavailable("no random key for a cache of tokens".to_owned()))?;
        let state = Mutex::new(State { kept: LruCache::new(capacity), flights: HashMap::new() });
        Ok(Self(Arc::new(Inner { key, limit, state })))
    }

    /// The answer for a token and what it is asked for (audiences, for example), from memory or by `find`, which runs
    /// on even if the caller goes away.
    pub async fn get_or<F, Fut>(&self, token: &str, scope: &[String], find: F) -> Result<V, AuthnError>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<Fresh<V>, AuthnError>> + Send + 'static,
    {
        let key = self.digest(token, scope);
        let mut waiting = {
            let mut state = self.0.state.lock();
            match state.kept.get(&key) {
                Some((value, end)) if *end > Instant::now() => return Ok(value.clone()),
                Some(_) => drop(state.kept.pop(&key)),
                None => {}
            }
            match state.flights.get(&key) {
                Some(flight) => flight.clone(),
                None if state.flights.len() >= MAX_FLIGHTS => {
                    return Err(AuthnError::Unavailable("too many tokens are being checked".to_owned()));
                }
                None => {
                    let (sender, receiver) = watch::channel(None);
                    state.flights.insert(key, receiver.clone());
                    let landing = Landing { inner: Arc::clone(&self.0), key, sender };
                    let found = tokio::time::timeout(self.0.limit, find());
                    tokio::spawn(async move { landing.with(found.await.unwrap_or_else(|_| Err(too_slow()))) });
                    receiver
                }
            }
        };
        // Without a value, whoever looked for it has panicked.
        let outcome = waiting.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        outcome.ok().flatten().unwrap_or_else(|| Err(AuthnError::Unavailable("checking a token failed".to_owned())))
    }

    /// Forgets everything: after the configuration has changed. What is being found out is answered, and not kept.
    pub fn clear(&self) {
        let mut state = self.0.state.lock();
        state.kept.clear();
        state.flights.clear();
    }

    /// How many answers are kept, those past their time included.
    pub fn len(&self) -> usize {
        self.0.state.lock().kept.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Each part with its length before it, so that no two lists of parts read the same.
    fn digest(&self, token: &str, scope: &[String]) -> Key {
        let mut context = hmac::Context::with_key(&self.0.key);
        for part in std::iter::once(token).chain(scope.iter().map(String::as_str)) {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        let mut key = Key::default();
        key.copy_from_slice(context.sign().as_ref());
        key
    }
}

fn too_slow() -> AuthnError {
    AuthnError::Unavailable("checking a token took too long".to_owned())
}

/// Ends a flight, also when it panics.
struct Landing<V> {
    inner: Arc<Inner<V>>,
    key: Key,
    sender: watch::Sender<Option<Outcome<V>>>,
}

impl<V: Clone> Landing<V> {
    fn with(self, found: Result<Fresh<V>, AuthnError>) {
        let mut state = self.inner.state.lock();
        if let Ok(fresh) = &found
            && !fresh.ttl.is_zero()
            && state.flights.get(&self.key).is_some_and(|flight| self.is_own(flight))
        {
            state.kept.put(self.key, (fresh.value.clone(), Instant::now() + fresh.ttl));
        }
        drop(state);
        let _ = self.sender.send(Some(found.map(|fresh| fresh.value)));
    }
}

impl<V> Landing<V> {
    /// After `clear`, another flight may have taken the place.
    fn is_own(&self, flight: &watch::Receiver<Option<Outcome<V>>>) -> bool {
        self.sender.subscribe().same_channel(flight)
    }
}

impl<V> Drop for Landing<V> {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock();
        if state.flights.get(&self.key).is_some_and(|flight| self.is_own(flight)) {
            state.flights.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    const MINUTE: Duration = Duration::from_secs(60);

    fn cache(capacity: usize) -> Cache<u32> {
        Cache::new(NonZeroUsize::new(capacity).unwrap(), MINUTE).unwrap()
    }

    fn fresh(value: u32, ttl: Duration) -> Result<Fresh<u32>, AuthnError> {
        Ok(Fresh { value, ttl })
    }

    #[tokio::test(start_paused = true)]
    async fn kept_for_its_life_and_by_token_and_scope() {
        let cache = cache(8);
        let ask = |token: &'static str, scope: &[&str], value| {
            let scope: Vec<String> = scope.iter().map(|s| (*s).to_owned()).collect();
            let cache = cache.clone();
            async move { cache.get_or(token, &scope, || async move { fresh(value, MINUTE) }).await.unwrap() }
        };
        assert_eq!(ask("a", &[], 1).await, 1);
        assert_eq!(ask("a", &[], 2).await, 1);
        assert_eq!(ask("a", &["x"], 3).await, 3);
        assert_eq!(ask("ax", &[], 4).await, 4);
        tokio::time::advance(MINUTE).await;
        assert_eq!(ask("a", &[], 5).await, 5);
        cache.clear();
        assert_eq!(ask("a", &[], 6).await, 6);
    }

    #[tokio::test]
    async fn one_finds_out_for_all_who_wait_even_when_the_first_goes_away() {
        let (cache, count) = (cache(8), Arc::new(AtomicUsize::new(0)));
        let ask = || {
            let (cache, count) = (cache.clone(), Arc::clone(&count));
            tokio::spawn(async move {
                let slow = || async move {
                    count.fetch_add(1, SeqCst);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    fresh(7, MINUTE)
                };
                cache.get_or("t", &[], slow).await
            })
        };
        let first = ask();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let others: Vec<_> = (0..50).map(|_| ask()).collect();
        first.abort();
        for other in others {
            assert_eq!(other.await.unwrap(), Ok(7));
        }
        assert_eq!(count.load(SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn errors_panics_and_time_outs_are_not_kept() {
        let cache = cache(8);
        let bad = AuthnError::Refused("no".to_owned());
        let refused = bad.clone();
        assert_eq!(cache.get_or("t", &[], || async { Err(refused) }).await, Err(bad));
        let slow = cache.get_or("t", &[], || async {
            tokio::time::sleep(2 * MINUTE).await;
            fresh(1, MINUTE)
        });
        assert_eq!(slow.await, Err(too_slow()));
        assert!(matches!(cache.get_or("t", &[], || async { panic!("test") }).await, Err(AuthnError::Unavailable(_))));
        assert_eq!(cache.get_or("t", &[], || async { fresh(2, Duration::ZERO) }).await, Ok(2));
        assert_eq!(cache.get_or("t", &[], || async { fresh(3, MINUTE) }).await, Ok(3));
    }

    #[tokio::test]
    async fn bounded() {
        let cache = cache(3);
        for n in 0..100 {
            cache.get_or(&n.to_string(), &[], || async move { fresh(n, MINUTE) }).await.unwrap();
        }
        assert_eq!(cache.len(), 3);
    }

    #[tokio::test]
    async fn digests_are_of_no_use_elsewhere() {
        let (one, other) = (cache(3), cache(3));
        assert_eq!(one.digest("secret", &[]), one.clone().digest("secret", &[]));
        assert_ne!(one.digest("secret", &[]), other.digest("secret", &[]));
    }
}
