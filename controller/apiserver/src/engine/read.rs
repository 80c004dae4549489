//! Get, list and watch, from the cache.

use super::Engine;
use crate::catalog::Served;
use crate::feed::{Change, Feed, Subscription, node_topic};
use crate::object::{Filter, Object};
use crate::request::{ListOptions, VersionMatch};
use crate::status::{ApiError, ApiResult};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use causeway_store::{ListRequest, Revision, StoreError};
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Changes handed over at once.
const BATCH: usize = 256;
/// Bookmarks come this often while nothing happens.
const BOOKMARK: Duration = Duration::from_secs(30);

/// One page of a list.
pub struct Page {
    /// The objects.
    pub objects: Vec<Arc<Object>>,
    /// The revision the list is consistent with.
    pub revision: Revision,
    /// Where to continue; empty at the end.
    pub continue_token: String,
    /// How many follow, where that is known.
    pub remaining: Option<usize>,
}

fn list_prefix(served: &Served, namespace: &str) -> String {
    if namespace.is_empty() { served.prefix.clone() } else { format!("{}{namespace}/", served.prefix) }
}

/// The key of the one object that a filter can select, where it says so.
fn one_key(served: &Served, prefix: &str, filter: &Filter) -> Option<String> {
    let placed = !served.namespaced() || prefix.len() > served.prefix.len();
    filter.single_name().filter(|_| placed).map(|name| format!("{prefix}{name}"))
}

/// What wakes a watcher; `None` for any change of the kind.
fn topic(served: &Served, prefix: &str, filter: &Filter) -> Option<String> {
    one_key(served, prefix, filter).or_else(|| filter.single_node().map(node_topic))
}

fn encode_continue(revision: Revision, key: &str) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::json!({ "v": "causeway/v1", "rv": revision, "start": key }).to_string())
}

fn decode_continue(token: &str, prefix: &str) -> ApiResult<(Revision, String)> {
    let bad = || ApiError::bad_request(format!("continue key is not valid: {token:?}"));
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?;
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|_| bad())?;
    let key = value["start"].as_str().filter(|k| k.starts_with(prefix)).ok_or_else(bad)?;
    Ok((value["rv"].as_u64().ok_or_else(bad)?, key.to_owned()))
}

impl Engine {
    /// A built-in object as the cache has it, without waiting for anything.
    pub fn cached(&self, group: &str, plural: &str, namespace: &str, name: &str) -> ApiResult<Option<Arc<Object>>> {
        let served = self.served(group, "v1", plural)?;
        Ok(self.feed.cache(&served.prefix).get(&served.key(namespace, name)))
    }

    /// All objects of a built-in kind as the cache has them; an empty namespace means all.
    pub fn all_cached(&self, group: &str, plural: &str, namespace: &str) -> ApiResult<Vec<Value>> {
        let served = self.served(group, "v1", plural)?;
        let (objects, _) = self.feed.cache(&served.prefix).list(&list_prefix(&served, namespace));
        Ok(objects.iter().map(|o| o.value()).collect())
    }

    /// One object.
    pub async fn get(
        &self,
        served: &Served,
        namespace: &str,
        name: &str,
        version: Option<Revision>,
    ) -> ApiResult<Arc<Object>> {
        match version {
            None => self.feed.catch_up().await?,
            Some(0) => {}
            Some(revision) => self.feed.wait_for(revision).await?,
        }
        let key = served.key(namespace, name);
        self.feed.cache(&served.prefix).get(&key).ok_or_else(|| ApiError::not_found(&served.resource, name))
    }

