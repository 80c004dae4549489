//! ResourceQuotas: what objects use, which quotas cover them, whether what a request adds still fits.
//!
//! In: the quotas of a namespace, the object of a request. Out: the quotas' new `status.used`, or a refusal. Counting
//! must not be raced: the engine reads the quotas, calls [`charge`], and writes each [`Charge`] on condition that the
//! quota still has the version that was read, best in one transaction with the object; otherwise it reads and charges
//! anew. What is deleted is given back by the controller, which calls [`recalculate`].

mod charge;
mod evaluator;
mod pods;
mod recalculate;
mod scope;

pub use crate::amounts::Amounts;
pub use charge::{Charge, charge};
pub use evaluator::Evaluator;
pub(crate) use evaluator::storage_class;
pub use recalculate::{differs, recalculate, tracked};
pub use scope::matches;
