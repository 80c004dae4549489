//! What is admitted: pod security, limit ranges, quotas, small plugins, and what users configure: policies and webhooks.
//!
//! In: requests as they are to be stored, with the objects that rule them. Out: changed objects, warnings, refusals in the
//! words of Kubernetes. All of it is pure but the calls of [`webhooks`].

mod amounts;
mod pod_resources;
mod read;

pub mod admission_request;
pub mod dynamic;
pub mod expressions;
pub mod limit_ranger;
pub mod plugins;
pub mod pod_security;
pub mod policies;
pub mod quantity;
pub mod quota;
pub mod request;
pub mod webhooks;
