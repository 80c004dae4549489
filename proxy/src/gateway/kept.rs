//! What has come of routes, kept from one change to the next: while Gateways, grants, Services and whatever else routes
//! depend on stay the same, an HTTPRoute or GRPCRoute that changes is taken out and entered anew, and no other is looked
//! at. In: what came of one route. Out: the tables of all listeners, how many routes they have, and the reports.

use super::attach::Attached;
use super::report::Report;
use super::rules::{Row, enter, leave};
use crate::route::ObjectKey;
use crate::route::front::SniTable;
use crate::route::rule::{RuleTable, Split};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Kinds of routes that change one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// HTTPRoute.
    Http,
    /// GRPCRoute.
    Grpc,
}

/// One of them.
pub type RouteKey = (RouteKind, ObjectKey);

/// All that is kept. Gateways and listeners are known by their numbers, which hold until [`Kept::reset`].
#[derive(Debug, Default)]
pub struct Kept {
    /// All routes have been entered since the last reset.
    pub is_complete: bool,
    outcomes: BTreeMap<RouteKey, Outcome>,
    others: Vec<Arc<Report>>,
    /// What is attached, by Gateway and listener.
    pub routes: Vec<Vec<Routes>>,
    attached: HashMap<(usize, usize), u32>,
}

/// What is attached to a listener.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    /// HTTPRoutes and GRPCRoutes.
    pub http: Option<RuleTable>,
    /// TLSRoutes.
    pub sni: Option<SniTable>,
    /// A TCPRoute or UDPRoute.
    pub plain: Option<Split>,
}

/// What came of one route.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What it is told.
    pub reports: Vec<Arc<Report>>,
    /// The listeners by which it is counted.
    pub counted: Vec<(usize, usize)>,
    /// Its rows, and where they are entered.
    pub entered: Vec<(Vec<Attached>, Vec<Row>)>,
    /// Gateways that it is attached to.
    pub gateways: Vec<usize>,
    /// Services that it sends to.
    pub services: Vec<ObjectKey>,
}

impl Kept {
    /// Forgets everything: there are so many listeners of each Gateway now.
    pub fn reset(&mut self, listeners: impl Iterator<Item = usize>) {
        *self = Self { routes: listeners.map(|n| vec![Routes::default(); n]).collect(), ..Self::default() };
    }

    /// Enters an HTTPRoute or GRPCRoute, in place of what came of it before.
    pub fn enter(&mut self, key: RouteKey, outcome: Outcome) {
        self.leave(&key);
        for (attached, rows) in &outcome.entered {
            for one in attached {
                let table = self.routes[one.gateway][one.entry].http.get_or_insert_with(RuleTable::with_wide_wildcards);
                enter(table, &one.hosts, rows);
            }
        }
        self.count(&outcome.counted);
        self.outcomes.insert(key, outcome);
    }

    /// Takes one out.
    pub fn leave(&mut self, key: &RouteKey) {
        let Some(outcome) = self.outcomes.remove(key) else { return };
        for (attached, rows) in &outcome.entered {
            for one in attached {
                if let Some(table) = &mut self.routes[one.gateway][one.entry].http {
                    leave(table, &one.hosts, rows);
                }
            }
        }
        for at in outcome.counted {
            if let Some(n) = self.attached.get_mut(&at) {
                *n = n.saturating_sub(1);
            }
        }
    }

    /// Remembers what came of a route of another kind.
    pub fn other(&mut self, outcome: Outcome) {
        self.count(&outcome.counted);
        self.others.extend(outcome.reports);
    }

    fn count(&mut self, listeners: &[(usize, usize)]) {
        for at in listeners {
            *self.attached.entry(*at).or_default() += 1;
        }
    }

    /// How many routes a listener has.
    pub fn attached(&self, gateway: usize, entry: usize) -> u32 {
        self.attached.get(&(gateway, entry)).copied().unwrap_or(0)
    }

    /// What routes are told.
    pub fn reports(&self) -> impl Iterator<Item = &Arc<Report>> {
        self.outcomes.values().flat_map(|o| &o.reports).chain(&self.others)
    }

    /// Which Gateways send to which Service, for policies of these Services.
    pub fn users(&self) -> BTreeMap<&ObjectKey, BTreeSet<usize>> {
        let mut users: BTreeMap<&ObjectKey, BTreeSet<usize>> = BTreeMap::new();
        for outcome in self.outcomes.values() {
            for service in &outcome.services {
                users.entry(service).or_default().extend(&outcome.gateways);
            }
        }
        users
    }
}
