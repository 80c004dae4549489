//! The scheduler: places pods on nodes. In: pods, nodes, claims, volumes and classes from the API. Out: bindings,
//! `PodScheduled` conditions and events.
//!
//! watch ([`run`]) → model ([`cluster`] keeps the [`snapshot`] up to date, change by change) → plan ([`placement`]: [`filter`]
//! then [`score`], pure) → apply ([`bind`]).

pub mod bind;
pub mod cluster;
pub mod filter;
pub mod placement;
pub mod pod;
pub mod score;
pub mod snapshot;
pub mod spread;
pub mod volume;
mod work;

pub use work::{SchedulerConfig, run};
