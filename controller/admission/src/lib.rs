//! What is admitted: pod security, limit ranges, quotas, policies, webhooks.
