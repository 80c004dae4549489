//! The table: a value of which a changed copy shares all that has not changed, so that one rule more or less costs the
//! same among ten rules and among a hundred thousand. Requests in flight keep the routes they found.
//!
//! Precedence: an exact host before a wildcard before rules for every host; within a host an exact path before a regular
//! expression (the longest in text that fits) before the longest prefix. Where no rule matches, the default backend of the
//! host's own Ingress answers, then the default of all. A host is one hash, a path one hash plus one step a segment.

use super::{HostPattern, PathPattern, Route};
use regex::bytes::Regex;
use rpds::HashTrieMapSync;
use std::cmp::Reverse;
use std::sync::Arc;

/// The routing table. `T` is what stands in a row: one route, or several of which more than host and path decide.
#[derive(Debug, Clone)]
pub struct Table<T: Clone = Arc<Route>> {
    exact: HashTrieMapSync<Box<str>, PathTree<T>>,
    wildcard: HashTrieMapSync<Box<str>, PathTree<T>>,
    any: PathTree<T>,
    routes: usize,
    /// A wildcard stands for one label or more (Gateway API), not for exactly one (Ingress).
    many_labels: bool,
}

/// What is known for one host.
#[derive(Debug, Clone)]
struct PathTree<T: Clone> {
    exact: Option<HashTrieMapSync<Box<[u8]>, T>>,
    /// Longest text first. Their cost grows with their number, on the hosts that have them.
    expressions: Arc<Vec<(Box<str>, Regex, T)>>,
    prefixes: Node<T>,
    /// Answers what no rule does: the `defaultBackend` of an Ingress with rules for this host.
    default: Option<T>,
}

#[derive(Debug, Clone)]
struct Node<T: Clone> {
    route: Option<T>,
    children: Option<HashTrieMapSync<Box<[u8]>, Node<T>>>,
}

impl<T: Clone> Default for Table<T> {
    fn default() -> Self {
        let (exact, wildcard) = (HashTrieMapSync::new_sync(), HashTrieMapSync::new_sync());
        Self { exact, wildcard, any: PathTree::default(), routes: 0, many_labels: false }
    }
}

impl<T: Clone> Default for PathTree<T> {
    fn default() -> Self {
        Self { exact: None, expressions: Arc::default(), prefixes: Node::default(), default: None }
    }
}

impl<T: Clone> Default for Node<T> {
    fn default() -> Self {
        Self { route: None, children: None }
    }
}

impl<T: Clone> Table<T> {
    /// A table in which a wildcard stands for one label or more.
    pub fn with_wide_wildcards() -> Self {
        Self { many_labels: true, ..Self::default() }
    }

    /// The number of rules.
    pub fn len(&self) -> usize {
        self.routes
    }

    /// No rule at all.
    pub fn is_empty(&self) -> bool {
        self.routes == 0
    }

    /// Adds a rule. The same host and path again replaces it: who wins is decided before.
    pub fn insert(&mut self, host: &HostPattern, path: &PathPattern, route: T) {
        self.join(host, path, route, |old, new| *old = new);
    }

    /// Adds a rule, or lets `join` put it together with the one that has the same host and path.
    pub fn join(&mut self, host: &HostPattern, path: &PathPattern, route: T, join: impl FnOnce(&mut T, T)) {
        let added = self.change(host, |tree| match path {
            PathPattern::Exact(path) => {
                let exact = tree.exact.get_or_insert_with(HashTrieMapSync::new_sync);
                match exact.get_mut(path) {
                    Some(old) => join(old, route),
                    None => {
                        exact.insert_mut(path.clone(), route);
                        return true;
                    }
                }
                false
            }
            PathPattern::Prefix(path) => {
                let mut given = Some((join, route));
                tree.prefixes.change(&mut segments(path), &mut |row| match (row.as_mut(), given.take()) {
                    (Some(old), Some((join, route))) => {
                        join(old, route);
                        false
                    }
                    (_, given) => {
                        *row = given.map(|(_, route)| route);
                        true
                    }
                })
            }
            PathPattern::Regex(text) => {
                let expressions = Arc::make_mut(&mut tree.expressions);
                if let Some((.., old)) = expressions.iter_mut().find(|(t, ..)| t == text) {
                    join(old, route);
                    return false;
                }
                let Some(expression) = path.compiled() else { return false };
                let key = |t: &str| (Reverse(t.len()), t.to_owned());
                let at = expressions.partition_point(|(t, ..)| key(t) < key(text));
                expressions.insert(at, (text.clone(), expression, route));
                true
            }
        });
        self.routes += usize::from(added);
    }

