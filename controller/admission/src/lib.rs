//! What is admitted: pod security, limit ranges, quotas, policies, webhooks.

mod amounts;
mod pod_resources;
mod read;

pub mod limit_ranger;
pub mod plugins;
pub mod pod_security;
pub mod quantity;
pub mod quota;
pub mod request;
