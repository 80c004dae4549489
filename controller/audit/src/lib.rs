//! What is recorded of requests: audit policy, events, log and webhook.