    /// Takes a rule out.
    pub fn remove(&mut self, host: &HostPattern, path: &PathPattern) {
        self.update(host, path, |_| false);
    }

    /// Changes what stands in a rule, if there is one; it is taken out where `keep` says so.
    pub fn update(&mut self, host: &HostPattern, path: &PathPattern, mut keep: impl FnMut(&mut T) -> bool) {
        let removed = self.change(host, |tree| match path {
            PathPattern::Exact(path) => {
                let Some(exact) = &mut tree.exact else { return false };
                let goes = exact.get_mut(path).is_some_and(|row| !keep(row));
                if goes {
                    exact.remove_mut(path);
                }
                tree.exact = tree.exact.take().filter(|exact| !exact.is_empty());
                goes
            }
            PathPattern::Prefix(path) => tree.prefixes.change(&mut segments(path), &mut |row| {
                let goes = row.as_mut().is_some_and(|row| !keep(row));
                if goes {
                    *row = None;
                }
                goes
            }),
            PathPattern::Regex(text) => {
                let expressions = Arc::make_mut(&mut tree.expressions);
                let before = expressions.len();
                expressions.retain_mut(|(t, _, row)| t != text || keep(row));
                expressions.len() < before
            }
        });
        self.routes -= usize::from(removed);
    }

    /// Sets what answers for a host when no rule does; nothing: the default of all, then nobody.
    pub fn set_default(&mut self, host: &HostPattern, route: Option<T>) {
        self.change(host, |tree| tree.default = route);
    }

    /// The route of a request. `host` is normalised (none: HTTP/1.0 without one), `path` canonical.
    pub fn lookup(&self, host: Option<&str>, path: &[u8]) -> Option<&T> {
        self.find(host, path, &mut Some)
    }

    /// The first that `pick` takes of all rows that fit a request, the most specific first.
    pub fn find<'a, R>(
        &'a self,
        host: Option<&str>,
        path: &[u8],
        pick: &mut impl FnMut(&'a T) -> Option<R>,
    ) -> Option<R> {
        let trees = || {
            let exact = host.and_then(|h| self.exact.get(h));
            exact.into_iter().chain(self.wildcards(host)).chain([&self.any])
        };
        trees()
            .find_map(|tree| tree.find(path, pick))
            .or_else(|| trees().find_map(|tree| tree.default.as_ref().and_then(&mut *pick)))
    }

    /// The trees of the wildcards a host fits, the longest first.
    fn wildcards<'a>(&'a self, host: Option<&str>) -> impl Iterator<Item = &'a PathTree<T>> {
        let suffix = host.filter(|_| !self.wildcard.is_empty()).and_then(|h| Some(h.split_once('.')?.1));
        let suffixes = std::iter::successors(suffix, |s| Some(s.split_once('.')?.1));
        suffixes.take(if self.many_labels { usize::MAX } else { 1 }).filter_map(|s| self.wildcard.get(s))
    }

    /// Every rule as (host, path, what it is), for people to look at; sorted.
    pub fn rows(&self) -> Vec<(String, String, &T)> {
        let hosts = self.exact.iter().map(|(h, t)| (h.to_string(), t));
        let wildcards = self.wildcard.iter().map(|(h, t)| (format!("*.{h}"), t));
        let mut rows = Vec::new();
        for (host, tree) in hosts.chain(wildcards).chain([("*".to_owned(), &self.any)]) {
            for (path, route) in tree.exact.iter().flatten() {
                rows.push((host.clone(), format!("= {}", String::from_utf8_lossy(path)), route));
            }
            for (text, _, route) in tree.expressions.iter() {
                rows.push((host.clone(), format!("~ {text}"), route));
            }
            tree.prefixes.rows(&mut String::new(), &mut |path, route| {
                rows.push((host.clone(), format!("{path}/"), route));
            });
            if let Some(route) = &tree.default {
                rows.push((host.clone(), "default".to_owned(), route));
            }
        }
        rows.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        rows
    }

    /// Changes what is known for a host. Of a host that has nothing any more nothing is kept.
    fn change<R>(&mut self, host: &HostPattern, change: impl FnOnce(&mut PathTree<T>) -> R) -> R {
        match host {
            HostPattern::Exact(name) => entry(&mut self.exact, name, PathTree::is_empty, change),
            HostPattern::Wildcard(suffix) => entry(&mut self.wildcard, suffix, PathTree::is_empty, change),
            HostPattern::Any => change(&mut self.any),
        }
    }
}

