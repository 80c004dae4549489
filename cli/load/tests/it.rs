//! The load generator against real servers on loopback.

// Helpers of tests are tests too, which clippy does not see.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "it/runs.rs"]
mod runs;
