//! A request as webhooks and policies see it: its facts, what may become of it, and what is asked about it at all.

mod facts;
mod matching;

pub use facts::{Convert, Defaults, Equivalent, Facts, Gvk, Gvr, Operation, Outcome, Rejection, User};
pub(crate) use facts::{MAX_ANNOTATION, cut, described};
pub use matching::is_exempt;
pub(crate) use matching::{Matcher, Selector, is_no_object};

#[cfg(test)]
pub(crate) mod tests;
