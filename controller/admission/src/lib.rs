//! What is admitted: pod security, limit ranges, quotas, policies, webhooks.

pub mod dynamic;
pub mod expressions;
pub mod policies;
pub mod request;
pub mod webhooks;
