//! What this crate knows of Kubernetes, held against the real `kubectl`.

#[path = "it/kubectl.rs"]
mod kubectl;
#[path = "it/stub.rs"]
mod stub;
