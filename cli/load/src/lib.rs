//! A load generator that does not fool itself.
//!
//! In: a [`Plan`]: a URL, a rate, a time, a number of connections. Out: a [`Report`]: how many requests were answered and
//! how long each took **from when it was due**, so that a pause of the server is seen by all requests it delayed and not
//! by the one that happened to be under way (no coordinated omission).
//!
//! [`pace`] says when requests are due, [`client`] sends them, [`run`] puts the two together, [`stats`] counts,
//! [`report`] and [`plot`] show. Load is bounded in rate, time and connections, and stops by itself.

mod client;
pub mod pace;
mod plan;
pub mod plot;
pub mod report;
mod run;
pub mod stats;

pub use plan::{Plan, Target};
pub use report::Report;
pub use run::{Progress, run};