/// Changes the value of a key, which is there only while it is not empty.
fn entry<Q, V, R>(
    map: &mut HashTrieMapSync<Box<Q>, V>,
    key: &Q,
    empty: impl FnOnce(&V) -> bool,
    change: impl FnOnce(&mut V) -> R,
) -> R
where
    Q: std::hash::Hash + Eq + ?Sized,
    Box<Q>: Clone + for<'a> From<&'a Q>,
    V: Clone + Default,
{
    if let Some(value) = map.get_mut(key) {
        let result = change(value);
        if empty(value) {
            map.remove_mut(key);
        }
        return result;
    }
    let mut value = V::default();
    let result = change(&mut value);
    if !empty(&value) {
        map.insert_mut(key.into(), value);
    }
    result
}

impl<T: Clone> PathTree<T> {
    fn is_empty(&self) -> bool {
        self.exact.is_none() && self.expressions.is_empty() && self.prefixes.is_empty() && self.default.is_none()
    }

    fn find<'a, R>(&'a self, path: &[u8], pick: &mut impl FnMut(&'a T) -> Option<R>) -> Option<R> {
        if let Some(found) = self.exact.as_ref().and_then(|exact| exact.get(path)).and_then(&mut *pick) {
            return Some(found);
        }
        let fitting = self.expressions.iter().filter(|(_, expression, _)| expression.is_match(path));
        let found = fitting.map(|(.., route)| route).find_map(&mut *pick);
        found.or_else(|| self.prefixes.find(&mut segments(path), pick))
    }
}

impl<T: Clone> Node<T> {
    fn is_empty(&self) -> bool {
        self.route.is_none() && self.children.is_none()
    }

    /// Changes the row of a path. Nodes that lead nowhere are not kept.
    fn change<'p>(
        &mut self,
        rest: &mut impl Iterator<Item = &'p [u8]>,
        change: &mut dyn FnMut(&mut Option<T>) -> bool,
    ) -> bool {
        let Some(segment) = rest.next() else { return change(&mut self.route) };
        let children = self.children.get_or_insert_with(HashTrieMapSync::new_sync);
        let result = entry(children, segment, Self::is_empty, |child: &mut Self| child.change(rest, change));
        self.children = self.children.take().filter(|children| !children.is_empty());
        result
    }

    /// The deepest first. Goes down no further than the rules' own paths do.
    fn find<'a, 'p, R>(
        &'a self,
        rest: &mut impl Iterator<Item = &'p [u8]>,
        pick: &mut impl FnMut(&'a T) -> Option<R>,
    ) -> Option<R> {
        let child = self.children.as_ref().and_then(|children| children.get(rest.next()?));
        child.and_then(|c| c.find(rest, pick)).or_else(|| self.route.as_ref().and_then(pick))
    }

    fn rows<'a>(&'a self, path: &mut String, emit: &mut impl FnMut(&str, &'a T)) {
        if let Some(route) = &self.route {
            emit(path, route);
        }
        for (segment, child) in self.children.iter().flatten() {
            let length = path.len();
            path.push('/');
            path.push_str(&String::from_utf8_lossy(segment));
            child.rows(path, emit);
            path.truncate(length);
        }
    }
}

fn segments(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&b| b == b'/').filter(|s| !s.is_empty())
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
