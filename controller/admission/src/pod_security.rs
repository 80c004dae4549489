//! Pod Security Admission (KEP-2579) with the Pod Security Standards of Kubernetes 1.35.
//!
//! In: the labels of a namespace, a pod or an object with a pod template. Out: a refusal, warnings, audit annotations.
//! [`evaluate`] judges one pod; [`PodSecurity`] decides on requests.

mod baseline;
mod checks;
mod configuration;
mod decide;
mod existing;
mod level;
mod pod;
mod restricted;

pub use checks::{Violation, evaluate, summary};
pub use decide::{Denial, Exemptions, Outcome, PodSecurity, PolicyChange};
pub use level::{LabelError, Level, LevelVersion, Policy, Version};
