//! Cluster DNS over real sockets, asked by the real `dig`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod it {
    pub mod api;
    pub mod forward;
    pub mod hostile;
    pub mod limits;
    pub mod server;
    pub mod support;
}
