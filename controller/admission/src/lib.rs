//! What is admitted: pod security, limit ranges, quotas, policies, webhooks.

mod read;

pub mod pod_security;
pub mod request;
