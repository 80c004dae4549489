//! Secrets at rest: values encrypted before they reach the store.
