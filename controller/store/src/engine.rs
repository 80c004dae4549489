//! The sled engine (under construction).
/// Options.
#[derive(Debug, Clone, Default)]
pub struct SledOptions;
/// The embedded engine.
pub struct SledStore;
