//! The one place that names the Kubernetes minor we speak.

/// Major version in `GET /version`.
pub const MAJOR: &str = "1";
/// Minor version in `GET /version`: the newest both k8s-openapi and the protobuf definitions cover.
pub const MINOR: &str = "35";
/// Kubernetes-style version; the build metadata names us.
pub const GIT_VERSION: &str = concat!("v1.35.0+causeway.", env!("CARGO_PKG_VERSION"));
