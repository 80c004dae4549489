//! Which endpoints a connection may go to: traffic policies, terminating endpoints (KEP-1669) and topology hints
//! (KEP-2433, KEP-3015, KEP-4444). Pure.
//!
//! In: the endpoints of one Service port. Out: [`Choice`]s for the policies `Cluster` and `Local`.

use super::{Choice, NodeView, Target};
use causeway_api::endpoints::{self, Endpoint};
use std::collections::BTreeSet;

/// The endpoints of one port and one family, as one node sees them.
pub(super) struct Endpoints<'a> {
    all: Vec<Endpoint>,
    node: &'a NodeView,
}

impl<'a> Endpoints<'a> {
    pub(super) fn new(all: &[Endpoint], v4: bool, node: &'a NodeView) -> Self {
        Self { all: all.iter().filter(|e| e.ip.is_ipv4() == v4).cloned().collect(), node }
    }

    /// The policy `Cluster`: ready ones, near ones first; when none is ready anywhere, those that serve while they
    /// terminate, near or not.
    pub(super) fn cluster(&self) -> Choice {
        spread(endpoints::near(&self.all, &self.node.name, self.node.zone.as_deref()), Choice::Refuse)
    }

    /// The policy `Local`: the same among those on this node, and hints do not count. Without one here, what there is
    /// elsewhere decides whether that is said.
    pub(super) fn local(&self) -> Choice {
        if endpoints::usable(&self.all).is_empty() {
            return Choice::Refuse;
        }
        let here: Vec<Endpoint> = self.all.iter().filter(|e| self.node.has(e)).cloned().collect();
        spread(endpoints::usable(&here), Choice::Drop)
    }

    /// Those that answer the flows they have.
    pub(super) fn serving(&self) -> BTreeSet<Target> {
        self.all.iter().filter(|e| e.ready || e.serving).map(target).collect()
    }
}

fn target(e: &Endpoint) -> Target {
    Target { ip: e.ip, port: e.port }
}

fn spread(chosen: Vec<&Endpoint>, none: Choice) -> Choice {
    if chosen.is_empty() { none } else { Choice::Spread(chosen.into_iter().map(target).collect()) }
}
