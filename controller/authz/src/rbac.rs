//! Roles and bindings.
