//! Cluster DNS over real sockets, asked by the real `dig`, asking the real `unbound`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod it {
    pub mod api;
    pub mod autopath;
    pub mod fake;
    pub mod forward;
    pub mod hostile;
    pub mod limits;
    pub mod protocol;
    pub mod server;
    pub mod settings;
    pub mod support;
    pub mod unbound;
    pub mod upstreams;
}
