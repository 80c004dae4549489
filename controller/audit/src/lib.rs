//! What is recorded of requests, as `audit.k8s.io/v1` of Kubernetes 1.35 has it.
//!
//! In: a [`Policy`] (which requests, in how much detail) and, for each request, [`RequestFacts`] at its beginning and
//! what becomes of it through its [`Record`]. Out: `audit.k8s.io/v1` Events, one JSON object each, to a log file that
//! is rotated ([`LogConfig`]) and to a webhook ([`WebhookConfig`]). [`rotate`] serves the program's own log as well.
//!
//! Everything that comes from a client is bounded: every text, the number of annotations, the bodies, and what waits
//! for a slow disk or webhook ([`QueueLimits`]). An event is never dropped for its size: bodies that are too large are
//! left out and the event is annotated `audit.k8s.io/truncated: "true"`. Events that are lost (a full queue, a webhook
//! that stays away, a full disk) are counted in [`Figures`].

mod auditor;
mod event;
mod log;
mod policy;
mod queue;
mod record;
pub mod rotate;
mod text;
mod webhook;

pub use auditor::{AuditError, Auditor, Config, Figures, RequestFacts, Resource, User, audit_id};
pub use event::{Stage, Stages};
pub use log::{LogConfig, Mode};
pub use policy::{Decision, Level, Policy, PolicyError};
pub use queue::QueueLimits;
pub use record::Record;
pub use webhook::kubeconfig::{KubeconfigError, Webhook};
pub use webhook::{Throttle, WebhookConfig};
