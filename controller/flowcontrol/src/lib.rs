//! Priority and fairness: whose requests wait, and for whom (KEP-1040, as Kubernetes 1.35 behaves).
//!
//! In: FlowSchemas and PriorityLevelConfigurations as JSON objects, and for each request its user and what it asks for
//! ([`Facts`]). Out: a [`Seat`] to run on, after a wait if need be, or a [`Rejected`] for a 429; counters for metrics
//! ([`Snapshot`]).
//!
//! - [`Dispatcher`] classifies and admits. Its levels share the server's seats ([`seats`](Dispatcher::configure)), the
//!   flows of a level share what the level has.
//! - [`defaults`] has the objects that every cluster starts with, and how they are kept up to date.
//! - [`Budgets`] bound what lasts and therefore holds no seat: watches, streams, connections.

mod budgets;
mod config;
pub mod defaults;
mod dispatcher;
mod level;
mod matching;
mod pool;
mod seat;
mod snapshot;
mod width;

#[cfg(test)]
mod tests;

pub use budgets::{Budget, Budgets, Limits, OverBudget};
pub use config::{Applied, Ignored, dangling_condition};
pub use dispatcher::Dispatcher;
pub use matching::{Class, Facts};
pub use seat::{Flow, Reason, Rejected, Seat};
pub use snapshot::{FlowCounters, LevelCounters, Snapshot};
pub use width::{Listing, Width};
