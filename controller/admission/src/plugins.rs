//! Small plugins, each a pure function or two: tolerations by default, runtime classes, larger claims, owner
//! references, token Secrets.
//!
//! In: the objects of a request. Out: changed objects, refusals for a 403 (the engine writes `… is forbidden: ` before
//! them), questions for the authorizer.

pub mod claim_resize;
pub mod default_tolerations;
pub mod owner_references;
pub mod runtime_class;
pub mod token_secret;
