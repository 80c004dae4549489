//! A node's way to the API, over real links between network namespaces.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "it/cut.rs"]
mod cut;
#[path = "it/joining.rs"]
mod joining;
