//! What the end-to-end tests and the benches share: a cluster to drive, commands to run, patience.
//!
//! In: the built `causeway` and the machine's real tools (kubectl, curl, dig, ip). Out: a cluster that is there while
//! a [`Cluster`] lives and gone afterwards.

pub mod cluster;
pub mod command;
pub mod traces;

pub use cluster::Cluster;
pub use command::{Output, eventually, run, run_with_input};
