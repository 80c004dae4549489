//! Defaults that several kinds share. In: parts of objects. Out: the same parts with their gaps filled.

pub(crate) mod pod;
pub(crate) mod volume;