    /// A list or a page of it; an empty namespace means all.
    pub async fn list(&self, served: &Served, namespace: &str, options: &ListOptions) -> ApiResult<Page> {
        let filter = Self::filter(served, options)?;
        let prefix = list_prefix(served, namespace);
        if let Some(token) = &options.continue_token {
            if options.version.is_some_and(|v| v != 0) {
                return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
            }
            let (revision, start) = decode_continue(token, &prefix)?;
            return self.history(&prefix, revision, Some(start), options.limit, &filter).await;
        }
        match (options.version, options.version_match) {
            (Some(0), Some(VersionMatch::Exact)) => {
                return Err(ApiError::bad_request(
                    "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
            (Some(revision), Some(VersionMatch::Exact)) => {
                return self.history(&prefix, revision, None, options.limit, &filter).await;
            }
            (None, _) => self.feed.catch_up().await?,
            (Some(0), _) => {}
            (Some(revision), _) => self.feed.wait_for(revision).await?,
        }
        Ok(self.newest(served, &prefix, &filter, options.limit))
    }

    /// The state in the cache. Its revision: all changes up to the feed's are in, and none after the cache's own last.
    fn newest(&self, served: &Served, prefix: &str, filter: &Filter, limit: usize) -> Page {
        let fed = self.feed.revision();
        // Of one name there is no need to look at all others.
        let key = one_key(served, prefix, filter);
        let (mut objects, last) = self.feed.cache(&served.prefix).list(key.as_deref().unwrap_or(prefix));
        let revision = fed.max(last);
        if !filter.is_empty() {
            objects.retain(|o| filter.matches(o));
        }
        if limit == 0 || objects.len() <= limit {
            return Page { objects, revision, continue_token: String::new(), remaining: None };
        }
        let remaining = filter.is_empty().then_some(objects.len() - limit);
        objects.truncate(limit);
        let continue_token = objects.last().map(|o| encode_continue(revision, &o.key)).unwrap_or_default();
        Page { objects, revision, continue_token, remaining }
    }

    /// A page as it was at a revision, from the store's history.
    async fn history(
        &self,
        prefix: &str,
        revision: Revision,
        mut start: Option<String>,
        limit: usize,
        filter: &Filter,
    ) -> ApiResult<Page> {
        let continued = start.is_some();
        let mut objects = Vec::new();
        loop {
            let chunk = if limit == 0 { 2000 } else { (limit - objects.len()).max(1) };
            let request =
                ListRequest { prefix: prefix.to_owned(), start_after: start.clone(), limit: chunk, at: Some(revision) };
            let listing = self.store.list(request).await.map_err(|e| match e {
                StoreError::Compacted { .. } if continued => ApiError::continue_expired(),
                other => other.into(),
            })?;
            start = listing.items.last().map(|kv| kv.key.clone());
            for kv in &listing.items {
                let object = Object::decode(kv).map_err(ApiError::internal)?;
                if filter.matches(&object) {
                    objects.push(Arc::new(object));
                }
            }
            let full = limit > 0 && objects.len() >= limit;
            if listing.remaining == 0 || start.is_none() {
                return Ok(Page { objects, revision, continue_token: String::new(), remaining: None });
            }
            if full {
                let continue_token = start.map(|key| encode_continue(revision, &key)).unwrap_or_default();
                let remaining = filter.is_empty().then_some(listing.remaining);
                return Ok(Page { objects, revision, continue_token, remaining });
            }
        }
    }

    /// Starts a watch.
    pub async fn watch(&self, served: &Arc<Served>, namespace: &str, options: &ListOptions) -> ApiResult<Watcher> {
        let filter = Self::filter(served, options)?;
        let prefix = list_prefix(served, namespace);
        let streaming_list = options.initial_events == Some(true);
        if options.initial_events.is_some() && options.version_match != Some(VersionMatch::NotOlderThan) {
            return Err(ApiError::new(
                422,
                "Invalid",
                "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires \
                 setting resourceVersionMatch to NotOlderThan",
            ));
        }
        if streaming_list && !options.bookmarks {
            return Err(ApiError::new(
                422,
                "Invalid",
                "ListOptions.meta.k8s.io \"\" is invalid: allowWatchBookmarks: Forbidden: sendInitialEvents requires \
                 bookmarks",
            ));
        }
        let cache = self.feed.cache(&served.prefix);
        let changes = Subscription::new(cache.clone(), topic(served, &prefix, &filter));
        // Without a version (or with 0) a watch begins with the state, as synthetic ADDED events.
        let with_state = streaming_list || (options.initial_events.is_none() && options.version.unwrap_or(0) == 0);
        match options.version {
            None => self.feed.catch_up().await?,
            Some(0) => {}
            Some(revision) if streaming_list => self.feed.wait_for(revision).await?,
            Some(revision) => {
                // A version from the future is awaited; one that has left the window is told so at once.
                self.feed.wait_for(revision).await?;
                changes.changes(revision, 1)?;
            }
        }
        let (initial, cursor) = if with_state {
            let page = self.newest(served, &prefix, &filter, 0);
            (page.objects, page.revision)
        } else {
            (Vec::new(), options.version.filter(|v| *v > 0).unwrap_or_else(|| self.feed.revision()))
        };
        Ok(Watcher {
            served: served.clone(),
            feed: self.feed.clone(),
            changes,
            prefix,
            filter,
            cursor,
            initial: with_state.then(|| initial.into_iter()),
            initial_bookmark: streaming_list,
            bookmarks: options.bookmarks,
            told: Instant::now(),
        })
    }
}

/// What a watch tells.
#[derive(Debug)]
pub enum Event {
    /// An object came into the selection.
    Added(Arc<Object>),
    /// An object in the selection changed.
    Modified(Arc<Object>),
    /// An object left the selection or was deleted.
    Deleted(Arc<Object>),
    /// Everything up to here was told; `true` ends the initial events.
    Bookmark(Revision, bool),
}

/// A running watch: a cursor into the cache's window.
pub struct Watcher {
    /// The resource.
    pub served: Arc<Served>,
    feed: Arc<Feed>,
    changes: Subscription,
    prefix: String,
    filter: Filter,
    cursor: Revision,
    /// The state at the beginning, as far as it is not told yet.
    initial: Option<std::vec::IntoIter<Arc<Object>>>,
    initial_bookmark: bool,
    bookmarks: bool,
    /// When the client was last told a revision.
    told: Instant,
}

impl Watcher {
    /// The next events; waits until there are some. An error ends the watch.
    pub async fn next(&mut self) -> ApiResult<Vec<Event>> {
        if let Some(objects) = &mut self.initial {
            let mut events: Vec<Event> = objects.take(BATCH).map(Event::Added).collect();
            if events.len() < BATCH {
                self.initial = None;
                if self.initial_bookmark {
                    events.push(Event::Bookmark(self.cursor, true));
                }
            }
            if !events.is_empty() {
                return Ok(events);
            }
        }
        loop {
            self.changes.mark_unchanged();
            let fed = self.feed.revision();
            let changes = self.changes.changes(self.cursor, BATCH)?;
            let complete = changes.len() < BATCH;
            let mut events = Vec::new();
            for change in &changes {
                self.cursor = change.revision;
                events.extend(self.event(change));
            }
            if complete {
                // Nothing between the last change and the feed's revision concerns this resource.
                self.cursor = self.cursor.max(fed);
            }
            if !events.is_empty() {
                self.told = Instant::now();
                return Ok(events);
            }
            // Also while only others' objects change: the client can resume from here.
            let silence = self.told.elapsed();
            if silence >= BOOKMARK {
                self.told = Instant::now();
                if self.bookmarks {
                    return Ok(vec![Event::Bookmark(self.cursor, false)]);
                }
            }
            if !complete {
                continue;
            }
            let patience = BOOKMARK.saturating_sub(silence).max(Duration::from_millis(1));
            let wait = tokio::time::timeout(patience, self.changes.changed()).await;
            if matches!(wait, Ok(Err(_))) {
                return Err(ApiError::unavailable("the server is shutting down"));
            }
        }
    }

    fn event(&self, change: &Change) -> Option<Event> {
        if !change.object.key.starts_with(&self.prefix) {
            return None;
        }
        let before = change.prev.as_ref().is_some_and(|p| self.filter.matches(p));
        let after = !change.deleted && self.filter.matches(&change.object);
        match (before, after) {
            (false, true) => Some(Event::Added(change.object.clone())),
            (true, true) => Some(Event::Modified(change.object.clone())),
            (true, false) => Some(Event::Deleted(self.last_state(change))),
            (false, false) => None,
        }
    }

    /// What a watcher is shown of an object that left: its last selected state at the revision of the change.
    fn last_state(&self, change: &Change) -> Arc<Object> {
        let Some(prev) = change.prev.as_ref().filter(|_| !change.deleted) else { return change.object.clone() };
        let mut value = prev.value();
        crate::object::stamp(&mut value, change.revision);
        match Object::from_value(&prev.key, &value, change.revision) {
            Ok(object) => Arc::new(object),
            Err(_) => change.object.clone(),
        }
    }
}
