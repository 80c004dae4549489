//! What a rule of the Gateway API does to a request and its answer on their way: headers, host and path that change,
//! redirects, copies sent elsewhere. Pure values; [`crate::traffic`] acts on them.

use super::Upstream;
use http::{HeaderName, HeaderValue, StatusCode};
use std::sync::Arc;

/// The filters of a rule or of one of its backends, merged; the default does nothing.
#[derive(Debug, Clone)]
pub struct Filters<U = Arc<Upstream>> {
    /// To the request's headers.
    pub request: HeaderChange,
    /// To the answer's headers.
    pub response: HeaderChange,
    /// Answered with a redirect, not sent on.
    pub redirect: Option<RedirectTo>,
    /// Another host in the request that is sent on.
    pub host: Option<Box<str>>,
    /// Another path in the request that is sent on.
    pub path: Option<PathChange>,
    /// Copies whose answers nobody reads.
    pub mirrors: Vec<Mirror<U>>,
}

/// Changes of headers, in the order set, add, remove.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderChange {
    /// In place of all of the name.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Beside those of the name.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// All of the name.
    pub remove: Vec<HeaderName>,
}

/// A redirect; what is not given is as in the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedirectTo {
    /// `http` or `https`.
    pub scheme: Option<Box<str>>,
    /// Host name, without port.
    pub host: Option<Box<str>>,
    /// Port. Where none is given: that of the scheme if one is given, else the listener's (HTTPRoute's rules).
    pub port: Option<u16>,
    /// Path.
    pub path: Option<PathChange>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// Another path; the query stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathChange {
    /// As a whole.
    Full(Box<str>),
    /// In place of the prefix that the rule matched.
    Prefix {
        /// What was matched, without a trailing slash.
        from: Box<str>,
        /// What is put there.
        to: Box<str>,
    },
}

/// A copy of some requests.
#[derive(Debug, Clone)]
pub struct Mirror<U = Arc<Upstream>> {
    /// Where it goes.
    pub to: U,
    /// So many …
    pub numerator: u32,
    /// … of so many requests.
    pub denominator: u32,
}

impl<U> Default for Filters<U> {
    fn default() -> Self {
        Self {
            request: HeaderChange::default(),
            response: HeaderChange::default(),
            redirect: None,
            host: None,
            path: None,
            mirrors: Vec::new(),
        }
    }
}

impl<U> Filters<U> {
    /// The same with other backends.
    pub fn map<V>(&self, to: &mut impl FnMut(&U) -> V) -> Filters<V> {
        let mirror = |m: &Mirror<U>| Mirror { to: to(&m.to), numerator: m.numerator, denominator: m.denominator };
        Filters {
            request: self.request.clone(),
            response: self.response.clone(),
            redirect: self.redirect.clone(),
            host: self.host.clone(),
            path: self.path.clone(),
            mirrors: self.mirrors.iter().map(mirror).collect(),
        }
    }
}

impl HeaderChange {
    /// Changes nothing.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}
