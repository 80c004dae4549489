//! The API server with real clients: kube-rs in memory and over TLS, and kubectl.

#[path = "it/crud.rs"]
mod crud;
#[path = "it/support.rs"]
mod support;
