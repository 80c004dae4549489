//! The list of built-in kinds.

use crate::Resource;

/// All built-in resources.
pub fn builtin() -> Vec<Resource> {
    Vec::new()
}
