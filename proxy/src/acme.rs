//! Certificates that come by themselves (ACME, RFC 8555), for Ingresses and Gateways that ask for them.
//!
//! [`wanted`] is pure: from the view to the certificates that should be there. [`issue`] gets those that are missing or
//! near their end and writes them into their Secrets, from where they go the way of all certificates. [`challenge`] is
//! what the data plane answers while an authority looks whether a name is ours.

pub mod challenge;
pub mod issue;
pub mod wanted;

/// Asks for certificates, with the value `"true"`.
pub const ANNOTATION: &str = "causeway.dev/acme";
/// The same, as many manifests have it already.
pub const OLD_ANNOTATION: &str = "kubernetes.io/tls-acme";
/// Marks Secrets that are written here; others are left alone.
pub const MANAGED_LABEL: &str = "causeway.dev/acme";
