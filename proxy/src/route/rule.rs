//! Rules of the Gateway API as the data plane reads them: which requests, what is done to them, and to which backends
//! they go. Pure values and decisions; the configuration makes them, [`crate::traffic`] asks.
//!
//! Backends are of a type `U`: keys where a model is made, upstreams with their endpoints where requests are served
//! ([`Split::map`] leads from the one to the other).

use super::filter::Filters;
use super::{Rank, Route, Table, Upstream};
use http::{HeaderName, Method};
use std::sync::Arc;
use std::time::Duration;

/// The routes of one listener. What stands in a row has the same host and path: the first whose conditions fit counts.
pub type RuleTable = Table<Vec<Candidate>>;

/// One match of a rule, behind its host and path.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// What else a request must have.
    pub conditions: Conditions,
    /// What happens to it then.
    pub route: Arc<Route>,
    /// Its place among those with as many conditions.
    pub order: Order,
}

/// The order of rules that fit a request alike: HTTPRoutes before GRPCRoutes, older before younger ones, then by namespace
/// and name, and those of one route as they stand there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order {
    /// Of a GRPCRoute.
    pub is_grpc: bool,
    /// The route's place among others.
    pub rank: Rank,
    /// The place in it.
    pub at: usize,
}

/// What a match asks for besides host and path; all of it must fit. The default takes every request.
#[derive(Debug, Clone, Default)]
pub struct Conditions {
    /// The method.
    pub method: Option<Method>,
    /// Headers: several values of one are joined with commas.
    pub headers: Vec<(HeaderName, TextMatch)>,
    /// Query parameters; of several with one name the first counts.
    pub query: Vec<(Box<str>, TextMatch)>,
}

/// How a text is compared.
#[derive(Debug, Clone)]
pub enum TextMatch {
    /// Is this.
    Exact(Box<str>),
    /// Fits this expression as a whole.
    Regex(regex::Regex),
}

/// Backends that share a rule's requests by weight.
#[derive(Debug, Clone)]
pub struct Split<U = Arc<Upstream>> {
    /// All of them, also those of weight 0.
    pub backends: Vec<Share<U>>,
}

/// One backend of several.
#[derive(Debug, Clone)]
pub struct Share<U = Arc<Upstream>> {
    /// So many of the sum of all weights.
    pub weight: u32,
    /// Where its requests go; or why they get 500, when the reference leads nowhere.
    pub target: Result<U, Arc<str>>,
    /// What is done to the requests that go there, besides what the rule does.
    pub filters: Option<Arc<Filters<U>>>,
}

/// Time-outs of a rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the request's head to the end of its answer, all tries together; 504 when it runs out.
    pub request: Option<Duration>,
    /// For one try at a backend.
    pub backend: Option<Duration>,
}

/// When a request is sent again (GEP-1731).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Statuses of answers that are thrown away for another try.
    pub codes: Vec<u16>,
    /// Tries after the first.
    pub attempts: u32,
    /// The pause before each of them.
    pub backoff: Duration,
}

/// A client stays with its backend (GEP-1619).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The name of the cookie or header that carries the session.
    pub name: Box<str>,
    /// By a header, not by a cookie.
    pub header: bool,
    /// After this a session ends; with a permanent cookie it is also the cookie's `Max-Age`.
    pub absolute: Option<Duration>,
    /// Clients forget the cookie only after [`Self::absolute`], not when they end.
    pub permanent: bool,
}

impl<U> Split<U> {
    /// The same with other backends.
    pub fn map<V>(&self, to: &mut impl FnMut(&U) -> V) -> Split<V> {
        let backends = self.backends.iter().map(|share| Share {
            weight: share.weight,
            target: share.target.as_ref().map(&mut *to).map_err(Arc::clone),
            filters: share.filters.as_ref().map(|f| Arc::new(f.map(to))),
        });
        Split { backends: backends.collect() }
    }

    /// The sum of all weights.
    pub fn total(&self) -> u64 {
        self.backends.iter().map(|b| u64::from(b.weight)).sum()
    }

    /// The backend for a number below [`Self::total`]; none when there is nothing to choose from.
    pub fn choose(&self, mut number: u64) -> Option<&Share<U>> {
        self.backends.iter().find(|share| match number.checked_sub(u64::from(share.weight)) {
            Some(rest) => {
                number = rest;
                false
            }
            None => true,
        })
    }
}

impl TextMatch {
    /// An expression that must fit the whole text (RE2's syntax).
    ///
    /// # Errors
    /// When it is not one, or needs too much memory.
    pub fn regex(text: &str) -> Result<Self, regex::Error> {
        let whole = format!("^(?:{text})$");
        regex::RegexBuilder::new(&whole).size_limit(1 << 20).build().map(Self::Regex)
    }

    /// Whether a text fits.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(want) => **want == *text,
            Self::Regex(expression) => expression.is_match(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_share_the_requests() {
        let share = |weight| Share { weight, target: Ok(weight), filters: None };
        let split = Split { backends: vec![share(0), share(3), share(0), share(1)] };
        assert_eq!(split.total(), 4);
        let chosen: Vec<_> = (0..5).map(|n| split.choose(n).map(|s| s.weight)).collect();
        assert_eq!(chosen, [Some(3), Some(3), Some(3), Some(1), None]);
        assert_eq!(split.map(&mut |n| n * 2).backends[1].target, Ok(6));
    }

    #[test]
    fn expressions_fit_the_whole_text() {
        let m = TextMatch::regex("a|bc").unwrap();
        assert!(m.matches("a") && m.matches("bc"));
        assert!(!m.matches("ac") && !m.matches("xbc") && !m.matches("A"));
        assert!(TextMatch::regex("(").is_err());
        assert!(TextMatch::Exact("a".into()).matches("a") && !TextMatch::Exact("a".into()).matches("A"));
    }
}
