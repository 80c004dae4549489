//! Authentication against issuers and webhooks that listen, with TLS, on this machine.

#![allow(clippy::unwrap_used)]

#[path = "it/oidc.rs"]
mod oidc;
#[path = "it/server.rs"]
mod server;
#[path = "it/webhook.rs"]
mod webhook;
