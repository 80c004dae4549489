//! Network policies with real packets: nodes and pods of both families in network namespaces. Needs root.
#![allow(clippy::unwrap_used)]

#[path = "it/changes.rs"]
mod changes;
#[path = "it/egress.rs"]
mod egress;
#[path = "it/ingress.rs"]
mod ingress;
#[path = "it/services.rs"]
mod services;
#[path = "it/support.rs"]
mod support;
