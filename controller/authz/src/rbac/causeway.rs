//! Roles.
pub(super) const TABLE: &str = "";
